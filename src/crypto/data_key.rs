//! The key a file (or a volume) is encrypted under.

use std::fmt;
use std::time::Duration;

use crate::sys::clock::{BootClock, Clock};
use crate::sys::secret::Secret;
use crate::types::KeyLen;

/// A plaintext data key: in locked memory, wiped on drop, and with no way to
/// copy, compare or print it.
pub struct DataKey {
    secret: Secret,
    obtained: Duration,
}

impl DataKey {
    /// A random key.
    pub fn random(len: KeyLen) -> Self {
        let mut secret = Secret::zeroed(len.bytes());
        super::random::fill(&mut secret);
        Self::now(secret)
    }

    /// A key with the given bytes, which the caller then wipes; `None` if no
    /// key has that many bytes.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        KeyLen::from_bytes(bytes.len())?;
        Some(Self::now(Secret::copy_of(bytes)))
    }

    fn now(secret: Secret) -> Self {
        let obtained = BootClock.now();
        Self { secret, obtained }
    }

    /// When the key was made or unwrapped, as time since boot.
    pub fn obtained(&self) -> Duration {
        self.obtained
    }

    /// The key's length.
    pub fn len(&self) -> KeyLen {
        KeyLen::from_bytes(self.secret.len()).expect("checked when made")
    }

    /// The key itself, for key derivation and for wrapping.
    pub fn expose(&self) -> &[u8] {
        &self.secret
    }
}

impl fmt::Debug for DataKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DataKey(..)")
    }
}
