//! The FUSE protocol over `fs`: arguments, replies, errnos, the session.

mod adapter;
mod connection;
mod convert;
mod device;
mod dispatch;
mod errno;
mod listing;
mod notices;
mod occupancy;
pub mod options;
mod precedence;
mod protocol;
mod reply;
mod request;
mod rings;
pub mod session;
mod waiting;

pub use errno::errno;
pub use options::MountOptions;
pub use session::{Session, SessionError};
