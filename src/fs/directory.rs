//! Reading directories. Positions are the host's own (`d_off`), so they stay
//! good while entries come and go.

use std::collections::VecDeque;
use std::num::NonZero;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use lru::LruCache;
use parking_lot::Mutex;

use crate::backing::Errno;
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
    /// Position behind the last entry that was given.
    position: u64,
    /// What comes next, hidden entries included.
    ahead: VecDeque<DirEntry>,
}

/// Directories that are being listed, by inode number. The kernel names none
/// that it has opened, which saves two calls a directory: a position says all,
/// and a stream that is kept is only quicker than a new one.
pub(super) struct Listings(Mutex<LruCache<u64, Arc<Listing>>>);

/// Most of them kept.
const LISTINGS: NonZero<usize> = NonZero::new(128).expect("not zero");

impl Default for Listings {
    fn default() -> Self {
        Self(Mutex::new(LruCache::new(LISTINGS)))
    }
}

impl Fs {
    fn listing(&self, ino: u64) -> Result<Arc<Listing>> {
        if let Some(listing) = self.listings.0.lock().get(&ino) {
            return Ok(listing.clone());
        }
        let inode = self.inodes.get(ino)?;
        let fd = inode.fd()?;
        let stream = Stream {
            // By this way it takes search permission, which a lister need not have.
            fd: dir::with_access(&fd, 0o100, || dir::open_dir(&fd, b"."))?,
            position: 0,
            ahead: VecDeque::new(),
        };
        let listing = Arc::new(Listing {
            inode,
            stream: Mutex::new(stream),
        });
        self.listings.0.lock().put(ino, listing.clone());
        Ok(listing)
    }

    /// Gives a directory's entries from `position` on (0 is the start) to `take`, until it
    /// says false; the entry it refused comes first the next time.
    ///
    /// # Errors
    /// `Stale`, `NoDirectoryId`, those of the host.
    pub fn readdir(
        &self,
        ino: u64,
        position: u64,
        mut take: impl FnMut(&ListedEntry) -> bool,
    ) -> Result<()> {
        let listing = self.listing(ino)?;
        let mut stream = listing.stream.lock();
        stream.move_to(position)?;
        let mut given = false;
        while let Some(entry) = stream.peek()? {
            let next = entry.next;
            if let Some(listed) = self.listed(&listing.inode, entry)? {
                if !take(&listed) {
                    return Ok(());
                }
                given = true;
                stream.position = next;
            }
            stream.ahead.pop_front();
        }
        // After the last entries, the kernel asks whether there are more.
        if !given {
            self.forget_listing(ino);
        }
        Ok(())
    }

    /// Closes a directory that was listed.
    pub(super) fn forget_listing(&self, ino: u64) {
        self.listings.0.lock().pop(&ino);
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
    pub fn look_up_listed(&self, parent: u64, entry: &ListedEntry) -> Result<Entry> {
        let parent = self.inodes.get(parent)?;
        match self.look_up_stored(&parent, &entry.stored) {
            Err(FsError::Host(Errno::ACCESS)) => {
                let fd = parent.fd()?;
                let open = || dir::open_path(&fd, &entry.stored);
                let fd = dir::with_access(&fd, 0o100, open)?;
                let stat = dir::stat(&fd)?;
                self.admit_found(&parent, &entry.stored, Some(fd), &stat)
            }
            found => found,
        }
    }

    /// Makes a directory's entries durable.
    ///
    /// # Errors
    /// `Stale`, those of the host.
    pub fn fsyncdir(&self, ino: u64, data_only: bool) -> Result<()> {
        let inode = self.inodes.get(ino)?.fd()?;
        let fd = dir::with_access(&inode, 0o500, || dir::open_dir(&inode, b"."))?;
        Ok(dir::sync_dir(&fd, data_only)?)
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
