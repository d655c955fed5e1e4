//! Prometheus's text format (version 0.0.4), for a textfile collector.

use std::fmt::{Display, Write};

use crate::cli::control::Snapshot;

struct Text<'a> {
    text: String,
    volume: &'a str,
}

impl Text<'_> {
    /// One metric: its name, kind, help, and its values with their labels.
    fn metric<V: Display>(
        &mut self,
        name: &str,
        kind: &str,
        help: &str,
        values: impl IntoIterator<Item = (Vec<(&'static str, String)>, V)>,
    ) {
        let mut values = values.into_iter().peekable();
        if values.peek().is_none() {
            return;
        }
        let out = &mut self.text;
        let _ = writeln!(out, "# HELP kmsfs_{name} {help}");
        let _ = writeln!(out, "# TYPE kmsfs_{name} {kind}");
        for (labels, value) in values {
            let _ = write!(out, "kmsfs_{name}{{volume=\"{}\"", self.volume);
            for (label, text) in labels {
                let _ = write!(out, ",{label}=\"{}\"", escaped(&text));
            }
            let _ = writeln!(out, "}} {value}");
        }
    }

    fn gauge(&mut self, name: &str, help: &str, value: impl Display) {
        self.metric(name, "gauge", help, [(Vec::new(), value)]);
    }

    fn counter(&mut self, name: &str, help: &str, value: u64) {
        self.metric(name, "counter", help, [(Vec::new(), value)]);
    }
}

pub(super) fn text(s: &Snapshot) -> String {
    let mut out = Text {
        text: String::new(),
        volume: &s.volume,
    };
    out.gauge(
        "uptime_seconds",
        "Time since it was mounted.",
        s.uptime_seconds,
    );
    out.gauge(
        "locked",
        "Whether the volume is locked.",
        u8::from(s.locked),
    );
    out.gauge("open_files", "Files that are open.", s.open_files.count);
    out.gauge(
        "open_files_with_key",
        "Open files whose data key is in memory.",
        s.open_files.with_key,
    );
    out.gauge("cache_keys", "Data keys in the cache.", s.cache.entries);
    out.counter(
        "cache_hits_total",
        "Keys given from the cache.",
        s.cache.hits,
    );
    out.counter(
        "cache_misses_total",
        "Keys not in the cache.",
        s.cache.misses,
    );
    out.counter(
        "cache_evictions_total",
        "Keys forgotten.",
        s.cache.evictions,
    );
    out.counter("prefetched_total", "Keys unwrapped ahead.", s.prefetched);
    out.counter(
        "remembered_refusals_total",
        "Requests answered by a refusal received just before.",
        s.remembered_refusals,
    );
    out.gauge("pool_keys", "Keys made ahead for new files.", s.pool.ready);
    out.counter(
        "pool_taken_total",
        "Keys made ahead that were used.",
        s.pool.taken,
    );
    out.counter("pool_dry_total", "New files that found none.", s.pool.dry);
    let key = |uri: &str| vec![("key", uri.to_owned())];
    let keys = s.keys.iter();
    let calls = keys.clone().map(|k| (key(&k.uri), k.calls));
    out.metric("calls_total", "counter", "Calls of key providers.", calls);
    let errors = keys.clone().flat_map(|k| {
        let labels = |class: &String| vec![("key", k.uri.clone()), ("class", class.clone())];
        k.errors.iter().map(move |(class, n)| (labels(class), *n))
    });
    out.metric("call_errors_total", "counter", "Calls that failed.", errors);
    let retries = keys.clone().map(|k| (key(&k.uri), k.retries));
    out.metric("retries_total", "counter", "Calls made again.", retries);
    let latencies = keys.clone().flat_map(|k| {
        let both = [("0.5", k.p50_seconds), ("0.99", k.p99_seconds)];
        both.into_iter().filter_map(|(quantile, time)| {
            let labels = vec![("key", k.uri.clone()), ("quantile", quantile.to_owned())];
            Some((labels, time?))
        })
    });
    out.metric(
        "call_seconds",
        "gauge",
        "Time that this part of recent calls took at most.",
        latencies,
    );
    let rates = keys.clone().filter_map(|k| Some((key(&k.uri), k.rate?)));
    out.metric(
        "limit_calls_per_second",
        "gauge",
        "What the limiter lets through.",
        rates,
    );
    let open = keys.map(|k| (key(&k.uri), u8::from(k.breaker != "closed")));
    out.metric(
        "breaker_open",
        "gauge",
        "Whether the provider is not asked.",
        open,
    );
    if let Some(audit) = &s.audit {
        out.counter("audit_lines_total", "Lines of the audit log.", audit.lines);
    }
    out.text
}

fn escaped(text: &str) -> String {
    let text = text.replace('\\', "\\\\").replace('"', "\\\"");
    text.replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_escaped_and_empty_metrics_left_out() {
        let mut out = Text {
            text: String::new(),
            volume: "ab",
        };
        out.counter("x_total", "Xs.", 3);
        out.metric(
            "y",
            "gauge",
            "Ys.",
            [(vec![("key", "a\"b\\c\n".into())], 1)],
        );
        out.metric("z", "gauge", "Zs.", std::iter::empty::<(_, u8)>());
        assert_eq!(
            out.text,
            "# HELP kmsfs_x_total Xs.\n# TYPE kmsfs_x_total counter\n\
             kmsfs_x_total{volume=\"ab\"} 3\n\
             # HELP kmsfs_y Ys.\n# TYPE kmsfs_y gauge\n\
             kmsfs_y{volume=\"ab\",key=\"a\\\"b\\\\c\\n\"} 1\n"
        );
    }
}
