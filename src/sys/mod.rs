//! What the process asks of its host: locked memory, credentials, mounting,
//! limits. With `backing`, the only module that may contain `unsafe`.

pub mod append_log;
pub(crate) mod calendar;
pub mod clock;
pub mod control_socket;
pub mod creds;
pub mod daemon;
pub mod durable;
pub mod fd;
pub mod fuse_device;
pub mod fuse_ring;
pub mod mount;
pub mod process;
pub mod secret;
pub mod terminal;
pub mod thread_place;
pub mod wiping;
pub mod workers;
