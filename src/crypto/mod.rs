//! Keys, block and name encryption. No I/O.

pub mod data_key;
pub mod random;

pub use data_key::DataKey;
