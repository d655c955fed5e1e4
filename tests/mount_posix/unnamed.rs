//! Files that have no name yet (`O_TMPFILE`).

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt, chown};
use std::path::Path;

use kmsfs::sys::process::kernel_version;

use crate::common::sys::{as_user, link_open};
use crate::common::{Mount, is_plain, is_root, kernel_lacks, noise, skip};
use crate::{errno, list};

/// Opens one; `None` where the kernel has no request for it.
fn unnamed(dir: &Path, flags: i32) -> Option<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).mode(0o640);
    match options.custom_flags(libc::O_TMPFILE | flags).open(dir) {
        Ok(file) => Some(file),
        Err(error) => {
            let supported = is_plain() || kernel_version() >= Some((6, 2));
            assert!(!supported, "{error}");
            assert_eq!(error.raw_os_error(), Some(libc::EOPNOTSUPP));
            kernel_lacks("O_TMPFILE for FUSE");
            None
        }
    }
}

#[test]
fn an_unnamed_file_is_a_file_that_nobody_finds() {
    let mount = Mount::simple();
    let dir = mount.join("d");
    fs::create_dir(&dir).unwrap();
    let Some(file) = unnamed(&dir, 0) else { return };
    let data = noise(1, 300_000);
    file.write_all_at(&data, 0).unwrap();
    file.sync_all().unwrap();
    let metadata = file.metadata().unwrap();
    assert_eq!((metadata.nlink(), metadata.size()), (0, 300_000));
    assert_eq!(metadata.mode() & 0o7777, 0o640);
    assert!(list(&dir).is_empty());
    let mut back = vec![0; data.len()];
    file.read_exact_at(&mut back, 0).unwrap();
    assert!(back == data);
    fs::remove_dir(&dir).unwrap();
    file.write_all_at(b"still there", 5).unwrap();
    file.read_exact_at(&mut back[..11], 5).unwrap();
    assert_eq!(&back[..11], b"still there");
}

#[test]
fn an_unnamed_file_can_be_named_once_it_is_whole() {
    let mut mount = Mount::simple();
    for (what, len) in [("nothing", 0), ("a little", 100), ("blocks", 100_000)] {
        let Some(mut file) = unnamed(mount.path(), 0) else {
            return;
        };
        let path = mount.join(what);
        file.write_all(&noise(2, len)).unwrap();
        link_open(&file, &path).unwrap();
        assert_eq!(errno(link_open(&file, &path)), libc::EEXIST);
        assert_eq!(file.metadata().unwrap().nlink(), 1, "{what}");
        link_open(&file, &mount.join(format!("{what} again"))).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().nlink(), 2, "{what}");
        file.write_all(b"more").unwrap();
    }
    mount.remount();
    for (what, len) in [("nothing", 0), ("a little", 100), ("blocks", 100_000)] {
        let content = fs::read(mount.join(what)).unwrap();
        assert!(content == [&noise(2, len)[..], b"more"].concat(), "{what}");
        assert!(content == fs::read(mount.join(format!("{what} again"))).unwrap());
    }
}

#[test]
fn an_exclusive_unnamed_file_stays_unnamed() {
    let mount = Mount::simple();
    let Some(file) = unnamed(mount.path(), libc::O_EXCL) else {
        return;
    };
    assert_eq!(errno(link_open(&file, &mount.join("f"))), libc::ENOENT);
    assert!(list(mount.path()).iter().all(|name| name != "f"));
}

#[test]
fn an_unnamed_file_belongs_to_its_maker() {
    if !is_root() {
        return skip("needs root");
    }
    let mount = Mount::simple();
    let dir = mount.join("d");
    fs::create_dir(&dir).unwrap();
    chown(&dir, None, Some(1005)).unwrap();
    for (mode, group) in [(0o777, 1002), (0o2777, 1005)] {
        fs::set_permissions(&dir, fs::Permissions::from_mode(mode)).unwrap();
        let Some(file) = as_user(1002, 1002, &[], || unnamed(&dir, 0)) else {
            return;
        };
        let metadata = file.metadata().unwrap();
        assert_eq!((metadata.uid(), metadata.gid()), (1002, group));
    }
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o755)).unwrap();
    let mut options = OpenOptions::new();
    options.write(true).custom_flags(libc::O_TMPFILE);
    let refused = as_user(1002, 1002, &[], || options.open(&dir));
    assert_eq!(errno(refused), libc::EACCES);
}
