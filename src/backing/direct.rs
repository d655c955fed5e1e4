//! Reading past the host's page cache (`O_DIRECT`).

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicUsize, Ordering};

use rustix::fs::{Advice, fadvise};

use crate::sys::process::descriptor_limit;

use super::{Descriptor, dir};

/// What the host may want addresses, offsets and lengths to be multiples of, in bytes:
/// the largest block size of disks.
pub(super) const ALIGNMENT: usize = 4096;

/// The most files that have a descriptor for this at a time: a process may have only so
/// many, and each file has one already.
const MOST: u64 = 64;
/// And of those that it may have, one part in so many.
const PART: u64 = 16;

fn most() -> usize {
    MOST.min(descriptor_limit() / PART) as usize
}

/// A descriptor of a file for reading past the page cache.
#[derive(Debug)]
pub(super) struct Direct {
    descriptor: Descriptor,
    _place: Place,
}

impl Direct {
    /// One of the file of `descriptor`; `None` where the host does not have that, or many
    /// files have one.
    pub(super) fn of(descriptor: &Descriptor) -> Option<Self> {
        let place = Place::take()?;
        let opened = dir::reopen_direct(descriptor).ok()?;
        // Who reads so much at once is the kernel, ahead of programs on the mount. That
        // the host reads ahead as well would bring the same data here before.
        let _ = fadvise(descriptor, 0, None, Advice::Random);
        Some(Self {
            descriptor: descriptor.counted_alike(opened),
            _place: place,
        })
    }
}

impl AsFd for Direct {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

/// One of [`most`].
#[derive(Debug)]
struct Place;

static TAKEN: AtomicUsize = AtomicUsize::new(0);

impl Place {
    fn take() -> Option<Self> {
        let taken = TAKEN.fetch_add(1, Ordering::Relaxed);
        // Given back at once where it is one too many.
        let place = Self;
        (taken < most()).then_some(place)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        TAKEN.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_so_many_files_have_one() {
        let open = || Descriptor::from(std::os::fd::OwnedFd::from(tempfile::tempfile().unwrap()));
        let files: Vec<_> = (0..=most()).map(|_| open()).collect();
        // Where the host does not have that, there is none at all.
        let mut direct: Vec<_> = files.iter().filter_map(Direct::of).collect();
        assert!(direct.len() <= most());
        if direct.pop().is_some() {
            assert!(Direct::of(&files[0]).is_some(), "room for one more again");
        }
    }
}
