//! Which key version was seen to unwrap, and when.
//!
//! Azure lets a disabled key wrap and only refuses to unwrap with it. Without
//! having seen the version unwrap not long ago, what it wraps may be a file that
//! nobody can open.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// How long seeing it is believed, unless the URI says otherwise.
pub(super) const DEFAULT_VALIDITY: Duration = Duration::from_secs(60);

/// The version that unwrapped last.
pub(super) struct Verified {
    validity: Duration,
    last: Mutex<Option<(String, Instant)>>,
}

impl Verified {
    pub(super) fn new(validity: Duration) -> Self {
        Self {
            validity,
            last: Mutex::new(None),
        }
    }

    /// It unwrapped, in a call that began at `start`.
    pub(super) fn worked(&self, version: &str, start: Instant) {
        *self.last.lock() = Some((version.to_owned(), start));
    }

    /// It was refused.
    pub(super) fn refused(&self) {
        *self.last.lock() = None;
    }

    /// Whether what this version wrapped may be used without trying.
    pub(super) fn covers(&self, version: &str) -> bool {
        let last = self.last.lock();
        last.as_ref()
            .is_some_and(|(seen, since)| seen == version && since.elapsed() < self.validity)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_covers_one_version_for_a_while() {
        let verified = Verified::new(Duration::from_secs(3600));
        assert!(!verified.covers("1"));
        verified.worked("1", Instant::now());
        assert!(verified.covers("1") && !verified.covers("2"));
        verified.refused();
        assert!(!verified.covers("1"));
        let never = Verified::new(Duration::ZERO);
        never.worked("1", Instant::now());
        assert!(!never.covers("1"));
    }
}
