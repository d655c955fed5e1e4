//! One backing file, by positioned I/O on a descriptor.

use std::io::{IoSlice, IoSliceMut};
use std::num::NonZero;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use rustix::fs::{self, Advice, FallocateFlags, SeekFrom, Timespec, Timestamps};
use rustix::io::{self, Errno, ReadWriteFlags};

use crate::types::TimeSpec;

use super::direct::{ALIGNMENT, Direct};
use super::{Descriptor, Result, page_cache};

/// What the content layer needs of a file; the seam at which tests put files
/// in memory and files that fail.
#[allow(clippy::len_without_is_empty)]
pub trait BackingFile: Send + Sync {
    /// Reads into the buffers in turn; fewer bytes than asked only at the end
    /// of the file. Advances the slices.
    fn read_at(&self, bufs: &mut [IoSliceMut<'_>], offset: u64) -> Result<usize>;

    /// As [`Self::read_at`], for much data that is not read again soon: what the
    /// host's page cache does not have already is not put there. For that, the offset
    /// and the buffers have to be whole pages (see [`super::PageBuffer`]).
    fn read_once(&self, bufs: &mut [IoSliceMut<'_>], offset: u64) -> Result<usize> {
        self.read_at(bufs, offset)
    }

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

    /// Whether the byte at `offset` could be read without waiting for the disk, as far
    /// as the filesystem tells.
    fn is_there(&self, offset: u64) -> bool;

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
pub struct HostFile {
    descriptor: Arc<Descriptor>,
    /// Opened when first needed; nothing where there is none to be had.
    direct: OnceLock<Option<Direct>>,
}

impl HostFile {
    /// Takes over an open descriptor.
    pub fn new(fd: OwnedFd) -> Self {
        Self::sharing(Arc::new(fd.into()))
    }

    /// The file of a descriptor that others use, too.
    pub fn sharing(descriptor: Arc<Descriptor>) -> Self {
        Self {
            descriptor,
            direct: OnceLock::new(),
        }
    }

    fn direct(&self) -> Option<&Direct> {
        let open = || Direct::of(&self.descriptor);
        self.direct.get_or_init(open).as_ref()
    }

    fn write_with(
        &self,
        mut bufs: &mut [IoSlice<'_>],
        mut offset: u64,
        flags: ReadWriteFlags,
    ) -> Result<()> {
        while !bufs.is_empty() {
            match io::pwritev2(&self.descriptor, bufs, offset, flags) {
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
        self.descriptor.as_fd()
    }
}

impl BackingFile for HostFile {
    fn read_at(&self, mut bufs: &mut [IoSliceMut<'_>], mut offset: u64) -> Result<usize> {
        let mut total = 0;
        while !bufs.is_empty() {
            match io::preadv(&self.descriptor, bufs, offset) {
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

    fn read_once(&self, mut bufs: &mut [IoSliceMut<'_>], offset: u64) -> Result<usize> {
        let len = bufs.iter().map(|buf| buf.len()).sum();
        let mut parts = bufs.iter().map(|buf| buf.as_ptr().addr() | buf.len());
        let aligned = parts.all(|part| part.is_multiple_of(ALIGNMENT))
            && offset.is_multiple_of(ALIGNMENT as u64);
        let mut read = 0;
        if aligned
            && !page_cache::serves(&self.descriptor, offset, len)
            && let Some(direct) = self.direct()
        {
            read = io::preadv(direct, bufs, offset).unwrap_or(0);
            IoSliceMut::advance_slices(&mut bufs, read);
        }
        // What cannot be had in that way, such as blocks larger still, can in this one, or
        // it says why. The same goes for what is left where a file ends amid a block.
        Ok(read + self.read_at(bufs, offset + read as u64)?)
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
        let _ = fs::fadvise(&self.descriptor, 0, None, Advice::NoReuse);
    }

    fn will_need(&self, offset: u64, len: u64) {
        // Only a hint, and not every filesystem takes it.
        let _ = fs::fadvise(
            &self.descriptor,
            offset,
            NonZero::new(len),
            Advice::WillNeed,
        );
    }

    fn is_there(&self, offset: u64) -> bool {
        let byte = &mut [0];
        let bufs = &mut [IoSliceMut::new(byte)];
        let read = io::preadv2(&self.descriptor, bufs, offset, ReadWriteFlags::NOWAIT);
        // Other errors: not every filesystem has such reads.
        read != Err(Errno::AGAIN)
    }

    fn len(&self) -> Result<u64> {
        Ok(fs::fstat(&self.descriptor)?.st_size as u64)
    }

    fn set_len(&self, len: u64) -> Result<()> {
        fs::ftruncate(&self.descriptor, len)
    }

    fn sync(&self, data_only: bool) -> Result<()> {
        if data_only {
            fs::fdatasync(&self.descriptor)
        } else {
            fs::fsync(&self.descriptor)
        }
    }

    fn punch(&self, offset: u64, len: u64) -> Result<()> {
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        fs::fallocate(&self.descriptor, flags, offset, len)
    }

    fn allocate(&self, offset: u64, len: u64) -> Result<()> {
        fs::fallocate(&self.descriptor, FallocateFlags::KEEP_SIZE, offset, len)
    }

    fn next_data(&self, offset: u64) -> Result<Option<u64>> {
        match fs::seek(&self.descriptor, SeekFrom::Data(offset)) {
            Ok(at) => Ok(Some(at)),
            Err(Errno::NXIO) => Ok(None),
            // A filesystem that knows no holes has data everywhere.
            Err(Errno::INVAL | Errno::OPNOTSUPP) => Ok(Some(offset)),
            Err(e) => Err(e),
        }
    }

    fn keeping_mtime(&self, change: &mut dyn FnMut() -> Result<()>) -> Result<[TimeSpec; 2]> {
        let before = fs::fstat(&self.descriptor)?;
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
        match fs::futimens(&self.descriptor, &times) {
            // Another user's file on an unprivileged mount: its time moves.
            Err(Errno::PERM) => {}
            other => other?,
        }
        Ok([before, fs::fstat(&self.descriptor)?].map(|stat| TimeSpec {
            sec: stat.st_ctime,
            nsec: stat.st_ctime_nsec as u32,
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backing::PageBuffer;

    const LEN: usize = 300_000;

    fn file() -> HostFile {
        let file = HostFile::new(tempfile::tempfile().unwrap().into());
        file.write_at(&mut [IoSlice::new(&content(LEN))], 0)
            .unwrap();
        file
    }

    fn content(len: usize) -> Vec<u8> {
        (0..len).map(|i| (i / 7 % 251) as u8).collect()
    }

    /// Leaves nothing in the page cache; says no where the host has the file nowhere
    /// else.
    fn is_made_cold(file: &HostFile) -> bool {
        file.sync(false).unwrap();
        fs::fadvise(file, 0, None, Advice::DontNeed).unwrap();
        !page_cache::serves(file, 0, 4096)
    }

    #[test]
    fn what_is_read_once_is_the_same_also_at_the_end() {
        let file = file();
        let mut buffer = PageBuffer::default();
        for (offset, len) in [(0, 8192), (0, 1 << 20), (4096, 294_912), (299_008, 4096)] {
            is_made_cold(&file);
            let bytes = buffer.get(len);
            bytes.fill(9);
            // In parts, as where metadata lies in between.
            let (first, second) = bytes.split_at_mut(4096 * (len / 8192));
            let bufs = &mut [IoSliceMut::new(first), IoSliceMut::new(second)];
            let read = file.read_once(bufs, offset as u64).unwrap();
            assert_eq!(read, len.min(LEN - offset));
            assert!(buffer.bytes()[..read] == content(LEN)[offset..offset + read]);
        }
        let past = &mut [IoSliceMut::new(buffer.get(4096))];
        assert_eq!(file.read_once(past, 1 << 20).unwrap(), 0);
    }

    #[test]
    fn what_is_not_aligned_is_read_as_well() {
        let file = file();
        let mut buffer = PageBuffer::default();
        for (skip, len, offset) in [(1, 4096, 0), (0, 5000, 4096), (0, 4096, 100)] {
            is_made_cold(&file);
            let bytes = &mut buffer.get(8192)[skip..skip + len];
            let bufs = &mut [IoSliceMut::new(bytes)];
            assert_eq!(file.read_once(bufs, offset as u64).unwrap(), len);
            assert!(buffer.bytes()[skip..skip + len] == content(LEN)[offset..offset + len]);
        }
    }

    #[test]
    fn what_is_read_once_does_not_enter_the_page_cache() {
        let file = file();
        if !is_made_cold(&file) || file.direct().is_none() {
            return;
        }
        let mut buffer = PageBuffer::default();
        let bufs = &mut [IoSliceMut::new(buffer.get(1 << 20))];
        assert_eq!(file.read_once(bufs, 0).unwrap(), LEN);
        // All but the rest of its last block.
        assert!(!page_cache::serves(&file, 0, 294_912));
        let bufs = &mut [IoSliceMut::new(buffer.get(294_912))];
        file.read_at(bufs, 0).unwrap();
        assert!(page_cache::serves(&file, 0, 294_912));
    }

    #[test]
    fn what_is_there_needs_no_disk() {
        let file = file();
        assert!(file.is_there(0) && file.is_there(LEN as u64 - 1));
        assert!(file.is_there(1 << 20), "nothing to wait for");
        if is_made_cold(&file) && io::preadv2(&file, &mut [], 0, ReadWriteFlags::NOWAIT).is_ok() {
            assert!(!file.is_there(200_000));
        }
    }

    #[test]
    fn what_is_not_on_the_disk_yet_is_read_from_the_page_cache() {
        let file = file();
        is_made_cold(&file);
        file.write_at(&mut [IoSlice::new(&[5; 100])], 8000).unwrap();
        let mut buffer = PageBuffer::default();
        let bufs = &mut [IoSliceMut::new(buffer.get(65_536))];
        assert_eq!(file.read_once(bufs, 0).unwrap(), 65_536);
        let mut expected = content(65_536);
        expected[8000..8100].fill(5);
        assert!(buffer.bytes()[..65_536] == expected);
        assert!(file.direct.get().is_none(), "nothing had to be written out");
    }
}
