//! Azure Key Vault and Managed HSM: `azurekms://`.
//!
//! `docs/KMS.md` says how to set it up.

#[cfg(feature = "azure")]
mod challenge;
#[cfg(feature = "azure")]
mod fault;
#[cfg(feature = "azure")]
mod login;
#[cfg(feature = "azure")]
mod provider;
mod uri;
#[cfg(feature = "azure")]
mod verified;

use super::service::Service;

#[cfg(feature = "azure")]
pub use super::environment::Environment;
#[cfg(feature = "azure")]
pub use provider::AzureProvider;
pub use uri::{Algorithm, AzureUri};

pub(super) const SERVICE: Service = Service {
    scheme: AzureUri::SCHEME,
    form: "azurekms://VAULT.vault.azure.net/KEY",
    feature: "azure",
    check: |uri| AzureUri::parse(uri).map(drop),
    same_key: |mine, wrapped| {
        let both = AzureUri::parse(mine)
            .ok()
            .zip(AzureUri::parse(wrapped).ok());
        both.is_some_and(|(mine, theirs)| mine.names_same_key(&theirs))
    },
    #[cfg(feature = "azure")]
    open: Some(|uri, _| {
        let uri = AzureUri::parse(uri)?;
        let provider = AzureProvider::open(&uri, &Environment::of_process())?;
        Ok(std::sync::Arc::new(provider))
    }),
    #[cfg(not(feature = "azure"))]
    open: None,
};
