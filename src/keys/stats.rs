//! What the key service has done and how it is: a snapshot for `kmsfs status`,
//! and the counters that it is taken from.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use crate::keys::KeyError;

/// The key service at one moment. Counters count since the mount.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct KeyServiceStats {
    /// The cache of data keys.
    pub cache: CacheStats,
    /// The keys made ahead for new files.
    pub pool: PoolStats,
    /// Keys that were unwrapped ahead of their files' opening.
    pub prefetched: u64,
    /// Requests answered by a refusal that was only just received.
    pub remembered_refusals: u64,
    /// The keys at the providers, in the volume's order of recipients.
    pub providers: Vec<ProviderStats>,
}

/// The cache of data keys.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CacheStats {
    /// Keys in memory.
    pub entries: usize,
    /// The most there may be.
    pub capacity: usize,
    /// Keys given from memory.
    pub hits: u64,
    /// Keys that were not in memory, including those that another thread was
    /// already fetching.
    pub misses: u64,
    /// Keys forgotten for any reason.
    pub evictions: u64,
}

/// The keys made ahead for new files.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PoolStats {
    /// Keys ready to be used.
    pub ready: usize,
    /// How many the pool wants to have ready at the present rate.
    pub target: usize,
    /// The most there may be.
    pub capacity: usize,
    /// Keys given to new files.
    pub taken: u64,
    /// New files that found the pool empty and waited for a call.
    pub dry: u64,
    /// Keys that were never used and became too old.
    pub expired: u64,
}

/// One key at a provider.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ProviderStats {
    /// The key's URI.
    pub uri: String,
    /// Whether calls are answered inside this process; limiter and breaker do
    /// nothing then.
    pub local: bool,
    /// Calls made, tries that were repeated included.
    pub calls: u64,
    /// Calls under way.
    pub in_flight: usize,
    /// Calls that failed, by class.
    pub errors: ErrorCounts,
    /// Calls that were tries of the same thing again.
    pub retries: u64,
    /// Calls made because an earlier recipient was slow or failing.
    pub hedges: u64,
    /// Time that half of the recent successful calls took at most.
    pub p50: Option<Duration>,
    /// Time that 99 % of the recent successful calls took at most.
    pub p99: Option<Duration>,
    /// Calls a second that the limiter lets through at present.
    pub rate: f64,
    /// Whether the provider is asked at all.
    pub breaker: BreakerState,
}

/// Whether a provider is asked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BreakerState {
    /// It is.
    #[default]
    Closed,
    /// It is not, as it failed several times in a row.
    Open,
    /// One call finds out whether it works again.
    HalfOpen,
}

impl BreakerState {
    /// The state's name: `closed`, `open` or `half-open`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Open => "open",
            Self::HalfOpen => "half-open",
        }
    }
}

/// Number of classes of [`KeyError`].
const CLASSES: usize = 9;

/// Failed calls by class of [`KeyError`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ErrorCounts([u64; CLASSES]);

impl ErrorCounts {
    const NAMES: [&'static str; CLASSES] = [
        "not_found",
        "disabled",
        "expired",
        "denied",
        "rejected",
        "throttled",
        "unavailable",
        "malformed",
        "configuration",
    ];

    /// Every class's name and count.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> {
        Self::NAMES.into_iter().zip(self.0)
    }

    /// All failed calls.
    pub fn total(&self) -> u64 {
        self.0.iter().sum()
    }

    /// Calls that the provider answered with a wish for fewer.
    pub fn throttled(&self) -> u64 {
        self.0[5]
    }

    fn class(error: &KeyError) -> usize {
        match error {
            KeyError::NotFound { .. } => 0,
            KeyError::Disabled { .. } => 1,
            KeyError::Expired { .. } => 2,
            KeyError::Denied { .. } => 3,
            KeyError::Rejected { .. } => 4,
            KeyError::Throttled { .. } => 5,
            KeyError::Unavailable { .. } | KeyError::Locked | KeyError::WouldWait => 6,
            KeyError::Malformed { .. } => 7,
            KeyError::Configuration { .. } => 8,
        }
    }
}

/// The counters of one key at a provider.
#[derive(Default)]
pub(super) struct CallCounters {
    calls: AtomicU64,
    in_flight: AtomicUsize,
    errors: [AtomicU64; CLASSES],
    pub(super) retries: AtomicU64,
    pub(super) hedges: AtomicU64,
    pub(super) latency: Latencies,
}

impl CallCounters {
    /// A call begins; it ends when the guard is dropped.
    pub(super) fn begin(&self) -> UnderWay<'_> {
        self.calls.fetch_add(1, Ordering::Relaxed);
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        UnderWay(self)
    }

    /// A call failed.
    pub(super) fn failed(&self, error: &KeyError) {
        self.errors[ErrorCounts::class(error)].fetch_add(1, Ordering::Relaxed);
    }

    /// Fills in what the counters know.
    pub(super) fn snapshot(&self, stats: &mut ProviderStats) {
        stats.calls = self.calls.load(Ordering::Relaxed);
        stats.in_flight = self.in_flight.load(Ordering::Relaxed);
        stats.retries = self.retries.load(Ordering::Relaxed);
        stats.hedges = self.hedges.load(Ordering::Relaxed);
        stats.errors = ErrorCounts(std::array::from_fn(|i| {
            self.errors[i].load(Ordering::Relaxed)
        }));
        stats.p50 = self.latency.quantile(0.50);
        stats.p99 = self.latency.quantile(0.99);
    }
}

/// A call that is under way.
pub(super) struct UnderWay<'a>(&'a CallCounters);

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Buckets an octave: a quantile is off by at most a fifth.
const STEPS: f64 = 4.0;
/// Enough for hours, in microseconds.
const BUCKETS: usize = 136;
/// Once there are this many, all counts are halved: the past fades.
const MOST_SAMPLES: u64 = 4096;

/// How long calls took lately, roughly.
pub(super) struct Latencies {
    buckets: [AtomicU64; BUCKETS],
    samples: AtomicU64,
}

impl Default for Latencies {
    fn default() -> Self {
        Self {
            buckets: std::array::from_fn(|_| AtomicU64::new(0)),
            samples: AtomicU64::new(0),
        }
    }
}

impl Latencies {
    /// Adds a call.
    pub(super) fn record(&self, took: Duration) {
        let micros = took.as_micros().max(1) as f64;
        let bucket = ((micros.log2() * STEPS).ceil() as usize).min(BUCKETS - 1);
        self.buckets[bucket].fetch_add(1, Ordering::Relaxed);
        let samples = self.samples.fetch_add(1, Ordering::Relaxed) + 1;
        if samples >= MOST_SAMPLES {
            self.samples.fetch_sub(samples / 2, Ordering::Relaxed);
            for bucket in &self.buckets {
                let count = bucket.load(Ordering::Relaxed);
                bucket.fetch_sub(count / 2, Ordering::Relaxed);
            }
        }
    }

    /// The time that this part of the calls took at most; `None` if there were
    /// none.
    pub(super) fn quantile(&self, part: f64) -> Option<Duration> {
        let counts = self.buckets.each_ref().map(|b| b.load(Ordering::Relaxed));
        let all: u64 = counts.iter().sum();
        let mut wanted = ((all as f64 * part).ceil() as u64).max(1);
        let bucket = counts.iter().position(|&count| {
            let found = count >= wanted;
            wanted = wanted.saturating_sub(count);
            found
        })?;
        let micros = (bucket as f64 / STEPS).exp2();
        Some(Duration::from_micros(micros as u64))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::testing::wrong;

    #[test]
    fn quantiles_are_within_a_fifth() {
        let latencies = Latencies::default();
        assert_eq!(latencies.quantile(0.5), None);
        for millis in 1..=100 {
            latencies.record(Duration::from_millis(millis));
        }
        for (part, millis) in [(0.5, 50.0), (0.99, 99.0)] {
            let found = latencies.quantile(part).unwrap().as_secs_f64() * 1e3;
            assert!((millis * 0.99..millis * 1.2).contains(&found), "{found}");
        }
    }

    #[test]
    fn the_past_fades() {
        let latencies = Latencies::default();
        for _ in 0..5000 {
            latencies.record(Duration::from_secs(1));
        }
        for _ in 0..20_000 {
            latencies.record(Duration::from_millis(1));
        }
        assert!(latencies.quantile(0.95).unwrap() < Duration::from_millis(2));
    }

    #[test]
    fn calls_are_counted_by_outcome() {
        let counters = CallCounters::default();
        let call = counters.begin();
        let mut stats = ProviderStats::default();
        counters.snapshot(&mut stats);
        assert_eq!((stats.calls, stats.in_flight), (1, 1));
        counters.failed(&wrong::denied());
        drop(call);
        counters.snapshot(&mut stats);
        assert_eq!((stats.calls, stats.in_flight), (1, 0));
        let denied = stats.errors.iter().find(|(name, _)| *name == "denied");
        assert_eq!(denied, Some(("denied", 1)));
        assert_eq!((stats.errors.total(), stats.errors.throttled()), (1, 0));
    }
}
