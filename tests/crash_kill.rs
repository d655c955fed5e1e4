//! SIGKILL at random moments under a mixed load: afterwards every block reads
//! as old or new, nothing synced is lost, nothing needs repair.
//! `KMSFS_KILLS` says how many kills, `KMSFS_SEED` repeats a run.

#[path = "common/mod.rs"]
mod common;

use std::time::Duration;

use common::load::{self, Crash};
use common::{Mount, Options, Rng, env_number};

#[test]
fn a_killed_daemon_loses_nothing_that_was_synced() {
    let Some(mut mount) = Mount::real(Options {
        deadline: Some(Duration::from_secs(7200)),
        ..Options::default()
    }) else {
        return;
    };
    let kills = env_number("KMSFS_KILLS", 20);
    let mut rng = Rng::from_env();
    let mut writers = load::mixed(mount.path(), Crash::Kill);
    let mut steps = 0;
    for kill in 1..=kills {
        let moment = Duration::from_millis(1 + rng.below(300));
        steps += load::run(&mut writers, &mut rng, |plug| {
            std::thread::sleep(moment);
            plug.pull();
            mount.kill();
        })
        .unwrap_or_else(|error| panic!("kill {kill} after {moment:?}: {error}"));
        mount.start();
        load::check(mount.path(), &mut writers)
            .unwrap_or_else(|error| panic!("kill {kill} after {moment:?}: {error}"));
    }
    println!("{kills} kills, {steps} steps");
    assert!(
        steps > kills * 10,
        "only {steps} steps: the load did not run"
    );
}

#[test]
fn a_kill_right_after_fsync_loses_nothing() {
    use std::io::Write;
    use std::os::unix::fs::FileExt;
    let Some(mut mount) = Mount::real(Options::default()) else {
        return;
    };
    for round in 0..5_u64 {
        let path = mount.join(format!("f{round}"));
        let mut file = std::fs::File::create(&path).unwrap();
        file.write_all(&common::noise(round, 300_001)).unwrap();
        file.sync_all().unwrap();
        file.write_all_at(&common::noise(round + 100, 10_000), 5000)
            .unwrap();
        file.sync_data().unwrap();
        mount.sigkill();
        let mut expected = common::noise(round, 300_001);
        expected[5000..15_000].copy_from_slice(&common::noise(round + 100, 10_000));
        assert!(std::fs::read(&path).unwrap() == expected, "round {round}");
    }
}

#[test]
fn a_kill_while_nothing_runs_loses_nothing_that_was_closed_and_synced() {
    let Some(mut mount) = Mount::real(Options::default()) else {
        return;
    };
    for i in 0..200 {
        std::fs::write(mount.join(format!("f{i}")), common::noise(i, 3000)).unwrap();
    }
    rustix::fs::syncfs(std::fs::File::open(mount.path()).unwrap()).unwrap();
    mount.sigkill();
    for i in 0..200 {
        let found = std::fs::read(mount.join(format!("f{i}"))).unwrap();
        assert!(
            found == common::noise(i, 3000),
            "f{i}: {} bytes",
            found.len()
        );
    }
}

#[test]
fn the_same_load_without_any_crash() {
    let Some(mut mount) = Mount::real(Options::default()) else {
        return;
    };
    let rounds = env_number("KMSFS_LOAD_ROUNDS", 4);
    let mut rng = Rng::from_env();
    let mut writers = load::mixed(mount.path(), Crash::Kill);
    for round in 1..=rounds {
        let told = |error| -> u64 { panic!("round {round}: {error}") };
        load::run(&mut writers, &mut rng, |plug| {
            std::thread::sleep(Duration::from_millis(1500));
            plug.pull();
        })
        .unwrap_or_else(told);
        mount.remount();
        load::check(mount.path(), &mut writers).unwrap_or_else(|error| {
            told(error);
        });
    }
}
