//! Data keys in memory, for a while: bounded in number, age and idleness, and
//! asked for once however many threads want one.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use lru::LruCache;
use parking_lot::{Condvar, Mutex};

use crate::crypto::DataKey;
use crate::keys::{KeyContext, KeyError, WrappedKey};
use crate::sys::clock::Clock;
use crate::types::FileId;

/// Few enough that each shard's share stays close to a true LRU's.
const MAX_SHARDS: usize = 16;
const MIN_SHARD_ENTRIES: usize = 64;

/// How much the cache keeps, and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheLimits {
    /// The most keys; 0 keeps none.
    pub entries: usize,
    /// How long after it was unwrapped a key is forgotten.
    pub time_to_live: Duration,
    /// And how much longer it is used while no provider can be reached.
    pub grace: Duration,
    /// How long after its last use a key is forgotten.
    pub idle: Duration,
}

impl Default for CacheLimits {
    fn default() -> Self {
        Self {
            entries: 16_384,
            time_to_live: Duration::from_secs(600),
            grace: Duration::ZERO,
            idle: Duration::from_secs(300),
        }
    }
}

/// What the cache has done so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CacheCounters {
    /// Keys given from memory.
    pub hits: u64,
    /// Keys that were not in memory, including those that another thread was
    /// already fetching.
    pub misses: u64,
    /// Fetches that went to a provider.
    pub calls: u64,
    /// Keys forgotten for any reason.
    pub evictions: u64,
}

/// The cache of data keys, by file.
///
/// An entry also remembers (a keyed hash of) the wrapped keys it came from, so
/// a file whose header was rewrapped or replaced never gets its former key.
/// Evicted keys are wiped when their last user lets go of them.
pub struct KeyCache {
    limits: CacheLimits,
    clock: Arc<dyn Clock>,
    hasher: RandomState,
    shards: Box<[Mutex<Shard>]>,
    /// Nothing is kept.
    sealed: AtomicBool,
    hits: AtomicU64,
    misses: AtomicU64,
    calls: AtomicU64,
    evictions: AtomicU64,
}

struct Shard {
    entries: LruCache<FileId, Entry>,
    flights: HashMap<(FileId, u64), Arc<Flight>>,
}

struct Entry {
    fingerprint: u64,
    key: Arc<DataKey>,
    fetched: Duration,
    used: Duration,
}

type Fetched = Result<Arc<DataKey>, KeyError>;

/// A fetch that is under way; others wait for its result.
#[derive(Default)]
struct Flight {
    result: Mutex<Option<Outcome>>,
    landed: Condvar,
}

#[derive(Clone)]
enum Outcome {
    Landed(Fetched),
    /// Nobody was waiting when it was begun, and it led to nothing: whoever
    /// waits by now fetches the key.
    Abandoned,
}

impl Flight {
    /// The outcome; `None` if it has not come by `deadline`.
    fn wait(&self, deadline: Instant) -> Option<Outcome> {
        let mut result = self.result.lock();
        while result.is_none() {
            if self.landed.wait_until(&mut result, deadline).timed_out() {
                break;
            }
        }
        result.clone()
    }
}

impl KeyCache {
    /// An empty cache.
    pub fn new(limits: CacheLimits, clock: Arc<dyn Clock>) -> Self {
        let count = (limits.entries / MIN_SHARD_ENTRIES).clamp(1, MAX_SHARDS);
        // A capacity of one stands for none: `store` keeps nothing then.
        let capacity = NonZeroUsize::new(limits.entries / count).unwrap_or(NonZeroUsize::MIN);
        let shard = || {
            Mutex::new(Shard {
                entries: LruCache::sparse(capacity),
                flights: HashMap::new(),
            })
        };
        Self {
            limits,
            clock,
            hasher: RandomState::new(),
            shards: std::iter::repeat_with(shard).take(count).collect(),
            sealed: AtomicBool::new(false),
            hits: AtomicU64::new(0),
            misses: AtomicU64::new(0),
            calls: AtomicU64::new(0),
            evictions: AtomicU64::new(0),
        }
    }

    /// The file's key if it is in memory.
    pub fn get(&self, context: &KeyContext, wrapped: &[WrappedKey]) -> Option<Arc<DataKey>> {
        let fingerprint = self.fingerprint(context, wrapped);
        let mut shard = self.shard(context.file).lock();
        self.lookup(&mut shard, context.file, fingerprint)
    }

    /// The file's key, from memory or else from `fetch`, which is called once
    /// however many threads ask meanwhile; all of them get its result, those
    /// that it takes too long at their `deadline` an error. No lock is held
    /// during the call. Errors are not kept. Where no provider can be reached,
    /// a key in its grace is the result.
    pub fn get_or_fetch(
        &self,
        context: &KeyContext,
        wrapped: &[WrappedKey],
        deadline: Instant,
        fetch: impl FnOnce() -> Result<DataKey, KeyError>,
    ) -> Fetched {
        let fingerprint = self.fingerprint(context, wrapped);
        let id = (context.file, fingerprint);
        loop {
            let flight = {
                let mut shard = self.shard(context.file).lock();
                if let Some(key) = self.lookup(&mut shard, context.file, fingerprint) {
                    return Ok(key);
                }
                self.misses.fetch_add(1, Ordering::Relaxed);
                match shard.flights.get(&id).map(Arc::clone) {
                    Some(flight) => flight,
                    None => {
                        let landing = self.take_off(&mut shard, id);
                        drop(shard);
                        self.calls.fetch_add(1, Ordering::Relaxed);
                        let fetched = fetch().map(Arc::new);
                        return match self.in_grace(id, &fetched) {
                            Some(key) => landing.deliver(Ok(key)),
                            None => landing.land(fetched),
                        };
                    }
                }
            };
            match flight.wait(deadline) {
                Some(Outcome::Landed(fetched)) => return fetched,
                Some(Outcome::Abandoned) => {}
                None => return Err(not_in_time(context.file)),
            }
        }
    }

    /// The key whose time is over but for the grace, if the fetch failed for want
    /// of an answer. A refusal takes it away.
    fn in_grace(
        &self,
        (file, fingerprint): (FileId, u64),
        fetched: &Fetched,
    ) -> Option<Arc<DataKey>> {
        let error = fetched.as_ref().err()?;
        let mut shard = self.shard(file).lock();
        let now = self.clock.now();
        let entry = shard.entries.get_mut(&file)?;
        if entry.fingerprint != fingerprint {
            return None;
        }
        if error.is_refusal() || self.expired(entry, now) {
            shard.entries.pop(&file);
            self.evictions.fetch_add(1, Ordering::Relaxed);
            return None;
        }
        if !error.is_transient() {
            return None;
        }
        entry.used = now;
        Some(Arc::clone(&entry.key))
    }

    /// Announces a fetch by the caller, for which others wait until it lands;
    /// `None` if the key is in memory or being fetched, or is not to be kept.
    pub(super) fn claim(
        &self,
        context: &KeyContext,
        wrapped: &[WrappedKey],
    ) -> Option<Landing<'_>> {
        let fingerprint = self.fingerprint(context, wrapped);
        let id = (context.file, fingerprint);
        let mut shard = self.shard(context.file).lock();
        let had = self.peek(&shard, context.file, fingerprint) || shard.flights.contains_key(&id);
        if had || self.sealed.load(Ordering::SeqCst) {
            return None;
        }
        Some(self.take_off(&mut shard, id))
    }

    fn take_off(&self, shard: &mut Shard, id: (FileId, u64)) -> Landing<'_> {
        let flight = Arc::new(Flight::default());
        shard.flights.insert(id, Arc::clone(&flight));
        Landing {
            cache: self,
            id,
            flight,
        }
    }

    /// Whether the file's key is in memory; not a use of it.
    pub(super) fn holds(&self, context: &KeyContext, wrapped: &[WrappedKey]) -> bool {
        let fingerprint = self.fingerprint(context, wrapped);
        let shard = self.shard(context.file).lock();
        self.peek(&shard, context.file, fingerprint)
    }

    /// Keeps a key that a provider gave just now.
    pub fn insert(&self, context: &KeyContext, wrapped: &[WrappedKey], key: Arc<DataKey>) {
        self.insert_older(context, wrapped, key, self.clock.now());
    }

    /// Keeps a key that a provider gave at `fetched`: its age counts from then.
    pub(super) fn insert_older(
        &self,
        context: &KeyContext,
        wrapped: &[WrappedKey],
        key: Arc<DataKey>,
        fetched: Duration,
    ) {
        let fingerprint = self.fingerprint(context, wrapped);
        let mut shard = self.shard(context.file).lock();
        self.store(&mut shard, context.file, fingerprint, key, fetched);
    }

    /// Forgets the file's key. One that is being fetched reaches those who wait
    /// for it, and is not kept.
    pub fn remove(&self, file: FileId) {
        let mut shard = self.shard(file).lock();
        shard.flights.retain(|(id, _), _| *id != file);
        if shard.entries.pop(&file).is_some() {
            self.evictions.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Forgets every key, as [`Self::remove`] does one.
    pub fn drop_all(&self) {
        for shard in &self.shards {
            let mut shard = shard.lock();
            shard.flights.clear();
            let count = shard.entries.len() as u64;
            shard.entries.clear();
            self.evictions.fetch_add(count, Ordering::Relaxed);
        }
    }

    /// Forgets every key and keeps none, also none that is being fetched, until
    /// this is called with `false`.
    pub(super) fn seal(&self, sealed: bool) {
        // Before the shards are locked one by one: what is stored in one is
        // stored before it is emptied, or not at all.
        self.sealed.store(sealed, Ordering::SeqCst);
        if sealed {
            self.drop_all();
        }
    }

    /// Forgets the keys whose time has come, and says how many they were. To be
    /// called every now and then, as a key that no one asks for is not noticed
    /// otherwise.
    pub fn sweep(&self) -> usize {
        let now = self.clock.now();
        let mut swept = 0;
        for shard in &self.shards {
            let mut shard = shard.lock();
            let before = shard.entries.len();
            shard.entries.retain(|_, entry| !self.expired(entry, now));
            swept += before - shard.entries.len();
        }
        self.evictions.fetch_add(swept as u64, Ordering::Relaxed);
        swept
    }

    /// How many keys are in memory, expired ones that were not swept included.
    pub fn len(&self) -> usize {
        let shards = self.shards.iter();
        shards.map(|shard| shard.lock().entries.len()).sum()
    }

    /// The most keys there may be.
    pub fn capacity(&self) -> usize {
        self.limits.entries
    }

    /// Whether no key is in memory.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What the cache has done so far.
    pub fn counters(&self) -> CacheCounters {
        CacheCounters {
            hits: self.hits.load(Ordering::Relaxed),
            misses: self.misses.load(Ordering::Relaxed),
            calls: self.calls.load(Ordering::Relaxed),
            evictions: self.evictions.load(Ordering::Relaxed),
        }
    }

    /// The wrapped keys come from untrusted storage, hence the keyed hash; and
    /// a collision would only make a file's authentication fail.
    fn fingerprint(&self, context: &KeyContext, wrapped: &[WrappedKey]) -> u64 {
        self.hasher.hash_one((context.volume, wrapped))
    }

    /// File ids are random, so a byte of one spreads evenly.
    fn shard(&self, file: FileId) -> &Mutex<Shard> {
        &self.shards[usize::from(file.0[0]) % self.shards.len()]
    }

    /// Whether the entry is to be forgotten.
    fn expired(&self, entry: &Entry, now: Duration) -> bool {
        let longest = self.limits.time_to_live.saturating_add(self.limits.grace);
        now.saturating_sub(entry.fetched) >= longest
            || now.saturating_sub(entry.used) >= self.limits.idle
    }

    /// Whether the entry's time is not over, so that nobody has to be asked.
    fn is_fresh(&self, entry: &Entry, now: Duration) -> bool {
        !self.expired(entry, now) && now.saturating_sub(entry.fetched) < self.limits.time_to_live
    }

    fn lookup(&self, shard: &mut Shard, file: FileId, fingerprint: u64) -> Option<Arc<DataKey>> {
        let entry = shard.entries.get_mut(&file)?;
        let now = self.clock.now();
        if entry.fingerprint != fingerprint || self.expired(entry, now) {
            shard.entries.pop(&file);
            self.evictions.fetch_add(1, Ordering::Relaxed);
            return None;
        }
        if !self.is_fresh(entry, now) {
            return None;
        }
        entry.used = now;
        self.hits.fetch_add(1, Ordering::Relaxed);
        Some(Arc::clone(&entry.key))
    }

    /// As [`Self::lookup`], without using the entry.
    fn peek(&self, shard: &Shard, file: FileId, fingerprint: u64) -> bool {
        let now = self.clock.now();
        let entry = shard.entries.peek(&file);
        entry.is_some_and(|e| e.fingerprint == fingerprint && self.is_fresh(e, now))
    }

    fn store(
        &self,
        shard: &mut Shard,
        file: FileId,
        fingerprint: u64,
        key: Arc<DataKey>,
        fetched: Duration,
    ) {
        if self.limits.entries == 0 || self.sealed.load(Ordering::SeqCst) {
            return;
        }
        let entry = Entry {
            fingerprint,
            key,
            fetched,
            used: self.clock.now(),
        };
        if shard.entries.push(file, entry).is_some() {
            self.evictions.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// A fetch that was announced. Dropped without a result, as when the fetch
/// panics, it ends with an error: those who wait would wait forever.
pub(super) struct Landing<'a> {
    cache: &'a KeyCache,
    id: (FileId, u64),
    flight: Arc<Flight>,
}

impl Landing<'_> {
    /// Gives the result to those who wait, and keeps a key.
    pub(super) fn land(self, fetched: Fetched) -> Fetched {
        let (file, fingerprint) = self.id;
        let mut shard = self.cache.shard(file).lock();
        // A flight that is no longer listed was cancelled by `remove` or
        // `drop_all`, perhaps followed by a new one for the same file.
        if self.is_listed(&shard)
            && let Ok(key) = &fetched
        {
            let now = self.cache.clock.now();
            self.cache
                .store(&mut shard, file, fingerprint, Arc::clone(key), now);
        }
        drop(shard);
        self.deliver(fetched)
    }

    /// Gives the result to those who wait, and keeps nothing.
    fn deliver(self, fetched: Fetched) -> Fetched {
        *self.flight.result.lock() = Some(Outcome::Landed(fetched.clone()));
        fetched
    }

    /// Leaves the fetch to those who wait, if anyone does.
    pub(super) fn abandon(self) {
        *self.flight.result.lock() = Some(Outcome::Abandoned);
    }

    fn is_listed(&self, shard: &Shard) -> bool {
        let listed = shard.flights.get(&self.id);
        listed.is_some_and(|flight| Arc::ptr_eq(flight, &self.flight))
    }
}

impl Drop for Landing<'_> {
    fn drop(&mut self) {
        let mut shard = self.cache.shard(self.id.0).lock();
        if self.is_listed(&shard) {
            shard.flights.remove(&self.id);
        }
        drop(shard);
        let panicked = || {
            Outcome::Landed(Err(KeyError::Unavailable {
                key: format!("of file {}", self.id.0),
                detail: "the provider failed inside kmsfs".into(),
            }))
        };
        self.flight.result.lock().get_or_insert_with(panicked);
        self.flight.landed.notify_all();
    }
}

fn not_in_time(file: FileId) -> KeyError {
    KeyError::Unavailable {
        key: format!("of file {file}"),
        detail: "no answer in time".into(),
    }
}

#[cfg(test)]
#[path = "cache_tests.rs"]
mod tests;
