//! The transit engine of HashiCorp Vault and OpenBao: `hashivault://`.
//!
//! `docs/KMS.md` says how to set it up.

#[cfg(feature = "hashivault")]
mod api;
#[cfg(feature = "hashivault")]
mod auth;
#[cfg(feature = "hashivault")]
mod fault;
#[cfg(feature = "hashivault")]
mod provider;
mod uri;

use super::service::Service;

#[cfg(feature = "hashivault")]
pub use super::environment::Environment;
#[cfg(feature = "hashivault")]
pub use provider::VaultProvider;
pub use uri::{Method, VaultUri};

pub(super) const SERVICE: Service = Service {
    scheme: VaultUri::SCHEME,
    form: "hashivault://KEY",
    feature: "hashivault",
    check: |uri| VaultUri::parse(uri).map(drop),
    same_key: |mine, wrapped| {
        let both = VaultUri::parse(mine)
            .ok()
            .zip(VaultUri::parse(wrapped).ok());
        both.is_some_and(|(mine, theirs)| mine.names_same_key(&theirs))
    },
    #[cfg(feature = "hashivault")]
    open: Some(|uri, _| {
        let uri = VaultUri::parse(uri)?;
        let provider = VaultProvider::open(&uri, &Environment::of_process())?;
        Ok(std::sync::Arc::new(provider))
    }),
    #[cfg(not(feature = "hashivault"))]
    open: None,
};
