//! What the way to the server is like: slow, limited, failing, gone.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use crate::kms_servers::http::Manner;

/// Lasting conditions, unlike [`super::Trouble`], which passes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Conditions {
    /// Every answer takes this long.
    pub latency: Duration,
    /// Calls a second; those beyond are refused with 429.
    pub quota: Option<usize>,
    /// Of 100 calls so many fail, in turns with 500 and by hanging up midway.
    pub failing: usize,
    /// Connections are closed without an answer.
    pub stopped: bool,
}

/// The conditions, and how many calls met them.
#[derive(Default)]
pub(super) struct Way(Mutex<State>);

#[derive(Default)]
struct State {
    conditions: Conditions,
    second: Option<Instant>,
    in_second: usize,
    throttled: usize,
    calls: usize,
}

/// How to answer a call.
pub(super) struct Verdict {
    pub(super) latency: Duration,
    pub(super) manner: Manner,
    pub(super) refusal: Option<(u16, &'static str)>,
}

impl Way {
    pub(super) fn set(&self, conditions: Conditions) {
        self.state().conditions = conditions;
    }

    /// How many calls were refused for being too many.
    pub(super) fn throttled(&self) -> usize {
        self.state().throttled
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(|poison| poison.into_inner())
    }

    pub(super) fn judge(&self) -> Verdict {
        let mut state = self.state();
        let now = Instant::now();
        let same_second = state
            .second
            .is_some_and(|start| now - start < Duration::from_secs(1));
        if !same_second {
            state.second = Some(now);
            state.in_second = 0;
        }
        state.in_second += 1;
        state.calls += 1;
        let conditions = state.conditions;
        let mut verdict = Verdict {
            latency: conditions.latency,
            manner: Manner::Proper,
            refusal: None,
        };
        // Spread out: 30 of 100 is every third or fourth.
        let fails = |calls: usize| calls * conditions.failing / 100;
        if conditions.stopped {
            verdict.manner = Manner::HangUp;
            verdict.latency = Duration::ZERO;
        } else if conditions.quota.is_some_and(|most| state.in_second > most) {
            state.throttled += 1;
            verdict.refusal = Some((429, "Rejected.Throttling"));
        } else if fails(state.calls) > fails(state.calls - 1) {
            match state.calls % 2 {
                0 => verdict.refusal = Some((500, "InternalFailure")),
                _ => verdict.manner = Manner::CutOff,
            }
        }
        verdict
    }
}
