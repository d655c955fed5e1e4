//! A request from the kernel.

use crate::fs::NewNode;
use crate::sys::creds::{Caller, Changer};

use super::protocol::{Fields, IN_HEADER, op, operation_len};

/// From how many bytes on a write is large.
const LARGE: usize = 64 << 10;

/// Who asks for what; the parts lie in the buffer that brought them.
#[derive(Clone, Copy)]
pub(super) struct Request<'a> {
    pub(super) opcode: u32,
    pub(super) unique: u64,
    pub(super) ino: u64,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) pid: u32,
    /// The operation's own header, as long as [`operation_len`] says.
    pub(super) operation: Fields<'a>,
    /// What follows it: names, data.
    pub(super) rest: Fields<'a>,
}

impl<'a> Request<'a> {
    /// From what a device gives: all in one piece.
    pub(super) fn from_device(bytes: &'a [u8]) -> Option<Self> {
        let (header, rest) = bytes.split_at_checked(IN_HEADER)?;
        let mut fields = Fields(rest);
        let len = match Fields(header.get(4..)?).u32()? {
            op::INIT => rest.len(),
            opcode => operation_len(opcode),
        };
        let operation = fields.bytes(len)?;
        Self::from_parts(header, operation, fields.0)
    }

    /// From what a ring gives: the general header, the operation's, the rest.
    pub(super) fn from_parts(header: &[u8], operation: &'a [u8], rest: &'a [u8]) -> Option<Self> {
        let mut header = Fields(header);
        let _len = header.u32()?;
        let opcode = header.u32()?;
        let operation = match opcode {
            // As long as the kernel's version makes it.
            op::INIT => operation,
            opcode => operation.get(..operation_len(opcode))?,
        };
        Some(Self {
            opcode,
            unique: header.u64()?,
            ino: header.u64()?,
            uid: header.u32()?,
            gid: header.u32()?,
            pid: header.u32()?,
            operation: Fields(operation),
            rest: Fields(rest),
        })
    }

    /// What a new node is to be.
    pub(super) fn new_node(&self, mode: u32, umask: u32) -> NewNode {
        NewNode {
            caller: Caller {
                uid: self.uid,
                gid: self.gid,
            },
            mode,
            umask,
        }
    }

    /// The caller, unless it keeps suid and sgid bits.
    pub(super) fn changer(&self) -> Option<Changer> {
        let (thread, gid) = (self.pid, self.gid);
        (self.uid != 0).then_some(Changer { thread, gid })
    }

    /// Whether its inode is an open file, or one that is being opened.
    pub(super) fn is_for_file(&self) -> bool {
        matches!(self.opcode, op::OPEN | op::READ | op::WRITE | op::LSEEK)
    }

    /// Whether it is worth another processor than that of who asks: it waits for
    /// the disk, or brings much to encrypt.
    pub(super) fn takes_long(&self) -> bool {
        match self.opcode {
            op::READ | op::FSYNC | op::FSYNCDIR => true,
            op::WRITE => self.rest.0.len() >= LARGE,
            _ => false,
        }
    }
}
