//! Threads for work that waits: started when there is work, ended when there
//! has been none for a while, never more than a given number.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use super::thread_place;
use super::wiping::{JOB, on_wiped_stack};

/// How long a thread waits for more work before it ends.
const IDLE: Duration = Duration::from_secs(10);

type Job = Box<dyn FnOnce() + Send>;

/// A pool of threads. They end by themselves, some time after the last job.
pub struct Workers {
    shared: Arc<Shared>,
}

struct Shared {
    name: &'static str,
    most: usize,
    state: Mutex<State>,
    work: Condvar,
}

#[derive(Default)]
struct State {
    queue: VecDeque<Job>,
    threads: usize,
    idle: usize,
}

impl Workers {
    /// At most `most` threads called `name`.
    pub fn new(name: &'static str, most: usize) -> Self {
        Self {
            shared: Arc::new(Shared {
                name,
                most,
                state: Mutex::default(),
                work: Condvar::new(),
            }),
        }
    }

    /// Runs `job` on a thread of the pool, once one is free. Where no thread
    /// can be had at all it is run at once.
    pub fn run(&self, job: impl FnOnce() + Send + 'static) {
        let mut state = self.shared.state.lock();
        state.queue.push_back(Box::new(job));
        if state.idle >= state.queue.len() {
            self.shared.work.notify_one();
            return;
        }
        if state.threads >= self.shared.most {
            return;
        }
        state.threads += 1;
        drop(state);
        let shared = self.shared.clone();
        let thread = thread::Builder::new().name(self.shared.name.into());
        if let Err(error) = thread.spawn(move || serve(&shared)) {
            let mut state = self.shared.state.lock();
            state.threads -= 1;
            // The threads there are will come to it.
            let stranded = match state.threads {
                0 => state.queue.pop_back(),
                _ => None,
            };
            drop(state);
            log::warn!("cannot start another thread: {error}");
            if let Some(job) = stranded {
                job();
            }
        }
    }
}

/// Counts a thread out.
struct Counted<'a>(&'a Shared);

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.state.lock().threads -= 1;
    }
}

fn serve(shared: &Shared) {
    // Who has a job may be bound to a processor.
    thread_place::as_usual();
    let _counted = Counted(shared);
    let mut state = shared.state.lock();
    loop {
        while let Some(job) = state.queue.pop_front() {
            drop(state);
            // The hook has said what happened; others' jobs are to be done.
            let _ = on_wiped_stack::<JOB, _>(|| catch_unwind(AssertUnwindSafe(job)));
            state = shared.state.lock();
        }
        state.idle += 1;
        let waited = shared.work.wait_for(&mut state, IDLE);
        state.idle -= 1;
        if waited.timed_out() && state.queue.is_empty() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;

    #[test]
    fn jobs_run_at_once_up_to_the_limit_and_then_in_turn() {
        let workers = Workers::new("test", 3);
        let barrier = Arc::new(std::sync::Barrier::new(3));
        let (sender, receiver) = channel();
        for i in 0..9 {
            let (barrier, sender) = (barrier.clone(), sender.clone());
            workers.run(move || {
                // Only passes if three run at once.
                barrier.wait();
                sender.send(i).unwrap();
            });
        }
        let patience = Duration::from_secs(10);
        let mut done: Vec<i32> = (0..9)
            .map(|_| receiver.recv_timeout(patience).unwrap())
            .collect();
        done.sort_unstable();
        assert_eq!(done, (0..9).collect::<Vec<_>>());
        assert!(workers.shared.state.lock().threads <= 3);
    }

    #[test]
    fn a_panic_costs_its_job_and_no_other() {
        let workers = Workers::new("test", 1);
        let (sender, receiver) = channel();
        workers.run(|| thread::sleep(Duration::from_millis(50)));
        workers.run(|| panic!("expected by this test"));
        workers.run(move || sender.send(()).unwrap());
        receiver.recv_timeout(Duration::from_secs(10)).unwrap();
        assert_eq!(workers.shared.state.lock().threads, 1);
    }
}
