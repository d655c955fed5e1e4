//! Directory positions, and file handles that outlive the kernel's inodes.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use crate::common::sys::{DirStream, Handle, eventually};
use crate::common::{Mount, can_drop_caches, drop_caches, noise};

#[test]
fn positions_in_a_directory_of_10_000_entries_that_changes() {
    let mount = Mount::simple();
    let dir = mount.join("d");
    fs::create_dir(&dir).unwrap();
    for i in 0..10_000 {
        File::create(dir.join(format!("entry number {i}"))).unwrap();
    }
    let mut stream = DirStream::open(&dir).unwrap();
    // `positions[i]` is where `names[i]` comes next.
    let (mut names, mut positions) = (Vec::new(), Vec::new());
    loop {
        let position = stream.tell();
        let Some((name, _)) = stream.next() else {
            break;
        };
        names.push(name);
        positions.push(position);
    }
    assert_eq!(names.len(), 10_002);
    // Entries go far from each probe, and come anywhere, while the probes are made:
    // those that came may be seen or not.
    let next = |stream: &mut DirStream| loop {
        let (name, _) = stream.next().expect("an entry");
        if !name.as_bytes().starts_with(b"new ") {
            break name;
        }
    };
    let can_drop = can_drop_caches();
    let probes: Vec<usize> = (50..10_000).step_by(499).collect();
    for (round, &probe) in probes.iter().enumerate() {
        // Most of the time the kernel answers by what it read before.
        if round % 4 == 3 && can_drop {
            drop_caches(1);
        }
        stream.seek(positions[probe]);
        for (step, name) in names[probe..probe + 20].iter().enumerate() {
            let found = next(&mut stream);
            assert_eq!(&found, name, "{step} after probe {probe} in round {round}");
        }
        let victim = &names[probe + 200];
        if !victim.to_str().unwrap().starts_with('.') {
            fs::remove_file(dir.join(victim)).unwrap();
        }
        File::create(dir.join(format!("new {round}"))).unwrap();
    }
    // Backwards, after all those changes.
    for &probe in probes.iter().rev() {
        stream.seek(positions[probe]);
        assert_eq!(next(&mut stream), names[probe], "back at {probe}");
    }
    // One pass over a changing directory shows everything that stayed, once.
    let mut seen: HashMap<_, usize> = HashMap::new();
    let mut stream = DirStream::open(&dir).unwrap();
    let mut count = 0;
    while let Some((name, _)) = stream.next() {
        *seen.entry(name).or_default() += 1;
        count += 1;
        if count % 100 == 0 {
            let path = dir.join(format!("passing {count}"));
            File::create(&path).unwrap();
            fs::remove_file(&path).unwrap();
        }
    }
    for name in &names {
        let here = dir.join(name).symlink_metadata().is_ok();
        assert_eq!(
            seen.get(name).copied().unwrap_or(0),
            usize::from(here),
            "{name:?}"
        );
    }
}

#[test]
fn two_streams_of_one_directory_keep_their_own_positions() {
    let mount = Mount::simple();
    for i in 0..500 {
        File::create(mount.join(i.to_string())).unwrap();
    }
    let (mut one, mut two) = (
        DirStream::open(mount.path()).unwrap(),
        DirStream::open(mount.path()).unwrap(),
    );
    let mut first = Vec::new();
    for _ in 0..250 {
        first.push(one.next().unwrap().0);
    }
    let at = one.tell();
    let second: Vec<_> = std::iter::from_fn(|| two.next())
        .map(|(name, _)| name)
        .collect();
    assert_eq!(second.len(), 502);
    first.extend(std::iter::from_fn(|| one.next()).map(|(name, _)| name));
    assert_eq!(first, second);
    one.seek(at);
    assert_eq!(one.next().unwrap().0, second[250]);
}

#[test]
fn handles_open_after_the_kernel_forgot_the_inode() {
    if !can_drop_caches() {
        return;
    }
    let mount = Mount::simple();
    fs::create_dir_all(mount.join("a/b")).unwrap();
    let path = mount.join("a/b/f");
    fs::write(&path, noise(1, 10_000)).unwrap();
    let file_inode = fs::metadata(&path).unwrap().ino();
    let file = Handle::of(&path).unwrap();
    let dir = Handle::of(&mount.join("a/b")).unwrap();
    let root = File::open(mount.path()).unwrap();
    for round in 0..3 {
        drop_caches(3);
        let mut back = File::from(
            file.open(&root, libc::O_RDWR)
                .unwrap_or_else(|error| panic!("round {round}: {error}")),
        );
        assert_eq!(back.metadata().unwrap().ino(), file_inode);
        let mut data = Vec::new();
        back.read_to_end(&mut data).unwrap();
        assert_eq!(data.len(), 10_000 + round * 8);
        assert!(data[..10_000] == noise(1, 10_000));
        back.write_all(b"appended").unwrap();
        drop(back);
        drop_caches(3);
        let back = File::from(dir.open(&root, libc::O_RDONLY | libc::O_DIRECTORY).unwrap());
        let through = rustix::fs::openat(&back, "f", rustix::fs::OFlags::RDONLY, 0.into()).unwrap();
        assert_eq!(File::from(through).metadata().unwrap().ino(), file_inode);
    }
    // A handle follows a rename and knows when its file is gone.
    fs::rename(&path, mount.join("moved")).unwrap();
    drop_caches(3);
    drop(file.open(&root, libc::O_RDONLY).unwrap());
    fs::remove_file(mount.join("moved")).unwrap();
    drop_caches(3);
    assert!(goes_stale(&file, &root, is_removed), "the file stays");
}

/// Whether `handle` leads nowhere, at last: the kernel keeps a file until the release of
/// its last descriptor is answered, which nobody waits for. Until then the handle leads
/// to it, as that of an open file would, and `check` sees it.
fn goes_stale(handle: &Handle, root: &File, check: impl Fn(File)) -> bool {
    eventually(Duration::from_secs(10), || {
        match handle.open(root, libc::O_RDONLY) {
            Ok(opened) => {
                check(File::from(opened));
                false
            }
            Err(error) => {
                assert_eq!(error.raw_os_error(), Some(libc::ESTALE));
                true
            }
        }
    })
}

fn is_removed(file: File) {
    assert_eq!(file.metadata().unwrap().nlink(), 0);
}

#[test]
fn handles_open_while_the_kernel_forgets_the_inode() {
    if !can_drop_caches() {
        return;
    }
    let mount = Mount::simple();
    let root = File::open(mount.path()).unwrap();
    // Each file is forgotten for the first time.
    for round in 0..200 {
        let path = mount.join(round.to_string());
        fs::write(&path, b"content").unwrap();
        let handle = Handle::of(&path).unwrap();
        // Nobody waits for the daemon to close it.
        std::thread::sleep(Duration::from_millis(1));
        drop_caches(2);
        let opened = handle.open(&root, libc::O_RDONLY);
        assert!(opened.is_ok(), "round {round}: {opened:?}");
    }
}

/// Nothing of it was opened by the daemon before the kernel forgot it.
#[test]
fn handles_of_what_was_only_looked_at() {
    if !can_drop_caches() {
        return;
    }
    let mut mount = Mount::simple();
    fs::create_dir_all(mount.join("a/b/empty")).unwrap();
    fs::write(mount.join("a/b/f"), noise(1, 10_000)).unwrap();
    mount.remount();
    let root = File::open(mount.path()).unwrap();
    let file = Handle::of(&mount.join("a/b/f")).unwrap();
    let empty = Handle::of(&mount.join("a/b/empty")).unwrap();
    let inode = fs::metadata(mount.join("a/b/f")).unwrap().ino();
    for name in ["a", "moved"] {
        drop_caches(3);
        let mut back = File::from(file.open(&root, libc::O_RDONLY).unwrap());
        assert_eq!(back.metadata().unwrap().ino(), inode);
        let mut data = Vec::new();
        back.read_to_end(&mut data).unwrap();
        assert!(data == noise(1, 10_000));
        let directory = libc::O_RDONLY | libc::O_DIRECTORY;
        drop(empty.open(&root, directory).unwrap());
        drop(back);
        drop_caches(3);
        // Both are forgotten while a directory above them gets another name.
        fs::rename(mount.join(name), mount.join("moved")).unwrap();
    }
    // What takes its place is not it.
    fs::write(mount.join("new"), b"new").unwrap();
    fs::rename(mount.join("new"), mount.join("moved/b/f")).unwrap();
    drop_caches(3);
    let stale = goes_stale(&file, &root, is_removed);
    assert!(stale, "the replaced file stays");
}

#[test]
fn a_handle_does_not_open_an_unrelated_file_that_got_the_same_inode() {
    if !can_drop_caches() {
        return;
    }
    let mount = Mount::simple();
    let root = File::open(mount.path()).unwrap();
    let path = mount.join("f");
    for round in 0..20 {
        fs::write(&path, b"old").unwrap();
        let handle = Handle::of(&path).unwrap();
        let inode = fs::metadata(&path).unwrap().ino();
        fs::remove_file(&path).unwrap();
        drop_caches(2);
        fs::write(&path, b"new").unwrap();
        let reused = fs::metadata(&path).unwrap().ino() == inode;
        let stale = goes_stale(&handle, &root, |mut opened| {
            let mut data = Vec::new();
            opened.read_to_end(&mut data).unwrap();
            let links = opened.metadata().unwrap().nlink();
            assert!(
                data == b"old" && links == 0,
                "round {round}: an unrelated file (inode reused: {reused})"
            );
        });
        assert!(stale, "round {round}: the old file stays");
        fs::remove_file(&path).unwrap();
    }
}

#[test]
fn everything_works_after_the_kernel_forgot_everything() {
    if !can_drop_caches() {
        return;
    }
    let mount = Mount::simple();
    for i in 0..50 {
        fs::create_dir_all(mount.join(format!("d{}/e", i % 5))).unwrap();
        fs::write(mount.join(format!("d{}/e/f{i}", i % 5)), noise(i, 5000)).unwrap();
    }
    let open = File::open(mount.join("d0/e/f0")).unwrap();
    let inside = File::open(mount.join("d1/e")).unwrap();
    let inodes: Vec<u64> = (0..5)
        .map(|i| fs::metadata(mount.join(format!("d{i}"))).unwrap().ino())
        .collect();
    drop_caches(3);
    for i in 0..50 {
        assert!(fs::read(mount.join(format!("d{}/e/f{i}", i % 5))).unwrap() == noise(i, 5000));
    }
    let again: Vec<u64> = (0..5)
        .map(|i| fs::metadata(mount.join(format!("d{i}"))).unwrap().ino())
        .collect();
    assert_eq!(
        inodes, again,
        "inode numbers do not change under a running mount"
    );
    assert_eq!(open.metadata().unwrap().size(), 5000);
    rustix::fs::mkdirat(&inside, "made", 0o700.into()).unwrap();
    assert!(mount.join("d1/e/made").is_dir());
}
