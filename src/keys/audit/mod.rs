//! The audit log: a line for each release of a key by a provider, and for each
//! refusal. Lines are chained, so that a cut or a change shows.

pub mod caller;
mod log;
mod provider;
pub mod request;
mod verify;

pub use log::{AuditLog, Head};
pub use provider::Audited;
pub use verify::{Broken, Verified, verify};

/// What the first line has in place of the hash of the one before.
const BEGINNING: [u8; 32] = [0; 32];
