//! Removing and renaming.
//!
//! A directory is emptied of kmsfs's own entries before the host is asked to
//! remove it. Nothing can come into it meanwhile: the kernel holds the locks of
//! the directory and of its parent for the whole operation.

use std::os::fd::OwnedFd;

use crate::backing::{Errno, dir};
use crate::types::DirId;

use super::inode::{Inode, Leaving, absent};
use super::names::{DIR_ID, StoredName};
use super::{Fs, FsError, Result};

/// `RENAME_NOREPLACE`, `RENAME_EXCHANGE` (`renameat2(2)`).
const NOREPLACE: u32 = 1;
const EXCHANGE: u32 = 2;

impl Fs {
    /// Removes a name of something that is not a directory.
    ///
    /// # Errors
    /// Those of the host and of names.
    pub fn unlink(&self, parent: u64, name: &[u8]) -> Result<()> {
        let parent = self.inodes.get_to_change(parent)?;
        let stored = self.stored_name(&parent, name)?;
        let overflow = self.overflow_of(&parent, stored.entry());
        self.leaves(&parent, stored.entry())?;
        dir::unlink(parent.fd()?, stored.entry()).map_err(absent)?;
        stored.clean_up(&parent);
        self.remove_overflow(overflow);
        Ok(())
    }

    /// Removes an empty directory.
    ///
    /// # Errors
    /// `NotEmpty`, those of the host and of names.
    pub fn rmdir(&self, parent: u64, name: &[u8]) -> Result<()> {
        let parent = self.inodes.get_to_change(parent)?;
        let stored = self.stored_name(&parent, name)?;
        self.leaves(&parent, stored.entry())?;
        let emptied = self.empty(&parent, stored.entry())?;
        match dir::rmdir(parent.fd()?, stored.entry()) {
            Ok(()) => {
                stored.clean_up(&parent);
                Ok(())
            }
            Err(error) => {
                emptied.undo();
                Err(absent(error))
            }
        }
    }

    /// Takes kmsfs's own entries out of a directory that has no others, so that
    /// the host sees it empty.
    fn empty(&self, parent: &Inode, stored: &[u8]) -> Result<Emptied> {
        // Whoever may write to the parent may remove this one, whatever its mode.
        let path = dir::open_path(parent.fd()?, stored).map_err(absent)?;
        let fd = dir::with_access(&path, 0o400, || dir::open_dir(parent.fd()?, stored))?;
        let entries = dir::with_access(&path, 0o500, || dir::list(&fd))?;
        let own = |name: &[u8]| name == DIR_ID || name.starts_with(b"kmsfs.name.");
        let encrypted = self.name_mode() != crate::format::config::NameMode::Plain;
        if entries
            .iter()
            .any(|e| !(encrypted && own(e.name.to_bytes())))
        {
            return Err(FsError::NotEmpty);
        }
        let mut id = None;
        // The id goes last: a directory with other entries and no id is lost.
        let mut entries = entries;
        entries.sort_by_key(|e| e.name.to_bytes() == DIR_ID);
        for entry in &entries {
            let name = entry.name.to_bytes();
            if name == DIR_ID {
                let read = || dir::readlink(&fd, DIR_ID);
                let target = dir::with_access(&path, 0o100, read)?;
                id = std::str::from_utf8(&target).ok().and_then(DirId::from_hex);
            }
            dir::with_access(&path, 0o300, || dir::unlink(&fd, name))?;
        }
        Ok(Emptied { fd, id })
    }

    /// Renames as `renameat2(2)`, with its flags.
    ///
    /// # Errors
    /// Those of the host and of names; `Unsupported` for unknown flags.
    pub fn rename(
        &self,
        parent: u64,
        name: &[u8],
        new_parent: u64,
        new_name: &[u8],
        flags: u32,
    ) -> Result<()> {
        let parent = self.inodes.get_to_change(parent)?;
        let new_parent = self.inodes.get_to_change(new_parent)?;
        let old = self.stored_name(&parent, name)?;
        let new = self.stored_name(&new_parent, new_name)?;
        let itself = parent.ino == new_parent.ino && name == new_name;
        let replaces = flags & (NOREPLACE | EXCHANGE) == 0 && !itself;
        let overflow = replaces
            .then(|| self.overflow_of(&new_parent, new.entry()))
            .flatten();
        let moved = self.leaves(&parent, old.entry())?;
        let other = self.leaves(&new_parent, new.entry())?;
        let emptied = match replaces {
            true => self.empty_target(moved.as_ref(), other.as_ref(), &new_parent, &new)?,
            false => None,
        };
        new.prepare(&new_parent)?;
        let result = dir::rename(
            parent.fd()?,
            old.entry(),
            new_parent.fd()?,
            new.entry(),
            flags,
        );
        if let Err(error) = result {
            new.clean_up(&new_parent);
            if let Some(emptied) = emptied {
                emptied.undo();
            }
            return Err(absent(error));
        }
        old.clean_up(&parent);
        self.remove_overflow(overflow);
        if let Some(moved) = moved.and_then(|leaving| leaving.inode) {
            moved.reference.found(&new_parent, new.entry());
        }
        if flags & EXCHANGE != 0
            && let Some(other) = other.and_then(|leaving| leaving.inode)
        {
            other.reference.found(&parent, old.entry());
        }
        Ok(())
    }

    /// If the rename would replace a directory by a directory, empties the one
    /// that goes.
    fn empty_target(
        &self,
        source: Option<&Leaving>,
        target: Option<&Leaving>,
        new_parent: &Inode,
        new: &StoredName,
    ) -> Result<Option<Emptied>> {
        // Where there is no source, the host says so.
        let (Some(source), Some(target)) = (source, target) else {
            return Ok(None);
        };
        let (source, target) = (&source.stat, &target.stat);
        let is_dir = |mode: u16| mode & 0o170_000 == 0o040_000;
        let same = source.stx_ino == target.stx_ino;
        if same || !is_dir(source.stx_mode) || !is_dir(target.stx_mode) {
            return Ok(None);
        }
        match self.empty(new_parent, new.entry()) {
            Err(FsError::Host(Errno::NOTDIR)) => Ok(None),
            other => other.map(Some),
        }
    }
}

fn write_dir_id_in(fd: &OwnedFd, id: DirId) -> crate::backing::Result<()> {
    let target = id.to_hex();
    dir::with_access(fd, 0o300, || dir::symlink(target.as_bytes(), fd, DIR_ID))
}

/// A directory that was emptied to be removed.
struct Emptied {
    fd: OwnedFd,
    id: Option<DirId>,
}

impl Emptied {
    /// Puts the id back, because the directory stays after all.
    fn undo(self) {
        if let Some(id) = self.id
            && let Err(error) = write_dir_id_in(&self.fd, id)
        {
            log::error!("a directory lost its id: {error}");
        }
    }
}
