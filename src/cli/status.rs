//! `kmsfs status`.

mod metrics;

use std::fmt::Write;
use std::path::PathBuf;

use clap::Args;

use crate::cli::control::{Command, Snapshot, ask_as};
use crate::cli::{ExitCode, Failure, print};

const EXAMPLES: &str = "examples:
  kmsfs status /mnt/plain
  kmsfs status --json /mnt/plain
  kmsfs status --metrics /mnt/plain > /var/lib/node_exporter/kmsfs.prom";

/// Show how a mount and its keys are doing
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Arguments {
    /// The mountpoint, or something below it
    path: Option<PathBuf>,
    /// Print JSON
    #[arg(long, conflicts_with = "metrics")]
    json: bool,
    /// Print metrics in Prometheus's text format
    #[arg(long)]
    metrics: bool,
}

pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let snapshot: Snapshot = ask_as(arguments.path.as_deref(), Command::Status)?;
    let text = if arguments.json {
        serde_json::to_string_pretty(&snapshot)
            .map_err(|error| Failure::new(ExitCode::Internal, error.to_string()))?
            + "\n"
    } else if arguments.metrics {
        metrics::text(&snapshot)
    } else {
        for_people(&snapshot)
    };
    print(&text)
}

fn for_people(s: &Snapshot) -> String {
    let mut text = String::new();
    let mut line = |name: &str, value: String| {
        let _ = writeln!(text, "{name:<12}{value}");
    };
    line("mounted on", s.mountpoint.clone());
    line("backing", s.backing.clone());
    line("volume", s.volume.clone());
    let state = if s.locked { "locked" } else { "unlocked" };
    line(
        "state",
        format!("{state}, up {}", duration(s.uptime_seconds)),
    );
    line(
        "open files",
        format!(
            "{}, {} with their key in memory",
            s.open_files.count, s.open_files.with_key
        ),
    );
    line(
        "lease",
        format!(
            "{} s, and {} s more while no provider answers",
            s.lease.ttl_seconds, s.lease.grace_seconds
        ),
    );
    let c = &s.cache;
    line(
        "cache",
        format!(
            "{} of {} keys, {} hits, {} misses ({}), {} forgotten, {} unwrapped ahead",
            c.entries,
            c.capacity,
            c.hits,
            c.misses,
            percent(c.hit_rate),
            c.evictions,
            s.prefetched
        ),
    );
    let p = &s.pool;
    line(
        "pool",
        format!(
            "{} of {} keys ready, {} used, {} times dry ({}), {} expired",
            p.ready,
            p.target,
            p.taken,
            p.dry,
            percent(p.hit_rate),
            p.expired
        ),
    );
    for key in &s.keys {
        line("key", key.uri.clone());
        let failed: u64 = key.errors.values().sum();
        line(
            "  calls",
            format!(
                "{}, {} under way, {failed} failed, {} throttled, {} retries, {} hedged",
                key.calls, key.in_flight, key.throttled, key.retries, key.hedges
            ),
        );
        line(
            "  latency",
            format!(
                "p50 {}, p99 {}",
                millis(key.p50_seconds),
                millis(key.p99_seconds)
            ),
        );
        if let Some(rate) = key.rate {
            line(
                "  limit",
                format!("{rate:.0} calls/s, breaker {}", key.breaker),
            );
        }
    }
    if let Some(audit) = &s.audit {
        line(
            "audit",
            format!("{} lines, last {}", audit.lines, audit.last),
        );
    }
    text
}

fn percent(share: Option<f64>) -> String {
    share.map_or("-".into(), |share| format!("{:.1} %", share * 100.0))
}

fn millis(seconds: Option<f64>) -> String {
    seconds.map_or("-".into(), |seconds| format!("{:.1} ms", seconds * 1e3))
}

fn duration(seconds: f64) -> String {
    let seconds = seconds as u64;
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{} min", seconds / 60),
        _ => format!("{} h {} min", seconds / 3600, seconds / 60 % 60),
    }
}
