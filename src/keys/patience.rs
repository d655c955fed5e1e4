//! How long the work that a thread does may wait for a key, and how urgent it is.
//!
//! This is a property of the thread, like its priority, since what asks for a
//! key and what knows whether there is time are many layers apart. A thread
//! that serves the filesystem has none: there, what needs a key that is not in
//! memory fails with [`KeyError::WouldWait`](super::KeyError::WouldWait) before
//! it has changed anything, and is done again on a thread that may wait.

use std::cell::Cell;
use std::time::{Duration, Instant};

/// What is asked first when not everything can be asked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Priority {
    /// A program waits for it.
    #[default]
    Interactive,
    /// It is likely to be wanted soon.
    Prefetch,
    /// It has to be done some time.
    Maintenance,
}

#[derive(Clone, Copy, Default)]
struct Patience {
    limit: Limit,
    priority: Priority,
}

#[derive(Clone, Copy, Default)]
enum Limit {
    /// As long as whoever waits finds right.
    #[default]
    Unset,
    /// Not at all.
    Never,
    /// Until then.
    Until(Instant),
    /// Until then, for one try: whoever called tries again.
    OneTry(Instant),
}

thread_local! {
    static PATIENCE: Cell<Patience> = const {
        Cell::new(Patience {
            limit: Limit::Unset,
            priority: Priority::Interactive,
        })
    };
}

/// Puts the former patience back, also after a panic.
struct Restore(Patience);

impl Drop for Restore {
    fn drop(&mut self) {
        PATIENCE.set(self.0);
    }
}

fn with<T>(patience: Patience, work: impl FnOnce() -> T) -> T {
    let _restore = Restore(PATIENCE.replace(patience));
    work()
}

/// Does `work` without waiting for a key.
pub fn none<T>(work: impl FnOnce() -> T) -> T {
    let limit = Limit::Never;
    let priority = Priority::Interactive;
    with(Patience { limit, priority }, work)
}

/// Does `work`, waiting for keys until `deadline` at the longest.
pub fn until<T>(deadline: Instant, priority: Priority, work: impl FnOnce() -> T) -> T {
    let limit = Limit::Until(deadline);
    with(Patience { limit, priority }, work)
}

/// Does `work`, one call of a provider that the caller repeats where it makes
/// sense.
pub(super) fn one_try<T>(deadline: Instant, work: impl FnOnce() -> T) -> T {
    let limit = Limit::OneTry(deadline);
    let priority = PATIENCE.get().priority;
    with(Patience { limit, priority }, work)
}

/// Whether this thread may wait for a key.
pub fn may_wait() -> bool {
    !matches!(PATIENCE.get().limit, Limit::Never)
}

/// Whether a failed call is for this thread to repeat.
#[cfg_attr(not(feature = "kms-http"), allow(dead_code))]
pub(super) fn may_repeat() -> bool {
    !matches!(PATIENCE.get().limit, Limit::OneTry(_))
}

/// The moment until which this thread may wait; where nothing has set one, or
/// only a later one, `time` from now.
pub fn deadline(time: Duration) -> Instant {
    let own = Instant::now() + time;
    match PATIENCE.get().limit {
        Limit::Until(end) | Limit::OneTry(end) => end.min(own),
        Limit::Unset | Limit::Never => own,
    }
}

/// The moment until which this thread may wait, if anything has set one; the
/// present where it may not.
pub fn end() -> Option<Instant> {
    match PATIENCE.get().limit {
        Limit::Unset => None,
        Limit::Never => Some(Instant::now()),
        Limit::Until(end) | Limit::OneTry(end) => Some(end),
    }
}

/// How urgent this thread's work is.
pub(super) fn priority() -> Priority {
    PATIENCE.get().priority
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patience_ends_with_the_work() {
        let hour = Duration::from_secs(3600);
        assert!(may_wait() && may_repeat());
        none(|| assert!(!may_wait()));
        let soon = Instant::now() + Duration::from_secs(1);
        until(soon, Priority::Prefetch, || {
            assert_eq!(deadline(hour), soon);
            assert!(deadline(Duration::ZERO) < soon);
            one_try(soon, || {
                assert!(may_wait() && !may_repeat());
                assert_eq!(priority(), Priority::Prefetch);
            });
            assert!(may_repeat());
        });
        let panicked = std::panic::catch_unwind(|| none(|| panic!("expected by this test")));
        assert!(panicked.is_err() && may_wait());
        assert!(deadline(hour) > soon);
    }
}
