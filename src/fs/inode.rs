//! The inode table: what the kernel may name by number.
//!
//! Every entry has a way to its backing file (see [`super::reference`]), so that
//! inode lives, and its number is not used again, for as long as the kernel knows
//! it; and so no operation ever needs a path.

use std::collections::{HashMap, hash_map};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;

use crate::backing::{Descriptor, dir};
use crate::types::DirId;

use super::attr::{self, FileKind};
use super::kept::Kept;
use super::reference::{Reference, Shared};
use super::times::HeldTimes;
use super::xattr::XattrPresence;
use super::{Attr, Fs, FsError, Result};

/// Inode number of the root, as FUSE wants it.
pub const ROOT: u64 = 1;

const SHARDS: usize = 64;

/// An inode the kernel knows.
pub(super) struct Inode {
    /// Number as users see it.
    pub(super) ino: u64,
    pub(super) kind: FileKind,
    /// The directory it was last looked up in; 0 if it never was.
    pub(super) parent: AtomicU64,
    pub(super) reference: Reference,
    /// The directory's id, once needed.
    pub(super) dir_id: OnceLock<DirId>,
    /// Handles through which the file may be written.
    pub(super) writers: AtomicUsize,
    /// The kernel was given the content, or has had cause to ask for it.
    pub(super) offered: AtomicBool,
    /// The other part of an overlong symlink target, once the link's last name
    /// is gone and that part with it.
    pub(super) overflow: OnceLock<Vec<u8>>,
    pub(super) xattrs: XattrPresence,
    pub(super) held_times: HeldTimes,
    /// It was got to be changed: see [`Kept`].
    pub(super) changes: AtomicBool,
}

/// What a lookup gives.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    /// The inode's attributes.
    pub attr: Attr,
    /// Tells inodes apart that had the same number at different times.
    pub generation: u64,
    /// Someone has it open for writing, so what it takes on the disk changes
    /// without the kernel noticing.
    pub busy: bool,
}

impl Inode {
    fn new(fd: Option<OwnedFd>, ino: u64, stat: &dir::Stat, shared: &Arc<Shared>) -> Result<Self> {
        let kind = FileKind::from_mode(stat.stx_mode.into()).ok_or(FsError::Unsupported)?;
        let reference = Reference::new(fd, stat.stx_ino, attr::generation(stat), shared);
        Ok(Self::reached_by(reference, ino, kind))
    }

    fn reached_by(reference: Reference, ino: u64, kind: FileKind) -> Self {
        Self {
            ino,
            kind,
            parent: AtomicU64::new(0),
            reference,
            dir_id: OnceLock::new(),
            writers: AtomicUsize::new(0),
            offered: AtomicBool::new(false),
            overflow: OnceLock::new(),
            xattrs: XattrPresence::default(),
            held_times: HeldTimes::default(),
            changes: AtomicBool::new(false),
        }
    }

    /// Number on the backing filesystem.
    pub(super) fn host_ino(&self) -> u64 {
        self.reference.host_ino
    }

    /// Tells inodes apart that had the same number at different times.
    pub(super) fn generation(&self) -> u64 {
        self.reference.generation
    }

    /// Notes that it was found as `stored` in `parent`.
    fn found_in(&self, parent: &Arc<Inode>, stored: &[u8]) {
        self.parent.store(parent.ino, Ordering::Relaxed);
        self.reference.found(parent, stored);
    }

    /// A descriptor of the inode, not to read or write by.
    pub(super) fn fd(&self) -> crate::backing::Result<Arc<Descriptor>> {
        self.reference.fd()
    }
}

/// What a name that is about to go leads to.
pub(super) struct Leaving {
    pub(super) stat: dir::Stat,
    /// If it is known.
    pub(super) inode: Option<Arc<Inode>>,
}

struct Known {
    inode: Arc<Inode>,
    lookups: u64,
}

pub(super) struct InodeTable {
    root: Arc<Inode>,
    device: (u32, u32),
    shards: Vec<Mutex<HashMap<u64, Known>>>,
    pub(super) shared: Arc<Shared>,
    pub(super) kept: Kept,
    /// Most descriptors to keep, and the shard to look at next for more.
    limit: usize,
    resting: Mutex<usize>,
    /// How many may be open before it is worth looking again: at the last look
    /// too many were in use.
    in_vain: AtomicUsize,
}

impl InodeTable {
    /// A table that keeps about `limit` descriptors at the most.
    pub(super) fn new(root: OwnedFd, limit: usize) -> Result<Self> {
        let stat = dir::stat(&root)?;
        let shared = Arc::new(Shared::new(&root)?);
        Ok(Self {
            root: Arc::new(Inode::new(Some(root), ROOT, &stat, &shared)?),
            device: (stat.stx_dev_major, stat.stx_dev_minor),
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            shared,
            kept: Kept::default(),
            limit,
            resting: Mutex::new(0),
            in_vain: AtomicUsize::new(0),
        })
    }

    /// Closes descriptors of inodes that were not used lately, if there are too
    /// many.
    fn make_room(&self) {
        let open = || self.shared.open();
        let in_vain = self.in_vain.load(Ordering::Relaxed);
        if open() <= self.limit {
            if in_vain > 0 {
                self.in_vain.store(0, Ordering::Relaxed);
            }
            return;
        }
        if open() <= in_vain {
            return;
        }
        let Some(mut next) = self.resting.try_lock() else {
            return;
        };
        // Twice around: the first time may only find out what is in use.
        for _ in 0..2 * SHARDS {
            for known in self.shards[*next % SHARDS].lock().values() {
                known.inode.reference.rest();
            }
            *next += 1;
            if open() <= self.limit - self.limit / 8 {
                return;
            }
        }
        let later = open() + self.limit / 64;
        self.in_vain.store(later, Ordering::Relaxed);
    }

    pub(super) fn root(&self) -> &Arc<Inode> {
        &self.root
    }

    /// The number under which users see backing inode `host_ino`: the same,
    /// but for the root's and whatever has number 1.
    pub(super) fn visible(&self, host_ino: u64) -> u64 {
        if host_ino == self.root.host_ino() {
            ROOT
        } else if host_ino == ROOT {
            self.root.host_ino()
        } else {
            host_ino
        }
    }

    /// An inode that is about to be changed or opened.
    pub(super) fn get_to_change(&self, ino: u64) -> Result<Arc<Inode>> {
        let inode = self.get(ino)?;
        self.kept.changes(&inode);
        Ok(inode)
    }

    /// An inode that is only looked at.
    pub(super) fn get(&self, ino: u64) -> Result<Arc<Inode>> {
        if ino == ROOT {
            return Ok(self.root.clone());
        }
        self.make_room();
        let shard = self.shard(ino).lock();
        Ok(shard.get(&ino).ok_or(FsError::Stale)?.inode.clone())
    }

    fn shard(&self, ino: u64) -> &Mutex<HashMap<u64, Known>> {
        &self.shards[(ino as usize) % SHARDS]
    }

    /// Counts one more lookup of an inode, if the table knows it.
    pub(super) fn look_up_known(&self, ino: u64) -> bool {
        let mut shard = self.shard(ino).lock();
        let known = shard.get_mut(&ino);
        known.map(|known| known.lookups += 1).is_some()
    }

    /// Counts one lookup of an inode, which `new` makes unless the table knows it. One
    /// that had the number before and was deleted is not it.
    fn look_up(
        &self,
        ino: u64,
        generation: u64,
        new: impl FnOnce() -> Result<Inode>,
    ) -> Result<Arc<Inode>> {
        self.make_room();
        let mut shard = self.shard(ino).lock();
        let known = match shard.entry(ino) {
            hash_map::Entry::Occupied(entry) => {
                let known = entry.into_mut();
                if known.inode.generation() != generation {
                    // The kernel gives back the lookups of both by the same number.
                    known.inode = Arc::new(new()?);
                }
                known
            }
            hash_map::Entry::Vacant(entry) => entry.insert(Known {
                inode: Arc::new(new()?),
                lookups: 0,
            }),
        };
        known.lookups += 1;
        Ok(known.inode.clone())
    }

    /// Takes lookups back, and gives the inode if none are left.
    fn give_back(&self, ino: u64, lookups: u64) -> Option<Arc<Inode>> {
        let mut shard = self.shard(ino).lock();
        let known = shard.get_mut(&ino)?;
        known.lookups = known.lookups.saturating_sub(lookups);
        (known.lookups == 0).then(|| known.inode.clone())
    }

    /// Removes an inode of which no lookups are left; says no if it was looked up
    /// meanwhile.
    fn remove(&self, ino: u64) -> bool {
        let mut shard = self.shard(ino).lock();
        let is_left = |known: &Known| known.lookups == 0;
        shard.get(&ino).is_some_and(is_left) && shard.remove(&ino).is_some()
    }

    /// The regular files that the kernel knows.
    pub(super) fn regular_files(&self) -> Vec<Arc<Inode>> {
        let mut found = Vec::new();
        for shard in &self.shards {
            let shard = shard.lock();
            let regular = shard.values().filter(|k| k.inode.kind == FileKind::Regular);
            found.extend(regular.map(|known| known.inode.clone()));
        }
        found
    }

    /// Number of inodes known besides the root.
    pub(super) fn len(&self) -> usize {
        self.shards.iter().map(|s| s.lock().len()).sum()
    }
}

impl Fs {
    /// Finds `name` in directory `parent`; counts as one lookup, to be given
    /// back by [`Self::forget`].
    ///
    /// # Errors
    /// `NotFound`, `NameTooLong`, those of the host.
    pub fn lookup(&self, parent: u64, name: &[u8]) -> Result<Entry> {
        match name {
            b"." => return self.revive(parent),
            b".." => return self.lookup_parent(parent),
            _ => {}
        }
        let parent = self.inodes.get(parent)?;
        let stored = self.stored_name(&parent, name)?;
        self.look_up_stored(&parent, stored.entry())
    }

    /// Finds the entry stored as `stored`.
    pub(super) fn look_up_stored(&self, parent: &Arc<Inode>, stored: &[u8]) -> Result<Entry> {
        let stat = dir::stat_at(parent.fd()?, stored).map_err(absent)?;
        let (inode, attr) = self.admit_found(parent, stored, None, &stat)?;
        Ok(entry(&inode, attr))
    }

    /// Counts one lookup of the inode that was found as `stored` in `parent`, with a
    /// descriptor of it if there is one already.
    pub(super) fn admit_found(
        &self,
        parent: &Arc<Inode>,
        stored: &[u8],
        fd: Option<OwnedFd>,
        stat: &dir::Stat,
    ) -> Result<(Arc<Inode>, Attr)> {
        let inode = self.look_up_found(fd, stat)?;
        inode.found_in(parent, stored);
        let attr = self.attr_of(&inode, stat)?;
        Ok((inode, attr))
    }

    /// The same by what is kept of the inode, if anything is.
    pub(super) fn admit_kept(
        &self,
        parent: &Arc<Inode>,
        stored: &[u8],
        ino: u64,
    ) -> Option<Result<Entry>> {
        let (generation, attr) = self.inodes.kept.attributes(ino)?;
        let new = || {
            let host_ino = self.inodes.visible(ino);
            let reference = Reference::new(None, host_ino, generation, &self.inodes.shared);
            Ok(Inode::reached_by(reference, ino, attr.kind))
        };
        Some(self.inodes.look_up(ino, generation, new).and_then(|inode| {
            inode.found_in(parent, stored);
            // From here on whoever changes it finds the inode.
            self.entry_of(&inode)
        }))
    }

    /// Counts one lookup of the inode behind `fd`, wherever that was found.
    pub(super) fn admit(&self, fd: OwnedFd, stat: &dir::Stat) -> Result<(Arc<Inode>, Attr)> {
        let inode = self.look_up_found(Some(fd), stat)?;
        let attr = self.attr_of(&inode, stat)?;
        Ok((inode, attr))
    }

    fn look_up_found(&self, fd: Option<OwnedFd>, stat: &dir::Stat) -> Result<Arc<Inode>> {
        let ino = self.visible_on_device(stat)?;
        let new = || Inode::new(fd, ino, stat, &self.inodes.shared);
        self.inodes.look_up(ino, attr::generation(stat), new)
    }

    /// Tells the inode that is about to lose the name `stored` in `parent`, if it is
    /// known; `None` if there is no such name.
    pub(super) fn leaves(&self, parent: &Inode, stored: &[u8]) -> Result<Option<Leaving>> {
        let directory = parent.fd()?;
        let Ok(stat) = dir::stat_at(&directory, stored) else {
            return Ok(None);
        };
        let ino = self.inodes.visible(stat.stx_ino);
        let same = |inode: &Arc<Inode>| inode.generation() == attr::generation(&stat);
        let inode = self.inodes.get(ino).ok().filter(same);
        match &inode {
            Some(inode) => {
                self.inodes.kept.changes(inode);
                let open = || dir::open_path(&directory, stored);
                inode.reference.leaves(open);
            }
            None => self.inodes.kept.drop_all(ino),
        }
        Ok(Some(Leaving { stat, inode }))
    }

    /// A directory that is a mount point of another filesystem cannot be
    /// shown: its inode numbers mean something else.
    fn visible_on_device(&self, stat: &dir::Stat) -> Result<u64> {
        if (stat.stx_dev_major, stat.stx_dev_minor) != self.inodes.device {
            return Err(FsError::NotFound);
        }
        Ok(self.inodes.visible(stat.stx_ino))
    }

    fn lookup_parent(&self, ino: u64) -> Result<Entry> {
        if ino == ROOT {
            return self.revive(ROOT);
        }
        let inode = self.inodes.get(ino)?;
        let fd = dir::open_path(inode.fd()?, b"..")?;
        let stat = dir::stat(&fd)?;
        if self.inodes.visible(stat.stx_ino) == ROOT {
            return self.revive(ROOT);
        }
        let (inode, attr) = self.admit(fd, &stat)?;
        Ok(entry(&inode, attr))
    }

    /// Gives back `lookups` lookups of an inode.
    pub fn forget(&self, ino: u64, lookups: u64) {
        if ino == ROOT {
            return;
        }
        let Some(inode) = self.inodes.give_back(ino, lookups) else {
            return;
        };
        // First, as somebody may ask for it by its number at any moment.
        self.remember(&inode);
        if !self.inodes.remove(ino) || inode.kind != FileKind::Directory {
            return;
        }
        self.forget_listing(ino);
        // A file with several names may have been found here last. From now on nobody
        // says what becomes of this directory's own name.
        if Arc::strong_count(&inode) > 1 {
            match inode.fd() {
                Ok(_) => self.remember(&inode),
                Err(error) => log::debug!("inode {ino} is forgotten and in use: {error}"),
            }
        }
    }

    /// Number of inodes that the kernel knows besides the root.
    pub fn known_inodes(&self) -> usize {
        self.inodes.len()
    }

    /// Attributes of an inode.
    ///
    /// # Errors
    /// `Stale`, those of the host.
    pub fn getattr(&self, ino: u64) -> Result<Entry> {
        self.entry_of(&*self.inodes.get(ino)?)
    }

    fn entry_of(&self, inode: &Inode) -> Result<Entry> {
        let attr = match self.inodes.kept.attributes_of(inode) {
            Some(attr) => attr,
            None => self.attr(inode)?,
        };
        Ok(entry(inode, attr))
    }

    pub(super) fn attr(&self, inode: &Inode) -> Result<Attr> {
        let stat = dir::stat(inode.fd()?)?;
        self.attr_of(inode, &stat)
    }

    pub(super) fn attr_of(&self, inode: &Inode, stat: &dir::Stat) -> Result<Attr> {
        let mut withheld = false;
        let size = match inode.kind {
            FileKind::Regular => match self.files.get(inode.host_ino()) {
                Some(file) => {
                    withheld = file.is_withheld();
                    file.size()
                }
                None => self.volume.layout().plain_len(stat.stx_size),
            },
            FileKind::Symlink => self.target_len(inode, stat.stx_size)?,
            _ => stat.stx_size,
        };
        let mut attr = Attr::new(stat, inode.ino, inode.kind, size);
        attr.withheld = withheld;
        if inode.kind == FileKind::Regular {
            let known = &self.volume.change_times;
            attr.ctime = known.shown(inode.host_ino(), attr.ctime);
        }
        Ok(attr)
    }
}

pub(super) fn entry(inode: &Inode, attr: Attr) -> Entry {
    Entry {
        attr,
        generation: inode.generation(),
        busy: inode.writers.load(Ordering::Acquire) > 0,
    }
}

pub(super) fn absent(error: crate::backing::Errno) -> FsError {
    if dir::is_absent(error) {
        FsError::NotFound
    } else {
        FsError::Host(error)
    }
}
