//! Programs run before the threads that serve them, which starve for it only for
//! moments.

use std::fs;
use std::hint::spin_loop;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::thread::{CapabilitySet, capabilities};

use crate::common::{Mount, Options, PATIENCE, eventually, skip};

const SCHED_IDLE: u32 = 5;

/// The policies of the threads of the rings.
fn policies(mount: &Mount) -> Vec<u32> {
    let tasks = fs::read_dir(format!("/proc/{}/task", mount.pid())).expect("it lives");
    let stat = |task: fs::DirEntry| fs::read_to_string(task.path().join("stat")).ok();
    let stats = tasks.filter_map(|task| stat(task.expect("readdir")));
    let ring = |stat: String| {
        let (name, fields) = stat.rsplit_once(") ").expect("proc(5)");
        name.contains("(kmsfs-ring").then(|| {
            fields
                .split(' ')
                .nth(38)
                .expect("proc(5)")
                .parse()
                .expect("a number")
        })
    };
    stats.filter_map(ring).collect()
}

fn make_and_remove(path: &Path) -> io::Result<()> {
    fs::write(path, b"short")?;
    fs::remove_file(path)
}

#[test]
fn threads_give_way_while_there_are_requests() {
    let Some(mount) = Mount::real(Options::default()) else {
        return;
    };
    let mine = capabilities(None).expect("capget").effective;
    if policies(&mount).is_empty() || !mine.contains(CapabilitySet::SYS_NICE) {
        return skip("needs io_uring for FUSE and CAP_SYS_NICE");
    }
    assert!(!policies(&mount).contains(&SCHED_IDLE), "no requests yet");
    let path = mount.join("a");
    let given = eventually(PATIENCE, || {
        (0..100).for_each(|_| make_and_remove(&path).expect("a file"));
        policies(&mount).contains(&SCHED_IDLE)
    });
    assert!(given, "{:?}", policies(&mount));
    let taken_back = eventually(PATIENCE, || !policies(&mount).contains(&SCHED_IDLE));
    assert!(taken_back, "{:?}", policies(&mount));
}

/// On processors that others keep busy a thread with the idle policy has its turn
/// about once a second.
#[test]
fn threads_that_give_way_do_not_starve() {
    let Some(mount) = Mount::real(Options::default()) else {
        return;
    };
    let path = mount.join("a");
    let over = AtomicBool::new(false);
    let processors = thread::available_parallelism().expect("processors").get();
    let (mut times, mut slowest, mut made) = (0, Duration::ZERO, Ok(()));
    thread::scope(|scope| {
        for _ in 0..3 * processors {
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    spin_loop();
                }
            });
        }
        let begin = Instant::now();
        while made.is_ok() && begin.elapsed() < Duration::from_secs(6) {
            let before = Instant::now();
            made = make_and_remove(&path);
            slowest = slowest.max(before.elapsed());
            times += 1;
        }
        over.store(true, Ordering::Relaxed);
    });
    made.expect("a file");
    assert!(times > 100, "{times} times, the slowest took {slowest:?}");
}
