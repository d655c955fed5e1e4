//! Mounts by users who aren't root, through fusermount3.

#[path = "common/mod.rs"]
mod common;

use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::process::Command;

use rustix::fs::{FlockOperation, flock};

use common::sys::as_user;
use common::{
    Mount, Options, PATIENCE, Volume, eventually, is_plain, is_root, kernel_lacks, mount_line,
    noise, said, skip, threads_of,
};

const USER: u32 = 65_534;

/// A volume of the user's own; `None` where the user can't mount.
fn volume() -> Option<Volume> {
    if is_plain() {
        skip("needs a kmsfs mount");
        return None;
    }
    if !is_root() {
        skip("needs root to become another user");
        return None;
    }
    let installed = Command::new("fusermount3").arg("--version").output();
    if !installed.is_ok_and(|output| output.status.success()) {
        skip("needs fusermount3");
        return None;
    }
    let volume = Volume::bare(None).owned_by(USER);
    // Test binaries may lie where only root can reach them.
    let reachable = volume.kmsfs().arg("version").output();
    if !reachable.is_ok_and(|output| output.status.success()) {
        skip("the user can't reach the kmsfs binary");
        return None;
    }
    volume.init(&[]);
    Some(volume)
}

#[test]
fn a_user_mounts_uses_and_unmounts() {
    let Some(volume) = volume() else { return };
    let mut mount = Mount::of(volume, Options::default());
    as_user(USER, USER, &[], || {
        fs::write(mount.join("f"), b"mine").unwrap();
        fs::create_dir(mount.join("d")).unwrap();
        std::os::unix::fs::symlink("f", mount.join("s")).unwrap();
        let metadata = fs::metadata(mount.join("f")).unwrap();
        assert_eq!((metadata.uid(), metadata.gid()), (USER, USER));
    });
    let point = mount.path().to_owned();
    // The harness looks at the mount from outside: that is root, who may not.
    assert_eq!(
        File::open(point.join("f")).unwrap_err().raw_os_error(),
        Some(libc::EACCES)
    );
    as_user(1234, 1234, &[], || {
        assert_eq!(
            fs::read_dir(&point).unwrap_err().raw_os_error(),
            Some(libc::EACCES)
        );
    });
    mount.remount();
    as_user(USER, USER, &[], || {
        assert_eq!(fs::read(mount.join("s")).unwrap(), b"mine");
        fs::remove_file(mount.join("f")).unwrap();
    });
}

#[test]
fn a_user_mounts_in_the_background() {
    let Some(volume) = volume() else { return };
    let (backing, point) = (
        volume.backing().to_str().unwrap(),
        volume.point().to_str().unwrap(),
    );
    let output = volume.run(&["mount", backing, point]);
    assert!(output.status.success(), "{}", said(&output));
    let line = mount_line(volume.point()).expect("mounted");
    assert!(line.contains(&format!("user_id={USER}")), "{line}");
    assert!(line.contains("nosuid") && line.contains("nodev"), "{line}");
    as_user(USER, USER, &[], || {
        fs::write(volume.point().join("f"), b"x").unwrap()
    });
    let output = volume.run(&["umount", point]);
    assert!(output.status.success(), "{}", said(&output));
    assert!(eventually(PATIENCE, || !volume.is_mounted()));
}

#[test]
fn a_user_may_not_let_others_in_unless_the_host_allows() {
    let Some(volume) = volume() else { return };
    let allowed = fs::read_to_string("/etc/fuse.conf").unwrap_or_default();
    if allowed
        .lines()
        .any(|line| line.trim() == "user_allow_other")
    {
        return skip("/etc/fuse.conf has user_allow_other");
    }
    let (backing, point) = (
        volume.backing().to_str().unwrap(),
        volume.point().to_str().unwrap(),
    );
    let output = volume.run(&["mount", "-o", "allow_other", backing, point]);
    assert!(!output.status.success());
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(
        text.contains("kmsfs: error: ") && text.contains("user_allow_other"),
        "{text}"
    );
    assert!(!volume.is_mounted());
}

#[test]
fn a_users_keystore_and_volume_are_private() {
    let Some(volume) = volume() else { return };
    let keystore = volume.root().join("keystore");
    let metadata = fs::metadata(&keystore).unwrap();
    assert_eq!(
        (metadata.uid(), metadata.mode() & 0o077),
        (USER, 0),
        "the keystore"
    );
    let config = fs::metadata(volume.backing().join("kmsfs.json")).unwrap();
    assert_eq!(config.uid(), USER);
}

#[test]
fn many_files_of_a_user_survive_forgetting() {
    let Some(volume) = volume() else { return };
    if !common::can_drop_caches() {
        return;
    }
    let mount = Mount::of(volume, Options::default());
    as_user(USER, USER, &[], || {
        for i in 0..300 {
            fs::write(mount.join(format!("f{i}")), common::noise(i, 2000)).unwrap();
        }
    });
    common::drop_caches(3);
    as_user(USER, USER, &[], || {
        for i in 0..300 {
            assert!(fs::read(mount.join(format!("f{i}"))).unwrap() == common::noise(i, 2000));
        }
    });
}

/// The daemon is no more than this user, and needs to get into directories that the
/// user has closed.
#[test]
fn directories_that_their_owner_closed() {
    let Some(volume) = volume() else { return };
    let mut mount = Mount::of(volume, Options::default());
    let set_mode = |path: &std::path::Path, mode| {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    };
    let long = "n".repeat(255);
    as_user(USER, USER, &[], || {
        for bits in [0o000, 0o100, 0o200, 0o300, 0o400, 0o500, 0o600, 0o077] {
            let (dir, other) = (mount.join("d"), mount.join("other"));
            fs::create_dir(&dir).unwrap();
            set_mode(&dir, bits);
            fs::remove_dir(&dir).unwrap_or_else(|error| panic!("rmdir {bits:o}: {error}"));
            fs::create_dir(&dir).unwrap();
            fs::create_dir(&other).unwrap();
            set_mode(&dir, bits);
            fs::rename(&other, &dir).unwrap_or_else(|error| panic!("rename {bits:o}: {error}"));
            fs::write(dir.join("f"), b"in it").unwrap();
            fs::write(dir.join(&long), b"in it").unwrap();
            set_mode(&dir, bits);
            let refused = fs::remove_dir(&dir).unwrap_err();
            assert_eq!(refused.raw_os_error(), Some(libc::ENOTEMPTY), "{bits:o}");
            assert_eq!(fs::metadata(&dir).unwrap().mode() & 0o777, bits);
            set_mode(&dir, 0o700);
            fs::remove_dir_all(&dir).unwrap();
        }
        fs::create_dir(mount.join("listed")).unwrap();
        fs::write(mount.join("listed/f"), b"in it").unwrap();
        fs::write(mount.join("listed").join(&long), b"in it").unwrap();
        set_mode(&mount.join("listed"), 0o400);
    });
    for _ in 0..2 {
        as_user(USER, USER, &[], || {
            let dir = mount.join("listed");
            let list = fs::read_dir(&dir).unwrap();
            let mut names: Vec<_> = list.map(|e| e.unwrap().file_name()).collect();
            names.sort();
            assert_eq!(names, ["f", long.as_str()]);
            let refused = fs::metadata(dir.join("f")).unwrap_err();
            assert_eq!(refused.raw_os_error(), Some(libc::EACCES));
            assert_eq!(fs::metadata(&dir).unwrap().mode() & 0o777, 0o400);
        });
        mount.remount();
    }
}

/// Whoever has a directory open goes on using it, whatever becomes of the one above.
#[test]
fn what_is_open_in_a_directory_that_its_owner_closed() {
    let Some(volume) = volume() else { return };
    let mut mount = Mount::of(volume, Options::default());
    as_user(USER, USER, &[], || {
        fs::create_dir_all(mount.join("closed/sub")).unwrap();
        fs::write(mount.join("closed/sub/f"), b"in it").unwrap();
    });
    // So that nothing is known to the daemon.
    mount.remount();
    as_user(USER, USER, &[], || {
        let closed = mount.join("closed");
        let open = File::open(closed.join("sub")).unwrap();
        fs::set_permissions(&closed, fs::Permissions::from_mode(0o000)).unwrap();
        let sub = format!("/proc/self/fd/{}", open.as_raw_fd());
        let mut names = fs::read_dir(&sub).unwrap().map(|e| e.unwrap().file_name());
        assert!(names.next().is_some_and(|name| name == "f") && names.next().is_none());
        assert_eq!(fs::read(format!("{sub}/f")).unwrap(), b"in it");
        assert_eq!(fs::metadata(&closed).unwrap().mode() & 0o777, 0);
    });
}

/// Has the kernel offer io_uring to every new mount, until it is dropped; with what the
/// setting was before.
struct Offered(File, [u8; 1]);

impl Offered {
    fn new() -> Option<Self> {
        const SETTING: &str = "/sys/module/fuse/parameters/enable_uring";
        let setting = File::options().read(true).write(true).open(SETTING).ok()?;
        // kmsfs locks it while it changes it.
        flock(&setting, FlockOperation::LockExclusive).unwrap();
        let mut before = [0];
        setting.read_at(&mut before, 0).unwrap();
        setting.write_all_at(b"Y", 0).unwrap();
        Some(Self(setting, before))
    }
}

impl Drop for Offered {
    fn drop(&mut self) {
        self.0.write_all_at(&self.1, 0).expect("it is back");
    }
}

#[test]
fn a_user_gets_io_uring_where_the_system_offers_it() {
    let Some(volume) = volume() else { return };
    let forbidden = fs::read_to_string("/proc/sys/kernel/io_uring_disabled");
    if forbidden.is_ok_and(|text| text.trim() != "0") {
        return kernel_lacks("io_uring for everyone");
    }
    let Some(offered) = Offered::new() else {
        return kernel_lacks("io_uring for FUSE");
    };
    let options = Options {
        mount: "io_uring".into(),
        ..Options::default()
    };
    let mut mount = Mount::of(volume, options);
    drop(offered);
    let rings = threads_of(mount.pid()).into_iter();
    assert!(rings.filter(|name| name.starts_with("kmsfs-ring")).count() >= 2);
    as_user(USER, USER, &[], || {
        std::thread::scope(|scope| {
            for thread in 0..8 {
                let mount = &mount;
                scope.spawn(move || {
                    for i in 0..50 {
                        let path = mount.join(format!("{thread}.{i}"));
                        fs::write(&path, noise(i, 20_000)).unwrap();
                        File::open(&path).unwrap().sync_all().unwrap();
                        assert!(fs::read(&path).unwrap() == noise(i, 20_000));
                    }
                });
            }
        });
    });
    mount.remount();
    as_user(USER, USER, &[], || {
        assert_eq!(fs::read_dir(mount.path()).unwrap().count(), 400);
        assert!(fs::read(mount.join("7.49")).unwrap() == noise(49, 20_000));
    });
}
