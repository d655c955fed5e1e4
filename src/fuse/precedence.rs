//! Lets programs run before the threads of the rings.
//!
//! The kernel wakes the program that a reply is for on an idle processor where there
//! is one, and takes a processor for idle on which only threads with the idle policy
//! run (`sched_idle_cpu`). So where the thread that replies has that policy the program
//! goes on where it asked: no halted processor is woken up, no cold one used.
//!
//! Where something else keeps the processor busy, a thread with that policy starves.
//! Hence a thread watches the others, and none but that one changes policies. Their I/O
//! does not give way: nobody would see it starve.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::sys::thread_place::{Scheduled, Times, may_give_way};

/// How often the threads are looked at while requests come. One that is ready to run from
/// one look to the next, and does not, starves.
const TICK: Duration = Duration::from_millis(5);

/// So many looks, and it is told whether one starved on the whole.
const LOOKS: u32 = 10;

/// That is one that was ready to run, and did not, for more of the time than one part in
/// so many. Where one program works it is up to a fifth.
const STARVES: u32 = 2;

/// How long none gives way after one starved, and at most after several did in a row.
const RESPITE: Duration = Duration::from_millis(250);
const LONGEST: Duration = Duration::from_secs(8);

/// For each request that takes long so many are to be quick.
const QUICK: u32 = 4;

/// The threads of the rings.
#[derive(Default)]
pub(super) struct Precedence {
    servers: Mutex<Vec<Arc<Server>>>,
    watcher: OnceLock<Thread>,
    /// It looks at them.
    watched: AtomicBool,
}

/// A thread that serves requests.
struct Server {
    scheduled: Scheduled,
    /// Requests since it was last looked at: quick ones, and ones that take long.
    requests: [AtomicU32; 2],
}

/// A thread's part in it, for as long as it serves.
pub(super) struct Member {
    server: Arc<Server>,
    precedence: Arc<Precedence>,
}

impl Precedence {
    /// Starts the thread that watches, which ends some time after everybody has dropped
    /// this. `None` where threads may not give way.
    ///
    /// # Errors
    /// Those of starting a thread.
    pub(super) fn start() -> io::Result<Option<Arc<Self>>> {
        if !may_give_way() {
            log::debug!("programs do not run before this process's threads");
            return Ok(None);
        }
        let precedence = Arc::new(Self::default());
        let weak = Arc::downgrade(&precedence);
        let thread = thread::Builder::new().name("kmsfs-precedence".into());
        let watcher = thread.spawn(move || {
            while let Some(precedence) = weak.upgrade() {
                if precedence.watched.load(Ordering::Acquire) {
                    precedence.watch();
                    precedence.watched.store(false, Ordering::Release);
                }
                drop(precedence);
                thread::park();
            }
        })?;
        let _ = precedence.watcher.set(watcher.thread().clone());
        Ok(Some(precedence))
    }

    /// Has the calling thread give way when it should.
    ///
    /// # Errors
    /// Those of [`Scheduled::current`].
    pub(super) fn join(self: Arc<Self>) -> io::Result<Member> {
        let server = Arc::new(Server {
            scheduled: Scheduled::current()?,
            requests: Default::default(),
        });
        self.servers.lock().push(server.clone());
        let precedence = self;
        Ok(Member { server, precedence })
    }

    /// Looks at the threads until there are no requests; none gives way then.
    fn watch(self: &Arc<Self>) {
        let mut all: Vec<Watched> = Vec::new();
        let mut respite = RESPITE;
        loop {
            let begin = Instant::now();
            all.extend(self.servers.lock()[all.len()..].iter().map(Watched::new));
            // They may have waited during a respite too, which does not count.
            let before: Vec<_> = all.iter_mut().map(|one| one.read().waited).collect();
            let (mut busy, mut starves) = (false, false);
            for _ in 0..LOOKS {
                thread::sleep(TICK);
                for one in &mut all {
                    let look = one.look();
                    busy |= look == Look::Busy;
                    starves |= look == Look::Starves;
                }
                if starves {
                    break;
                }
            }
            let most = begin.elapsed() / STARVES;
            let waited = all
                .iter()
                .zip(before)
                .map(|(one, before)| one.times.waited - before);
            starves |= waited.max() > Some(most);
            // Nobody else has this any more where there will be no requests.
            let over = !busy || Arc::strong_count(self) == 1;
            if starves || over {
                all.iter_mut().for_each(|one| one.give_way(false));
            }
            if over {
                return;
            }
            if starves {
                thread::sleep(respite);
                respite = LONGEST.min(2 * respite);
            } else {
                respite = RESPITE;
            }
        }
    }
}

impl Drop for Precedence {
    fn drop(&mut self) {
        if let Some(watcher) = self.watcher.get() {
            watcher.unpark();
        }
    }
}

impl Member {
    /// A request came.
    pub(super) fn request(&self, takes_long: bool) {
        self.server.requests[usize::from(takes_long)].fetch_add(1, Ordering::Relaxed);
        let watched = &self.precedence.watched;
        if !takes_long
            && !watched.load(Ordering::Relaxed)
            && !watched.swap(true, Ordering::AcqRel)
            && let Some(watcher) = self.precedence.watcher.get()
        {
            watcher.unpark();
        }
    }
}

/// A thread, as it was last seen.
struct Watched {
    server: Arc<Server>,
    times: Times,
    gives_way: bool,
    /// At the last look it was ready to run, and had not since the one before.
    stuck: bool,
}

/// What a thread did since it was last seen.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Look {
    /// It had requests.
    Busy,
    Quiet,
    /// It was ready to run, and did not.
    Starves,
}

impl Watched {
    fn new(server: &Arc<Server>) -> Self {
        Self {
            server: server.clone(),
            times: server.scheduled.times().unwrap_or_default(),
            gives_way: false,
            stuck: false,
        }
    }

    fn look(&mut self) -> Look {
        let requests = self.server.requests.each_ref();
        let [quick, long] = requests.map(|count| count.swap(0, Ordering::Relaxed));
        let before = self.times.ran;
        let ran = self.read().ran != before;
        if quick + long > 0 {
            self.stuck = false;
            self.give_way(quick >= QUICK * long);
            Look::Busy
        } else if self.gives_way && !ran && self.server.scheduled.is_ready() {
            // Who looks may have taken the processor only just.
            match std::mem::replace(&mut self.stuck, true) {
                true => Look::Starves,
                false => Look::Quiet,
            }
        } else {
            self.stuck = false;
            Look::Quiet
        }
    }

    fn read(&mut self) -> Times {
        // One that has ended does nothing more.
        self.times = self.server.scheduled.times().unwrap_or(self.times);
        self.times
    }

    fn give_way(&mut self, yes: bool) {
        if self.gives_way != yes && self.server.scheduled.give_way(yes).is_ok() {
            self.gives_way = yes;
        }
    }
}
