//! Everything that is refused, with an error and often a hint.

use std::fs;
use std::path::Path;
use std::process::{Output, Stdio};

use crate::common::{self, Mount, Options, PATIENCE, Volume, mount_line, said, wait_for};
use crate::{assert_refused, hint, text};

/// The arguments that mount in the foreground; a refusal ends at once.
fn refused_mount(volume: &Volume, backing: &Path, point: &Path, words: &[&str]) -> Output {
    let mut child = volume
        .kmsfs()
        .args(["mount", "-f"])
        .args([backing, point])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("kmsfs runs");
    let status = wait_for(&mut child, PATIENCE);
    if status.is_none() {
        child.kill().expect("kill");
    }
    let output = child.wait_with_output().expect("wait");
    assert!(status.is_some(), "was not refused: {}", said(&output));
    assert_refused(&output, words);
    output
}

#[test]
fn a_mountpoint_that_is_not_empty_is_refused() {
    needs_mounts!();
    let volume = Volume::new();
    fs::write(volume.point().join("precious"), b"x").unwrap();
    refused_mount(
        &volume,
        volume.backing(),
        volume.point(),
        &["not empty", text(volume.point())],
    );
    assert!(!volume.is_mounted());
    assert!(volume.point().join("precious").exists());
    fs::remove_file(volume.point().join("precious")).unwrap();
    drop(Mount::of(volume, Options::default()));
}

#[test]
fn a_mountpoint_that_is_missing_or_no_directory_is_refused() {
    needs_mounts!();
    let volume = Volume::new();
    let missing = volume.root().join("missing");
    refused_mount(&volume, volume.backing(), &missing, &[text(&missing)]);
    let file = volume.root().join("file");
    fs::write(&file, b"").unwrap();
    refused_mount(&volume, volume.backing(), &file, &[text(&file)]);
}

#[test]
fn a_mountpoint_inside_the_backing_directory_is_refused() {
    needs_mounts!();
    let volume = Volume::new();
    let inside = volume.backing().join("inside");
    fs::create_dir(&inside).unwrap();
    refused_mount(&volume, volume.backing(), &inside, &["inside"]);
    refused_mount(&volume, volume.backing(), volume.backing(), &[]);
    // Not by another spelling either.
    let link = volume.root().join("link");
    std::os::unix::fs::symlink(volume.backing(), &link).unwrap();
    refused_mount(&volume, &link, &inside, &["inside"]);
    refused_mount(&volume, volume.backing(), &link.join("inside"), &["inside"]);
    refused_mount(
        &volume,
        &volume.backing().join("../backing"),
        &inside,
        &["inside"],
    );
}

#[test]
fn a_backing_directory_inside_the_mountpoint_is_refused() {
    needs_mounts!();
    let outer = common::temp_dir();
    let volume = Volume::bare(Some(outer.path().join("a/b/backing")));
    volume.init(&[]);
    refused_mount(&volume, volume.backing(), &outer.path().join("a"), &[]);
    assert!(mount_line(&outer.path().join("a")).is_none());
}

#[test]
fn a_second_mount_of_the_same_volume_is_refused() {
    needs_mounts!();
    let mount = Mount::simple();
    fs::write(mount.join("f"), b"x").unwrap();
    let second = mount.volume().root().join("second");
    fs::create_dir(&second).unwrap();
    let output = refused_mount(mount.volume(), mount.backing(), &second, &["mounted"]);
    hint(&output);
    assert!(mount_line(&second).is_none());
    assert_eq!(
        fs::read(mount.join("f")).unwrap(),
        b"x",
        "the first goes on"
    );
}

#[test]
fn the_lock_of_a_killed_daemon_does_not_stay() {
    needs_mounts!();
    let mut mount = Mount::simple();
    fs::write(mount.join("f"), b"x").unwrap();
    for _ in 0..3 {
        mount.sigkill();
        assert_eq!(fs::read(mount.join("f")).unwrap(), b"x");
    }
}

#[test]
fn a_directory_that_is_no_volume_is_refused_with_a_hint() {
    needs_mounts!();
    let volume = Volume::bare(None);
    let output = refused_mount(
        &volume,
        volume.backing(),
        volume.point(),
        &[text(volume.backing())],
    );
    assert!(hint(&output).contains("kmsfs init"), "{}", said(&output));
    fs::write(volume.backing().join("something"), b"x").unwrap();
    refused_mount(&volume, volume.backing(), volume.point(), &[]);
    let missing = volume.root().join("missing");
    refused_mount(&volume, &missing, volume.point(), &[text(&missing)]);
}

#[test]
fn init_refuses_a_directory_that_is_not_empty() {
    needs_mounts!();
    let volume = Volume::bare(None);
    fs::write(volume.backing().join("precious"), b"x").unwrap();
    let output = volume.run(&["init", text(volume.backing())]);
    assert_refused(&output, &["not empty"]);
    let names: Vec<_> = fs::read_dir(volume.backing())
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert_eq!(names, ["precious"], "nothing was added");
}

#[test]
fn init_refuses_a_volume_and_leaves_it_alone() {
    needs_mounts!();
    let volume = Volume::new();
    let config = volume.backing().join("kmsfs.json");
    let before = fs::read(&config).unwrap();
    let output = volume.run(&["init", text(volume.backing())]);
    assert_refused(&output, &[]);
    assert_eq!(fs::read(&config).unwrap(), before);
    drop(Mount::of(volume, Options::default()));
}

#[test]
fn init_makes_the_directory_if_it_is_missing() {
    needs_mounts!();
    let volume = Volume::bare(None);
    fs::remove_dir(volume.backing()).unwrap();
    volume.init(&[]);
    drop(Mount::of(volume, Options::default()));
}

#[test]
fn a_volume_of_a_newer_format_is_refused() {
    needs_mounts!();
    let volume = Volume::new();
    let config = volume.backing().join("kmsfs.json");
    let text = fs::read_to_string(&config).unwrap();
    let mut parsed: serde_json::Value = serde_json::from_str(&text).unwrap();
    let mut raised = 0;
    for (name, value) in parsed.as_object_mut().expect("an object") {
        let versions = name.contains("version") || name == "format";
        if versions && value.is_number() {
            *value = 99.into();
            raised += 1;
        }
    }
    assert!(raised > 0, "which field is the version? {text}");
    fs::write(&config, serde_json::to_vec_pretty(&parsed).unwrap()).unwrap();
    let output = refused_mount(&volume, volume.backing(), volume.point(), &["99"]);
    hint(&output);
    fs::write(&config, text).unwrap();
    drop(Mount::of(volume, Options::default()));
}

#[test]
fn a_damaged_config_is_refused() {
    needs_mounts!();
    let volume = Volume::new();
    let config = volume.backing().join("kmsfs.json");
    let good = fs::read(&config).unwrap();
    let mut bad: Vec<Vec<u8>> = vec![
        vec![],
        b"{}".to_vec(),
        b"[]".to_vec(),
        b"null".to_vec(),
        vec![0; 500],
        vec![0xff; 500],
    ];
    bad.extend((1..10).map(|part| good[..good.len() * part / 10].to_vec()));
    for bytes in bad {
        fs::write(&config, &bytes).unwrap();
        refused_mount(&volume, volume.backing(), volume.point(), &["kmsfs.json"]);
    }
    fs::write(&config, good).unwrap();
    drop(Mount::of(volume, Options::default()));
}

#[test]
fn a_missing_keystore_is_refused() {
    needs_mounts!();
    let volume = Volume::new();
    let keystore = volume.root().join("keystore");
    fs::rename(&keystore, volume.root().join("hidden")).unwrap();
    refused_mount(&volume, volume.backing(), volume.point(), &["key"]);
    assert!(!keystore.exists(), "a mount makes no new keys");
    fs::rename(volume.root().join("hidden"), &keystore).unwrap();
    drop(Mount::of(volume, Options::default()));
}

#[test]
fn unknown_options_are_refused() {
    needs_mounts!();
    let volume = Volume::new();
    let arguments = [
        "mount",
        "-f",
        "-o",
        "no_such_option",
        text(volume.backing()),
        text(volume.point()),
    ];
    let output = volume.run(&arguments);
    assert_refused(&output, &["no_such_option"]);
}

#[test]
fn wrong_usage_is_told_apart_from_failure() {
    needs_mounts!();
    let volume = Volume::new();
    let missing = volume.root().join("missing");
    let failure = volume.run(&["mount", "-f", text(&missing), text(volume.point())]);
    for arguments in [
        &["mount"][..],
        &["nonsense"],
        &["mount", "--nonsense", "a", "b"],
        &["umount"],
    ] {
        let usage = volume.run(arguments);
        assert_ne!(usage.status.code(), Some(0), "{arguments:?}");
        assert_ne!(
            usage.status.code(),
            failure.status.code(),
            "{arguments:?}: {}",
            said(&usage)
        );
    }
}
