//! Unwrapping keys that will probably be asked for next, several at once, when
//! nothing more urgent wants the provider.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::keys::audit::caller::{self, Caller};
use crate::keys::cache::KeyCache;
use crate::keys::patience::Priority;
use crate::keys::{KeyContext, KeyError, KeyProvider, WrappedKey};
use crate::sys::workers::Workers;

use super::guard::Guarded;

/// The most calls at once.
const PARALLEL: usize = 32;

/// Failures in a row after which the rest is left to those who want it.
const MOST_FAILURES: usize = 8;

/// A file's key that may be wanted.
pub type Wanted = (KeyContext, Vec<WrappedKey>);

/// What unwraps keys ahead.
pub(super) struct Ahead {
    cache: Arc<KeyCache>,
    recipients: Vec<Arc<Guarded>>,
    workers: Arc<Workers>,
    /// How long a call may take.
    time: Duration,
    /// The most keys in the queue: half of what the cache can hold.
    most: usize,
    state: Mutex<State>,
    unwrapped: AtomicU64,
    /// Keys in a row that could not be had.
    failures: AtomicUsize,
}

#[derive(Default)]
struct State {
    /// Each with whose doing it is.
    queue: VecDeque<(Option<Caller>, Wanted)>,
    running: usize,
}

impl Ahead {
    pub(super) fn new(
        cache: Arc<KeyCache>,
        recipients: Vec<Arc<Guarded>>,
        workers: Arc<Workers>,
        time: Duration,
    ) -> Self {
        Self {
            most: cache.capacity() / 2,
            cache,
            recipients,
            workers,
            time,
            state: Mutex::default(),
            unwrapped: AtomicU64::new(0),
            failures: AtomicUsize::new(0),
        }
    }

    /// Adds keys to those that are unwrapped ahead; leaves out what would be too
    /// many.
    pub(super) fn want(self: &Arc<Self>, wanted: Vec<Wanted>) {
        self.failures.store(0, Ordering::Relaxed);
        let mut state = self.state.lock();
        let room = self.most.saturating_sub(state.queue.len());
        let caller = caller::get();
        let wanted = wanted.into_iter().take(room);
        state.queue.extend(wanted.map(|wanted| (caller, wanted)));
        let more = state
            .queue
            .len()
            .min(PARALLEL)
            .saturating_sub(state.running);
        state.running += more;
        drop(state);
        for _ in 0..more {
            let ahead = Arc::clone(self);
            self.workers.run(move || ahead.run());
        }
    }

    /// Works until the queue is empty. This thread counts as running already.
    fn run(&self) {
        loop {
            let running = Running(self);
            while self.unwrap_some() {}
            drop(running);
            // Something may have come since the queue was seen empty, for which
            // no thread was started as this one still counted.
            let mut state = self.state.lock();
            if state.queue.is_empty() {
                return;
            }
            state.running += 1;
        }
    }

    /// Forgets what is in the queue.
    pub(super) fn clear(&self) {
        self.state.lock().queue.clear();
    }

    /// Keys unwrapped so far.
    pub(super) fn unwrapped(&self) -> u64 {
        self.unwrapped.load(Ordering::Relaxed)
    }

    /// Makes one call; says whether there may be more to do.
    fn unwrap_some(&self) -> bool {
        let Some((whose, first)) = self.next(None) else {
            return false;
        };
        let Some((recipient, wrapped)) = self.recipient_of(&first.1) else {
            return true;
        };
        let deadline = Instant::now() + self.time;
        // Before anything is claimed: who wants a key that is claimed waits, and
        // must not wait behind others for a turn of low priority.
        if !recipient.turn(Priority::Prefetch, deadline) {
            self.clear();
            return false;
        }
        let mut claims = Vec::new();
        let mut asked = Vec::new();
        let mut add = |wanted: Wanted, wrapped: WrappedKey| {
            if let Some(claim) = self.cache.claim(&wanted.0, &wanted.1) {
                asked.push((wanted.0, wrapped));
                claims.push((claim, wanted));
            }
        };
        add(first, wrapped);
        for _ in 1..recipient.batch() {
            let Some((_, more)) = self.next(Some(whose)) else {
                break;
            };
            let own = more.1.iter().find(|w| recipient.recognises(w)).cloned();
            if let Some(wrapped) = own {
                add(more, wrapped);
            }
        }
        if asked.is_empty() {
            return true;
        }
        let ask = || recipient.unwrap_ahead(&asked, deadline);
        let results = caller::on_behalf(whose, ask);
        for ((claim, wanted), result) in claims.into_iter().zip(results) {
            match result {
                Ok(key) => {
                    self.unwrapped.fetch_add(1, Ordering::Relaxed);
                    self.failures.store(0, Ordering::Relaxed);
                    let _ = claim.land(Ok(Arc::new(key)));
                }
                // The next one's turn comes later by now.
                Err(KeyError::Throttled { .. }) => {
                    claim.abandon();
                    self.state.lock().queue.push_front((whose, wanted));
                }
                // Who opens the file asks again, and is told what is wrong.
                Err(_) => {
                    self.failures.fetch_add(1, Ordering::Relaxed);
                    claim.abandon();
                }
            }
        }
        let goes_on = self.failures.load(Ordering::Relaxed) < MOST_FAILURES;
        if !goes_on {
            self.clear();
        }
        goes_on
    }

    /// The next key that is not in memory; with `whose` only if it is that
    /// one's, too.
    fn next(&self, whose: Option<Option<Caller>>) -> Option<(Option<Caller>, Wanted)> {
        loop {
            let mut state = self.state.lock();
            let (caller, _) = state.queue.front()?;
            if whose.is_some_and(|whose| whose != *caller) {
                return None;
            }
            let (caller, wanted) = state.queue.pop_front()?;
            drop(state);
            if !self.cache.holds(&wanted.0, &wanted.1) {
                return Some((caller, wanted));
            }
        }
    }

    /// The first recipient that is not down, or else the first.
    fn recipient_of(&self, wrapped: &[WrappedKey]) -> Option<(&Guarded, WrappedKey)> {
        let find = |down: bool| {
            let mut recipients = self.recipients.iter();
            recipients.find_map(|recipient| {
                let own = wrapped.iter().find(|w| recipient.recognises(w))?;
                (recipient.is_down() == down).then(|| (&**recipient, own.clone()))
            })
        };
        find(false).or_else(|| find(true))
    }
}

struct Running<'a>(&'a Ahead);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.state.lock().running -= 1;
    }
}
