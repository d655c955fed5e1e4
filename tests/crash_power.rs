//! Power cuts: the backing directory lies on an ext4 image that stops dead
//! (EXT4_IOC_SHUTDOWN) under load. After journal replay everything synced is
//! there and right, and everything else can be read.
//! `KMSFS_CUTS` says how many cuts, `KMSFS_SEED` repeats a run. With
//! `KMSFS_TEST_DIR` set the load runs on the ext4 itself.

#[path = "common/mod.rs"]
mod common;

use std::path::PathBuf;
use std::time::Duration;

use common::load::{self, Crash, Writer};
use common::loopfs::{Cut, LoopFs};
use common::{Mount, Options, Rng, env_number, is_plain, is_root, skip};

const IMAGE: u64 = 1 << 30;

/// An ext4 image with a volume on it, or with nothing but a directory.
struct Machine {
    /// Before `disk`, so that the daemon goes first.
    mount: Option<Mount>,
    disk: LoopFs,
}

impl Machine {
    fn new() -> Option<Machine> {
        if !is_root() {
            skip("needs root");
            return None;
        }
        let Some(disk) = LoopFs::new(IMAGE, &[], "") else {
            skip("needs loop devices");
            return None;
        };
        let mount = (!is_plain()).then(|| {
            Mount::new(Options {
                backing: Some(disk.path().join("volume")),
                deadline: Some(Duration::from_secs(7200)),
                ..Options::default()
            })
        });
        Some(Machine { mount, disk })
    }

    fn path(&self) -> PathBuf {
        self.mount
            .as_ref()
            .map_or_else(|| self.disk.path(), |mount| mount.path().to_owned())
    }

    /// Loses power and comes up again.
    fn cut(&mut self, how: Cut) {
        self.disk.cut(how);
        if let Some(mount) = &mut self.mount {
            mount.kill();
        }
    }

    fn power_on(&mut self) {
        self.disk.power_on();
        if let Some(mount) = &mut self.mount {
            mount.start();
        }
    }
}

fn torture(
    machine: &mut Machine,
    writers: &mut [Box<dyn Writer>],
    rng: &mut Rng,
    moment: Duration,
    how: Cut,
) {
    let told = |error| -> u64 { panic!("{how:?} after {moment:?}: {error}") };
    let steps = load::run(writers, rng, |plug| {
        std::thread::sleep(moment);
        plug.pull();
        machine.cut(how);
    })
    .unwrap_or_else(told);
    machine.power_on();
    load::check(&machine.path(), writers).unwrap_or_else(|error| {
        told(error);
    });
    println!("{how:?} after {moment:?}, {steps} steps");
}

#[test]
fn power_cuts_under_load() {
    let cuts = env_number("KMSFS_CUTS", 4);
    let mut rng = Rng::from_env();
    let mut cut = 0;
    while cut < cuts {
        // A fresh volume, cut within a second of its making; then it ages.
        let Some(mut machine) = Machine::new() else {
            return;
        };
        let mut writers = load::mixed(&machine.path(), Crash::Power);
        for age in 0..4.min(cuts - cut) {
            let longest = if age == 0 { 500 } else { 3000 };
            let moment = Duration::from_millis(10 + rng.below(longest));
            let how = if (cut + age) % 2 == 0 {
                Cut::LogLost
            } else {
                Cut::LogFlushed
            };
            torture(&mut machine, &mut writers, &mut rng, moment, how);
        }
        cut += 4;
    }
}

#[test]
fn a_volume_survives_a_cut_right_after_init() {
    for how in [Cut::LogLost, Cut::LogFlushed] {
        let Some(mut machine) = Machine::new() else {
            return;
        };
        machine.cut(how);
        machine.power_on();
        std::fs::write(machine.path().join("f"), b"works").unwrap();
        assert_eq!(std::fs::read(machine.path().join("f")).unwrap(), b"works");
    }
}

#[test]
fn the_first_synced_file_and_directory_survive() {
    for how in [Cut::LogLost, Cut::LogFlushed] {
        let Some(mut machine) = Machine::new() else {
            return;
        };
        let root = machine.path();
        for dir in ["d", "d/e", "d/e/f"] {
            std::fs::create_dir(root.join(dir)).unwrap();
        }
        common::write_synced(&root.join("d/e/f/file"), b"deep and synced");
        common::write_synced(&root.join("l".repeat(255)), b"long and synced");
        for dir in ["d/e/f", "d/e", "d", "."] {
            std::fs::File::open(root.join(dir))
                .unwrap()
                .sync_all()
                .unwrap();
        }
        machine.cut(how);
        machine.power_on();
        assert_eq!(
            std::fs::read(root.join("d/e/f/file")).unwrap(),
            b"deep and synced"
        );
        assert_eq!(
            std::fs::read(root.join("l".repeat(255))).unwrap(),
            b"long and synced"
        );
        load::read_everything(&root).unwrap();
    }
}
