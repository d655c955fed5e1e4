//! How mounts end: umount, signals, strangers.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::common::{
    self, Mount, Options, PATIENCE, Volume, eventually, mount_line, said, sys, wait_for,
};
use crate::{assert_refused, hint, text};

/// Starts a mount in the foreground; the caller ends it.
fn foreground(volume: &Volume) -> std::process::Child {
    let log = File::create(volume.root().join("log")).unwrap();
    let mut command = volume.kmsfs();
    command
        .args(["mount", "-f"])
        .args([volume.backing(), volume.point()]);
    let child = command
        .stderr(log)
        .stdout(Stdio::null())
        .spawn()
        .expect("kmsfs runs");
    assert!(eventually(PATIENCE, || volume.is_mounted()), "mounts");
    child
}

#[test]
fn signals_end_the_mount_cleanly() {
    needs_mounts!();
    for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP] {
        let volume = Volume::new();
        let mut child = foreground(&volume);
        // Not synced by anyone: the clean end has to see to it.
        let file = File::create(volume.point().join("f")).unwrap();
        (&file).write_all(&common::noise(1, 200_000)).unwrap();
        drop(file);
        sys::kill(child.id(), signal);
        let status = wait_for(&mut child, PATIENCE).unwrap_or_else(|| {
            child.kill().unwrap();
            panic!("signal {signal} did not end the daemon")
        });
        let log = fs::read_to_string(volume.root().join("log")).unwrap();
        assert!(!log.contains("panicked at"), "{log}");
        assert_eq!(
            status.code(),
            Some(0),
            "after signal {signal}: {status}\n{log}"
        );
        assert!(!volume.is_mounted(), "signal {signal} leaves no dead mount");
        let mount = Mount::of(volume, Options::default());
        assert!(
            fs::read(mount.join("f")).unwrap() == common::noise(1, 200_000),
            "after signal {signal}"
        );
    }
}

#[test]
fn a_signal_while_a_file_is_open_detaches_and_loses_nothing() {
    needs_mounts!();
    let volume = Volume::new();
    let mut child = foreground(&volume);
    let file = File::create(volume.point().join("f")).unwrap();
    (&file).write_all(&common::noise(1, 50_000)).unwrap();
    sys::kill(child.id(), libc::SIGTERM);
    assert!(
        eventually(PATIENCE, || !volume.is_mounted()),
        "gone from sight"
    );
    // Whoever has the file open can finish; then the daemon ends.
    (&file).write_all(&common::noise(2, 50_000)).unwrap();
    drop(file);
    let status = wait_for(&mut child, PATIENCE).unwrap_or_else(|| {
        child.kill().unwrap();
        panic!("the daemon outlives its last user")
    });
    assert_eq!(status.code(), Some(0));
    let mount = Mount::of(volume, Options::default());
    let found = fs::read(mount.join("f")).unwrap();
    assert!(
        found == [common::noise(1, 50_000), common::noise(2, 50_000)].concat(),
        "{} bytes",
        found.len()
    );
}

#[test]
fn an_external_umount_ends_the_daemon() {
    needs_mounts!();
    let volume = Volume::new();
    let mut child = foreground(&volume);
    fs::write(volume.point().join("f"), common::noise(1, 100_000)).unwrap();
    let done = Command::new("umount").arg(volume.point()).output().unwrap();
    assert!(done.status.success(), "{}", said(&done));
    let status = wait_for(&mut child, PATIENCE).expect("the daemon ends by itself");
    assert_eq!(status.code(), Some(0));
    let mount = Mount::of(volume, Options::default());
    assert!(fs::read(mount.join("f")).unwrap() == common::noise(1, 100_000));
}

#[test]
fn a_foreign_mount_that_took_the_place_is_left_alone() {
    needs_mounts!();
    let volume = Volume::new();
    let mut child = foreground(&volume);
    let done = Command::new("umount")
        .args(["-l"])
        .arg(volume.point())
        .output()
        .unwrap();
    assert!(done.status.success(), "{}", said(&done));
    let tmpfs = Command::new("mount")
        .args(["-t", "tmpfs", "none"])
        .arg(volume.point())
        .output()
        .unwrap();
    assert!(tmpfs.status.success(), "{}", said(&tmpfs));
    let ended = wait_for(&mut child, PATIENCE);
    let line = mount_line(volume.point());
    rustix::mount::unmount(volume.point(), rustix::mount::UnmountFlags::DETACH).unwrap_or(());
    assert!(ended.is_some(), "the daemon ends once its mount is gone");
    assert!(
        line.is_some_and(|line| line.contains("tmpfs")),
        "a stranger's mount was unmounted"
    );
}

#[test]
fn umount_of_a_busy_mount_says_so_and_lazy_detaches() {
    needs_mounts!();
    let volume = Volume::new();
    let mut child = foreground(&volume);
    let file = File::create(volume.point().join("f")).unwrap();
    let output = volume.run(&["umount", text(volume.point())]);
    assert_refused(&output, &["busy"]);
    assert!(hint(&output).contains("--lazy"), "{}", said(&output));
    assert!(volume.is_mounted());
    let output = volume.run(&["umount", "--lazy", text(volume.point())]);
    assert!(output.status.success(), "{}", said(&output));
    assert!(!volume.is_mounted());
    // The open file lives on, and so does the daemon until it is closed.
    (&file).write_all(b"written after the detach").unwrap();
    file.sync_all().unwrap();
    assert!(
        child.try_wait().unwrap().is_none(),
        "the daemon still serves the open file"
    );
    drop(file);
    let status = wait_for(&mut child, PATIENCE).expect("ends with its last user");
    let log = fs::read_to_string(volume.root().join("log")).unwrap();
    assert_eq!(status.code(), Some(0), "{log}");
    let mount = Mount::of(volume, Options::default());
    assert_eq!(
        fs::read(mount.join("f")).unwrap(),
        b"written after the detach"
    );
}

#[test]
fn umount_of_what_is_not_mounted_is_refused() {
    needs_mounts!();
    let volume = Volume::new();
    assert_refused(
        &volume.run(&["umount", text(volume.point())]),
        &["mounted", text(volume.point())],
    );
    let missing = volume.root().join("missing");
    assert_refused(&volume.run(&["umount", text(&missing)]), &[text(&missing)]);
    assert_refused(&volume.run(&["umount", "/proc"]), &[]);
    assert!(mount_line(Path::new("/proc")).is_some());
}

#[test]
fn umount_waits_until_the_data_is_safe() {
    needs_mounts!();
    let volume = Volume::new();
    let output = volume.run(&["mount", text(volume.backing()), text(volume.point())]);
    assert!(output.status.success(), "{}", said(&output));
    fs::write(volume.point().join("f"), common::noise(1, 3 << 20)).unwrap();
    let output = volume.run(&["umount", text(volume.point())]);
    assert!(output.status.success(), "{}", said(&output));
    // Mounting again needs the lock that the old daemon held.

    let mount = Mount::of(volume, Options::default());
    assert!(fs::read(mount.join("f")).unwrap() == common::noise(1, 3 << 20));
}
