//! How many calls a second a provider gets: a token bucket whose rate doubles while
//! it is felt, until the provider says for the first time that it is too much. From
//! then on it falls when the provider says so, comes back near to what was too much
//! within seconds, stays there for a while and then feels its way higher: the curve
//! of CUBIC (RFC 9438, 4.2), relative to the rate and by the clock alone.

use std::collections::VecDeque;
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::keys::patience::Priority;

use super::pace::Pace;

/// Calls a second before anything is known: quotas are mostly this or higher.
const FIRST_RATE: f64 = 1000.0;
const LOWEST_RATE: f64 = 1.0;
const HIGHEST_RATE: f64 = 20_000.0;
/// How long the limit has to be felt before the rate is raised; longer than most
/// answers take. Where the provider never complained, it is doubled then.
const STEP: Duration = Duration::from_millis(50);
/// What is left of the rate after the provider complained.
const DECREASE: f64 = 0.7;
/// How long the limit is felt until the rate is back where the provider complained.
const RECOVERY: Duration = Duration::from_secs(3);
/// Complaints this close together are about the same calls: what is left of a second
/// whose quota is used up brings more of them, also at a lower rate.
const SAME_COMPLAINT: Duration = Duration::from_secs(1);
/// Seconds' worth of calls that may come at once.
const BURST: f64 = 0.1;
/// The same for the very first ones: providers count by the second or longer, and
/// nobody has called before.
const FIRST_BURST: f64 = 1.0;
/// A provider that wants no calls for longer than this is asked all the same.
const LONGEST_CLOSED: Duration = Duration::from_secs(30);
/// The part of a burst that only interactive calls may use.
const RESERVE: f64 = 0.25;

/// The limiter of one key.
pub(super) struct Limiter {
    bucket: Mutex<Bucket>,
}

impl Limiter {
    pub(super) fn new() -> Self {
        Self {
            bucket: Mutex::new(Bucket::new(Instant::now())),
        }
    }

    /// Waits for a turn; says no at once if it would come after `deadline`.
    ///
    /// Turns come in the order of priority and then of arrival. Only who is next
    /// looks at the clock, the others sleep until they are.
    pub(super) fn acquire(&self, priority: Priority, deadline: Instant) -> bool {
        let mut ticket = None;
        loop {
            let mut bucket = self.bucket.lock();
            let now = Instant::now();
            let ahead = bucket.ahead(priority, ticket);
            let turn = match ahead {
                0 => bucket.take(now, priority),
                _ => Err(bucket.estimate(now, priority, ahead)),
            };
            let Err(wait) = turn else {
                bucket.leave(priority, ticket);
                return true;
            };
            if now + wait > deadline {
                bucket.leave(priority, ticket);
                return false;
            }
            if ticket.is_none() {
                ticket = Some(bucket.enter(priority));
            }
            drop(bucket);
            let pause = match ahead {
                0 => wait,
                _ => deadline.saturating_duration_since(now),
            };
            // Whoever leaves wakes who is next by then, also before this sleeps.
            thread::park_timeout(pause);
        }
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
    /// The rate that was too much, at the last complaint.
    too_much: f64,
    /// How long the limit was felt since.
    recovered: Duration,
    /// Of the calls that were made.
    pace: Pace,
    begun: Instant,
    /// Someone had to wait since the rate was last changed.
    felt: bool,
    /// Who waits, by priority, in order.
    waiting: [VecDeque<Waiter>; 3],
    /// The last ticket that was given.
    tickets: u64,
}

struct Waiter {
    ticket: u64,
    thread: Thread,
}

impl Bucket {
    fn new(now: Instant) -> Self {
        Self {
            rate: FIRST_RATE,
            tokens: FIRST_RATE * FIRST_BURST,
            filled: now,
            closed_until: now,
            changed: now,
            last_complaint: None,
            too_much: FIRST_RATE,
            recovered: Duration::ZERO,
            pace: Pace::default(),
            begun: now,
            felt: false,
            waiting: Default::default(),
            tickets: 0,
        }
    }

    fn burst(&self) -> f64 {
        (self.rate * BURST).max(1.0)
    }

    fn fill(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.filled).as_secs_f64();
        self.filled = self.filled.max(now);
        // What is left of the first burst stays until it is used.
        let most = self.burst().max(self.tokens);
        self.tokens = (self.tokens + passed * self.rate).min(most);
        let steady = now.saturating_duration_since(self.changed);
        if self.felt && steady >= STEP {
            self.raise(steady);
            self.changed = now;
            self.felt = false;
        }
    }

    /// The limit was felt and nobody complained for so long.
    fn raise(&mut self, steady: Duration) {
        let higher = match self.last_complaint {
            None => 2.0 * self.rate,
            Some(_) => {
                // Where calls are few, it may have been felt long ago.
                self.recovered += steady.min(Duration::from_secs(1));
                let way = self.recovered.as_secs_f64() / RECOVERY.as_secs_f64() - 1.0;
                self.too_much * (1.0 + (1.0 - DECREASE) * way.powi(3))
            }
        };
        self.rate = higher.clamp(LOWEST_RATE, HIGHEST_RATE);
    }

    /// Takes a token for who is next, or says how long to wait before asking
    /// again.
    fn take(&mut self, now: Instant, priority: Priority) -> Result<(), Duration> {
        let wait = self.estimate(now, priority, 0);
        if wait.is_zero() {
            self.tokens -= 1.0;
            self.pace.count(now - self.begun);
            return Ok(());
        }
        Err(wait.max(Duration::from_micros(100)))
    }

    /// How long it takes until it is the turn of someone with so many ahead.
    fn estimate(&mut self, now: Instant, priority: Priority, ahead: usize) -> Duration {
        self.fill(now);
        let closed = self.closed_until.saturating_duration_since(now);
        let reserve = match priority {
            Priority::Interactive => 0.0,
            // Never more than a burst can hold beside the token itself.
            _ => (self.burst() * RESERVE).min(self.burst() - 1.0),
        };
        let missing = 1.0 + reserve + ahead as f64 - self.tokens;
        if missing <= 0.0 {
            return closed;
        }
        self.felt = true;
        closed.max(Duration::from_secs_f64(missing / self.rate))
    }

    /// How many have their turn before one who waits with this ticket, or does
    /// not wait yet.
    fn ahead(&self, priority: Priority, ticket: Option<u64>) -> usize {
        let (more_urgent, rest) = self.waiting.split_at(priority as usize);
        let own = &rest[0];
        let before = own.iter().position(|w| Some(w.ticket) == ticket);
        more_urgent.iter().map(VecDeque::len).sum::<usize>() + before.unwrap_or(own.len())
    }

    fn enter(&mut self, priority: Priority) -> u64 {
        self.tickets += 1;
        let (ticket, thread) = (self.tickets, thread::current());
        self.waiting[priority as usize].push_back(Waiter { ticket, thread });
        ticket
    }

    /// Takes who waited out, and wakes who is next.
    fn leave(&mut self, priority: Priority, ticket: Option<u64>) {
        if ticket.is_none() {
            return;
        }
        self.waiting[priority as usize].retain(|w| Some(w.ticket) != ticket);
        if let Some(next) = self.waiting.iter().find_map(VecDeque::front) {
            next.thread.unpark();
        }
    }

    fn throttled(&mut self, now: Instant, retry_after: Option<Duration>) {
        // Else the rest of a second whose quota is used up would be spent asking.
        let wait = retry_after.map_or(STEP, |wait| wait.min(LONGEST_CLOSED));
        self.closed_until = self.closed_until.max(now + wait);
        let heard = self.last_complaint;
        if heard.is_none_or(|at| now.saturating_duration_since(at) >= SAME_COMPLAINT) {
            self.last_complaint = Some(now);
            if heard.is_none() {
                // Doubled several times while a second's quota was being used up.
                let pace = self.pace.at(now - self.begun);
                self.rate = self.rate.min(pace.max(FIRST_RATE));
            }
            self.too_much = self.rate;
            self.recovered = Duration::ZERO;
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

    /// One whose provider has complained, long ago.
    fn known(start: Instant) -> Bucket {
        let mut bucket = Bucket::new(start);
        bucket.last_complaint = start.checked_sub(10 * SECOND);
        assert!(bucket.last_complaint.is_some());
        bucket.tokens = bucket.burst();
        // About to be back where it complained: the rate hardly changes there.
        bucket.recovered = RECOVERY - SECOND;
        bucket.raise(Duration::ZERO);
        bucket
    }

    #[test]
    fn the_rate_holds() {
        let start = Instant::now();
        let mut bucket = known(start);
        let count = let_through(&mut bucket, start, Priority::Interactive);
        assert!((1050..=1150).contains(&count), "a burst more: {count}");
        let count = let_through(&mut bucket, start + SECOND, Priority::Interactive);
        assert!((950..=1060).contains(&count), "{count}");
    }

    #[test]
    fn the_first_burst_is_a_second_of_calls() {
        let start = Instant::now();
        let mut bucket = Bucket::new(start);
        let mut at_once = 0;
        while bucket.take(start, Priority::Interactive).is_ok() {
            at_once += 1;
        }
        assert_eq!(at_once, 1000);
        let mut unused = Bucket::new(start);
        unused.fill(start + 10 * SECOND);
        assert_eq!(unused.tokens, 1000.0, "it stays, but does not grow");
        unused.throttled(start + 10 * SECOND, None);
        assert!(unused.tokens <= 0.0, "a complaint ends it");
    }

    #[test]
    fn it_doubles_until_the_first_complaint() {
        let mut now = Instant::now();
        let mut bucket = Bucket::new(now);
        now += 10 * SECOND;
        assert!(bucket.take(now, Priority::Interactive).is_ok());
        bucket.fill(now + SECOND);
        assert_eq!(bucket.rate, FIRST_RATE, "nobody needed more");
        now += 2 * SECOND;
        let count = let_through(&mut bucket, now, Priority::Interactive);
        assert!(count > 8000, "{count}");
        assert_eq!(bucket.rate, HIGHEST_RATE);
    }

    #[test]
    fn the_first_complaint_brings_it_down_to_what_went_well() {
        let start = Instant::now();
        let mut bucket = Bucket::new(start);
        let mut calls = 0;
        let mut now = start;
        while calls < 3000 {
            match bucket.take(now, Priority::Interactive) {
                Ok(()) => calls += 1,
                Err(wait) => now += wait,
            }
        }
        assert!(bucket.rate >= 8000.0, "{}", bucket.rate);
        bucket.throttled(now, None);
        let known = 1500.0..=3000.0 * DECREASE;
        assert!(known.contains(&bucket.rate), "{}", bucket.rate);
        let before = bucket.rate;
        bucket.throttled(now + SECOND, None);
        assert_eq!(bucket.rate, before * DECREASE);
        let mut bucket = Bucket::new(start);
        bucket.throttled(start, None);
        assert_eq!(bucket.rate, FIRST_RATE * DECREASE, "not to nothing");
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
        assert!((850.0..=910.0).contains(&bucket.rate), "{}", bucket.rate);
        for second in 8..20 {
            bucket.fill(start + second * SECOND);
        }
        assert!(bucket.recovered <= 7 * SECOND, "nobody needed more");
    }

    #[test]
    fn a_quota_is_used_nearly_whole() {
        for quota in [1000, 3000, 10_000] {
            let start = Instant::now();
            let mut bucket = Bucket::new(start);
            let (mut served, mut refused) = (0, 0);
            for second in 0..20 {
                let mut left = quota;
                for tenth in 0..10_000 {
                    let now = start + second * SECOND + tenth * SECOND / 10_000;
                    while bucket.take(now, Priority::Interactive).is_ok() {
                        if left > 0 {
                            left -= 1;
                            served += 1;
                        } else {
                            refused += 1;
                            bucket.throttled(now, None);
                        }
                    }
                }
            }
            assert!(served >= 18 * quota, "{served} in 20 seconds of {quota}");
            assert!(refused <= served / 20, "{refused} refused of {quota}");
        }
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
        let limiter = Limiter::new();
        let soon = Instant::now() + Duration::from_millis(20);
        limiter.throttled(Some(SECOND));
        assert!(!limiter.acquire(Priority::Interactive, soon));
        assert!(Instant::now() < soon, "it says no at once");
    }

    #[test]
    fn no_provider_closes_itself_for_good() {
        let start = Instant::now();
        let mut bucket = Bucket::new(start);
        bucket.throttled(start, Some(Duration::from_secs(1 << 40)));
        assert!(bucket.take(start + SECOND, Priority::Interactive).is_err());
        let later = start + LONGEST_CLOSED + SECOND;
        assert!(bucket.take(later, Priority::Interactive).is_ok());
    }

    /// Waiters of each kind, all there before the first turn comes.
    fn in_order(
        limiter: &Limiter,
        wanted: &[Priority],
        deadline: Instant,
    ) -> Vec<Option<Priority>> {
        let order = Mutex::new(Vec::new());
        thread::scope(|scope| {
            for (index, &priority) in wanted.iter().enumerate() {
                let order = &order;
                scope.spawn(move || {
                    let turn = limiter.acquire(priority, deadline);
                    order.lock().push(turn.then_some(priority));
                });
                let waiting = || {
                    let bucket = limiter.bucket.lock();
                    bucket.waiting.iter().map(VecDeque::len).sum::<usize>()
                };
                let (came, patience) = (|| waiting() + order.lock().len(), Instant::now() + SECOND);
                while came() <= index && Instant::now() < patience {
                    thread::sleep(Duration::from_millis(1));
                }
            }
        });
        order.into_inner()
    }

    #[test]
    fn turns_come_by_urgency_and_everyone_is_woken() {
        use Priority::{Interactive, Maintenance, Prefetch};
        let limiter = Limiter::new();
        {
            let mut bucket = limiter.bucket.lock();
            (bucket.rate, bucket.tokens) = (20.0, 0.0);
        }
        limiter.throttled(Some(2 * SECOND));
        let mut wanted = vec![Maintenance, Prefetch, Interactive];
        wanted.extend([Prefetch, Interactive].repeat(9));
        let deadline = Instant::now() + 20 * SECOND;
        let order = in_order(&limiter, &wanted, deadline);
        let mut sorted = order.clone();
        sorted.sort_unstable();
        assert_eq!(order, sorted, "the most urgent first");
        assert_eq!(order.iter().flatten().count(), wanted.len());
    }

    #[test]
    fn who_would_be_too_late_is_told_at_once_and_keeps_nobody_waiting() {
        use Priority::Interactive;
        let limiter = Limiter::new();
        let start = Instant::now();
        {
            let mut bucket = limiter.bucket.lock();
            bucket.rate = 12.0;
            // Goes on with 8 and comes to 11 within a second; unheard it would double.
            bucket.throttled(start, None);
        }
        let order = in_order(&limiter, &[Interactive; 40], start + SECOND);
        let served = order.iter().flatten().count();
        assert!((6..=12).contains(&served), "{served} in a second");
        assert!(start.elapsed() < 2 * SECOND);
        assert!(limiter.bucket.lock().waiting.iter().all(VecDeque::is_empty));
    }
}
