//! Who caused what this thread is doing.

use std::cell::Cell;

/// A thread of a program, and its user.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caller {
    /// Thread id; 0 where the kernel does not say.
    pub thread: u32,
    /// User id.
    pub uid: u32,
}

thread_local! {
    static CALLER: Cell<Option<Caller>> = const { Cell::new(None) };
}

/// What this thread does from now on is done for that one. Threads for which
/// this was never called work for kmsfs itself.
pub fn set(thread: u32, uid: u32) {
    CALLER.set(Some(Caller { thread, uid }));
}

/// What this thread does from now on is done for `caller`.
pub fn adopt(caller: Option<Caller>) {
    CALLER.set(caller);
}

/// For whom this thread works, if not for kmsfs itself.
pub fn get() -> Option<Caller> {
    CALLER.get()
}
