//! One backing file, by positioned I/O on a descriptor.

use std::io::{IoSlice, IoSliceMut};
use std::num::NonZero;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{self, Advice, FallocateFlags, SeekFrom, Timespec, Timestamps};
use rustix::io::{self, Errno, ReadWriteFlags};

use crate::types::TimeSpec;

use super::{Descriptor, Result};

/// What the content layer needs of a file; the seam at which tests put files
/// in memory and files that fail.
#[allow(clippy::len_without_is_empty)]
pub trait BackingFile: Send + Sync {
    /// Reads into the buffers in turn; fewer bytes than asked only at the end
    /// of the file. Advances the slices.
    fn read_at(&self, bufs: &mut [IoSliceMut<'_>], offset: u64) -> Result<usize>;

    /// Writes all of the buffers in turn. Advances the slices.
    fn write_at(&self, bufs: &mut [IoSlice<'_>], offset: u64) -> Result<()>;

    /// As [`Self::write_at`], for much data that is not read again soon: it is on
    /// its way to the disk at once, so a later sync has less to wait for, and it
    /// leaves the host's page cache when it is there.
    fn write_behind(&self, bufs: &mut [IoSlice<'_>], offset: u64) -> Result<()> {
        self.write_at(bufs, offset)
    }

    /// Says that of what is read and written most is not wanted again, so that it
    /// is the first to leave the host's page cache.
    fn mostly_once(&self) {}

    /// Says that a range is about to be read, so that it can be on its way.
    fn will_need(&self, offset: u64, len: u64);

    /// Length in bytes.
    fn len(&self) -> Result<u64>;

    /// Cuts or extends (with a hole) to `len` bytes.
    fn set_len(&self, len: u64) -> Result<()>;

    /// Makes all earlier writes durable; with `data_only` not the times.
    fn sync(&self, data_only: bool) -> Result<()>;

    /// Frees the storage of a range, which then reads as zeros.
    fn punch(&self, offset: u64, len: u64) -> Result<()>;

    /// Reserves storage for a range without changing the length.
    fn allocate(&self, offset: u64, len: u64) -> Result<()>;

    /// The first offset from `offset` on that may hold data; `None` if only
    /// holes follow.
    fn next_data(&self, offset: u64) -> Result<Option<u64>>;

    /// Runs `change` and puts the modification time back to what it was: for
    /// changes the user of the file did not make just now. Gives the change times
    /// before and after.
    fn keeping_mtime(&self, change: &mut dyn FnMut() -> Result<()>) -> Result<[TimeSpec; 2]>;
}

/// `RWF_DONTCACHE` of Linux 6.14 and later (`linux/fs.h`).
const DONTCACHE: ReadWriteFlags = ReadWriteFlags::from_bits_retain(0x80);

/// A file of the host.
#[derive(Debug)]
pub struct HostFile(Arc<Descriptor>);

impl HostFile {
    /// Takes over an open descriptor.
    pub fn new(fd: OwnedFd) -> Self {
        Self::sharing(Arc::new(fd.into()))
    }

    /// The file of a descriptor that others use, too.
    pub fn sharing(descriptor: Arc<Descriptor>) -> Self {
        Self(descriptor)
    }

    fn write_with(
        &self,
        mut bufs: &mut [IoSlice<'_>],
        mut offset: u64,
        flags: ReadWriteFlags,
    ) -> Result<()> {
        while !bufs.is_empty() {
            match io::pwritev2(&self.0, bufs, offset, flags) {
                Ok(0) => return Err(Errno::IO),
                Ok(n) => {
                    offset += n as u64;
                    IoSlice::advance_slices(&mut bufs, n);
                }
                Err(Errno::INTR) => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }
}

impl AsFd for HostFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl BackingFile for HostFile {
    fn read_at(&self, mut bufs: &mut [IoSliceMut<'_>], mut offset: u64) -> Result<usize> {
        let mut total = 0;
        while !bufs.is_empty() {
            match io::preadv(&self.0, bufs, offset) {
                Ok(0) => break,
                Ok(n) => {
                    total += n;
                    offset += n as u64;
                    IoSliceMut::advance_slices(&mut bufs, n);
                }
                Err(Errno::INTR) => {}
                Err(e) => return Err(e),
            }
        }
        Ok(total)
    }

    fn write_at(&self, bufs: &mut [IoSlice<'_>], offset: u64) -> Result<()> {
        self.write_with(bufs, offset, ReadWriteFlags::empty())
    }

    fn write_behind(&self, bufs: &mut [IoSlice<'_>], offset: u64) -> Result<()> {
        static UNSUPPORTED: AtomicBool = AtomicBool::new(false);
        if !UNSUPPORTED.load(Ordering::Relaxed) {
            // Refused before anything is written.
            match self.write_with(bufs, offset, DONTCACHE) {
                Err(Errno::OPNOTSUPP | Errno::INVAL) => UNSUPPORTED.store(true, Ordering::Relaxed),
                result => return result,
            }
        }
        self.write_at(bufs, offset)
    }

    fn mostly_once(&self) {
        // Only a hint, and not every kernel takes it.
        let _ = fs::fadvise(&self.0, 0, None, Advice::NoReuse);
    }

    fn will_need(&self, offset: u64, len: u64) {
        // Only a hint, and not every filesystem takes it.
        let _ = fs::fadvise(&self.0, offset, NonZero::new(len), Advice::WillNeed);
    }

    fn len(&self) -> Result<u64> {
        Ok(fs::fstat(&self.0)?.st_size as u64)
    }

    fn set_len(&self, len: u64) -> Result<()> {
        fs::ftruncate(&self.0, len)
    }

    fn sync(&self, data_only: bool) -> Result<()> {
        if data_only {
            fs::fdatasync(&self.0)
        } else {
            fs::fsync(&self.0)
        }
    }

    fn punch(&self, offset: u64, len: u64) -> Result<()> {
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        fs::fallocate(&self.0, flags, offset, len)
    }

    fn allocate(&self, offset: u64, len: u64) -> Result<()> {
        fs::fallocate(&self.0, FallocateFlags::KEEP_SIZE, offset, len)
    }

    fn next_data(&self, offset: u64) -> Result<Option<u64>> {
        match fs::seek(&self.0, SeekFrom::Data(offset)) {
            Ok(at) => Ok(Some(at)),
            Err(Errno::NXIO) => Ok(None),
            // A filesystem that knows no holes has data everywhere.
            Err(Errno::INVAL | Errno::OPNOTSUPP) => Ok(Some(offset)),
            Err(e) => Err(e),
        }
    }

    fn keeping_mtime(&self, change: &mut dyn FnMut() -> Result<()>) -> Result<[TimeSpec; 2]> {
        let before = fs::fstat(&self.0)?;
        change()?;
        let times = Timestamps {
            last_access: Timespec {
                tv_sec: 0,
                tv_nsec: rustix::fs::UTIME_OMIT,
            },
            last_modification: Timespec {
                tv_sec: before.st_mtime,
                tv_nsec: before.st_mtime_nsec as _,
            },
        };
        match fs::futimens(&self.0, &times) {
            // Another user's file on an unprivileged mount: its time moves.
            Err(Errno::PERM) => {}
            other => other?,
        }
        Ok([before, fs::fstat(&self.0)?].map(|stat| TimeSpec {
            sec: stat.st_ctime,
            nsec: stat.st_ctime_nsec as u32,
        }))
    }
}
