//! Not asking a provider that does not answer.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::keys::stats::BreakerState;

/// Failures in a row before a provider counts as down.
const FAILURES: u32 = 5;
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// The circuit breaker of one provider. It opens when several calls in a row
/// failed over some time, so that a short trouble is ridden out by trying
/// again; while it is open calls fail at once; then one call finds out.
pub(super) struct Breaker {
    /// How long a provider may fail before it counts as down.
    grace: Duration,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    failures: u32,
    failing_since: Option<Instant>,
    /// Until when nothing is asked, and for how long that is in all.
    open: Option<(Instant, Duration)>,
    probing: bool,
}

/// Leave to make one call. Dropped without an outcome it counts as none.
pub(super) struct Admission<'a> {
    breaker: &'a Breaker,
    probe: bool,
}

impl Breaker {
    pub(super) fn new(grace: Duration) -> Self {
        Self {
            grace,
            state: Mutex::default(),
        }
    }

    /// Leave to make a call, or how long it will not be given.
    pub(super) fn admit(&self, now: Instant) -> Result<Admission<'_>, Duration> {
        let mut state = self.state.lock();
        let Some((until, _)) = state.open else {
            return Ok(Admission {
                breaker: self,
                probe: false,
            });
        };
        if state.probing || now < until {
            return Err(until.saturating_duration_since(now));
        }
        state.probing = true;
        Ok(Admission {
            breaker: self,
            probe: true,
        })
    }

    /// Whether calls fail at present.
    pub(super) fn is_open(&self) -> bool {
        self.state.lock().open.is_some()
    }

    pub(super) fn state(&self) -> BreakerState {
        let state = self.state.lock();
        match state.open {
            None => BreakerState::Closed,
            Some((until, _)) if !state.probing && Instant::now() < until => BreakerState::Open,
            Some(_) => BreakerState::HalfOpen,
        }
    }
}

impl Admission<'_> {
    /// The provider answered, whatever it said. True if it had been down.
    pub(super) fn answered(self) -> bool {
        let mut state = self.breaker.state.lock();
        let was_down = state.open.is_some();
        *state = State {
            probing: state.probing,
            ..State::default()
        };
        was_down
    }

    /// The provider did not answer. True if it counts as down from now on.
    pub(super) fn failed(self, now: Instant) -> bool {
        let mut state = self.breaker.state.lock();
        if let Some((_, pause)) = state.open {
            // Of calls that began before it opened nothing new is learnt.
            if self.probe {
                let pause = (pause * 2).min(LONGEST_PAUSE);
                state.open = Some((now + pause, pause));
            }
            return false;
        }
        state.failures += 1;
        let since = *state.failing_since.get_or_insert(now);
        let down = state.failures >= FAILURES
            && now.saturating_duration_since(since) >= self.breaker.grace;
        if down {
            state.open = Some((now + FIRST_PAUSE, FIRST_PAUSE));
        }
        down
    }
}

impl Drop for Admission<'_> {
    fn drop(&mut self) {
        if self.probe {
            self.breaker.state.lock().probing = false;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn fail(breaker: &Breaker, now: Instant) -> bool {
        breaker.admit(now).ok().unwrap().failed(now)
    }

    #[test]
    fn it_opens_after_failing_for_a_while_and_closes_by_one_success() {
        let (breaker, start) = (Breaker::new(5 * SECOND), Instant::now());
        for _ in 0..20 {
            assert!(!fail(&breaker, start), "a moment's trouble");
        }
        assert!(fail(&breaker, start + 5 * SECOND));
        let wait = breaker.admit(start + 5 * SECOND).err();
        assert_eq!(wait, Some(SECOND));
        assert_eq!(breaker.state(), BreakerState::Open);
        let later = start + 6 * SECOND;
        let probe = breaker.admit(later).ok().unwrap();
        assert!(breaker.admit(later).is_err(), "one finds out for all");
        assert_eq!(breaker.state(), BreakerState::HalfOpen);
        assert!(probe.answered());
        assert!(breaker.admit(later).is_ok() && breaker.admit(later).is_ok());
        assert_eq!(breaker.state(), BreakerState::Closed);
    }

    #[test]
    fn a_success_between_failures_keeps_it_closed() {
        let (breaker, start) = (Breaker::new(5 * SECOND), Instant::now());
        for second in 0..60 {
            assert!(!fail(&breaker, start + second * SECOND));
            if second % 3 == 2 {
                assert!(!breaker.admit(start).ok().unwrap().answered());
            }
        }
    }

    #[test]
    fn failed_probes_make_it_wait_longer_and_lost_ones_nothing() {
        let (breaker, mut now) = (Breaker::new(Duration::ZERO), Instant::now());
        for _ in 0..FAILURES {
            fail(&breaker, now);
        }
        let mut waits = Vec::new();
        for _ in 0..4 {
            let wait = breaker.admit(now).err().unwrap();
            waits.push(wait);
            now += wait;
            drop(breaker.admit(now).ok().unwrap());
            fail(&breaker, now);
        }
        assert_eq!(waits, [1, 2, 4, 5].map(Duration::from_secs));
    }
}
