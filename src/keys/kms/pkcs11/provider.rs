//! The provider of keys in tokens.

use std::sync::OnceLock;
use std::time::Duration;

use cryptoki::object::{Attribute, AttributeType, KeyType, ObjectClass, ObjectHandle};
use cryptoki::session::Session;
use data_encoding::HEXLOWER;

use super::fault::Fault;
use super::sessions::Sessions;
use super::uri::{Pkcs11Uri, Wrapping};
use super::wrap;
use crate::crypto::DataKey;
use crate::keys::kms::retry::{self, DEFAULT_DEADLINE, Deadline};
use crate::keys::{KeyContext, KeyError, KeyProvider, PassphraseSource, WrappedKey};
use crate::types::KeyLen;

/// An AES key in a token. All keys of one label are its versions, told apart by
/// their ids; the greatest id, as a number, is the newest.
pub struct Pkcs11Provider {
    parsed: Pkcs11Uri,
    /// As users and volumes name it.
    uri: String,
    /// As wrapped keys name it.
    identity: String,
    time: Duration,
    sessions: Sessions,
    /// How new data keys are wrapped, once the token was asked.
    wrapping: OnceLock<Wrapping>,
}

impl Pkcs11Provider {
    /// Loads the module and gets the PIN, from the file that the URI names or
    /// else from `source`. The token may come later.
    ///
    /// # Errors
    /// `Configuration` about the module or the PIN.
    pub fn open(uri: &Pkcs11Uri, source: &PassphraseSource) -> Result<Self, KeyError> {
        Ok(Self {
            parsed: uri.clone(),
            uri: uri.to_string(),
            identity: uri.identity().to_string(),
            time: uri.deadline.unwrap_or(DEFAULT_DEADLINE),
            sessions: Sessions::new(uri, source)?,
            wrapping: OnceLock::new(),
        })
    }

    fn wrapping(&self) -> Result<Wrapping, KeyError> {
        if let Some(chosen) = self.parsed.wrapping.or(self.wrapping.get().copied()) {
            return Ok(chosen);
        }
        let mechanisms = self.sessions.mechanisms()?;
        let mut usable = Wrapping::ALL.into_iter();
        let best = usable.find(|wrapping| mechanisms.contains(&wrapping.mechanism()));
        let best = best.ok_or_else(|| KeyError::Configuration {
            detail: format!(
                "the token of {} has neither AES-GCM nor AES key wrap",
                self.identity
            ),
            hint: Some("wrapping data keys needs one of them: use another token".into()),
        })?;
        Ok(*self.wrapping.get_or_init(|| best))
    }

    fn call<T>(&self, action: impl Fn(&Session) -> Result<T, Fault>) -> Result<T, KeyError> {
        let deadline = Deadline::after(self.time);
        retry::until(deadline, || self.sessions.with(deadline, &action))
    }

    /// The keys that are versions of this one, with their ids, oldest first.
    fn versions(&self, session: &Session) -> Result<Vec<(Vec<u8>, ObjectHandle)>, Fault> {
        let fault = |error| self.sessions.fault(&error);
        let mut template = vec![
            Attribute::Class(ObjectClass::SECRET_KEY),
            Attribute::KeyType(KeyType::AES),
            Attribute::Token(true),
        ];
        template.extend(
            self.parsed
                .object
                .as_ref()
                .map(|label| Attribute::Label(label.clone().into_bytes())),
        );
        template.extend(self.parsed.id.clone().map(Attribute::Id));
        let mut versions = Vec::new();
        for handle in session.find_objects(&template).map_err(fault)? {
            let attributes = session
                .get_attributes(handle, &[AttributeType::Id])
                .map_err(fault)?;
            let id = attributes
                .into_iter()
                .find_map(|attribute| match attribute {
                    Attribute::Id(id) => Some(id),
                    _ => None,
                });
            versions.push((id.unwrap_or_default(), handle));
        }
        versions.sort_by(|(a, _), (b, _)| as_number(a).cmp(&as_number(b)));
        if versions.windows(2).any(|pair| pair[0].0 == pair[1].0) {
            return Err(Fault::of(KeyError::Configuration {
                detail: format!(
                    "the token has several keys {} of the same id",
                    self.identity
                ),
                hint: Some(
                    "give every version of a key an id (CKA_ID) of its own; the greatest is \
                     the newest"
                        .into(),
                ),
            }));
        }
        Ok(versions)
    }

    fn newest(&self, session: &Session) -> Result<(Vec<u8>, ObjectHandle), Fault> {
        let newest = self.versions(session)?.pop();
        newest.ok_or_else(|| self.missing("the token has no such AES key"))
    }

    fn version(&self, session: &Session, name: &str) -> Result<ObjectHandle, Fault> {
        let versions = self.versions(session)?;
        let found = versions
            .into_iter()
            .find(|(id, _)| HEXLOWER.encode(id) == name);
        match found {
            Some((_, handle)) => Ok(handle),
            None => Err(self.missing(&format!("the token has no such AES key of id {name:?}"))),
        }
    }

    fn missing(&self, problem: &str) -> Fault {
        Fault::of(KeyError::NotFound {
            key: self.identity.clone(),
            detail: problem.to_owned(),
        })
    }

    fn rejected(&self, problem: &str) -> KeyError {
        KeyError::Rejected {
            key: self.identity.clone(),
            detail: problem.to_owned(),
        }
    }

    /// Many tokens say `CKR_GENERAL_ERROR` of a wrapped key that does not
    /// authenticate. It was that if they can unwrap one just made.
    fn tell_apart(
        &self,
        session: &Session,
        key: ObjectHandle,
        wrapping: Wrapping,
        context: &KeyContext,
        fault: Fault,
    ) -> Fault {
        let probe = DataKey::random(KeyLen::Bits256);
        let works = wrap::wrap(session, key, wrapping, context, &probe)
            .and_then(|(iv, text)| wrap::unwrap(session, key, wrapping, context, &iv, &text));
        match works {
            Ok(Some(_)) => Fault::of(self.rejected(&fault.error.to_string())),
            _ => fault,
        }
    }
}

impl KeyProvider for Pkcs11Provider {
    fn uri(&self) -> &str {
        &self.uri
    }

    fn is_local(&self) -> bool {
        false
    }

    fn recognises(&self, wrapped: &WrappedKey) -> bool {
        Pkcs11Uri::parse(&wrapped.key_uri).is_ok_and(|uri| self.parsed.names_same_key(&uri))
    }

    fn generate(
        &self,
        context: &KeyContext,
        len: KeyLen,
    ) -> Result<(DataKey, WrappedKey), KeyError> {
        let key = DataKey::random(len);
        let wrapped = self.wrap(context, &key)?;
        Ok((key, wrapped))
    }

    fn wrap(&self, context: &KeyContext, key: &DataKey) -> Result<WrappedKey, KeyError> {
        let wrapping = self.wrapping()?;
        let (id, iv, ciphertext) = self.call(|session| {
            let (id, handle) = self.newest(session)?;
            let (iv, ciphertext) = wrap::wrap(session, handle, wrapping, context, key)
                .map_err(|error| self.sessions.fault(&error))?;
            Ok((id, iv, ciphertext))
        })?;
        Ok(WrappedKey {
            key_uri: self.identity.clone(),
            key_version: HEXLOWER.encode(&id),
            algorithm: wrapping.name().to_owned(),
            iv,
            ciphertext,
        })
    }

    fn unwrap(&self, context: &KeyContext, wrapped: &WrappedKey) -> Result<DataKey, KeyError> {
        if !self.recognises(wrapped) {
            return Err(KeyError::NotFound {
                key: wrapped.key_uri.clone(),
                detail: format!("this is key {}", self.identity),
            });
        }
        let wrapping = Wrapping::of_name(&wrapped.algorithm)
            .ok_or_else(|| self.rejected("it names an unknown algorithm"))?;
        let (iv, text) = (&wrapped.iv, &wrapped.ciphertext);
        let key = self.call(|session| {
            let handle = self.version(session, &wrapped.key_version)?;
            wrap::unwrap(session, handle, wrapping, context, iv, text).map_err(|error| {
                let fault = self.sessions.fault(&error);
                match fault.ambiguous {
                    true => self.tell_apart(session, handle, wrapping, context, fault),
                    false => fault,
                }
            })
        })?;
        key.ok_or_else(|| self.rejected("it is no data key, or one of another file"))
    }

    fn describe(&self) -> Result<Vec<(&'static str, String)>, KeyError> {
        let mut facts = self.sessions.describe()?;
        let versions = self.call(|session| self.versions(session))?;
        let ids = versions.iter().map(|(id, _)| HEXLOWER.encode(id));
        facts.push(("versions", ids.collect::<Vec<_>>().join(", ")));
        facts.push(("mechanism", self.wrapping()?.name().to_owned()));
        Ok(facts)
    }

    fn advice(&self, error: &KeyError) -> Option<String> {
        let text = match error {
            KeyError::NotFound { .. } => {
                "pkcs11-tool --list-objects shows the token's keys; the label and id must match, \
                 and the key must be an AES key"
            }
            KeyError::Disabled { .. } => {
                "the key's attributes must allow it to encrypt and decrypt (CKA_ENCRYPT, \
                 CKA_DECRYPT), or to wrap and unwrap"
            }
            KeyError::Denied { .. } => {
                "check the PIN before trying again: a token locks itself after a few wrong ones"
            }
            KeyError::Unavailable { .. } => {
                "pkcs11-tool --list-token-slots shows the tokens that the module sees; the \
                 token's label must match"
            }
            _ => return None,
        };
        Some(text.to_owned())
    }
}

/// An id as a big-endian number of any size, so that 9 comes before 10.
fn as_number(id: &[u8]) -> (usize, &[u8]) {
    let zeros = id.iter().take_while(|&&byte| byte == 0).count();
    let digits = &id[zeros..];
    (digits.len(), digits)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_ordered_as_numbers() {
        assert!(as_number(&[9]) < as_number(&[1, 0]));
        assert!(as_number(&[0, 9]) < as_number(&[10]));
        assert!(as_number(&[]) < as_number(&[1]));
    }
}
