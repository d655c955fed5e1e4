//! `kmsfs status`, and who may ask.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;

use crate::common::{Mount, is_root, said, skip, write_synced};
use crate::kms_servers::alibaba::Server;
use crate::*;

#[test]
fn status_says_what_there_is() {
    needs_mounts!();
    let server = Server::start();
    let mount = kms_mount(&server, &["--outage-grace", "5"]);
    write_synced(&mount.join("f"), &block(0));
    let _open = open_both(&mount.join("f")).unwrap();
    let status = status(&mount);
    assert_eq!(status["volume"].as_str().unwrap().len(), 32);
    assert_eq!(status["mountpoint"], mount.path().to_str().unwrap());
    assert_eq!(status["pid"], mount.pid());
    assert_eq!(status["locked"], false);
    assert_eq!(status["open_files"]["count"], 1);
    assert_eq!(status["open_files"]["with_key"], 1);
    assert_eq!(status["lease"]["ttl_seconds"], TTL as f64);
    assert_eq!(status["lease"]["grace_seconds"], 5.0);
    assert!(status["uptime_seconds"].as_f64().unwrap() > 0.0);
    assert!(status["cache"]["hits"].is_u64());
    let uri = status["keys"][0]["uri"].as_str().unwrap();
    assert!(uri.starts_with("alibabakms://"), "{uri}");
    let people = kmsfs_ok(&mount, &["status"]);
    assert!(
        people.contains("unlocked") && people.contains(uri),
        "{people}"
    );
    let metrics = kmsfs_ok(&mount, &["status", "--metrics"]);
    for line in metrics.lines().filter(|line| !line.starts_with('#')) {
        let (name, value) = line.rsplit_once(' ').unwrap();
        assert!(name.starts_with("kmsfs_") && name.ends_with('}'), "{line}");
        value.parse::<f64>().unwrap();
    }
    assert!(
        metrics.contains("\nkmsfs_open_files{volume=\""),
        "{metrics}"
    );
}

#[test]
fn other_users_are_refused() {
    needs_mounts!();
    if !is_root() {
        return skip("needs root to be someone else");
    }
    let mount = local_mount(&[]);
    let run = mount.volume().root().join("run");
    let socket = fs::read_dir(&run).unwrap().next().unwrap().unwrap().path();
    assert_eq!(
        fs::metadata(&run).unwrap().permissions().mode() & 0o777,
        0o700
    );
    assert_eq!(
        fs::metadata(&socket).unwrap().permissions().mode() & 0o777,
        0o600
    );
    let as_other = |command: &str| {
        let mut kmsfs = mount.volume().kmsfs();
        kmsfs
            .args([command])
            .arg(mount.path())
            .uid(65_534)
            .gid(65_534);
        kmsfs.output().unwrap()
    };
    for command in ["status", "lock", "unlock"] {
        let output = as_other(command);
        assert_eq!(output.status.code(), Some(33), "{}", said(&output));
    }
    // Not only because the files keep them out.
    for (path, mode) in [
        (mount.volume().root(), 0o755),
        (&run, 0o755),
        (&socket, 0o666),
    ] {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }
    let output = as_other("lock");
    assert_eq!(output.status.code(), Some(33), "{}", said(&output));
    assert!(
        mount.log().contains("user 65534 was refused"),
        "{}",
        mount.log()
    );
    assert_eq!(status(&mount)["locked"], false);
}

#[test]
fn a_socket_left_by_a_killed_daemon_is_replaced() {
    needs_mounts!();
    let mut mount = local_mount(&[]);
    mount.sigkill();
    assert_eq!(status(&mount)["pid"], mount.pid());
    let run = mount.volume().root().join("run");
    assert_eq!(fs::read_dir(&run).unwrap().count(), 1);
    mount.unmount();
    assert_eq!(fs::read_dir(&run).unwrap().count(), 0);
    let output = kmsfs(&mount, &["status"]);
    assert_eq!(output.status.code(), Some(31), "{}", said(&output));
    mount.start();
}

#[test]
fn a_path_below_the_mount_means_the_mount() {
    needs_mounts!();
    let mount = Mount::simple();
    fs::create_dir(mount.join("d")).unwrap();
    let below = mount.join("d");
    let output = mount
        .volume()
        .run(&["status", "--json", below.to_str().unwrap()]);
    assert!(output.status.success(), "{}", said(&output));
}
