//! Which key versions were seen to unwrap, and when.
//!
//! Azure lets a disabled key wrap and only refuses to unwrap with it. Without
//! having seen the version unwrap not long ago, what it wraps may be a file that
//! nobody can open.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::keys::KeyError;

/// How long seeing it is believed, unless the URI says otherwise.
pub(super) const DEFAULT_VALIDITY: Duration = Duration::from_secs(60);

/// The versions that unwrapped, of which a key has a few.
pub(super) struct Verified {
    validity: Duration,
    seen: Mutex<HashMap<String, Instant>>,
}

impl Verified {
    pub(super) fn new(validity: Duration) -> Self {
        Self {
            validity,
            seen: Mutex::default(),
        }
    }

    /// It unwrapped, in a call that began at `start`.
    pub(super) fn worked(&self, version: &str, start: Instant) {
        self.seen.lock().insert(version.to_owned(), start);
    }

    /// It did not.
    pub(super) fn failed(&self, version: &str, error: &KeyError) {
        let mut seen = self.seen.lock();
        match error {
            // That is about the wrapped key, not the version.
            KeyError::Rejected { .. } => {}
            // That is about the caller, who may use no version.
            KeyError::Denied { .. } => seen.clear(),
            error if error.is_refusal() => drop(seen.remove(version)),
            _ => {}
        }
    }

    /// Whether what this version wrapped may be used without trying.
    pub(super) fn covers(&self, version: &str) -> bool {
        let seen = self.seen.lock();
        let since = seen.get(version);
        since.is_some_and(|since| since.elapsed() < self.validity)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_covers_each_version_for_a_while() {
        let refusal = |kind: fn(String, String) -> KeyError| kind("k".into(), "no".into());
        let disabled = refusal(|key, detail| KeyError::Disabled { key, detail });
        let denied = refusal(|key, detail| KeyError::Denied { key, detail });
        let rejected = refusal(|key, detail| KeyError::Rejected { key, detail });
        let verified = Verified::new(Duration::from_secs(3600));
        assert!(!verified.covers("1"));
        for version in ["1", "2"] {
            verified.worked(version, Instant::now());
        }
        verified.failed("1", &rejected);
        assert!(verified.covers("1") && verified.covers("2") && !verified.covers("3"));
        verified.failed("1", &disabled);
        assert!(!verified.covers("1") && verified.covers("2"));
        verified.failed("1", &denied);
        assert!(!verified.covers("2"));
        let never = Verified::new(Duration::ZERO);
        never.worked("1", Instant::now());
        assert!(!never.covers("1"));
    }
}
