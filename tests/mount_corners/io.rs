//! Unlinked files, asynchronous and direct I/O, mappings, sizes, signals.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::time::Duration;

use rustix::fs::{FallocateFlags, FlockOperation, fallocate, flock};

use crate::common::sys::{self, Aio, Aligned, Map};
use crate::common::{Mount, Rng, noise};
use crate::errno;

fn open(path: &Path) -> File {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)
        .unwrap()
}

fn open_direct(path: &Path) -> File {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .custom_flags(libc::O_DIRECT)
        .open(path)
        .unwrap()
}

#[test]
fn fsync_of_an_unlinked_file() {
    let mount = Mount::simple();
    let path = mount.join("f");
    let file = open(&path);
    file.write_all_at(&noise(1, 50_000), 0).unwrap();
    fs::remove_file(&path).unwrap();
    file.sync_all().unwrap();
    file.write_all_at(&noise(2, 50_000), 25_000).unwrap();
    file.sync_data().unwrap();
    let mut got = vec![0; 75_000];
    file.read_exact_at(&mut got, 0).unwrap();
    assert!(got[..25_000] == noise(1, 50_000)[..25_000] && got[25_000..] == noise(2, 50_000));
}

#[test]
fn asynchronous_io_on_an_unlinked_file() {
    for direct in [false, true] {
        let mount = Mount::simple();
        let path = mount.join("f");
        let file = if direct {
            open_direct(&path)
        } else {
            open(&path)
        };
        fs::remove_file(&path).unwrap();
        let aio = Aio::new().unwrap();
        let mut data = Aligned::new(16_384, 0);
        data.copy_from_slice(&noise(1, 16_384));
        assert_eq!(aio.write(&file, &data, 4096).unwrap(), 16_384);
        aio.fsync(&file).unwrap();
        let mut back = Aligned::new(16_384, 0xff);
        assert_eq!(aio.read(&file, &mut back, 4096).unwrap(), 16_384);
        assert!(back[..] == data[..]);
        assert_eq!(aio.read(&file, &mut back, 0).unwrap(), 16_384);
        assert!(back[..4096].iter().all(|&byte| byte == 0) && back[4096..] == data[..12_288]);
    }
}

#[test]
fn msync_of_an_unlinked_file() {
    let mount = Mount::simple();
    let path = mount.join("f");
    let file = open(&path);
    file.write_all_at(&noise(1, 20_000), 0).unwrap();
    let map = Map::new(&file, 20_000, true).unwrap();
    fs::remove_file(&path).unwrap();
    map.put(10_000, b"mapped");
    map.sync().unwrap();
    let mut got = [0; 6];
    file.read_exact_at(&mut got, 10_000).unwrap();
    assert_eq!(&got, b"mapped");
    // The mapping is now all that holds the file.
    drop(file);
    map.put(15_000, b"alone");
    map.sync().unwrap();
    assert_eq!(map.get(15_000, 5), b"alone");
}

#[test]
fn the_size_of_an_open_file_is_right_at_every_moment() {
    let mut mount = Mount::simple();
    let path = mount.join("f");
    let (writer, reader) = (open(&path), open(&path));
    let mut rng = Rng::from_env();
    let mut size = 0;
    for step in 0..400 {
        match rng.below(4) {
            0 => {
                size = rng.below(300_000);
                writer.set_len(size).unwrap();
            }
            1 => {
                let (at, len) = (rng.below(300_000), 1 + rng.below(10_000));
                writer
                    .write_all_at(&vec![1; usize::try_from(len).unwrap()], at)
                    .unwrap();
                size = size.max(at + len);
            }
            2 => writer.sync_all().unwrap(),
            _ => drop(fs::read(&path).unwrap()),
        }
        assert_eq!(
            writer.metadata().unwrap().size(),
            size,
            "the writer's, step {step}"
        );
        assert_eq!(
            reader.metadata().unwrap().size(),
            size,
            "the reader's, step {step}"
        );
        assert_eq!(
            fs::metadata(&path).unwrap().size(),
            size,
            "by path, step {step}"
        );
    }
    drop((writer, reader));
    mount.remount();
    assert_eq!(fs::metadata(&path).unwrap().size(), size);
}

#[test]
fn direct_cached_and_mapped_access_agree() {
    let mut mount = Mount::simple();
    let path = mount.join("f");
    const LEN: usize = 256 * 1024;
    let (cached, direct) = (open(&path), open_direct(&path));
    let mut model = noise(1, LEN);
    cached.write_all_at(&model, 0).unwrap();
    let map = Map::new(&cached, LEN, true).unwrap();
    let mut rng = Rng::from_env();
    for step in 0..300 {
        let at = usize::try_from(rng.below(60)).unwrap() * 4096;
        let fill = u8::try_from(step % 251).unwrap();
        match rng.below(6) {
            0 => {
                let bytes = Aligned::new(8192, fill);
                assert_eq!(direct.write_at(&bytes, at as u64).unwrap(), 8192);
                model[at..at + 8192].fill(fill);
            }
            1 => {
                cached.write_all_at(&[fill; 100], at as u64 + 77).unwrap();
                model[at + 77..at + 177].fill(fill);
            }
            2 => {
                map.put(at + 4000, &[fill; 200]);
                // A mapping's store is seen by O_DIRECT once it was synced.
                map.sync().unwrap();
                model[at + 4000..at + 4200].fill(fill);
            }
            3 => {
                let mut back = Aligned::new(8192, 0);
                assert_eq!(direct.read_at(&mut back, at as u64).unwrap(), 8192);
                assert!(back[..] == model[at..at + 8192], "direct, step {step}");
            }
            4 => {
                let mut back = [0; 5000];
                cached.read_exact_at(&mut back, at as u64).unwrap();
                assert!(back[..] == model[at..at + 5000], "cached, step {step}");
            }
            _ => assert!(
                map.get(at, 5000) == model[at..at + 5000],
                "mapped, step {step}"
            ),
        }
    }
    drop((map, cached, direct));
    mount.remount();
    assert!(fs::read(&path).unwrap() == model);
}

/// Requests of the size that the kernel reads ahead pass the host's page cache by; what
/// else is done to the file goes through it.
#[test]
fn long_reads_among_other_changes() {
    const LEN: u64 = 10 << 20;
    let mut mount = Mount::simple();
    let path = mount.join("f");
    let mut model = vec![0; 2 * LEN as usize];
    let mut rng = Rng::from_env();
    for round in 0..3 {
        let (cached, direct) = (open(&path), open_direct(&path));
        for step in 0..150 {
            let at = rng.below(LEN);
            let end = cached.metadata().unwrap().len();
            match rng.below(8) {
                0..3 => {
                    let most = *rng.pick(&[100, 20_000, 700_000]);
                    let len = 1 + rng.below(most);
                    let bytes = rng.bytes(len as usize);
                    cached.write_all_at(&bytes, at).unwrap();
                    model[at as usize..][..bytes.len()].copy_from_slice(&bytes);
                }
                3 => {
                    cached.set_len(at).unwrap();
                    model[at as usize..].fill(0);
                }
                4 => {
                    let len = 1 + rng.below(600_000);
                    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
                    fallocate(&cached, flags, at, len).unwrap();
                    model[at as usize..][..len as usize].fill(0);
                }
                5 => cached.sync_all().unwrap(),
                _ => {
                    let at = at / 4096 * 4096;
                    let mut back = Aligned::new((1 + rng.below(256) as usize) * 4096, 1);
                    let read = direct.read_at(&mut back, at).unwrap();
                    let expected = end.saturating_sub(at).min(back.len() as u64);
                    assert_eq!(read as u64, expected, "round {round}, step {step}");
                    assert!(
                        back[..read] == model[at as usize..][..read],
                        "round {round}, step {step}: {read} bytes at {at}"
                    );
                }
            }
        }
        let end = cached.metadata().unwrap().len() as usize;
        drop((cached, direct));
        mount.remount();
        assert!(fs::read(&path).unwrap() == model[..end], "round {round}");
    }
}

#[test]
fn direct_writes_of_odd_lengths_by_a_cached_neighbour() {
    // A cached handle leaves a partial block; a direct one extends past it.
    let mut mount = Mount::simple();
    let path = mount.join("f");
    let (cached, direct) = (open(&path), open_direct(&path));
    cached.write_all_at(&[1; 1000], 0).unwrap();
    assert_eq!(direct.write_at(&Aligned::new(4096, 2), 8192).unwrap(), 4096);
    cached.write_all_at(&[3; 10], 12_288).unwrap();
    assert_eq!(direct.write_at(&Aligned::new(4096, 4), 0).unwrap(), 4096);
    cached.sync_all().unwrap();
    drop((cached, direct));
    mount.remount();
    let mut model = vec![4; 4096];
    model.resize(8192, 0);
    model.resize(12_288, 2);
    model.resize(12_298, 3);
    assert!(fs::read(&path).unwrap() == model);
}

#[test]
fn a_blocked_flock_is_interrupted_by_a_signal() {
    const SIGNAL: i32 = libc::SIGUSR1;
    let mount = Mount::simple();
    let path = mount.join("f");
    let holder = open(&path);
    flock(&holder, FlockOperation::LockExclusive).unwrap();
    sys::make_interrupting(SIGNAL);
    let (sender, receiver) = std::sync::mpsc::channel();
    let (result, ended) = std::sync::mpsc::channel();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let waiter = open(&path);
            sender.send(sys::thread_id()).unwrap();
            result
                .send(flock(&waiter, FlockOperation::LockExclusive))
                .unwrap();
        });
        let waiter = receiver.recv().unwrap();
        assert!(
            ended.recv_timeout(Duration::from_millis(300)).is_err(),
            "must wait"
        );
        sys::signal_thread(waiter, SIGNAL);
        let outcome = ended.recv_timeout(Duration::from_secs(20));
        // Whatever came of it, let the waiter go.
        flock(&holder, FlockOperation::Unlock).unwrap();
        let outcome = outcome.expect("the signal must end the wait");
        assert_eq!(errno(outcome), libc::EINTR);
    });
    // The mount still locks.
    let other = open(&mount.join("f"));
    flock(&other, FlockOperation::NonBlockingLockExclusive).unwrap();
}

#[test]
fn a_blocked_record_lock_is_interrupted_by_a_signal() {
    let mount = Mount::simple();
    let path = mount.join("f");
    let file = open(&path);
    sys::record_lock(&file, libc::F_SETLK, libc::F_WRLCK, 0, 0).unwrap();
    let ended = sys::in_child(|| {
        // SIGALRM's handler does nothing but interrupt.
        sys::make_interrupting(libc::SIGALRM);
        sys::alarm(1);
        let file = open(&path);
        match sys::record_lock(&file, libc::F_SETLKW, libc::F_WRLCK, 0, 0) {
            Ok(_) => 1,
            Err(error) => error.raw_os_error().unwrap(),
        }
    });
    assert_eq!(ended, sys::Ended::Exit(libc::EINTR));
}

#[test]
fn a_hundred_gigabyte_sparse_file_costs_what_its_data_costs() {
    let mut mount = Mount::simple();
    let path = mount.join("f");
    const GB: u64 = 1_000_000_000;
    let file = open(&path);
    file.set_len(100 * GB).unwrap();
    for i in 0..10 {
        file.write_all_at(&noise(i, 10_000), i * 11 * GB + 12_345)
            .unwrap();
    }
    file.sync_all().unwrap();
    drop(file);
    mount.remount();
    let metadata = fs::metadata(&path).unwrap();
    assert_eq!(metadata.size(), 100 * GB);
    assert!(
        metadata.blocks() * 512 < 1_000_000,
        "{} bytes used",
        metadata.blocks() * 512
    );
    let file = open(&path);
    for i in 0..10 {
        let mut got = vec![0xff; 10_002];
        file.read_exact_at(&mut got, i * 11 * GB + 12_344).unwrap();
        assert!(
            got[0] == 0 && got[10_001] == 0 && got[1..10_001] == noise(i, 10_000),
            "{i}"
        );
    }
    let mut last = [1; 10];
    assert_eq!(file.read_at(&mut last, 100 * GB - 4).unwrap(), 4);
    // Every piece of data is found, and only they, without reading 100 GB.
    let mut at = 0;
    let mut pieces = 0;
    while let Ok(data) = rustix::fs::seek(&file, rustix::fs::SeekFrom::Data(at)) {
        let hole = rustix::fs::seek(&file, rustix::fs::SeekFrom::Hole(data)).unwrap();
        let piece = pieces * 11 * GB + 12_345;
        assert!(
            data <= piece && hole >= piece + 10_000 && hole - data < 100_000,
            "{data}..{hole}"
        );
        (at, pieces) = (hole, pieces + 1);
    }
    assert_eq!(pieces, 10);
    file.set_len(0).unwrap();
    assert_eq!(file.metadata().unwrap().blocks(), 0);
}
