//! Host files and directories: the ciphertext side. The only user of `rustix`
//! and `libc` for files, and with `sys` the only place for `unsafe`.

pub mod descriptor;
pub mod dir;
mod direct;
pub mod file;
pub mod handle;
pub mod page_buffer;
mod page_cache;
pub mod xattr;

pub use descriptor::Descriptor;
pub use file::{BackingFile, HostFile};
pub use page_buffer::PageBuffer;
pub use rustix::io::Errno;

/// Result of a host operation: the host's own errno.
pub type Result<T> = std::result::Result<T, Errno>;
