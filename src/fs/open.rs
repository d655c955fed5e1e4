//! Open files: handles, and the one object that all handles of a file share.

use std::collections::HashMap;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::{Mutex, MutexGuard};

use crate::backing::{Errno, dir};
use crate::content::{ContentError, EncryptedFile, ReadBuffer};
use crate::keys::{KeyError, patience};
use crate::sys::creds::Changer;

use super::inode::Inode;
use super::xattr::{has_capabilities, remove_capabilities};
use super::{FileKind, Fs, FsError, Result};

const SHARDS: usize = 32;

/// How a file is opened.
#[derive(Clone, Copy, Debug, Default)]
pub struct OpenOptions {
    /// It may be written to.
    pub write: bool,
    /// It is cut to nothing first.
    pub truncate: bool,
}

/// What kind of write it is.
#[derive(Clone, Copy, Debug, Default)]
pub struct WriteKind {
    /// The kernel writes back what a program was told to be written.
    pub accepted_before: bool,
    /// Who takes away suid and sgid bits by it.
    pub by: Option<Changer>,
}

/// The files that are open, by inode number of the backing file.
pub(super) struct OpenFiles(Vec<Mutex<Shard>>);

#[derive(Default)]
struct Shard {
    slots: HashMap<u64, Arc<Slot>>,
    /// Number of slots at which those of closed files are dropped.
    most: usize,
}

#[derive(Default)]
struct Slot {
    file: Mutex<Weak<EncryptedFile>>,
    /// Held while the file is opened. Were two to do that at once, the one
    /// could write to it and close it while the other has read its head and is
    /// about to go on with that.
    opening: Mutex<()>,
}

impl Slot {
    fn get(&self) -> Option<Arc<EncryptedFile>> {
        self.file.lock().upgrade()
    }

    /// The turn to open the file. Whoever has it may be waiting for a key.
    fn turn(&self) -> std::result::Result<MutexGuard<'_, ()>, KeyError> {
        let Some(end) = patience::end() else {
            return Ok(self.opening.lock());
        };
        let turn = self.opening.try_lock_until(end);
        turn.ok_or_else(|| match patience::may_wait() {
            false => KeyError::WouldWait,
            true => KeyError::Unavailable {
                key: "of an open file".into(),
                detail: "others wait for it, too".into(),
            },
        })
    }
}

impl Shard {
    fn slot(&mut self, host_ino: u64) -> Arc<Slot> {
        if self.slots.len() >= self.most {
            // Nobody has the file, and nobody is about to open it: slots are
            // only handed out under this shard's lock.
            self.slots
                .retain(|_, slot| Arc::strong_count(slot) > 1 || slot.get().is_some());
            self.most = (2 * self.slots.len()).max(64);
        }
        self.slots.entry(host_ino).or_default().clone()
    }
}

impl Default for OpenFiles {
    fn default() -> Self {
        Self((0..SHARDS).map(|_| Mutex::default()).collect())
    }
}

impl OpenFiles {
    fn shard(&self, host_ino: u64) -> &Mutex<Shard> {
        &self.0[host_ino as usize % SHARDS]
    }

    /// The file if it is open, or its last changes are not in place yet.
    pub(super) fn get(&self, host_ino: u64) -> Option<Arc<EncryptedFile>> {
        let slot = self.shard(host_ino).lock().slots.get(&host_ino)?.clone();
        slot.get()
    }

    /// The open files of which `wanted` says so, in no order.
    pub(super) fn select(
        &self,
        wanted: impl Fn(&EncryptedFile) -> bool,
    ) -> Vec<Arc<EncryptedFile>> {
        let mut found = Vec::new();
        for shard in &self.0 {
            let shard = shard.lock();
            let files = shard.slots.values().filter_map(|slot| slot.get());
            found.extend(files.filter(|file| wanted(file)));
        }
        found
    }

    /// The open file, or the one that `open` gives. `open` may wait for a key;
    /// meanwhile only others who open this file wait.
    pub(super) fn get_or_open(
        &self,
        host_ino: u64,
        open: impl FnOnce() -> crate::content::Result<Arc<EncryptedFile>>,
    ) -> Result<Arc<EncryptedFile>> {
        let slot = self.shard(host_ino).lock().slot(host_ino);
        if let Some(file) = slot.get() {
            return Ok(file);
        }
        let _turn = slot.turn().map_err(ContentError::from)?;
        if let Some(file) = slot.get() {
            return Ok(file);
        }
        let opened = open()?;
        *slot.file.lock() = Arc::downgrade(&opened);
        Ok(opened)
    }
}

struct Handle {
    inode: Arc<Inode>,
    file: Arc<EncryptedFile>,
    /// The file had capabilities when it was opened; the first write takes
    /// them away.
    capabilities: AtomicBool,
    write: bool,
}

impl Drop for Handle {
    fn drop(&mut self) {
        if self.write {
            self.inode.writers.fetch_sub(1, Ordering::AcqRel);
        }
    }
}

/// Open handles, by number.
pub(super) struct Handles {
    next: AtomicU64,
    shards: Vec<Mutex<HashMap<u64, Arc<Handle>>>>,
}

impl Default for Handles {
    fn default() -> Self {
        Self {
            next: AtomicU64::new(1),
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
        }
    }
}

impl Handles {
    fn shard(&self, number: u64) -> &Mutex<HashMap<u64, Arc<Handle>>> {
        &self.shards[number as usize % SHARDS]
    }

    pub(super) fn add(
        &self,
        inode: &Arc<Inode>,
        file: Arc<EncryptedFile>,
        options: OpenOptions,
    ) -> u64 {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let capabilities = options.write && has_capabilities(inode);
        let handle = Handle {
            inode: inode.clone(),
            file,
            capabilities: AtomicBool::new(capabilities),
            write: options.write,
        };
        if options.write {
            inode.writers.fetch_add(1, Ordering::AcqRel);
        }
        self.shard(number).lock().insert(number, Arc::new(handle));
        number
    }

    fn get(&self, number: u64) -> Result<Arc<Handle>> {
        let shard = self.shard(number).lock();
        shard.get(&number).cloned().ok_or(FsError::Stale)
    }

    fn remove(&self, number: u64) -> Option<Arc<Handle>> {
        self.shard(number).lock().remove(&number)
    }
}

impl Fs {
    /// Opens a regular file and gives the handle. This is where a file's data
    /// key is fetched, and may wait for the key provider.
    ///
    /// The whole content of a small file goes to `offer`, once in the time that
    /// the kernel knows the inode, and while nobody else has the file open or
    /// changes it.
    ///
    /// # Errors
    /// Those of the host, of the header, and of the key provider.
    pub fn open(
        self: &Arc<Self>,
        ino: u64,
        options: OpenOptions,
        offer: impl FnOnce(&[u8]),
    ) -> Result<u64> {
        let inode = self.inodes.get_to_change(ino)?;
        let mut read = false;
        let offer = |content: &[u8]| {
            read = true;
            offer(content);
        };
        let file = match options.write {
            true => self.open_content(&inode, true),
            false => self.open_content_with(&inode, false, offer),
        };
        let file = file.inspect_err(|error| {
            // It is not where it was listed: somebody else has been at the backing.
            if matches!(error, FsError::Host(Errno::STALE)) {
                let directory = inode.parent.load(Ordering::Relaxed);
                self.inodes.kept.drop_all(directory);
            }
        })?;
        self.opened(&inode, read);
        if options.truncate {
            file.set_size(0)?;
        }
        Ok(self.handles.add(&inode, file, options))
    }

    /// The content of an inode; with `write` such that it can be changed.
    pub(super) fn open_content(&self, inode: &Inode, write: bool) -> Result<Arc<EncryptedFile>> {
        self.open_content_with(inode, write, |_| ())
    }

    fn open_content_with(
        &self,
        inode: &Inode,
        write: bool,
        offer: impl FnOnce(&[u8]),
    ) -> Result<Arc<EncryptedFile>> {
        if inode.kind != FileKind::Regular {
            return Err(FsError::Invalid);
        }
        if write {
            self.volume.refuse_if_locked()?;
        }
        let file = self.files.get_or_open(inode.host_ino(), || {
            // Writable if possible at all: the kernel writes back through any
            // handle, and reads what it needs to complete a page.
            let (fd, writable) = match inode.reference.open_content(true) {
                Ok(fd) => (fd, true),
                Err(error) if write => (force_open(inode, error)?, true),
                Err(_) => match inode.reference.open_content(false) {
                    Ok(fd) => (fd, false),
                    Err(error) => (force_open(inode, error)?, true),
                },
            };
            let backing = inode.reference.content(fd);
            let volume = self.volume.clone();
            // Were it done at every opening, it would mostly be in vain: the
            // kernel keeps what it has when a file is closed.
            if inode.offered.swap(true, Ordering::AcqRel) || write {
                return EncryptedFile::open(volume, inode.host_ino(), backing, writable);
            }
            // If only the key is missing, this is done again, where it can be
            // waited for.
            EncryptedFile::open_whole(volume, inode.host_ino(), backing, writable, offer)
                .inspect_err(|_| inode.offered.store(false, Ordering::Release))
        })?;
        if write {
            if !file.is_writable() {
                let fd = inode.reference.open_content(true);
                let fd = fd.or_else(|error| force_open(inode, error))?;
                file.make_writable(inode.reference.content(fd));
            }
            file.prepare_write()?;
        }
        // Who locks the volume either finds the file among the open ones, or
        // has locked before this.
        if file.key_obtained().is_some() {
            self.volume.refuse_if_locked()?;
        }
        file.ensure_key()?;
        Ok(file)
    }

    /// Sees to it that the key of an open file may be used: what the kernel
    /// does on its own would otherwise look well until it is written back.
    ///
    /// # Errors
    /// `Stale`, those of the key provider.
    pub fn ensure_key(&self, handle: u64) -> Result<()> {
        Ok(self.handles.get(handle)?.file.ensure_key()?)
    }

    /// Reads from an open file: see [`EncryptedFile::read`].
    ///
    /// # Errors
    /// `Stale`, those of the content.
    pub fn read(
        &self,
        handle: u64,
        offset: u64,
        len: usize,
        buffer: &mut ReadBuffer,
    ) -> Result<Range<usize>> {
        Ok(self.handles.get(handle)?.file.read(offset, len, buffer)?)
    }

    /// The same: see [`EncryptedFile::read_into`].
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn read_into(
        &self,
        handle: u64,
        offset: u64,
        len: usize,
        room: &mut [u8],
    ) -> Result<Range<usize>> {
        let handle = self.handles.get(handle)?;
        Ok(handle.file.read_into(offset, len, room)?)
    }

    /// Writes to an open file.
    ///
    /// # Errors
    /// `Stale`, those of the content and of the host.
    pub fn write(&self, handle: u64, offset: u64, data: &[u8], kind: WriteKind) -> Result<()> {
        let handle = self.handles.get(handle)?;
        let _running = self.hold_times(&handle.inode)?;
        if kind.accepted_before {
            handle.file.write_back(offset, data)?;
        } else {
            handle.file.write(offset, data)?;
        }
        if let Some(by) = kind.by {
            strip_privileges(&handle.inode, by)?;
        }
        if handle.capabilities.swap(false, Ordering::Relaxed) {
            remove_capabilities(&handle.inode)?;
        }
        Ok(())
    }

    /// Closes a handle.
    pub fn release(&self, handle: u64) {
        if let Some(handle) = self.handles.remove(handle) {
            self.restore_times(&handle.inode);
            handle.inode.reference.content_closes();
        }
    }

    /// Makes an open file durable; says whether the storage it takes has changed.
    ///
    /// # Errors
    /// `Stale`, those of the host.
    pub fn fsync(&self, handle: u64, data_only: bool) -> Result<bool> {
        Ok(self.handles.get(handle)?.file.sync(data_only)?)
    }

    /// `fallocate(2)` with the modes that a file of this kind can have.
    ///
    /// # Errors
    /// `Unsupported` for other modes, those of the content.
    pub fn fallocate(
        &self,
        handle: u64,
        mode: u32,
        offset: u64,
        len: u64,
        by: Option<Changer>,
    ) -> Result<()> {
        const KEEP_SIZE: u32 = 1;
        const PUNCH_HOLE: u32 = 2;
        const ZERO_RANGE: u32 = 16;
        let handle = self.handles.get(handle)?;
        let keep_size = mode & KEEP_SIZE != 0;
        let _running = self.hold_times(&handle.inode)?;
        match mode & !KEEP_SIZE {
            0 => handle.file.allocate(offset, len, keep_size)?,
            PUNCH_HOLE if keep_size => handle.file.punch(offset, len, true)?,
            ZERO_RANGE => {
                handle.file.punch(offset, len, keep_size)?;
                handle.file.allocate(offset, len, keep_size)?;
            }
            _ => return Err(FsError::Unsupported),
        }
        if let Some(by) = by {
            strip_privileges(&handle.inode, by)?;
        }
        Ok(())
    }

    /// Whether the kernel may hold changes of an open file that it has not
    /// written back: only while someone has it open for writing.
    ///
    /// # Errors
    /// `Stale`.
    pub fn has_writers(&self, handle: u64) -> Result<bool> {
        let handle = self.handles.get(handle)?;
        Ok(handle.inode.writers.load(Ordering::Acquire) > 0)
    }

    /// The first offset from `offset` on that is data, or with `hole` a hole.
    ///
    /// # Errors
    /// `NoData` where there is none, those of the content.
    pub fn seek(&self, handle: u64, offset: u64, hole: bool) -> Result<u64> {
        let file = &self.handles.get(handle)?.file;
        let found = if hole {
            file.next_hole(offset)?
        } else {
            file.next_data(offset)?
        };
        found.ok_or(FsError::NoData)
    }
}

/// Opens a file that its owner may write but not read, or the reverse, on a
/// mount that runs as that owner: encryption needs both.
fn force_open(inode: &Inode, error: Errno) -> crate::backing::Result<OwnedFd> {
    if error != Errno::ACCESS {
        return Err(error);
    }
    let fd = inode.fd()?;
    let mode = u32::from(dir::stat(&fd)?.stx_mode);
    dir::chmod(&fd, mode | 0o600)?;
    let opened = dir::reopen(&fd, true);
    dir::chmod(&fd, mode)?;
    opened
}

const SUID: u32 = 0o4000;
const SGID: u32 = 0o2000;

/// Takes the suid bit away, and the sgid bit of a file that is executable for its
/// group or not of a group of the changer, as a write or truncation by someone
/// without special rights does.
pub(super) fn strip_privileges(inode: &Inode, by: Changer) -> Result<()> {
    const GROUP_EXEC: u32 = 0o0010;
    strip(inode, |mode, gid| {
        let sgid = mode & SGID != 0 && (mode & GROUP_EXEC != 0 || !by.is_in_group(gid));
        SUID | if sgid { SGID } else { 0 }
    })
}

/// Takes away the sgid bit of a file that is not of a group of who changes its
/// mode, as changing an ACL does.
pub(super) fn strip_foreign_group(inode: &Inode, by: Changer) -> Result<()> {
    strip(inode, |mode, gid| match mode & SGID {
        0 => 0,
        _ if by.is_in_group(gid) => 0,
        sgid => sgid,
    })
}

/// Takes the bits away that `which` says of mode and group.
fn strip(inode: &Inode, which: impl FnOnce(u32, u32) -> u32) -> Result<()> {
    let stat = dir::stat(inode.fd()?)?;
    let mode = u32::from(stat.stx_mode);
    let kept = mode & !which(mode, stat.stx_gid);
    if kept != mode {
        dir::chmod(inode.fd()?, kept)?;
    }
    Ok(())
}
