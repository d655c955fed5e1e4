//! rename(2) and renameat2(2).

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;

use rustix::fs::{CWD, RenameFlags, renameat_with};

use crate::common::{Mount, noise};
use crate::{errno, list};

#[test]
fn renames_of_files_and_directories() {
    let mut mount = Mount::simple();
    for dir in ["a", "b", "a/sub"] {
        fs::create_dir(mount.join(dir)).unwrap();
    }
    fs::write(mount.join("a/f"), noise(1, 5000)).unwrap();
    fs::write(mount.join("a/sub/deep"), b"deep").unwrap();
    let inode = fs::metadata(mount.join("a/f")).unwrap().ino();
    fs::rename(mount.join("a/f"), mount.join("a/g")).unwrap();
    fs::rename(mount.join("a/g"), mount.join("b/h")).unwrap();
    assert_eq!(fs::metadata(mount.join("b/h")).unwrap().ino(), inode);
    fs::rename(mount.join("a/sub"), mount.join("b/moved")).unwrap();
    fs::rename(mount.join("b"), mount.join("c")).unwrap();
    for _ in 0..2 {
        assert_eq!(fs::read(mount.join("c/h")).unwrap(), noise(1, 5000));
        assert_eq!(fs::read(mount.join("c/moved/deep")).unwrap(), b"deep");
        assert_eq!(list(mount.path()), ["a", "c"]);
        assert!(list(&mount.join("a")).is_empty());
        assert_eq!(errno(File::open(mount.join("a/f"))), libc::ENOENT);
        mount.remount();
    }
    let up = fs::metadata(mount.join("c/moved/..")).unwrap().ino();
    assert_eq!(up, fs::metadata(mount.join("c")).unwrap().ino());
}

#[test]
fn replacing() {
    let mount = Mount::simple();
    fs::write(mount.join("f"), b"f").unwrap();
    fs::write(mount.join("g"), b"g").unwrap();
    fs::rename(mount.join("f"), mount.join("g")).unwrap();
    assert_eq!(fs::read(mount.join("g")).unwrap(), b"f");
    fs::create_dir(mount.join("d")).unwrap();
    fs::create_dir(mount.join("e")).unwrap();
    fs::write(mount.join("d/x"), b"x").unwrap();
    fs::rename(mount.join("d"), mount.join("e")).unwrap();
    assert_eq!(fs::read(mount.join("e/x")).unwrap(), b"x");
    fs::create_dir(mount.join("d")).unwrap();
    assert_eq!(
        errno(fs::rename(mount.join("d"), mount.join("e"))),
        libc::ENOTEMPTY
    );
    assert_eq!(
        errno(fs::rename(mount.join("g"), mount.join("d"))),
        libc::EISDIR
    );
    assert_eq!(
        errno(fs::rename(mount.join("d"), mount.join("g"))),
        libc::ENOTDIR
    );
    assert_eq!(
        errno(fs::rename(mount.join("none"), mount.join("g"))),
        libc::ENOENT
    );
    assert_eq!(
        errno(fs::rename(mount.join("e"), mount.join("e/inside"))),
        libc::EINVAL
    );
    assert_eq!(fs::read(mount.join("g")).unwrap(), b"f");
}

#[test]
fn noreplace() {
    let mount = Mount::simple();
    fs::write(mount.join("f"), b"f").unwrap();
    fs::write(mount.join("g"), b"g").unwrap();
    let to = |name: &str| {
        renameat_with(
            CWD,
            mount.join("f"),
            CWD,
            mount.join(name),
            RenameFlags::NOREPLACE,
        )
    };
    assert_eq!(errno(to("g")), libc::EEXIST);
    assert_eq!(fs::read(mount.join("g")).unwrap(), b"g");
    to("h").unwrap();
    assert_eq!(list(mount.path()), ["g", "h"]);
}

#[test]
fn exchange() {
    let mut mount = Mount::simple();
    fs::create_dir(mount.join("d")).unwrap();
    fs::create_dir(mount.join("e")).unwrap();
    fs::write(mount.join("d/in"), b"in d").unwrap();
    fs::write(mount.join("f"), b"f").unwrap();
    fs::write(mount.join("e/g"), b"g").unwrap();
    let long = "long".repeat(60);
    fs::write(mount.join(&long), b"long").unwrap();
    let swap = |a: &str, b: &str| {
        renameat_with(
            CWD,
            mount.join(a),
            CWD,
            mount.join(b),
            RenameFlags::EXCHANGE,
        )
    };
    swap("f", "e/g").unwrap();
    swap("d", "e/g").unwrap();
    swap("f", &long).unwrap();
    assert_eq!(errno(swap("f", "none")), libc::ENOENT);
    assert_eq!(errno(swap("e", "e/g")), libc::EINVAL);
    mount.remount();
    assert_eq!(fs::read(mount.join("d")).unwrap(), b"f");
    assert_eq!(fs::read(mount.join("e/g/in")).unwrap(), b"in d");
    assert_eq!(fs::read(mount.join("f")).unwrap(), b"long");
    assert_eq!(fs::read(mount.join(&long)).unwrap(), b"g");
}

#[test]
fn nonsense_flags_are_refused() {
    let mount = Mount::simple();
    fs::write(mount.join("f"), b"f").unwrap();
    fs::write(mount.join("g"), b"g").unwrap();
    let both = RenameFlags::NOREPLACE | RenameFlags::EXCHANGE;
    assert_eq!(
        errno(renameat_with(
            CWD,
            mount.join("f"),
            CWD,
            mount.join("g"),
            both
        )),
        libc::EINVAL
    );
}

#[test]
fn whiteout_works_or_is_refused_whole() {
    let mount = Mount::simple();
    fs::write(mount.join("f"), b"f").unwrap();
    let done = renameat_with(
        CWD,
        mount.join("f"),
        CWD,
        mount.join("g"),
        RenameFlags::WHITEOUT,
    );
    match done {
        Ok(()) => {
            let left = fs::symlink_metadata(mount.join("f")).unwrap();
            assert_eq!(
                (left.mode() & libc::S_IFMT, left.rdev()),
                (libc::S_IFCHR, 0)
            );
            assert_eq!(fs::read(mount.join("g")).unwrap(), b"f");
        }
        Err(error) => {
            assert!(
                !crate::common::is_plain() || !crate::common::is_root(),
                "ext4 has it"
            );
            assert!([libc::EINVAL, libc::EPERM].contains(&error.raw_os_error()));
            assert_eq!(fs::read(mount.join("f")).unwrap(), b"f");
        }
    }
}

#[test]
fn open_files_and_directories_follow_their_rename() {
    let mount = Mount::simple();
    fs::create_dir_all(mount.join("a/b")).unwrap();
    fs::write(mount.join("a/b/f"), b"before").unwrap();
    let file = File::options()
        .write(true)
        .open(mount.join("a/b/f"))
        .unwrap();
    let dir = File::open(mount.join("a/b")).unwrap();
    fs::rename(mount.join("a"), mount.join("z")).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, b"after!", 0).unwrap();
    rustix::fs::mkdirat(&dir, "made through the handle", 0o700.into()).unwrap();
    assert_eq!(fs::read(mount.join("z/b/f")).unwrap(), b"after!");
    assert!(mount.join("z/b/made through the handle").is_dir());
}

#[test]
fn a_rename_race_never_shows_the_name_missing() {
    let mount = Mount::simple();
    fs::write(mount.join("target"), b"0000").unwrap();
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for i in 0..500 {
                fs::write(mount.join("temp"), format!("{i:04}")).unwrap();
                fs::rename(mount.join("temp"), mount.join("target")).unwrap();
            }
            done.store(true, std::sync::atomic::Ordering::Release);
        });
        while !done.load(std::sync::atomic::Ordering::Acquire) {
            let text = fs::read(mount.join("target")).expect("always there");
            assert_eq!(text.len(), 4, "always whole");
        }
    });
}
