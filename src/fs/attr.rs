//! File attributes: the backing file's, with the plaintext's size.

use crate::backing::dir::{Stat, StatxFlags, StatxTimestamp};
use crate::types::TimeSpec;

/// What kind of file an inode is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileKind {
    /// Regular file.
    Regular,
    /// Directory.
    Directory,
    /// Symbolic link.
    Symlink,
    /// Named pipe.
    Fifo,
    /// Unix socket.
    Socket,
    /// Character device.
    CharDevice,
    /// Block device.
    BlockDevice,
}

/// Attributes of an inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attr {
    /// Inode number as users see it.
    pub ino: u64,
    /// Size of the plaintext.
    pub size: u64,
    /// 512-byte units the backing file takes.
    pub blocks: u64,
    /// Last access.
    pub atime: TimeSpec,
    /// Last change of the content.
    pub mtime: TimeSpec,
    /// Last change of the inode.
    pub ctime: TimeSpec,
    /// When the inode was made, where the host tells it.
    pub btime: Option<TimeSpec>,
    /// Kind of file.
    pub kind: FileKind,
    /// Permission bits, suid, sgid and sticky.
    pub perm: u16,
    /// Number of names.
    pub nlink: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Device number, in the kernel's 32-bit form.
    pub rdev: u32,
    /// Programs may not use the file's key at present, and have to be told at
    /// each write: the kernel asks for the attributes then, unless it has them.
    pub withheld: bool,
}

impl FileKind {
    /// From the format bits of a mode.
    pub fn from_mode(mode: u32) -> Option<Self> {
        Some(match mode & 0o170_000 {
            0o100_000 => Self::Regular,
            0o040_000 => Self::Directory,
            0o120_000 => Self::Symlink,
            0o010_000 => Self::Fifo,
            0o140_000 => Self::Socket,
            0o020_000 => Self::CharDevice,
            0o060_000 => Self::BlockDevice,
            _ => return None,
        })
    }
}

impl Attr {
    /// The attributes of a backing file as `ino`, with size `size`.
    pub(super) fn new(stat: &Stat, ino: u64, kind: FileKind, size: u64) -> Self {
        let (major, minor) = (stat.stx_rdev_major, stat.stx_rdev_minor);
        let born = stat.stx_mask & StatxFlags::BTIME.bits() != 0;
        Self {
            ino,
            size,
            blocks: stat.stx_blocks,
            atime: time(stat.stx_atime),
            mtime: time(stat.stx_mtime),
            ctime: time(stat.stx_ctime),
            btime: born.then(|| time(stat.stx_btime)),
            kind,
            perm: stat.stx_mode & 0o7777,
            nlink: stat.stx_nlink,
            uid: stat.stx_uid,
            gid: stat.stx_gid,
            rdev: (minor & 0xff) | (major << 8) | ((minor & !0xff) << 12),
            withheld: false,
        }
    }
}

/// A time as the host gives it.
pub(super) fn time(t: StatxTimestamp) -> TimeSpec {
    TimeSpec {
        sec: t.tv_sec,
        nsec: t.tv_nsec,
    }
}

/// A generation number, so that an inode number that is used again is not
/// taken for the inode that had it before: from the time of birth where the
/// host tells it.
pub(super) fn generation(stat: &Stat) -> u64 {
    let birth = stat.stx_btime;
    (birth.tv_sec as u64)
        .wrapping_mul(1_000_000_000)
        .wrapping_add(u64::from(birth.tv_nsec))
        >> 8
        & 0x7fff_ffff
}
