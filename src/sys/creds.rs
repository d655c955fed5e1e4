//! Doing something as another user.
//!
//! New files must belong to who asked for them, and take group, quota and
//! inherited bits from the backing filesystem as for any program. A `chown`
//! afterwards would leave a moment with the wrong owner, so the thread takes on
//! the caller's filesystem ids for the one call.
#![allow(unsafe_code)]

use std::cell::Cell;
use std::sync::OnceLock;

use rustix::fs::Mode;
use rustix::process;
use rustix::thread::{CapabilitySet, UnshareFlags, capabilities, set_capabilities};

use super::process::kernel_version;

/// Who asked for an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caller {
    /// Filesystem user id.
    pub uid: u32,
    /// Filesystem group id.
    pub gid: u32,
}

/// Who changes a file without the right to keep its suid and sgid bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Changer {
    /// Thread id.
    pub thread: u32,
    /// Filesystem group id.
    pub gid: u32,
}

impl Changer {
    /// Whether the thread is in a group, by its own or a supplementary one. One
    /// that is not there any more is not.
    pub fn is_in_group(&self, gid: u32) -> bool {
        if self.gid == gid {
            return true;
        }
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.thread));
        let status = status.unwrap_or_default();
        let groups = status.lines().find_map(|line| line.strip_prefix("Groups:"));
        let mut groups = groups.unwrap_or_default().split_whitespace();
        groups.any(|group| group.parse() == Ok(gid))
    }
}

thread_local! {
    /// The umask this thread has set, if it has one to itself.
    static UMASK: Cell<Option<u32>> = const { Cell::new(None) };
}

/// Runs `create` with `umask`, and if this process is root as `caller`.
///
/// The caller's supplementary groups are not known here, but the kernel has
/// already checked that it may write to the directory, so the thread keeps the
/// capability to do so.
pub fn run_as<T>(caller: Caller, umask: u32, create: impl FnOnce() -> T) -> T {
    set_umask(umask);
    let root = process::geteuid().is_root();
    if !root || (caller.uid == 0 && caller.gid == 0) {
        return create();
    }
    let before = capabilities(None).ok();
    set_fs_ids(caller.uid, caller.gid);
    // Leaving fsuid 0 dropped the filesystem capabilities from the effective
    // set; the caller's rights were checked, its groups are unknown here.
    if let Some(mut sets) = before {
        let mut keep = CapabilitySet::DAC_OVERRIDE | CapabilitySet::DAC_READ_SEARCH;
        if kernel_strips_sgid() {
            keep |= CapabilitySet::FSETID;
        }
        sets.effective = (sets.effective & !FILESYSTEM) | (sets.permitted & keep);
        let _ = set_capabilities(None, sets);
    }
    let result = create();
    set_fs_ids(0, 0);
    if let Some(sets) = before {
        let _ = set_capabilities(None, sets);
    }
    result
}

/// The capabilities that `setfsuid(2)` takes away from a thread that leaves
/// uid 0 (`capabilities(7)`, CAP_FS_SET).
const FILESYSTEM: CapabilitySet = CapabilitySet::CHOWN
    .union(CapabilitySet::MKNOD)
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::DAC_READ_SEARCH)
    .union(CapabilitySet::FOWNER)
    .union(CapabilitySet::FSETID)
    .union(CapabilitySet::LINUX_IMMUTABLE)
    .union(CapabilitySet::MAC_OVERRIDE);

/// Only this thread, unlike the C library's wrappers of `setresuid`.
fn set_fs_ids(uid: u32, gid: u32) {
    // SAFETY: these system calls take plain numbers and affect this thread only.
    // The group goes first: without uid 0 it could not be changed any more.
    unsafe {
        if uid == 0 {
            libc::syscall(libc::SYS_setfsuid, uid);
            libc::syscall(libc::SYS_setfsgid, gid);
        } else {
            libc::syscall(libc::SYS_setfsgid, gid);
            libc::syscall(libc::SYS_setfsuid, uid);
        }
    }
}

/// Whether the kernel has taken the sgid bit off the mode of a new file before
/// it asks, where its maker is not in the group (since 6.0, `vfs_prepare_mode`).
/// It knows the maker's groups; here they are not known.
fn kernel_strips_sgid() -> bool {
    static STRIPS: OnceLock<bool> = OnceLock::new();
    *STRIPS.get_or_init(|| kernel_version().is_some_and(|version| version >= (6, 0)))
}

fn set_umask(umask: u32) {
    UMASK.with(|current| {
        if current.get() == Some(umask) {
            return;
        }
        if current.get().is_none() {
            // SAFETY: gives this thread its own umask and working directory;
            // nothing here relies on sharing them.
            let own = unsafe { rustix::thread::unshare_unsafe(UnshareFlags::FS) };
            own.expect("unshare(CLONE_FS) needs no privilege");
        }
        process::umask(Mode::from_raw_mode(umask & 0o777));
        current.set(Some(umask));
    });
}

/// Whether this process may go where permission bits say it may not.
pub fn can_override() -> bool {
    process::geteuid().is_root()
}
