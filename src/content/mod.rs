//! One encrypted file over a backing file: read, write, resize, holes, and the
//! order in which changes reach the disk (`docs/CRASH_ORDER.md`).

mod around;
mod change_times;
pub mod file;
pub mod identity;
pub mod journal;
mod lease;
mod pages;
mod read;
pub mod replay;
mod resize;
mod seek;
mod segment;
mod settle;
mod write;

#[cfg(test)]
mod mem_disk;
#[cfg(test)]
mod mem_file;
#[cfg(test)]
mod tests;

pub use change_times::ChangeTimes;
pub use file::{EncryptedFile, NewIdentity};
pub use journal::Journal;
pub use read::ReadBuffer;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::backing::Errno;
use crate::crypto::{DataKey, Suite};
use crate::format::config::Volume;
use crate::format::{FormatError, Layout};
use crate::keys::{KeyError, NewKey, WrappedKey};
use crate::types::FileId;

/// Why an operation on a file's content failed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ContentError {
    /// The backing storage refused.
    #[error("backing file: {0}")]
    Backing(#[from] Errno),
    /// The header cannot be used.
    #[error("header: {0}")]
    Format(#[from] FormatError),
    /// The header belongs to another volume.
    #[error("the file belongs to another volume")]
    WrongVolume,
    /// The unwrapped key is not the one the header was made with.
    #[error("the data key does not match the header's commitment")]
    WrongKey,
    /// There are encrypted blocks, but no header to open them with.
    #[error("the header is missing")]
    NoHeader,
    /// A block does not authenticate.
    #[error("block {0} failed authentication")]
    BadBlock(u64),
    /// No data key.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The file would grow past the largest offset.
    #[error("file too large")]
    TooLarge,
}

/// Result of an operation on content.
pub type Result<T> = std::result::Result<T, ContentError>;

impl ContentError {
    /// Whether the operation has to be done again on a thread that may wait for
    /// a key. It has changed nothing.
    pub fn would_wait(&self) -> bool {
        matches!(self, Self::Key(KeyError::WouldWait))
    }
}

/// Where files get their data keys.
pub trait KeySource: Send + Sync {
    /// A new file's id and data key.
    fn generate(&self) -> std::result::Result<NewKey, KeyError>;

    /// The data key that `wrapped` holds.
    fn unwrap(
        &self,
        file: FileId,
        wrapped: &[WrappedKey],
    ) -> std::result::Result<Arc<DataKey>, KeyError>;

    /// Unwraps keys in the background that will probably be asked for.
    fn prefetch(&self, wanted: Vec<(FileId, Vec<WrappedKey>)>);

    /// Unwraps a key again although it may still be in memory: whether the
    /// providers still give it.
    fn renew(
        &self,
        file: FileId,
        wrapped: &[WrappedKey],
    ) -> std::result::Result<Arc<DataKey>, KeyError>;

    /// Whether keys are made without waiting for anyone. If not, a writer gets
    /// its key when it opens the file, never while the kernel writes back.
    fn is_local(&self) -> bool;
}

/// What all files of a mounted volume share.
pub struct VolumeContext {
    /// The volume.
    pub volume: Volume,
    /// Its algorithm suite.
    pub suite: Suite,
    /// Where its files get their keys.
    pub keys: Box<dyn KeySource>,
    /// Its write-ahead journal; `None` on a read-only mount.
    pub journal: Option<Arc<Journal>>,
    /// Change times that are not the backing files'.
    pub change_times: ChangeTimes,
    /// This mount's epoch.
    pub epoch: u32,
    /// Epochs that ended without a clean unmount.
    pub unclean: Vec<u32>,
    /// Programs may use no key until the volume is unlocked.
    pub locked: AtomicBool,
}

impl VolumeContext {
    /// The layout of the volume's files.
    pub fn layout(&self) -> Layout {
        self.volume.layout
    }

    /// Fails while the volume is locked.
    ///
    /// # Errors
    /// `Key(Locked)`.
    pub fn refuse_if_locked(&self) -> Result<()> {
        if self.locked.load(Ordering::SeqCst) {
            return Err(KeyError::Locked.into());
        }
        Ok(())
    }
}
