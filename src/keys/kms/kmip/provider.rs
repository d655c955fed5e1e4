//! The provider of keys at KMIP servers.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

use super::fault;
use super::message::Refusal;
use super::operation::{self, Operation, TAG};
use super::pool::Pool;
use super::server::Server;
use super::tls::Files;
use super::ttlv::{Nonsense, Reader};
use super::uri::{KeyName, KmipUri};
use super::versions::Versions;
use crate::crypto::{DataKey, random};
use crate::keys::kms::printable::printable;
use crate::keys::kms::retry::{DEFAULT_DEADLINE, Deadline};
use crate::keys::{KeyContext, KeyError, KeyProvider, WrappedKey};
use crate::types::KeyLen;

/// The only way of wrapping.
const ALGORITHM: &str = "aes-gcm";
const IV: usize = 12;
/// What a server that makes the IV itself may choose.
const LONGEST_IV: usize = 16;
const LONGEST_ID: usize = 255;
/// Most wrapped keys in one call: an answer has about 300 bytes for each.
const LARGEST_BATCH: usize = 64;

/// An AES key of a KMIP server, which encrypts data keys with AES-GCM.
pub struct KmipProvider {
    uri: KmipUri,
    /// As users and volumes name it.
    shown: String,
    /// As wrapped keys name it.
    identity: String,
    time: Duration,
    server: Server,
    /// Of keys that are named by a name.
    versions: Option<Versions>,
    /// Whether the server was seen to refuse another context.
    binds: AtomicBool,
    /// Held by who finds that out.
    checking: Mutex<()>,
}

/// A wrapped key, taken apart.
struct Parts<'a> {
    id: &'a str,
    ciphertext: &'a [u8],
    tag: &'a [u8],
    iv: &'a [u8],
    aad: Vec<u8>,
}

impl Parts<'_> {
    fn operation(&self) -> Operation<'_> {
        Operation::Decrypt {
            id: self.id,
            ciphertext: self.ciphertext,
            iv: self.iv,
            aad: &self.aad,
            tag: self.tag,
        }
    }
}

impl KmipProvider {
    /// Opens a key; certificates that the URI does not name come from the
    /// environment. Nothing is sent before the first call.
    ///
    /// # Errors
    /// `Configuration` about the certificates.
    pub fn open(uri: &KmipUri) -> Result<Self, KeyError> {
        let identity = uri.identity().to_string();
        let files = Files::find(uri)?;
        let pool = Pool::new(uri.server.clone(), uri.port(), files, identity.clone())?;
        let versions = match &uri.key {
            KeyName::Name(name) => Some(Versions::new(name.clone(), identity.clone())),
            KeyName::Id(_) => None,
        };
        Ok(Self {
            shown: uri.to_string(),
            time: uri.deadline.unwrap_or(DEFAULT_DEADLINE),
            server: Server::new(pool, identity.clone(), uri.version),
            versions,
            binds: AtomicBool::new(false),
            checking: Mutex::new(()),
            identity,
            uri: uri.clone(),
        })
    }

    fn deadline(&self) -> Deadline {
        Deadline::after(self.time)
    }

    /// The id of the key to wrap with.
    fn current(&self, deadline: Deadline) -> Result<String, KeyError> {
        match (&self.uri.key, &self.versions) {
            (KeyName::Id(id), _) => Ok(id.clone()),
            (KeyName::Name(_), Some(versions)) => versions.newest(&self.server, deadline),
            (KeyName::Name(_), None) => Err(self.malformed("the key has no versions")),
        }
    }

    fn encrypt(
        &self,
        id: &str,
        context: &KeyContext,
        key: &DataKey,
        deadline: Deadline,
    ) -> Result<WrappedKey, KeyError> {
        let proposed: [u8; IV] = random::bytes();
        let operation = Operation::Encrypt {
            id,
            plaintext: key.expose(),
            iv: &proposed,
            aad: &context.aad(),
        };
        let outcome = self.server.call(&operation, deadline, |payload| {
            let made = operation::encrypted(payload)?;
            let iv = made.iv.unwrap_or(&proposed);
            if made.ciphertext.len() != key.expose().len() || made.tag.len() != TAG {
                return Err(Nonsense("the wrapped key or its tag has the wrong length"));
            }
            if !(IV..=LONGEST_IV).contains(&iv.len()) {
                return Err(Nonsense("the IV has the wrong length"));
            }
            Ok((iv.to_vec(), [made.ciphertext, made.tag].concat()))
        })?;
        let (iv, ciphertext) =
            outcome.map_err(|refusal| self.refused(id, &refusal, &operation, deadline))?;
        Ok(WrappedKey {
            key_uri: self.identity.clone(),
            key_version: id.to_owned(),
            algorithm: ALGORITHM.to_owned(),
            iv,
            ciphertext,
        })
    }

    /// Wraps, and before the first wrapped key is given out, sees that the server
    /// refuses it for another file. Some ignore what they do not know.
    fn wrap_by(
        &self,
        context: &KeyContext,
        key: &DataKey,
        deadline: Deadline,
    ) -> Result<WrappedKey, KeyError> {
        let id = self.current(deadline)?;
        let wrapped = self.encrypt(&id, context, key, deadline)?;
        if !self.binds.load(Ordering::Relaxed) {
            // One of many callers finds out, unless that takes too long.
            let _turn = self.checking.try_lock_for(deadline.left());
            if !self.binds.load(Ordering::Relaxed) {
                self.see_that_it_binds(context, &wrapped, deadline)?;
            }
        }
        Ok(wrapped)
    }

    fn see_that_it_binds(
        &self,
        context: &KeyContext,
        wrapped: &WrappedKey,
        deadline: Deadline,
    ) -> Result<(), KeyError> {
        let parts = Parts {
            aad: b"another context".to_vec(),
            ..self.parts(context, wrapped)?
        };
        let operation = parts.operation();
        let outcome = self.server.call(&operation, deadline, |_| Ok(()))?;
        let Err(refusal) = outcome else {
            return Err(fault::unbound(&self.identity));
        };
        if !refusal.is_ambiguous() {
            match self.refused(parts.id, &refusal, &operation, deadline) {
                KeyError::Rejected { .. } => {}
                error => return Err(error),
            }
        }
        self.binds.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// Takes a wrapped key apart; an error if it cannot be one of this key's.
    fn parts<'a>(
        &'a self,
        context: &KeyContext,
        wrapped: &'a WrappedKey,
    ) -> Result<Parts<'a>, KeyError> {
        if !self.recognises(wrapped) {
            return Err(KeyError::NotFound {
                key: wrapped.key_uri.clone(),
                detail: format!("this is key {}", self.identity),
            });
        }
        if wrapped.algorithm != ALGORITHM {
            return Err(self.rejected("it names an unknown algorithm"));
        }
        let id = match &self.uri.key {
            KeyName::Id(id) => id,
            KeyName::Name(_) => &wrapped.key_version,
        };
        if id.is_empty() || id.len() > LONGEST_ID {
            return Err(self.rejected("it names no key of the server"));
        }
        let length = wrapped.ciphertext.len().checked_sub(TAG);
        let length = length.filter(|length| [16, 24, 32].contains(length));
        let length = length.ok_or_else(|| self.rejected("it has the wrong length"))?;
        if !(IV..=LONGEST_IV).contains(&wrapped.iv.len()) {
            return Err(self.rejected("its IV has the wrong length"));
        }
        let (ciphertext, tag) = wrapped.ciphertext.split_at(length);
        Ok(Parts {
            id,
            ciphertext,
            tag,
            iv: &wrapped.iv,
            aad: context.aad(),
        })
    }

    /// The same, and sees that its key is a version of ours.
    fn checked_parts<'a>(
        &'a self,
        context: &KeyContext,
        wrapped: &'a WrappedKey,
        deadline: Deadline,
    ) -> Result<Parts<'a>, KeyError> {
        let parts = self.parts(context, wrapped)?;
        if let Some(versions) = &self.versions {
            versions.check(&self.server, parts.id, deadline)?;
        }
        Ok(parts)
    }

    fn decrypt(&self, parts: &Parts<'_>, deadline: Deadline) -> Result<DataKey, KeyError> {
        let operation = parts.operation();
        match self.server.call(&operation, deadline, data_key)? {
            Ok(key) => Ok(key),
            Err(refusal) if refusal.is_ambiguous() => {
                let works = self.works(parts.id, deadline);
                Err(self.told_apart(works, &refusal))
            }
            Err(refusal) => Err(self.refused(parts.id, &refusal, &operation, deadline)),
        }
    }

    /// Whether the key unwraps what it just wrapped. An error is one that has
    /// nothing to do with what is unwrapped.
    fn works(&self, id: &str, deadline: Deadline) -> Result<(), KeyError> {
        let context = KeyContext {
            volume: crate::types::VolumeId(random::bytes()),
            file: crate::types::FileId(random::bytes()),
        };
        let probe = DataKey::random(KeyLen::Bits256);
        let wrapped = self.encrypt(id, &context, &probe, deadline)?;
        let parts = Parts {
            id,
            ..self.parts(&context, &wrapped)?
        };
        let operation = parts.operation();
        let outcome = self.server.call(&operation, deadline, data_key)?;
        let refused = |refusal: Refusal| self.refused(id, &refusal, &operation, deadline);
        outcome.map(drop).map_err(refused)
    }

    /// A refusal that may be of the wrapped key or the server's failure is of the
    /// wrapped key if the server works otherwise.
    fn told_apart(&self, works: Result<(), KeyError>, refusal: &Refusal) -> KeyError {
        match works {
            Ok(()) => self.rejected(&format!(
                "the server cannot decrypt it, but others; reason {:#x}",
                refusal.reason
            )),
            Err(error) => error,
        }
    }

    /// The refusal as an error. Where it may be for the key's state, the server
    /// is asked for that: many do not tell "not active" from "not allowed".
    fn refused(
        &self,
        id: &str,
        refusal: &Refusal,
        operation: &Operation<'_>,
        deadline: Deadline,
    ) -> KeyError {
        if refusal.may_be_state()
            && let Ok(Ok(found)) = self.server.attributes(id, deadline)
            && let Some(error) = found
                .state
                .and_then(|state| fault::about_state(state, &self.identity))
        {
            return error;
        }
        refusal.about(&self.identity, operation)
    }

    /// As [`KeyProvider::unwrap_many`], for at most one batch.
    fn unwrap_batch(&self, wrapped: &[(KeyContext, WrappedKey)]) -> Vec<Result<DataKey, KeyError>> {
        let deadline = self.deadline();
        let parts: Vec<_> = wrapped
            .iter()
            .map(|(context, wrapped)| self.checked_parts(context, wrapped, deadline))
            .collect();
        let sent: Vec<&Parts<'_>> = parts.iter().filter_map(|part| part.as_ref().ok()).collect();
        let operations: Vec<_> = sent.iter().map(|part| part.operation()).collect();
        let outcomes = match operations.len() {
            0 | 1 => Ok(None),
            _ => self.server.call_many(&operations, deadline, data_key),
        };
        // Of each key that a refusal leaves unclear, asked once.
        let mut works: HashMap<&str, Result<(), KeyError>> = HashMap::new();
        let mut opened = match outcomes {
            Ok(None) => {
                let one_by_one = sent.iter().map(|part| self.decrypt(part, self.deadline()));
                one_by_one.collect::<Vec<_>>()
            }
            Err(error) => sent.iter().map(|_| Err(error.clone())).collect(),
            Ok(Some(outcomes)) => {
                let each = sent.iter().zip(outcomes).zip(&operations);
                each.map(|((part, outcome), operation)| match outcome {
                    Ok(key) => Ok(key),
                    Err(refusal) if refusal.is_ambiguous() => {
                        let works = works
                            .entry(part.id)
                            .or_insert_with(|| self.works(part.id, deadline));
                        Err(self.told_apart(works.clone(), &refusal))
                    }
                    Err(refusal) => Err(self.refused(part.id, &refusal, operation, deadline)),
                })
                .collect()
            }
        }
        .into_iter();
        let results = parts.iter().map(|part| match part {
            Ok(_) => opened
                .next()
                .unwrap_or_else(|| Err(self.malformed("there are too few answers"))),
            Err(error) => Err(error.clone()),
        });
        results.collect()
    }

    fn rejected(&self, problem: &str) -> KeyError {
        KeyError::Rejected {
            key: self.identity.clone(),
            detail: problem.to_owned(),
        }
    }

    fn malformed(&self, problem: &str) -> KeyError {
        KeyError::Malformed {
            key: self.identity.clone(),
            detail: problem.to_owned(),
        }
    }
}

fn data_key(payload: Reader<'_>) -> Result<DataKey, Nonsense> {
    let bytes = operation::decrypted(payload)?;
    DataKey::from_bytes(bytes).ok_or(Nonsense("there is no data key in it"))
}

impl KeyProvider for KmipProvider {
    fn uri(&self) -> &str {
        &self.shown
    }

    fn is_local(&self) -> bool {
        false
    }

    fn recognises(&self, wrapped: &WrappedKey) -> bool {
        KmipUri::parse(&wrapped.key_uri).is_ok_and(|theirs| self.uri.names_same_key(&theirs))
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
        self.wrap_by(context, key, self.deadline())
    }

    fn unwrap(&self, context: &KeyContext, wrapped: &WrappedKey) -> Result<DataKey, KeyError> {
        let deadline = self.deadline();
        let parts = self.checked_parts(context, wrapped, deadline)?;
        self.decrypt(&parts, deadline)
    }

    fn batch(&self) -> usize {
        LARGEST_BATCH
    }

    fn unwrap_many(&self, wrapped: &[(KeyContext, WrappedKey)]) -> Vec<Result<DataKey, KeyError>> {
        let batches = wrapped.chunks(LARGEST_BATCH);
        batches.flat_map(|batch| self.unwrap_batch(batch)).collect()
    }

    fn rewrap(&self, context: &KeyContext, wrapped: &WrappedKey) -> Result<WrappedKey, KeyError> {
        let deadline = self.deadline();
        let parts = self.checked_parts(context, wrapped, deadline)?;
        let key = self.decrypt(&parts, deadline)?;
        self.wrap_by(context, &key, deadline)
    }

    fn describe(&self) -> Result<Vec<(&'static str, String)>, KeyError> {
        let deadline = self.deadline();
        let mut facts = Vec::new();
        let query = self
            .server
            .call(&Operation::Query, deadline, operation::vendor)?;
        facts.extend(
            query
                .ok()
                .flatten()
                .map(|vendor| ("server", printable(&vendor))),
        );
        facts.push((
            "protocol",
            format!("KMIP {}", self.server.version(deadline)?),
        ));
        let id = self.current(deadline)?;
        if let Ok(found) = self.server.attributes(&id, deadline)? {
            facts.extend(found.state.map(|state| ("state", format!("{state:?}"))));
        }
        facts.push(("key id", printable(&id)));
        Ok(facts)
    }

    fn advice(&self, error: &KeyError) -> Option<String> {
        let text = match error {
            KeyError::NotFound { .. } => {
                "the key must be an AES key of this server that the client's certificate may \
                 use; name it by its unique identifier, or by name=NAME"
            }
            KeyError::Disabled { .. } => {
                "the key's state must be Active; Activate makes it so once, and what was revoked \
                 stays so"
            }
            KeyError::Denied { .. } => {
                "the server must take the client's certificate, and let its holder Locate the \
                 key, Get its Attributes, Encrypt and Decrypt with it; the key's Cryptographic \
                 Usage Mask must have Encrypt and Decrypt"
            }
            KeyError::Unavailable { .. } => "see that the server is up and reachable",
            _ => return None,
        };
        Some(text.to_owned())
    }
}
