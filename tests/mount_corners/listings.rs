//! Listings and attributes that are kept for when the kernel has forgotten them.

use std::collections::BTreeMap;
use std::fs::{self, File, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::common::{Mount, Options, can_drop_caches, drop_caches, eventually, noise};

/// What a walk tells of a file, but for its access time.
type Shown = (u32, u64, u64, u64, (i64, i64), (i64, i64), Option<PathBuf>);

fn shown(path: &Path) -> io::Result<Shown> {
    let m = fs::symlink_metadata(path)?;
    let target = fs::read_link(path).ok();
    let (modified, changed) = ((m.mtime(), m.mtime_nsec()), (m.ctime(), m.ctime_nsec()));
    Ok((
        m.mode(),
        m.ino(),
        m.nlink(),
        m.size(),
        modified,
        changed,
        target,
    ))
}

/// All that is below `top`.
fn walk(top: &Path) -> BTreeMap<PathBuf, Shown> {
    try_walk(top).unwrap()
}

fn try_walk(top: &Path) -> io::Result<BTreeMap<PathBuf, Shown>> {
    let mut found = BTreeMap::new();
    let mut waiting = vec![top.to_owned()];
    while let Some(directory) = waiting.pop() {
        for entry in fs::read_dir(directory)? {
            let path = entry?.path();
            let shown = shown(&path)?;
            if shown.0 & libc::S_IFMT == libc::S_IFDIR {
                waiting.push(path.clone());
            }
            found.insert(path, shown);
        }
    }
    Ok(found)
}

/// Walks until everything that can be kept is.
fn keep(top: &Path) -> BTreeMap<PathBuf, Shown> {
    for _ in 0..2 {
        drop_caches(2);
        walk(top);
    }
    drop_caches(2);
    walk(top)
}

/// A way to change something below a directory.
type Change = (&'static str, fn(&Path));

const CHANGES: &[Change] = &[
    ("mode", |top| {
        fs::set_permissions(top.join("d/one"), Permissions::from_mode(0o600)).unwrap();
    }),
    ("mode of a directory", |top| {
        fs::set_permissions(top.join("d"), Permissions::from_mode(0o711)).unwrap();
    }),
    ("content", |top| {
        let mut file = File::options()
            .append(true)
            .open(top.join("d/one"))
            .unwrap();
        file.write_all(&noise(2, 5_000)).unwrap();
    }),
    ("length", |top| {
        let file = File::options().write(true).open(top.join("d/two")).unwrap();
        file.set_len(77).unwrap();
    }),
    ("another name", |top| {
        fs::hard_link(top.join("d/one"), top.join("e/also one")).unwrap();
    }),
    ("one name less", |top| {
        fs::remove_file(top.join("d/one")).unwrap()
    }),
    ("a name of a file with two", |top| {
        fs::remove_file(top.join("d/twin")).unwrap();
    }),
    ("new entries", |top| {
        fs::write(top.join("d/new"), "new").unwrap();
        fs::create_dir(top.join("e/deep")).unwrap();
        symlink("to", top.join("e/link to")).unwrap();
    }),
    ("rename", |top| {
        fs::rename(top.join("d/one"), top.join("e/moved")).unwrap()
    }),
    ("rename of a directory", |top| {
        fs::rename(top.join("d"), top.join("e/d")).unwrap();
    }),
    ("replacement", |top| {
        fs::rename(top.join("d/two"), top.join("d/one")).unwrap()
    }),
    ("no directory any more", |top| {
        fs::remove_dir_all(top.join("d")).unwrap();
    }),
    ("times", |top| {
        let file = File::open(top.join("d/one")).unwrap();
        file.set_modified(std::time::UNIX_EPOCH).unwrap();
    }),
    ("a link elsewhere", |top| {
        fs::remove_file(top.join("d/link")).unwrap();
        symlink("elsewhere, and further", top.join("d/link")).unwrap();
    }),
];

#[test]
fn what_is_kept_of_a_listing_goes_with_every_change() {
    if !can_drop_caches() {
        return;
    }
    let mut mount = Mount::simple();
    for (number, (what, change)) in CHANGES.iter().enumerate() {
        let top = mount.join(number.to_string());
        fs::create_dir_all(top.join("d/sub")).unwrap();
        fs::create_dir(top.join("e")).unwrap();
        for name in ["one", "two", "three"] {
            fs::write(top.join("d").join(name), noise(1, 3_000)).unwrap();
        }
        symlink("somewhere", top.join("d/link")).unwrap();
        fs::hard_link(top.join("d/three"), top.join("d/twin")).unwrap();
        // Its names outlive what the kernel knows of it.
        let before = keep(&top);
        drop_caches(2);
        assert_eq!(walk(&top), before, "{what}: nothing changed");
        drop_caches(2);
        walk(&top);
        change(&top);
        let after = walk(&top);
        assert_ne!(after, before, "{what}: it changes something");
        for round in 0..3 {
            drop_caches(2);
            assert_eq!(walk(&top), after, "{what}: walk {round} after it");
        }
    }
    let told = walk(mount.path());
    mount.remount();
    assert_eq!(walk(mount.path()), told);
}

/// That anything is kept at all shows where the host has something else.
#[test]
fn a_walk_that_was_made_before_does_not_ask_the_host() {
    if !can_drop_caches() {
        return;
    }
    let Some(mount) = Mount::real(Options::default()) else {
        return;
    };
    let top = mount.join("top");
    fs::create_dir(&top).unwrap();
    for at in 0..200 {
        fs::write(top.join(format!("file {at}")), "x").unwrap();
    }
    // Behind the mount's back, which nobody should do.
    let visible = |entry: &fs::DirEntry| !entry.file_name().as_encoded_bytes().contains(&b'.');
    let stored_in = |directory: &Path| {
        let mut entries = fs::read_dir(directory).unwrap().flatten();
        entries.find(visible).unwrap().path()
    };
    let stored = stored_in(&stored_in(mount.backing()));
    let away = mount.backing().join("kmsfs.away");
    // Nothing is kept of what changed before the kernel has forgotten it, and that takes
    // as long as it likes.
    let is_kept = || {
        let before = keep(&top);
        fs::rename(&stored, &away).unwrap();
        drop_caches(2);
        // The listing may be kept, and its attributes not.
        let meanwhile = try_walk(&top);
        fs::rename(&away, &stored).unwrap();
        meanwhile.is_ok_and(|meanwhile| meanwhile == before)
    };
    assert!(eventually(Duration::from_secs(20), is_kept));
}
