//! Where data keys come from: providers, and the cache in front of them.

pub mod error;
pub mod local;
pub mod passphrase;
pub mod provider;
pub mod uri;

pub use error::KeyError;
pub use provider::{KeyContext, KeyProvider, WrappedKey};
