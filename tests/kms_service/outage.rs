//! A service that is gone for a while, or in a bad way.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use kmsfs::keys::service::DEFAULT_DEADLINE;

use crate::common::{env_number, eventually};
use crate::kms_servers::alibaba::{Conditions, KEY, State};
use crate::world::{World, content, make_files};

const DEADLINE: Duration = Duration::from_secs(4);
const ARGUMENTS: [&str; 2] = ["--kms-deadline", "4"];
/// What the machine may add to the deadline.
const SLACK: Duration = Duration::from_secs(4);

/// What a load did.
#[derive(Default)]
struct Tally {
    done: AtomicUsize,
    failed: AtomicUsize,
}

/// Writes, reads and appends until told to end; whatever was reported as done
/// has to be there, and no operation takes longer than `longest`.
fn load(
    dir: &Path,
    id: usize,
    longest: Duration,
    ended: &AtomicBool,
    tally: &Tally,
) -> Vec<(String, usize)> {
    let mut kept: Vec<(String, usize)> = Vec::new();
    let mut log = File::create(dir.join(format!("log {id}"))).unwrap();
    let mut lines = 0;
    for round in 0.. {
        if ended.load(Ordering::Relaxed) {
            break;
        }
        let start = Instant::now();
        let name = format!("load {id} {round}");
        let result = create(&dir.join(&name), round);
        let took = start.elapsed();
        assert!(took < longest, "creating took {took:?}");
        count(tally, &result);
        if result.is_ok() {
            kept.push((name, round));
        }
        let start = Instant::now();
        let old = dir.join(format!("{:05}", (round * 7 + id * 31) % 200));
        let result = fs::read(&old).map(|got| assert_eq!(got.len(), 4096));
        let took = start.elapsed();
        assert!(took < longest, "reading took {took:?}");
        count(tally, &result);
        // The open file has its key.
        writeln!(log, "line {lines}").unwrap();
        log.sync_data().unwrap();
        lines += 1;
        thread::sleep(Duration::from_millis(20));
    }
    let mut text = String::new();
    let mut log = File::open(dir.join(format!("log {id}"))).unwrap();
    log.read_to_string(&mut text).unwrap();
    assert_eq!(text.lines().count(), lines);
    kept
}

fn create(path: &Path, round: usize) -> io::Result<()> {
    let mut file = File::create(path)?;
    file.write_all(&content(round))?;
    file.sync_all()
}

fn count(tally: &Tally, result: &io::Result<()>) {
    match result {
        Ok(()) => &tally.done,
        Err(error) => {
            assert_eq!(error.raw_os_error(), Some(libc::ETIMEDOUT), "{error}");
            &tally.failed
        }
    }
    .fetch_add(1, Ordering::Relaxed);
}

/// Runs a load through some phases; checks that nothing was lost and everything
/// works again. Gives what the load did in each phase.
fn through(
    world: &mut World,
    deadline: Duration,
    phases: &[(Conditions, Duration)],
) -> Vec<(usize, usize)> {
    let longest = deadline + SLACK;
    let (ended, tally) = (AtomicBool::new(false), Tally::default());
    let root = world.path().to_owned();
    let mut counts = Vec::new();
    let kept: Vec<_> = thread::scope(|scope| {
        let loads: Vec<_> = (0..4)
            .map(|id| {
                let (root, ended, tally) = (&root, &ended, &tally);
                scope.spawn(move || load(root, id, longest, ended, tally))
            })
            .collect();
        for (conditions, time) in phases {
            world.conditions(*conditions);
            thread::sleep(*time);
            counts.push((
                tally.done.swap(0, Ordering::Relaxed),
                tally.failed.swap(0, Ordering::Relaxed),
            ));
        }
        ended.store(true, Ordering::Relaxed);
        loads.into_iter().flat_map(|l| l.join().unwrap()).collect()
    });
    world.go_on();
    let works = || create(&root.join("after"), 1).is_ok() && fs::read(root.join("00003")).is_ok();
    assert!(eventually(deadline + longest, works));
    for round in 0..2 {
        for (name, i) in &kept {
            assert_eq!(fs::read(root.join(name)).unwrap(), content(*i), "{name}");
        }
        if round == 0 {
            world.remount();
        }
    }
    counts
}

#[test]
fn a_service_that_is_gone_for_a_while_costs_errors_but_no_data() {
    let Some(mut world) = World::new(&ARGUMENTS) else {
        return;
    };
    make_files(world.path(), 200);
    world.remount();
    let gone = Duration::from_secs(env_number("KMSFS_OUTAGE_SECONDS", 12));
    let (well, stopped) = (
        Conditions::default(),
        Conditions {
            stopped: true,
            ..Conditions::default()
        },
    );
    let second = Duration::from_secs(1);
    let counts = through(
        &mut world,
        DEADLINE,
        &[
            (well, second),
            (stopped, gone),
            (well, 6 * second),
            (well, second),
        ],
    );
    println!("before, during, just after, after the outage (done, failed): {counts:?}");
    assert_eq!(counts[0].1, 0);
    assert!(counts[1].1 > 0, "there was an outage");
    assert!(counts[3].0 > 0 && counts[3].1 == 0, "and it was over");
}

#[test]
fn a_service_in_a_bad_way_is_endured() {
    // With the usual deadline: two seconds are much of a short one.
    let Some(mut world) = World::new(&[]) else {
        return;
    };
    make_files(world.path(), 200);
    world.remount();
    // Every second failure hangs up in the middle of the answer.
    let failing = Conditions {
        failing: 30,
        latency: Duration::from_millis(20),
        ..Conditions::default()
    };
    let slow = Conditions {
        latency: Duration::from_secs(2),
        ..Conditions::default()
    };
    let both = Conditions {
        failing: 30,
        ..slow
    };
    let time = Duration::from_secs(env_number("KMSFS_OUTAGE_SECONDS", 6));
    let phases = [(failing, time), (slow, time), (both, time)];
    let counts = through(&mut world, DEFAULT_DEADLINE, &phases);
    println!("30 % failing, 2 s slow, both (done, failed): {counts:?}");
    for (done, failed) in counts {
        assert!(
            done > 0 && failed * 20 <= done,
            "retries hide nearly all of it"
        );
    }
}

#[test]
fn a_key_that_is_enabled_again_works_without_a_remount() {
    let Some(mut world) = World::new(&ARGUMENTS) else {
        return;
    };
    make_files(world.path(), 2);
    world.remount();
    world.server.change(|key| key.state = State::Disabled);
    let path = world.join("00000");
    let calls = world.calls_of(|| {
        for _ in 0..20 {
            let error = fs::read(&path).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::EKEYREVOKED));
            let error = File::create(world.join("new")).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::EKEYREVOKED));
            assert!(!world.join("new").exists(), "nothing was made");
        }
    });
    assert!(calls <= 6, "a refusal is remembered: {calls} calls");
    assert!(world.server.world().keys.contains_key(KEY));
    world.server.change(|key| key.state = State::Enabled);
    let works = || fs::read(&path).is_ok() && fs::write(world.join("new"), b"x").is_ok();
    assert!(eventually(Duration::from_secs(8), works));
}

#[test]
fn nobody_is_stuck_where_more_wait_than_can_be_asked_for_at_once() {
    const OPENING: usize = 400;
    let Some(mut world) = World::new(&ARGUMENTS) else {
        return;
    };
    make_files(world.path(), OPENING);
    world.remount();
    world.conditions(Conditions {
        latency: Duration::from_secs(30),
        ..Conditions::default()
    });
    let slowest = thread::scope(|scope| {
        let opening: Vec<_> = (0..OPENING)
            .map(|i| {
                let path = world.join(format!("{i:05}"));
                scope.spawn(move || {
                    let start = Instant::now();
                    let error = File::open(path).unwrap_err();
                    assert_eq!(error.raw_os_error(), Some(libc::ETIMEDOUT), "{error}");
                    start.elapsed()
                })
            })
            .collect();
        let took = opening.into_iter().map(|o| o.join().unwrap());
        took.max().unwrap()
    });
    println!("{OPENING} opens without an answer: the last one ended after {slowest:?}");
    assert!(slowest < DEADLINE + SLACK);
    world.go_on();
    let works = || (0..OPENING).all(|i| fs::read(world.join(format!("{i:05}"))).is_ok());
    assert!(eventually(Duration::from_secs(30), works));
}
