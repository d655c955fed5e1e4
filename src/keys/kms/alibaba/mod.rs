//! Alibaba Cloud KMS: `alibabakms://`.
//!
//! It speaks two protocols: the OpenAPI of all gateways (`openapi`, signed with
//! an access key, `acs3`) and the one of KMS instances (`instance`, protobuf,
//! signed with the private key in a client key file). `docs/KMS.md` says how to
//! set them up.

#[cfg(feature = "alibaba")]
mod acs3;
#[cfg(feature = "alibaba")]
mod client_key;
#[cfg(feature = "alibaba")]
mod credentials;
#[cfg(feature = "alibaba")]
mod fault;
#[cfg(feature = "alibaba")]
mod instance;
#[cfg(feature = "alibaba")]
mod openapi;
#[cfg(feature = "alibaba")]
mod protobuf;
#[cfg(feature = "alibaba")]
mod provider;
#[cfg(feature = "alibaba")]
mod rpc;
#[cfg(feature = "alibaba")]
mod target;
mod uri;

#[cfg(feature = "alibaba")]
pub use super::environment::Environment;
#[cfg(feature = "alibaba")]
pub use provider::AlibabaProvider;
pub use uri::{AlibabaUri, Wire};

use super::service::Service;

pub(super) const SERVICE: Service = Service {
    scheme: AlibabaUri::SCHEME,
    form: "alibabakms://ENDPOINT/KEY",
    feature: "alibaba",
    check: |uri| AlibabaUri::parse(uri).map(drop),
    same_key: |mine, wrapped| {
        let both = AlibabaUri::parse(mine)
            .ok()
            .zip(AlibabaUri::parse(wrapped).ok());
        both.is_some_and(|(mine, theirs)| mine.names_same_key(&theirs))
    },
    #[cfg(feature = "alibaba")]
    open: Some(|uri, _| {
        let uri = AlibabaUri::parse(uri)?;
        let provider = AlibabaProvider::open(&uri, &Environment::of_process())?;
        Ok(std::sync::Arc::new(provider))
    }),
    #[cfg(not(feature = "alibaba"))]
    open: None,
};
