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

#[cfg(feature = "pkcs11")]
pub use provider::Pkcs11Provider;
pub use uri::{Pkcs11Uri, Wrapping};
