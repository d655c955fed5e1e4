//! Keeping a plugin running: it is started when it is needed, and again, after a
//! while, when it has ended.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::protocol::{Answer, Failure, PROTOCOL, Request, malformed};
use super::running::{Broken, Running, words};
use super::uri::ExecUri;
use crate::keys::KeyError;
use crate::keys::kms::retry::Deadline;

/// How long to wait before a plugin that ended at once is started again; twice
/// that the next time, and so on.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// A plugin, running or not.
pub(super) struct Plugin {
    uri: ExecUri,
    program: PathBuf,
    identity: String,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    running: Option<Arc<Running>>,
    /// Starts since the last answer.
    starts: u32,
    last_start: Option<Instant>,
}

impl Plugin {
    /// Finds the program; it is started with the first call.
    pub(super) fn new(uri: &ExecUri) -> Result<Self, KeyError> {
        Ok(Self {
            program: uri.locate()?,
            identity: uri.identity(),
            uri: uri.clone(),
            state: Mutex::default(),
        })
    }

    /// Asks it once.
    pub(super) fn ask<'a>(
        &'a self,
        mut request: Request<'a>,
        deadline: Deadline,
    ) -> Result<Answer, Failure> {
        request.key = self.uri.key.as_deref();
        let running = self.running(deadline)?;
        let response = running.call(request, deadline.one_try());
        let response = response.map_err(|broken| self.failure(&broken))?;
        self.state.lock().starts = 0;
        response.settle(&self.identity)
    }

    /// The plugin that runs, or a new one that has said hello.
    fn running(&self, deadline: Deadline) -> Result<Arc<Running>, Failure> {
        // Held while it starts: others would only start it once more.
        let mut state = self.state.lock();
        match state.running.take() {
            Some(running) if running.owner != std::process::id() => std::mem::forget(running),
            Some(running) if running.end().is_none() => {
                state.running = Some(Arc::clone(&running));
                return Ok(running);
            }
            _ => {}
        }
        let pause = match state.starts {
            0 => Duration::ZERO,
            starts => (FIRST_PAUSE * 2_u32.saturating_pow(starts.min(16) - 1)).min(LONGEST_PAUSE),
        };
        let since = state.last_start.map_or(pause, |start| start.elapsed());
        let wait = pause.saturating_sub(since);
        if wait >= deadline.left() {
            return Err(Failure::Key(
                self.unavailable("it ends as soon as it is started"),
            ));
        }
        std::thread::sleep(wait);
        state.starts += 1;
        state.last_start = Some(Instant::now());
        let started = Running::start(self.uri.name(), &self.program, &self.uri.arguments);
        let running = started.map_err(|error| {
            Failure::Key(KeyError::Configuration {
                detail: format!(
                    "cannot start the plugin {}: {error}",
                    self.program.display()
                ),
                hint: Some("it must be an executable file".into()),
            })
        })?;
        self.greet(&running, deadline)?;
        let running = Arc::new(running);
        state.running = Some(Arc::clone(&running));
        Ok(running)
    }

    fn greet(&self, running: &Running, deadline: Deadline) -> Result<(), Failure> {
        let mut hello = Request::new("hello");
        hello.protocol = Some(PROTOCOL);
        let response = running.call(hello, deadline.one_try());
        let response = response.map_err(|broken| self.failure(&broken))?;
        match response.settle(&self.identity)?.protocol {
            Some(PROTOCOL) => Ok(()),
            other => Err(Failure::Key(KeyError::Configuration {
                detail: format!(
                    "the plugin {} speaks version {} of the protocol, not {PROTOCOL}",
                    self.program.display(),
                    other.unwrap_or(0)
                ),
                hint: Some("install a version of the plugin that fits this kmsfs".into()),
            })),
        }
    }

    fn failure(&self, broken: &Broken) -> Failure {
        let problem = format!("plugin {}: {}", self.uri.name(), words(broken));
        Failure::Key(match broken {
            Broken::Gone(_) => self.unavailable(&problem),
            Broken::Nonsense(_) => malformed(&self.identity, &problem),
        })
    }

    fn unavailable(&self, problem: &str) -> KeyError {
        KeyError::Unavailable {
            key: self.identity.clone(),
            detail: problem.to_owned(),
        }
    }
}
