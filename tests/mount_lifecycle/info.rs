//! What is shown without a mount: help, versions, headers, ciphertext.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::common::{self, Mount, Volume, said};
use crate::{assert_refused, text};

#[test]
fn help_and_version() {
    needs_mounts!();
    let volume = Volume::bare(None);
    for arguments in [
        &["--help"][..],
        &["mount", "--help"],
        &["init", "--help"],
        &["umount", "--help"],
        &["info", "--help"],
    ] {
        let output = volume.run(arguments);
        assert!(output.status.success(), "{}", said(&output));
        assert!(
            String::from_utf8_lossy(&output.stdout).contains("kmsfs"),
            "{arguments:?}"
        );
    }
    for arguments in [&["--version"][..], &["version"]] {
        let output = volume.run(arguments);
        assert!(output.status.success(), "{}", said(&output));
        assert!(
            String::from_utf8_lossy(&output.stdout).contains(env!("CARGO_PKG_VERSION")),
            "{arguments:?}"
        );
    }
}

#[test]
fn info_needs_no_key() {
    needs_mounts!();
    let mut mount = Mount::simple();
    fs::write(mount.join("f"), common::noise(1, 10_000)).unwrap();
    mount.unmount();
    fs::rename(
        mount.volume().root().join("keystore"),
        mount.volume().root().join("hidden"),
    )
    .unwrap();
    let volume = mount.volume();
    let output = volume.run(&["info", "--json", text(volume.backing())]);
    assert!(output.status.success(), "{}", said(&output));
    let of_volume: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert!(of_volume.is_object());
    let file = largest_file(volume.backing());
    let output = volume.run(&["info", "--json", text(&file)]);
    assert!(output.status.success(), "{}", said(&output));
    let of_file: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert!(
        of_file.to_string().contains("local:"),
        "the key's URI: {of_file}"
    );
    for path in [volume.backing(), &file] {
        let output = volume.run(&["info", text(path)]);
        assert!(
            output.status.success() && !output.stdout.is_empty(),
            "{}",
            said(&output)
        );
    }
    let config = volume.root().join("hidden");
    assert_refused(
        &volume.run(&["info", text(&volume.root().join("missing"))]),
        &["missing"],
    );
    let plain = volume.root().join("plain");
    fs::write(&plain, b"no header at all").unwrap();
    assert_refused(&volume.run(&["info", text(&plain)]), &[]);
    fs::rename(config, volume.root().join("keystore")).unwrap();
    mount.start();
}

/// The backing file of the only large file in a volume.
fn largest_file(backing: &Path) -> std::path::PathBuf {
    fs::read_dir(backing)
        .unwrap()
        .map(|entry| entry.unwrap())
        .filter(|entry| entry.file_type().unwrap().is_file())
        .max_by_key(|entry| entry.metadata().unwrap().len())
        .expect("a file")
        .path()
}

#[test]
fn nothing_readable_reaches_the_backing_directory() {
    needs_mounts!();
    let marker = b"this marker is sixty-four bytes long, and must not ever be seen.";
    let mut mount = Mount::simple();
    let name = "a-name-that-gives-everything-away";
    fs::create_dir(mount.join(format!("{name}-dir"))).unwrap();
    for (i, len) in [64_usize, 4096, 100_000].into_iter().enumerate() {
        let contents: Vec<u8> = marker.iter().copied().cycle().take(len).collect();
        fs::write(mount.join(format!("{name}-{i}")), &contents).unwrap();
        fs::write(mount.join(format!("{name}-dir/{name}-{i}")), &contents).unwrap();
    }
    std::os::unix::fs::symlink(format!("{name}-target"), mount.join(format!("{name}-link")))
        .unwrap();
    let flags = rustix::fs::XattrFlags::empty();
    rustix::fs::setxattr(
        mount.join(format!("{name}-0")),
        format!("user.{name}"),
        marker,
        flags,
    )
    .unwrap();
    fs::write(mount.join(name.repeat(7)), b"long").unwrap();
    mount.unmount();
    let tar = Command::new("tar")
        .args(["--xattrs", "--xattrs-include=*", "-c", "-C"])
        .arg(mount.backing())
        .arg(".")
        .output()
        .unwrap();
    assert!(tar.status.success() && tar.stdout.len() > 200_000);
    for needle in [&marker[..16], name.as_bytes()] {
        assert!(
            !tar.stdout
                .windows(needle.len())
                .any(|window| window == needle),
            "plaintext in the backing directory"
        );
    }
    mount.start();
}
