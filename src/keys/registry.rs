//! From key URIs to providers.

use std::path::PathBuf;
use std::sync::Arc;

use crate::crypto::DataKey;
use crate::keys::local::{Keystore, LocalProvider};
use crate::keys::passphrase::PassphraseSource;
use crate::keys::ring::{KeyRing, most_informative};
use crate::keys::uri::{KeyUri, LocalUri};
use crate::keys::{KeyContext, KeyError, KeyProvider, WrappedKey};
use crate::types::KeyLen;

/// Opens the provider of an existing key.
pub fn open_provider(
    uri: &str,
    source: &PassphraseSource,
) -> Result<Arc<dyn KeyProvider>, KeyError> {
    match KeyUri::parse(uri)? {
        KeyUri::Local(local) => match LocalProvider::open(&local, source) {
            Ok(provider) => Ok(Arc::new(provider)),
            Err(error) => Err(error),
        },
        KeyUri::Service(key) => key.open(source),
    }
}

/// Opens the provider for a new volume: as [`open_provider`], but the default
/// local key is made, with a key file, if it is missing.
pub fn open_provider_for_init(
    uri: &str,
    source: &PassphraseSource,
) -> Result<Arc<dyn KeyProvider>, KeyError> {
    if let KeyUri::Local(local) = KeyUri::parse(uri)?
        && local.name == LocalUri::DEFAULT_NAME
        && local.uuid.is_none()
    {
        Keystore::of(&local)?.load_or_create(&local.name)?;
    }
    open_provider(uri, source)
}

/// Opens every recipient of a new volume; unlike [`open_ring`], none may be
/// missing.
pub fn open_ring_for_init(uris: &[String], source: &PassphraseSource) -> Result<KeyRing, KeyError> {
    let providers = uris.iter().map(|uri| open_provider_for_init(uri, source));
    KeyRing::new(providers.collect::<Result<_, _>>()?)
}

/// The directory a URI's keys are kept in on this machine, if they are: it must
/// not lie inside a volume.
pub fn keystore_directory(uri: &str) -> Result<Option<PathBuf>, KeyError> {
    match KeyUri::parse(uri)? {
        KeyUri::Local(local) => Ok(Some(Keystore::of(&local)?.directory().to_owned())),
        KeyUri::Service(_) => Ok(None),
    }
}

/// Opens a volume's recipients. One that cannot be opened stays in the ring and
/// answers with its error: files can be read through the others, but new data
/// keys are never made without it. Fails if none can be opened.
pub fn open_ring(uris: &[String], source: &PassphraseSource) -> Result<KeyRing, KeyError> {
    let mut providers: Vec<Arc<dyn KeyProvider>> = Vec::with_capacity(uris.len());
    let mut errors = Vec::new();
    for uri in uris {
        providers.push(match open_provider(uri, source) {
            Ok(provider) => provider,
            Err(error) => {
                errors.push(error.clone());
                Arc::new(Unopened {
                    uri: uri.clone(),
                    parsed: KeyUri::parse(uri).ok(),
                    error,
                })
            }
        });
    }
    if errors.len() == providers.len()
        && let Some(error) = most_informative(errors.clone())
    {
        return Err(error);
    }
    for error in errors {
        log::warn!("a recipient of the volume cannot be used: {error}");
    }
    KeyRing::new(providers)
}

/// A recipient that could not be opened.
struct Unopened {
    uri: String,
    parsed: Option<KeyUri>,
    error: KeyError,
}

impl KeyProvider for Unopened {
    fn uri(&self) -> &str {
        &self.uri
    }

    fn is_local(&self) -> bool {
        true
    }

    fn recognises(&self, wrapped: &WrappedKey) -> bool {
        match &self.parsed {
            Some(uri) => uri.names_same_key(&wrapped.key_uri),
            None => wrapped.key_uri == self.uri,
        }
    }

    fn generate(&self, _: &KeyContext, _: KeyLen) -> Result<(DataKey, WrappedKey), KeyError> {
        Err(self.error.clone())
    }

    fn wrap(&self, _: &KeyContext, _: &DataKey) -> Result<WrappedKey, KeyError> {
        Err(self.error.clone())
    }

    fn unwrap(&self, _: &KeyContext, _: &WrappedKey) -> Result<DataKey, KeyError> {
        Err(self.error.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::local::{NewProtection, State};
    use crate::types::{FileId, VolumeId};

    const UNATTENDED: PassphraseSource = PassphraseSource::Unattended;
    const CONTEXT: KeyContext = KeyContext {
        volume: VolumeId([1; 16]),
        file: FileId([2; 16]),
    };

    fn world() -> (tempfile::TempDir, Keystore, impl Fn(&str) -> String) {
        let dir = tempfile::tempdir().unwrap();
        let keystore = Keystore::at(&dir.path().join("keys")).unwrap();
        let shown = keystore.directory().display().to_string();
        let uri = move |name: &str| format!("local:{name}?keystore={shown}");
        (dir, keystore, uri)
    }

    #[test]
    fn init_makes_the_default_key_and_no_other() {
        let (_dir, keystore, uri) = world();
        let error = open_provider(&uri(""), &UNATTENDED).err().unwrap();
        assert!(matches!(error, KeyError::NotFound { .. }));
        let made = open_provider_for_init(&uri(""), &UNATTENDED).unwrap();
        let again = open_provider_for_init(&uri("default"), &UNATTENDED).unwrap();
        assert_eq!(made.uri(), again.uri());
        assert!(open_provider_for_init(&uri("other"), &UNATTENDED).is_err());
        let directory = keystore_directory(&uri("")).unwrap().unwrap();
        assert_eq!(directory, keystore.directory());
        assert!(open_provider("nosuch:x", &UNATTENDED).is_err());
    }

    #[test]
    fn a_missing_recipient_lets_files_be_read_but_not_made() {
        let (_dir, keystore, uri) = world();
        for name in ["a", "b"] {
            keystore.create(name, NewProtection::Keyfile).unwrap();
        }
        let open = |name: &str| open_provider(&uri(name), &UNATTENDED).unwrap();
        let uris = [open("a").uri().to_owned(), open("b").uri().to_owned()];
        let ring = open_ring(&uris, &UNATTENDED).unwrap();
        let (key, wrapped) = ring.generate(&CONTEXT, KeyLen::Bits256).unwrap();
        keystore.delete("a", true).unwrap();
        let ring = open_ring(&uris, &UNATTENDED).unwrap();
        let again = ring.unwrap(&CONTEXT, &wrapped).unwrap();
        assert_eq!(again.expose(), key.expose());
        let error = ring.generate(&CONTEXT, KeyLen::Bits256).unwrap_err();
        assert!(matches!(error, KeyError::NotFound { .. }), "{error:?}");
        keystore.set_state("b", None, State::Disabled).unwrap();
        keystore.delete("b", true).unwrap();
        assert!(open_ring(&uris, &UNATTENDED).is_err(), "none is left");
    }
}
