//! A file's header and the keys that follow from it.

use std::time::Duration;

use crate::crypto::{DataKey, FileKey, Suite, sha256};
use crate::format::FormatError;
use crate::format::header::{Header, Recipient};
use crate::keys::{NewKey, WrappedKey};
use crate::types::FileId;

use super::{ContentError, Result, VolumeContext};

/// Who a file is: set once it has its first byte of data.
pub(super) struct Identity {
    pub(super) header: Header,
    /// The key, or why it was taken away.
    pub(super) key: Result<FileKey>,
    /// When it was had from a provider, as time since boot.
    pub(super) obtained: Duration,
}

impl Identity {
    /// A new file's: a fresh id and data key.
    pub(super) fn create(volume: &VolumeContext) -> Result<Self> {
        let NewKey {
            file,
            key: data_key,
            wrapped,
        } = volume.keys.generate()?;
        let mut header = Header {
            suite: volume.suite.number(),
            layout: volume.layout(),
            sequence: 1,
            file,
            volume: volume.volume.id,
            commitment: [0; 32],
            recipients: wrapped.into_iter().map(to_recipient).collect(),
        };
        let key = FileKey::new(volume.suite, file, &data_key);
        header.commitment = key.commitment(&immutable(&header));
        header.check_room()?;
        Ok(Self {
            header,
            key: Ok(key),
            obtained: data_key.obtained(),
        })
    }

    /// An existing file's, from the bytes of its head; `None` if it has none.
    pub(super) fn open(volume: &VolumeContext, head: &[u8]) -> Result<Option<Self>> {
        let Some((_, header)) = Header::newest(head, volume.layout(), sha256)? else {
            return Ok(None);
        };
        if header.volume != volume.volume.id || header.layout != volume.layout() {
            return Err(ContentError::WrongVolume);
        }
        let data_key = volume.keys.unwrap(header.file, &wrapped_keys(&header))?;
        Ok(Some(Self {
            key: Ok(checked_key(&header, &data_key)?),
            header,
            obtained: data_key.obtained(),
        }))
    }

    /// The same file with a key that was had again.
    pub(super) fn with_key(&self, data_key: &DataKey) -> Result<Self> {
        Ok(Self {
            key: Ok(checked_key(&self.header, data_key)?),
            header: self.header.clone(),
            obtained: data_key.obtained(),
        })
    }

    /// The same file without its key.
    pub(super) fn without_key(&self, why: ContentError) -> Self {
        Self {
            key: Err(why),
            header: self.header.clone(),
            obtained: self.obtained,
        }
    }

    /// The file's wrapped keys.
    pub(super) fn wrapped(&self) -> Vec<WrappedKey> {
        wrapped_keys(&self.header)
    }

    /// The key.
    ///
    /// # Errors
    /// Why it was taken away.
    pub(super) fn key(&self) -> Result<&FileKey> {
        self.key.as_ref().map_err(Clone::clone)
    }

    /// The head's slots as they lie on disk, for a file written from scratch:
    /// the same in both, so that damage to one loses nothing.
    pub(super) fn encode_slots(&self) -> Result<Vec<u8>> {
        Ok(self.header.encode(sha256)?.repeat(2))
    }
}

/// What would have to be unwrapped to open the file with this head; `None` for a
/// file without a header of this volume.
pub fn wanted_key(volume: &VolumeContext, head: &[u8]) -> Option<(FileId, Vec<WrappedKey>)> {
    let (_, header) = Header::newest(head, volume.layout(), sha256).ok()??;
    let own = header.volume == volume.volume.id;
    own.then(|| (header.file, wrapped_keys(&header)))
}

fn wrapped_keys(header: &Header) -> Vec<WrappedKey> {
    header.recipients.iter().map(to_wrapped).collect()
}

fn checked_key(header: &Header, key: &DataKey) -> Result<FileKey> {
    let suite = Suite::from_number(header.suite).ok_or(FormatError::UnknownSuite(header.suite))?;
    if key.len() != suite.key_len() {
        return Err(ContentError::WrongKey);
    }
    let key = FileKey::new(suite, header.file, key);
    // Both values are public, so the comparison need not be constant-time.
    if key.commitment(&immutable(header)) != header.commitment {
        return Err(ContentError::WrongKey);
    }
    Ok(key)
}

/// The header fields that never change, as the commitment covers them.
fn immutable(header: &Header) -> Vec<u8> {
    let mut out = header.volume.0.to_vec();
    out.extend_from_slice(&(header.layout.block_size() as u32).to_le_bytes());
    out.extend_from_slice(&(header.layout.head_size() as u32).to_le_bytes());
    out.extend(header.layout.committed_cluster());
    out
}

/// A wrapped key as headers and configs keep it.
pub fn to_recipient(wrapped: WrappedKey) -> Recipient {
    Recipient {
        key_uri: wrapped.key_uri,
        key_version: wrapped.key_version,
        algorithm: wrapped.algorithm,
        iv: wrapped.iv,
        ciphertext: wrapped.ciphertext,
    }
}

/// The reverse of [`to_recipient`].
pub fn to_wrapped(recipient: &Recipient) -> WrappedKey {
    let r = recipient.clone();
    WrappedKey {
        key_uri: r.key_uri,
        key_version: r.key_version,
        algorithm: r.algorithm,
        iv: r.iv,
        ciphertext: r.ciphertext,
    }
}
