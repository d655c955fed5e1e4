//! Data keys as the filesystem uses them: a volume's recipients behind a cache,
//! with keys made and unwrapped ahead, and no more asked of a provider than it
//! bears.
//!
//! Where all recipients are local their calls are made on the caller's thread,
//! and of all this only the cache is in use.

mod ahead;
mod breaker;
mod failover;
mod guard;
mod limiter;
mod pace;
mod pool;
mod refusals;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::crypto::DataKey;
use crate::keys::audit::AuditLog;
use crate::keys::cache::{CacheCounters, CacheLimits, KeyCache};
use crate::keys::patience::{self, Priority};
use crate::keys::ring::KeyRing;
use crate::keys::stats::{CacheStats, KeyServiceStats};
use crate::keys::{KeyContext, KeyError, KeyProvider, WrappedKey};
use crate::sys::clock::{BootClock, Clock};
use crate::sys::workers::Workers;
use crate::types::{FileId, KeyLen, VolumeId};

pub use ahead::Wanted;
pub use pool::NewKey;

use ahead::Ahead;
use guard::Guarded;
use pool::Pool;
use refusals::Refusals;

/// How long an operation may wait for a key, unless the mount says otherwise.
pub const DEFAULT_DEADLINE: Duration = Duration::from_secs(10);

/// Pause before a provider that is down is asked again by someone who insists.
const AGAIN: Duration = Duration::from_millis(250);

/// The most threads that make and unwrap keys in the background: more than either
/// of `pool` and `ahead` has at work, so that neither waits for the other.
const THREADS: usize = 192;

/// Gives files their data keys.
pub struct KeyService {
    ring: Arc<KeyRing>,
    recipients: Vec<Arc<Guarded>>,
    local: bool,
    deadline: Duration,
    clock: Arc<dyn Clock>,
    cache: Arc<KeyCache>,
    refusals: Refusals,
    pool: Arc<Pool>,
    ahead: Arc<Ahead>,
    workers: Arc<Workers>,
    /// Where it is written down which file gets a key that was made ahead.
    audit: Option<Arc<AuditLog>>,
    locked: AtomicBool,
}

impl KeyService {
    /// A service over `ring` that keeps keys within `limits`.
    pub fn new(ring: KeyRing, limits: CacheLimits) -> Self {
        Self::with(ring, limits, DEFAULT_DEADLINE, Arc::new(BootClock))
    }

    /// As [`Self::new`], with another deadline for what waits for a provider,
    /// and by a clock of the caller's.
    pub fn with(
        ring: KeyRing,
        limits: CacheLimits,
        deadline: Duration,
        clock: Arc<dyn Clock>,
    ) -> Self {
        let mut recipients = Vec::new();
        let ring = Arc::new(ring.map(|provider| {
            let guarded = Arc::new(Guarded::new(provider, deadline));
            recipients.push(Arc::clone(&guarded));
            guarded
        }));
        let cache = Arc::new(KeyCache::new(limits, Arc::clone(&clock)));
        let workers = Arc::new(Workers::new("kmsfs-keys", THREADS));
        Self {
            local: ring.is_local(),
            deadline,
            refusals: Refusals::new(Arc::clone(&clock)),
            pool: Arc::new(Pool::new(
                Arc::clone(&ring),
                Arc::clone(&workers),
                Arc::clone(&clock),
                deadline,
                limits.time_to_live,
            )),
            ahead: Arc::new(Ahead::new(
                Arc::clone(&cache),
                recipients.clone(),
                Arc::clone(&workers),
                deadline,
            )),
            ring,
            recipients,
            clock,
            cache,
            workers,
            audit: None,
            locked: AtomicBool::new(false),
        }
    }

    /// The same service over recipients whose releases are in `log`: also what
    /// becomes of keys made ahead is written there.
    #[must_use]
    pub fn audited(mut self, log: Arc<AuditLog>) -> Self {
        self.audit = Some(log);
        self
    }

    /// The volume's recipients.
    pub fn ring(&self) -> &KeyRing {
        &self.ring
    }

    /// Whether every key is had without waiting for anyone.
    pub fn is_local(&self) -> bool {
        self.local
    }

    /// How long an operation may wait for a key.
    pub fn deadline(&self) -> Duration {
        self.deadline
    }

    /// A new file's id and data key, wrapped by every recipient; the key is kept.
    ///
    /// # Errors
    /// Those of the recipients; `WouldWait` if no key was made ahead and this
    /// thread may not wait.
    pub fn generate(&self, volume: VolumeId, len: KeyLen) -> Result<NewKey, KeyError> {
        self.refuse_if_locked()?;
        let ready = self.made_ahead(volume, len);
        let ahead = ready.is_some();
        let (made, new) = match ready {
            Some(ready) => ready,
            None => (self.clock.now(), self.make(volume, len)?),
        };
        let context = KeyContext {
            volume,
            file: new.file,
        };
        if ahead && let Some(log) = &self.audit {
            log.assigned(&context, &new.wrapped)?;
        }
        // It may have been locked since.
        self.refuse_if_locked()?;
        let key = Arc::clone(&new.key);
        self.cache.insert_older(&context, &new.wrapped, key, made);
        Ok(new)
    }

    fn made_ahead(&self, volume: VolumeId, len: KeyLen) -> Option<(Duration, NewKey)> {
        if self.local {
            return None;
        }
        self.pool.take(volume, len)
    }

    fn make(&self, volume: VolumeId, len: KeyLen) -> Result<NewKey, KeyError> {
        if self.local {
            return NewKey::make(&self.ring, volume, len);
        }
        self.refusals.of_new_keys()?;
        if !patience::may_wait() {
            return Err(KeyError::WouldWait);
        }
        let deadline = patience::deadline(self.deadline);
        let make = || self.pool.make(volume, len);
        let made = patience::until(deadline, Priority::Interactive, make);
        self.refusals.learn(None, &made);
        made
    }

    /// A file's data key, from memory or through one of its recipients.
    ///
    /// # Errors
    /// Those of the recipients; `WouldWait` if the key is not in memory and this
    /// thread may not wait.
    pub fn get(
        &self,
        context: &KeyContext,
        wrapped: &[WrappedKey],
    ) -> Result<Arc<DataKey>, KeyError> {
        self.refuse_if_locked()?;
        if !self.local {
            if let Some(key) = self.cache.get(context, wrapped) {
                return Ok(key);
            }
            self.refusals.of_file(context, wrapped)?;
            if !patience::may_wait() {
                return Err(KeyError::WouldWait);
            }
        }
        let deadline = patience::deadline(self.deadline);
        let key = self.cache.get_or_fetch(context, wrapped, deadline, || {
            self.ask(context, wrapped, deadline, Priority::Interactive)
        })?;
        // It may have been locked since.
        self.refuse_if_locked()?;
        Ok(key)
    }

    /// A data key that is not to be kept, through one of the recipients.
    ///
    /// # Errors
    /// Those of the recipients.
    pub fn unwrap(
        &self,
        context: &KeyContext,
        wrapped: &[WrappedKey],
    ) -> Result<DataKey, KeyError> {
        let deadline = patience::deadline(self.deadline);
        self.ask(context, wrapped, deadline, Priority::Interactive)
    }

    /// Asks the recipients.
    fn ask(
        &self,
        context: &KeyContext,
        wrapped: &[WrappedKey],
        deadline: Instant,
        priority: Priority,
    ) -> Result<DataKey, KeyError> {
        if self.local {
            return self.ring.unwrap(context, wrapped);
        }
        let time = (deadline, priority);
        let key = failover::unwrap(&self.recipients, &self.workers, context, wrapped, time);
        self.refusals.learn(Some((context, wrapped)), &key);
        key
    }

    /// Whether the recipients still give a key, asked until one answers, but not
    /// for ever: whoever asks may know that a provider that was down is not.
    ///
    /// # Errors
    /// Those of the recipients.
    pub fn is_given(&self, context: &KeyContext, wrapped: &[WrappedKey]) -> Result<(), KeyError> {
        // Longer than a provider that is down is left alone.
        let end = Instant::now() + self.deadline.max(DEFAULT_DEADLINE);
        loop {
            let deadline = patience::deadline(self.deadline);
            match self.ask(context, wrapped, deadline, Priority::Interactive) {
                Err(KeyError::Unavailable { .. }) if Instant::now() + AGAIN < end => {
                    std::thread::sleep(AGAIN);
                }
                result => return result.map(drop),
            }
        }
    }

    /// Gives no key any more, forgets all, and keeps none that comes in late,
    /// until this is called with `false`.
    pub fn set_locked(&self, locked: bool) {
        self.locked.store(locked, Ordering::SeqCst);
        self.pool.close(locked);
        self.cache.seal(locked);
        self.drop_all();
    }

    fn refuse_if_locked(&self) -> Result<(), KeyError> {
        match self.locked.load(Ordering::SeqCst) {
            true => Err(KeyError::Locked),
            false => Ok(()),
        }
    }

    /// A file's data key if it is in memory; never asks a provider.
    pub fn cached(&self, context: &KeyContext, wrapped: &[WrappedKey]) -> Option<Arc<DataKey>> {
        self.cache.get(context, wrapped)
    }

    /// Asks for a key anew that may be in memory, so that its time begins again.
    /// A key that is refused is forgotten; where the provider cannot be asked it
    /// keeps the time it has.
    ///
    /// # Errors
    /// Those of the recipients.
    pub fn refresh(
        &self,
        context: &KeyContext,
        wrapped: &[WrappedKey],
    ) -> Result<Arc<DataKey>, KeyError> {
        self.refuse_if_locked()?;
        let deadline = patience::deadline(self.deadline);
        let begun = self.clock.now();
        match self.ask(context, wrapped, deadline, Priority::Maintenance) {
            Ok(key) => {
                let key = Arc::new(key);
                let kept = Arc::clone(&key);
                self.cache.insert_older(context, wrapped, kept, begun);
                Ok(key)
            }
            Err(error) => {
                if !error.is_transient() {
                    self.cache.remove(context.file);
                }
                Err(error)
            }
        }
    }

    /// Unwraps keys that will probably be asked for, in the background and
    /// after everything more urgent.
    pub fn prefetch(&self, wanted: Vec<Wanted>) {
        if !self.local && self.refuse_if_locked().is_ok() {
            self.ahead.want(wanted);
        }
    }

    /// Forgets a file's key, as when the file is deleted.
    pub fn remove(&self, file: FileId) {
        self.cache.remove(file);
    }

    /// Forgets every key, also those made ahead, and every refusal.
    pub fn drop_all(&self) {
        self.ahead.clear();
        self.pool.clear();
        self.refusals.clear();
        self.cache.drop_all();
    }

    /// Forgets the keys whose time has come and says how many they were, and has
    /// credentials renewed that would end unused; the mount calls it every second.
    pub fn sweep(&self) -> usize {
        self.renew_credentials();
        self.pool.sweep();
        self.cache.sweep()
    }

    /// Has those renewed, in the background, that are due.
    fn renew_credentials(&self) {
        let due = self.recipients.iter().filter(|r| r.credentials_are_due());
        for recipient in due {
            let recipient = Arc::clone(recipient);
            self.workers.run(move || {
                if let Err(error) = recipient.renew_credentials() {
                    log::warn!("credentials are not renewed: {error}");
                }
            });
        }
    }

    /// What the cache has done so far.
    pub fn counters(&self) -> CacheCounters {
        self.cache.counters()
    }

    /// What the service has done so far, and how it is.
    pub fn stats(&self) -> KeyServiceStats {
        let counters = self.cache.counters();
        KeyServiceStats {
            cache: CacheStats {
                entries: self.cache.len(),
                capacity: self.cache.capacity(),
                hits: counters.hits,
                misses: counters.misses,
                evictions: counters.evictions,
            },
            pool: self.pool.stats(),
            prefetched: self.ahead.unwrapped(),
            remembered_refusals: self.refusals.given(),
            providers: self.recipients.iter().map(|r| r.stats()).collect(),
        }
    }
}

#[cfg(test)]
#[path = "service_tests.rs"]
mod tests;
