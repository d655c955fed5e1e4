//! Memory that is wiped when it is done with, on the heap and on the stack:
//! libraries that carry keys for a moment, such as those that read a key service's
//! answer or derive keys, do not do that themselves.
#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::hint::black_box;

/// The system's allocator, wiping what is given back to it.
pub struct Wiping;

// SAFETY: every request goes to the system's allocator as it is. What is wiped is
// the caller's until it is handed on, and its layout says how long it is. Growing
// takes the default way: a new piece, a copy, and giving back the old one.
unsafe impl GlobalAlloc for Wiping {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promises are the system allocator's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, piece: *mut u8, layout: Layout) {
        // SAFETY: the piece has that length, and nobody else has it any more.
        unsafe {
            piece.write_bytes(0, layout.size());
            // Or the compiler leaves out what it thinks nobody will see.
            black_box(piece);
            System.dealloc(piece, layout);
        }
    }
}

/// As much of the stack as a job uses that asks a key service, in bytes.
pub const JOB: usize = 32 * 1024;
/// As much as deriving a key uses.
pub const DERIVATION: usize = 8 * 1024;

/// Does `work`, and wipes the `DEEP` bytes of this thread's stack that it may have
/// used. What it returns is the caller's, so a key is to be returned in
/// [`Secret`](super::secret::Secret)s.
pub fn on_wiped_stack<const DEEP: usize, T>(work: impl FnOnce() -> T) -> T {
    let result = deeper(work);
    wipe_stack::<DEEP>();
    result
}

/// A frame of its own, at which the work begins and the wiping as well.
#[inline(never)]
fn deeper<T>(work: impl FnOnce() -> T) -> T {
    work()
}

#[inline(never)]
fn wipe_stack<const DEEP: usize>() {
    // A variable: of a constant there would be one copy, in the program's data.
    let mut used = [0_u8; DEEP];
    black_box(&mut used);
}
