//! POSIX-like operations on inodes and handles, over an encrypted backing
//! directory. Knows nothing of FUSE; tests run it without a mount.

pub mod attr;
mod create;
mod directory;
mod forgotten;
mod inode;
pub mod keeper;
mod kept;
mod link;
mod names;
mod open;
mod reference;
mod remove;
mod setattr;
mod siblings;
mod times;
pub mod volume;
mod xattr;

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use crate::backing::{self, Errno};
use crate::content::{ContentError, VolumeContext};
use crate::crypto::NameCipher;
use crate::format::config::NameMode;

pub use crate::content::ReadBuffer;
pub use crate::types::TimeSpec;
pub use attr::{Attr, FileKind};
pub use create::NewNode;
pub use directory::ListedEntry;
pub use inode::{Entry, ROOT};
pub use keeper::{KeyKeeper, LeaseTerms};
pub use open::{OpenOptions, WriteKind};
pub use setattr::{Changes, SetTime};
pub use volume::{InitOptions, Mounted, OpenError};

/// Why an operation failed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum FsError {
    /// The backing filesystem refused; its errno is passed on.
    #[error("{0}")]
    Host(#[from] Errno),
    /// The file's content could not be had or changed.
    #[error(transparent)]
    Content(#[from] ContentError),
    /// There is no such entry, or one of kmsfs's own.
    #[error("no such entry")]
    NotFound,
    /// The directory has entries.
    #[error("directory not empty")]
    NotEmpty,
    /// Longer than 255 bytes (a name) or than can be stored (an attribute).
    #[error("name too long")]
    NameTooLong,
    /// The name is one of kmsfs's own.
    #[error("reserved name")]
    Reserved,
    /// The inode number or handle is not one that was given out.
    #[error("stale inode or handle")]
    Stale,
    /// The directory's id is missing, so its names cannot be told.
    #[error("the directory's id is missing")]
    NoDirectoryId,
    /// A symlink target or attribute does not decrypt.
    #[error("stored metadata does not decrypt")]
    BadMetadata,
    /// Not something this filesystem does.
    #[error("not supported")]
    Unsupported,
    /// The arguments make no sense.
    #[error("invalid argument")]
    Invalid,
    /// Nothing at or after that offset.
    #[error("no data there")]
    NoData,
}

impl FsError {
    /// Whether the operation has to be done again on a thread that may wait for
    /// a key. It has changed nothing.
    pub fn would_wait(&self) -> bool {
        matches!(self, Self::Content(error) if error.would_wait())
    }
}

/// Result of a filesystem operation.
pub type Result<T> = std::result::Result<T, FsError>;

/// A mounted volume.
pub struct Fs {
    volume: Arc<VolumeContext>,
    names: NameCipher,
    inodes: inode::InodeTable,
    files: open::OpenFiles,
    handles: open::Handles,
    listings: directory::Listings,
    overflow: link::Overflow,
    siblings: siblings::Siblings,
    forgotten: forgotten::Forgotten,
    times_are_kept: AtomicBool,
}

impl Fs {
    /// How names are stored.
    pub fn name_mode(&self) -> NameMode {
        self.volume.volume.names
    }

    /// The volume.
    pub fn volume(&self) -> &Arc<VolumeContext> {
        &self.volume
    }

    /// Space and inodes of the backing filesystem.
    ///
    /// # Errors
    /// Those of `fstatfs(2)`.
    pub fn statfs(&self) -> Result<backing::dir::StatFs> {
        Ok(backing::dir::statfs(self.inodes.root().fd()?)?)
    }
}
