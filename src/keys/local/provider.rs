//! Wrapping and unwrapping data keys under a key of the keystore.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::RwLock;

use super::document::{Document, State};
use super::files::Signature;
use super::keystore::Keystore;
use super::protection::Protection;
use super::wrap;
use crate::crypto::DataKey;
use crate::keys::passphrase::PassphraseSource;
use crate::keys::uri::{KeyUri, KeyUuid, LocalUri};
use crate::keys::{KeyContext, KeyError, KeyProvider, WrappedKey};
use crate::sys::clock::{BootClock, Clock};
use crate::sys::secret::Secret;

/// How long a key's state is believed before its file is looked at again.
const BELIEVED: Duration = Duration::from_secs(1);

/// One key of the keystore, unlocked.
///
/// It follows its file: a key that is disabled, rotated or deleted while a
/// volume is mounted is so for the mount within a second.
pub struct LocalProvider {
    keystore: Keystore,
    /// As users and volumes name it, with the keystore if they named one.
    uri: String,
    /// As wrapped keys name it.
    identity: KeyUri,
    /// The same as text, and what associated data has of it: once a file each.
    identity_text: String,
    aad_text: String,
    name: String,
    uuid: KeyUuid,
    clock: Arc<dyn Clock>,
    /// When to look at the file again, in milliseconds of `clock`.
    next_look: AtomicU64,
    state: RwLock<Arc<Unlocked>>,
    warned: AtomicBool,
}

/// What the key's file said when it was last read.
struct Unlocked {
    signature: Option<Signature>,
    document: Result<Document, KeyError>,
    protector: Arc<Secret>,
    /// The versions' keys; those that the protector does not open are missing.
    keys: BTreeMap<u32, Arc<Secret>>,
}

impl LocalProvider {
    /// Unlocks the key that `uri` names. `NotFound` if there is none, or only a
    /// later one of the same name.
    pub fn open(uri: &LocalUri, source: &PassphraseSource) -> Result<Self, KeyError> {
        Self::open_with_clock(uri, source, Arc::new(BootClock))
    }

    fn open_with_clock(
        uri: &LocalUri,
        source: &PassphraseSource,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, KeyError> {
        let keystore = Keystore::of(uri)?;
        let (document, signature) = keystore.load_signed(&uri.name)?;
        if let Some(wanted) = uri.uuid {
            require_uuid(&document, wanted)?;
        }
        let protector = Arc::new(keystore.unlock(&document, source)?);
        let resolved = LocalUri {
            uuid: Some(document.uuid),
            ..uri.clone()
        };
        let identity = KeyUri::Local(resolved.identity());
        Ok(Self {
            uri: resolved.to_string(),
            identity_text: identity.to_string(),
            aad_text: format!("&kmsfs:local-key={}&kmsfs:version=", document.uuid),
            identity,
            name: uri.name.clone(),
            uuid: document.uuid,
            next_look: AtomicU64::new(millis(clock.now() + BELIEVED)),
            clock,
            state: RwLock::new(Arc::new(Unlocked {
                signature: Some(signature),
                keys: unlock_versions(&document, &protector, &BTreeMap::new()),
                document: Ok(document),
                protector,
            })),
            keystore,
            warned: AtomicBool::new(false),
        })
    }

    /// What the file says now, at most [`BELIEVED`] old.
    fn current(&self) -> Arc<Unlocked> {
        let now = self.clock.now();
        let due = self.next_look.load(Ordering::Relaxed);
        let next = millis(now + BELIEVED);
        let mine = millis(now) >= due
            && self
                .next_look
                .compare_exchange(due, next, Ordering::Relaxed, Ordering::Relaxed)
                .is_ok();
        if mine {
            let known = self.state.read().signature;
            let found = Signature::at(&self.keystore.path_of(&self.name)).ok();
            if found.is_none() || found != known {
                self.reload();
            }
        }
        Arc::clone(&self.state.read())
    }

    fn reload(&self) {
        let before = Arc::clone(&self.state.read());
        let loaded = self
            .keystore
            .load_signed(&self.name)
            .and_then(|(document, signature)| {
                require_uuid(&document, self.uuid)?;
                Ok((document, signature))
            });
        let after = match loaded {
            Ok((document, signature)) => {
                let protector = self.protector_of(&document, &before);
                Unlocked {
                    signature: Some(signature),
                    keys: unlock_versions(&document, &protector, &before.keys),
                    document: Ok(document),
                    protector,
                }
            }
            Err(error) => {
                if before.document.is_ok() {
                    log::warn!("{error}");
                }
                // The keys stay: the file may come back, as on a network home.
                Unlocked {
                    signature: None,
                    document: Err(error),
                    protector: Arc::clone(&before.protector),
                    keys: before.keys.clone(),
                }
            }
        };
        *self.state.write() = Arc::new(after);
    }

    /// A key file can be read again when the protection changed; a passphrase
    /// cannot be asked for, so the old one stays.
    fn protector_of(&self, document: &Document, before: &Unlocked) -> Arc<Secret> {
        let changed = match &before.document {
            Ok(known) => known.protection != document.protection,
            Err(_) => true,
        };
        if changed && matches!(document.protection, Protection::Keyfile { .. }) {
            match self
                .keystore
                .unlock(document, &PassphraseSource::Unattended)
            {
                Ok(protector) => return Arc::new(protector),
                Err(error) => log::warn!("{error}"),
            }
        }
        Arc::clone(&before.protector)
    }

    /// The newest version that may be used and that this process can open.
    fn newest(&self) -> Result<(u32, Arc<Secret>), KeyError> {
        let state = self.current();
        let document = state.document.as_ref().map_err(Clone::clone)?;
        document.require_enabled()?;
        let enabled = || {
            let newest_first = document.versions.iter().rev();
            newest_first.filter(|version| version.state == State::Enabled)
        };
        let newest = enabled().next().ok_or_else(|| KeyError::Disabled {
            key: self.identity_text.clone(),
            detail: "all its versions are disabled".into(),
        })?;
        let usable = enabled().find_map(|version| {
            let key = state.keys.get(&version.number)?;
            Some((version.number, Arc::clone(key)))
        });
        let (number, key) = usable.ok_or_else(|| document.wrong_protector())?;
        if number != newest.number && !self.warned.swap(true, Ordering::Relaxed) {
            log::warn!(
                "key {} was protected anew; version {} is used until the volume is mounted again",
                self.identity_text,
                number
            );
        }
        Ok((number, key))
    }

    /// The version that a wrapped key says it was wrapped under.
    fn version(&self, text: &str) -> Result<(u32, Arc<Secret>), KeyError> {
        let state = self.current();
        let document = state.document.as_ref().map_err(Clone::clone)?;
        document.require_enabled()?;
        let key = || self.identity_text.clone();
        let known = text
            .parse()
            .ok()
            .and_then(|number| document.version(number));
        let version = known.ok_or_else(|| KeyError::NotFound {
            key: key(),
            detail: format!("it has no version {text:?}"),
        })?;
        if version.state == State::Disabled {
            return Err(KeyError::Disabled {
                key: key(),
                detail: format!("its version {} was disabled by its owner", version.number),
            });
        }
        let secret = state.keys.get(&version.number);
        let secret = secret.ok_or_else(|| document.wrong_protector())?;
        Ok((version.number, Arc::clone(secret)))
    }

    fn aad(&self, context: &KeyContext, version: u32) -> Vec<u8> {
        let mut aad = context.aad();
        aad.extend_from_slice(self.aad_text.as_bytes());
        aad.extend_from_slice(version.to_string().as_bytes());
        aad
    }

    fn rejected(&self, detail: &str) -> KeyError {
        KeyError::Rejected {
            key: self.identity_text.clone(),
            detail: detail.into(),
        }
    }
}

impl KeyProvider for LocalProvider {
    fn uri(&self) -> &str {
        &self.uri
    }

    fn is_local(&self) -> bool {
        true
    }

    fn recognises(&self, wrapped: &WrappedKey) -> bool {
        wrapped.key_uri == self.identity_text || self.identity.names_same_key(&wrapped.key_uri)
    }

    fn generate(
        &self,
        context: &KeyContext,
        len: crate::types::KeyLen,
    ) -> Result<(DataKey, WrappedKey), KeyError> {
        let key = DataKey::random(len);
        let wrapped = self.wrap(context, &key)?;
        Ok((key, wrapped))
    }

    fn wrap(&self, context: &KeyContext, key: &DataKey) -> Result<WrappedKey, KeyError> {
        let (version, secret) = self.newest()?;
        Ok(WrappedKey {
            key_uri: self.identity_text.clone(),
            key_version: version.to_string(),
            algorithm: String::new(),
            iv: Vec::new(),
            ciphertext: wrap::seal(&secret, &self.aad(context, version), key.expose()),
        })
    }

    fn unwrap(&self, context: &KeyContext, wrapped: &WrappedKey) -> Result<DataKey, KeyError> {
        if !self.recognises(wrapped) {
            return Err(KeyError::NotFound {
                key: wrapped.key_uri.clone(),
                detail: format!("this is key {}", self.identity_text),
            });
        }
        let (version, secret) = self.version(&wrapped.key_version)?;
        let plain = wrap::open(&secret, &self.aad(context, version), &wrapped.ciphertext)
            .ok_or_else(|| self.rejected("it does not authenticate in this place"))?;
        DataKey::from_bytes(&plain).ok_or_else(|| self.rejected("it is not a data key"))
    }
}

fn require_uuid(document: &Document, wanted: KeyUuid) -> Result<(), KeyError> {
    if document.uuid == wanted {
        return Ok(());
    }
    Err(KeyError::NotFound {
        key: format!("local:{}#{wanted}", document.name),
        detail: format!("the keystore has a different key, {}", document.uri()),
    })
}

fn unlock_versions(
    document: &Document,
    protector: &Secret,
    known: &BTreeMap<u32, Arc<Secret>>,
) -> BTreeMap<u32, Arc<Secret>> {
    let unlock = |version: &super::document::KeyVersion| {
        // A version's key never changes, only what wraps it.
        let key = match known.get(&version.number) {
            Some(key) => Arc::clone(key),
            None => Arc::new(version.open(document.uuid, protector)?),
        };
        Some((version.number, key))
    };
    document.versions.iter().filter_map(unlock).collect()
}

fn millis(time: Duration) -> u64 {
    time.as_millis() as u64
}

#[cfg(test)]
#[path = "provider_tests.rs"]
mod tests;
