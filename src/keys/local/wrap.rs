//! AES-256-GCM around keys of the embedded provider: `nonce ‖ ciphertext ‖ tag`.

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use zeroize::Zeroizing;

use crate::crypto::random;
use crate::sys::secret::Secret;

/// Length of every wrapping key.
pub(crate) const KEY_LEN: usize = 32;
/// Bytes that wrapping adds.
pub(crate) const OVERHEAD: usize = NONCE_LEN + 16;

/// Encrypts `plain` under a 32-byte `key` with a random nonce.
pub(crate) fn seal(key: &Secret, aad: &[u8], plain: &[u8]) -> Vec<u8> {
    let nonce: [u8; NONCE_LEN] = random::bytes();
    // Made at its final size: growing would leave a copy of the key behind.
    let mut body = Vec::with_capacity(plain.len() + 16);
    body.extend_from_slice(plain);
    cipher(key)
        .seal_in_place_append_tag(
            Nonce::assume_unique_for_key(nonce),
            Aad::from(aad),
            &mut body,
        )
        .expect("a key is far below the cipher's length limit");
    [&nonce[..], &body].concat()
}

/// Decrypts what [`seal`] made; `None` if it was not made with this key and
/// this associated data.
pub(crate) fn open(key: &Secret, aad: &[u8], sealed: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
    if sealed.len() < OVERHEAD {
        return None;
    }
    let (nonce, body) = sealed.split_at(NONCE_LEN);
    let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
    let mut body = Zeroizing::new(body.to_vec());
    let length = cipher(key)
        .open_in_place(nonce, Aad::from(aad), &mut body)
        .ok()?
        .len();
    body.truncate(length);
    Some(body)
}

fn cipher(key: &Secret) -> LessSafeKey {
    let unbound = UnboundKey::new(&AES_256_GCM, key).expect("wrapping keys are 32 bytes");
    LessSafeKey::new(unbound)
}

#[cfg(test)]
mod tests {
    use super::*;
    use aes_gcm::aead::{Aead, KeyInit, Payload};

    #[test]
    fn another_implementation_agrees() {
        let key = Secret::copy_of(&[7; KEY_LEN]);
        let sealed = seal(&key, b"context", b"0123456789abcdef");
        assert_eq!(sealed.len(), 16 + OVERHEAD);
        let (nonce, body) = sealed.split_at(NONCE_LEN);
        let other = aes_gcm::Aes256Gcm::new_from_slice(&[7; KEY_LEN]).unwrap();
        let payload = Payload {
            msg: body,
            aad: b"context",
        };
        let nonce: [u8; NONCE_LEN] = nonce.try_into().unwrap();
        assert_eq!(
            other.decrypt(&nonce.into(), payload).unwrap(),
            b"0123456789abcdef"
        );
    }

    #[test]
    fn every_changed_bit_is_noticed() {
        let key = Secret::copy_of(&[1; KEY_LEN]);
        let sealed = seal(&key, b"a", &[9; 16]);
        assert_eq!(open(&key, b"a", &sealed).unwrap().as_slice(), [9; 16]);
        for bit in 0..sealed.len() * 8 {
            let mut bad = sealed.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(open(&key, b"a", &bad).is_none(), "bit {bit}");
        }
        assert!(open(&key, b"b", &sealed).is_none());
        assert!(open(&Secret::copy_of(&[2; KEY_LEN]), b"a", &sealed).is_none());
        for length in 0..sealed.len() {
            assert!(open(&key, b"a", &sealed[..length]).is_none());
        }
        assert_ne!(seal(&key, b"a", &[9; 16]), sealed, "nonces are random");
    }
}
