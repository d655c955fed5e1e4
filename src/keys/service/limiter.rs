//! How many calls a second a provider gets: a token bucket whose rate is halved
//! when the provider says that it is too much, and else creeps up.

use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use crate::keys::patience::Priority;

/// Calls a second before anything is known: quotas are mostly this or higher.
const FIRST_RATE: f64 = 1000.0;
const LOWEST_RATE: f64 = 1.0;
const HIGHEST_RATE: f64 = 20_000.0;
/// Calls a second more for each second in which the limit was felt.
const INCREASE: f64 = 50.0;
/// What is left of the rate after the provider complained.
const DECREASE: f64 = 0.7;
/// Complaints this close together are about the same rate.
const SAME_COMPLAINT: Duration = Duration::from_millis(500);
/// Seconds' worth of calls that may come at once.
const BURST: f64 = 0.1;
/// The part of a burst that only interactive calls may use.
const RESERVE: f64 = 0.25;

/// The limiter of one key.
pub(super) struct Limiter {
    bucket: Mutex<Bucket>,
    changed: Condvar,
}

impl Limiter {
    pub(super) fn new() -> Self {
        Self {
            bucket: Mutex::new(Bucket::new(Instant::now())),
            changed: Condvar::new(),
        }
    }

    /// Waits for a turn; says no at once if it would come after `deadline`.
    pub(super) fn acquire(&self, priority: Priority, deadline: Instant) -> bool {
        let mut bucket = self.bucket.lock();
        let mut queued = false;
        let acquired = loop {
            let now = Instant::now();
            let Err(wait) = bucket.take(now, priority) else {
                break true;
            };
            if now + wait > deadline {
                break false;
            }
            if !queued {
                queued = true;
                bucket.waiting[priority as usize] += 1;
            }
            // Woken earlier when someone more urgent has gone.
            self.changed.wait_for(&mut bucket, wait);
        };
        if queued {
            bucket.waiting[priority as usize] -= 1;
            if bucket.waiting[priority as usize] == 0 {
                self.changed.notify_all();
            }
        }
        acquired
    }

    /// The provider asked for fewer calls, perhaps for none for a while.
    pub(super) fn throttled(&self, retry_after: Option<Duration>) {
        self.bucket.lock().throttled(Instant::now(), retry_after);
    }

    /// Calls a second at present.
    pub(super) fn rate(&self) -> f64 {
        self.bucket.lock().rate
    }
}

struct Bucket {
    rate: f64,
    tokens: f64,
    filled: Instant,
    /// The provider wants no calls before.
    closed_until: Instant,
    /// When the rate was last changed.
    changed: Instant,
    last_complaint: Option<Instant>,
    /// Someone had to wait since the rate was last changed.
    felt: bool,
    /// Who waits, by priority.
    waiting: [usize; 3],
}

impl Bucket {
    fn new(now: Instant) -> Self {
        Self {
            rate: FIRST_RATE,
            tokens: FIRST_RATE * BURST,
            filled: now,
            closed_until: now,
            changed: now,
            last_complaint: None,
            felt: false,
            waiting: [0; 3],
        }
    }

    fn burst(&self) -> f64 {
        (self.rate * BURST).max(1.0)
    }

    fn fill(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.filled).as_secs_f64();
        self.filled = self.filled.max(now);
        self.tokens = (self.tokens + passed * self.rate).min(self.burst());
        let steady = now.saturating_duration_since(self.changed);
        if self.felt && steady >= Duration::from_secs(1) {
            self.rate = (self.rate + INCREASE).min(HIGHEST_RATE);
            self.changed = now;
            self.felt = false;
        }
    }

    /// Takes a token, or says how long to wait before asking again.
    fn take(&mut self, now: Instant, priority: Priority) -> Result<(), Duration> {
        self.fill(now);
        if now < self.closed_until {
            return Err(self.closed_until - now);
        }
        let urgent: usize = self.waiting[..priority as usize].iter().sum();
        let reserve = match priority {
            Priority::Interactive => 0.0,
            // Never more than a burst can hold beside the token itself.
            _ => (self.burst() * RESERVE).min(self.burst() - 1.0),
        };
        let missing = 1.0 + reserve + urgent as f64 - self.tokens;
        if missing <= 0.0 {
            self.tokens -= 1.0;
            return Ok(());
        }
        self.felt = true;
        let wait = Duration::from_secs_f64(missing / self.rate);
        Err(wait.max(Duration::from_micros(100)))
    }

    fn throttled(&mut self, now: Instant, retry_after: Option<Duration>) {
        if let Some(wait) = retry_after {
            self.closed_until = self.closed_until.max(now + wait);
        }
        let heard = self.last_complaint;
        if heard.is_none_or(|at| now.saturating_duration_since(at) >= SAME_COMPLAINT) {
            self.last_complaint = Some(now);
            self.rate = (self.rate * DECREASE).max(LOWEST_RATE);
            self.changed = now;
            self.felt = false;
        }
        self.tokens = self.tokens.min(0.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// How many calls a bucket lets through within a second, asked each
    /// millisecond for as many as it gives.
    fn let_through(bucket: &mut Bucket, from: Instant, priority: Priority) -> usize {
        let mut count = 0;
        for millis in 0..1000 {
            while bucket
                .take(from + Duration::from_millis(millis), priority)
                .is_ok()
            {
                count += 1;
            }
        }
        count
    }

    #[test]
    fn the_rate_holds() {
        let start = Instant::now();
        let mut bucket = Bucket::new(start);
        let count = let_through(&mut bucket, start, Priority::Interactive);
        assert!((1050..=1150).contains(&count), "a burst more: {count}");
        let count = let_through(&mut bucket, start + SECOND, Priority::Interactive);
        assert!((950..=1060).contains(&count), "{count}");
    }

    #[test]
    fn complaints_slow_down_and_silence_speeds_up() {
        let start = Instant::now();
        let mut bucket = Bucket::new(start);
        for _ in 0..50 {
            bucket.throttled(start, None);
        }
        assert_eq!(bucket.rate, 700.0, "one decrease for all of them");
        bucket.throttled(start + SECOND, Some(2 * SECOND));
        assert!((bucket.rate - 490.0).abs() < 1.0);
        let closed = bucket.take(start + 2 * SECOND, Priority::Interactive);
        assert_eq!(closed, Err(SECOND), "what the provider asked for");
        for second in 3..8 {
            let_through(&mut bucket, start + second * SECOND, Priority::Interactive);
        }
        assert!((650.0..=750.0).contains(&bucket.rate), "{}", bucket.rate);
        let unfelt = bucket.rate;
        for second in 8..20 {
            bucket.fill(start + second * SECOND);
        }
        assert!(bucket.rate <= unfelt + INCREASE, "nobody needed more");
    }

    #[test]
    fn the_rate_never_reaches_nothing() {
        let mut now = Instant::now();
        let mut bucket = Bucket::new(now);
        for _ in 0..100 {
            now += SECOND;
            bucket.throttled(now, None);
        }
        assert_eq!(bucket.rate, LOWEST_RATE);
        let count = let_through(&mut bucket, now + 5 * SECOND, Priority::Maintenance);
        assert!(count >= 1);
    }

    #[test]
    fn the_urgent_go_first() {
        let start = Instant::now();
        let mut bucket = Bucket::new(start);
        while bucket.take(start, Priority::Prefetch).is_ok() {}
        assert!(
            bucket.take(start, Priority::Interactive).is_ok(),
            "a reserve"
        );
        bucket.waiting[Priority::Interactive as usize] = 1000;
        let count = let_through(&mut bucket, start + SECOND, Priority::Prefetch);
        assert_eq!(count, 0);
        let limiter = Limiter::new();
        let soon = Instant::now() + Duration::from_millis(20);
        limiter.throttled(Some(SECOND));
        assert!(!limiter.acquire(Priority::Interactive, soon));
        assert!(Instant::now() < soon, "it says no at once");
    }
}
