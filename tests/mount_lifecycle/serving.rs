//! Mounts that come about: foreground, background, options.

use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use crate::common::{
    self, Mount, Options, PATIENCE, Volume, eventually, mount_line, process_stat, processes_naming,
    said,
};
use crate::{assert_refused, text};

#[test]
fn the_main_job() {
    needs_mounts!();
    let volume = Volume::new();
    let mut mount = Mount::of(volume, Options::default());
    fs::write(mount.join("hello"), b"hello, world").unwrap();
    mount.remount();
    assert_eq!(fs::read(mount.join("hello")).unwrap(), b"hello, world");
    let line = mount_line(mount.path()).expect("mounted");
    assert!(line.contains(" - fuse"), "{line}");
    assert!(line.contains("kmsfs"), "mount(8) names it: {line}");
}

#[test]
fn a_background_mount_serves_when_the_command_returns() {
    needs_mounts!();
    let volume = Volume::new();
    for round in 0..5 {
        let began = Instant::now();
        let output = volume.run(&["mount", text(volume.backing()), text(volume.point())]);
        assert!(output.status.success(), "{}", said(&output));
        assert!(began.elapsed() < PATIENCE);
        // Not a moment later: now.
        assert!(volume.is_mounted(), "round {round}");
        fs::write(volume.point().join(format!("f{round}")), b"x").expect("serves");
        assert_eq!(fs::read_dir(volume.point()).unwrap().count(), round + 1);
        let output = volume.run(&["umount", text(volume.point())]);
        assert!(output.status.success(), "{}", said(&output));
        assert!(!volume.is_mounted());
        assert!(
            eventually(PATIENCE, || processes_naming(volume.point()).is_empty()),
            "the daemon ends"
        );
    }
}

#[test]
fn a_background_daemon_lets_go_of_the_terminal_and_the_directory() {
    needs_mounts!();
    let volume = Volume::new();
    let elsewhere = common::temp_dir();
    let output = volume
        .kmsfs()
        .current_dir(elsewhere.path())
        .arg("mount")
        .args([volume.backing(), volume.point()])
        .stdin(Stdio::piped())
        .output()
        // `output` returns only once nobody holds the pipes any more.
        .expect("kmsfs runs");
    assert!(output.status.success(), "{}", said(&output));
    for pid in processes_naming(volume.point()) {
        match fs::read_link(format!("/proc/{pid}/cwd")) {
            Ok(cwd) => assert_ne!(cwd, elsewhere.path(), "the daemon keeps its directory busy"),
            // The daemon is not dumpable, so this takes CAP_SYS_PTRACE.
            Err(error) => {
                assert_eq!(error.kind(), std::io::ErrorKind::PermissionDenied);
                common::say_skipped("may not see the daemon's directory");
            }
        }
        let session = |pid| process_stat(pid, 6);
        assert_ne!(session(pid), session(std::process::id()), "one of its own");
    }
    assert!(
        volume
            .run(&["umount", text(volume.point())])
            .status
            .success()
    );
}

#[test]
fn a_background_mount_that_fails_says_so() {
    needs_mounts!();
    let volume = Volume::bare(None);
    let output = volume.run(&["mount", text(volume.backing()), text(volume.point())]);
    assert_refused(&output, &[]);
    assert!(!volume.is_mounted());
}

#[test]
fn a_relative_path_works_in_the_background() {
    needs_mounts!();
    let volume = Volume::new();
    let mounted = volume
        .kmsfs()
        .current_dir(volume.root())
        .args(["mount", "backing", "mnt"])
        .output()
        .unwrap();
    assert!(mounted.status.success(), "{}", said(&mounted));
    fs::write(volume.point().join("f"), b"x").unwrap();
    let gone = volume
        .kmsfs()
        .current_dir(volume.root())
        .args(["umount", "mnt"])
        .output()
        .unwrap();
    assert!(gone.status.success(), "{}", said(&gone));
    assert!(!volume.is_mounted());
    drop(Mount::of(volume, Options::default()));
}

#[test]
fn a_read_only_mount() {
    needs_mounts!();
    let mut mount = Mount::simple();
    fs::write(mount.join("f"), b"contents").unwrap();
    fs::create_dir(mount.join("d")).unwrap();
    mount.remount_with(Options {
        mount: "ro".into(),
        ..Options::default()
    });
    assert!(
        mount_line(mount.path())
            .unwrap()
            .split(' ')
            .nth(5)
            .unwrap()
            .split(',')
            .any(|option| option == "ro")
    );
    assert_eq!(fs::read(mount.join("f")).unwrap(), b"contents");
    let errno = |error: std::io::Error| error.raw_os_error().unwrap();
    assert_eq!(
        errno(fs::write(mount.join("g"), b"").unwrap_err()),
        libc::EROFS
    );
    assert_eq!(
        errno(
            File::options()
                .write(true)
                .open(mount.join("f"))
                .unwrap_err()
        ),
        libc::EROFS
    );
    assert_eq!(
        errno(fs::create_dir(mount.join("e")).unwrap_err()),
        libc::EROFS
    );
    assert_eq!(
        errno(fs::remove_file(mount.join("f")).unwrap_err()),
        libc::EROFS
    );
    assert_eq!(
        errno(fs::rename(mount.join("f"), mount.join("g")).unwrap_err()),
        libc::EROFS
    );
}

#[test]
fn a_read_only_mount_writes_nothing_at_all() {
    needs_mounts!();
    let mut mount = Mount::simple();
    for i in 0..10 {
        fs::write(mount.join(format!("f{i}")), common::noise(i, 5000)).unwrap();
    }
    mount.remount_with(Options {
        mount: "ro".into(),
        ..Options::default()
    });
    let snapshot = |dir: &Path| {
        use std::os::unix::fs::MetadataExt;
        let mut all: Vec<_> = fs::read_dir(dir)
            .unwrap()
            .map(|entry| entry.unwrap())
            .map(|entry| {
                let metadata = entry.metadata().unwrap();
                (
                    entry.file_name(),
                    metadata.mtime_nsec(),
                    metadata.ctime_nsec(),
                    metadata.len(),
                )
            })
            .collect();
        all.sort();
        all
    };
    let before = snapshot(mount.backing());
    for i in 0..10 {
        assert_eq!(
            fs::read(mount.join(format!("f{i}"))).unwrap(),
            common::noise(i, 5000)
        );
    }
    let backing = mount.backing().to_owned();
    assert_eq!(snapshot(&backing), before);
}

#[test]
fn options_that_mount_takes_reach_the_kernel() {
    needs_mounts!();
    let options = Options {
        mount: "nosuid,nodev,noexec,noatime".into(),
        ..Options::default()
    };
    let mount = Mount::new(options);
    let line = mount_line(mount.path()).unwrap();
    let listed: Vec<&str> = line.split(' ').nth(5).unwrap().split(',').collect();
    for option in ["nosuid", "nodev", "noexec", "noatime"] {
        assert!(listed.contains(&option), "{option} is not in {line}");
    }
    let copy = mount.join("true");
    fs::copy("/bin/true", &copy).unwrap();
    assert_eq!(
        Command::new(&copy).status().unwrap_err().raw_os_error(),
        Some(libc::EACCES)
    );
}

/// Mounts under a limit of the size of files, of 2 MB: enough for the journal.
fn mount_limited(volume: &Volume, limit: &str) {
    let kmsfs = volume.kmsfs();
    let limited = Command::new("sh")
        .args(["-c", &format!("ulimit {limit} 4000 && exec \"$@\""), "sh"])
        .arg(kmsfs.get_program())
        .arg("mount")
        .args([volume.backing(), volume.point()])
        .envs(kmsfs.get_envs().filter_map(|(k, v)| Some((k, v?))))
        .output()
        .unwrap();
    assert!(limited.status.success(), "{}", said(&limited));
}

#[test]
fn a_mount_has_neither_the_limits_nor_the_privileges_of_who_mounts() {
    const SYS_RESOURCE: u32 = 24;
    needs_mounts!();
    let volume = Volume::new();
    let content = common::noise(1, 3 << 20);
    for (round, limit) in ["-S -f", "-f"].iter().enumerate() {
        mount_limited(&volume, limit);
        let path = volume.point().join(format!("large{round}"));
        let file = File::create(&path).unwrap();
        std::io::Write::write_all(&mut &file, &content).unwrap();
        match file.sync_all() {
            Ok(()) => assert!(fs::read(&path).unwrap() == content),
            // Not everyone may lift a limit, but it is not the end.
            Err(error) if round == 1 => assert_eq!(error.raw_os_error(), Some(libc::EFBIG)),
            Err(error) => panic!("{error}"),
        }
        drop(file);
        fs::write(volume.point().join("small"), b"served").unwrap();
        // Quotas do not hold for who has this capability.
        let daemon = processes_naming(volume.point())[0];
        for task in fs::read_dir(format!("/proc/{daemon}/task")).unwrap() {
            let status = fs::read_to_string(task.unwrap().path().join("status")).unwrap();
            for line in status.lines() {
                let set = line
                    .strip_prefix("CapEff:")
                    .or(line.strip_prefix("CapPrm:"));
                let set = set.map(|set| u64::from_str_radix(set.trim(), 16).unwrap());
                assert_eq!(set.unwrap_or(0) >> SYS_RESOURCE & 1, 0, "{line}");
            }
        }
        let output = volume.run(&["umount", text(volume.point())]);
        assert!(output.status.success(), "{}", said(&output));
        assert!(eventually(PATIENCE, || processes_naming(volume.point()).is_empty()));
    }
}
