//! Directories and directory entries, by descriptor and single name.

use std::ffi::CString;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::{self, AtFlags, Gid, Mode, OFlags, RawDir, RenameFlags, SeekFrom, Statx, Uid};
use rustix::io::Errno;

use super::Result;

pub use rustix::fs::{CWD, FileType, StatFs, StatxFlags, StatxTimestamp};
pub use rustix::fs::{Timespec, Timestamps, UTIME_NOW, UTIME_OMIT};

/// What `statx(2)` says of a file.
pub type Stat = Statx;

/// What one needs of an entry of a host directory.
#[derive(Clone, Debug)]
pub struct DirEntry {
    /// The stored name.
    pub name: CString,
    /// Inode number.
    pub ino: u64,
    /// Kind, as far as the host tells.
    pub kind: FileType,
    /// Position behind the entry.
    pub next: u64,
}

const STAT: StatxFlags = StatxFlags::BASIC_STATS.union(StatxFlags::BTIME);

/// A reference to an entry that gives no access to its content and needs no
/// permission on it.
pub fn open_path(dir: impl AsFd, name: &[u8]) -> Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    fs::openat(dir, name, flags, Mode::empty())
}

/// Such a reference to what `fd` refers to.
pub fn reopen_path(fd: impl AsFd) -> Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    by_path(fd, |path| fs::open(path, flags, Mode::empty()))
}

/// The attributes of what `fd` refers to.
pub fn stat(fd: impl AsFd) -> Result<Stat> {
    fs::statx(fd, "", AtFlags::EMPTY_PATH, STAT)
}

/// The attributes of an entry.
pub fn stat_at(dir: impl AsFd, name: &[u8]) -> Result<Stat> {
    fs::statx(dir, name, AtFlags::SYMLINK_NOFOLLOW, STAT)
}

/// Opens a directory for reading its entries and syncing it.
pub fn open_dir(dir: impl AsFd, name: &[u8]) -> Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    fs::openat(dir, name, flags, Mode::empty())
}

/// Does `act` by the path that names what `fd` refers to, whatever became of its name.
/// The path is valid in `act` only: once the descriptor is closed, its number may be
/// another file's.
fn by_path<T>(fd: impl AsFd, act: impl FnOnce(&str) -> Result<T>) -> Result<T> {
    act(&format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd()))
}

/// What a call by descriptor gave, or where that is `O_PATH` and so refused, the same
/// call by path.
pub(super) fn or_by_path<T>(
    direct: Result<T>,
    fd: impl AsFd,
    act: impl FnOnce(&str) -> Result<T>,
) -> Result<T> {
    match direct {
        Err(Errno::BADF) => by_path(fd, act),
        other => other,
    }
}

/// Opens the content of what an [`open_path`] descriptor refers to.
pub fn reopen(fd: impl AsFd, writable: bool) -> Result<OwnedFd> {
    let access = if writable {
        OFlags::RDWR
    } else {
        OFlags::RDONLY
    };
    let flags = access | OFlags::CLOEXEC;
    by_path(fd, |path| fs::open(path, flags, Mode::empty()))
}

/// Opens a file once more, for reading past the page cache.
///
/// # Errors
/// `EINVAL` where the filesystem does not have that.
pub(super) fn reopen_direct(fd: impl AsFd) -> Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECT | OFlags::CLOEXEC;
    by_path(fd, |path| fs::open(path, flags, Mode::empty()))
}

/// Creates (unless `exclusive`, or opens) a regular file for reading and writing.
pub fn create(dir: impl AsFd, name: &[u8], mode: u32, exclusive: bool) -> Result<OwnedFd> {
    let mut flags = OFlags::CREATE | OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    if exclusive {
        flags |= OFlags::EXCL;
    }
    fs::openat(dir, name, flags, Mode::from_raw_mode(mode & 0o7777))
}

/// Creates a regular file without a name in `dir`, for reading and writing.
///
/// # Errors
/// `EOPNOTSUPP` where the host has no such files.
pub fn create_unnamed(dir: impl AsFd, mode: u32) -> Result<OwnedFd> {
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    fs::openat(dir, ".", flags, Mode::from_raw_mode(mode & 0o7777))
}

/// Opens a regular file by name.
pub fn open_file(dir: impl AsFd, name: &[u8], writable: bool) -> Result<OwnedFd> {
    let access = if writable {
        OFlags::RDWR
    } else {
        OFlags::RDONLY
    };
    let flags = access | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    fs::openat(dir, name, flags, Mode::empty())
}

/// Opens a regular file for reading without changing its access time, where that
/// is allowed.
pub fn open_unnoticed(dir: impl AsFd, name: &[u8]) -> Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
    match fs::openat(&dir, name, flags | OFlags::NOATIME, Mode::empty()) {
        Err(Errno::PERM) => fs::openat(&dir, name, flags, Mode::empty()),
        opened => opened,
    }
}

/// Creates a directory.
pub fn mkdir(dir: impl AsFd, name: &[u8], mode: u32) -> Result<()> {
    fs::mkdirat(dir, name, Mode::from_raw_mode(mode & 0o7777))
}

/// Major and minor number of a device in the kernel's 32-bit form, which the FUSE
/// protocol has.
pub fn device_numbers(device: u32) -> (u32, u32) {
    let minor = (device & 0xff) | ((device >> 12) & 0xfff00);
    ((device >> 8) & 0xfff, minor)
}

/// Creates a fifo, socket, device or regular file.
pub fn mknod(dir: impl AsFd, name: &[u8], mode: u32, device: u32) -> Result<()> {
    let kind = FileType::from_raw_mode(mode);
    let (major, minor) = device_numbers(device);
    let device = fs::makedev(major, minor);
    fs::mknodat(dir, name, kind, Mode::from_raw_mode(mode & 0o7777), device)
}

/// Creates a symbolic link.
pub fn symlink(target: &[u8], dir: impl AsFd, name: &[u8]) -> Result<()> {
    fs::symlinkat(target, dir, name)
}

/// Target of a symbolic link, by its directory and name or, with an empty
/// name, by its own descriptor.
pub fn readlink(dir: impl AsFd, name: &[u8]) -> Result<Vec<u8>> {
    Ok(fs::readlinkat(dir, name, Vec::new())?.into_bytes())
}

/// Removes an entry that is not a directory.
pub fn unlink(dir: impl AsFd, name: &[u8]) -> Result<()> {
    fs::unlinkat(dir, name, AtFlags::empty())
}

/// Removes an empty directory.
pub fn rmdir(dir: impl AsFd, name: &[u8]) -> Result<()> {
    fs::unlinkat(dir, name, AtFlags::REMOVEDIR)
}

/// `renameat2(2)`; `flags` as there.
pub fn rename(
    dir: impl AsFd,
    name: &[u8],
    new_dir: impl AsFd,
    new_name: &[u8],
    flags: u32,
) -> Result<()> {
    let flags = RenameFlags::from_bits_retain(flags);
    fs::renameat_with(dir, name, new_dir, new_name, flags)
}

/// Another name for what `fd` refers to.
pub fn link(fd: impl AsFd, new_dir: impl AsFd, new_name: &[u8]) -> Result<()> {
    let follow = AtFlags::SYMLINK_FOLLOW;
    by_path(fd, |path| fs::linkat(CWD, path, new_dir, new_name, follow))
}

/// Sets the permission bits.
pub fn chmod(fd: impl AsFd, mode: u32) -> Result<()> {
    let mode = Mode::from_raw_mode(mode & 0o7777);
    or_by_path(fs::fchmod(&fd, mode), &fd, |path| fs::chmod(path, mode))
}

/// Sets owner and group, each unless `None`.
pub fn chown(fd: impl AsFd, uid: Option<u32>, gid: Option<u32>) -> Result<()> {
    let (uid, gid) = (uid.map(Uid::from_raw), gid.map(Gid::from_raw));
    fs::chownat(fd, "", uid, gid, AtFlags::EMPTY_PATH)
}

/// Sets access and modification time.
pub fn set_times(fd: impl AsFd, times: &Timestamps) -> Result<()> {
    fs::utimensat(fd, "", times, AtFlags::EMPTY_PATH)
}

/// Makes a directory's entries durable.
pub fn sync_dir(dir: impl AsFd, data_only: bool) -> Result<()> {
    if data_only {
        fs::fdatasync(dir)
    } else {
        fs::fsync(dir)
    }
}

/// Makes the whole filesystem that holds `fd` durable.
pub fn sync_all(fd: impl AsFd) -> Result<()> {
    fs::syncfs(fd)
}

/// `fstatfs(2)`.
pub fn statfs(fd: impl AsFd) -> Result<StatFs> {
    fs::fstatfs(fd)
}

/// Moves a directory descriptor to a position that an entry's `next` gave.
pub fn seek(dir: impl AsFd, position: u64) -> Result<()> {
    fs::seek(dir, SeekFrom::Start(position)).map(drop)
}

/// Reads the next entries of a directory; none at its end.
pub fn read_entries(dir: BorrowedFd<'_>, out: &mut Vec<DirEntry>) -> Result<()> {
    let mut buffer = [MaybeUninit::uninit(); 32 * 1024];
    let mut raw = RawDir::new(dir, &mut buffer);
    while let Some(entry) = raw.next() {
        let entry = entry?;
        out.push(DirEntry {
            name: entry.file_name().to_owned(),
            ino: entry.ino(),
            kind: entry.file_type(),
            next: entry.next_entry_cookie(),
        });
        if raw.is_buffer_empty() {
            break;
        }
    }
    Ok(())
}

/// All entries of a directory but `.` and `..`.
pub fn list(dir: impl AsFd) -> Result<Vec<DirEntry>> {
    let dir = open_dir(dir, b".")?;
    let mut all = Vec::new();
    loop {
        let before = all.len();
        read_entries(dir.as_fd(), &mut all)?;
        if all.len() == before {
            all.retain(|e| !matches!(e.name.to_bytes(), b"." | b".."));
            return Ok(all);
        }
    }
}

/// Does `act`; where that is refused, gives what `fd` refers to `bits` of access
/// for the moment in which it is done again. For a process that runs as the owner
/// and needs more than the owner has left to itself.
///
/// # Errors
/// Those of `act`.
pub fn with_access<T>(fd: impl AsFd, bits: u32, act: impl Fn() -> Result<T>) -> Result<T> {
    let refused = match act() {
        Err(error @ Errno::ACCESS) => error,
        other => return other,
    };
    let mode = u32::from(stat(&fd)?.stx_mode) & 0o7777;
    if mode & bits == bits || chmod(&fd, mode | bits).is_err() {
        return Err(refused);
    }
    let done = act();
    match chmod(&fd, mode) {
        // It was a directory to be removed.
        Err(error) if !is_absent(error) => Err(error),
        _ => done,
    }
}

/// Takes the lock that a mount of the volume holds, without waiting.
///
/// # Errors
/// `WOULDBLOCK` if another mount holds it.
pub fn lock(fd: impl AsFd) -> Result<()> {
    fs::flock(fd, fs::FlockOperation::NonBlockingLockExclusive)
}

/// Whether an error says that the entry is not there.
pub fn is_absent(error: Errno) -> bool {
    error == Errno::NOENT
}
