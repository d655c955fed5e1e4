//! Requests that have to wait for a key do so, with their reply, on threads of
//! their own: those that serve the kernel go on.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::fs::{Fs, Result};
use crate::keys::audit::caller;
use crate::keys::patience::{self, Priority};
use crate::sys::workers::Workers;

/// The most requests that wait at once; more wait for one of them to end.
const MOST: usize = 256;

/// The threads that wait.
pub(super) struct Waiting {
    workers: Workers,
    time: Duration,
}

impl Waiting {
    /// Each request waits at most for `time`, that for its thread included.
    pub(super) fn new(time: Duration) -> Self {
        let workers = Workers::new("kmsfs-waiting", MOST);
        Self { workers, time }
    }

    fn run(&self, job: impl FnOnce() + Send + 'static) {
        let deadline = Instant::now() + self.time;
        self.workers
            .run(move || patience::until(deadline, Priority::Interactive, job));
    }
}

/// A filesystem, and threads to wait on where its keys come from afar.
pub(super) struct Served {
    pub(super) fs: Arc<Fs>,
    pub(super) waiting: Option<Waiting>,
}

impl Served {
    /// Does `work` on this thread, and hands its result to `finish`; if it would
    /// have to wait for a key, `again` is what to do, with `finish`, on a thread
    /// that waits. `again` is given as a function that makes it, so that what it
    /// has to own is copied only then.
    pub(super) fn serve<T, F, W>(
        &self,
        work: impl FnOnce(&Arc<Fs>) -> Result<T>,
        again: impl FnOnce() -> W,
        finish: F,
    ) where
        F: FnOnce(Result<T>) + Send + 'static,
        W: FnOnce(&Arc<Fs>) -> Result<T> + Send + 'static,
    {
        match self.at_once(work) {
            Err(error) if error.would_wait() => {
                let again = again();
                self.later(move |fs| finish(again(fs)));
            }
            result => finish(result),
        }
    }

    /// Does `work` on this thread, which fails where it would wait for a key.
    pub(super) fn at_once<T>(&self, work: impl FnOnce(&Arc<Fs>) -> Result<T>) -> Result<T> {
        match self.waiting {
            Some(_) => patience::none(|| work(&self.fs)),
            None => work(&self.fs),
        }
    }

    /// Does `work`, for the same caller, on a thread that may wait.
    pub(super) fn later(&self, work: impl FnOnce(&Arc<Fs>) + Send + 'static) {
        let fs = self.fs.clone();
        match &self.waiting {
            Some(waiting) => {
                let caller = caller::get();
                waiting.run(move || {
                    caller::adopt(caller);
                    work(&fs);
                });
            }
            None => work(&fs),
        }
    }
}
