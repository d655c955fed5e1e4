//! About how many times a second something happens.

use std::time::Duration;

/// Counts what happened in the last second or so: each time weighs less as it
/// passes.
#[derive(Default)]
pub(super) struct Pace {
    level: f64,
    at: Duration,
}

impl Pace {
    /// Times a second at present.
    pub(super) fn at(&self, now: Duration) -> f64 {
        let passed = now.saturating_sub(self.at).as_secs_f64();
        self.level * (-passed).exp()
    }

    /// It has happened once more.
    pub(super) fn count(&mut self, now: Duration) {
        self.level = self.at(now) + 1.0;
        self.at = now;
    }
}
