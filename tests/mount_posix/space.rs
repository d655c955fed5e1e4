//! Holes, fallocate, lseek for holes, copy_file_range, statfs.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt};

use rustix::fs::{FallocateFlags, SeekFrom, copy_file_range, fallocate, seek};

use crate::common::{Mount, Rng, is_plain, noise};
use crate::errno;

const MIB: u64 = 1 << 20;

fn open(mount: &Mount, name: &str) -> File {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(mount.join(name))
        .unwrap()
}

/// A MiB of blocks of data between holes: the even MiB are data.
fn striped(mount: &Mount, name: &str) -> File {
    let file = open(mount, name);
    for stripe in (0..6).step_by(2) {
        file.write_all_at(&noise(stripe, 1 << 20), stripe * MIB)
            .unwrap();
    }
    file.set_len(6 * MIB).unwrap();
    file
}

#[test]
fn sparse_files_stay_sparse() {
    let mut mount = Mount::simple();
    let file = striped(&mount, "f");
    file.sync_all().unwrap();
    drop(file);
    mount.remount();
    let metadata = fs::metadata(mount.join("f")).unwrap();
    assert_eq!(metadata.len(), 6 * MIB);
    let used = metadata.blocks() * 512;
    assert!(
        (3 * MIB..3 * MIB + MIB / 4).contains(&used),
        "{used} bytes for 3 MiB of data"
    );
    let data = fs::read(mount.join("f")).unwrap();
    for stripe in 0..6_u64 {
        let at = usize::try_from(stripe * MIB).unwrap();
        let expected = if stripe % 2 == 0 {
            noise(stripe, 1 << 20)
        } else {
            vec![0; 1 << 20]
        };
        assert!(data[at..at + (1 << 20)] == expected, "stripe {stripe}");
    }
}

#[test]
fn seek_finds_data_and_holes() {
    let mut mount = Mount::simple();
    let file = striped(&mount, "f");
    file.sync_all().unwrap();
    let check = |file: &File| {
        for (from, data, hole) in [
            (0, 0, MIB),
            (1, 1, MIB),
            (MIB, 2 * MIB, MIB),
            (MIB + 5, 2 * MIB, MIB + 5),
            (2 * MIB, 2 * MIB, 3 * MIB),
            (5 * MIB - 1, 5 * MIB - 1, 5 * MIB),
        ] {
            assert_eq!(
                seek(file, SeekFrom::Data(from)).unwrap(),
                data,
                "data from {from}"
            );
            assert_eq!(
                seek(file, SeekFrom::Hole(from)).unwrap(),
                hole,
                "hole from {from}"
            );
        }
        assert_eq!(errno(seek(file, SeekFrom::Data(5 * MIB))), libc::ENXIO);
        assert_eq!(errno(seek(file, SeekFrom::Data(6 * MIB))), libc::ENXIO);
        assert_eq!(errno(seek(file, SeekFrom::Hole(6 * MIB))), libc::ENXIO);
        assert_eq!(seek(file, SeekFrom::Hole(5 * MIB)).unwrap(), 5 * MIB);
    };
    check(&file);
    drop(file);
    mount.remount();
    check(&File::open(mount.join("f")).unwrap());
}

#[test]
fn seek_finds_data_that_is_not_written_back_yet() {
    // What `cp --sparse` and tar rely on: fresh data is never called a hole.
    let mount = Mount::simple();
    let file = open(&mount, "f");
    file.set_len(4 * MIB).unwrap();
    file.write_all_at(b"fresh", 2 * MIB).unwrap();
    let data = seek(&file, SeekFrom::Data(0)).unwrap();
    assert!(
        data <= 2 * MIB,
        "fresh data at {} was skipped: {data}",
        2 * MIB
    );
    let hole = seek(&file, SeekFrom::Hole(2 * MIB)).unwrap();
    assert!(hole >= 2 * MIB + 5, "fresh data is called a hole: {hole}");
    let small = open(&mount, "g");
    small.write_all_at(b"only in the cache", 0).unwrap();
    assert_eq!(seek(&small, SeekFrom::Data(0)).unwrap(), 0);
}

#[test]
fn files_without_holes_end_in_one() {
    let mount = Mount::simple();
    for len in [1_u64, 4096, 5000, 131_072, 200_000] {
        let file = open(&mount, &len.to_string());
        file.write_all_at(&noise(len, usize::try_from(len).unwrap()), 0)
            .unwrap();
        file.sync_all().unwrap();
        assert_eq!(seek(&file, SeekFrom::Hole(0)).unwrap(), len);
        assert_eq!(seek(&file, SeekFrom::Data(len - 1)).unwrap(), len - 1);
    }
    let empty = open(&mount, "empty");
    assert_eq!(errno(seek(&empty, SeekFrom::Data(0))), libc::ENXIO);
    assert_eq!(errno(seek(&empty, SeekFrom::Hole(0))), libc::ENXIO);
}

#[test]
fn fallocate_default_mode_grows_and_keep_size_does_not() {
    let mut mount = Mount::simple();
    let file = open(&mount, "f");
    file.write_all_at(b"start", 0).unwrap();
    fallocate(&file, FallocateFlags::KEEP_SIZE, 0, MIB).unwrap();
    assert_eq!(file.metadata().unwrap().len(), 5);
    fallocate(&file, FallocateFlags::empty(), 0, 100_000).unwrap();
    assert_eq!(file.metadata().unwrap().len(), 100_000);
    fallocate(&file, FallocateFlags::empty(), 50, 50).unwrap();
    assert_eq!(file.metadata().unwrap().len(), 100_000);
    file.write_all_at(b"end", 99_990).unwrap();
    drop(file);
    mount.remount();
    let mut model = vec![0; 100_000];
    model[..5].copy_from_slice(b"start");
    model[99_990..99_993].copy_from_slice(b"end");
    assert_eq!(fs::read(mount.join("f")).unwrap(), model);
}

#[test]
fn fallocate_on_an_empty_file() {
    let mut mount = Mount::simple();
    let file = open(&mount, "f");
    fallocate(&file, FallocateFlags::empty(), 10_000, 10_000).unwrap();
    assert_eq!(file.metadata().unwrap().len(), 20_000);
    fallocate(open(&mount, "g"), FallocateFlags::KEEP_SIZE, 0, 10_000).unwrap();
    drop(file);
    mount.remount();
    assert_eq!(fs::read(mount.join("f")).unwrap(), vec![0; 20_000]);
    assert_eq!(fs::read(mount.join("g")).unwrap(), b"");
}

#[test]
fn punched_and_zeroed_ranges_match_a_vector() {
    let mut mount = Mount::simple();
    let mut rng = Rng::from_env();
    let len = 500_000_u64;
    let mut model = noise(1, 500_000);
    let file = open(&mount, "f");
    file.write_all_at(&model, 0).unwrap();
    let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    let zero = FallocateFlags::ZERO_RANGE;
    for i in 0..120 {
        let at = rng.below(len);
        let count = 1 + rng.below(30_000);
        let flags = *rng.pick(&[punch, zero | FallocateFlags::KEEP_SIZE, zero]);
        fallocate(&file, flags, at, count).unwrap();
        let end = at + count;
        if flags == zero && end > model.len() as u64 {
            model.resize(usize::try_from(end).unwrap(), 0);
        }
        let end = end.min(model.len() as u64);
        model[usize::try_from(at).unwrap()..usize::try_from(end).unwrap()].fill(0);
        if i % 3 == 0 {
            let at = rng.below(len - 5000);
            let bytes = rng.bytes(5000);
            file.write_all_at(&bytes, at).unwrap();
            model[usize::try_from(at).unwrap()..][..5000].copy_from_slice(&bytes);
        }
        assert_eq!(file.metadata().unwrap().len(), model.len() as u64);
        let mut got = vec![0; model.len()];
        file.read_exact_at(&mut got, 0).unwrap();
        assert!(got == model, "after step {i}");
    }
    drop(file);
    mount.remount();
    assert!(fs::read(mount.join("f")).unwrap() == model);
}

#[test]
fn punching_frees_space() {
    let mount = Mount::simple();
    let file = open(&mount, "f");
    file.write_all_at(&noise(1, 8 << 20), 0).unwrap();
    file.sync_all().unwrap();
    let before = file.metadata().unwrap().blocks();
    fallocate(
        &file,
        FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE,
        MIB,
        6 * MIB,
    )
    .unwrap();
    file.sync_all().unwrap();
    let after = fs::metadata(mount.join("f")).unwrap().blocks();
    // Of 512 bytes. What is there before is the host's choice: xfs allocates more.
    let freed = before.saturating_sub(after);
    assert!(freed > 11 << 10, "{before} blocks before, {after} after");
}

#[test]
fn fallocate_errors() {
    let mount = Mount::simple();
    let file = open(&mount, "f");
    file.write_all_at(&noise(1, 20_000), 0).unwrap();
    assert_eq!(
        errno(fallocate(&file, FallocateFlags::PUNCH_HOLE, 0, 10)),
        libc::EOPNOTSUPP
    );
    assert_eq!(
        errno(fallocate(&file, FallocateFlags::empty(), 0, 0)),
        libc::EINVAL
    );
    let read_only = File::open(mount.join("f")).unwrap();
    assert_eq!(
        errno(fallocate(&read_only, FallocateFlags::empty(), 0, 10)),
        libc::EBADF
    );
    for flags in [FallocateFlags::COLLAPSE_RANGE, FallocateFlags::INSERT_RANGE] {
        match fallocate(&file, flags, 4096, 4096) {
            Ok(()) => assert!(is_plain(), "if it is supported, test it"),
            Err(error) => assert_eq!(error.raw_os_error(), libc::EOPNOTSUPP),
        }
    }
}

#[test]
fn copy_file_range_between_and_within_files() {
    let mut mount = Mount::simple();
    let source = open(&mount, "from");
    let data = noise(1, 700_000);
    source.write_all_at(&data, 0).unwrap();
    let target = open(&mount, "to");
    target.write_all_at(&noise(2, 100_000), 0).unwrap();
    let mut model = noise(2, 100_000);
    for (from, to, len) in [
        (0_u64, 0_u64, 4096_usize),
        (100, 50_000, 10_000),
        (1, 90_000, 300_000),
        (699_000, 0, 5000),
    ] {
        let (mut at, mut into, mut left) = (from, to, len);
        while left > 0 {
            let done =
                copy_file_range(&source, Some(&mut at), &target, Some(&mut into), left).unwrap();
            if done == 0 {
                break;
            }
            left -= done;
        }
        let part = &data[usize::try_from(from).unwrap()..][..len - left];
        let end = usize::try_from(to).unwrap() + part.len();
        model.resize(model.len().max(end), 0);
        model[end - part.len()..end].copy_from_slice(part);
    }
    let mut at = 0;
    let mut into = 600_000;
    let done = copy_file_range(&source, Some(&mut at), &source, Some(&mut into), 50_000).unwrap();
    assert!(done > 0);
    // Overlapping ranges of one file are refused.
    let overlap = copy_file_range(&source, Some(&mut 0), &source, Some(&mut 10), 100);
    assert_eq!(errno(overlap), libc::EINVAL);
    drop((source, target));
    mount.remount();
    assert!(fs::read(mount.join("to")).unwrap() == model);
    let mut data = data;
    data.copy_within(0..done, 600_000);
    assert!(fs::read(mount.join("from")).unwrap() == data);
}

#[test]
fn copy_file_range_of_data_that_is_not_written_back_yet() {
    let mount = Mount::simple();
    let (source, target) = (open(&mount, "from"), open(&mount, "to"));
    for round in 0..20_u64 {
        source.write_all_at(&noise(round, 20_000), 0).unwrap();
        target.write_all_at(&noise(round + 100, 20_000), 0).unwrap();
        let mut done = 0;
        while done < 10_000 {
            let (mut at, mut into) = (done, done);
            let left = usize::try_from(10_000 - done).unwrap();
            done += copy_file_range(&source, Some(&mut at), &target, Some(&mut into), left).unwrap()
                as u64;
        }
        let got = fs::read(mount.join("to")).unwrap();
        assert!(
            got[..10_000] == noise(round, 20_000)[..10_000],
            "copied in round {round}"
        );
        assert!(
            got[10_000..] == noise(round + 100, 20_000)[10_000..],
            "kept in round {round}"
        );
    }
}

#[test]
fn std_copy_keeps_contents_and_holes_readable() {
    let mount = Mount::simple();
    drop(striped(&mount, "f"));
    fs::copy(mount.join("f"), mount.join("g")).unwrap();
    assert!(fs::read(mount.join("f")).unwrap() == fs::read(mount.join("g")).unwrap());
}

#[test]
fn statfs_tells_of_the_backing_filesystem() {
    let mount = Mount::simple();
    let stat = rustix::fs::statvfs(mount.path()).unwrap();
    assert_eq!(stat.f_namemax, 255);
    assert!(stat.f_blocks > 0 && stat.f_bfree <= stat.f_blocks && stat.f_bavail <= stat.f_bfree);
    assert!(stat.f_frsize > 0);
    if !is_plain() {
        let behind = rustix::fs::statvfs(mount.backing()).unwrap();
        assert_eq!(
            stat.f_blocks * stat.f_frsize,
            behind.f_blocks * behind.f_frsize
        );
        assert_eq!(stat.f_files, behind.f_files);
    }
}
