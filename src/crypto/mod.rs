//! Keys, block and name encryption. No I/O.

pub mod block;
pub mod data_key;
pub mod derive;
pub mod names;
pub mod random;
pub mod suite;

pub use block::{AuthError, BlockCipher, Seal};
pub use data_key::DataKey;
pub use derive::{FileKey, VolumeKeys};
pub use names::NameCipher;
pub use suite::Suite;

/// SHA-256 (FIPS 180-4) of `bytes`.
pub fn sha256(bytes: &[u8]) -> [u8; 32] {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes);
    digest.as_ref().try_into().expect("SHA-256 gives 32 bytes")
}
