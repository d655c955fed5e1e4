//! Names as they are stored, and the ids of directories.
//!
//! In a volume whose names are encrypted, a directory's id is the target of a
//! symbolic link inside it: made with the directory, journaled by the host as
//! metadata, kept by every copying program. Stored names that pass the host's
//! 255 bytes are replaced by a digest, and a symbolic link beside the entry
//! keeps the full form.

use crate::backing::{Errno, dir};
use crate::crypto::{NameCipher, random};
use crate::format::config::NameMode;
use crate::types::DirId;

use super::inode::{Inode, ROOT};
use super::{Fs, FsError, Result};

/// Longest name, of users' and of hosts'.
pub(super) const NAME_MAX: usize = 255;
/// The symbolic link that keeps a directory's id.
pub(super) const DIR_ID: &[u8] = b"kmsfs.dir";
/// What all of kmsfs's own names start with.
pub(super) const OWN: &[u8] = b"kmsfs.";
const LONG: &str = "kmsfs.long.";
const SIDECAR: &str = "kmsfs.name.";

/// A name in its stored form.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum StoredName {
    Short(Vec<u8>),
    Long {
        entry: Vec<u8>,
        sidecar: Vec<u8>,
        full: Vec<u8>,
    },
}

impl StoredName {
    /// The entry's name in the backing directory.
    pub(super) fn entry(&self) -> &[u8] {
        match self {
            Self::Short(name) => name,
            Self::Long { entry, .. } => entry,
        }
    }

    /// Stores the full form beside an entry that is about to be made.
    pub(super) fn prepare(&self, parent: &Inode) -> Result<()> {
        let Self::Long { sidecar, full, .. } = self else {
            return Ok(());
        };
        match dir::symlink(full, parent.fd()?, sidecar) {
            Err(Errno::EXIST) => Ok(()),
            other => Ok(other?),
        }
    }

    /// Removes the full form once its entry is gone.
    pub(super) fn clean_up(&self, parent: &Inode) {
        if let Self::Long { entry, sidecar, .. } = self
            && let Ok(fd) = parent.fd()
            && dir::stat_at(&fd, entry).is_err_and(dir::is_absent)
            && let Err(error) = dir::unlink(&fd, sidecar)
        {
            log::warn!("inode {}: a long name stays behind: {error}", parent.ino);
        }
    }
}

impl Fs {
    /// How `name` is stored in `parent`.
    pub(super) fn stored_name(&self, parent: &Inode, name: &[u8]) -> Result<StoredName> {
        if name.len() > NAME_MAX {
            return Err(FsError::NameTooLong);
        }
        if self.name_mode() == NameMode::Plain {
            if parent.ino == ROOT && name.starts_with(OWN) {
                return Err(FsError::Reserved);
            }
            return Ok(StoredName::Short(name.to_vec()));
        }
        let full = self.names.seal_name(&self.dir_id(parent)?, name);
        if full.len() <= NAME_MAX {
            return Ok(StoredName::Short(full.into_bytes()));
        }
        let digest = NameCipher::digest(&full);
        Ok(StoredName::Long {
            entry: format!("{LONG}{digest}").into_bytes(),
            sidecar: format!("{SIDECAR}{digest}").into_bytes(),
            full: full.into_bytes(),
        })
    }

    /// The name that `stored` stands for in `parent`; `None` for kmsfs's own
    /// entries and for what does not decrypt, which is reported and hidden.
    pub(super) fn plain_name(&self, parent: &Inode, stored: &[u8]) -> Result<Option<Vec<u8>>> {
        if self.name_mode() == NameMode::Plain {
            let own = parent.ino == ROOT && stored.starts_with(OWN);
            return Ok((!own).then(|| stored.to_vec()));
        }
        let id = self.dir_id(parent)?;
        let name = match stored.strip_prefix(LONG.as_bytes()) {
            Some(digest) => {
                let sidecar = [SIDECAR.as_bytes(), digest].concat();
                let fd = parent.fd()?;
                match dir::with_access(&fd, 0o100, || dir::readlink(&fd, &sidecar)) {
                    Ok(full) => self.names.open_name(&id, &full),
                    Err(_) => None,
                }
            }
            None if stored.starts_with(OWN) => return Ok(None),
            None => self.names.open_name(&id, stored),
        };
        if name.is_none() {
            log::warn!(
                "inode {}: hidden entry {:?} does not decrypt",
                parent.ino,
                String::from_utf8_lossy(stored)
            );
        }
        Ok(name)
    }

    /// The id of a directory. One that lost its id gets a new one if it is
    /// empty; else its names can't be told.
    fn dir_id(&self, inode: &Inode) -> Result<DirId> {
        if let Some(id) = inode.dir_id.get() {
            return Ok(*id);
        }
        let id = match self.name_mode() {
            NameMode::Encrypted => match read_dir_id(inode) {
                Err(FsError::NotFound) => renew_dir_id(inode)?,
                other => other?,
            },
            NameMode::Deterministic | NameMode::Plain => DirId([0; 16]),
        };
        Ok(*inode.dir_id.get_or_init(|| id))
    }

    /// Gives a new directory its id.
    pub(super) fn make_dir_id(&self, fd: impl std::os::fd::AsFd) -> Result<()> {
        if self.name_mode() == NameMode::Encrypted {
            write_dir_id(fd, DirId(random::bytes()))?;
        }
        Ok(())
    }
}

pub(super) fn write_dir_id(fd: impl std::os::fd::AsFd, id: DirId) -> Result<()> {
    Ok(dir::symlink(id.to_hex().as_bytes(), fd, DIR_ID)?)
}

fn read_dir_id(inode: &Inode) -> Result<DirId> {
    // Listing a directory takes less than looking into it.
    let fd = inode.fd()?;
    let target = dir::with_access(&fd, 0o100, || dir::readlink(&fd, DIR_ID));
    let target = target.map_err(super::inode::absent)?;
    let text = std::str::from_utf8(&target).ok();
    text.and_then(DirId::from_hex).ok_or(FsError::NoDirectoryId)
}

fn renew_dir_id(inode: &Inode) -> Result<DirId> {
    if !dir::list(inode.fd()?)?.is_empty() {
        log::error!("inode {}: a directory with entries lost its id", inode.ino);
        return Err(FsError::NoDirectoryId);
    }
    let id = DirId(random::bytes());
    match write_dir_id(inode.fd()?, id) {
        // Another thread was faster.
        Err(FsError::Host(Errno::EXIST)) => read_dir_id(inode),
        other => other.map(|()| id),
    }
}
