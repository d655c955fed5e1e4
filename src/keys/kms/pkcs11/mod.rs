//! Keys in tokens and HSMs that have a PKCS#11 module: `pkcs11:`.
//!
//! The module is loaded only when a URI names it, and runs inside this process:
//! `uri` says from where it may come. Everything in PKCS#11 blocks, and cannot be
//! interrupted: only waiting for a session has a deadline.

#[cfg(feature = "pkcs11")]
mod fault;
#[cfg(feature = "pkcs11")]
mod module;
#[cfg(feature = "pkcs11")]
mod provider;
#[cfg(feature = "pkcs11")]
mod sessions;
mod uri;
#[cfg(feature = "pkcs11")]
mod wrap;

use crate::keys::kms::service::Service;

#[cfg(feature = "pkcs11")]
pub use provider::Pkcs11Provider;
pub use uri::{Pkcs11Uri, Wrapping};

pub(super) const SERVICE: Service = Service {
    scheme: Pkcs11Uri::SCHEME,
    form: "pkcs11:token=TOKEN;object=KEY",
    feature: "pkcs11",
    check: |uri| Pkcs11Uri::parse(uri).map(drop),
    same_key: |mine, wrapped| {
        let both = Pkcs11Uri::parse(mine)
            .ok()
            .zip(Pkcs11Uri::parse(wrapped).ok());
        both.is_some_and(|(mine, theirs)| mine.names_same_key(&theirs))
    },
    #[cfg(feature = "pkcs11")]
    open: Some(|uri, source| {
        let uri = Pkcs11Uri::parse(uri)?;
        Ok(std::sync::Arc::new(Pkcs11Provider::open(&uri, source)?))
    }),
    #[cfg(not(feature = "pkcs11"))]
    open: None,
};
