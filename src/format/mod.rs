//! Bytes on disk and the structures they stand for. No I/O.
//!
//! `docs/FORMAT.md` describes the same bytes; `tests/vectors.rs` holds the two
//! together.

pub mod config;
pub mod header;
pub mod journal;
pub mod layout;
pub mod meta;
pub mod times;
mod wire;

pub use layout::Layout;

/// The newest format version, which this build gives new volumes.
pub const FORMAT_VERSION: u16 = 2;

/// Why bytes could not be understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FormatError {
    /// Neither header slot is intact.
    #[error("no intact header")]
    BadHeader,
    /// Written by a newer kmsfs that older ones must not read.
    #[error("needs format version {needs}, this build reads up to {FORMAT_VERSION}")]
    TooNew {
        /// The lowest version that may read it.
        needs: u16,
    },
    /// An algorithm suite this build does not know.
    #[error("unknown algorithm suite {0}")]
    UnknownSuite(u16),
    /// The recipients do not fit in a header slot.
    #[error("{needed} bytes of recipients do not fit in a header slot of {slot} bytes")]
    HeaderFull {
        /// Bytes the recipients take.
        needed: usize,
        /// Bytes a slot has.
        slot: usize,
    },
}
