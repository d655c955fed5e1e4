//! Sealing and opening one block.

use std::cell::RefCell;
use std::fmt;

use aws_lc_rs::aead::{Aad, LessSafeKey, Nonce, UnboundKey};

use crate::types::FileId;

use super::{Suite, random};

/// The nonce and tag of a sealed block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seal {
    /// Random, made for this one sealing.
    pub nonce: [u8; 12],
    /// Authenticates block, position and length.
    pub tag: [u8; 16],
}

/// The block does not authenticate: it, its metadata or its place is wrong.
/// There is deliberately nothing more to say.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("block failed authentication")]
pub struct AuthError;

/// Encrypts the blocks of one group of one file.
///
/// aws-lc keeps the key schedule on its own heap and wipes it when it frees it.
pub struct BlockCipher {
    key: LessSafeKey,
    suite: Suite,
    file: FileId,
}

/// Nonces drawn at once: 1 MiB of 4 KiB blocks.
const BATCH: usize = 256 * 12;

thread_local! {
    static NONCES: RefCell<(usize, [u8; BATCH])> = const { RefCell::new((BATCH, [0; BATCH])) };
}

/// A fresh random nonce, from a batch drawn for this thread: one call of the
/// generator a block would cost as much as the block's encryption.
fn fresh_nonce() -> [u8; 12] {
    NONCES.with_borrow_mut(|(used, batch)| {
        if *used == BATCH {
            random::fill(batch);
            *used = 0;
        }
        let nonce = batch[*used..*used + 12].try_into().expect("12 bytes");
        *used += 12;
        nonce
    })
}

impl BlockCipher {
    pub(super) fn new(suite: Suite, file: FileId, key: &[u8]) -> Self {
        let key = UnboundKey::new(suite.algorithm(), key).expect("derived at the suite's length");
        Self {
            key: LessSafeKey::new(key),
            suite,
            file,
        }
    }

    /// Encrypts `plain`, the whole content of block `index`, into `out`, which
    /// is as long.
    pub fn seal(&self, index: u64, plain: &[u8], out: &mut [u8]) -> Seal {
        let mut seal = Seal {
            nonce: fresh_nonce(),
            tag: [0; 16],
        };
        if cfg!(kmsfs_null_cipher) {
            out.copy_from_slice(plain);
            return seal;
        }
        self.key
            .seal_out_of_place_scatter(
                Nonce::assume_unique_for_key(seal.nonce),
                Aad::from(self.aad(index, plain.len())),
                plain,
                out,
                &[],
                &mut seal.tag,
            )
            .expect("lengths match");
        seal
    }

    /// Decrypts block `index` in place.
    ///
    /// # Errors
    /// `AuthError`, and `data` is zeroed, if anything about it is wrong.
    pub fn open(&self, index: u64, seal: &Seal, data: &mut [u8]) -> Result<(), AuthError> {
        if cfg!(kmsfs_null_cipher) {
            return Ok(());
        }
        let nonce = Nonce::assume_unique_for_key(seal.nonce);
        let aad = Aad::from(self.aad(index, data.len()));
        let opened = self
            .key
            .open_in_place_separate_tag(nonce, aad, &seal.tag, data);
        if opened.is_err() {
            data.fill(0);
            return Err(AuthError);
        }
        Ok(())
    }

    /// suite ‖ file id ‖ block index ‖ length, little-endian.
    fn aad(&self, index: u64, len: usize) -> [u8; 30] {
        let mut aad = [0; 30];
        aad[..2].copy_from_slice(&self.suite.number().to_le_bytes());
        aad[2..18].copy_from_slice(&self.file.0);
        aad[18..26].copy_from_slice(&index.to_le_bytes());
        aad[26..].copy_from_slice(&(len as u32).to_le_bytes());
        aad
    }
}

impl fmt::Debug for BlockCipher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BlockCipher({:?}, {})", self.suite, self.file)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::{DataKey, FileKey};
    use crate::types::KeyLen;
    use aes_gcm::aead::{Aead, KeyInit, Payload};
    use proptest::prelude::*;

    fn file_key(suite: Suite, file: u8) -> FileKey {
        let key = DataKey::from_bytes(&[7; 32][..suite.key_len().bytes()]).unwrap();
        FileKey::new(suite, FileId([file; 16]), &key)
    }

    #[test]
    fn opens_only_at_its_place_and_length() {
        for len in [KeyLen::Bits128, KeyLen::Bits192, KeyLen::Bits256] {
            let keys = file_key(Suite::for_key_len(len), 1);
            let cipher = keys.group_cipher(0);
            let plain = [42u8; 4096];
            let mut sealed = [0; 4096];
            let seal = cipher.seal(5, &plain, &mut sealed);
            let open = |cipher: &BlockCipher, index, data: &[u8]| {
                let mut data = data.to_vec();
                cipher.open(index, &seal, &mut data).map(|()| data)
            };
            assert_eq!(open(&cipher, 5, &sealed), Ok(plain.to_vec()));
            assert_eq!(open(&cipher, 6, &sealed), Err(AuthError));
            assert_eq!(open(&cipher, 5, &sealed[..4095]), Err(AuthError));
            assert_eq!(open(&keys.group_cipher(1), 5, &sealed), Err(AuthError));
            let other = file_key(Suite::for_key_len(len), 2).group_cipher(0);
            assert_eq!(open(&other, 5, &sealed), Err(AuthError));
        }
    }

    #[test]
    fn nonces_do_not_repeat() {
        let cipher = file_key(Suite::Aes256Gcm, 1).group_cipher(0);
        let mut seen = std::collections::HashSet::new();
        for _ in 0..2000 {
            assert!(seen.insert(cipher.seal(0, b"x", &mut [0]).nonce));
        }
    }

    proptest! {
        /// The same bytes as a second, independent implementation.
        #[test]
        fn agrees_with_aes_gcm(plain in proptest::collection::vec(any::<u8>(), 1..5000), index: u64) {
            let keys = file_key(Suite::Aes256Gcm, 3);
            let mut key = [0; 32];
            keys.group_key(9, &mut key);
            let cipher = keys.group_cipher(9);
            let mut sealed = vec![0; plain.len()];
            let seal = cipher.seal(index, &plain, &mut sealed);
            let reference = aes_gcm::Aes256Gcm::new(&key.into());
            let aad = cipher.aad(index, plain.len());
            let mut both = sealed.clone();
            both.extend_from_slice(&seal.tag);
            let opened = reference.decrypt(&seal.nonce.into(), Payload { msg: &both, aad: &aad });
            prop_assert_eq!(opened.unwrap(), plain);
        }
    }
}
