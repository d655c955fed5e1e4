//! Hard links, symbolic links, and files that lost their last name.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt, symlink};

use crate::common::{Mount, noise};
use crate::{errno, list};

#[test]
fn hard_links_share_everything() {
    let mut mount = Mount::simple();
    let (one, two) = (mount.join("one"), mount.join("two"));
    fs::create_dir(mount.join("d")).unwrap();
    let three = mount.join("d/three");
    fs::write(&one, noise(1, 6000)).unwrap();
    fs::hard_link(&one, &two).unwrap();
    fs::hard_link(&two, &three).unwrap();
    assert_eq!(fs::metadata(&one).unwrap().nlink(), 3);
    OpenOptions::new()
        .write(true)
        .open(&three)
        .unwrap()
        .write_all_at(b"through three", 100)
        .unwrap();
    mount.remount();
    let inode = |path| fs::metadata(path).unwrap().ino();
    assert_eq!(inode(&one), inode(&three));
    let mut model = noise(1, 6000);
    model[100..113].copy_from_slice(b"through three");
    assert_eq!(fs::read(&one).unwrap(), model);
    fs::remove_file(&one).unwrap();
    fs::rename(&two, &three).unwrap();
    // Renaming one name of a file over another of its names does nothing.
    assert!(two.exists() && three.exists());
    fs::remove_file(&two).unwrap();
    assert_eq!(fs::metadata(&three).unwrap().nlink(), 1);
    assert_eq!(fs::read(&three).unwrap(), model);
}

#[test]
fn link_errors() {
    let mount = Mount::simple();
    fs::write(mount.join("f"), b"").unwrap();
    fs::write(mount.join("g"), b"").unwrap();
    fs::create_dir(mount.join("d")).unwrap();
    assert_eq!(
        errno(fs::hard_link(mount.join("f"), mount.join("g"))),
        libc::EEXIST
    );
    assert_eq!(
        errno(fs::hard_link(mount.join("d"), mount.join("e"))),
        libc::EPERM
    );
    assert_eq!(
        errno(fs::hard_link(mount.join("none"), mount.join("e"))),
        libc::ENOENT
    );
    assert_eq!(
        errno(fs::hard_link(mount.join("f"), mount.join("none/e"))),
        libc::ENOENT
    );
    let elsewhere = crate::common::temp_dir();
    if elsewhere.path().metadata().unwrap().dev() != mount.path().metadata().unwrap().dev() {
        assert_eq!(
            errno(fs::hard_link(mount.join("f"), elsewhere.path().join("x"))),
            libc::EXDEV
        );
    }
}

#[test]
fn a_symlink_can_have_hard_links() {
    let mut mount = Mount::simple();
    symlink("target", mount.join("s")).unwrap();
    fs::hard_link(mount.join("s"), mount.join("t")).unwrap();
    mount.remount();
    assert_eq!(
        fs::read_link(mount.join("t")).unwrap().to_str(),
        Some("target")
    );
    assert_eq!(fs::symlink_metadata(mount.join("s")).unwrap().nlink(), 2);
}

#[test]
fn symlinks_tell_their_target_and_its_length() {
    let mut mount = Mount::simple();
    fs::create_dir(mount.join("d")).unwrap();
    fs::write(mount.join("d/f"), b"reached").unwrap();
    let targets = [
        "d/f",
        "./d/../d/f",
        "dangling",
        "ünïcode",
        "with space",
        "/",
    ];
    for (i, target) in targets.iter().enumerate() {
        symlink(target, mount.join(format!("s{i}"))).unwrap();
    }
    for _ in 0..2 {
        for (i, target) in targets.iter().enumerate() {
            let link = mount.join(format!("s{i}"));
            assert_eq!(fs::read_link(&link).unwrap().to_str(), Some(*target));
            assert_eq!(
                fs::symlink_metadata(&link).unwrap().len(),
                target.len() as u64
            );
        }
        mount.remount();
    }
    assert_eq!(fs::read(mount.join("s0")).unwrap(), b"reached");
    assert_eq!(fs::read(mount.join("s1")).unwrap(), b"reached");
    assert_eq!(errno(fs::read(mount.join("s2"))), libc::ENOENT);
    assert_eq!(errno(fs::read_link(mount.join("d"))), libc::EINVAL);
    assert_eq!(errno(symlink("x", mount.join("s0"))), libc::EEXIST);
    assert_eq!(errno(symlink("", mount.join("empty"))), libc::ENOENT);
}

#[test]
fn symlink_loops_end() {
    let mount = Mount::simple();
    symlink("b", mount.join("a")).unwrap();
    symlink("a", mount.join("b")).unwrap();
    assert_eq!(errno(fs::metadata(mount.join("a"))), libc::ELOOP);
    let mut options = OpenOptions::new();
    std::os::unix::fs::OpenOptionsExt::custom_flags(options.read(true), libc::O_NOFOLLOW);
    assert_eq!(errno(options.open(mount.join("a"))), libc::ELOOP);
}

#[test]
fn an_unlinked_file_lives_as_long_as_it_is_open() {
    let mount = Mount::simple();
    let dir = mount.join("d");
    fs::create_dir(&dir).unwrap();
    let path = dir.join("f");
    fs::write(&path, noise(1, 9000)).unwrap();
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(&path)
        .unwrap();
    fs::remove_file(&path).unwrap();
    assert!(list(&dir).is_empty(), "no silly names");
    assert_eq!(file.metadata().unwrap().nlink(), 0);
    // The name is free at once, for an unrelated file.
    fs::write(&path, b"another").unwrap();
    file.write_all_at(&noise(2, 9000), 9000).unwrap();
    file.set_len(17_000).unwrap();
    file.sync_all().unwrap();
    let mut got = vec![0; 17_000];
    file.read_exact_at(&mut got, 0).unwrap();
    assert!(got[..9000] == noise(1, 9000) && got[9000..] == noise(2, 9000)[..8000]);
    file.set_permissions(std::os::unix::fs::PermissionsExt::from_mode(0o640))
        .unwrap();
    assert_eq!(file.metadata().unwrap().mode() & 0o777, 0o640);
    drop(file);
    assert_eq!(fs::read(&path).unwrap(), b"another");
    fs::remove_file(&path).unwrap();
    fs::remove_dir(&dir).unwrap();
}

#[test]
fn an_empty_file_gets_its_first_bytes_after_it_was_unlinked() {
    let mount = Mount::simple();
    let path = mount.join("f");
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .open(&path)
        .unwrap();
    fs::remove_file(&path).unwrap();
    file.write_all(&noise(4, 5000)).unwrap();
    file.sync_all().unwrap();
    let mut got = vec![0; 5000];
    file.read_exact_at(&mut got, 0).unwrap();
    assert_eq!(got, noise(4, 5000));
}

#[test]
fn a_file_replaced_by_rename_lives_as_long_as_it_is_open() {
    let mount = Mount::simple();
    fs::write(mount.join("old"), b"old contents").unwrap();
    let file = File::open(mount.join("old")).unwrap();
    fs::write(mount.join("new"), b"new").unwrap();
    fs::rename(mount.join("new"), mount.join("old")).unwrap();
    let mut got = [0; 12];
    file.read_exact_at(&mut got, 0).unwrap();
    assert_eq!(&got, b"old contents");
    assert_eq!(file.metadata().unwrap().nlink(), 0);
    assert_eq!(fs::read(mount.join("old")).unwrap(), b"new");
}

#[test]
fn an_open_unlinked_file_can_be_opened_through_proc() {
    use std::os::fd::AsRawFd;
    let mount = Mount::simple();
    let path = mount.join("f");
    fs::write(&path, b"still here").unwrap();
    let file = File::open(&path).unwrap();
    fs::remove_file(&path).unwrap();
    let through = format!("/proc/self/fd/{}", file.as_raw_fd());
    assert_eq!(fs::read(through).unwrap(), b"still here");
}

#[test]
fn many_hard_links() {
    let mount = Mount::simple();
    fs::write(mount.join("f"), b"shared").unwrap();
    for i in 0..500 {
        fs::hard_link(mount.join("f"), mount.join(format!("l{i}"))).unwrap();
    }
    assert_eq!(fs::metadata(mount.join("l250")).unwrap().nlink(), 501);
    for i in 0..500 {
        fs::remove_file(mount.join(format!("l{i}"))).unwrap();
    }
    assert_eq!(fs::metadata(mount.join("f")).unwrap().nlink(), 1);
}
