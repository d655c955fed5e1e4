//! Every name that ext4 takes.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

use crate::common::{Mount, is_plain};
use crate::{errno, list};

/// How many entries a backing directory holds, at any depth.
fn entries_below(dir: &Path) -> usize {
    fs::read_dir(dir)
        .unwrap()
        .map(|entry| {
            let entry = entry.unwrap();
            1 + if entry.file_type().unwrap().is_dir() {
                entries_below(&entry.path())
            } else {
                0
            }
        })
        .sum()
}

#[test]
fn names_of_every_length_leave_no_trace() {
    let mut mount = Mount::simple();
    let before = (!is_plain()).then(|| entries_below(mount.backing()));
    let names: Vec<String> = (1..=255).map(|len| "n".repeat(len)).collect();
    for name in &names {
        fs::write(mount.join(name), name).unwrap();
    }
    mount.remount();
    let mut expected: Vec<OsString> = names.iter().map(OsString::from).collect();
    expected.sort();
    assert_eq!(list(mount.path()), expected);
    for name in &names {
        assert_eq!(fs::read(mount.join(name)).unwrap(), name.as_bytes());
        fs::remove_file(mount.join(name)).unwrap();
        assert_eq!(errno(File::open(mount.join(name))), libc::ENOENT);
    }
    assert!(list(mount.path()).is_empty());
    if let Some(before) = before {
        assert_eq!(
            entries_below(mount.backing()),
            before,
            "left in the backing directory"
        );
    }
}

#[test]
fn long_names_in_every_role() {
    let mut mount = Mount::simple();
    let before = (!is_plain()).then(|| entries_below(mount.backing()));
    let long = |c: char| c.to_string().repeat(255 / c.len_utf8());
    let (file, dir, link, other) = (long('f'), long('目'), long('é'), long('o'));
    fs::write(mount.join(&file), b"long").unwrap();
    fs::create_dir(mount.join(&dir)).unwrap();
    fs::create_dir(mount.join(&dir).join(&dir)).unwrap();
    std::os::unix::fs::symlink(&file, mount.join(&link)).unwrap();
    fs::hard_link(mount.join(&file), mount.join(&dir).join(&other)).unwrap();
    fs::rename(mount.join(&file), mount.join(&other)).unwrap();
    fs::rename(mount.join(&other), mount.join("short")).unwrap();
    fs::rename(mount.join("short"), mount.join(&file)).unwrap();
    mount.remount();
    assert_eq!(fs::read(mount.join(&link)).unwrap(), b"long");
    assert_eq!(fs::read(mount.join(&dir).join(&other)).unwrap(), b"long");
    assert_eq!(list(mount.path()).len(), 3);
    assert_eq!(list(&mount.join(&dir)).len(), 2);
    assert_eq!(errno(fs::remove_dir(mount.join(&dir))), libc::ENOTEMPTY);
    // Replacing a long name by a long name, and both kinds of failure.
    fs::write(mount.join(&other), b"other").unwrap();
    fs::rename(mount.join(&other), mount.join(&file)).unwrap();
    assert_eq!(fs::read(mount.join(&file)).unwrap(), b"other");
    assert_eq!(
        errno(fs::rename(mount.join(&other), mount.join(&file))),
        libc::ENOENT
    );
    assert_eq!(errno(fs::create_dir(mount.join(&file))), libc::EEXIST);
    assert_eq!(fs::read(mount.join(&file)).unwrap(), b"other");
    fs::remove_file(mount.join(&dir).join(&other)).unwrap();
    fs::remove_dir(mount.join(&dir).join(&dir)).unwrap();
    fs::remove_dir(mount.join(&dir)).unwrap();
    fs::remove_file(mount.join(&file)).unwrap();
    fs::remove_file(mount.join(&link)).unwrap();
    if let Some(before) = before {
        assert_eq!(
            entries_below(mount.backing()),
            before,
            "left in the backing directory"
        );
    }
}

#[test]
fn names_that_are_too_long() {
    let mount = Mount::simple();
    fs::write(mount.join("f"), b"").unwrap();
    for name in [
        "n".repeat(256),
        "é".repeat(128),
        "n".repeat(300),
        "n".repeat(1000),
        "n".repeat(4000),
    ] {
        let path = mount.join(&name);
        assert_eq!(errno(File::create(&path)), libc::ENAMETOOLONG);
        assert_eq!(errno(fs::metadata(&path)), libc::ENAMETOOLONG);
        assert_eq!(errno(fs::create_dir(&path)), libc::ENAMETOOLONG);
        assert_eq!(
            errno(fs::rename(mount.join("f"), &path)),
            libc::ENAMETOOLONG
        );
        assert_eq!(
            errno(fs::hard_link(mount.join("f"), &path)),
            libc::ENAMETOOLONG
        );
        assert_eq!(
            errno(std::os::unix::fs::symlink("x", &path)),
            libc::ENAMETOOLONG
        );
    }
    let path = mount.join("a/".repeat(2100));
    assert_eq!(errno(File::create(path.join("x"))), libc::ENAMETOOLONG);
}

#[test]
fn names_of_arbitrary_bytes() {
    let mut mount = Mount::simple();
    let mut names: Vec<OsString> = (1..=255_u8)
        .filter(|&byte| byte != b'/' && byte != b'.')
        .map(|byte| OsString::from_vec(vec![byte]))
        .collect();
    names.push(OsString::from_vec((128..=255).collect()));
    names.push(OsString::from_vec(
        (1..=255).filter(|&byte| byte != b'/').collect(),
    ));
    names.push("...".into());
    names.push("a\nb".into());
    names.sort();
    for name in &names {
        fs::write(mount.join(name), name.as_bytes()).unwrap();
    }
    mount.remount();
    assert_eq!(list(mount.path()), names);
    for name in &names {
        assert_eq!(fs::read(mount.join(name)).unwrap(), name.as_bytes());
    }
}

#[test]
fn names_are_bytes_and_not_folded() {
    let mount = Mount::simple();
    // The same letter composed and decomposed; upper and lower case.
    let names = ["\u{e9}", "e\u{301}", "A", "a", "ß", "ss", " a", "a "];
    for name in names {
        fs::write(mount.join(name), name).unwrap();
    }
    for name in names {
        assert_eq!(fs::read(mount.join(name)).unwrap(), name.as_bytes());
    }
    assert_eq!(list(mount.path()).len(), names.len());
}

#[test]
fn names_that_kmsfs_uses_itself_are_free() {
    let mut mount = Mount::simple();
    let mut names: Vec<OsString> = [
        "kmsfs.json",
        ".kmsfs",
        "kmsfs",
        ".kmsfs.dirid",
        "lost+found",
        "CON",
    ]
    .into_iter()
    .map(OsString::from)
    .collect();
    if !is_plain() {
        // Whatever lies in the backing directory is a name like any other.
        fs::write(mount.join("an entry"), b"").unwrap();
        names.extend(list(mount.backing()));
    }
    names.retain(|name| name.as_bytes().len() <= 255);
    let count = list(mount.path()).len();
    names.dedup();
    names.sort();
    names.dedup();
    for name in &names {
        assert_eq!(
            errno(File::open(mount.join(name))),
            libc::ENOENT,
            "{name:?} shows through"
        );
        fs::write(mount.join(name), name.as_bytes()).unwrap();
    }
    mount.remount();
    for name in &names {
        assert_eq!(fs::read(mount.join(name)).unwrap(), name.as_bytes());
    }
    assert_eq!(list(mount.path()).len(), count + names.len());
    for name in &names {
        fs::remove_file(mount.join(name)).unwrap();
    }
    mount.remount();
}

#[test]
fn negative_lookups_are_forgotten_when_the_name_appears() {
    let mount = Mount::simple();
    let long = "x".repeat(255);
    for name in ["short", &long] {
        let path = mount.join(name);
        for _ in 0..3 {
            assert_eq!(errno(fs::metadata(&path)), libc::ENOENT);
            fs::write(&path, b"").unwrap();
            fs::metadata(&path).unwrap();
            fs::remove_file(&path).unwrap();
            assert_eq!(errno(fs::metadata(&path)), libc::ENOENT);
            fs::create_dir(&path).unwrap();
            fs::rename(&path, mount.join("elsewhere")).unwrap();
            assert_eq!(errno(fs::metadata(&path)), libc::ENOENT);
            fs::rename(mount.join("elsewhere"), &path).unwrap();
            assert!(fs::metadata(&path).unwrap().is_dir());
            fs::remove_dir(&path).unwrap();
        }
    }
}

#[test]
fn a_path_of_the_longest_length() {
    let mut mount = Mount::simple();
    let component = "c".repeat(199);
    // Relative to a directory on the way, since PATH_MAX counts from the start.
    let mut dir = File::open(mount.path()).unwrap();
    for _ in 0..25 {
        rustix::fs::mkdirat(&dir, &component, 0o700.into()).unwrap();
        let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::DIRECTORY;
        dir = rustix::fs::openat(&dir, &component, flags, 0.into())
            .unwrap()
            .into();
    }
    let room = 4095 - mount.path().as_os_str().len();
    let mut relative = OsString::new();
    for _ in 0..room / 200 {
        relative.push("/");
        relative.push(&component);
    }
    let mut whole = mount.path().as_os_str().to_owned();
    whole.push(&relative);
    drop(dir);
    mount.remount();
    fs::metadata(OsStr::new(&whole)).unwrap();
    fs::remove_dir_all(mount.join(&component)).unwrap();
}
