//! A provider as the service calls it: within its quota, again where that makes
//! sense, not at all while it is down, and always within a deadline.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crate::crypto::{DataKey, random};
use crate::keys::patience::{self, Priority};
use crate::keys::stats::{CallCounters, ProviderStats};
use crate::keys::{KeyContext, KeyError, KeyProvider, WrappedKey};
use crate::types::KeyLen;

use super::breaker::Breaker;
use super::limiter::Limiter;

const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
/// The part of the deadline after which a provider that only fails counts as
/// down.
const GRACE: u32 = 2;

/// A provider behind its limiter and its breaker. One that is local is called
/// directly.
pub(super) struct Guarded {
    provider: Arc<dyn KeyProvider>,
    local: bool,
    /// How long a call may take where the thread has no deadline of its own.
    time: Duration,
    limiter: Limiter,
    breaker: Breaker,
    pub(super) counters: CallCounters,
}

impl Guarded {
    pub(super) fn new(provider: Arc<dyn KeyProvider>, time: Duration) -> Self {
        Self {
            local: provider.is_local(),
            provider,
            time,
            limiter: Limiter::new(),
            breaker: Breaker::new(time / GRACE),
            counters: CallCounters::default(),
        }
    }

    /// Waits for a turn to make one call by [`Self::unwrap_ahead`].
    pub(super) fn turn(&self, priority: Priority, deadline: Instant) -> bool {
        self.local || self.limiter.acquire(priority, deadline)
    }

    /// Unwraps keys that nobody has asked for yet: one try, whose turn has come.
    pub(super) fn unwrap_ahead(
        &self,
        wrapped: &[(KeyContext, WrappedKey)],
        deadline: Instant,
    ) -> Vec<Result<DataKey, KeyError>> {
        let mut results = Vec::new();
        let tried = self.try_once(deadline, None, || {
            results = self.provider.unwrap_many(wrapped);
            let failed = results.iter().find_map(|result| {
                let error = result.as_ref().err()?;
                error.is_transient().then(|| error.clone())
            });
            failed.map_or(Ok(()), Err)
        });
        match tried {
            // The breaker was open.
            Err(error) if results.is_empty() => {
                let each = wrapped.iter();
                each.map(|_| Err(error.clone())).collect()
            }
            _ => results,
        }
    }

    /// Whether calls fail at once at present.
    pub(super) fn is_down(&self) -> bool {
        self.breaker.is_open()
    }

    /// What is known of the provider.
    pub(super) fn stats(&self) -> ProviderStats {
        let mut stats = ProviderStats {
            uri: self.provider.uri().to_owned(),
            local: self.local,
            rate: self.limiter.rate(),
            breaker: self.breaker.state(),
            ..ProviderStats::default()
        };
        self.counters.snapshot(&mut stats);
        stats
    }

    fn call<T>(&self, attempt: impl Fn() -> Result<T, KeyError>) -> Result<T, KeyError> {
        if self.local {
            let _under_way = self.counters.begin();
            return attempt().inspect_err(|error| self.counters.failed(error));
        }
        let deadline = patience::deadline(self.time);
        let priority = patience::priority();
        // As when it waited for a thread until now: what nobody waits for any
        // more is not asked.
        if Instant::now() >= deadline {
            return Err(self.unavailable("no time is left to ask it".into()));
        }
        let mut pause = FIRST_PAUSE;
        loop {
            let error = match self.try_once(deadline, Some(priority), &attempt) {
                Err(error) if error.is_transient() => error,
                result => return result,
            };
            let wait = full_jitter(pause);
            if Instant::now() + wait >= deadline || self.breaker.is_open() {
                return Err(error);
            }
            std::thread::sleep(wait);
            // Where it was too much, the limiter sees to it that it becomes less.
            if !matches!(error, KeyError::Throttled { .. }) {
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
            self.counters.retries.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// One call, unless the provider is down, and what is learnt from it. Waits
    /// for its turn, unless that has come already.
    fn try_once<T>(
        &self,
        deadline: Instant,
        turn: Option<Priority>,
        attempt: impl FnOnce() -> Result<T, KeyError>,
    ) -> Result<T, KeyError> {
        let admission = match self.breaker.admit(Instant::now()) {
            Ok(admission) => admission,
            Err(wait) => return Err(self.down(wait)),
        };
        if turn.is_some_and(|priority| !self.limiter.acquire(priority, deadline)) {
            return Err(self.too_many());
        }
        let under_way = self.counters.begin();
        let start = Instant::now();
        let result = patience::one_try(deadline, attempt);
        drop(under_way);
        match &result {
            Ok(_) => self.counters.latency.record(start.elapsed()),
            Err(error) => self.counters.failed(error),
        }
        if let Err(KeyError::Throttled { retry_after, .. }) = &result {
            self.limiter.throttled(*retry_after);
        }
        match &result {
            Err(KeyError::Unavailable { detail, .. }) => {
                if admission.failed(Instant::now()) {
                    log::warn!("key provider {} is down ({detail})", self.provider.uri());
                }
            }
            _ => {
                if admission.answered() {
                    log::info!("key provider {} works again", self.provider.uri());
                }
            }
        }
        result
    }

    fn down(&self, wait: Duration) -> KeyError {
        let next = match wait.as_millis() {
            0 => "is being tried again".to_owned(),
            millis => format!("is tried again in {millis} ms"),
        };
        self.unavailable(format!("it did not answer lately, and {next}"))
    }

    fn unavailable(&self, detail: String) -> KeyError {
        KeyError::Unavailable {
            key: self.provider.uri().to_owned(),
            detail,
        }
    }

    fn too_many(&self) -> KeyError {
        KeyError::Throttled {
            key: self.provider.uri().to_owned(),
            detail: "too many calls wait for their turn".into(),
            retry_after: None,
        }
    }
}

/// Anything up to `pause`.
fn full_jitter(pause: Duration) -> Duration {
    pause * u32::from(u16::from_le_bytes(random::bytes())) / u32::from(u16::MAX)
}

impl KeyProvider for Guarded {
    fn uri(&self) -> &str {
        self.provider.uri()
    }

    fn is_local(&self) -> bool {
        self.local
    }

    fn recognises(&self, wrapped: &WrappedKey) -> bool {
        self.provider.recognises(wrapped)
    }

    fn generate(
        &self,
        context: &KeyContext,
        len: KeyLen,
    ) -> Result<(DataKey, WrappedKey), KeyError> {
        self.call(|| self.provider.generate(context, len))
    }

    fn wrap(&self, context: &KeyContext, key: &DataKey) -> Result<WrappedKey, KeyError> {
        self.call(|| self.provider.wrap(context, key))
    }

    fn unwrap(&self, context: &KeyContext, wrapped: &WrappedKey) -> Result<DataKey, KeyError> {
        self.call(|| self.provider.unwrap(context, wrapped))
    }

    fn batch(&self) -> usize {
        self.provider.batch()
    }

    fn rewrap(&self, context: &KeyContext, wrapped: &WrappedKey) -> Result<WrappedKey, KeyError> {
        self.call(|| self.provider.rewrap(context, wrapped))
    }

    fn describe(&self) -> Result<Vec<(&'static str, String)>, KeyError> {
        self.call(|| self.provider.describe())
    }

    fn credentials_are_due(&self) -> bool {
        self.provider.credentials_are_due()
    }

    fn renew_credentials(&self) -> Result<(), KeyError> {
        self.provider.renew_credentials()
    }

    fn advice(&self, error: &KeyError) -> Option<String> {
        self.provider.advice(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::stats::BreakerState;
    use crate::keys::testing::{CONTEXT, FakeProvider, wrong};

    fn guarded(time: Duration) -> (Arc<FakeProvider>, Guarded) {
        let provider = FakeProvider::remote("a");
        let guarded = Guarded::new(provider.clone(), time);
        (provider, guarded)
    }

    fn generate(guarded: &Guarded) -> Result<(), KeyError> {
        guarded.generate(&CONTEXT, KeyLen::Bits256).map(drop)
    }

    #[test]
    fn what_may_pass_is_tried_again_within_the_deadline() {
        let (provider, guarded) = guarded(Duration::from_millis(400));
        let start = Instant::now();
        provider.fail(Some(wrong::throttled()));
        assert!(matches!(
            generate(&guarded),
            Err(KeyError::Throttled { .. })
        ));
        assert!(start.elapsed() < Duration::from_millis(600));
        assert!(provider.calls() > 2);
        provider.fail_times(2, wrong::unavailable());
        generate(&guarded).unwrap();
        let stats = guarded.stats();
        assert_eq!(stats.calls as usize, provider.calls());
        assert!(stats.retries >= 3 && stats.errors.throttled() >= 2);
        assert!(stats.p50.is_some() && stats.rate < 1000.0);
    }

    #[test]
    fn what_comes_too_late_is_not_asked() {
        let (provider, guarded) = guarded(Duration::from_secs(5));
        let late = patience::until(Instant::now(), Priority::Interactive, || generate(&guarded));
        assert!(matches!(late, Err(KeyError::Unavailable { .. })));
        assert_eq!(provider.calls(), 0);
    }

    #[test]
    fn one_of_many_finds_out_that_it_works_again() {
        let (provider, guarded) = guarded(Duration::from_millis(300));
        provider.fail(Some(wrong::unavailable()));
        while guarded.stats().breaker == BreakerState::Closed {
            generate(&guarded).unwrap_err();
        }
        std::thread::sleep(Duration::from_millis(1050));
        let calls = provider.calls();
        provider.fail(None);
        provider.delay(Duration::from_millis(600));
        let start = std::sync::Barrier::new(32);
        let ask = || {
            start.wait();
            generate(&guarded).is_ok()
        };
        let worked = std::thread::scope(|scope| {
            let all: Vec<_> = (0..32).map(|_| scope.spawn(ask)).collect();
            all.into_iter()
                .filter_map(|t| t.join().ok())
                .filter(|ok| *ok)
                .count()
        });
        assert_eq!(
            (worked, provider.calls() - calls),
            (1, 1),
            "the others fail at once"
        );
        generate(&guarded).unwrap();
    }

    #[test]
    fn a_refusal_is_not_tried_again() {
        let (provider, guarded) = guarded(Duration::from_secs(5));
        provider.fail(Some(wrong::denied()));
        assert!(matches!(generate(&guarded), Err(KeyError::Denied { .. })));
        assert_eq!(provider.calls(), 1);
    }

    #[test]
    fn a_provider_that_is_down_is_not_asked_until_it_is_tried_again() {
        let (provider, guarded) = guarded(Duration::from_millis(300));
        provider.fail(Some(wrong::unavailable()));
        for _ in 0..20 {
            if guarded.stats().breaker == BreakerState::Open {
                break;
            }
            generate(&guarded).unwrap_err();
        }
        let (calls, start) = (provider.calls(), Instant::now());
        for _ in 0..100 {
            assert!(matches!(
                generate(&guarded),
                Err(KeyError::Unavailable { .. })
            ));
        }
        assert_eq!(provider.calls(), calls, "it fails at once");
        assert!(start.elapsed() < Duration::from_millis(500));
        provider.fail(None);
        std::thread::sleep(Duration::from_millis(1050));
        generate(&guarded).unwrap();
        assert_eq!(guarded.stats().breaker, BreakerState::Closed);
    }

    #[test]
    fn keys_ahead_are_one_try_of_the_providers_batch() {
        let (provider, guarded) = guarded(Duration::from_secs(1));
        let (_, wrapped) = guarded.generate(&CONTEXT, KeyLen::Bits256).unwrap();
        let end = Instant::now() + Duration::from_secs(1);
        let wanted = vec![(CONTEXT, wrapped); 3];
        let results = guarded.unwrap_ahead(&wanted, end);
        assert!(results.len() == 3 && results.iter().all(Result::is_ok));
        assert_eq!(provider.calls(), 4, "it has no batches");
        provider.fail(Some(wrong::throttled()));
        assert!(guarded.unwrap_ahead(&wanted[..1], end)[0].is_err());
        assert_eq!(provider.calls(), 5);
    }
}
