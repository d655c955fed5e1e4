//! What `kmsfs status` shows: the form of its JSON is stable, fields are only
//! ever added.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::time::Duration;

use crate::keys::stats::ProviderStats;

use super::server::ControlTarget;

/// A mount at one moment. Counters count since it was mounted.
#[derive(Serialize, Deserialize)]
pub(in crate::cli) struct Snapshot {
    pub(in crate::cli) volume: String,
    pub(in crate::cli) mountpoint: String,
    pub(in crate::cli) backing: String,
    pub(in crate::cli) pid: u32,
    pub(in crate::cli) uptime_seconds: f64,
    pub(in crate::cli) locked: bool,
    pub(in crate::cli) open_files: OpenFiles,
    pub(in crate::cli) lease: Lease,
    pub(in crate::cli) cache: Cache,
    pub(in crate::cli) pool: Pool,
    pub(in crate::cli) prefetched: u64,
    pub(in crate::cli) remembered_refusals: u64,
    pub(in crate::cli) keys: Vec<Key>,
    pub(in crate::cli) audit: Option<Audit>,
}

#[derive(Serialize, Deserialize)]
pub(in crate::cli) struct OpenFiles {
    pub(in crate::cli) count: usize,
    pub(in crate::cli) with_key: usize,
}

#[derive(Serialize, Deserialize)]
pub(in crate::cli) struct Lease {
    pub(in crate::cli) ttl_seconds: f64,
    pub(in crate::cli) grace_seconds: f64,
}

#[derive(Serialize, Deserialize)]
pub(in crate::cli) struct Cache {
    pub(in crate::cli) entries: usize,
    pub(in crate::cli) capacity: usize,
    pub(in crate::cli) hits: u64,
    pub(in crate::cli) misses: u64,
    pub(in crate::cli) evictions: u64,
    pub(in crate::cli) hit_rate: Option<f64>,
}

#[derive(Serialize, Deserialize)]
pub(in crate::cli) struct Pool {
    pub(in crate::cli) ready: usize,
    pub(in crate::cli) target: usize,
    pub(in crate::cli) capacity: usize,
    pub(in crate::cli) taken: u64,
    pub(in crate::cli) dry: u64,
    pub(in crate::cli) expired: u64,
    pub(in crate::cli) hit_rate: Option<f64>,
}

#[derive(Serialize, Deserialize)]
pub(in crate::cli) struct Key {
    pub(in crate::cli) uri: String,
    pub(in crate::cli) local: bool,
    pub(in crate::cli) calls: u64,
    pub(in crate::cli) in_flight: usize,
    pub(in crate::cli) errors: BTreeMap<String, u64>,
    pub(in crate::cli) throttled: u64,
    pub(in crate::cli) retries: u64,
    pub(in crate::cli) hedges: u64,
    pub(in crate::cli) p50_seconds: Option<f64>,
    pub(in crate::cli) p99_seconds: Option<f64>,
    /// Calls a second that the limiter lets through; `null` for local keys.
    pub(in crate::cli) rate: Option<f64>,
    /// `closed`, `open` or `half-open`.
    pub(in crate::cli) breaker: String,
}

#[derive(Serialize, Deserialize)]
pub(in crate::cli) struct Audit {
    pub(in crate::cli) lines: u64,
    pub(in crate::cli) last: String,
}

impl Snapshot {
    pub(super) fn of(target: &ControlTarget) -> Self {
        let stats = target.keeper.keys().stats();
        let terms = target.keeper.terms();
        let (count, with_key) = target.keeper.open_files();
        let (cache, pool) = (stats.cache, stats.pool);
        Self {
            volume: target.volume.to_hex(),
            mountpoint: target.mountpoint.display().to_string(),
            backing: target.backing.display().to_string(),
            pid: std::process::id(),
            uptime_seconds: target.started.elapsed().as_secs_f64(),
            locked: target.keeper.is_locked(),
            open_files: OpenFiles { count, with_key },
            lease: Lease {
                ttl_seconds: terms.time_to_live.as_secs_f64(),
                grace_seconds: terms.grace.as_secs_f64(),
            },
            cache: Cache {
                entries: cache.entries,
                capacity: cache.capacity,
                hits: cache.hits,
                misses: cache.misses,
                evictions: cache.evictions,
                hit_rate: share(cache.hits, cache.misses),
            },
            pool: Pool {
                ready: pool.ready,
                target: pool.target,
                capacity: pool.capacity,
                taken: pool.taken,
                dry: pool.dry,
                expired: pool.expired,
                hit_rate: share(pool.taken, pool.dry),
            },
            prefetched: stats.prefetched,
            remembered_refusals: stats.remembered_refusals,
            keys: stats.providers.iter().map(key).collect(),
            audit: target.audit.as_ref().map(|log| {
                let head = log.head();
                Audit {
                    lines: head.lines,
                    last: head.last,
                }
            }),
        }
    }
}

fn share(of: u64, others: u64) -> Option<f64> {
    let all = of + others;
    (all > 0).then(|| of as f64 / all as f64)
}

fn key(stats: &ProviderStats) -> Key {
    let seconds = |time: Option<Duration>| time.map(|time| time.as_secs_f64());
    let errors = stats.errors.iter();
    Key {
        uri: stats.uri.clone(),
        local: stats.local,
        calls: stats.calls,
        in_flight: stats.in_flight,
        errors: errors.map(|(class, n)| (class.to_owned(), n)).collect(),
        throttled: stats.errors.throttled(),
        retries: stats.retries,
        hedges: stats.hedges,
        p50_seconds: seconds(stats.p50),
        p99_seconds: seconds(stats.p99),
        rate: (!stats.local).then_some(stats.rate),
        breaker: stats.breaker.name().to_owned(),
    }
}
