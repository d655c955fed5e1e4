//! The FUSE protocol over `fs`: arguments, replies, errnos, the session.

mod adapter;
mod connection;
mod convert;
mod errno;
mod listing;
mod notices;
pub mod options;
pub mod session;
mod time;
mod waiting;

pub use errno::errno;
pub use options::MountOptions;
pub use session::{Session, SessionError};
