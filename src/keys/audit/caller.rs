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

struct Restore(Option<Caller>);

impl Drop for Restore {
    fn drop(&mut self) {
        CALLER.set(self.0);
    }
}

/// Does `work` for `caller`, on a thread that works for others before and after.
pub fn on_behalf<T>(caller: Option<Caller>, work: impl FnOnce() -> T) -> T {
    let _restore = Restore(CALLER.replace(caller));
    work()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_goes_back_to_whom_it_worked_for() {
        let of = |thread| Some(Caller { thread, uid: 1 });
        adopt(of(1));
        assert_eq!(on_behalf(of(2), get), of(2));
        assert_eq!(get(), of(1));
        let panicked =
            std::panic::catch_unwind(|| on_behalf(None, || panic!("expected by this test")));
        assert!(panicked.is_err() && get() == of(1));
    }
}
