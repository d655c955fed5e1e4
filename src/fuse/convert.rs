//! Attributes and entries as fuser takes them, and callers and flags as `fs` does.

use std::time::{Duration, SystemTime};

use fuser::{
    Errno, FileAttr, FileType, Generation, INodeNo, OpenAccMode, OpenFlags, ReplyEntry, ReplyXattr,
    Request,
};

use crate::fs::{Attr, Entry, FileKind, NewNode, OpenOptions};
use crate::sys::creds::{Caller, Changer};

use super::time;

/// How long the kernel may keep what it was told: this mount is the volume's
/// only writer, so nothing changes behind the kernel's back.
pub(super) const TTL: Duration = Duration::from_secs(24 * 60 * 60);
/// The same for the attributes of a file that is open for writing.
const BUSY_TTL: Duration = Duration::from_secs(1);

pub(super) fn kind(kind: FileKind) -> FileType {
    match kind {
        FileKind::Regular => FileType::RegularFile,
        FileKind::Directory => FileType::Directory,
        FileKind::Symlink => FileType::Symlink,
        FileKind::Fifo => FileType::NamedPipe,
        FileKind::Socket => FileType::Socket,
        FileKind::CharDevice => FileType::CharDevice,
        FileKind::BlockDevice => FileType::BlockDevice,
    }
}

pub(super) fn attr(attr: &Attr) -> FileAttr {
    FileAttr {
        ino: INodeNo(attr.ino),
        size: attr.size,
        blocks: attr.blocks,
        atime: time::to_system(attr.atime),
        mtime: time::to_system(attr.mtime),
        ctime: time::to_system(attr.ctime),
        crtime: SystemTime::UNIX_EPOCH,
        kind: kind(attr.kind),
        perm: attr.perm,
        nlink: attr.nlink,
        uid: attr.uid,
        gid: attr.gid,
        rdev: attr.rdev,
        blksize: 4096,
        flags: 0,
    }
}

/// An entry with inode 0: the kernel remembers that there is none.
pub(super) fn no_entry() -> FileAttr {
    FileAttr {
        ino: INodeNo(0),
        ..attr(&Attr {
            ino: 0,
            size: 0,
            blocks: 0,
            atime: Default::default(),
            mtime: Default::default(),
            ctime: Default::default(),
            kind: FileKind::Regular,
            perm: 0,
            nlink: 0,
            uid: 0,
            gid: 0,
            rdev: 0,
            withheld: false,
        })
    }
}

/// Replies with an entry.
pub(super) fn reply_entry(reply: ReplyEntry, entry: &Entry) {
    let generation = Generation(entry.generation);
    reply.entry_with_ttls(&attr_ttl(entry), &TTL, &attr(&entry.attr), generation);
}

/// How long the kernel may keep attributes. It does not count the blocks of a
/// file that is being written, and has to ask at each write where the key is
/// withheld.
pub(super) fn attr_ttl(entry: &Entry) -> Duration {
    match (entry.attr.withheld, entry.busy) {
        (true, _) => Duration::ZERO,
        (false, true) => BUSY_TTL,
        (false, false) => TTL,
    }
}

/// The same for entries of a listing, which have one time for name and
/// attributes.
pub(super) fn listed_ttl(entry: &Entry) -> Duration {
    match entry.attr.withheld {
        true => Duration::ZERO,
        false => TTL,
    }
}

/// What a new node is to be.
pub(super) fn new_node(req: &Request, mode: u32, umask: u32) -> NewNode {
    NewNode {
        caller: Caller {
            uid: req.uid(),
            gid: req.gid(),
        },
        mode,
        umask,
    }
}

/// The caller, unless it keeps suid and sgid bits.
pub(super) fn changer(req: &Request) -> Option<Changer> {
    let (thread, gid) = (req.pid(), req.gid());
    (req.uid() != 0).then_some(Changer { thread, gid })
}

/// How to open, by the flags of `open(2)`.
pub(super) fn open_options(flags: OpenFlags) -> OpenOptions {
    OpenOptions {
        write: flags.acc_mode() != OpenAccMode::O_RDONLY,
        truncate: flags.0 & libc_o::TRUNC != 0,
    }
}

/// The flags of `open(2)` that are looked at here.
pub(super) mod libc_o {
    pub(crate) const TRUNC: i32 = 0o1000;
    pub(crate) const EXCL: i32 = 0o200;
    pub(crate) const DIRECT: i32 = 0o40000;
}

/// Replies with a value, or how long it is.
pub(super) fn reply_xattr(reply: ReplyXattr, value: &[u8], size: u32) {
    if size == 0 {
        reply.size(value.len() as u32);
    } else if value.len() > size as usize {
        reply.error(Errno::ERANGE);
    } else {
        reply.data(value);
    }
}
