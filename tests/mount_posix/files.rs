//! open, read, write, truncate, sync, in every flag combination.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};

use crate::common::sys::{self, Aligned, Ended, Map, in_child};
use crate::common::{Mount, noise, write_synced};
use crate::errno;

#[test]
fn contents_of_every_small_size_survive_a_remount() {
    let mut mount = Mount::simple();
    let sizes: Vec<usize> = [0, 1, 2, 511, 512, 513, 1000]
        .into_iter()
        .chain((1..=4).flat_map(|n| [n * 4096 - 1, n * 4096, n * 4096 + 1]))
        .chain([
            131_071, 131_072, 131_073, 135_168, 393_215, 393_216, 393_217, 1_000_003,
        ])
        .collect();
    for &size in &sizes {
        fs::write(mount.join(format!("f{size}")), noise(size as u64, size)).unwrap();
    }
    mount.remount();
    for &size in &sizes {
        let path = mount.join(format!("f{size}"));
        assert_eq!(fs::metadata(&path).unwrap().len(), size as u64);
        assert!(
            fs::read(&path).unwrap() == noise(size as u64, size),
            "{size} bytes differ"
        );
    }
}

/// The daemon reaches an open file by the descriptor of its content, which a close that
/// goes on meanwhile may take away, and give its number to another file.
#[test]
fn files_opened_while_they_are_closed_are_the_right_ones() {
    let mount = Mount::simple();
    let mount = &mount;
    std::thread::scope(|scope| {
        for thread in 0..4_u64 {
            let path = move |i: u64| mount.join(format!("f{}", i % 50 + 100 * thread));
            scope.spawn(move || {
                for i in 0..2000 {
                    fs::write(path(i), noise(i, 100)).unwrap();
                    let file = OpenOptions::new().read(true).write(true).open(path(i));
                    file.unwrap().write_all_at(&noise(i, 200), 0).unwrap();
                    assert!(fs::read(path(i)).unwrap() == noise(i, 200), "{i} differs");
                }
            });
        }
    });
}

#[test]
fn random_writes_match_a_vector_across_remounts() {
    let mut mount = Mount::simple();
    let mut rng = crate::common::Rng::from_env();
    let path = mount.join("f");
    let mut model: Vec<u8> = Vec::new();
    for round in 0..4 {
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .unwrap();
        for _ in 0..150 {
            let at = usize::try_from(rng.below(600_000)).unwrap();
            let len = usize::try_from(rng.below(20_000)).unwrap() + 1;
            match rng.below(8) {
                0..4 => {
                    let bytes = rng.bytes(len);
                    file.write_all_at(&bytes, at as u64).unwrap();
                    model.resize(model.len().max(at + len), 0);
                    model[at..at + len].copy_from_slice(&bytes);
                }
                4 => {
                    file.set_len(at as u64).unwrap();
                    model.resize(at, 0);
                }
                5 => {
                    let bytes = rng.bytes(len);
                    file.seek(SeekFrom::End(0)).unwrap();
                    file.write_all(&bytes).unwrap();
                    model.extend(bytes);
                }
                _ => {
                    let mut got = vec![0; len];
                    let count = file.read_at(&mut got, at as u64).unwrap();
                    let rest = model.get(at..).unwrap_or(&[]);
                    assert_eq!(
                        count,
                        rest.len().min(len),
                        "read at {at} of {}",
                        model.len()
                    );
                    assert!(got[..count] == rest[..count], "read at {at} differs");
                }
            }
            assert_eq!(file.metadata().unwrap().len(), model.len() as u64);
        }
        drop(file);
        mount.remount();
        assert!(
            fs::read(&path).unwrap() == model,
            "contents after remount {round}"
        );
    }
}

#[test]
fn reads_stop_at_the_end() {
    let mount = Mount::simple();
    fs::write(mount.join("f"), noise(1, 5000)).unwrap();
    let file = File::open(mount.join("f")).unwrap();
    let mut buffer = [0; 100];
    assert_eq!(file.read_at(&mut buffer, 4990).unwrap(), 10);
    assert_eq!(file.read_at(&mut buffer, 5000).unwrap(), 0);
    assert_eq!(file.read_at(&mut buffer, 1 << 40).unwrap(), 0);
}

#[test]
fn append_goes_to_the_end_of_the_moment() {
    let mut mount = Mount::simple();
    let path = mount.join("log");
    let open = || {
        OpenOptions::new()
            .append(true)
            .create(true)
            .open(&path)
            .unwrap()
    };
    let (mut one, mut two) = (open(), open());
    let mut expected = Vec::new();
    for i in 0..500_u32 {
        let line = format!("line {i}\n");
        if i % 2 == 0 { &mut one } else { &mut two }
            .write_all(line.as_bytes())
            .unwrap();
        expected.extend(line.into_bytes());
    }
    // O_APPEND wins over pwrite's offset on Linux.
    one.write_all_at(b"last\n", 0).unwrap();
    expected.extend(b"last\n");
    drop((one, two));
    mount.remount();
    assert_eq!(fs::read(&path).unwrap(), expected);
}

#[test]
fn parallel_appends_of_two_processes_do_not_overlap() {
    let mount = Mount::simple();
    let path = mount.join("log");
    let append = |byte: u8| {
        let mut file = OpenOptions::new()
            .append(true)
            .create(true)
            .open(&path)
            .unwrap();
        for _ in 0..300 {
            file.write_all(&[byte; 100]).unwrap();
        }
    };
    std::thread::scope(|scope| {
        scope.spawn(|| append(b'a'));
        assert_eq!(
            in_child(|| {
                append(b'b');
                0
            }),
            Ended::Exit(0)
        );
    });
    let got = fs::read(&path).unwrap();
    assert_eq!(got.len(), 60_000);
    assert!(
        got.chunks(100)
            .all(|chunk| chunk.iter().all(|&byte| byte == chunk[0]))
    );
}

#[test]
fn truncate_exclusive_and_create_flags() {
    let mount = Mount::simple();
    let path = mount.join("f");
    fs::write(&path, b"something").unwrap();
    assert_eq!(
        errno(OpenOptions::new().write(true).create_new(true).open(&path)),
        libc::EEXIST
    );
    assert_eq!(fs::read(&path).unwrap(), b"something");
    drop(
        OpenOptions::new()
            .write(true)
            .truncate(true)
            .open(&path)
            .unwrap(),
    );
    assert_eq!(fs::metadata(&path).unwrap().len(), 0);
    assert_eq!(errno(File::open(mount.join("none"))), libc::ENOENT);
    // O_EXCL does not follow a symlink, not even a dangling one.
    std::os::unix::fs::symlink("nowhere", mount.join("s")).unwrap();
    let made = OpenOptions::new()
        .write(true)
        .create_new(true)
        .open(mount.join("s"));
    assert_eq!(errno(made), libc::EEXIST);
    // O_CREAT without O_EXCL makes the target.
    fs::write(mount.join("s"), b"x").unwrap();
    assert_eq!(fs::read(mount.join("nowhere")).unwrap(), b"x");
}

#[test]
fn truncate_on_open_is_seen_by_other_handles() {
    let mount = Mount::simple();
    let path = mount.join("f");
    fs::write(&path, noise(3, 9000)).unwrap();
    let other = File::open(&path).unwrap();
    let mut buffer = [0; 10];
    assert_eq!(other.read_at(&mut buffer, 8000).unwrap(), 10);
    drop(File::create(&path).unwrap());
    assert_eq!(other.metadata().unwrap().len(), 0);
    assert_eq!(other.read_at(&mut buffer, 8000).unwrap(), 0);
}

#[test]
fn write_only_handles_patch_the_middle_of_blocks() {
    let mut mount = Mount::simple();
    let path = mount.join("f");
    let mut model = noise(7, 20_000);
    fs::write(&path, &model).unwrap();
    mount.remount();
    let file = OpenOptions::new().write(true).open(&path).unwrap();
    for at in [0_usize, 100, 4090, 8192, 12_287, 19_990] {
        file.write_all_at(b"patch", at as u64).unwrap();
        model[at..at + 5].copy_from_slice(b"patch");
    }
    assert_eq!(errno((&file).read(&mut [0; 1])), libc::EBADF);
    drop(file);
    mount.remount();
    assert_eq!(fs::read(&path).unwrap(), model);
}

#[test]
fn a_file_without_read_permission_takes_writes() {
    let mut mount = Mount::simple();
    let path = mount.join("f");
    fs::write(&path, noise(1, 6000)).unwrap();
    fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o200)).unwrap();
    if crate::common::is_root() {
        std::os::unix::fs::chown(&path, Some(4711), Some(4711)).unwrap();
        crate::common::sys::as_user(4711, 4711, &[], || {
            let file = OpenOptions::new().write(true).open(&path).unwrap();
            file.write_all_at(b"mid", 3000).unwrap();
            file.sync_all().unwrap();
            assert_eq!(errno(File::open(&path)), libc::EACCES);
        });
    } else {
        OpenOptions::new()
            .write(true)
            .open(&path)
            .unwrap()
            .write_all_at(b"mid", 3000)
            .unwrap();
    }
    fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    mount.remount();
    let mut model = noise(1, 6000);
    model[3000..3003].copy_from_slice(b"mid");
    assert_eq!(fs::read(&path).unwrap(), model);
}

#[test]
fn a_handle_keeps_its_rights_when_the_mode_changes() {
    let mount = Mount::simple();
    let path = mount.join("f");
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .mode(0o000)
        .open(&path)
        .unwrap();
    file.write_all(b"made with mode 0000").unwrap();
    file.sync_all().unwrap();
    let mut text = String::new();
    file.seek(SeekFrom::Start(0)).unwrap();
    file.read_to_string(&mut text).unwrap();
    assert_eq!(text, "made with mode 0000");
}

#[test]
fn direct_io_reads_and_writes() {
    let mut mount = Mount::simple();
    let path = mount.join("f");
    let open = || {
        let mut options = OpenOptions::new();
        options
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .custom_flags(libc::O_DIRECT);
        options.open(&path).unwrap()
    };
    let file = open();
    let data = Aligned::new(65_536, 0xa5);
    assert_eq!(file.write_at(&data, 0).unwrap(), data.len());
    assert_eq!(file.write_at(&data[..4096], 200 * 4096).unwrap(), 4096);
    drop(file);
    mount.remount();
    let file = open();
    let mut back = Aligned::new(65_536, 0);
    assert_eq!(file.read_at(&mut back, 0).unwrap(), back.len());
    assert!(back[..] == data[..]);
    assert_eq!(file.read_at(&mut back, 100 * 4096).unwrap(), 65_536);
    assert!(
        back.iter().all(|&byte| byte == 0),
        "the hole reads as zeroes"
    );
    // The end of the file is short, not padded.
    file.set_len(200 * 4096 + 100).unwrap();
    assert_eq!(file.read_at(&mut back, 200 * 4096).unwrap(), 100);
}

#[test]
fn synchronous_handles() {
    for flag in [libc::O_SYNC, libc::O_DSYNC] {
        let mut mount = Mount::simple();
        let path = mount.join("f");
        let mut options = OpenOptions::new();
        let mut file = options
            .write(true)
            .create(true)
            .truncate(true)
            .custom_flags(flag)
            .open(&path)
            .unwrap();
        file.write_all(&noise(9, 10_000)).unwrap();
        file.write_all_at(b"again", 50).unwrap();
        if !crate::common::is_plain() {
            // Synchronous data needs no fsync to outlive the daemon.
            mount.sigkill();
        }
        drop(file);
        let mut model = noise(9, 10_000);
        model[50..55].copy_from_slice(b"again");
        assert_eq!(fs::read(&path).unwrap(), model);
    }
}

#[test]
fn shared_mappings() {
    let mut mount = Mount::simple();
    let path = mount.join("f");
    write_synced(&path, &noise(5, 10_000));
    {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(&path)
            .unwrap();
        let map = Map::new(&file, 12_288, true).unwrap();
        let second = Map::new(&file, 12_288, false).unwrap();
        assert_eq!(map.get(0, 10_000), noise(5, 10_000));
        map.put(4090, b"over the edge");
        assert_eq!(second.get(4090, 13), b"over the edge");
        let mut seen = [0; 13];
        file.read_exact_at(&mut seen, 4090).unwrap();
        assert_eq!(&seen, b"over the edge");
        file.write_all_at(b"by write", 200).unwrap();
        assert_eq!(map.get(200, 8), b"by write");
        // A mapping outlives its descriptor.
        drop(file);
        map.put(9_990, b"late");
        map.sync().unwrap();
        map.put(9_994, b"unsynced");
    }
    mount.remount();
    let mut model = noise(5, 10_000);
    model[4090..4103].copy_from_slice(b"over the edge");
    model[200..208].copy_from_slice(b"by write");
    model[9_990..9_994].copy_from_slice(b"late");
    model[9_994..10_000].copy_from_slice(b"unsync");
    // Past the end of the file a mapping's bytes are lost, as everywhere.
    assert_eq!(fs::read(&path).unwrap(), model);
}

#[test]
fn growing_by_truncate_reads_as_zeroes() {
    let mut mount = Mount::simple();
    let path = mount.join("f");
    fs::write(&path, [0xff; 5000]).unwrap();
    let file = OpenOptions::new().write(true).open(&path).unwrap();
    file.set_len(4500).unwrap();
    file.set_len(12_000).unwrap();
    drop(file);
    mount.remount();
    let mut model = vec![0xff; 4500];
    model.resize(12_000, 0);
    assert_eq!(fs::read(&path).unwrap(), model);
    assert_eq!(errno(sys::truncate(&path, -1)), libc::EINVAL);
    assert_eq!(errno(sys::truncate(mount.path(), 0)), libc::EISDIR);
}

#[test]
fn two_handles_see_each_other_at_once() {
    let mount = Mount::simple();
    let path = mount.join("f");
    let writer = File::create(&path).unwrap();
    let reader = File::open(&path).unwrap();
    for i in 0..200_u64 {
        writer.write_all_at(&i.to_le_bytes(), i * 8).unwrap();
        let mut seen = [0; 8];
        reader.read_exact_at(&mut seen, i * 8).unwrap();
        assert_eq!(u64::from_le_bytes(seen), i);
        assert_eq!(reader.metadata().unwrap().size(), (i + 1) * 8);
    }
}

#[test]
fn zero_length_writes_change_nothing() {
    let mount = Mount::simple();
    let path = mount.join("f");
    fs::write(&path, b"abc").unwrap();
    let before = fs::metadata(&path).unwrap();
    let file = OpenOptions::new().write(true).open(&path).unwrap();
    assert_eq!(file.write_at(b"", 1_000_000).unwrap(), 0);
    drop(file);
    let after = fs::metadata(&path).unwrap();
    assert_eq!(
        (before.len(), before.mtime_nsec()),
        (after.len(), after.mtime_nsec())
    );
}

#[test]
fn many_threads_write_their_own_parts() {
    let mut mount = Mount::simple();
    let path = mount.join("f");
    let file = File::create(&path).unwrap();
    // 1,000-byte records: neighbours share blocks.
    std::thread::scope(|scope| {
        for thread in 0..8_u64 {
            let file = &file;
            scope.spawn(move || {
                for i in (thread..400).step_by(8) {
                    file.write_all_at(&noise(i, 1000), i * 1000).unwrap();
                }
            });
        }
    });
    file.sync_all().unwrap();
    drop(file);
    mount.remount();
    let model: Vec<u8> = (0..400).flat_map(|i| noise(i, 1000)).collect();
    assert!(fs::read(&path).unwrap() == model);
}

#[test]
fn vectored_and_positioned_writes() {
    use std::io::IoSlice;
    let mount = Mount::simple();
    let mut file = File::create(mount.join("f")).unwrap();
    let parts = [
        IoSlice::new(b"one"),
        IoSlice::new(b""),
        IoSlice::new(b"two"),
    ];
    assert_eq!(file.write_vectored(&parts).unwrap(), 6);
    assert_eq!(file.stream_position().unwrap(), 6);
    file.write_all_at(b"X", 1).unwrap();
    assert_eq!(file.stream_position().unwrap(), 6);
    assert_eq!(fs::read(mount.join("f")).unwrap(), b"oXetwo");
}

#[test]
fn opening_and_reading_directories_as_files_fails() {
    let mount = Mount::simple();
    fs::create_dir(mount.join("d")).unwrap();
    assert_eq!(
        errno(OpenOptions::new().write(true).open(mount.join("d"))),
        libc::EISDIR
    );
    let dir = File::open(mount.join("d")).unwrap();
    assert_eq!(errno((&dir).read(&mut [0; 1])), libc::EISDIR);
    fs::write(mount.join("f"), b"").unwrap();
    assert_eq!(errno(File::open(mount.join("f/x"))), libc::ENOTDIR);
    let mut options = OpenOptions::new();
    options.read(true).custom_flags(libc::O_DIRECTORY);
    assert_eq!(errno(options.open(mount.join("f"))), libc::ENOTDIR);
}

#[test]
fn unknown_ioctls_are_refused_properly() {
    let mount = Mount::simple();
    let file = File::create(mount.join("f")).unwrap();
    let refused = crate::common::sys::ioctl_u32(&file, 0x4004_aa01, 1);
    assert_eq!(errno(refused), libc::ENOTTY);
}

#[test]
fn fadvise_and_readahead_are_harmless() {
    let mount = Mount::simple();
    fs::write(mount.join("f"), noise(2, 300_000)).unwrap();
    let file = File::open(mount.join("f")).unwrap();
    for advice in [
        rustix::fs::Advice::WillNeed,
        rustix::fs::Advice::DontNeed,
        rustix::fs::Advice::Sequential,
    ] {
        rustix::fs::fadvise(&file, 0, None, advice).unwrap();
        assert!(fs::read(mount.join("f")).unwrap() == noise(2, 300_000));
    }
}
