//! Wrapping a data key with a key that never leaves the token.

use cryptoki::error::Error;
use cryptoki::mechanism::aead::GcmParams;
use cryptoki::mechanism::{Mechanism, MechanismType};
use cryptoki::object::{Attribute, AttributeType, KeyType, ObjectClass, ObjectHandle};
use cryptoki::session::Session;
use cryptoki::types::Ulong;
use zeroize::Zeroizing;

use super::uri::Wrapping;
use crate::crypto::{DataKey, random};
use crate::keys::KeyContext;
use crate::keys::kms::bound;

const IV: usize = 12;
const TAG: usize = 16;
/// What AES key wrap adds.
const CHECK: usize = 8;

impl Wrapping {
    /// Its mechanism.
    pub(super) fn mechanism(self) -> MechanismType {
        match self {
            Self::Gcm => MechanismType::AES_GCM,
            Self::KeyWrap => MechanismType::AES_KEY_WRAP,
            Self::KeyWrapPad => MechanismType::AES_KEY_WRAP_PAD,
        }
    }

    fn without_parameters(self) -> Option<Mechanism<'static>> {
        match self {
            Self::Gcm => None,
            Self::KeyWrap => Some(Mechanism::AesKeyWrap),
            Self::KeyWrapPad => Some(Mechanism::AesKeyWrapPad),
        }
    }
}

/// Wraps `key`: the IV, if there is one, and the wrapped key.
pub(super) fn wrap(
    session: &Session,
    with: ObjectHandle,
    wrapping: Wrapping,
    context: &KeyContext,
    key: &DataKey,
) -> Result<(Vec<u8>, Vec<u8>), Error> {
    if let Some(mechanism) = wrapping.without_parameters() {
        let payload = bound::bind(key, context);
        let object = session.create_object(&[
            Attribute::Class(ObjectClass::SECRET_KEY),
            Attribute::KeyType(KeyType::GENERIC_SECRET),
            Attribute::Token(false),
            Attribute::Private(true),
            Attribute::Sensitive(false),
            Attribute::Extractable(true),
            Attribute::Value(payload.to_vec()),
        ])?;
        let wrapped = session.wrap_key(&mechanism, with, object);
        let _ = session.destroy_object(object);
        return Ok((Vec::new(), wrapped?));
    }
    let mut iv: [u8; IV] = random::bytes();
    let aad = context.aad();
    let mechanism = Mechanism::AesGcm(GcmParams::new(&mut iv, &aad, tag_bits()?)?);
    let ciphertext = session.encrypt(&mechanism, with, key.expose())?;
    drop(mechanism);
    // Some tokens insist on an IV of their own, and leave it here.
    Ok((iv.to_vec(), ciphertext))
}

/// Unwraps what [`wrap`] made; `None` if it cannot be that, or is bound to
/// another context.
pub(super) fn unwrap(
    session: &Session,
    with: ObjectHandle,
    wrapping: Wrapping,
    context: &KeyContext,
    iv: &[u8],
    ciphertext: &[u8],
) -> Result<Option<DataKey>, Error> {
    if let Some(mechanism) = wrapping.without_parameters() {
        let key = ciphertext.len().checked_sub(CHECK + bound::BINDING);
        if !iv.is_empty() || !matches!(key, Some(16 | 24 | 32)) {
            return Ok(None);
        }
        let object = session.unwrap_key(
            &mechanism,
            with,
            ciphertext,
            &[
                Attribute::Class(ObjectClass::SECRET_KEY),
                Attribute::KeyType(KeyType::GENERIC_SECRET),
                Attribute::Token(false),
                Attribute::Private(true),
                Attribute::Sensitive(false),
                Attribute::Extractable(true),
            ],
        )?;
        let attributes = session.get_attributes(object, &[AttributeType::Value]);
        let _ = session.destroy_object(object);
        let mut found = None;
        for attribute in attributes? {
            if let Attribute::Value(payload) = attribute {
                found = bound::unbind(&Zeroizing::new(payload), context);
            }
        }
        return Ok(found);
    }
    if iv.len() != IV || !matches!(ciphertext.len().checked_sub(TAG), Some(16 | 24 | 32)) {
        return Ok(None);
    }
    let mut iv = iv.to_vec();
    let aad = context.aad();
    let mechanism = Mechanism::AesGcm(GcmParams::new(&mut iv, &aad, tag_bits()?)?);
    let plain = Zeroizing::new(session.decrypt(&mechanism, with, ciphertext)?);
    Ok(DataKey::from_bytes(&plain))
}

fn tag_bits() -> Result<Ulong, Error> {
    Ulong::try_from(TAG * 8)
}
