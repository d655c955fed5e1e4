//! How the calls of a test server go wrong.

use std::time::Duration;

use super::http::{Manner, Reply};

/// What happens to the next calls.
#[derive(Clone, Copy, Default)]
pub struct Trouble {
    /// How many calls are affected.
    pub calls: usize,
    pub delay: Duration,
    pub manner: Manner,
    /// A refusal with this status instead of an answer.
    pub status: Option<u16>,
    /// How many seconds the refusal asks to wait.
    pub retry_after: Option<u64>,
}

impl Trouble {
    /// What happens to a call that comes now.
    pub fn take(&mut self) -> Option<Self> {
        let now = (self.calls > 0).then_some(*self);
        self.calls = self.calls.saturating_sub(1);
        now
    }

    /// Makes the answer to the call late or strange.
    pub fn spoil(&self, reply: &mut Reply) {
        (reply.after, reply.manner) = (self.delay, self.manner);
        let wait = self.retry_after.map(|seconds| seconds.to_string());
        reply.headers.extend(wait.map(|text| ("retry-after", text)));
    }
}
