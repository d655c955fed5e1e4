//! Memory for secrets: locked against swapping, left out of core dumps, wiped
//! when given back.
//!
//! `mlock(2)` works on whole pages, so secrets share 64 KiB regions cut into
//! slots; locking each key's page by itself would unlock its neighbours' when
//! one of them goes.
#![allow(unsafe_code)]

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mlock, mmap_anonymous};
use zeroize::Zeroize;

/// Bytes a slot holds, the most one [`Secret`] may keep.
pub const SLOT: usize = 64;
const REGION: usize = 64 * 1024;

static FREE: Mutex<Vec<Slot>> = Mutex::new(Vec::new());
static REGIONS: Mutex<Vec<Region>> = Mutex::new(Vec::new());
static WARNED: AtomicBool = AtomicBool::new(false);

struct Slot(NonNull<u8>);

// SAFETY: a slot is plain memory with exactly one owner, either the free list
// or one `Secret`.
unsafe impl Send for Slot {}

/// The start of one region's mapping, which is never unmapped.
struct Region(NonNull<u8>);

// SAFETY: only the address is used, to lock the pages behind it.
unsafe impl Send for Region {}

/// Locks all key memory again and says whether that worked. A child process
/// inherits secrets but not their locks: it calls this right after `fork`.
pub fn lock_again() -> bool {
    let mut all = true;
    for region in REGIONS.lock().iter() {
        // SAFETY: the region's REGION bytes stay mapped for good.
        all &= unsafe { mlock(region.0.as_ptr().cast(), REGION) }.is_ok();
    }
    all
}

/// Up to [`SLOT`] secret bytes in locked memory, zeroized when dropped.
///
/// Neither `Clone` nor comparable, and its `Debug` shows no content.
pub struct Secret {
    slot: NonNull<u8>,
    len: usize,
}

// SAFETY: `Secret` owns its slot exclusively; shared access is read-only.
unsafe impl Send for Secret {}
// SAFETY: as above, `&Secret` only gives `&[u8]`.
unsafe impl Sync for Secret {}

impl Secret {
    /// `len` zero bytes.
    ///
    /// # Panics
    /// If `len` is larger than [`SLOT`].
    pub fn zeroed(len: usize) -> Self {
        assert!(len <= SLOT, "a secret is at most {SLOT} bytes");
        let slot = {
            let mut free = FREE.lock();
            if free.is_empty() {
                map_region(&mut free);
            }
            free.pop().expect("map_region adds slots")
        };
        Self { slot: slot.0, len }
    }

    /// A copy of `bytes`; the caller wipes its own.
    pub fn copy_of(bytes: &[u8]) -> Self {
        let mut secret = Self::zeroed(bytes.len());
        secret.copy_from_slice(bytes);
        secret
    }
}

impl Deref for Secret {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: the slot is SLOT ≥ len initialised bytes owned by self.
        unsafe { std::slice::from_raw_parts(self.slot.as_ptr(), self.len) }
    }
}

impl DerefMut for Secret {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`, and `&mut self` is exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.slot.as_ptr(), self.len) }
    }
}

impl Drop for Secret {
    fn drop(&mut self) {
        self.deref_mut().zeroize();
        FREE.lock().push(Slot(self.slot));
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// Maps and locks one more region and adds its slots to the free list. Regions
/// are never unmapped: their number is bounded by the most keys ever alive.
fn map_region(free: &mut Vec<Slot>) {
    // SAFETY: a fresh private mapping at an address the kernel picks.
    let base = unsafe {
        mmap_anonymous(
            std::ptr::null_mut(),
            REGION,
            ProtFlags::READ | ProtFlags::WRITE,
            MapFlags::PRIVATE,
        )
    }
    .expect("out of memory for key storage");
    // SAFETY: base..base+REGION is the mapping made above.
    let locked = unsafe { mlock(base, REGION) };
    // SAFETY: as above; MADV_DONTDUMP does not change the contents.
    let hidden = unsafe { madvise(base, REGION, Advice::LinuxDontDump) };
    if (locked.is_err() || hidden.is_err()) && !WARNED.swap(true, Ordering::Relaxed) {
        log::warn!(
            "data keys could not be locked in memory and may reach swap; \
             raise the memlock limit (ulimit -l) to at least 8 MiB"
        );
    }
    let start = NonNull::new(base.cast()).expect("mmap never returns null");
    REGIONS.lock().push(Region(start));
    for i in (0..REGION).step_by(SLOT) {
        // SAFETY: i < REGION, so the pointer stays inside the mapping.
        let slot = unsafe { base.cast::<u8>().add(i) };
        free.push(Slot(NonNull::new(slot).expect("mmap never returns null")));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locks_can_be_taken_again() {
        let locked_kib = || -> u64 {
            let status = std::fs::read_to_string("/proc/self/status").unwrap();
            let line = status.lines().find_map(|line| line.strip_prefix("VmLck:"));
            let number = line.unwrap().trim().strip_suffix(" kB").unwrap();
            number.parse().unwrap()
        };
        let _secret = Secret::zeroed(1);
        rustix::mm::munlockall().unwrap();
        // A memlock limit of nothing is the host's choice.
        if lock_again() {
            assert!(locked_kib() >= (REGION / 1024) as u64);
        }
    }

    #[test]
    fn slots_are_wiped_and_reused() {
        let secret = Secret::copy_of(b"correct horse");
        let address = secret.as_ptr();
        assert_eq!(&*secret, b"correct horse");
        assert_eq!(format!("{secret:?}"), "Secret(..)");
        drop(secret);
        let again: Vec<Secret> = (0..REGION / SLOT).map(|_| Secret::zeroed(SLOT)).collect();
        let reused = again.iter().find(|s| s.as_ptr() == address);
        if let Some(reused) = reused {
            assert!(reused.iter().all(|&b| b == 0));
        }
    }
}
