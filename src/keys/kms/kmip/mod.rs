//! Keys at servers that speak KMIP 1.4 or 2.0 over mutual TLS: `kmip://`.
//!
//! Everything here blocks, on sockets with time limits: the protocol has one
//! answer a request and connection, so a few connections serve many callers.

#[cfg(feature = "kmip")]
mod connection;
#[cfg(feature = "kmip")]
mod fault;
#[cfg(feature = "kmip")]
mod message;
#[cfg(feature = "kmip")]
mod operation;
#[cfg(feature = "kmip")]
mod pool;
#[cfg(feature = "kmip")]
mod provider;
#[cfg(feature = "kmip")]
mod server;
#[cfg(feature = "kmip")]
mod tls;
#[cfg(feature = "kmip")]
mod ttlv;
mod uri;
#[cfg(feature = "kmip")]
mod versions;

use super::service::Service;

#[cfg(feature = "kmip")]
pub use provider::KmipProvider;
pub use uri::{KeyName, KmipUri, Version};

pub(super) const SERVICE: Service = Service {
    scheme: KmipUri::SCHEME,
    form: "kmip://HOST/KEY-ID",
    feature: "kmip",
    check: |uri| KmipUri::parse(uri).map(drop),
    same_key: |mine, wrapped| {
        let both = KmipUri::parse(mine).ok().zip(KmipUri::parse(wrapped).ok());
        both.is_some_and(|(mine, theirs)| mine.names_same_key(&theirs))
    },
    #[cfg(feature = "kmip")]
    open: Some(|uri, _| {
        let uri = KmipUri::parse(uri)?;
        Ok(std::sync::Arc::new(KmipProvider::open(&uri)?))
    }),
    #[cfg(not(feature = "kmip"))]
    open: None,
};
