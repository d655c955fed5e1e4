//! kmsfs: a transparent encrypted filesystem whose files are each encrypted
//! under a data key of their own, issued by a key management service.
//!
//! The modules are layers (see `docs/ARCHITECTURE.md`); an upper one may import
//! a lower one, never the reverse, and `tests/tidy.rs` checks it:
//!
//! ```text
//! cli → fuse → fs → content → { keys, format, crypto, backing } → { sys, types }
//! ```

pub mod backing;
pub mod cli;
pub mod content;
pub mod crypto;
pub mod format;
pub mod fs;
pub mod fuse;
pub mod keys;
pub mod sys;
pub mod types;
