//! `--audit-log`, and `kmsfs audit verify`.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use crate::common::{Mount, said, write_synced};
use crate::kms_servers::alibaba::{Server, State};
use crate::*;

struct Audited {
    mount: Mount,
    server: Server,
    log: std::path::PathBuf,
    _dir: tempfile::TempDir,
}

fn audited() -> Audited {
    let dir = common::temp_dir();
    let log = dir.path().join("audit.log");
    let server = Server::start();
    let mount = kms_mount(&server, &["--audit-log", log.to_str().unwrap()]);
    Audited {
        mount,
        server,
        log,
        _dir: dir,
    }
}

impl Audited {
    fn lines(&self) -> Vec<serde_json::Value> {
        let text = fs::read_to_string(&self.log).unwrap();
        let lines = text.lines();
        lines
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }

    fn verify(&self, more: &[&str]) -> Output {
        let mut arguments = vec!["audit", "verify"];
        arguments.extend(more);
        arguments.push(self.log.to_str().unwrap());
        self.mount.volume().run(&arguments)
    }
}

#[test]
fn each_release_has_a_line_and_a_cut_shows() {
    needs_mounts!();
    let mut audited = audited();
    let path = audited.mount.join("f");
    write_synced(&path, &block(0));
    kmsfs_ok(&audited.mount, &["keys", "drop"]);
    fs::read(&path).unwrap();
    audited.server.change(|key| key.state = State::Disabled);
    kmsfs_ok(&audited.mount, &["keys", "drop"]);
    fs::read(&path).unwrap_err();
    let status = status(&audited.mount);
    let lines = audited.lines();
    let told: Vec<_> = lines
        .iter()
        .map(|l| (l["event"].as_str().unwrap(), l["outcome"].as_str().unwrap()))
        .collect();
    // The volume's key first; what else there is renews leases.
    assert_eq!(told[0], ("unwrap", "released"));
    assert!(told.contains(&("generate", "released")), "{told:?}");
    assert!(told.contains(&("unwrap", "disabled")), "{told:?}");
    let made = lines.iter().find(|l| l["event"] == "generate").unwrap();
    assert_eq!(made["pid"], std::process::id());
    assert_eq!(made["uid"], common::sys::euid());
    assert_eq!(made["volume"], status["volume"]);
    assert!(made["key"].as_str().unwrap().starts_with("alibabakms://"));
    assert!(lines.iter().all(|l| l["request"].is_string()), "{lines:?}");
    assert_eq!(
        fs::metadata(&audited.log).unwrap().permissions().mode() & 0o777,
        0o600
    );
    let last = status["audit"]["last"].as_str().unwrap().to_owned();
    audited.server.change(|key| key.state = State::Enabled);
    // A second mount goes on where the first one ended.
    audited.mount.remount();
    fs::read(&path).unwrap();
    audited.mount.unmount();
    let output = audited.verify(&["--contains", &last]);
    assert!(output.status.success(), "{}", said(&output));
    let whole = fs::read_to_string(&audited.log).unwrap();
    let split: Vec<&str> = whole.split_inclusive('\n').collect();
    let noted = lines.len();
    let without = |index: usize| {
        let mut rest = split.clone();
        rest.remove(index);
        rest.concat()
    };
    for broken in [
        without(0),
        without(2),
        whole.replacen("\"released\"", "\"denied\"", 1),
        whole[..whole.len() - 5].to_owned(),
    ] {
        fs::write(&audited.log, broken).unwrap();
        let output = audited.verify(&[]);
        assert_eq!(output.status.code(), Some(41), "{}", said(&output));
    }
    // A cut at the end shows to who noted a hash.
    fs::write(&audited.log, split[..noted - 1].concat()).unwrap();
    assert!(audited.verify(&[]).status.success());
    let output = audited.verify(&["--contains", &last]);
    assert_eq!(output.status.code(), Some(41), "{}", said(&output));
    fs::write(&audited.log, whole).unwrap();
    audited.mount.start();
}

#[test]
fn no_key_is_released_that_cannot_be_logged() {
    needs_mounts!();
    let audited = audited();
    let path = audited.mount.join("f");
    write_synced(&path, &block(0));
    kmsfs_ok(&audited.mount, &["keys", "drop"]);
    fs::OpenOptions::new()
        .write(true)
        .open(&audited.log)
        .unwrap()
        .set_len(10)
        .unwrap();
    assert_eq!(errno(fs::read(&path)), libc::EACCES);
    assert!(
        audited.mount.log().contains("audit log"),
        "{}",
        audited.mount.log()
    );
}

#[test]
fn a_log_in_the_volume_or_of_another_mount_is_refused() {
    needs_mounts!();
    let audited = audited();
    let other = common::Volume::new();
    let log = audited.log.to_str().unwrap();
    let inside = other.backing().join("log");
    for (log, code) in [(log, 40), (inside.to_str().unwrap(), 14)] {
        let (backing, point) = (other.backing().to_str(), other.point().to_str());
        let output = other.run(&[
            "mount",
            "--audit-log",
            log,
            backing.unwrap(),
            point.unwrap(),
        ]);
        assert_eq!(output.status.code(), Some(code), "{}", said(&output));
    }
}
