//! Modes, owners, times, sizes as stat shows them.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, chown, symlink};
use std::path::Path;
use std::time::{Duration, SystemTime};

use rustix::fs::{
    AtFlags, CWD, FallocateFlags, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT, fallocate, utimensat,
};

use kmsfs::sys::process::kernel_version;

use crate::common::{
    Mount, can_drop_caches, drop_caches, is_plain, is_root, kernel_lacks, noise, skip, sys,
};
use crate::errno;

fn set_times(path: &Path, atime: (i64, i64), mtime: (i64, i64)) -> rustix::io::Result<()> {
    let spec = |(tv_sec, tv_nsec)| Timespec { tv_sec, tv_nsec };
    let times = Timestamps {
        last_access: spec(atime),
        last_modification: spec(mtime),
    };
    utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW)
}

fn times(path: &Path) -> ((i64, i64), (i64, i64)) {
    let metadata = fs::symlink_metadata(path).unwrap();
    (
        (metadata.atime(), metadata.atime_nsec()),
        (metadata.mtime(), metadata.mtime_nsec()),
    )
}

#[test]
fn times_to_the_nanosecond_and_before_1970() {
    let mut mount = Mount::simple();
    fs::write(mount.join("file"), b"x").unwrap();
    fs::create_dir(mount.join("dir")).unwrap();
    symlink("file", mount.join("link")).unwrap();
    let cases = [
        ((0, 0), (0, 1)),
        ((-1, 999_999_999), (-2, 1)),
        ((-1_000_000_000, 5), (-2_147_483_648, 0)),
        ((1_700_000_000, 123_456_789), (4_102_444_800, 987_654_321)),
        ((2_147_483_648, 7), (15_000_000_000, 999_999_999)),
    ];
    for (atime, mtime) in cases {
        for name in ["file", "dir", "link"] {
            set_times(&mount.join(name), atime, mtime).unwrap();
            assert_eq!(times(&mount.join(name)), (atime, mtime), "{name}");
        }
        mount.remount();
        for name in ["file", "dir", "link"] {
            assert_eq!(
                times(&mount.join(name)),
                (atime, mtime),
                "{name} after a remount"
            );
        }
    }
}

#[test]
fn utime_now_and_omit() {
    let mount = Mount::simple();
    let path = mount.join("f");
    fs::write(&path, b"x").unwrap();
    set_times(&path, (1, 2), (3, 4)).unwrap();
    set_times(&path, (0, UTIME_OMIT), (5, 6)).unwrap();
    assert_eq!(times(&path), ((1, 2), (5, 6)));
    set_times(&path, (7, 8), (0, UTIME_OMIT)).unwrap();
    assert_eq!(times(&path), ((7, 8), (5, 6)));
    set_times(&path, (0, UTIME_NOW), (0, UTIME_NOW)).unwrap();
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap();
    let ((atime, _), (mtime, _)) = times(&path);
    let now = i64::try_from(now.as_secs()).unwrap();
    assert!((now - atime).abs() < 10 && (now - mtime).abs() < 10);
    let metadata = fs::metadata(&path).unwrap();
    assert!((now - metadata.ctime()).abs() < 10);
    assert_eq!(
        errno(set_times(&path, (0, 1_000_000_000), (0, 0))),
        libc::EINVAL
    );
}

#[test]
fn times_set_by_hand_stay_after_writes_were_pending() {
    let mut mount = Mount::simple();
    let path = mount.join("f");
    // What cp -p, tar and rsync do: write, set the times, close.
    let file = File::create(&path).unwrap();
    file.write_all_at(&noise(1, 300_000), 0).unwrap();
    set_times(&path, (1_000_000_000, 1), (1_100_000_000, 2)).unwrap();
    drop(file);
    assert_eq!(times(&path).1, (1_100_000_000, 2));
    mount.remount();
    assert_eq!(times(&path).1, (1_100_000_000, 2));
    assert_eq!(fs::read(&path).unwrap(), noise(1, 300_000));
}

#[test]
fn writing_moves_mtime_and_ctime_and_a_remount_does_not() {
    let mut mount = Mount::simple();
    let path = mount.join("f");
    fs::write(&path, b"x").unwrap();
    set_times(&path, (1, 0), (1, 0)).unwrap();
    let before = fs::metadata(&path).unwrap();
    std::thread::sleep(Duration::from_millis(20));
    OpenOptions::new()
        .append(true)
        .open(&path)
        .unwrap()
        .write_at(b"y", 0)
        .unwrap();
    let after = fs::metadata(&path).unwrap();
    assert!(after.mtime() > 1_000_000_000);
    assert!((after.ctime(), after.ctime_nsec()) > (before.ctime(), before.ctime_nsec()));
    mount.remount();
    let later = fs::metadata(&path).unwrap();
    assert_eq!(
        (later.mtime(), later.mtime_nsec()),
        (after.mtime(), after.mtime_nsec())
    );
}

#[test]
fn the_time_of_birth_is_told_and_stays() {
    let mut mount = Mount::simple();
    // What the kernel takes for a new inode's time lags behind by a tick.
    let before = SystemTime::now() - Duration::from_millis(20);
    fs::write(mount.join("file"), b"x").unwrap();
    fs::create_dir(mount.join("dir")).unwrap();
    symlink("file", mount.join("link")).unwrap();
    let after = SystemTime::now();
    let born = |mount: &Mount, name: &str| {
        let metadata = fs::symlink_metadata(mount.join(name)).unwrap();
        metadata.created()
    };
    let names = ["file", "dir", "link"];
    let mut first = Vec::new();
    for name in names {
        match born(&mount, name) {
            Ok(time) => first.push(time),
            Err(error) => {
                let told = is_plain() || kernel_version() >= Some((6, 6));
                assert!(!told, "{name}: {error}");
                return kernel_lacks("birth times for FUSE");
            }
        }
    }
    assert!(first.iter().all(|&time| before <= time && time <= after));
    std::thread::sleep(Duration::from_millis(20));
    fs::write(mount.join("file"), noise(1, 100_000)).unwrap();
    fs::write(mount.join("dir/in"), b"x").unwrap();
    set_times(&mount.join("file"), (1, 0), (1, 0)).unwrap();
    let size = |mount: &Mount| fs::metadata(mount.join("file")).unwrap().len();
    assert_eq!(size(&mount), 100_000);
    let again = |mount: &Mount| names.map(|name| born(mount, name).unwrap()).to_vec();
    assert_eq!(again(&mount), first);
    mount.remount();
    assert_eq!(again(&mount), first);
    assert_eq!(size(&mount), 100_000);
    assert_eq!(times(&mount.join("file")).1, (1, 0));
}

/// What shows of the files `f0` to `f{count - 1}`: number, length, inode, mtime, ctime.
fn seen(mount: &Mount, count: u64) -> Vec<(u64, u64, u64, i64, i64, i64, i64)> {
    let of = |i| {
        let m = fs::metadata(mount.join(format!("f{i}"))).unwrap();
        let (mtime, ctime) = (m.mtime_nsec(), m.ctime_nsec());
        (i, m.len(), m.ino(), m.mtime(), mtime, m.ctime(), ctime)
    };
    (0..count).map(of).collect()
}

/// The kernel closes a file a little after the program, and may set times meanwhile.
#[test]
fn times_set_while_a_file_is_closed_stay() {
    let mut mount = Mount::simple();
    let work = |mount: &Mount, numbers: std::ops::Range<u64>| {
        for i in numbers {
            let path = mount.join(format!("f{i}"));
            fs::write(&path, noise(i, 9000)).unwrap();
            let file = OpenOptions::new().append(true).open(&path);
            file.unwrap().write_all_at(b"more", 9000).unwrap();
        }
    };
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let (mount, work) = (&mount, &work);
            scope.spawn(move || work(mount, 1000 * thread..1000 * (thread + 1)));
        }
    });
    let before = seen(&mount, 4000);
    mount.remount();
    let wrong = seen(&mount, 4000).into_iter().zip(before);
    let wrong: Vec<_> = wrong.filter(|(after, before)| after != before).collect();
    assert!(wrong.is_empty(), "after and before: {wrong:?}");
}

/// The kernel has its own times of files whose writes it caches, and does not always
/// hand them down: what it shows must be what is kept.
#[test]
fn no_time_moves_by_a_remount() {
    let mut mount = Mount::simple();
    let count = 180;
    for i in 0..count {
        let path = mount.join(format!("f{i}"));
        fs::write(&path, noise(i, 9000)).unwrap();
        let file = OpenOptions::new().write(true).open(&path).unwrap();
        match i % 9 {
            0 => file.write_all_at(b"over", 5000).unwrap(),
            1 => file.set_len(100).unwrap(),
            2 => file.write_all_at(b"more", 9000).unwrap(),
            3 => fallocate(&file, FallocateFlags::empty(), 0, 20_000).unwrap(),
            4 => file.sync_all().unwrap(),
            5 => fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap(),
            6 => {
                fs::rename(&path, mount.join("moved")).unwrap();
                fs::rename(mount.join("moved"), &path).unwrap();
            }
            7 => {
                fs::hard_link(&path, mount.join("linked")).unwrap();
                fs::remove_file(mount.join("linked")).unwrap();
            }
            _ => {}
        }
    }
    let before = seen(&mount, count);
    if is_root() && can_drop_caches() {
        drop_caches(3);
        assert_eq!(seen(&mount, count), before, "after the kernel forgot them");
    }
    mount.remount();
    assert_eq!(seen(&mount, count), before);
    mount.remount();
    assert_eq!(
        seen(&mount, count),
        before,
        "after a mount that changed nothing"
    );
    // What is changed has a later time than before, whatever was remembered.
    let path = mount.join("f0");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
    let ctime = |m: fs::Metadata| (m.ctime(), m.ctime_nsec());
    assert!(ctime(fs::metadata(&path).unwrap()) > (before[0].5, before[0].6));
}

#[test]
fn truncating_moves_mtime() {
    let mount = Mount::simple();
    let path = mount.join("f");
    fs::write(&path, b"xyz").unwrap();
    let file = OpenOptions::new().write(true).open(&path).unwrap();
    for len in [2, 5, 0] {
        set_times(&path, (1, 0), (1, 0)).unwrap();
        file.set_len(len).unwrap();
        assert!(times(&path).1.0 > 1_000_000_000, "to {len}");
    }
}

#[test]
fn changing_entries_moves_the_directorys_mtime() {
    let mount = Mount::simple();
    let dir = mount.join("d");
    fs::create_dir(&dir).unwrap();
    let moves = |what: &str, act: &dyn Fn()| {
        set_times(&dir, (1, 0), (1, 0)).unwrap();
        act();
        assert!(times(&dir).1.0 > 1_000_000_000, "{what}");
    };
    moves("create", &|| fs::write(dir.join("f"), b"").unwrap());
    moves("mkdir", &|| fs::create_dir(dir.join("s")).unwrap());
    moves("link", &|| {
        fs::hard_link(dir.join("f"), dir.join("l")).unwrap()
    });
    moves("symlink", &|| symlink("x", dir.join("y")).unwrap());
    moves("rename", &|| {
        fs::rename(dir.join("f"), dir.join("g")).unwrap()
    });
    moves("unlink", &|| fs::remove_file(dir.join("g")).unwrap());
    moves("rmdir", &|| fs::remove_dir(dir.join("s")).unwrap());
}

#[test]
fn chmod_keeps_every_bit() {
    let mut mount = Mount::simple();
    fs::write(mount.join("f"), b"").unwrap();
    fs::create_dir(mount.join("d")).unwrap();
    for mode in [0o000, 0o777, 0o644, 0o4755, 0o2755, 0o1777, 0o7777, 0o123] {
        for name in ["f", "d"] {
            fs::set_permissions(mount.join(name), fs::Permissions::from_mode(mode)).unwrap();
            assert_eq!(
                fs::metadata(mount.join(name)).unwrap().mode() & 0o7777,
                mode
            );
        }
    }
    mount.remount();
    assert_eq!(
        fs::metadata(mount.join("f")).unwrap().mode(),
        libc::S_IFREG | 0o123
    );
    assert_eq!(
        fs::metadata(mount.join("d")).unwrap().mode(),
        libc::S_IFDIR | 0o123
    );
}

#[test]
fn chown_by_root_and_by_others() {
    if !is_root() {
        return skip("needs root");
    }
    let mut mount = Mount::simple();
    let path = mount.join("f");
    fs::write(&path, b"x").unwrap();
    chown(&path, Some(1001), Some(1002)).unwrap();
    chown(&path, None, Some(1003)).unwrap();
    symlink("f", mount.join("s")).unwrap();
    std::os::unix::fs::lchown(mount.join("s"), Some(77), Some(78)).unwrap();
    mount.remount();
    let metadata = fs::metadata(&path).unwrap();
    assert_eq!((metadata.uid(), metadata.gid()), (1001, 1003));
    let link = fs::symlink_metadata(mount.join("s")).unwrap();
    assert_eq!((link.uid(), link.gid()), (77, 78));
    sys::as_user(1001, 1001, &[1005], || {
        assert_eq!(errno(chown(&path, Some(1002), None)), libc::EPERM);
        assert_eq!(errno(chown(&path, None, Some(1004))), libc::EPERM);
        chown(&path, None, Some(1005)).unwrap();
    });
    sys::as_user(1002, 1002, &[], || {
        assert_eq!(
            errno(fs::set_permissions(
                &path,
                fs::Permissions::from_mode(0o777)
            )),
            libc::EPERM
        );
        assert_eq!(errno(set_times(&path, (1, 1), (1, 1))), libc::EPERM);
    });
    assert_eq!(fs::metadata(&path).unwrap().gid(), 1005);
}

#[test]
fn chown_clears_suid_and_sgid() {
    if !is_root() {
        return skip("needs root");
    }
    let mount = Mount::simple();
    let path = mount.join("f");
    fs::write(&path, b"x").unwrap();
    chown(&path, Some(1001), Some(1001)).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o6755)).unwrap();
    sys::as_user(1001, 1001, &[1002], || {
        chown(&path, None, Some(1002)).unwrap()
    });
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o755);
}

#[test]
fn sizes_and_blocks() {
    let mount = Mount::simple();
    let path = mount.join("f");
    let file = File::create(&path).unwrap();
    let mut expected = 0;
    for step in [1, 4095, 4096, 100_000, 7] {
        file.write_all_at(&vec![1; step], expected).unwrap();
        expected += step as u64;
        assert_eq!(fs::metadata(&path).unwrap().len(), expected);
        assert_eq!(file.metadata().unwrap().len(), expected);
    }
    file.sync_all().unwrap();
    let blocks = file.metadata().unwrap().blocks() * 512;
    assert!(
        blocks >= expected && blocks < expected + 64 * 1024,
        "{blocks} for {expected}"
    );
    assert_eq!(
        fs::metadata(&path).unwrap().dev(),
        fs::metadata(mount.path()).unwrap().dev()
    );
}

#[test]
fn inode_numbers_are_stable() {
    let mut mount = Mount::simple();
    fs::create_dir(mount.join("d")).unwrap();
    fs::write(mount.join("d/f"), b"").unwrap();
    let number = |name: &str| fs::metadata(mount.join(name)).unwrap().ino();
    let before = (number("d"), number("d/f"));
    mount.remount();
    let number = |name: &str| fs::metadata(mount.join(name)).unwrap().ino();
    assert_eq!((number("d"), number("d/f")), before);
    assert_ne!(before.0, before.1);
}

#[test]
fn access_follows_the_mode() {
    if !is_root() {
        return skip("needs root");
    }
    use rustix::fs::{Access, access};
    let mount = Mount::simple();
    let path = mount.join("f");
    fs::write(&path, b"").unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
    assert_eq!(errno(access(&path, Access::EXEC_OK)), libc::EACCES);
    sys::as_user(1001, 1001, &[], || {
        access(&path, Access::EXISTS).unwrap();
        assert_eq!(errno(access(&path, Access::READ_OK)), libc::EACCES);
    });
    sys::as_user(1001, 1001, &[0], || {
        access(&path, Access::READ_OK).unwrap();
        assert_eq!(errno(access(&path, Access::WRITE_OK)), libc::EACCES);
    });
}
