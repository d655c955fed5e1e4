//! Data keys made ahead for new files, so that creating one waits for the
//! provider only when files are made faster than keys.
//!
//! A data key is bound to its file's id, so the pool picks the id as well.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::crypto::{DataKey, random};
use crate::keys::patience::{self, Priority};
use crate::keys::stats::{Latencies, PoolStats};
use crate::keys::{KeyContext, KeyError, KeyRing, WrappedKey};
use crate::sys::clock::Clock;
use crate::sys::workers::Workers;
use crate::types::{FileId, KeyLen, VolumeId};

use super::pace::Pace;

/// The most keys made ahead.
const CAPACITY: usize = 4096;
/// The most that are made at once.
const PARALLEL: usize = 112;
/// How old a key may be when it is used.
const OLDEST: Duration = Duration::from_secs(600);
/// How many times the time that making a key takes the keys made ahead last.
const LEAD: u32 = 4;
/// Keys to have ready beside that, for files that come in bursts; twice as many for
/// each file that found none, until nobody makes files any more.
const SPARE: Range<usize> = 8..128;
/// Files a second below which nothing is made ahead.
const LEAST_DEMAND: f64 = 3.0;

/// A new file's id and data key.
pub struct NewKey {
    /// The id that the wrapped keys are bound to.
    pub file: FileId,
    /// The data key.
    pub key: Arc<DataKey>,
    /// The data key, wrapped by every recipient, in order.
    pub wrapped: Vec<WrappedKey>,
}

impl NewKey {
    /// Makes one through `ring`.
    pub(super) fn make(ring: &KeyRing, volume: VolumeId, len: KeyLen) -> Result<Self, KeyError> {
        let file = FileId(random::bytes());
        let (key, wrapped) = ring.generate(&KeyContext { volume, file }, len)?;
        let key = Arc::new(key);
        Ok(Self { file, key, wrapped })
    }
}

/// The keys made ahead for one volume's files.
pub(super) struct Pool {
    ring: Arc<KeyRing>,
    workers: Arc<Workers>,
    clock: Arc<dyn Clock>,
    /// How long making a key may take.
    time: Duration,
    oldest: Duration,
    latency: Latencies,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// What the keys are for; set by the first that is taken.
    purpose: Option<(VolumeId, KeyLen)>,
    ready: VecDeque<(Duration, NewKey)>,
    /// Keys being made, each by a thread of its own.
    making: usize,
    /// Counts the times that everything was dropped.
    generation: u64,
    /// No keys are made.
    closed: bool,
    /// Of making files.
    demand: Pace,
    spare: usize,
    taken: u64,
    dry: u64,
    expired: u64,
}

impl Pool {
    pub(super) fn new(
        ring: Arc<KeyRing>,
        workers: Arc<Workers>,
        clock: Arc<dyn Clock>,
        time: Duration,
        longest: Duration,
    ) -> Self {
        Self {
            ring,
            workers,
            clock,
            time,
            oldest: OLDEST.min(longest),
            latency: Latencies::default(),
            state: Mutex::default(),
        }
    }

    /// A key that was made ahead, and when that was.
    pub(super) fn take(
        self: &Arc<Self>,
        volume: VolumeId,
        len: KeyLen,
    ) -> Option<(Duration, NewKey)> {
        let now = self.clock.now();
        let mut state = self.state.lock();
        if *state.purpose.get_or_insert((volume, len)) != (volume, len) {
            return None;
        }
        state.expire(now, self.oldest);
        let taken = state.ready.pop_front()?;
        state.taken += 1;
        state.demand.count(now);
        self.refill(state, now);
        Some(taken)
    }

    /// A key for a file that found none: made now, for it alone.
    pub(super) fn make(
        self: &Arc<Self>,
        volume: VolumeId,
        len: KeyLen,
    ) -> Result<NewKey, KeyError> {
        let now = self.clock.now();
        let mut state = self.state.lock();
        state.purpose.get_or_insert((volume, len));
        state.dry += 1;
        state.spare = match state.demand.at(now) < LEAST_DEMAND {
            true => SPARE.start,
            false => (2 * state.spare).min(SPARE.end),
        };
        state.demand.count(now);
        self.refill(state, now);
        self.timed(volume, len)
    }

    fn timed(&self, volume: VolumeId, len: KeyLen) -> Result<NewKey, KeyError> {
        let start = Instant::now();
        let made = NewKey::make(&self.ring, volume, len).inspect_err(|error| {
            // Those that were made before are not for use any more either.
            if error.is_refusal() {
                self.clear();
            }
        })?;
        self.latency.record(start.elapsed());
        Ok(made)
    }

    /// How many keys to have ready: what will be used while more are made.
    fn target(&self, state: &State, now: Duration) -> usize {
        let demand = state.demand.at(now);
        if demand < LEAST_DEMAND {
            return 0;
        }
        let lead = self.latency.quantile(0.5).unwrap_or_default() * LEAD;
        let wanted = demand * lead.as_secs_f64();
        // Of which there are no more than there were files in the last second.
        let spare = state.spare.min(SPARE.start.max(demand as usize));
        (wanted as usize + spare).min(CAPACITY)
    }

    /// Starts making keys once half of those wanted are gone.
    fn refill(self: &Arc<Self>, mut state: parking_lot::MutexGuard<'_, State>, now: Duration) {
        let target = self.target(&state, now);
        let have = state.ready.len() + state.making;
        if have > target / 2 || state.closed {
            return;
        }
        let more = (target - have).min(PARALLEL.saturating_sub(state.making));
        state.making += more;
        let generation = state.generation;
        drop(state);
        for _ in 0..more {
            let pool = Arc::clone(self);
            self.workers.run(move || pool.fill(generation));
        }
    }

    /// Makes keys until there are enough, or one cannot be made, or everything is
    /// dropped. This thread counts as making one throughout.
    fn fill(&self, generation: u64) {
        let mut maker = Maker {
            pool: self,
            generation,
        };
        while maker.make_one() {}
    }

    /// Forgets every key, also those being made.
    pub(super) fn clear(&self) {
        let mut state = self.state.lock();
        state.ready.clear();
        state.generation += 1;
        state.demand = Pace::default();
    }

    /// Forgets every key and makes none, until this is called with `false`.
    pub(super) fn close(&self, closed: bool) {
        self.state.lock().closed = closed;
        if closed {
            self.clear();
        }
    }

    /// Forgets keys that have become too old.
    pub(super) fn sweep(&self) {
        self.state.lock().expire(self.clock.now(), self.oldest);
    }

    pub(super) fn stats(&self) -> PoolStats {
        let state = self.state.lock();
        PoolStats {
            ready: state.ready.len(),
            target: self.target(&state, self.clock.now()),
            capacity: CAPACITY,
            taken: state.taken,
            dry: state.dry,
            expired: state.expired,
        }
    }
}

impl State {
    fn expire(&mut self, now: Duration, oldest: Duration) {
        while let Some((made, _)) = self.ready.front()
            && now.saturating_sub(*made) >= oldest
        {
            self.ready.pop_front();
            self.expired += 1;
        }
    }
}

/// A thread that makes keys.
struct Maker<'a> {
    pool: &'a Pool,
    generation: u64,
}

impl Maker<'_> {
    /// Makes one key; says whether another is wanted.
    fn make_one(&mut self) -> bool {
        let wanted = {
            let state = self.pool.state.lock();
            let current = state.generation == self.generation;
            state.purpose.filter(|_| current)
        };
        let Some((volume, len)) = wanted else {
            return false;
        };
        let deadline = Instant::now() + self.pool.time;
        // As old as its making was begun: what is revoked meanwhile may be in it.
        let begun = self.pool.clock.now();
        let made = patience::until(deadline, Priority::Prefetch, || {
            self.pool.timed(volume, len)
        });
        let made = match made {
            Ok(made) => made,
            Err(error) => {
                log::debug!("no key ahead: {error}");
                return false;
            }
        };
        let mut state = self.pool.state.lock();
        if state.generation != self.generation {
            return false;
        }
        state.ready.push_back((begun, made));
        let target = self.pool.target(&state, self.pool.clock.now());
        // This thread's own next one is counted in `making`.
        state.ready.len() + state.making <= target
    }
}

impl Drop for Maker<'_> {
    fn drop(&mut self) {
        self.pool.state.lock().making -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::KeyProvider;
    use crate::keys::testing::{CONTEXT, FakeClock, FakeProvider, wrong};

    const LEN: KeyLen = KeyLen::Bits256;

    fn pool() -> (Arc<Pool>, Arc<FakeProvider>, Arc<FakeClock>) {
        let provider = FakeProvider::remote("a");
        let ring = KeyRing::new(vec![provider.clone() as Arc<dyn KeyProvider>]).unwrap();
        let clock = Arc::new(FakeClock::default());
        let workers = Arc::new(Workers::new("test", 64));
        let pool = Pool::new(
            Arc::new(ring),
            workers,
            clock.clone(),
            Duration::from_secs(5),
            OLDEST,
        );
        (Arc::new(pool), provider, clock)
    }

    fn new_file(pool: &Arc<Pool>) -> bool {
        let taken = pool.take(CONTEXT.volume, LEN);
        let ahead = taken.is_some();
        if !ahead {
            pool.make(CONTEXT.volume, LEN).unwrap();
        }
        ahead
    }

    fn settle(pool: &Pool) {
        for _ in 0..2000 {
            if pool.state.lock().making == 0 {
                return;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        panic!("keys are made without end");
    }

    #[test]
    fn a_file_now_and_then_makes_nothing_ahead() {
        let (pool, provider, clock) = pool();
        for _ in 0..20 {
            assert!(!new_file(&pool));
            settle(&pool);
            clock.advance(2);
        }
        assert_eq!(provider.calls(), 20);
        assert_eq!(pool.stats().ready, 0);
    }

    #[test]
    fn many_files_find_their_keys_made_and_few_are_left() {
        let (pool, provider, _) = pool();
        let mut ahead = 0;
        for _ in 0..500 {
            ahead += usize::from(new_file(&pool));
            settle(&pool);
        }
        assert!(ahead > 450, "{ahead} of 500");
        let stats = pool.stats();
        assert_eq!(provider.calls(), 500 + stats.ready);
        assert!(stats.ready <= 100, "{stats:?}");
        assert_eq!((stats.taken, stats.dry), (ahead as u64, 500 - ahead as u64));
    }

    #[test]
    fn unused_keys_expire_and_are_not_replaced() {
        let (pool, provider, clock) = pool();
        for _ in 0..50 {
            new_file(&pool);
            settle(&pool);
        }
        let left = pool.stats().ready;
        let calls = provider.calls();
        assert!(left > 0);
        clock.advance(600);
        pool.sweep();
        let stats = pool.stats();
        assert_eq!((stats.ready, stats.expired), (0, left as u64));
        assert!(!new_file(&pool));
        assert_eq!(provider.calls(), calls + 1);
    }

    #[test]
    fn dropped_keys_are_gone_also_those_being_made() {
        let (pool, provider, _) = pool();
        for _ in 0..20 {
            new_file(&pool);
            settle(&pool);
        }
        provider.delay(Duration::from_millis(300));
        while pool.state.lock().making == 0 {
            new_file(&pool);
        }
        pool.clear();
        settle(&pool);
        assert_eq!(pool.stats().ready, 0);
    }

    #[test]
    fn a_closed_pool_makes_nothing_also_not_what_was_about_to_be_made() {
        let (pool, provider, _) = pool();
        for _ in 0..20 {
            new_file(&pool);
            settle(&pool);
        }
        pool.close(true);
        assert!(pool.take(CONTEXT.volume, LEN).is_none());
        let calls = provider.calls();
        // A thread that was started before and comes to it only now.
        pool.state.lock().making += 1;
        let before = pool.state.lock().generation - 1;
        pool.fill(before);
        assert_eq!((provider.calls(), pool.stats().ready), (calls, 0));
        for _ in 0..20 {
            pool.make(CONTEXT.volume, LEN).unwrap();
        }
        settle(&pool);
        assert_eq!((provider.calls(), pool.stats().ready), (calls + 20, 0));
        pool.close(false);
        for _ in 0..20 {
            new_file(&pool);
        }
        settle(&pool);
        assert!(pool.stats().ready > 0);
    }

    #[test]
    fn a_refusal_takes_back_the_keys_made_before_it() {
        let (pool, provider, _) = pool();
        for _ in 0..40 {
            new_file(&pool);
            settle(&pool);
        }
        assert!(pool.stats().ready > 0);
        provider.fail(Some(wrong::unavailable()));
        assert!(pool.make(CONTEXT.volume, LEN).is_err());
        assert!(pool.stats().ready > 0, "an outage takes none");
        provider.fail(Some(wrong::disabled()));
        assert!(pool.make(CONTEXT.volume, LEN).is_err());
        settle(&pool);
        assert_eq!(pool.stats().ready, 0);
    }

    #[test]
    fn a_provider_that_fails_is_not_asked_ahead_without_end() {
        let (pool, provider, _) = pool();
        for _ in 0..20 {
            new_file(&pool);
            settle(&pool);
        }
        provider.fail(Some(wrong::denied()));
        while pool.take(CONTEXT.volume, LEN).is_some() {
            settle(&pool);
        }
        settle(&pool);
        let calls = provider.calls();
        std::thread::sleep(Duration::from_millis(50));
        assert_eq!(provider.calls(), calls);
        assert!(matches!(
            pool.make(CONTEXT.volume, LEN),
            Err(KeyError::Denied { .. })
        ));
    }
}
