//! The key a file (or a volume) is encrypted under.

use std::fmt;

use crate::sys::secret::Secret;
use crate::types::KeyLen;

/// A plaintext data key: in locked memory, wiped on drop, and with no way to
/// copy, compare or print it.
pub struct DataKey(Secret);

impl DataKey {
    /// A random key.
    pub fn random(len: KeyLen) -> Self {
        let mut secret = Secret::zeroed(len.bytes());
        super::random::fill(&mut secret);
        Self(secret)
    }

    /// A key with the given bytes, which the caller then wipes; `None` if no
    /// key has that many bytes.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        KeyLen::from_bytes(bytes.len())?;
        Some(Self(Secret::copy_of(bytes)))
    }

    /// The key's length.
    pub fn len(&self) -> KeyLen {
        KeyLen::from_bytes(self.0.len()).expect("checked when made")
    }

    /// The key itself, for key derivation and for wrapping.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for DataKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DataKey(..)")
    }
}
