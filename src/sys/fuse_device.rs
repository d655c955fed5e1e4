//! `/dev/fuse`: requests are read from it, replies and notices written to it.
#![allow(unsafe_code)]

use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

/// `FUSE_DEV_IOC_CLONE` of `linux/fuse.h`.
const CLONE: libc::c_ulong = 0x8004_e500;

/// A connection to the kernel.
#[derive(Debug)]
pub struct FuseDevice(OwnedFd);

impl FuseDevice {
    /// Opens a device that is not a connection yet: `mount(2)` makes it one.
    ///
    /// # Errors
    /// Those of `open(2)`.
    pub fn open() -> io::Result<OwnedFd> {
        let flags = OFlags::RDWR | OFlags::CLOEXEC;
        Ok(rustix::fs::open("/dev/fuse", flags, Mode::empty())?)
    }

    /// The device of a mounted filesystem.
    pub fn new(fd: OwnedFd) -> Self {
        Self(fd)
    }

    /// The same connection with a queue of its own for what is being answered, so
    /// that threads do not wait for each other.
    ///
    /// # Errors
    /// Those of `open(2)` and `ioctl(2)`.
    pub fn another(&self) -> io::Result<Self> {
        let fd = Self::open()?;
        let source = self.0.as_raw_fd() as u32;
        // SAFETY: the argument is a number that lives during the call.
        let result = unsafe { libc::ioctl(fd.as_raw_fd(), CLONE as _, &raw const source) };
        match result {
            0 => Ok(Self(fd)),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Waits for a request and gives its length; `None` once the filesystem is
    /// unmounted.
    ///
    /// # Errors
    /// Those of `read(2)` that do not pass.
    pub fn receive(&self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        loop {
            match rustix::io::read(&self.0, &mut *buffer) {
                Ok(len) => return Ok(Some(len)),
                // Interrupted, or the request was (fs/fuse/dev.c).
                Err(Errno::INTR | Errno::AGAIN | Errno::NOENT) => {}
                // Unmounted, or while a last request was being read.
                Err(Errno::NODEV | Errno::CONNABORTED) => return Ok(None),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Sends a reply or a notice.
    ///
    /// # Errors
    /// Those of `writev(2)`; `ENOENT` where nobody waits for it any more.
    pub fn send(&self, parts: &[IoSlice<'_>]) -> io::Result<()> {
        rustix::io::writev(&self.0, parts)?;
        Ok(())
    }
}

impl AsFd for FuseDevice {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
