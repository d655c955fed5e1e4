//! How an inode's backing file is reached.
//!
//! By the descriptor of its content, or one of its own, which is opened when it is first
//! needed, where the inode was last found: most inodes are only listed and looked up.
//! Before an inode loses a name, it is opened. A process may have only so many
//! descriptors; where they run short, an inode that has not been used for a while gives
//! up its own. One that was not found since it lost a name is opened by its file handle
//! again, if this process may do that.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock, Weak};

use parking_lot::Mutex;

use crate::backing::{Descriptor, Errno, HostFile, Result, dir, handle};

use super::attr;
use super::inode::Inode;

/// What all references of a mount have in common.
pub(super) struct Shared {
    /// A descriptor of the backing filesystem that opens handles (not `O_PATH`:
    /// the call refuses that), where this process may.
    filesystem: Option<OwnedFd>,
    /// Descriptors that inodes and their contents hold.
    open: Arc<AtomicUsize>,
}

impl Shared {
    /// `root` is on the backing filesystem.
    pub(super) fn new(root: &OwnedFd) -> Result<Self> {
        let filesystem = dir::open_dir(root, b".")?;
        let handle = handle::of(root);
        let usable = handle.is_ok_and(|h| handle::open(&filesystem, &h).is_ok());
        Ok(Self {
            filesystem: usable.then_some(filesystem),
            open: Arc::default(),
        })
    }

    /// Whether this process may open file handles.
    pub(super) fn opens_handles(&self) -> bool {
        self.filesystem.is_some()
    }

    /// How many descriptors are open.
    pub(super) fn open(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }

    /// Opens what `handle` names.
    pub(super) fn open_handle(&self, handle: &handle::FileHandle) -> Result<OwnedFd> {
        handle::open(self.filesystem.as_ref().ok_or(Errno::STALE)?, handle)
    }

    fn count(&self, fd: OwnedFd) -> Arc<Descriptor> {
        Arc::new(Descriptor::counted(fd, &self.open))
    }
}

/// A directory, which is in use for as long as something in it is known, and a
/// stored name in it.
#[derive(Clone)]
struct Place {
    directory: Arc<Inode>,
    name: Box<[u8]>,
}

/// The ways to an inode. Who locks several of its parts does so in their order here.
pub(super) struct Reference {
    /// `O_PATH`; or its content's, of a deleted file.
    fd: Mutex<Option<Arc<Descriptor>>>,
    /// Its content's, while that is open.
    content: Mutex<Weak<Descriptor>>,
    /// Where it was last found, unless it lost a name since.
    place: Mutex<Option<Place>>,
    handle: OnceLock<handle::FileHandle>,
    /// Used since the last look for descriptors to close.
    used: AtomicBool,
    pub(super) host_ino: u64,
    pub(super) generation: u64,
    shared: Arc<Shared>,
}

impl Reference {
    pub(super) fn new(
        fd: Option<OwnedFd>,
        host_ino: u64,
        generation: u64,
        shared: &Arc<Shared>,
    ) -> Self {
        Self {
            fd: Mutex::new(fd.map(|fd| shared.count(fd))),
            content: Mutex::default(),
            place: Mutex::default(),
            handle: OnceLock::new(),
            used: AtomicBool::new(true),
            host_ino,
            generation,
            shared: shared.clone(),
        }
    }

    /// A descriptor of the inode, not to read or write by.
    pub(super) fn fd(&self) -> Result<Arc<Descriptor>> {
        self.used.store(true, Ordering::Relaxed);
        let mut moves = 0;
        loop {
            match self.reach() {
                // It, or a directory above it, may just have been renamed.
                Err(Errno::STALE) if moves < 3 => moves += 1,
                other => return other,
            }
        }
    }

    fn reach(&self) -> Result<Arc<Descriptor>> {
        // By an open file, several calls need not go through /proc.
        if let Some(content) = self.content.lock().upgrade() {
            return Ok(content);
        }
        if let Some(fd) = &*self.fd.lock() {
            return Ok(fd.clone());
        }
        match (self.find(), self.handle.get()) {
            (Err(Errno::STALE), Some(handle)) => Ok(self.keep(self.shared.open_handle(handle)?)),
            (found, _) => found,
        }
    }

    /// Goes on with a descriptor of its own.
    fn keep(&self, opened: OwnedFd) -> Arc<Descriptor> {
        self.used.store(true, Ordering::Relaxed);
        let mut fd = self.fd.lock();
        fd.get_or_insert_with(|| self.shared.count(opened)).clone()
    }

    /// Opens the inode where it was last found, and before that the directories on
    /// the way that are not open either.
    fn find(&self) -> Result<Arc<Descriptor>> {
        let place = |of: &Self| of.place.lock().clone().ok_or(Errno::STALE);
        let mut places = vec![place(self)?];
        let mut above = loop {
            let directory = &places[places.len() - 1].directory.reference;
            if let Some(fd) = &*directory.fd.lock() {
                break fd.clone();
            }
            places.push(place(directory)?);
        };
        // The place of each but the first is that of the next one's directory.
        for i in (0..places.len()).rev() {
            let reference = match i {
                0 => self,
                _ => &places[i - 1].directory.reference,
            };
            above = reference.open_at(&above, &places[i].name)?;
        }
        Ok(above)
    }

    fn open_at(&self, directory: &Descriptor, name: &[u8]) -> Result<Arc<Descriptor>> {
        let opened = open_named(directory, name, self.host_ino, self.generation)?;
        Ok(self.keep(opened))
    }

    /// Opens the content of a regular file.
    pub(super) fn open_content(&self, writable: bool) -> Result<OwnedFd> {
        if let Some(opened) = self.open_content_in_place(writable) {
            return Ok(opened);
        }
        dir::reopen(self.fd()?, writable)
    }

    /// The same where it was found: one call instead of two, if it has no descriptor.
    /// (Whatever may lie there by now, opening it for writing does not wait.)
    fn open_content_in_place(&self, writable: bool) -> Option<OwnedFd> {
        if !writable || self.fd.lock().is_some() {
            return None;
        }
        let place = self.place.lock().clone()?;
        let directory = place.directory.reference.fd().ok()?;
        let opened = dir::open_file(&directory, &place.name, true).ok()?;
        let found = is_behind(&opened, self.host_ino, self.generation);
        found.ok()?.then_some(opened)
    }

    /// Notes that it was found as `name` in `directory`.
    pub(super) fn found(&self, directory: &Arc<Inode>, name: &[u8]) {
        let mut place = self.place.lock();
        let known = |p: &Place| Arc::ptr_eq(&p.directory, directory) && *p.name == *name;
        if !place.as_ref().is_some_and(known) {
            *place = Some(Place {
                directory: directory.clone(),
                name: name.into(),
            });
        }
    }

    /// To be called before the inode loses the name that `open` opens: it is kept open
    /// until it is found again.
    pub(super) fn leaves(&self, open: impl FnOnce() -> Result<OwnedFd>) {
        if self.fd.lock().is_none()
            && let Ok(fd) = open()
        {
            self.keep(fd);
        }
        *self.place.lock() = None;
    }

    /// The content behind a descriptor that was just opened.
    pub(super) fn content(&self, fd: OwnedFd) -> Arc<HostFile> {
        let descriptor = self.shared.count(fd);
        *self.content.lock() = Arc::downgrade(&descriptor);
        Arc::new(HostFile::sharing(descriptor))
    }

    /// To be called when the content is about to be closed: sees to it that it is not
    /// kept open for the inode's sake.
    pub(super) fn content_closes(&self) {
        let mut fd = self.fd.lock();
        let Some(shared) = &*fd else {
            return;
        };
        if !is(shared, &self.content.lock()) {
            return;
        }
        match dir::reopen_path(shared) {
            Ok(own) => *fd = Some(self.shared.count(own)),
            // There may be none to be had before this one is closed.
            Err(_) if self.is_found_without(shared) => *fd = None,
            // So it has to go on serving.
            Err(_) => {}
        }
    }

    /// Whether there is another way to the inode than `fd` and its content.
    fn is_found_without(&self, fd: &Descriptor) -> bool {
        // By the handle of a deleted one, the host need not find it.
        let is_deleted = || dir::stat(fd).map_or(true, |stat| stat.stx_nlink == 0);
        self.place.lock().is_some() || self.handle_of(fd).is_some() && !is_deleted()
    }

    /// The handle, if this process may use handles, and it is known or there is a
    /// descriptor to ask for it by.
    pub(super) fn handle(&self) -> Option<handle::FileHandle> {
        let known = || self.handle.get().cloned();
        known().or_else(|| self.handle_of(self.fd.lock().as_ref()?))
    }

    /// The directory's number and the stored name by which it was found, if it is there.
    pub(super) fn place(&self) -> Option<(u64, Box<[u8]>)> {
        let place = self.place.lock();
        place.as_ref().map(|p| (p.directory.ino, p.name.clone()))
    }

    fn handle_of(&self, fd: &Descriptor) -> Option<handle::FileHandle> {
        self.shared.filesystem.as_ref()?;
        if let Some(handle) = self.handle.get() {
            return Some(handle.clone());
        }
        let handle = handle::of(fd).ok()?;
        Some(self.handle.get_or_init(|| handle).clone())
    }

    /// Does with one descriptor less if that was not used since the last call of
    /// this, and there is another way to the inode.
    pub(super) fn rest(&self) {
        if self.used.swap(false, Ordering::Relaxed) {
            return;
        }
        let mut slot = self.fd.lock();
        let Some(fd) = &*slot else {
            return;
        };
        if self.is_found_without(fd) {
            *slot = None;
        } else if let Some(content) = self.content.lock().upgrade() {
            *slot = Some(content);
        }
    }
}

/// Opens (`O_PATH`) what is called `name`, if it is the inode meant.
///
/// # Errors
/// `STALE` if it is not there, or another one is.
pub(super) fn open_named(
    directory: impl AsFd,
    name: &[u8],
    host_ino: u64,
    generation: u64,
) -> Result<OwnedFd> {
    let open = || dir::open_path(&directory, name);
    let opened = dir::with_access(&directory, 0o100, open).map_err(|error| match error {
        Errno::NOENT => Errno::STALE,
        other => other,
    })?;
    match is_behind(&opened, host_ino, generation)? {
        true => Ok(opened),
        false => Err(Errno::STALE),
    }
}

fn is_behind(fd: &OwnedFd, host_ino: u64, generation: u64) -> Result<bool> {
    let stat = dir::stat(fd)?;
    Ok((stat.stx_ino, attr::generation(&stat)) == (host_ino, generation))
}

fn is(descriptor: &Arc<Descriptor>, other: &Weak<Descriptor>) -> bool {
    Arc::as_ptr(descriptor) == other.as_ptr()
}
