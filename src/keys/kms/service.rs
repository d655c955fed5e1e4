//! The services this program knows, built in or not, as one table.

use std::fmt;
use std::sync::Arc;

use crate::keys::kms::{alibaba, aws, azure, exec, gcp, hashivault, kmip, pkcs11};
use crate::keys::{KeyError, KeyProvider, PassphraseSource};

/// All of them: one line a service.
const SERVICES: [&Service; 8] = [
    &alibaba::SERVICE,
    &aws::SERVICE,
    &azure::SERVICE,
    &gcp::SERVICE,
    &hashivault::SERVICE,
    &kmip::SERVICE,
    &pkcs11::SERVICE,
    &exec::SERVICE,
];

/// A kind of key management service.
pub(super) struct Service {
    /// What its URIs begin with, before the colon.
    pub(super) scheme: &'static str,
    /// The simplest form of its URIs, for hints.
    pub(super) form: &'static str,
    /// The cargo feature that builds it in.
    pub(super) feature: &'static str,
    /// The error in a URI, if there is one.
    pub(super) check: fn(&str) -> Result<(), KeyError>,
    /// Whether the second URI, which a wrapped key carries, names the same key
    /// as the first, which is valid.
    pub(super) same_key: fn(&str, &str) -> bool,
    /// Opens the provider of a key; `None` in a build without it.
    pub(super) open: Option<Open>,
}

/// From a valid URI, and where to get a passphrase or PIN.
pub(super) type Open = fn(&str, &PassphraseSource) -> Result<Arc<dyn KeyProvider>, KeyError>;

/// A valid URI of a key at one of the services.
#[derive(Clone)]
pub struct ServiceKey {
    service: &'static Service,
    uri: String,
}

impl ServiceKey {
    /// Parses a URI; `None` if its scheme is that of no service.
    pub fn parse(scheme: &str, uri: &str) -> Option<Result<Self, KeyError>> {
        let service = SERVICES.into_iter().find(|s| s.scheme == scheme)?;
        Some((service.check)(uri).map(|()| Self {
            service,
            uri: uri.to_owned(),
        }))
    }

    /// Whether a wrapped key that carries `wrapped_uri` was wrapped by this key.
    pub fn names_same_key(&self, wrapped_uri: &str) -> bool {
        (self.service.same_key)(&self.uri, wrapped_uri)
    }

    /// Opens the key's provider, with what this process's environment says.
    pub fn open(&self, source: &PassphraseSource) -> Result<Arc<dyn KeyProvider>, KeyError> {
        match self.service.open {
            Some(open) => open(&self.uri, source),
            None => Err(KeyError::Configuration {
                detail: format!("this build cannot open {}", self.uri),
                hint: Some(format!(
                    "build kmsfs with --features {}",
                    self.service.feature
                )),
            }),
        }
    }
}

impl PartialEq for ServiceKey {
    fn eq(&self, other: &Self) -> bool {
        self.uri == other.uri
    }
}

impl Eq for ServiceKey {}

impl fmt::Display for ServiceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.uri)
    }
}

impl fmt::Debug for ServiceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ServiceKey({})", self.uri)
    }
}

/// The forms of the URIs that this build can open.
pub fn supported() -> impl Iterator<Item = &'static str> {
    let built_in = SERVICES.into_iter().filter(|s| s.open.is_some());
    built_in.map(|service| service.form)
}
