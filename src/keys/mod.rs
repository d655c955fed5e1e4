//! Where data keys come from: providers, and the cache in front of them.

pub mod audit;
pub mod cache;
pub mod check;
pub mod error;
pub mod kms;
pub mod local;
pub mod passphrase;
pub mod patience;
pub mod provider;
pub mod registry;
pub mod ring;
pub mod service;
pub mod stats;
#[cfg(test)]
pub(crate) mod testing;
pub mod uri;

pub use cache::{CacheCounters, CacheLimits};
pub use error::KeyError;
pub use passphrase::PassphraseSource;
pub use provider::{KeyContext, KeyProvider, WrappedKey};
pub use registry::{open_provider, open_provider_for_init, open_ring};
pub use ring::KeyRing;
pub use service::{KeyService, NewKey};
pub use stats::KeyServiceStats;
