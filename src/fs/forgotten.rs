//! Inodes that the kernel has forgotten and may still ask for by number, as `nfsd` and
//! `open_by_handle_at(2)` do.

use std::num::NonZero;
use std::os::fd::{AsFd, OwnedFd};

use lru::LruCache;
use parking_lot::Mutex;

use crate::backing::{dir, handle};

use super::inode::{Entry, Inode, ROOT, entry};
use super::reference::open_named;
use super::{Fs, FsError, Result};

/// How many are remembered.
const REMEMBERED: NonZero<usize> = NonZero::new(65_536).expect("not zero");
/// Directories above one that are looked for by name.
const DEEPEST: usize = 4096;

/// What is left of them, by number.
pub(super) struct Forgotten(Mutex<LruCache<u64, Trace>>);

#[derive(Clone)]
enum Trace {
    Handle(handle::FileHandle),
    /// It had no descriptor, and by its name the host might have to read from the
    /// disk to give its handle. Before its name goes, the kernel looks it up again.
    Place(Place),
}

#[derive(Clone)]
struct Place {
    directory: u64,
    name: Box<[u8]>,
    generation: u64,
}

impl Default for Forgotten {
    fn default() -> Self {
        Self(Mutex::new(LruCache::new(REMEMBERED)))
    }
}

impl Fs {
    /// Takes in that the kernel does not know `inode` any more.
    pub(super) fn remember(&self, inode: &Inode) {
        if !self.inodes.shared.opens_handles() {
            return;
        }
        let handle = inode.reference.handle().map(Trace::Handle);
        let trace = handle.or_else(|| {
            let (directory, name) = inode.reference.place()?;
            let generation = inode.generation();
            Some(Trace::Place(Place {
                directory,
                name,
                generation,
            }))
        });
        let mut traces = self.forgotten.0.lock();
        match trace {
            Some(trace) => traces.put(inode.ino, trace),
            None => traces.pop(&inode.ino),
        };
    }

    /// The inode by its number alone, even if it was forgotten; counts as a lookup.
    pub(super) fn revive(&self, ino: u64) -> Result<Entry> {
        if let Ok(inode) = self.inodes.get(ino) {
            let stat = dir::stat(inode.fd()?)?;
            // The kernel asks only for what it does not hold, so nobody has this
            // file open: it is gone, and the forget is still on its way.
            if stat.stx_nlink == 0 {
                return Err(FsError::Stale);
            }
            let attr = self.attr_of(&inode, &stat)?;
            let counted = ino == ROOT || self.inodes.look_up_known(ino);
            if counted {
                return Ok(entry(&inode, attr));
            }
        }
        let fd = self.open_forgotten(ino)?;
        let stat = dir::stat(&fd)?;
        if stat.stx_nlink == 0 {
            return Err(FsError::Stale);
        }
        let (inode, attr) = self.admit(fd, &stat)?;
        Ok(entry(&inode, attr))
    }

    fn open_forgotten(&self, ino: u64) -> Result<OwnedFd> {
        let mut below = vec![];
        let mut at = ino;
        let mut reached = loop {
            let trace = self.forgotten.0.lock().get(&at).cloned();
            let place = match trace.ok_or(FsError::Stale)? {
                Trace::Handle(handle) => {
                    let opened = self.inodes.shared.open_handle(&handle);
                    break opened.map_err(|_| FsError::Stale)?;
                }
                Trace::Place(place) => place,
            };
            if let Ok(directory) = self.inodes.get(place.directory) {
                break self.open_at(directory.fd()?, at, &place)?;
            }
            if below.len() == DEEPEST {
                return Err(FsError::Stale);
            }
            let above = place.directory;
            below.push((at, place));
            at = above;
        };
        while let Some((ino, place)) = below.pop() {
            reached = self.open_at(&reached, ino, &place)?;
        }
        Ok(reached)
    }

    fn open_at(&self, directory: impl AsFd, ino: u64, place: &Place) -> Result<OwnedFd> {
        // What users see of a number leads back to it.
        let host_ino = self.inodes.visible(ino);
        let opened = open_named(directory, &place.name, host_ino, place.generation);
        opened.map_err(|_| FsError::Stale)
    }
}
