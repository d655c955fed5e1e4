//! RLIMIT_FSIZE, the largest offsets, the longest symlink targets.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt, symlink};

use crate::common::sys::{Ended, in_child, limit_file_size};
use crate::common::{Mount, is_plain};
use crate::errno;

const LIMIT: u64 = 10_000;

/// Writes at the limit in a child and exits with the errno of what failed.
fn beyond_the_limit(ignore_signal: bool, act: impl FnOnce() -> std::io::Result<()>) -> Ended {
    in_child(|| {
        limit_file_size(LIMIT, ignore_signal);
        act().map_or_else(|error| error.raw_os_error().unwrap_or(100), |()| 0)
    })
}

#[test]
fn writing_at_the_file_size_limit() {
    let mount = Mount::simple();
    let path = mount.join("f");
    let writing = |offset: u64, len: usize| {
        let path = &path;
        move || {
            OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(false)
                .open(path)?
                .write_all_at(&vec![7; len], offset)
        }
    };
    assert_eq!(beyond_the_limit(true, writing(0, 10_000)), Ended::Exit(0));
    assert_eq!(
        beyond_the_limit(true, writing(10_000, 1)),
        Ended::Exit(libc::EFBIG)
    );
    assert_eq!(
        beyond_the_limit(false, writing(10_000, 1)),
        Ended::Signal(libc::SIGXFSZ)
    );
    assert_eq!(
        beyond_the_limit(true, writing(1 << 30, 1)),
        Ended::Exit(libc::EFBIG)
    );
    assert_eq!(fs::metadata(&path).unwrap().len(), LIMIT);
    // A write across the limit is short, and only the next one fails.
    fs::remove_file(&path).unwrap();
    let short = in_child(|| {
        limit_file_size(LIMIT, true);
        let file = File::create(&path).unwrap();
        i32::from(file.write_at(&[7; 9000], 5000).ok() != Some(5000))
    });
    assert_eq!(short, Ended::Exit(0));
    assert_eq!(fs::metadata(&path).unwrap().len(), LIMIT);
    // Truncating upwards counts as well.
    let growing = || {
        OpenOptions::new()
            .write(true)
            .open(&path)?
            .set_len(LIMIT + 1)
    };
    assert_eq!(beyond_the_limit(true, growing), Ended::Exit(libc::EFBIG));
    assert_eq!(
        beyond_the_limit(false, growing),
        Ended::Signal(libc::SIGXFSZ)
    );
    let allocating = || {
        let file = OpenOptions::new().write(true).open(&path)?;
        Ok(rustix::fs::fallocate(
            &file,
            rustix::fs::FallocateFlags::empty(),
            0,
            LIMIT + 1,
        )?)
    };
    assert_eq!(beyond_the_limit(true, allocating), Ended::Exit(libc::EFBIG));
    assert_eq!(fs::metadata(&path).unwrap().len(), LIMIT);
    // Nobody else is limited: the daemon's own files are not the writer's.
    OpenOptions::new()
        .write(true)
        .open(&path)
        .unwrap()
        .write_all_at(&[7; 10], 20_000)
        .unwrap();
}

/// The errno of writing one byte at an offset and having it durable.
fn write_at_the_end_of(file: &File, offset: u64) -> i32 {
    match file
        .write_all_at(b"x", offset)
        .and_then(|()| file.sync_all())
    {
        Ok(()) => 0,
        Err(error) => error.raw_os_error().unwrap(),
    }
}

#[test]
fn offsets_up_to_the_largest() {
    let mount = Mount::simple();
    let path = mount.join("f");
    let file = File::create(&path).unwrap();
    // Below ext4's limit of 16 TiB (with room for the metadata) all works.
    for offset in [(1_u64 << 32) - 1, 1 << 40, (1 << 44) - (1 << 40)] {
        assert_eq!(write_at_the_end_of(&file, offset), 0, "at {offset}");
        assert_eq!(file.metadata().unwrap().len(), offset + 1);
    }
    let len = file.metadata().unwrap().len();
    assert!(file.metadata().unwrap().blocks() * 512 < 1 << 20);
    let max = i64::MAX as u64;
    for size in [1 << 45, 1 << 60, max] {
        assert_eq!(errno(file.set_len(size)), libc::EFBIG, "to {size}");
        assert_eq!(file.metadata().unwrap().len(), len);
    }
    // A byte past the backing filesystem's limit is refused at the latest by
    // fsync, never lost in silence. (ext4 refuses at once.)
    for offset in [1 << 45, 1 << 60, max - 1] {
        let second = File::create(mount.join("g")).unwrap();
        assert_eq!(
            write_at_the_end_of(&second, offset),
            libc::EFBIG,
            "at {offset}"
        );
        drop(second);
        fs::remove_file(mount.join("g")).unwrap();
    }
    let beyond = [libc::EINVAL, libc::EFBIG];
    assert!(beyond.contains(&errno(file.write_at(b"x", max))));
    assert_eq!(errno(file.write_at(b"x", max + 1)), libc::EINVAL);
    assert_eq!(file.metadata().unwrap().len(), len);
}

#[test]
fn a_refused_offset_damages_nothing() {
    let mut mount = Mount::simple();
    let path = mount.join("f");
    fs::write(&path, vec![9; 50_000]).unwrap();
    let file = OpenOptions::new().write(true).open(&path).unwrap();
    file.sync_all().unwrap();
    let _ = file.set_len(i64::MAX as u64);
    assert_ne!(write_at_the_end_of(&file, 1 << 50), 0);
    drop(file);
    mount.remount();
    let back = File::open(&path).unwrap();
    let mut got = vec![0; 50_000];
    back.read_exact_at(&mut got, 0).unwrap();
    assert!(got.iter().all(|&byte| byte == 9));
    assert!(!is_plain() || back.metadata().unwrap().len() == 50_000);
}

#[test]
fn symlink_targets_up_to_4095_bytes() {
    let mut mount = Mount::simple();
    let lengths: Vec<usize> = [1, 2, 59, 60, 61, 100, 255, 256, 1000, 2000, 3000]
        .into_iter()
        .chain(3050..3100)
        .chain(4000..=4095)
        .collect();
    let target = |len: usize| -> String { "abcdefghi/".chars().cycle().take(len).collect() };
    for &len in &lengths {
        symlink(target(len), mount.join(len.to_string()))
            .unwrap_or_else(|error| panic!("{len}: {error}"));
    }
    assert_eq!(
        errno(symlink("x".repeat(4096), mount.join("too long"))),
        libc::ENAMETOOLONG
    );
    mount.remount();
    for &len in &lengths {
        let link = mount.join(len.to_string());
        assert_eq!(fs::read_link(&link).unwrap().to_str().unwrap(), target(len));
        assert_eq!(
            fs::symlink_metadata(&link).unwrap().len(),
            len as u64,
            "{len}"
        );
    }
    fs::rename(mount.join("4095"), mount.join("moved")).unwrap();
    fs::hard_link(mount.join("moved"), mount.join("linked")).unwrap();
    fs::remove_file(mount.join("moved")).unwrap();
    assert_eq!(
        fs::read_link(mount.join("linked"))
            .unwrap()
            .to_str()
            .unwrap(),
        target(4095)
    );
    for entry in fs::read_dir(mount.path()).unwrap() {
        fs::remove_file(entry.unwrap().path()).unwrap();
    }
}
