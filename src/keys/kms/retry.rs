//! Deadlines, and trying again within them.

use std::time::{Duration, Instant};

use crate::crypto::random;
use crate::keys::{KeyError, patience};

/// How long a call may take in all, unless its URI says otherwise.
pub(super) const DEFAULT_DEADLINE: Duration = Duration::from_secs(10);
/// One try may take this part of the time that is left, so that a server that
/// never answers leaves time for another try.
const SHARE_OF_ONE_TRY: u32 = 2;
const SHORTEST_TRY: Duration = Duration::from_secs(1);
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// The moment by which a call must have ended.
#[derive(Clone, Copy, Debug)]
pub(super) struct Deadline(Instant);

impl Deadline {
    /// That far from now, or earlier if this thread may not wait so long.
    pub(super) fn after(time: Duration) -> Self {
        Self(patience::deadline(time))
    }

    /// The earlier of this one and one that far from now.
    pub(super) fn within(self, time: Duration) -> Self {
        Self(self.0.min(Instant::now() + time))
    }

    /// The time that is left.
    pub(super) fn left(self) -> Duration {
        self.0.saturating_duration_since(Instant::now())
    }

    /// The time that one try may take.
    pub(super) fn one_try(self) -> Duration {
        let left = self.left();
        (left / SHARE_OF_ONE_TRY).max(SHORTEST_TRY).min(left)
    }
}

/// Calls `attempt` until it succeeds, fails for good, or the next try would
/// come after the deadline; the error is the last one. Pauses grow and are
/// random, and a server that says how long to wait is obeyed. Where the caller
/// tries again by itself there is one attempt.
pub(super) fn until<T>(
    deadline: Deadline,
    mut attempt: impl FnMut() -> Result<T, KeyError>,
) -> Result<T, KeyError> {
    let mut pause = FIRST_PAUSE;
    loop {
        let error = match attempt() {
            Err(error) if error.is_transient() && patience::may_repeat() => error,
            result => return result,
        };
        let wished = match &error {
            KeyError::Throttled { retry_after, .. } => *retry_after,
            _ => None,
        };
        let wait = wished.unwrap_or_default().max(jittered(pause));
        if wait >= deadline.left() {
            return Err(error);
        }
        std::thread::sleep(wait);
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// Between half of `pause` and all of it.
fn jittered(pause: Duration) -> Duration {
    let random = u32::from(u16::from_le_bytes(random::bytes()));
    pause / 2 + pause / 2 * random / u32::from(u16::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn throttled(retry_after: Option<Duration>) -> KeyError {
        KeyError::Throttled {
            key: "k".into(),
            detail: "slow down".into(),
            retry_after,
        }
    }

    #[test]
    fn tries_until_it_works() {
        let mut tries = 0;
        let result = until(Deadline::after(Duration::from_secs(5)), || {
            tries += 1;
            if tries < 3 {
                Err(throttled(None))
            } else {
                Ok(tries)
            }
        });
        assert_eq!(result.unwrap(), 3);
    }

    #[test]
    fn permanent_errors_are_not_tried_again() {
        let mut tries = 0;
        let result: Result<(), _> = until(Deadline::after(Duration::from_secs(5)), || {
            tries += 1;
            Err(KeyError::Denied {
                key: "k".into(),
                detail: "no".into(),
            })
        });
        assert!(result.is_err());
        assert_eq!(tries, 1);
    }

    #[test]
    fn the_deadline_holds_and_a_long_wait_ends_at_once() {
        let start = Instant::now();
        let result: Result<(), _> = until(Deadline::after(Duration::from_millis(300)), || {
            Err(throttled(None))
        });
        assert!(matches!(result, Err(KeyError::Throttled { .. })));
        assert!(start.elapsed() < Duration::from_millis(400));
        let start = Instant::now();
        let hour = Some(Duration::from_secs(3600));
        let result: Result<(), _> = until(Deadline::after(Duration::from_secs(60)), || {
            Err(throttled(hour))
        });
        assert!(result.is_err());
        assert!(start.elapsed() < Duration::from_secs(1));
    }

    #[test]
    fn one_try_leaves_time_for_another() {
        let deadline = Deadline::after(Duration::from_secs(10));
        assert!(deadline.one_try() <= Duration::from_secs(5));
        let short = Deadline::after(Duration::from_millis(700));
        assert!(short.one_try() <= Duration::from_millis(700));
        assert!(deadline.within(Duration::from_secs(1)).left() <= Duration::from_secs(1));
    }
}
