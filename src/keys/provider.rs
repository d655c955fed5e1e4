//! The seam every key provider implements.

use crate::crypto::DataKey;
use crate::keys::KeyError;
use crate::types::{FileId, KeyLen, VolumeId};

/// What a wrapped key is bound to: the *encryption context* of the KMS call
/// that made it. A provider passes it as `kmsfs:volume` and `kmsfs:file`, each
/// in lowercase hexadecimal, so a wrapped key that was moved elsewhere fails to
/// unwrap, and the KMS's audit trail names the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct KeyContext {
    /// The volume.
    pub volume: VolumeId,
    /// The file; for the volume's own key, the volume id again.
    pub file: FileId,
}

impl KeyContext {
    /// The context as the name-value pairs that a KMS takes, sorted by name.
    pub fn pairs(&self) -> [(&'static str, String); 2] {
        [
            ("kmsfs:file", self.file.to_hex()),
            ("kmsfs:volume", self.volume.to_hex()),
        ]
    }

    /// The context as canonical bytes (`kmsfs:file=…&kmsfs:volume=…`), for
    /// providers that take associated data instead of pairs.
    pub fn aad(&self) -> Vec<u8> {
        let [(a, x), (b, y)] = self.pairs();
        [a, "=", &x, "&", b, "=", &y].concat().into_bytes()
    }
}

/// A data key as it may lie on untrusted storage, with all that the provider
/// needs to unwrap it again. One of these is a *recipient* of a file.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct WrappedKey {
    /// URI of the key that wrapped it, as the provider resolved it: a key id,
    /// never an alias that could be pointed elsewhere later.
    pub key_uri: String,
    /// The key's version, where the provider says; else empty.
    pub key_version: String,
    /// The wrapping algorithm, where it is a parameter of unwrapping; else empty.
    pub algorithm: String,
    /// The IV, where the provider returns one that unwrapping needs; else empty.
    pub iv: Vec<u8>,
    /// The wrapped key itself.
    pub ciphertext: Vec<u8>,
}

/// A source of data keys: one wrapping key at one KMS (or the embedded one).
///
/// Calls block; they run on threads that may wait, never on a thread that
/// serves the filesystem unless [`KeyProvider::is_local`] says they are quick.
/// A call returns by [`patience::deadline`](crate::keys::patience::deadline),
/// and leaves trying again to its caller.
pub trait KeyProvider: Send + Sync {
    /// The URI of the key, as users write it and as headers keep it.
    fn uri(&self) -> &str;

    /// Whether calls are answered inside this process, without waiting.
    fn is_local(&self) -> bool;

    /// Whether `wrapped` was wrapped by this provider's key. Overridden where
    /// [`KeyProvider::uri`] says more than a wrapped key keeps.
    fn recognises(&self, wrapped: &WrappedKey) -> bool {
        wrapped.key_uri == self.uri()
    }

    /// Makes a new data key of `len`, wrapped for `context`.
    fn generate(
        &self,
        context: &KeyContext,
        len: KeyLen,
    ) -> Result<(DataKey, WrappedKey), KeyError>;

    /// Wraps a data key that another provider made: the second and further
    /// recipients of a file.
    fn wrap(&self, context: &KeyContext, key: &DataKey) -> Result<WrappedKey, KeyError>;

    /// Gives the data key back. `Rejected` if the context is not the one it
    /// was wrapped for.
    fn unwrap(&self, context: &KeyContext, wrapped: &WrappedKey) -> Result<DataKey, KeyError>;

    /// Most wrapped keys that the provider unwraps in one call.
    fn batch(&self) -> usize {
        1
    }

    /// Gives several data keys back, each or its error, in order. Asked for at
    /// most [`KeyProvider::batch`] at once; providers with batches override it.
    fn unwrap_many(&self, wrapped: &[(KeyContext, WrappedKey)]) -> Vec<Result<DataKey, KeyError>> {
        let each = wrapped.iter();
        each.map(|(context, wrapped)| self.unwrap(context, wrapped))
            .collect()
    }

    /// Wraps the same data key under the key's current version. Providers that
    /// can do so without showing the data key override this.
    fn rewrap(&self, context: &KeyContext, wrapped: &WrappedKey) -> Result<WrappedKey, KeyError> {
        let key = self.unwrap(context, wrapped)?;
        self.wrap(context, &key)
    }

    /// Whether credentials are to be renewed now that would otherwise end while
    /// nobody asks for anything, and could not be had again then. Quick.
    fn credentials_are_due(&self) -> bool {
        false
    }

    /// Renews credentials that are due.
    fn renew_credentials(&self) -> Result<(), KeyError> {
        Ok(())
    }

    /// What the provider says about the key, as names and values for people.
    fn describe(&self) -> Result<Vec<(&'static str, String)>, KeyError> {
        Ok(Vec::new())
    }

    /// What someone who sees `error` may have to do about it, where the
    /// provider knows.
    fn advice(&self, _error: &KeyError) -> Option<String> {
        None
    }
}
