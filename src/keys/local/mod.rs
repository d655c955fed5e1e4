//! The embedded key provider, `local:NAME`: wrapping keys in a keystore on this
//! machine, outside any volume.

mod document;
mod files;
mod keystore;
mod protection;
mod provider;
mod timestamp;
mod wrap;

#[cfg(feature = "kmip")]
pub(crate) use files::read_private;

pub use document::{Document, KeyVersion, State, Status};
pub use keystore::{Keystore, ListedKey};
pub use protection::{Argon2Cost, Kdf, NewProtection, Protection, Salt};
pub use provider::LocalProvider;
pub use timestamp::Timestamp;
