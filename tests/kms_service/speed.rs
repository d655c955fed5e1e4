//! How fast a mount is in spite of the service's latency and quota. The machines
//! that run this differ, so what is asserted is less where one is slow by itself;
//! the figures are printed.

use std::fs;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::common::env_number;
use crate::kms_servers::alibaba::Conditions;
use crate::world::{LATENCY, World, content, make_files};

fn limited() -> Conditions {
    Conditions {
        latency: LATENCY,
        quota: Some(1000),
        ..Conditions::default()
    }
}

#[test]
fn files_are_made_and_read_as_fast_as_the_quota_lets() {
    let files = env_number("KMSFS_FILES", 5000) as usize;
    let Some(mut world) = World::new(&[]) else {
        return;
    };
    // As fast as this machine makes files at all, with a service that answers at once.
    let start = Instant::now();
    fs::create_dir(world.join("free")).unwrap();
    make_files(&world.join("free"), files / 5);
    let free = (files / 5) as f64 / start.elapsed().as_secs_f64();
    fs::remove_dir_all(world.join("free")).unwrap();
    world.remount();
    world.conditions(limited());
    let start = Instant::now();
    let calls = world.calls_of(|| make_files(world.path(), files));
    let took = start.elapsed();
    let rate = files as f64 / took.as_secs_f64();
    println!(
        "create: {files} files in {took:?}, {rate:.0} a second ({free:.0} without limits), \
         {calls} calls, {} throttled",
        world.server.throttled()
    );
    // One after the other would be fewer than 100 a second.
    let bar = f64::min(700.0, 0.7 * free);
    assert!(
        rate >= bar,
        "{rate:.0} files a second, {free:.0} without limits"
    );
    assert!(calls < files + files / 10 + 100, "{calls} calls");

    world.remount();
    let throttled = world.server.throttled();
    // What opening them one after the other would cost each, measured here.
    let start = Instant::now();
    let probes = [4001, 17, 2903, 900, 3300, 1700, 2300, 450].map(|i| i % files);
    for i in probes {
        assert_eq!(fs::read(world.join(format!("{i:05}"))).unwrap(), content(i));
    }
    let one_by_one = start.elapsed() / probes.len() as u32 * files as u32;
    let start = Instant::now();
    let calls = world.calls_of(|| {
        let status = Command::new("sh")
            .args(["-c", "cat ./*"])
            .current_dir(world.path())
            .stdout(Stdio::null())
            .status();
        assert!(status.unwrap().success());
    });
    let took = start.elapsed();
    let times = one_by_one.as_secs_f64() / took.as_secs_f64();
    let throttled = world.server.throttled() - throttled;
    println!(
        "cat: {files} files in {took:?}, {times:.1} times as fast as one by one \
         ({one_by_one:?}), {calls} calls, {throttled} throttled"
    );
    // Unless the machine itself takes longer for a file than the service.
    let slow = one_by_one > 2 * LATENCY * files as u32;
    let bar = if slow { 2.5 } else { 5.0 };
    assert!(times >= bar, "only {times:.1} times as fast");
    assert!(calls - throttled <= files, "{calls} calls");
}

#[test]
fn others_are_served_while_many_wait() {
    let Some(mut world) = World::new(&[]) else {
        return;
    };
    make_files(world.path(), 65);
    world.remount();
    let warm = world.join("00064");
    fs::read(&warm).unwrap();
    world.conditions(Conditions {
        latency: Duration::from_secs(4),
        ..Conditions::default()
    });
    let cats: Vec<_> = (0..64)
        .map(|i| {
            let mut cat = Command::new("cat");
            let cat = cat.arg(world.join(format!("{i:05}"))).stdout(Stdio::null());
            cat.spawn().unwrap()
        })
        .collect();
    std::thread::sleep(Duration::from_millis(800));
    let mut worst = Duration::ZERO;
    for round in 0..50 {
        let start = Instant::now();
        fs::metadata(world.join(format!("{:05}", round % 64))).unwrap();
        fs::symlink_metadata(world.join(format!("none {round}"))).unwrap_err();
        assert_eq!(fs::read_dir(world.path()).unwrap().count(), 65);
        assert_eq!(fs::read(&warm).unwrap(), content(64));
        fs::rename(&warm, world.join("other")).unwrap();
        fs::rename(world.join("other"), &warm).unwrap();
        worst = worst.max(start.elapsed());
    }
    println!("the slowest round of six operations took {worst:?}");
    assert!(
        worst < Duration::from_millis(600),
        "{worst:?} for six operations"
    );
    for mut cat in cats {
        assert!(cat.wait().unwrap().success());
    }
}
