//! Reading directories. Positions are the host's own (`d_off`), so they stay
//! good while entries come and go.

use std::collections::{HashMap, VecDeque};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

use crate::backing::dir::{self, DirEntry};

use super::inode::Inode;
use super::{Entry, FileKind, Fs, FsError, Result};

/// An entry as users see it.
#[derive(Clone, Debug)]
pub struct ListedEntry {
    /// The name.
    pub name: Vec<u8>,
    /// Inode number.
    pub ino: u64,
    /// Kind of file, where the host tells it.
    pub kind: Option<FileKind>,
    /// Position behind this entry.
    pub next: u64,
    /// The host's name of it, for [`Fs::look_up_listed`].
    stored: Vec<u8>,
}

struct Listing {
    inode: Arc<Inode>,
    stream: Mutex<Stream>,
}

struct Stream {
    fd: OwnedFd,
    /// Position of the first entry in `ahead`, or of the descriptor.
    position: u64,
    ahead: VecDeque<DirEntry>,
}

/// Open directories, by handle.
#[derive(Default)]
pub(super) struct Listings {
    next: AtomicU64,
    open: Mutex<HashMap<u64, Arc<Listing>>>,
}

impl Fs {
    /// Opens a directory and gives the handle.
    ///
    /// # Errors
    /// `Stale`, those of the host.
    pub fn opendir(&self, ino: u64) -> Result<u64> {
        let inode = self.inodes.get(ino)?;
        let fd = dir::open_dir(inode.fd()?, b".")?;
        let stream = Stream {
            fd,
            position: 0,
            ahead: VecDeque::new(),
        };
        let listing = Listing {
            inode,
            stream: Mutex::new(stream),
        };
        let handle = self.listings.next.fetch_add(1, Ordering::Relaxed);
        let mut open = self.listings.open.lock();
        open.insert(handle, Arc::new(listing));
        Ok(handle)
    }

    /// Closes a directory.
    pub fn releasedir(&self, handle: u64) {
        self.listings.open.lock().remove(&handle);
    }

    fn listing(&self, handle: u64) -> Result<Arc<Listing>> {
        let open = self.listings.open.lock();
        open.get(&handle).cloned().ok_or(FsError::Stale)
    }

    /// Gives the entries from `position` on (0 is the start) to `take`, until it
    /// says false; the entry it refused comes first the next time.
    ///
    /// # Errors
    /// `Stale`, `NoDirectoryId`, those of the host.
    pub fn readdir(
        &self,
        handle: u64,
        position: u64,
        mut take: impl FnMut(&ListedEntry) -> bool,
    ) -> Result<()> {
        let listing = self.listing(handle)?;
        let mut stream = listing.stream.lock();
        stream.move_to(position)?;
        while let Some(entry) = stream.peek()? {
            let (next, listed) = (entry.next, self.listed(&listing.inode, entry)?);
            if let Some(listed) = listed
                && !take(&listed)
            {
                return Ok(());
            }
            stream.ahead.pop_front();
            stream.position = next;
        }
        Ok(())
    }

    fn listed(&self, inode: &Inode, entry: &DirEntry) -> Result<Option<ListedEntry>> {
        let stored = entry.name.to_bytes();
        let name = match stored {
            b"." | b".." => Some(stored.to_vec()),
            _ => self.plain_name(inode, stored)?,
        };
        let ino = match stored {
            // Above the root there is nothing that users could see.
            b".." if inode.ino == super::ROOT => super::ROOT,
            _ => self.inodes.visible(entry.ino),
        };
        Ok(name.map(|name| ListedEntry {
            name,
            ino,
            kind: FileKind::from_mode(entry.kind.as_raw_mode()),
            next: entry.next,
            stored: stored.to_vec(),
        }))
    }

    /// Looks an entry up that a listing gave; counts as a lookup.
    ///
    /// # Errors
    /// `NotFound` if it is gone by now, those of the host.
    pub fn look_up_listed(&self, handle: u64, entry: &ListedEntry) -> Result<Entry> {
        let listing = self.listing(handle)?;
        self.look_up_stored(&listing.inode, &entry.stored)
    }

    /// Makes a directory's entries durable.
    ///
    /// # Errors
    /// `Stale`, those of the host.
    pub fn fsyncdir(&self, handle: u64, data_only: bool) -> Result<()> {
        let listing = self.listing(handle)?;
        let stream = listing.stream.lock();
        Ok(dir::sync_dir(&stream.fd, data_only)?)
    }
}

impl Stream {
    fn move_to(&mut self, position: u64) -> Result<()> {
        // The start always means the directory as it is now.
        if position != self.position || position == 0 {
            dir::seek(&self.fd, position)?;
            self.ahead.clear();
            self.position = position;
        }
        Ok(())
    }

    fn peek(&mut self) -> Result<Option<&DirEntry>> {
        if self.ahead.is_empty() {
            let mut more = Vec::new();
            dir::read_entries(self.fd.as_fd(), &mut more)?;
            self.ahead.extend(more);
        }
        Ok(self.ahead.front())
    }
}
