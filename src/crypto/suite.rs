//! Algorithm suites: the numbers that headers keep, and what they mean.

use aws_lc_rs::aead;

use crate::types::KeyLen;

/// Set in the suites' numbers by a build that does not encrypt, so that it and
/// others take each other's volumes for unknown. See `docs/PERFORMANCE.md`.
const NULL_CIPHER: u16 = if cfg!(kmsfs_null_cipher) { 0xff00 } else { 0 };

/// How the blocks of a file are encrypted. Numbers are never reused; 4 and up
/// are free (AEGIS-256 is meant to be one of them).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u16)]
pub enum Suite {
    /// AES-256-GCM (NIST SP 800-38D), 32-byte data keys.
    Aes256Gcm = NULL_CIPHER | 1,
    /// AES-192-GCM, 24-byte data keys.
    Aes192Gcm = NULL_CIPHER | 2,
    /// AES-128-GCM, 16-byte data keys.
    Aes128Gcm = NULL_CIPHER | 3,
}

impl Suite {
    /// The suite with this number.
    pub fn from_number(number: u16) -> Option<Self> {
        [Self::Aes256Gcm, Self::Aes192Gcm, Self::Aes128Gcm]
            .into_iter()
            .find(|s| s.number() == number)
    }

    /// The number a header keeps.
    pub fn number(self) -> u16 {
        self as u16
    }

    /// What the KMS has to issue.
    pub fn key_len(self) -> KeyLen {
        match self {
            Self::Aes256Gcm => KeyLen::Bits256,
            Self::Aes192Gcm => KeyLen::Bits192,
            Self::Aes128Gcm => KeyLen::Bits128,
        }
    }

    /// The suite for data keys of this length.
    pub fn for_key_len(len: KeyLen) -> Self {
        match len {
            KeyLen::Bits256 => Self::Aes256Gcm,
            KeyLen::Bits192 => Self::Aes192Gcm,
            KeyLen::Bits128 => Self::Aes128Gcm,
        }
    }

    pub(super) fn algorithm(self) -> &'static aead::Algorithm {
        match self {
            Self::Aes256Gcm => &aead::AES_256_GCM,
            Self::Aes192Gcm => &aead::AES_192_GCM,
            Self::Aes128Gcm => &aead::AES_128_GCM,
        }
    }
}
