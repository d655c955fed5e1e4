//! Google Cloud KMS: `gcpkms://`.
//!
//! `docs/KMS.md` says how to set it up.

#[cfg(feature = "gcp")]
mod crc32c;
#[cfg(feature = "gcp")]
mod credentials;
#[cfg(feature = "gcp")]
mod fault;
#[cfg(feature = "gcp")]
mod login;
#[cfg(feature = "gcp")]
mod provider;
mod uri;

use super::service::Service;

#[cfg(feature = "gcp")]
pub use super::environment::Environment;
#[cfg(feature = "gcp")]
pub use provider::GcpProvider;
pub use uri::GcpUri;

pub(super) const SERVICE: Service = Service {
    scheme: GcpUri::SCHEME,
    form: "gcpkms://projects/P/locations/L/keyRings/R/cryptoKeys/K",
    feature: "gcp",
    check: |uri| GcpUri::parse(uri).map(drop),
    same_key: |mine, wrapped| {
        let both = GcpUri::parse(mine).ok().zip(GcpUri::parse(wrapped).ok());
        both.is_some_and(|(mine, theirs)| mine.names_same_key(&theirs))
    },
    #[cfg(feature = "gcp")]
    open: Some(|uri, _| {
        let uri = GcpUri::parse(uri)?;
        let provider = GcpProvider::open(&uri, &Environment::of_process())?;
        Ok(std::sync::Arc::new(provider))
    }),
    #[cfg(not(feature = "gcp"))]
    open: None,
};
