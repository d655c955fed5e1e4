//! What the host's page cache has of a file.
#![allow(unsafe_code)]

use std::os::fd::{AsFd, AsRawFd};

/// `cachestat` of Linux 6.5 and later, which the libc crate does not know
/// (`asm-generic/unistd.h`).
const SYS_CACHESTAT: libc::c_long = 451;

/// `struct cachestat_range` (`linux/mman.h`).
#[repr(C)]
struct Range {
    offset: u64,
    len: u64,
}

/// `struct cachestat` (`linux/mman.h`), in pages.
#[repr(C)]
#[derive(Default)]
struct Stat {
    cached: u64,
    dirty: u64,
    under_writeback: u64,
    evicted: u64,
    recently_evicted: u64,
}

/// Whether a range is better read through the page cache: because most of it is there,
/// or some of it not yet on the disk. Where the kernel does not tell, it is not.
pub(super) fn serves(fd: impl AsFd, offset: u64, len: usize) -> bool {
    let pages = (len / rustix::param::page_size()) as u64;
    let range = Range {
        offset,
        len: len as u64,
    };
    let mut stat = Stat::default();
    // SAFETY: both structures have the layout that the call expects, and outlive it.
    let status = unsafe {
        libc::syscall(
            SYS_CACHESTAT,
            fd.as_fd().as_raw_fd(),
            &raw const range,
            &raw mut stat,
            0,
        )
    };
    status == 0 && (stat.dirty + stat.under_writeback > 0 || 4 * stat.cached >= 3 * pages)
}
