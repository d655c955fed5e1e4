//! Data keys in memory, for a while: bounded in number, age and idleness, and
//! asked for once however many threads want one.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

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
    /// How long after its last use a key is forgotten.
    pub idle: Duration,
}

impl Default for CacheLimits {
    fn default() -> Self {
        Self {
            entries: 16_384,
            time_to_live: Duration::from_secs(600),
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
    result: Mutex<Option<Fetched>>,
    landed: Condvar,
}

impl Flight {
    fn wait(&self) -> Fetched {
        let mut result = self.result.lock();
        loop {
            match &*result {
                Some(result) => return result.clone(),
                None => self.landed.wait(&mut result),
            }
        }
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
    /// however many threads ask meanwhile; all of them get its result. No lock
    /// is held during the call. Errors are not kept.
    pub fn get_or_fetch(
        &self,
        context: &KeyContext,
        wrapped: &[WrappedKey],
        fetch: impl FnOnce() -> Result<DataKey, KeyError>,
    ) -> Fetched {
        let fingerprint = self.fingerprint(context, wrapped);
        let id = (context.file, fingerprint);
        let flight = {
            let mut shard = self.shard(context.file).lock();
            if let Some(key) = self.lookup(&mut shard, context.file, fingerprint) {
                return Ok(key);
            }
            self.misses.fetch_add(1, Ordering::Relaxed);
            if let Some(flight) = shard.flights.get(&id).map(Arc::clone) {
                drop(shard);
                return flight.wait();
            }
            let flight = Arc::new(Flight::default());
            shard.flights.insert(id, Arc::clone(&flight));
            flight
        };
        self.calls.fetch_add(1, Ordering::Relaxed);
        let landing = Landing {
            cache: self,
            id,
            flight,
        };
        let fetched = fetch().map(Arc::new);
        landing.land(fetched)
    }

    /// Keeps a key that was just made.
    pub fn insert(&self, context: &KeyContext, wrapped: &[WrappedKey], key: Arc<DataKey>) {
        let fingerprint = self.fingerprint(context, wrapped);
        let mut shard = self.shard(context.file).lock();
        self.store(&mut shard, context.file, fingerprint, key);
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

    fn expired(&self, entry: &Entry, now: Duration) -> bool {
        now.saturating_sub(entry.fetched) >= self.limits.time_to_live
            || now.saturating_sub(entry.used) >= self.limits.idle
    }

    fn lookup(&self, shard: &mut Shard, file: FileId, fingerprint: u64) -> Option<Arc<DataKey>> {
        let entry = shard.entries.get_mut(&file)?;
        let now = self.clock.now();
        if entry.fingerprint != fingerprint || self.expired(entry, now) {
            shard.entries.pop(&file);
            self.evictions.fetch_add(1, Ordering::Relaxed);
            return None;
        }
        entry.used = now;
        self.hits.fetch_add(1, Ordering::Relaxed);
        Some(Arc::clone(&entry.key))
    }

    fn store(&self, shard: &mut Shard, file: FileId, fingerprint: u64, key: Arc<DataKey>) {
        if self.limits.entries == 0 {
            return;
        }
        let now = self.clock.now();
        let entry = Entry {
            fingerprint,
            key,
            fetched: now,
            used: now,
        };
        if shard.entries.push(file, entry).is_some() {
            self.evictions.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Ends a flight: also when the fetch panics, or its waiters would wait forever.
struct Landing<'a> {
    cache: &'a KeyCache,
    id: (FileId, u64),
    flight: Arc<Flight>,
}

impl Landing<'_> {
    fn land(self, fetched: Fetched) -> Fetched {
        let (file, fingerprint) = self.id;
        let mut shard = self.cache.shard(file).lock();
        // A flight that is no longer listed was cancelled by `remove` or
        // `drop_all`, perhaps followed by a new one for the same file.
        if self.is_listed(&shard)
            && let Ok(key) = &fetched
        {
            self.cache
                .store(&mut shard, file, fingerprint, Arc::clone(key));
        }
        drop(shard);
        *self.flight.result.lock() = Some(fetched.clone());
        fetched
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
            Err(KeyError::Unavailable {
                key: format!("of file {}", self.id.0),
                detail: "the provider failed inside kmsfs".into(),
            })
        };
        self.flight.result.lock().get_or_insert_with(panicked);
        self.flight.landed.notify_all();
    }
}

#[cfg(test)]
#[path = "cache_tests.rs"]
mod tests;
