//! The system calls that std and rustix do not offer safely: other users'
//! credentials, forked children, asynchronous I/O, file handles, mappings,
//! directory positions. With `filter`, the place of all `unsafe` in
//! the integration tests.
#![allow(unsafe_code)]

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, CWD, linkat};
use rustix::thread::CapabilitySet;

/// Turns -1 into the error of `errno`.
fn check(result: libc::c_long) -> io::Result<i64> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

fn c_path(path: &Path) -> CString {
    CString::new(path.as_os_str().as_bytes()).expect("a path has no NUL")
}

/// The effective user.
pub fn euid() -> u32 {
    // SAFETY: no memory is involved.
    unsafe { libc::geteuid() }
}

/// Runs `body` on a thread of its own with the credentials and supplementary
/// groups given and a umask of 0. Raw system calls change one thread alone.
pub fn as_user<R: Send>(uid: u32, gid: u32, groups: &[u32], body: impl FnOnce() -> R + Send) -> R {
    on_private_thread(|| {
        // SAFETY: the pointer and length are those of a live slice; the other
        // calls take integers. Raw calls touch only the calling thread.
        unsafe {
            check(libc::syscall(
                libc::SYS_setgroups,
                groups.len(),
                groups.as_ptr(),
            ))
            .expect("setgroups");
            check(libc::syscall(libc::SYS_setresgid, gid, gid, gid)).expect("setresgid");
            check(libc::syscall(libc::SYS_setresuid, uid, uid, uid)).expect("setresuid");
        }
        body()
    })
}

/// Runs `body` on a thread of its own under another umask.
pub fn with_umask<R: Send>(mask: u32, body: impl FnOnce() -> R + Send) -> R {
    on_private_thread(|| {
        // SAFETY: an integer in, an integer out.
        unsafe { libc::umask(mask) };
        body()
    })
}

/// A thread whose umask and working directory are its own; its umask is 0.
pub fn on_private_thread<R: Send>(body: impl FnOnce() -> R + Send) -> R {
    let outcome = std::thread::scope(|scope| {
        scope
            .spawn(|| {
                // SAFETY: flags only; affects the calling thread.
                unsafe {
                    check(libc::unshare(libc::CLONE_FS).into()).expect("unshare(CLONE_FS)");
                    libc::umask(0);
                }
                body()
            })
            .join()
    });
    outcome.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// How a forked child ended.
#[derive(Debug, PartialEq, Eq, Clone, Copy)]
pub enum Ended {
    /// With this exit code.
    Exit(i32),
    /// By this signal.
    Signal(i32),
}

/// Runs `body` in a forked child that exits with what it returns. An alarm
/// ends a child that hangs. `body` should make system calls and little else.
pub fn in_child(body: impl FnOnce() -> i32) -> Ended {
    // SAFETY: the child runs `body` and leaves by _exit without returning
    // into the parent's frames; a panic is turned into exit code 101.
    unsafe {
        let pid = libc::fork();
        assert!(pid >= 0, "fork: {}", io::Error::last_os_error());
        if pid == 0 {
            libc::alarm(60);
            let code = std::panic::catch_unwind(std::panic::AssertUnwindSafe(body)).unwrap_or(101);
            libc::_exit(code);
        }
        let mut status = 0;
        check(libc::waitpid(pid, &raw mut status, 0).into()).expect("waitpid");
        if libc::WIFSIGNALED(status) {
            Ended::Signal(libc::WTERMSIG(status))
        } else {
            Ended::Exit(libc::WEXITSTATUS(status))
        }
    }
}

/// Lets this process write files of at most `bytes`; returns what SIGXFSZ
/// then does: ignored (`true`) or deadly.
pub fn limit_file_size(bytes: u64, ignore_signal: bool) {
    let limit = libc::rlimit {
        rlim_cur: bytes,
        rlim_max: libc::RLIM_INFINITY,
    };
    let action = if ignore_signal {
        libc::SIG_IGN
    } else {
        libc::SIG_DFL
    };
    // SAFETY: a live struct; a predefined handler.
    unsafe {
        check(libc::setrlimit(libc::RLIMIT_FSIZE, &raw const limit).into()).expect("setrlimit");
        libc::signal(libc::SIGXFSZ, action);
    }
}

/// Takes a capability away from what this process executes; nothing if it has none to
/// take away.
pub fn without_capability(which: CapabilitySet) {
    let _ = rustix::thread::remove_capability_from_bounding_set(which);
}

/// Sets the limit of open descriptors of this process, which what it executes cannot
/// raise.
pub fn limit_descriptors(count: u64) -> io::Result<()> {
    without_capability(CapabilitySet::SYS_RESOURCE);
    let limit = libc::rlimit {
        rlim_cur: count,
        rlim_max: count,
    };
    // SAFETY: a live struct.
    check(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) }.into()).map(drop)
}

/// Sends SIGALRM to this process after some seconds.
pub fn alarm(seconds: u32) {
    // SAFETY: an integer only.
    unsafe { libc::alarm(seconds) };
}

/// Sends a signal to a process.
pub fn kill(pid: u32, signal: i32) {
    // SAFETY: integers only.
    unsafe { libc::kill(pid.cast_signed(), signal) };
}

/// Makes a signal interrupt system calls instead of restarting or killing.
pub fn make_interrupting(signal: i32) {
    extern "C" fn nothing(_: i32) {}
    // SAFETY: a zeroed sigaction is valid; the handler does nothing.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = nothing as *const () as usize;
        check(libc::sigaction(signal, &raw const action, std::ptr::null_mut()).into())
            .expect("sigaction");
    }
}

/// The kernel's id of the calling thread.
pub fn thread_id() -> i32 {
    // SAFETY: no arguments.
    i32::try_from(unsafe { libc::syscall(libc::SYS_gettid) }).expect("a thread id")
}

/// Sends a signal to one thread of this process.
pub fn signal_thread(tid: i32, signal: i32) {
    // SAFETY: integers only.
    unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), tid, signal) };
}

/// `ioctl` with a pointer to one `u32`, such as EXT4_IOC_SHUTDOWN.
pub fn ioctl_u32(file: &impl AsRawFd, request: u64, argument: u32) -> io::Result<()> {
    // SAFETY: the kernel reads four bytes that live through the call.
    check(unsafe { libc::ioctl(file.as_raw_fd(), request, &raw const argument) }.into()).map(drop)
}

/// `truncate(2)` by path, with any length.
pub fn truncate(path: &Path, len: i64) -> io::Result<()> {
    let path = c_path(path);
    // SAFETY: a NUL-terminated string.
    check(unsafe { libc::truncate(path.as_ptr(), len) }.into()).map(drop)
}

/// The sizes of one attribute's value and of the list of names, asked for with
/// buffers of no size.
pub fn xattr_sizes(path: &Path, name: &str) -> io::Result<(usize, usize)> {
    let (path, name) = (c_path(path), CString::new(name).expect("a name has no NUL"));
    // SAFETY: NUL-terminated strings; a size of 0 keeps the kernel from writing.
    unsafe {
        let value = libc::getxattr(path.as_ptr(), name.as_ptr(), std::ptr::null_mut(), 0);
        let value = check(value as i64)?;
        let list = check(libc::listxattr(path.as_ptr(), std::ptr::null_mut(), 0) as i64)?;
        Ok((
            usize::try_from(value).expect("a size"),
            usize::try_from(list).expect("a size"),
        ))
    }
}

/// Shared mapping of the first `len` bytes of a file.
pub struct Map {
    address: *mut u8,
    len: usize,
}

impl Map {
    /// Maps for reading and, if asked, writing.
    pub fn new(file: &impl AsRawFd, len: usize, writable: bool) -> io::Result<Map> {
        let protection = libc::PROT_READ | if writable { libc::PROT_WRITE } else { 0 };
        // SAFETY: a fresh mapping chosen by the kernel.
        let address = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                len,
                protection,
                libc::MAP_SHARED,
                file.as_raw_fd(),
                0,
            )
        };
        if address == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Map {
            address: address.cast(),
            len,
        })
    }

    /// A copy of part of the mapping.
    pub fn get(&self, at: usize, len: usize) -> Vec<u8> {
        assert!(at + len <= self.len);
        // SAFETY: in bounds; volatile, as other mappings may write meanwhile.
        (at..at + len)
            .map(|i| unsafe { self.address.add(i).read_volatile() })
            .collect()
    }

    /// Stores into the mapping.
    pub fn put(&self, at: usize, bytes: &[u8]) {
        assert!(at + bytes.len() <= self.len);
        // SAFETY: in bounds and mapped writable by the tests that call this.
        unsafe { self.address.add(at).copy_from(bytes.as_ptr(), bytes.len()) };
    }

    /// `msync(MS_SYNC)` of the whole.
    pub fn sync(&self) -> io::Result<()> {
        // SAFETY: the mapping's own bounds.
        check(unsafe { libc::msync(self.address.cast(), self.len, libc::MS_SYNC) }.into()).map(drop)
    }
}

impl Drop for Map {
    fn drop(&mut self) {
        // SAFETY: the mapping's own bounds; not used afterwards.
        unsafe { libc::munmap(self.address.cast(), self.len) };
    }
}

/// Page-aligned memory, as O_DIRECT wants it.
pub struct Aligned {
    memory: Vec<u8>,
    start: usize,
    len: usize,
}

impl Aligned {
    /// `len` bytes of `fill`.
    pub fn new(len: usize, fill: u8) -> Aligned {
        let memory = vec![fill; len + 4096];
        let start = memory.as_ptr().align_offset(4096);
        Aligned { memory, start, len }
    }
}

impl std::ops::Deref for Aligned {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.memory[self.start..self.start + self.len]
    }
}

impl std::ops::DerefMut for Aligned {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..self.start + self.len]
    }
}

/// One kernel AIO request at a time: `io_submit` and `io_getevents`.
pub struct Aio(u64);

#[repr(C)]
#[derive(Default)]
struct Iocb {
    data: u64,
    key: u32,
    rw_flags: u32,
    opcode: u16,
    priority: i16,
    descriptor: u32,
    buffer: u64,
    bytes: u64,
    offset: i64,
    reserved: u64,
    flags: u32,
    event_fd: u32,
}

impl Aio {
    /// `io_setup`.
    pub fn new() -> io::Result<Aio> {
        let mut context = 0_u64;
        // SAFETY: the kernel fills in eight bytes.
        check(unsafe { libc::syscall(libc::SYS_io_setup, 8, &raw mut context) })?;
        Ok(Aio(context))
    }

    /// IOCB_CMD_PWRITE.
    pub fn write(&self, file: &impl AsRawFd, bytes: &[u8], offset: u64) -> io::Result<i64> {
        self.run(1, file, bytes.as_ptr() as u64, bytes.len(), offset)
    }

    /// IOCB_CMD_PREAD.
    pub fn read(&self, file: &impl AsRawFd, into: &mut [u8], offset: u64) -> io::Result<i64> {
        self.run(0, file, into.as_mut_ptr() as u64, into.len(), offset)
    }

    /// IOCB_CMD_FSYNC.
    pub fn fsync(&self, file: &impl AsRawFd) -> io::Result<i64> {
        self.run(2, file, 0, 0, 0)
    }

    fn run(
        &self,
        opcode: u16,
        file: &impl AsRawFd,
        buffer: u64,
        bytes: usize,
        offset: u64,
    ) -> io::Result<i64> {
        let mut request = Iocb {
            opcode,
            descriptor: u32::try_from(file.as_raw_fd()).expect("open"),
            buffer,
            bytes: bytes as u64,
            offset: i64::try_from(offset).expect("in range"),
            ..Iocb::default()
        };
        let mut list = [&raw mut request];
        let mut event = [0_i64; 4];
        // SAFETY: request, list and event outlive the calls: the second one
        // waits for the only request to end.
        unsafe {
            check(libc::syscall(
                libc::SYS_io_submit,
                self.0,
                1,
                list.as_mut_ptr(),
            ))?;
            let got = check(libc::syscall(
                libc::SYS_io_getevents,
                self.0,
                1,
                1,
                event.as_mut_ptr(),
                std::ptr::null::<libc::timespec>(),
            ))?;
            assert_eq!(got, 1, "one event");
        }
        match event[2] {
            result if result < 0 => Err(io::Error::from_raw_os_error(
                i32::try_from(-result).expect("an errno"),
            )),
            result => Ok(result),
        }
    }
}

impl Drop for Aio {
    fn drop(&mut self) {
        // SAFETY: the context is ours and idle.
        unsafe { libc::syscall(libc::SYS_io_destroy, self.0) };
    }
}

/// A file handle of `name_to_handle_at`.
pub struct Handle(Vec<u32>);

impl Handle {
    const BYTES: u32 = 128;

    /// The handle of a path, not following a symlink.
    pub fn of(path: &Path) -> io::Result<Handle> {
        let mut buffer = vec![0_u32; 2 + Self::BYTES as usize / 4];
        buffer[0] = Self::BYTES;
        let path = c_path(path);
        let mut mount_id = 0_i32;
        // SAFETY: struct file_handle is two u32 and then the bytes promised
        // in the first one; both buffers live through the call.
        check(unsafe {
            libc::syscall(
                libc::SYS_name_to_handle_at,
                libc::AT_FDCWD,
                path.as_ptr(),
                buffer.as_mut_ptr(),
                &raw mut mount_id,
                0,
            )
        })?;
        Ok(Handle(buffer))
    }

    /// Opens the file again; `mount` is any descriptor on its mount.
    pub fn open(&self, mount: &impl AsRawFd, flags: i32) -> io::Result<OwnedFd> {
        // SAFETY: the handle is as the kernel filled it in; the descriptor
        // that comes back is ours.
        unsafe {
            let fd = check(libc::syscall(
                libc::SYS_open_by_handle_at,
                mount.as_raw_fd(),
                self.0.as_ptr(),
                flags | libc::O_CLOEXEC,
            ))?;
            Ok(OwnedFd::from_raw_fd(
                i32::try_from(fd).expect("a descriptor"),
            ))
        }
    }
}

/// A directory stream with positions, as the C library has it.
pub struct DirStream(*mut libc::DIR);

impl DirStream {
    /// `opendir`.
    pub fn open(path: &Path) -> io::Result<DirStream> {
        let path = c_path(path);
        // SAFETY: a NUL-terminated string.
        let stream = unsafe { libc::opendir(path.as_ptr()) };
        if stream.is_null() {
            Err(io::Error::last_os_error())
        } else {
            Ok(DirStream(stream))
        }
    }

    /// `readdir`: name and type of the next entry.
    pub fn next(&mut self) -> Option<(std::ffi::OsString, u8)> {
        // SAFETY: the stream is open; the entry is copied before the next call.
        unsafe {
            let entry = libc::readdir(self.0);
            if entry.is_null() {
                return None;
            }
            let name = CStr::from_ptr((*entry).d_name.as_ptr());
            Some((
                OsStringExt::from_vec(name.to_bytes().to_vec()),
                (*entry).d_type,
            ))
        }
    }

    /// `telldir`.
    pub fn tell(&self) -> i64 {
        // SAFETY: the stream is open.
        unsafe { libc::telldir(self.0) }
    }

    /// `seekdir`.
    pub fn seek(&mut self, position: i64) {
        // SAFETY: the stream is open; the position came from `tell`.
        unsafe { libc::seekdir(self.0, position) };
    }

    /// `rewinddir`.
    pub fn rewind(&mut self) {
        // SAFETY: the stream is open.
        unsafe { libc::rewinddir(self.0) };
    }
}

impl Drop for DirStream {
    fn drop(&mut self) {
        // SAFETY: the stream is open and not used afterwards.
        unsafe { libc::closedir(self.0) };
    }
}

/// `fcntl` record lock of the whole process on `start..start + len`: `None`
/// where it was taken, else the errno. `kind` is F_RDLCK, F_WRLCK or F_UNLCK.
pub fn record_lock(
    file: &impl AsRawFd,
    command: i32,
    kind: i32,
    start: i64,
    len: i64,
) -> io::Result<libc::flock> {
    // SAFETY: zeroes are a valid flock; it lives through the call.
    unsafe {
        let mut lock: libc::flock = std::mem::zeroed();
        lock.l_type = libc::c_short::try_from(kind).expect("a lock type");
        lock.l_whence = 0;
        lock.l_start = start;
        lock.l_len = len;
        check(libc::fcntl(file.as_raw_fd(), command, &raw mut lock).into())?;
        Ok(lock)
    }
}

/// Sets a user's block limit (in KiB) with `quotactl`.
pub fn set_user_quota(device: &Path, uid: u32, kib: u64) -> io::Result<()> {
    let device = c_path(device);
    // SAFETY: the struct and the string live through the call.
    unsafe {
        let mut quota: libc::dqblk = std::mem::zeroed();
        quota.dqb_bhardlimit = kib;
        quota.dqb_bsoftlimit = kib;
        quota.dqb_valid = 1;
        let command = (0x80_0008 << 8) | (libc::USRQUOTA & 0xff);
        check(
            libc::quotactl(
                command,
                device.as_ptr(),
                uid.cast_signed(),
                (&raw mut quota).cast(),
            )
            .into(),
        )
        .map(drop)
    }
}

/// Polls until `condition` holds; `false` after `limit`.
pub fn eventually(limit: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let end = Instant::now() + limit;
    loop {
        if condition() {
            return true;
        }
        if Instant::now() > end {
            return false;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Gives an open file a name, in the way that needs no privilege.
pub fn link_open(file: &impl AsRawFd, path: &Path) -> rustix::io::Result<()> {
    let by = format!("/proc/self/fd/{}", file.as_raw_fd());
    linkat(CWD, by, CWD, path, AtFlags::SYMLINK_FOLLOW)
}

/// Pages of the file that the host has in memory. (A read that does not wait would
/// have more of them read ahead.)
pub fn pages_in_memory(path: &Path) -> usize {
    let file = std::fs::File::open(path).expect("a file");
    let len = file.metadata().expect("its length").len() as usize;
    let mut pages = vec![0_u8; len.div_ceil(4096)];
    // SAFETY: a new mapping is made, asked about and removed; `pages` has a byte for
    // each of its pages.
    unsafe {
        let (protection, fd) = (libc::PROT_READ, file.as_raw_fd());
        let none = std::ptr::null_mut();
        let at = libc::mmap(none, len, protection, libc::MAP_SHARED, fd, 0);
        assert!(at != libc::MAP_FAILED, "{}", io::Error::last_os_error());
        check(libc::mincore(at, len, pages.as_mut_ptr()).into()).expect("mincore");
        check(libc::munmap(at, len).into()).expect("munmap");
    }
    pages.iter().filter(|&page| page & 1 == 1).count()
}
