//! Data keys for services that wrap bytes without associated data: what they
//! are bound to goes into the wrapped payload, and is compared when it is back.

use aws_lc_rs::constant_time::verify_slices_are_equal;
use zeroize::Zeroizing;

use crate::crypto::{DataKey, random, sha256};
use crate::keys::KeyContext;

const SALT: usize = 16;
const DIGEST: usize = 32;
/// What a payload has besides the key.
pub(super) const BINDING: usize = SALT + DIGEST;

/// The payload to wrap: the key, random bytes, since AES key wrap has none of its
/// own, and SHA-256 of these and [`KeyContext::aad`].
pub(super) fn bind(key: &DataKey, context: &KeyContext) -> Zeroizing<Vec<u8>> {
    let salt: [u8; SALT] = random::bytes();
    let mut payload = Zeroizing::new(Vec::with_capacity(key.expose().len() + BINDING));
    payload.extend_from_slice(key.expose());
    payload.extend_from_slice(&salt);
    payload.extend_from_slice(&digest(&salt, context));
    payload
}

/// The key in a payload; `None` if it is bound to something else.
pub(super) fn unbind(payload: &[u8], context: &KeyContext) -> Option<DataKey> {
    let (key, binding) = payload.split_at_checked(payload.len().checked_sub(BINDING)?)?;
    let (salt, found) = binding.split_at(SALT);
    verify_slices_are_equal(found, &digest(salt, context)).ok()?;
    DataKey::from_bytes(key)
}

fn digest(salt: &[u8], context: &KeyContext) -> [u8; DIGEST] {
    sha256(&[salt, &context.aad()].concat())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::testing::context;
    use crate::types::KeyLen;

    #[test]
    fn a_key_comes_back_for_its_own_context_only() {
        for len in [KeyLen::Bits128, KeyLen::Bits192, KeyLen::Bits256] {
            let key = DataKey::random(len);
            let payload = bind(&key, &context(1));
            assert_eq!(payload.len() % 8, 0, "AES key wrap takes whole half-blocks");
            let back = unbind(&payload, &context(1)).unwrap();
            assert_eq!(back.expose(), key.expose());
            assert!(unbind(&payload, &context(2)).is_none());
            assert_ne!(payload, bind(&key, &context(1)));
            assert!(unbind(&payload[1..], &context(1)).is_none());
        }
        assert!(unbind(&[0; BINDING - 1], &context(1)).is_none());
        assert!(unbind(&[0; BINDING + 16], &context(1)).is_none());
    }
}
