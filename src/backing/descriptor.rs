//! Descriptors that are counted while they are open, as a process may have only
//! so many.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// An open descriptor, and what counts it.
#[derive(Debug)]
pub struct Descriptor {
    fd: OwnedFd,
    count: Option<Arc<AtomicUsize>>,
}

impl Descriptor {
    /// Takes over `fd`, and adds one to `count` until it is closed.
    pub fn counted(fd: OwnedFd, count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self {
            fd,
            count: Some(count.clone()),
        }
    }

    /// The same for another descriptor of the same file.
    pub(super) fn counted_alike(&self, fd: OwnedFd) -> Self {
        match &self.count {
            Some(count) => Self::counted(fd, count),
            None => fd.into(),
        }
    }
}

impl From<OwnedFd> for Descriptor {
    /// Nobody counts this one.
    fn from(fd: OwnedFd) -> Self {
        Self { fd, count: None }
    }
}

impl AsFd for Descriptor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Drop for Descriptor {
    fn drop(&mut self) {
        if let Some(count) = &self.count {
            count.fetch_sub(1, Ordering::Relaxed);
        }
    }
}
