//! How requests come from the kernel: over io_uring where it can, else from
//! /dev/fuse. Nothing else may differ.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Barrier;
use std::thread;

use rustix::fs::SeekFrom;

use crate::common::{Mount, Options, PATIENCE, Volume, eventually, filter, threads_of};
use crate::text;

const SETTING: &str = "/sys/module/fuse/parameters/enable_uring";

fn threads(mount: &Mount) -> Vec<String> {
    threads_of(mount.pid())
}

fn count(mount: &Mount, prefix: &str) -> usize {
    let names = threads(mount);
    names.iter().filter(|name| name.starts_with(prefix)).count()
}

/// Whether this kernel has io_uring for FUSE and this process may turn it on.
fn can_be_turned_on() -> bool {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").expect("a release");
    let mut numbers = release.split('.').map(|n| n.parse::<u32>().unwrap_or(0));
    let version = (numbers.next(), numbers.next());
    version >= (Some(6), Some(18)) && File::options().write(true).open(SETTING).is_ok()
}

fn setting() -> Option<String> {
    Some(fs::read_to_string(SETTING).ok()?.trim().to_owned())
}

fn with(options: &str) -> Option<Mount> {
    Mount::real(Options {
        mount: options.into(),
        ..Options::default()
    })
}

#[test]
fn requests_come_over_io_uring_and_the_systems_setting_stays() {
    let before = setting();
    let Some(mut mount) = with("io_uring") else {
        return;
    };
    if can_be_turned_on() {
        assert!(count(&mount, "kmsfs-ring") >= 2, "{:?}", threads(&mount));
        assert_eq!(count(&mount, "kmsfs-fuse"), 1, "for what none waits for");
    }
    fs::write(mount.join("a"), b"over a ring").unwrap();
    // Tests mount at the same time, and each puts the setting back.
    let is_back = || setting() == before || setting().as_deref() == Some("N");
    assert!(eventually(PATIENCE, is_back), "{SETTING}: {:?}", setting());
    mount.remount_with(Options {
        mount: "no_io_uring".into(),
        ..Options::default()
    });
    assert_eq!(count(&mount, "kmsfs-ring"), 0);
    // They are started one after the other while the first serves already.
    let several = || count(&mount, "kmsfs-fuse") > 1;
    assert!(eventually(PATIENCE, several), "{:?}", threads(&mount));
    assert_eq!(fs::read(mount.join("a")).unwrap(), b"over a ring");
}

#[test]
fn no_io_uring_is_an_option_and_the_last_one_counts() {
    let Some(mount) = with("io_uring,no_io_uring") else {
        return;
    };
    assert_eq!(count(&mount, "kmsfs-ring"), 0);
    fs::write(mount.join("a"), vec![7; 3 << 20]).unwrap();
    assert_eq!(fs::read(mount.join("a")).unwrap(), vec![7; 3 << 20]);
}

/// Runs a command with io_uring forbidden, as a container or a sysctl does, and
/// says how it ended.
fn forbidden_io_uring(volume: &Volume) -> std::process::Output {
    let setup = 425; // io_uring_setup(2), the same on every architecture.
    let mut command = volume.kmsfs();
    command.args(["mount", text(volume.backing()), text(volume.point())]);
    filter::forbid(&mut command, setup);
    command.output().expect("kmsfs runs")
}

#[test]
fn where_io_uring_is_forbidden_the_device_serves() {
    needs_mounts!();
    let volume = Volume::new();
    let output = forbidden_io_uring(&volume);
    assert!(output.status.success(), "{output:?}");
    fs::write(volume.point().join("a"), b"read from the device").unwrap();
    assert_eq!(
        fs::read(volume.point().join("a")).unwrap(),
        b"read from the device"
    );
    assert!(
        volume
            .run(&["umount", text(volume.point())])
            .status
            .success()
    );
}

/// Each of these seeks is put aside until the kernel has written back what is
/// dirty, which are requests themselves: they must find a thread that is free.
#[test]
fn requests_that_wait_for_other_requests_do_not_stop_them() {
    needs_mounts!();
    let mount = Mount::simple();
    let clients = 64;
    let (all, path) = (Barrier::new(clients), mount.path());
    let work = |client: usize| {
        let path: &Path = path;
        let file = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .open(path.join(format!("f{client}")))
            .expect("create");
        for round in 0..20u64 {
            all.wait();
            let at = (round + 1) << 20;
            file.write_all_at(b"dirty", at).expect("write");
            let found = rustix::fs::seek(&file, SeekFrom::Data(at - 4096));
            let found = found.expect("seek");
            assert!(found <= at, "{at} was skipped: {found}");
        }
    };
    thread::scope(|scope| {
        for client in 0..clients {
            scope.spawn(move || work(client));
        }
    });
}
