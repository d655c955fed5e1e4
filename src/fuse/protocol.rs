//! What goes between the kernel and a FUSE daemon, byte by byte (`linux/fuse.h`,
//! `struct fuse_*`). Numbers are in the machine's own order.

use std::time::Duration;

use crate::backing::dir::device_numbers;
use crate::fs::{Attr, FileKind};
use crate::types::TimeSpec;

/// `enum fuse_opcode`.
pub(super) mod op {
    pub(crate) const LOOKUP: u32 = 1;
    pub(crate) const FORGET: u32 = 2;
    pub(crate) const GETATTR: u32 = 3;
    pub(crate) const SETATTR: u32 = 4;
    pub(crate) const READLINK: u32 = 5;
    pub(crate) const SYMLINK: u32 = 6;
    pub(crate) const MKNOD: u32 = 8;
    pub(crate) const MKDIR: u32 = 9;
    pub(crate) const UNLINK: u32 = 10;
    pub(crate) const RMDIR: u32 = 11;
    pub(crate) const RENAME: u32 = 12;
    pub(crate) const LINK: u32 = 13;
    pub(crate) const OPEN: u32 = 14;
    pub(crate) const READ: u32 = 15;
    pub(crate) const WRITE: u32 = 16;
    pub(crate) const STATFS: u32 = 17;
    pub(crate) const RELEASE: u32 = 18;
    pub(crate) const FSYNC: u32 = 20;
    pub(crate) const SETXATTR: u32 = 21;
    pub(crate) const GETXATTR: u32 = 22;
    pub(crate) const LISTXATTR: u32 = 23;
    pub(crate) const REMOVEXATTR: u32 = 24;
    pub(crate) const INIT: u32 = 26;
    pub(crate) const READDIR: u32 = 28;
    pub(crate) const FSYNCDIR: u32 = 30;
    pub(crate) const CREATE: u32 = 35;
    pub(crate) const DESTROY: u32 = 38;
    pub(crate) const IOCTL: u32 = 39;
    pub(crate) const NOTIFY_REPLY: u32 = 41;
    pub(crate) const BATCH_FORGET: u32 = 42;
    pub(crate) const FALLOCATE: u32 = 43;
    pub(crate) const READDIRPLUS: u32 = 44;
    pub(crate) const RENAME2: u32 = 45;
    pub(crate) const LSEEK: u32 = 46;
    pub(crate) const TMPFILE: u32 = 51;
    pub(crate) const STATX: u32 = 52;
}

/// How long an operation's own header is: the part that `io_uring` brings apart
/// from the rest.
pub(super) const fn operation_len(opcode: u32) -> usize {
    match opcode {
        op::FORGET | op::MKDIR | op::RENAME | op::LINK | op::OPEN => 8,
        op::SETXATTR | op::GETXATTR | op::LISTXATTR | op::BATCH_FORGET => 8,
        op::GETATTR | op::MKNOD | op::FSYNC | op::FSYNCDIR => 16,
        op::CREATE | op::RENAME2 | op::TMPFILE => 16,
        op::RELEASE | op::LSEEK | op::STATX => 24,
        op::FALLOCATE | op::IOCTL => 32,
        op::READ | op::WRITE | op::READDIR | op::READDIRPLUS => 40,
        op::SETATTR => 88,
        _ => 0,
    }
}

/// `struct fuse_in_header`.
pub(super) const IN_HEADER: usize = 40;
/// `struct fuse_out_header`.
pub(super) const OUT_HEADER: usize = 16;

/// Bits of `fuse_setattr_in.valid`.
pub(super) mod valid {
    pub(crate) const MODE: u32 = 1;
    pub(crate) const UID: u32 = 1 << 1;
    pub(crate) const GID: u32 = 1 << 2;
    pub(crate) const SIZE: u32 = 1 << 3;
    pub(crate) const ATIME: u32 = 1 << 4;
    pub(crate) const MTIME: u32 = 1 << 5;
    pub(crate) const ATIME_NOW: u32 = 1 << 7;
    pub(crate) const MTIME_NOW: u32 = 1 << 8;
    pub(crate) const CTIME: u32 = 1 << 10;
}

/// `fuse_getattr_in.getattr_flags`: the handle means something.
pub(super) const GETATTR_FH: u32 = 1;
/// `fuse_write_in.write_flags`: from the page cache, not from a program.
pub(super) const WRITE_CACHE: u32 = 1;
/// The same: suid and sgid bits are to go.
pub(super) const WRITE_KILL_SUIDGID: u32 = 1 << 2;
/// `fuse_fsync_in.fsync_flags`: as `fdatasync(2)`.
pub(super) const FSYNC_FDATASYNC: u32 = 1;
/// `fuse_open_out.open_flags`: what is cached stays valid.
pub(super) const FOPEN_KEEP_CACHE: u32 = 1 << 1;

/// `enum fuse_notify_code`.
pub(super) const NOTIFY_INVAL_INODE: i32 = 2;
/// The same.
pub(super) const NOTIFY_STORE: i32 = 4;
/// The same: the kernel answers with a request.
pub(super) const NOTIFY_RETRIEVE: i32 = 5;

/// Reads the fields of a structure one after the other. `None` means that it is
/// shorter than it should be.
#[derive(Clone, Copy)]
pub(super) struct Fields<'a>(pub(super) &'a [u8]);

impl<'a> Fields<'a> {
    pub(super) fn bytes(&mut self, len: usize) -> Option<&'a [u8]> {
        let (bytes, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(bytes)
    }

    pub(super) fn u32(&mut self) -> Option<u32> {
        Some(u32::from_ne_bytes(self.bytes(4)?.try_into().ok()?))
    }

    pub(super) fn u64(&mut self) -> Option<u64> {
        Some(u64::from_ne_bytes(self.bytes(8)?.try_into().ok()?))
    }

    /// Everything before the next zero byte.
    pub(super) fn name(&mut self) -> Option<&'a [u8]> {
        let len = self.0.iter().position(|&byte| byte == 0)?;
        let name = self.bytes(len)?;
        self.bytes(1)?;
        Some(name)
    }
}

/// Writes the fields of structures one after the other.
#[derive(Default)]
pub(super) struct Message(pub(super) Vec<u8>);

impl Message {
    /// With room for `len` bytes.
    pub(super) fn with_capacity(len: usize) -> Self {
        Self(Vec::with_capacity(len))
    }

    pub(super) fn u32(mut self, value: u32) -> Self {
        self.0.extend_from_slice(&value.to_ne_bytes());
        self
    }

    fn u16(mut self, value: u16) -> Self {
        self.0.extend_from_slice(&value.to_ne_bytes());
        self
    }

    pub(super) fn u64(mut self, value: u64) -> Self {
        self.0.extend_from_slice(&value.to_ne_bytes());
        self
    }

    /// `struct fuse_attr`, with `size` and times as they are.
    pub(super) fn attr(self, attr: &Attr) -> Self {
        let times = [attr.atime, attr.mtime, attr.ctime];
        let mut message = self.u64(attr.ino).u64(attr.size).u64(attr.blocks);
        for time in times {
            message = message.u64(time.sec as u64);
        }
        for time in times {
            message = message.u32(time.nsec);
        }
        message
            .u32(u32::from(mode(attr)))
            .u32(attr.nlink)
            .u32(attr.uid)
            .u32(attr.gid)
            .u32(attr.rdev)
            .u32(BLOCK_SIZE)
            .u32(0)
    }

    /// `struct fuse_attr_out`.
    pub(super) fn attr_out(self, attr: &Attr, keep: Duration) -> Self {
        let (seconds, rest) = (keep.as_secs(), keep.subsec_nanos());
        self.u64(seconds).u32(rest).u32(0).attr(attr)
    }

    /// `struct fuse_statx_out`.
    pub(super) fn statx_out(self, attr: &Attr, keep: Duration) -> Self {
        let mask = match attr.btime {
            Some(_) => STATX_BASIC_STATS | STATX_BTIME,
            None => STATX_BASIC_STATS,
        };
        let nowhere = TimeSpec { sec: 0, nsec: 0 };
        let times = [
            attr.atime,
            attr.btime.unwrap_or(nowhere),
            attr.ctime,
            attr.mtime,
        ];
        let mut message = self
            .u64(keep.as_secs())
            .u32(keep.subsec_nanos())
            .zeros(20)
            .u32(mask)
            .u32(BLOCK_SIZE)
            .u64(0)
            .u32(attr.nlink)
            .u32(attr.uid)
            .u32(attr.gid)
            .u16(mode(attr))
            .u16(0)
            .u64(attr.ino)
            .u64(attr.size)
            .u64(attr.blocks)
            .u64(0);
        for time in times {
            message = message.u64(time.sec as u64).u32(time.nsec).u32(0);
        }
        let (major, minor) = device_numbers(attr.rdev);
        message.u32(major).u32(minor).zeros(8 + 14 * 8)
    }

    /// `struct fuse_entry_out`: how long the kernel may keep the name and the
    /// attributes.
    pub(super) fn entry(
        self,
        attr: &Attr,
        generation: u64,
        keep_name: Duration,
        keep_attr: Duration,
    ) -> Self {
        self.u64(attr.ino)
            .u64(generation)
            .u64(keep_name.as_secs())
            .u64(keep_attr.as_secs())
            .u32(keep_name.subsec_nanos())
            .u32(keep_attr.subsec_nanos())
            .attr(attr)
    }

    /// `struct fuse_entry_out` of a name that does not exist, which the kernel
    /// remembers.
    pub(super) fn no_entry(self, keep: Duration) -> Self {
        let message = self.u64(0).u64(0).u64(keep.as_secs());
        message.zeros(ENTRY_OUT - 24)
    }

    /// `struct fuse_open_out`.
    pub(super) fn opened(self, handle: u64, flags: u32) -> Self {
        self.u64(handle).u32(flags).u32(0)
    }

    /// `struct fuse_dirent`.
    pub(super) fn dirent(self, ino: u64, next: u64, kind: FileKind, name: &[u8]) -> Self {
        let mut message = self
            .u64(ino)
            .u64(next)
            .u32(name.len() as u32)
            .u32(u32::from(kind_bits(kind) >> 12));
        message.0.extend_from_slice(name);
        message.zeros(dirent_len(name) - DIRENT - name.len())
    }

    pub(super) fn zeros(mut self, count: usize) -> Self {
        self.0.resize(self.0.len() + count, 0);
        self
    }
}

/// Bits of `fuse_statx.mask`: all but the next.
const STATX_BASIC_STATS: u32 = 0x7ff;
/// The same: the time of birth.
const STATX_BTIME: u32 = 0x800;

/// What `stat(2)` recommends as the size of reads and writes.
const BLOCK_SIZE: u32 = 4096;

/// `struct fuse_entry_out`.
pub(super) const ENTRY_OUT: usize = 128;
/// `struct fuse_dirent` without the name.
const DIRENT: usize = 24;

/// How long a directory's entry is: the next one begins at a multiple of eight.
pub(super) fn dirent_len(name: &[u8]) -> usize {
    (DIRENT + name.len()).next_multiple_of(8)
}

fn mode(attr: &Attr) -> u16 {
    kind_bits(attr.kind) | attr.perm
}

fn kind_bits(kind: FileKind) -> u16 {
    match kind {
        FileKind::Regular => 0o100_000,
        FileKind::Directory => 0o040_000,
        FileKind::Symlink => 0o120_000,
        FileKind::Fifo => 0o010_000,
        FileKind::Socket => 0o140_000,
        FileKind::CharDevice => 0o020_000,
        FileKind::BlockDevice => 0o060_000,
    }
}

/// A time from its two fields.
pub(super) fn time(seconds: u64, nanoseconds: u32) -> TimeSpec {
    TimeSpec {
        sec: seconds as i64,
        nsec: nanoseconds,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Attr {
        let time = |sec| TimeSpec { sec, nsec: 7 };
        Attr {
            ino: 5,
            size: 9,
            blocks: 8,
            atime: time(-2),
            mtime: time(3),
            ctime: time(4),
            btime: Some(time(1)),
            kind: FileKind::Directory,
            perm: 0o755,
            nlink: 2,
            uid: 10,
            gid: 11,
            rdev: 0,
            withheld: false,
        }
    }

    #[test]
    fn structures_are_as_long_as_the_kernel_says() {
        let keep = Duration::from_millis(1500);
        let len = |message: Message| message.0.len();
        assert_eq!(len(Message::default().attr(&sample())), 88);
        assert_eq!(len(Message::default().attr_out(&sample(), keep)), 104);
        assert_eq!(len(Message::default().statx_out(&sample(), keep)), 288);
        assert_eq!(len(Message::default().entry(&sample(), 1, keep, keep)), 128);
        assert_eq!(len(Message::default().no_entry(keep)), 128);
        assert_eq!(len(Message::default().opened(1, 2)), 16);
        for name in [&b"a"[..], b"12345678", b"123456789"] {
            let entry = Message::default().dirent(1, 2, FileKind::Fifo, name);
            assert_eq!(entry.0.len(), dirent_len(name));
            assert_eq!(entry.0.len() % 8, 0);
        }
    }

    #[test]
    fn times_before_the_epoch_are_whole_seconds_and_what_follows() {
        let message = Message::default().attr(&sample()).0;
        let mut fields = Fields(&message[24..]);
        let seconds = [(); 3].map(|()| fields.u64().unwrap());
        let nanoseconds = fields.u32().unwrap();
        assert_eq!(time(seconds[0], nanoseconds), sample().atime);
        assert_eq!(seconds[0] as i64, -2);
    }

    #[test]
    fn what_is_too_short_is_none() {
        assert_eq!(Fields(b"abc").u32(), None);
        assert_eq!(Fields(b"abc").name(), None);
        let mut names = Fields(b"abc\0d\0");
        assert_eq!(names.name(), Some(&b"abc"[..]));
        assert_eq!(names.name(), Some(&b"d"[..]));
        assert_eq!(names.name(), None);
    }
}
