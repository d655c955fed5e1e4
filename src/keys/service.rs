//! Data keys as the filesystem uses them: a volume's recipients behind a cache.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::crypto::DataKey;
use crate::keys::cache::{CacheCounters, CacheLimits, KeyCache};
use crate::keys::ring::KeyRing;
use crate::keys::stats::{CacheStats, KeyServiceStats, ProviderStats};
use crate::keys::{KeyContext, KeyError, WrappedKey};
use crate::sys::clock::{BootClock, Clock};
use crate::types::{FileId, KeyLen};

/// Gives files their data keys.
pub struct KeyService {
    ring: KeyRing,
    cache: KeyCache,
    locked: AtomicBool,
}

impl KeyService {
    /// A service over `ring` that keeps keys within `limits`.
    pub fn new(ring: KeyRing, limits: CacheLimits) -> Self {
        Self::with_clock(ring, limits, Arc::new(BootClock))
    }

    /// As [`Self::new`], by a clock of the caller's.
    pub fn with_clock(ring: KeyRing, limits: CacheLimits, clock: Arc<dyn Clock>) -> Self {
        Self {
            ring,
            cache: KeyCache::new(limits, clock),
            locked: AtomicBool::new(false),
        }
    }

    /// The volume's recipients.
    pub fn ring(&self) -> &KeyRing {
        &self.ring
    }

    /// Makes a new file's data key, wrapped by every recipient, and keeps it.
    pub fn generate(
        &self,
        context: &KeyContext,
        len: KeyLen,
    ) -> Result<(Arc<DataKey>, Vec<WrappedKey>), KeyError> {
        self.refuse_if_locked()?;
        let (key, wrapped) = self.ring.generate(context, len)?;
        let key = Arc::new(key);
        self.cache.insert(context, &wrapped, Arc::clone(&key));
        Ok((key, wrapped))
    }

    /// A file's data key, from memory or through one of its recipients.
    pub fn get(
        &self,
        context: &KeyContext,
        wrapped: &[WrappedKey],
    ) -> Result<Arc<DataKey>, KeyError> {
        self.refuse_if_locked()?;
        self.cache
            .get_or_fetch(context, wrapped, || self.ring.unwrap(context, wrapped))
    }

    /// A file's data key, from one of its recipients even if it is in memory:
    /// whether it is still given.
    pub fn renew(
        &self,
        context: &KeyContext,
        wrapped: &[WrappedKey],
    ) -> Result<Arc<DataKey>, KeyError> {
        self.refuse_if_locked()?;
        let key = Arc::new(self.ring.unwrap(context, wrapped)?);
        self.cache.insert(context, wrapped, Arc::clone(&key));
        Ok(key)
    }

    /// Gives no key any more and forgets all, until this is called with `false`.
    pub fn set_locked(&self, locked: bool) {
        self.locked.store(locked, Ordering::SeqCst);
        if locked {
            self.drop_all();
        }
    }

    fn refuse_if_locked(&self) -> Result<(), KeyError> {
        match self.locked.load(Ordering::SeqCst) {
            true => Err(KeyError::Locked),
            false => Ok(()),
        }
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
            providers: self.providers(),
            ..KeyServiceStats::default()
        }
    }

    fn providers(&self) -> Vec<ProviderStats> {
        let local = self.ring.is_local();
        let stats = |uri: &str| ProviderStats {
            uri: uri.to_owned(),
            local,
            ..ProviderStats::default()
        };
        self.ring.uris().map(stats).collect()
    }

    /// A file's data key if it is in memory; never asks a provider.
    pub fn cached(&self, context: &KeyContext, wrapped: &[WrappedKey]) -> Option<Arc<DataKey>> {
        self.cache.get(context, wrapped)
    }

    /// Forgets a file's key, as when the file is deleted.
    pub fn remove(&self, file: FileId) {
        self.cache.remove(file);
    }

    /// Forgets every key.
    pub fn drop_all(&self) {
        self.cache.drop_all();
    }

    /// Forgets the keys whose time has come and says how many they were; the
    /// mount calls it every few seconds.
    pub fn sweep(&self) -> usize {
        self.cache.sweep()
    }

    /// What the cache has done so far.
    pub fn counters(&self) -> CacheCounters {
        self.cache.counters()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::KeyProvider;
    use crate::keys::testing::{CONTEXT, FakeProvider, context, wrong};

    fn service(provider: &Arc<FakeProvider>) -> KeyService {
        let provider = Arc::clone(provider) as Arc<dyn KeyProvider>;
        let ring = KeyRing::new(vec![provider]).unwrap();
        KeyService::new(ring, CacheLimits::default())
    }

    #[test]
    fn creating_and_reopening_a_file_is_one_call() {
        let provider = FakeProvider::new("a");
        let service = service(&provider);
        let (key, wrapped) = service.generate(&CONTEXT, KeyLen::Bits256).unwrap();
        for _ in 0..1000 {
            let again = service.get(&CONTEXT, &wrapped).unwrap();
            assert!(Arc::ptr_eq(&key, &again));
        }
        assert_eq!(provider.calls(), 1);
        service.remove(CONTEXT.file);
        assert!(service.cached(&CONTEXT, &wrapped).is_none());
        let again = service.get(&CONTEXT, &wrapped).unwrap();
        assert_eq!(again.expose(), key.expose());
        assert_eq!(provider.calls(), 2);
        service.drop_all();
        assert!(service.cached(&CONTEXT, &wrapped).is_none());
    }

    #[test]
    fn sixty_four_threads_are_one_provider_call() {
        let provider = FakeProvider::new("a");
        let service = service(&provider);
        let (_, wrapped) = service.generate(&CONTEXT, KeyLen::Bits256).unwrap();
        service.drop_all();
        provider.delay(std::time::Duration::from_millis(300));
        let start = std::sync::Barrier::new(64);
        std::thread::scope(|scope| {
            for _ in 0..64 {
                scope.spawn(|| {
                    start.wait();
                    service.get(&CONTEXT, &wrapped).unwrap();
                });
            }
        });
        assert_eq!(
            provider.calls(),
            2,
            "one to make the key, one for all threads"
        );
    }

    #[test]
    fn a_wrapped_key_moved_to_another_file_is_rejected() {
        let provider = FakeProvider::new("a");
        let service = service(&provider);
        let (_, wrapped) = service.generate(&CONTEXT, KeyLen::Bits256).unwrap();
        let error = service.get(&context(9), &wrapped).unwrap_err();
        assert!(matches!(error, KeyError::Rejected { .. }));
        provider.fail(Some(wrong::disabled()));
        assert!(service.get(&CONTEXT, &wrapped).is_ok(), "it is in memory");
    }
}
