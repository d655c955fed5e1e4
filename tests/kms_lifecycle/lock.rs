//! `kmsfs lock`, `unlock` and `keys drop`.

use std::fs::{self, File};

use crate::common::{said, write_synced};
use crate::kms_servers::alibaba::{Server, State};
use crate::*;

fn lock_and_unlock(mount: &Mount) {
    let path = mount.join("f");
    write_synced(&path, &block(0));
    write_synced(&mount.join("closed"), &block(0));
    let file = open_both(&path).unwrap();
    let empty = File::create(mount.join("empty")).unwrap();
    for index in 1..300 {
        write_block(&file, index).unwrap();
    }
    write_block(&empty, 0).unwrap();
    kmsfs_ok(mount, &["lock"]);
    assert_eq!(status(mount)["locked"], true);
    assert_eq!(status(mount)["cache"]["entries"], 0);
    assert_eq!(status(mount)["open_files"]["with_key"], 0);
    for index in 0..300 {
        assert_eq!(errno(read_block(&file, index)), libc::ENOKEY);
    }
    assert_eq!(errno(write_block(&file, 0)), libc::ENOKEY);
    assert_eq!(errno(write_block(&empty, 0)), libc::ENOKEY);
    assert_eq!(errno(File::open(&path)), libc::ENOKEY);
    assert_eq!(errno(File::open(mount.join("closed"))), libc::ENOKEY);
    assert_eq!(errno(File::create(mount.join("new"))), libc::ENOKEY);
    assert_eq!(errno(file.set_len(5)), libc::ENOKEY);
    // Names and all else that needs no data key.
    assert_eq!(fs::read_dir(mount.path()).unwrap().count(), 3);
    assert_eq!(fs::metadata(&path).unwrap().len(), 300 * 4096);
    fs::rename(mount.join("closed"), mount.join("renamed")).unwrap();
    fs::create_dir(mount.join("d")).unwrap();
    // Locking twice is locking.
    kmsfs_ok(mount, &["lock"]);
    kmsfs_ok(mount, &["unlock"]);
    assert_eq!(status(mount)["locked"], false);
    for index in 0..300 {
        read_block(&file, index).unwrap();
    }
    write_block(&file, 300).unwrap();
    file.sync_all().unwrap();
    read_block(&File::open(mount.join("empty")).unwrap(), 0).unwrap();
    read_block(&File::open(mount.join("renamed")).unwrap(), 0).unwrap();
}

#[test]
fn nothing_is_lost_with_a_kms() {
    needs_mounts!();
    let server = Server::start();
    let mut mount = kms_mount(&server, &[]);
    lock_and_unlock(&mount);
    mount.remount();
    read_block(&File::open(mount.join("f")).unwrap(), 300).unwrap();
}

#[test]
fn nothing_is_lost_with_a_local_key() {
    needs_mounts!();
    let mut mount = local_mount(&[]);
    lock_and_unlock(&mount);
    mount.remount();
    read_block(&File::open(mount.join("f")).unwrap(), 300).unwrap();
}

#[test]
fn a_mount_stays_locked_without_its_key() {
    needs_mounts!();
    let server = Server::start();
    let mount = kms_mount(&server, &[]);
    let path = mount.join("f");
    write_synced(&path, &block(0));
    kmsfs_ok(&mount, &["lock"]);
    server.change(|key| key.state = State::Disabled);
    let output = kmsfs(&mount, &["unlock"]);
    assert_eq!(output.status.code(), Some(21), "{}", said(&output));
    assert_eq!(errno(File::open(&path)), libc::ENOKEY);
    server.change(|key| key.state = State::Enabled);
    kmsfs_ok(&mount, &["unlock"]);
    read_block(&File::open(&path).unwrap(), 0).unwrap();
}

#[test]
fn dropped_keys_are_asked_for_again() {
    needs_mounts!();
    let server = Server::start();
    let mount = kms_mount(&server, &["--key-ttl", "600"]);
    let path = mount.join("f");
    write_synced(&path, &block(0));
    let file = open_both(&path).unwrap();
    write_block(&file, 1).unwrap();
    let calls = server.calls();
    read_block(&file, 0).unwrap();
    assert_eq!(server.calls(), calls);
    kmsfs_ok(&mount, &["keys", "drop"]);
    assert_eq!(server.calls(), calls);
    read_block(&file, 0).unwrap();
    read_block(&file, 1).unwrap();
    assert_eq!(server.calls(), calls + 1);
}

/// Who uses a file all the time does not get its key back from the memory that is
/// about to be cleared.
#[test]
fn dropping_keys_reaches_files_in_use() {
    needs_mounts!();
    let server = Server::start();
    let mount = kms_mount(&server, &["--key-ttl", "600"]);
    let path = mount.join("f");
    write_synced(&path, &block(0));
    let files: Vec<_> = (0..4).map(|_| open_both(&path).unwrap()).collect();
    read_block(&files[0], 0).unwrap();
    server.change(|key| key.state = State::Disabled);
    std::thread::scope(|scope| {
        let reading = files.iter().map(|file| {
            scope.spawn(move || until_it_fails(Duration::from_secs(10), || read_block(file, 0)))
        });
        let reading: Vec<_> = reading.collect();
        std::thread::sleep(Duration::from_millis(100));
        kmsfs_ok(&mount, &["keys", "drop"]);
        for reader in reading {
            assert_eq!(reader.join().unwrap(), libc::EKEYREVOKED);
        }
    });
    assert_eq!(status(&mount)["open_files"]["with_key"], 0);
}

/// Locks and unlocks under load; what was written is there.
#[test]
fn writers_lose_nothing_while_it_is_locked_and_unlocked() {
    needs_mounts!();
    let mount = local_mount(&[]);
    let path = mount.join("f");
    let file = File::options()
        .create(true)
        .write(true)
        .read(true)
        .truncate(true)
        .open(&path);
    let file = file.unwrap();
    let stop = std::sync::atomic::AtomicBool::new(false);
    let written = std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let mut written = 0;
            while !stop.load(std::sync::atomic::Ordering::SeqCst) {
                match write_block(&file, written) {
                    Ok(()) => written += 1,
                    Err(error) => assert_eq!(error.raw_os_error(), Some(libc::ENOKEY)),
                }
            }
            written
        });
        for _ in 0..10 {
            kmsfs_ok(&mount, &["lock"]);
            kmsfs_ok(&mount, &["unlock"]);
            std::thread::sleep(Duration::from_millis(30));
        }
        stop.store(true, std::sync::atomic::Ordering::SeqCst);
        writer.join().unwrap()
    });
    file.sync_all().unwrap();
    kmsfs_ok(&mount, &["keys", "drop"]);
    for index in 0..written {
        read_block(&file, index).unwrap();
    }
}
