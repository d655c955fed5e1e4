//! Reading directories. Positions are the host's own (`d_off`), so they stay
//! good while entries come and go.

use std::collections::VecDeque;
use std::num::NonZero;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use lru::LruCache;
use parking_lot::Mutex;

use crate::backing::Errno;
use crate::backing::dir::{self, DirEntry};

use super::inode::{Inode, absent, entry as entry_of};
use super::kept;
use super::{Entry, FileKind, Fs, Result};

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
    pub(super) stored: Vec<u8>,
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
    /// What was given since the start, unless it is too much to be kept.
    given: Option<Vec<ListedEntry>>,
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
            given: None,
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
        if let Some(kept) = self.inodes.kept.listing(ino)
            && let Some(entries) = kept.behind(position)
        {
            for entry in entries {
                if !take(entry) {
                    break;
                }
            }
            return Ok(());
        }
        let listing = self.listing(ino)?;
        let mut stream = listing.stream.lock();
        stream.move_to(position)?;
        let mut any = false;
        while let Some(entry) = stream.peek()? {
            let next = entry.next;
            if let Some(listed) = self.listed(&listing.inode, entry)? {
                if !take(&listed) {
                    return Ok(());
                }
                any = true;
                stream.position = next;
                stream.note(listed);
            }
            stream.ahead.pop_front();
        }
        if let Some(all) = stream.given.take() {
            self.keep_listing(&listing.inode, all, stream.fd.as_fd());
        } else if any {
            // After the last entries, the kernel asks whether there are more.
            return Ok(());
        }
        self.forget_listing(ino);
        Ok(())
    }

    fn keep_listing(&self, inode: &Inode, entries: Vec<ListedEntry>, fd: BorrowedFd<'_>) {
        // Listing it may have moved its access time.
        if let Ok(stat) = dir::stat(fd)
            && let Ok(attr) = self.attr_of(inode, &stat)
        {
            self.inodes.kept.keep_attributes(inode, &attr);
            self.inodes.kept.keep_listing(inode, entries);
        }
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
        if let Some(kept) = self.admit_kept(&parent, &entry.stored, entry.ino) {
            return kept;
        }
        let fd = parent.fd()?;
        let (opened, stat) = match dir::stat_at(&fd, &entry.stored) {
            Err(Errno::ACCESS) => {
                let open = || dir::open_path(&fd, &entry.stored);
                let opened = dir::with_access(&fd, 0o100, open)?;
                let stat = dir::stat(&opened)?;
                (Some(opened), stat)
            }
            stat => (None, stat.map_err(absent)?),
        };
        let (inode, attr) = self.admit_found(&parent, &entry.stored, opened, &stat)?;
        // What an open file was changed to need not be in place yet.
        if inode.kind != FileKind::Regular || self.files.get(inode.host_ino()).is_none() {
            self.inodes.kept.keep_attributes(&inode, &attr);
        }
        Ok(entry_of(&inode, attr))
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
            self.given = (position == 0).then(Vec::new);
        }
        Ok(())
    }

    /// Takes in that an entry was given.
    fn note(&mut self, entry: ListedEntry) {
        let room = |given: &Vec<_>| given.len() < kept::MOST_IN_ONE;
        self.given = self.given.take().filter(room);
        if let Some(given) = &mut self.given {
            given.push(entry);
        }
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
