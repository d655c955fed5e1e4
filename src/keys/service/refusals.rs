//! Refusals that were only just received, so that a program that tries again
//! and again costs no call each time.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use lru::LruCache;
use parking_lot::Mutex;

use crate::keys::{KeyContext, KeyError, WrappedKey};
use crate::sys::clock::Clock;
use crate::types::FileId;

/// How long a refusal is given without asking again: short, as the key may be
/// enabled any moment.
pub(super) const KEPT: Duration = Duration::from_secs(5);
const MOST: NonZeroUsize = NonZeroUsize::new(4096).expect("not zero");

/// What is refused: the key of a file, or to make new ones.
type Subject = Option<FileId>;

/// The permanent refusals of the last few seconds.
pub(super) struct Refusals {
    clock: Arc<dyn Clock>,
    entries: Mutex<LruCache<Subject, Refusal>>,
    /// So that nothing is locked while there are none.
    count: AtomicUsize,
    given: AtomicU64,
}

struct Refusal {
    /// What was refused, for a file.
    wrapped: Vec<WrappedKey>,
    error: KeyError,
    until: Duration,
}

impl Refusals {
    pub(super) fn new(clock: Arc<dyn Clock>) -> Self {
        Self {
            clock,
            entries: Mutex::new(LruCache::sparse(MOST)),
            count: AtomicUsize::new(0),
            given: AtomicU64::new(0),
        }
    }

    /// The refusal of a file's key, if there was one.
    pub(super) fn of_file(
        &self,
        context: &KeyContext,
        wrapped: &[WrappedKey],
    ) -> Result<(), KeyError> {
        self.check(Some(context.file), wrapped)
    }

    /// The refusal to make keys, if there was one.
    pub(super) fn of_new_keys(&self) -> Result<(), KeyError> {
        self.check(None, &[])
    }

    fn check(&self, subject: Subject, wrapped: &[WrappedKey]) -> Result<(), KeyError> {
        if self.count.load(Ordering::Acquire) == 0 {
            return Ok(());
        }
        let mut entries = self.entries.lock();
        let Some(refusal) = entries.peek(&subject) else {
            return Ok(());
        };
        if self.clock.now() >= refusal.until || refusal.wrapped != wrapped {
            entries.pop(&subject);
            self.count.store(entries.len(), Ordering::Release);
            return Ok(());
        }
        self.given.fetch_add(1, Ordering::Relaxed);
        Err(refusal.error.clone())
    }

    /// Learns from what a provider said: a permanent refusal is kept, and what
    /// worked takes those back that were not about one wrapped key alone.
    pub(super) fn learn<T>(
        &self,
        file: Option<(&KeyContext, &[WrappedKey])>,
        result: &Result<T, KeyError>,
    ) {
        match result {
            Ok(_) => {
                if self.count.load(Ordering::Acquire) > 0 {
                    self.forget(|refusal| !matches!(refusal.error, KeyError::Rejected { .. }));
                }
            }
            Err(error) if is_refusal(error) => {
                let refusal = Refusal {
                    wrapped: file.map_or_else(Vec::new, |(_, wrapped)| wrapped.to_vec()),
                    error: error.clone(),
                    until: self.clock.now() + KEPT,
                };
                let mut entries = self.entries.lock();
                entries.put(file.map(|(context, _)| context.file), refusal);
                self.count.store(entries.len(), Ordering::Release);
            }
            Err(_) => {}
        }
    }

    /// Forgets them all.
    pub(super) fn clear(&self) {
        self.forget(|_| true);
    }

    fn forget(&self, which: impl Fn(&Refusal) -> bool) {
        let mut entries = self.entries.lock();
        let gone = entries.iter().filter(|(_, refusal)| which(refusal));
        let gone: Vec<Subject> = gone.map(|(subject, _)| *subject).collect();
        for subject in gone {
            entries.pop(&subject);
        }
        self.count.store(entries.len(), Ordering::Release);
    }

    /// How often one was given instead of a call.
    pub(super) fn given(&self) -> u64 {
        self.given.load(Ordering::Relaxed)
    }
}

fn is_refusal(error: &KeyError) -> bool {
    matches!(
        error,
        KeyError::NotFound { .. }
            | KeyError::Disabled { .. }
            | KeyError::Expired { .. }
            | KeyError::Denied { .. }
            | KeyError::Rejected { .. }
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::testing::{FakeClock, context, wrong};

    fn refusals() -> (Refusals, Arc<FakeClock>) {
        let clock = Arc::new(FakeClock::default());
        (Refusals::new(clock.clone()), clock)
    }

    fn learn(refusals: &Refusals, file: u8, result: Result<(), KeyError>) {
        refusals.learn(Some((&context(file), &[])), &result);
    }

    #[test]
    fn a_refusal_is_kept_for_seconds_and_for_its_file_only() {
        let (refusals, clock) = refusals();
        learn(&refusals, 1, Err(wrong::denied()));
        refusals.learn(None, &Err::<(), _>(wrong::disabled()));
        assert!(matches!(
            refusals.of_file(&context(1), &[]),
            Err(KeyError::Denied { .. })
        ));
        assert!(matches!(
            refusals.of_new_keys(),
            Err(KeyError::Disabled { .. })
        ));
        assert!(refusals.of_file(&context(2), &[]).is_ok());
        assert_eq!(refusals.given(), 2);
        clock.advance(5);
        assert!(refusals.of_file(&context(1), &[]).is_ok());
        assert!(refusals.of_new_keys().is_ok());
    }

    #[test]
    fn a_success_takes_back_what_was_about_the_key() {
        let (refusals, _) = refusals();
        learn(&refusals, 1, Err(wrong::disabled()));
        learn(&refusals, 2, Err(wrong::rejected()));
        learn(&refusals, 3, Ok(()));
        assert!(refusals.of_file(&context(1), &[]).is_ok());
        assert!(refusals.of_file(&context(2), &[]).is_err());
        refusals.clear();
        assert!(refusals.of_file(&context(2), &[]).is_ok());
    }

    #[test]
    fn what_may_pass_is_not_kept() {
        let (refusals, _) = refusals();
        learn(&refusals, 1, Err(wrong::unavailable()));
        assert!(refusals.of_file(&context(1), &[]).is_ok());
    }
}
