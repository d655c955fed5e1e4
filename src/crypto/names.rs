//! File names, symlink targets and extended attributes: AES-256-SIV (RFC 5297),
//! written as unpadded base64url.

use std::fmt;

use aes_siv::KeyInit;
use aes_siv::siv::Aes256Siv;
use data_encoding::BASE64URL_NOPAD;

use crate::sys::secret::Secret;
use crate::types::DirId;

use super::{VolumeKeys, random, sha256};

/// Bytes AES-SIV adds.
const SIV: usize = 16;
/// Random bytes in front of what must not be deterministic.
const NONCE: usize = 16;

/// Encrypts what the directory tree itself tells.
pub struct NameCipher {
    keys: VolumeKeys,
}

impl NameCipher {
    /// With the keys derived from the volume key.
    pub fn new(keys: VolumeKeys) -> Self {
        Self { keys }
    }

    /// The stored form of `name` in the directory `dir`: at least 23 characters
    /// of base64url, so never one of kmsfs's own names, which contain a dot.
    pub fn seal_name(&self, dir: &DirId, name: &[u8]) -> String {
        BASE64URL_NOPAD.encode(&seal(&self.keys.names, &[&dir.0], name))
    }

    /// The name whose stored form is `stored`; `None` if it is not one of this
    /// directory's.
    pub fn open_name(&self, dir: &DirId, stored: &[u8]) -> Option<Vec<u8>> {
        let sealed = BASE64URL_NOPAD.decode(stored).ok()?;
        open(&self.keys.names, &[&dir.0], &sealed).filter(|name| !name.is_empty())
    }

    /// What stands in for a stored name that is too long for the backing
    /// filesystem.
    pub fn digest(stored: &str) -> String {
        BASE64URL_NOPAD.encode(&sha256(stored.as_bytes()))
    }

    /// The stored form of a symlink's target; different every time.
    pub fn seal_target(&self, target: &[u8]) -> String {
        BASE64URL_NOPAD.encode(&seal_randomized(&self.keys.symlinks, b"target", target))
    }

    /// The target whose stored form is `stored`.
    pub fn open_target(&self, stored: &[u8]) -> Option<Vec<u8>> {
        let sealed = BASE64URL_NOPAD.decode(stored).ok()?;
        open_randomized(&self.keys.symlinks, b"target", &sealed)
    }

    /// Length of the target whose stored form has `stored` characters.
    pub fn target_len(stored: u64) -> u64 {
        (stored * 3 / 4).saturating_sub((NONCE + SIV) as u64)
    }

    /// The stored form of an extended attribute's name (behind its namespace).
    pub fn seal_xattr_name(&self, name: &[u8]) -> String {
        BASE64URL_NOPAD.encode(&seal(&self.keys.xattrs, &[b"name"], name))
    }

    /// The attribute name whose stored form is `stored`.
    pub fn open_xattr_name(&self, stored: &[u8]) -> Option<Vec<u8>> {
        let sealed = BASE64URL_NOPAD.decode(stored).ok()?;
        open(&self.keys.xattrs, &[b"name"], &sealed)
    }

    /// The stored value of the extended attribute `name`; different every time.
    pub fn seal_xattr(&self, name: &[u8], value: &[u8]) -> Vec<u8> {
        seal_randomized(&self.keys.xattrs, name, value)
    }

    /// The value whose stored form is `stored`.
    pub fn open_xattr(&self, name: &[u8], stored: &[u8]) -> Option<Vec<u8>> {
        open_randomized(&self.keys.xattrs, name, stored)
    }
}

impl fmt::Debug for NameCipher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("NameCipher(..)")
    }
}

// `Aes256Siv` needs `&mut self`; setting one up costs less than sharing one.
fn siv(key: &Secret) -> Aes256Siv {
    Aes256Siv::new_from_slice(key).expect("a 64-byte key")
}

fn seal(key: &Secret, headers: &[&[u8]], plain: &[u8]) -> Vec<u8> {
    siv(key)
        .encrypt(headers, plain)
        .expect("fewer than 127 headers")
}

fn open(key: &Secret, headers: &[&[u8]], sealed: &[u8]) -> Option<Vec<u8>> {
    siv(key).decrypt(headers, sealed).ok()
}

fn seal_randomized(key: &Secret, label: &[u8], plain: &[u8]) -> Vec<u8> {
    let mut out = random::bytes::<NONCE>().to_vec();
    let sealed = seal(key, &[label, &out], plain);
    out.extend_from_slice(&sealed);
    out
}

fn open_randomized(key: &Secret, label: &[u8], stored: &[u8]) -> Option<Vec<u8>> {
    let (nonce, sealed) = stored.split_at_checked(NONCE)?;
    open(key, &[label, nonce], sealed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::DataKey;

    fn cipher() -> NameCipher {
        let key = DataKey::from_bytes(&[1; 32]).unwrap();
        NameCipher::new(VolumeKeys::new(&[2; 16], &key))
    }

    #[test]
    fn names_belong_to_their_directory() {
        let (cipher, a, b) = (cipher(), DirId([1; 16]), DirId([2; 16]));
        let stored = cipher.seal_name(&a, b"secret.txt");
        assert_eq!(stored, cipher.seal_name(&a, b"secret.txt"));
        assert_ne!(stored, cipher.seal_name(&b, b"secret.txt"));
        assert_eq!(
            cipher.open_name(&a, stored.as_bytes()).unwrap(),
            b"secret.txt"
        );
        assert_eq!(cipher.open_name(&b, stored.as_bytes()), None);
        assert_eq!(cipher.open_name(&a, b"kmsfs.dir"), None);
        assert_eq!(cipher.open_name(&a, b""), None);
    }

    #[test]
    fn target_length_follows_from_the_stored_length() {
        let cipher = cipher();
        for len in [1, 2, 3, 4, 100, 255, 3000] {
            let target = vec![b'x'; len];
            let stored = cipher.seal_target(&target);
            assert_ne!(stored, cipher.seal_target(&target));
            assert_eq!(NameCipher::target_len(stored.len() as u64), len as u64);
            assert_eq!(cipher.open_target(stored.as_bytes()).unwrap(), target);
        }
    }

    #[test]
    fn xattr_values_belong_to_their_name() {
        let cipher = cipher();
        let stored = cipher.seal_xattr(b"user.a", b"value");
        assert_eq!(cipher.open_xattr(b"user.a", &stored).unwrap(), b"value");
        assert_eq!(cipher.open_xattr(b"user.b", &stored), None);
        let name = cipher.seal_xattr_name(b"user.a");
        assert_eq!(cipher.open_xattr_name(name.as_bytes()).unwrap(), b"user.a");
    }
}
