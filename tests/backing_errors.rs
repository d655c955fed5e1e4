//! What goes wrong in the backing store reaches the program, and damages
//! nothing else.

#[path = "common/mod.rs"]
mod common;

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, symlink};
use std::path::Path;
use std::time::Duration;

use common::loopfs::{Cut, LoopFs};
use common::{Mount, Options, is_plain, is_root, kernel_lacks, noise, skip, sys};

/// Size of the backing filesystem in bytes.
const SMALL: u64 = 24 << 20;

/// A mount over a small ext4 of its own (`mkfs` and mount options given); in
/// plain mode the ext4 itself.
fn small(mkfs: &[&str], options: &str) -> Option<(Mount, LoopFs)> {
    if !is_root() {
        skip("needs root");
        return None;
    }
    let Some(disk) = LoopFs::new(SMALL, mkfs, options) else {
        skip("needs loop devices");
        return None;
    };
    if is_plain() {
        skip("needs a kmsfs mount");
        return None;
    }
    let mount = Mount::new(Options {
        backing: Some(disk.path().join("volume")),
        ..Options::default()
    });
    Some((mount, disk))
}

fn errno(error: &io::Error) -> i32 {
    error.raw_os_error().expect("an errno")
}

/// Writes a file until something fails; what failed, and how much was promised
/// to be durable before.
fn fill(path: &Path) -> (io::Error, u64) {
    let mut file = File::create(path).unwrap();
    let mut durable = 0;
    loop {
        let piece = noise(durable, 64 * 1024);
        let done = file.write_all(&piece).and_then(|()| file.sync_data());
        match done {
            Ok(()) => durable += 64 * 1024,
            Err(error) => return (error, durable),
        }
        assert!(durable < 64 << 20, "a 24 MiB filesystem does not fill up");
    }
}

fn assert_contents(path: &Path, len: u64) {
    let file = File::open(path).unwrap();
    for at in (0..len).step_by(64 * 1024) {
        let mut found = vec![0; 64 * 1024];
        file.read_exact_at(&mut found, at)
            .unwrap_or_else(|error| panic!("at {at} of {len}: {error}"));
        assert!(found == noise(at, 64 * 1024), "at {at}");
    }
}

#[test]
fn a_full_disk_is_told_and_harms_nothing() {
    let Some((mut mount, _disk)) = small(&["-m", "0"], "") else {
        return;
    };
    // Room for names in the backing directory, which has blocks of 1 KiB here.
    for i in 0..40 {
        File::create(mount.join(format!("room {i}"))).unwrap();
    }
    for i in 0..40 {
        fs::remove_file(mount.join(format!("room {i}"))).unwrap();
    }
    for i in 0..20 {
        common::write_synced(&mount.join(format!("before {i}")), &noise(i, 30_000));
    }
    let (error, durable) = fill(&mount.join("large"));
    assert_eq!(errno(&error), libc::ENOSPC, "{error}");
    assert!(durable > 4 << 20, "{durable} bytes were durable");
    // What was there and what was synced is whole, now and after a remount.
    for _ in 0..2 {
        for i in 0..20 {
            assert!(
                fs::read(mount.join(format!("before {i}"))).unwrap() == noise(i, 30_000),
                "before {i}"
            );
        }
        assert_contents(&mount.join("large"), durable);
        mount.remount();
    }
    // Things that need no space go on.
    fs::rename(mount.join("before 0"), mount.join("renamed")).unwrap();
    fs::set_permissions(
        mount.join("renamed"),
        std::os::unix::fs::PermissionsExt::from_mode(0o600),
    )
    .unwrap();
    fs::remove_file(mount.join("large")).unwrap();
    // And so does everything once there is space. The kernel tells the daemon
    // that it forgot the file only after unlink has returned.
    let free = || rustix::fs::statvfs(mount.path()).unwrap().f_bavail;
    assert!(
        common::eventually(Duration::from_secs(10), || free() > 4096),
        "no space was freed"
    );
    fs::write(mount.join("after"), noise(7, 1 << 20)).unwrap();
    File::open(mount.join("after")).unwrap().sync_all().unwrap();
    mount.remount();
    assert!(fs::read(mount.join("after")).unwrap() == noise(7, 1 << 20));
    assert!(fs::read(mount.join("renamed")).unwrap() == noise(0, 30_000));
}

#[test]
fn overwriting_on_a_full_disk_keeps_old_or_new() {
    let Some((mut mount, _disk)) = small(&["-m", "0"], "") else {
        return;
    };
    common::write_synced(&mount.join("f"), &noise(1, 400_000));
    let _ = fill(&mount.join("large"));
    let file = OpenOptions::new()
        .write(true)
        .open(mount.join("f"))
        .unwrap();
    let done = file
        .write_all_at(&noise(2, 400_000), 0)
        .and_then(|()| file.sync_all());
    if let Err(error) = &done {
        assert_eq!(errno(error), libc::ENOSPC);
    }
    drop(file);
    let _ = fs::remove_file(mount.join("large"));
    mount.remount();
    let found = fs::read(mount.join("f")).unwrap();
    let (old, new) = (noise(1, 400_000), noise(2, 400_000));
    for (index, block) in found.chunks(4096).enumerate() {
        let range = index * 4096..index * 4096 + block.len();
        let is_new = block == &new[range.clone()];
        assert!(
            is_new || block == &old[range],
            "block {index} is neither old nor new"
        );
        assert!(
            is_new || done.is_err(),
            "block {index} is old although fsync succeeded"
        );
    }
}

#[test]
fn entries_that_find_no_space_leave_nothing_half_made() {
    // Few inodes: names run out before blocks do.
    let Some((mount, _disk)) = small(&["-N", "64"], "") else {
        return;
    };
    let mut made = Vec::new();
    let full = (0..200).find_map(|i| {
        let path = mount.join(format!("{i}"));
        let done = match i % 4 {
            0 => File::create(&path).map(drop),
            1 => fs::create_dir(&path),
            2 => symlink("target", &path),
            _ => File::create(mount.join(format!("{i}{}", "long".repeat(60)))).map(drop),
        };
        match done {
            Ok(()) => {
                made.push(i);
                None
            }
            Err(error) => Some(error),
        }
    });
    assert_eq!(errno(&full.expect("the inodes run out")), libc::ENOSPC);
    // A directory may have found no room where a file still does.
    for i in 200..300 {
        match File::create(mount.join(i.to_string())) {
            Ok(_) => made.push(i),
            Err(error) => {
                assert_eq!(errno(&error), libc::ENOSPC);
                break;
            }
        }
    }
    for what in ["file", &"long name ".repeat(25)] {
        assert_eq!(
            errno(&File::create(mount.join(what)).unwrap_err()),
            libc::ENOSPC
        );
        assert_eq!(
            errno(&fs::create_dir(mount.join(what)).unwrap_err()),
            libc::ENOSPC
        );
        assert_eq!(
            errno(&symlink("x", mount.join(what)).unwrap_err()),
            libc::ENOSPC
        );
        assert!(
            mount.join(what).symlink_metadata().is_err(),
            "{what} is there all the same"
        );
    }
    assert_eq!(fs::read_dir(mount.path()).unwrap().count(), made.len());
    for entry in fs::read_dir(mount.path()).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_dir() {
            fs::remove_dir(entry.path()).unwrap();
        } else {
            fs::remove_file(entry.path()).unwrap();
        }
    }
    for i in 0..10 {
        fs::create_dir(mount.join(format!("again {i}"))).unwrap();
    }
}

#[test]
fn fallocate_reserves_or_says_that_it_can_not() {
    use rustix::fs::{FallocateFlags, fallocate};
    let Some((mount, _disk)) = small(&["-m", "0"], "") else {
        return;
    };
    let file = File::create(mount.join("f")).unwrap();
    let refused = fallocate(&file, FallocateFlags::empty(), 0, 1 << 30).unwrap_err();
    assert_eq!(refused.raw_os_error(), libc::ENOSPC);
    assert_eq!(file.metadata().unwrap().len(), 0);
    fs::write(mount.join("g"), b"still works").unwrap();
}

#[test]
fn a_users_quota_is_enforced() {
    let (mkfs, option) = (&["-O", "quota", "-E", "quotatype=usrquota"], ",usrquota");
    let mounts = |mkfs: &[&str], option| LoopFs::new(SMALL, mkfs, option).is_some();
    if is_root() && !mounts(mkfs, option) && mounts(&[], "") {
        return kernel_lacks("quota format (CONFIG_QFMT_V2)");
    }
    let Some((mount, disk)) = small(mkfs, option) else {
        return;
    };
    fs::set_permissions(
        mount.path(),
        std::os::unix::fs::PermissionsExt::from_mode(0o777),
    )
    .unwrap();
    sys::set_user_quota(&disk.device(), 1001, 2048).unwrap();
    let (error, durable) = sys::as_user(1001, 1001, &[], || fill(&mount.join("theirs")));
    assert_eq!(errno(&error), libc::EDQUOT, "{error}");
    assert!((1 << 20..2 << 20).contains(&durable), "{durable}");
    assert_contents(&mount.join("theirs"), durable);
    // Nobody else is limited by it.
    fs::write(mount.join("mine"), noise(1, 4 << 20)).unwrap();
    File::open(mount.join("mine")).unwrap().sync_all().unwrap();
}

#[test]
fn a_backing_store_that_becomes_read_only() {
    let Some((mut mount, disk)) = small(&[], "") else {
        return;
    };
    common::write_synced(&mount.join("f"), &noise(1, 50_000));
    fs::create_dir(mount.join("d")).unwrap();
    mount.remount();
    if let Err(why) = disk.remount("ro") {
        // Descriptors open for writing hold it: look at the other order, then.
        println!("the daemon keeps it writable: {why}");
        mount.unmount();
        disk.remount("ro").unwrap();
        let volume = mount.volume();
        let output = volume.run(&[
            "mount",
            "-f",
            volume.backing().to_str().unwrap(),
            volume.point().to_str().unwrap(),
        ]);
        assert!(
            !output.status.success(),
            "mounted writable on a read-only store"
        );
        mount.remount_with(Options {
            mount: "ro".into(),
            ..Options::default()
        });
    }
    assert!(fs::read(mount.join("f")).unwrap() == noise(1, 50_000));
    assert_eq!(
        errno(&File::create(mount.join("g")).unwrap_err()),
        libc::EROFS
    );
    assert_eq!(
        errno(&fs::create_dir(mount.join("e")).unwrap_err()),
        libc::EROFS
    );
    assert_eq!(
        errno(&fs::remove_file(mount.join("f")).unwrap_err()),
        libc::EROFS
    );
    assert_eq!(
        errno(&fs::rename(mount.join("f"), mount.join("d/f")).unwrap_err()),
        libc::EROFS
    );
    let write = OpenOptions::new()
        .write(true)
        .open(mount.join("f"))
        .and_then(|file| {
            file.write_all_at(b"x", 0)?;
            file.sync_all()
        });
    assert_eq!(errno(&write.unwrap_err()), libc::EROFS);
    mount.unmount();
    disk.remount("rw").unwrap();
    mount.remount_with(Options::default());
    assert!(fs::read(mount.join("f")).unwrap() == noise(1, 50_000));
    fs::write(mount.join("g"), b"writable again").unwrap();
}

#[test]
fn a_backing_store_that_dies_gives_errors_and_no_hangs() {
    let Some((mut mount, disk)) = small(&[], "") else {
        return;
    };
    common::write_synced(&mount.join("f"), &noise(1, 50_000));
    let open = OpenOptions::new()
        .read(true)
        .write(true)
        .open(mount.join("f"))
        .unwrap();
    disk.cut(Cut::LogFlushed);
    let written = open
        .write_all_at(&noise(2, 50_000), 0)
        .and_then(|()| open.sync_all());
    assert!([libc::EIO, libc::EROFS].contains(&errno(&written.unwrap_err())));
    assert!(File::create(mount.join("g")).is_err());
    assert!(fs::create_dir(mount.join("d")).is_err());
    let _ = fs::read(mount.join("f"));
    let _ = fs::metadata(mount.join("f")).unwrap();
    drop(open);
    // Still the same daemon, which ends when asked to.
    assert!(Path::new(&format!("/proc/{}", mount.pid())).exists());
    mount.kill();
    disk.power_on();
    mount.start();
    let found = fs::read(mount.join("f")).unwrap();
    assert!(found == noise(1, 50_000), "the last durable contents");
    fs::write(mount.join("g"), b"alive").unwrap();
}

#[test]
fn a_backing_file_that_vanishes_is_an_error_for_that_file_alone() {
    let Some(mut mount) = Mount::real(Options::default()) else {
        return;
    };
    use std::os::unix::fs::MetadataExt;
    for i in 0..5 {
        fs::write(mount.join(format!("f{i}")), noise(i, 10_000)).unwrap();
    }
    let inode = fs::metadata(mount.join("f2")).unwrap().ino();
    mount.remount();
    let image = fs::read_dir(mount.backing())
        .unwrap()
        .map(|entry| entry.unwrap())
        .find(|entry| entry.metadata().unwrap().ino() == inode)
        .expect("inode numbers are the backing directory's");
    fs::remove_file(image.path()).unwrap();
    assert_eq!(
        errno(&fs::read(mount.join("f2")).unwrap_err()),
        libc::ENOENT
    );
    for i in [0, 1, 3, 4] {
        assert!(fs::read(mount.join(format!("f{i}"))).unwrap() == noise(i, 10_000));
    }
}
