//! Symbolic and hard links.
//!
//! A stored target is longer than the plain one, and 4,095 bytes is all a host
//! symlink holds. What does not fit goes to a symbolic link in a directory of
//! its own in the backing root; the first 32 characters of the stored target
//! then name it. Such a link is recognised by its length, 4,095, which no other
//! stored target has.

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use crate::backing::{Errno, dir};
use crate::crypto::{NameCipher, random};
use crate::sys::creds::run_as;
use crate::types::FileId;

use super::create::NewNode;
use super::inode::{Entry, Inode};
use super::{Fs, FsError, Result};

const OVERFLOW: &[u8] = b"kmsfs.overflow";
/// Length of a stored target that goes on elsewhere.
const FULL: usize = 4095;
const ID: usize = 32;

/// The other part of an overlong target that is about to go.
pub(super) struct OverflowEntry {
    id: Vec<u8>,
    /// The link, if it is known, and that part.
    kept: Option<(Arc<Inode>, Vec<u8>)>,
}

/// The directory of overlong targets, opened when first needed.
#[derive(Default)]
pub(super) struct Overflow {
    fd: OnceLock<OwnedFd>,
    /// There was none when it was last looked for; only this mount can make it.
    missing: AtomicBool,
}

impl Fs {
    fn overflow_dir(&self, create: bool) -> Result<&OwnedFd> {
        if let Some(fd) = self.overflow.fd.get() {
            return Ok(fd);
        }
        if !create && self.overflow.missing.load(Ordering::Acquire) {
            return Err(FsError::NotFound);
        }
        let root = self.inodes.root().fd()?;
        if create {
            match dir::mkdir(&root, OVERFLOW, 0o700) {
                Err(Errno::EXIST) => {}
                other => other?,
            }
        }
        let fd = dir::open_path(&root, OVERFLOW).inspect_err(|&error| {
            let missing = dir::is_absent(error);
            self.overflow.missing.store(missing, Ordering::Release);
        })?;
        Ok(self.overflow.fd.get_or_init(|| fd))
    }

    /// Creates a symbolic link.
    ///
    /// # Errors
    /// Those of the host and of names; `NameTooLong` for targets over 4,095 bytes.
    pub fn symlink(&self, parent: u64, name: &[u8], target: &[u8], new: NewNode) -> Result<Entry> {
        if target.len() > FULL {
            return Err(FsError::NameTooLong);
        }
        let parent = self.inodes.get_to_change(parent)?;
        let stored = self.stored_name(&parent, name)?;
        let full = self.names.seal_target(target);
        let (target, rest) = if full.len() < FULL {
            (full, None)
        } else {
            let id = FileId(random::bytes()).to_hex();
            let (here, there) = full.split_at(FULL - ID);
            let rest = (id.clone(), there.to_owned());
            (format!("{id}{here}"), Some(rest))
        };
        if let Some((id, rest)) = &rest {
            dir::symlink(rest.as_bytes(), self.overflow_dir(true)?, id.as_bytes())?;
        }
        let make = || dir::symlink(target.as_bytes(), parent.fd()?, stored.entry());
        let made = stored.prepare(&parent);
        let made = made.and_then(|()| Ok(run_as(new.caller, new.umask, make)?));
        if let Err(error) = made {
            stored.clean_up(&parent);
            if let Some((id, _)) = &rest {
                dir::unlink(self.overflow_dir(false)?, id.as_bytes())?;
            }
            return Err(error);
        }
        self.look_up_stored(&parent, stored.entry())
    }

    /// Target of a symbolic link.
    ///
    /// # Errors
    /// `BadMetadata` if it does not decrypt, those of the host.
    pub fn readlink(&self, ino: u64) -> Result<Vec<u8>> {
        let inode = self.inodes.get_to_change(ino)?;
        let stored = self.stored_target(&inode)?;
        let target = self.names.open_target(&stored);
        target.ok_or_else(|| {
            log::warn!("inode {ino}: the symlink's target does not decrypt");
            FsError::BadMetadata
        })
    }

    fn stored_target(&self, inode: &Inode) -> Result<Vec<u8>> {
        let mut stored = dir::readlink(inode.fd()?, b"")?;
        if stored.len() == FULL {
            let rest = match inode.overflow.get() {
                Some(rest) => rest.clone(),
                None => dir::readlink(self.overflow_dir(false)?, &stored[..ID])?,
            };
            stored.drain(..ID);
            stored.extend_from_slice(&rest);
        }
        Ok(stored)
    }

    /// Length of the plain target of a symlink whose stored one has `stored`
    /// bytes.
    pub(super) fn target_len(&self, inode: &Inode, stored: u64) -> Result<u64> {
        let stored = if stored == FULL as u64 {
            self.stored_target(inode)?.len() as u64
        } else {
            stored
        };
        Ok(NameCipher::target_len(stored))
    }

    /// The overlong target's other part, if the entry is a link that has one
    /// and this is its last name; to be removed with it.
    pub(super) fn overflow_of(&self, parent: &Inode, stored: &[u8]) -> Option<OverflowEntry> {
        let overflow = self.overflow_dir(false).ok()?;
        let stat = dir::stat_at(parent.fd().ok()?, stored).ok()?;
        let overlong = stat.stx_mode & 0o170_000 == 0o120_000 && stat.stx_size == FULL as u64;
        if !overlong || stat.stx_nlink > 1 {
            return None;
        }
        let mut target = dir::readlink(parent.fd().ok()?, stored).ok()?;
        target.truncate(ID);
        // Whoever still holds the link can go on asking for its target.
        let inode = self.inodes.get(self.inodes.visible(stat.stx_ino)).ok();
        let kept = inode.and_then(|inode| Some((inode, dir::readlink(overflow, &target).ok()?)));
        Some(OverflowEntry { id: target, kept })
    }

    /// Removes what [`Self::overflow_of`] found, once the link's name is gone.
    pub(super) fn remove_overflow(&self, entry: Option<OverflowEntry>) {
        let Some(OverflowEntry { id, kept }) = entry else {
            return;
        };
        if let Some((inode, rest)) = kept {
            inode.overflow.get_or_init(|| rest);
        }
        if let Ok(overflow) = self.overflow_dir(false)
            && let Err(error) = dir::unlink(overflow, &id)
        {
            log::warn!("an overlong symlink target stays behind: {error}");
        }
    }

    /// Gives an inode another name.
    ///
    /// # Errors
    /// Those of the host and of names.
    pub fn link(&self, ino: u64, parent: u64, name: &[u8]) -> Result<Entry> {
        let inode = self.inodes.get_to_change(ino)?;
        let parent = self.inodes.get_to_change(parent)?;
        let stored = self.stored_name(&parent, name)?;
        stored.prepare(&parent)?;
        if let Err(error) = dir::link(inode.fd()?, parent.fd()?, stored.entry()) {
            stored.clean_up(&parent);
            return Err(error.into());
        }
        self.look_up_stored(&parent, stored.entry())
    }
}
