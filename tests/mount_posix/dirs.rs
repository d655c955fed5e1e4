//! Directories: making, removing, listing.

use std::collections::HashSet;
use std::fs::{self, File};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};

use crate::common::sys::{self, DirStream, with_umask};
use crate::common::{Mount, is_root};
use crate::{errno, list};

#[test]
fn deep_trees_come_and_go() {
    let mut mount = Mount::simple();
    let mut path = mount.join("0");
    for depth in 1..40 {
        path = path.join(depth.to_string());
    }
    fs::create_dir_all(&path).unwrap();
    fs::write(path.join("leaf"), b"here").unwrap();
    mount.remount();
    assert_eq!(fs::read(path.join("leaf")).unwrap(), b"here");
    assert_eq!(errno(fs::remove_dir(mount.join("0"))), libc::ENOTEMPTY);
    fs::remove_dir_all(mount.join("0")).unwrap();
    mount.remount();
    assert_eq!(errno(fs::metadata(mount.join("0"))), libc::ENOENT);
}

#[test]
fn mkdir_and_rmdir_errors() {
    let mount = Mount::simple();
    let dir = mount.join("d");
    fs::create_dir(&dir).unwrap();
    fs::write(mount.join("f"), b"").unwrap();
    assert_eq!(errno(fs::create_dir(&dir)), libc::EEXIST);
    assert_eq!(errno(fs::create_dir(mount.join("f"))), libc::EEXIST);
    assert_eq!(errno(fs::create_dir(mount.join("f/d"))), libc::ENOTDIR);
    assert_eq!(errno(fs::create_dir(mount.join("none/d"))), libc::ENOENT);
    assert_eq!(errno(fs::remove_dir(mount.join("f"))), libc::ENOTDIR);
    assert_eq!(errno(fs::remove_dir(mount.join("none"))), libc::ENOENT);
    assert_eq!(errno(fs::remove_dir(mount.join("d/."))), libc::EINVAL);
    assert_eq!(errno(fs::remove_file(&dir)), libc::EISDIR);
    fs::write(dir.join("x"), b"").unwrap();
    assert_eq!(errno(fs::remove_dir(&dir)), libc::ENOTEMPTY);
    fs::remove_file(dir.join("x")).unwrap();
    fs::remove_dir(&dir).unwrap();
}

#[test]
fn link_counts_of_directories() {
    let mount = Mount::simple();
    let dir = mount.join("d");
    let links = || fs::metadata(&dir).unwrap().nlink();
    fs::create_dir(&dir).unwrap();
    assert_eq!(links(), 2);
    fs::create_dir(dir.join("a")).unwrap();
    fs::create_dir(dir.join("b")).unwrap();
    fs::write(dir.join("f"), b"").unwrap();
    assert_eq!(links(), 4);
    fs::remove_dir(dir.join("a")).unwrap();
    assert_eq!(links(), 3);
    fs::create_dir(mount.join("e")).unwrap();
    fs::rename(dir.join("b"), mount.join("e/b")).unwrap();
    assert_eq!(links(), 2);
    assert_eq!(fs::metadata(mount.join("e")).unwrap().nlink(), 3);
}

#[test]
fn entries_have_their_type_and_inode() {
    let mount = Mount::simple();
    fs::create_dir(mount.join("dir")).unwrap();
    fs::write(mount.join("file"), b"x").unwrap();
    std::os::unix::fs::symlink("file", mount.join("link")).unwrap();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        mount.join("fifo"),
        rustix::fs::FileType::Fifo,
        0o600.into(),
        0,
    )
    .unwrap();
    let mut seen = 0;
    for entry in fs::read_dir(mount.path()).unwrap() {
        use std::os::unix::fs::DirEntryExt;
        let entry = entry.unwrap();
        let kind = entry.file_type().unwrap();
        let metadata = fs::symlink_metadata(entry.path()).unwrap();
        assert_eq!(kind, metadata.file_type());
        assert_eq!(entry.ino(), metadata.ino());
        match entry.file_name().to_str().unwrap() {
            "dir" => assert!(kind.is_dir()),
            "file" => assert!(kind.is_file()),
            "link" => assert!(kind.is_symlink()),
            "fifo" => assert!(kind.is_fifo()),
            other => panic!("unexpected {other}"),
        }
        seen += 1;
    }
    assert_eq!(seen, 4);
}

#[test]
fn dot_and_dot_dot_are_listed_once_each() {
    let mount = Mount::simple();
    fs::create_dir(mount.join("d")).unwrap();
    for dir in [mount.path().to_owned(), mount.join("d")] {
        let mut stream = DirStream::open(&dir).unwrap();
        let mut names = Vec::new();
        while let Some((name, _)) = stream.next() {
            names.push(name);
        }
        for dots in [".", ".."] {
            assert_eq!(
                names.iter().filter(|name| *name == dots).count(),
                1,
                "{dots} in {dir:?}"
            );
        }
    }
    let up = fs::metadata(mount.join("d/..")).unwrap();
    assert_eq!(up.ino(), fs::metadata(mount.path()).unwrap().ino());
}

#[test]
fn a_large_directory_lists_every_name_once() {
    let mut mount = Mount::simple();
    let dir = mount.join("d");
    fs::create_dir(&dir).unwrap();
    for i in 0..3000 {
        File::create(dir.join(format!("a name of some length, number {i}"))).unwrap();
    }
    for round in 0..2 {
        let mut seen = HashSet::new();
        for entry in fs::read_dir(&dir).unwrap() {
            assert!(
                seen.insert(entry.unwrap().file_name()),
                "listed twice in round {round}"
            );
        }
        assert_eq!(seen.len(), 3000);
        mount.remount();
    }
}

#[test]
fn removing_while_listing_misses_nothing() {
    let mount = Mount::simple();
    let dir = mount.join("d");
    fs::create_dir(&dir).unwrap();
    for i in 0..2000 {
        File::create(dir.join(i.to_string())).unwrap();
    }
    let mut removed = 0;
    for entry in fs::read_dir(&dir).unwrap() {
        fs::remove_file(entry.unwrap().path()).unwrap();
        removed += 1;
    }
    assert_eq!(removed, 2000);
    fs::remove_dir(&dir).unwrap();
}

#[test]
fn rewinddir_sees_what_changed() {
    let mount = Mount::simple();
    fs::write(mount.join("old"), b"").unwrap();
    let mut stream = DirStream::open(mount.path()).unwrap();
    let mut read_all = || {
        let mut names = HashSet::new();
        stream.rewind();
        while let Some((name, _)) = stream.next() {
            names.insert(name.into_string().unwrap());
        }
        names
    };
    assert!(read_all().contains("old"));
    fs::write(mount.join("new"), b"").unwrap();
    fs::remove_file(mount.join("old")).unwrap();
    let names = read_all();
    assert!(names.contains("new") && !names.contains("old"), "{names:?}");
}

#[test]
fn a_removed_directory_that_is_still_open() {
    let mount = Mount::simple();
    let dir = mount.join("d");
    fs::create_dir(&dir).unwrap();
    let open = File::open(&dir).unwrap();
    fs::remove_dir(&dir).unwrap();
    assert_eq!(open.metadata().unwrap().nlink(), 0);
    let made = rustix::fs::openat(
        &open,
        "x",
        rustix::fs::OFlags::CREATE | rustix::fs::OFlags::WRONLY,
        0o600.into(),
    );
    assert_eq!(errno(made), libc::ENOENT);
    assert_eq!(
        errno(rustix::fs::mkdirat(&open, "x", 0o700.into())),
        libc::ENOENT
    );
    open.sync_all().unwrap();
    fs::create_dir(&dir).unwrap();
    assert_ne!(
        open.metadata().unwrap().ino(),
        fs::metadata(&dir).unwrap().ino()
    );
    assert!(list(&dir).is_empty());
}

#[test]
fn directories_can_be_synced() {
    let mount = Mount::simple();
    fs::create_dir(mount.join("d")).unwrap();
    File::open(mount.join("d")).unwrap().sync_all().unwrap();
    File::open(mount.join("d")).unwrap().sync_data().unwrap();
    File::open(mount.path()).unwrap().sync_all().unwrap();
}

#[test]
fn the_umask_applies_and_mode_bits_come_through() {
    let mount = Mount::simple();
    for (mask, asked) in [
        (0o000, 0o777),
        (0o022, 0o777),
        (0o077, 0o755),
        (0o777, 0o777),
        (0o002, 0o1777),
    ] {
        let dir = mount.join(format!("d{mask:o}{asked:o}"));
        let file = mount.join(format!("f{mask:o}{asked:o}"));
        with_umask(mask, || {
            rustix::fs::mkdirat(rustix::fs::CWD, &dir, asked.into()).unwrap();
            rustix::fs::mknodat(
                rustix::fs::CWD,
                &file,
                rustix::fs::FileType::RegularFile,
                asked.into(),
                0,
            )
            .unwrap();
        });
        for path in [&dir, &file] {
            let mode = fs::metadata(path).unwrap().mode() & 0o7777;
            assert_eq!(mode, asked & !mask, "{path:?}");
        }
    }
}

#[test]
fn sticky_directories_protect_other_users_files() {
    if !is_root() {
        return crate::common::skip("needs root");
    }
    let mount = Mount::simple();
    let dir = mount.join("tmp");
    fs::create_dir(&dir).unwrap();
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o1777)).unwrap();
    sys::as_user(1001, 1001, &[], || {
        fs::write(dir.join("mine"), b"x").unwrap()
    });
    sys::as_user(1002, 1002, &[], || {
        assert_eq!(errno(fs::remove_file(dir.join("mine"))), libc::EPERM);
        assert_eq!(
            errno(fs::rename(dir.join("mine"), dir.join("yours"))),
            libc::EPERM
        );
    });
    sys::as_user(1001, 1001, &[], || {
        fs::remove_file(dir.join("mine")).unwrap()
    });
}

#[test]
fn search_and_write_permission_are_enforced() {
    if !is_root() {
        return crate::common::skip("needs root");
    }
    let mount = Mount::simple();
    let dir = mount.join("d");
    fs::create_dir(&dir).unwrap();
    fs::write(dir.join("f"), b"x").unwrap();
    let set = |mode| fs::set_permissions(&dir, fs::Permissions::from_mode(mode)).unwrap();
    set(0o700);
    sys::as_user(1001, 1001, &[], || {
        assert_eq!(errno(fs::metadata(dir.join("f"))), libc::EACCES);
        assert_eq!(errno(fs::read_dir(&dir).map(drop)), libc::EACCES);
    });
    set(0o711);
    sys::as_user(1001, 1001, &[], || {
        assert_eq!(fs::read(dir.join("f")).unwrap(), b"x");
        assert_eq!(errno(fs::read_dir(&dir).map(drop)), libc::EACCES);
        assert_eq!(errno(fs::write(dir.join("g"), b"")), libc::EACCES);
    });
    set(0o744);
    sys::as_user(1001, 1001, &[], || {
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 1);
        assert_eq!(errno(fs::metadata(dir.join("f"))), libc::EACCES);
    });
}
