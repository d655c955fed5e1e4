//! Where a thread runs, and whom it lets run before it (`sched(7)`, `ioprio_set(2)`).
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::OnceLock;
use std::sync::mpsc::channel;
use std::thread;
use std::time::Duration;

use rustix::process::getpid;
use rustix::thread::{CpuSet, Pid, gettid, sched_getaffinity, sched_setaffinity};

/// Where this process's threads may run unless they are bound.
fn usual() -> &'static CpuSet {
    static USUAL: OnceLock<CpuSet> = OnceLock::new();
    // Of the process, whose first thread is never bound.
    USUAL.get_or_init(|| sched_getaffinity(Some(getpid())).unwrap_or_default())
}

/// Whether this process may run on each of `processors`.
pub fn may_run_on(mut processors: impl Iterator<Item = u16>) -> bool {
    let usual = usual();
    processors.all(|processor| usual.is_set(processor.into()))
}

/// Has this thread run on one processor only. It goes on as it did where that is off.
pub fn bind(processor: u16) {
    let mut set = CpuSet::new();
    set.set(processor.into());
    let _ = sched_setaffinity(None, &set);
}

/// Has this thread run wherever the process may.
pub fn unbind() {
    let _ = sched_setaffinity(None, usual());
}

/// Takes back what this thread inherited from the one that started it.
pub fn as_usual() {
    unbind();
    if policy(None) == libc::SCHED_IDLE && may_give_way() {
        let _ = set_policy(gettid(), libc::SCHED_OTHER);
    }
}

/// Whether this process may have its threads give way and take that back, for
/// which the kernel wants `CAP_SYS_NICE`. Not where somebody chose a scheduling
/// policy for it.
pub fn may_give_way() -> bool {
    static MAY: OnceLock<bool> = OnceLock::new();
    *MAY.get_or_init(|| policy(Some(getpid())) == libc::SCHED_OTHER && can_come_back())
}

/// Tries it on a thread that ends, as it may be unable to go back.
fn can_come_back() -> bool {
    let (tell, told) = channel();
    let (end, ended) = channel::<()>();
    thread::spawn(move || {
        let _ = tell.send(gettid());
        let _ = ended.recv();
    });
    let Ok(thread) = told.recv() else {
        return false;
    };
    let back_and_forth =
        [libc::SCHED_IDLE, libc::SCHED_OTHER].map(|policy| set_policy(thread, policy));
    drop(end);
    back_and_forth.iter().all(Result::is_ok)
}

/// Of a thread, or the calling one.
fn policy(thread: Option<Pid>) -> i32 {
    // SAFETY: a call without pointers.
    unsafe { libc::sched_getscheduler(Pid::as_raw(thread)) }
}

fn set_policy(thread: Pid, policy: i32) -> io::Result<()> {
    let parameters = libc::sched_param { sched_priority: 0 };
    let thread = Pid::as_raw(Some(thread));
    // SAFETY: the parameters live as long as the call.
    match unsafe { libc::sched_setscheduler(thread, policy, &raw const parameters) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// A thread of this process, as the scheduler sees it.
pub struct Scheduled {
    thread: Pid,
    /// `/proc/self/task/TID/schedstat`, and `stat`.
    times: File,
    state: File,
}

/// What a thread did so far, as of when it last began or ended to run.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct Times {
    /// How long it ran.
    pub ran: Duration,
    /// How long it was ready to run, and did not.
    pub waited: Duration,
}

/// `linux/ioprio.h`. Who is a thread.
const IOPRIO_WHO_PROCESS: i32 = 1;
const IOPRIO_CLASS_NONE: i64 = 0;
const IOPRIO_CLASS_BE: i64 = 2;
const IOPRIO_CLASS_SHIFT: u32 = 13;

/// Fixes the class that the calling thread's I/O has. By itself that goes with the
/// scheduling policy, and an I/O scheduler leaves what is of the idle class for as long
/// as there is anything else.
fn keep_io_class() -> io::Result<()> {
    let priority = match io_priority()? {
        none if none >> IOPRIO_CLASS_SHIFT == IOPRIO_CLASS_NONE => {
            // As the kernel has it from the nice value.
            let nice = rustix::process::getpriority_process(None)?;
            (IOPRIO_CLASS_BE << IOPRIO_CLASS_SHIFT) + (i64::from(nice) + 20) / 5
        }
        // Where none was given, some kernels tell what that comes to for now.
        given => given,
    };
    // SAFETY: a call without pointers.
    match unsafe { libc::syscall(libc::SYS_ioprio_set, IOPRIO_WHO_PROCESS, 0, priority) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Class and level of the calling thread's I/O.
fn io_priority() -> io::Result<i64> {
    // SAFETY: a call without pointers.
    match unsafe { libc::syscall(libc::SYS_ioprio_get, IOPRIO_WHO_PROCESS, 0) } {
        -1 => Err(io::Error::last_os_error()),
        priority => Ok(priority),
    }
}

impl Scheduled {
    /// The calling one. Its I/O does not give way with it.
    ///
    /// # Errors
    /// A kernel without these statistics, or that does not let I/O be.
    pub fn current() -> io::Result<Self> {
        keep_io_class()?;
        let thread = gettid();
        let open = |name| {
            let path = format!("/proc/self/task/{}/{name}", thread.as_raw_nonzero());
            File::open(path)
        };
        Ok(Self {
            thread,
            times: open("schedstat")?,
            state: open("stat")?,
        })
    }

    /// Lets everything else run before this thread (`SCHED_IDLE`), or no longer.
    ///
    /// # Errors
    /// The thread has ended; the process may not ([`may_give_way`]).
    pub fn give_way(&self, yes: bool) -> io::Result<()> {
        let policies = [libc::SCHED_OTHER, libc::SCHED_IDLE];
        set_policy(self.thread, policies[usize::from(yes)])
    }

    /// How long it ran and waited. `None` once it has ended.
    pub fn times(&self) -> Option<Times> {
        let mut bytes = [0; 64];
        let text = read(&self.times, &mut bytes)?;
        let mut numbers = text.split_ascii_whitespace().map(str::parse);
        let mut next = || numbers.next()?.ok().map(Duration::from_nanos);
        Some(Times {
            ran: next()?,
            waited: next()?,
        })
    }

    /// Whether it runs or is ready to, as far as can be told.
    pub fn is_ready(&self) -> bool {
        let mut bytes = [0; 512];
        let text = read(&self.state, &mut bytes);
        // After the name, which may have anything in it.
        text.and_then(|text| text.rsplit_once(") "))
            .is_some_and(|(_, state)| state.starts_with('R'))
    }
}

fn read<'a>(file: &File, bytes: &'a mut [u8]) -> Option<&'a str> {
    let len = file.read_at(bytes, 0).ok()?;
    std::str::from_utf8(&bytes[..len]).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_need_not_stay_what_it_inherited() {
        let before = (*usual(), policy(None));
        let first = (0..CpuSet::MAX_CPU)
            .find(|&cpu| usual().is_set(cpu))
            .unwrap();
        let inherited = thread::spawn(move || {
            bind(first as u16);
            if may_give_way() {
                Scheduled::current().unwrap().give_way(true).unwrap();
                assert_eq!(policy(None), libc::SCHED_IDLE);
                let class = io_priority().unwrap() >> IOPRIO_CLASS_SHIFT;
                assert_eq!(class, IOPRIO_CLASS_BE, "I/O does not give way");
            }
            assert_eq!(sched_getaffinity(None).unwrap().count(), 1);
            let child = || {
                as_usual();
                (sched_getaffinity(None).unwrap(), policy(None))
            };
            thread::spawn(child).join().unwrap()
        });
        assert!(inherited.join().unwrap() == before);
    }

    #[test]
    fn what_a_thread_does_can_be_seen() {
        let (tell, told) = channel();
        let (end, ended) = channel::<()>();
        let other = thread::spawn(move || {
            tell.send(Scheduled::current().unwrap()).unwrap();
            let _ = ended.recv();
        });
        let other_one = told.recv().unwrap();
        while other_one.is_ready() {
            thread::yield_now();
        }
        // It was seen when it was about to sleep.
        thread::sleep(Duration::from_millis(20));
        let times = other_one.times().unwrap();
        assert!(times.ran > Duration::ZERO);
        assert!(other_one.times().unwrap() == times, "it sleeps");
        assert!(Scheduled::current().unwrap().is_ready(), "it runs this");
        drop(end);
        other.join().unwrap();
        assert!(!other_one.is_ready());
    }
}
