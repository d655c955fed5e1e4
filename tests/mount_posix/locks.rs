//! flock and fcntl locks, between handles and between processes.

use std::fs::{File, OpenOptions};

use libc::{F_GETLK, F_OFD_SETLK, F_RDLCK, F_SETLK, F_SETLKW, F_UNLCK, F_WRLCK};
use rustix::fs::{FlockOperation, flock};

use crate::common::sys::{Ended, in_child, record_lock};
use crate::common::{Mount, PATIENCE, eventually};
use crate::errno;

fn open(mount: &Mount) -> File {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(mount.join("f"))
        .unwrap()
}

#[test]
fn flock_between_handles() {
    let mount = Mount::simple();
    let (one, two) = (open(&mount), open(&mount));
    flock(&one, FlockOperation::LockShared).unwrap();
    flock(&two, FlockOperation::LockShared).unwrap();
    assert_eq!(
        errno(flock(&two, FlockOperation::NonBlockingLockExclusive)),
        libc::EWOULDBLOCK
    );
    flock(&one, FlockOperation::Unlock).unwrap();
    flock(&two, FlockOperation::NonBlockingLockExclusive).unwrap();
    assert_eq!(
        errno(flock(&one, FlockOperation::NonBlockingLockShared)),
        libc::EWOULDBLOCK
    );
    drop(two);
    flock(&one, FlockOperation::NonBlockingLockExclusive).unwrap();
}

#[test]
fn flock_belongs_to_the_open_file_and_blocks() {
    let mount = Mount::simple();
    let one = open(&mount);
    let copy = one.try_clone().unwrap();
    flock(&one, FlockOperation::LockExclusive).unwrap();
    drop(one);
    let two = open(&mount);
    assert_eq!(
        errno(flock(&two, FlockOperation::NonBlockingLockShared)),
        libc::EWOULDBLOCK
    );
    let (sender, receiver) = std::sync::mpsc::channel();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            flock(&two, FlockOperation::LockShared).unwrap();
            sender.send(()).unwrap();
        });
        assert!(
            receiver
                .recv_timeout(std::time::Duration::from_millis(200))
                .is_err(),
            "did not block"
        );
        flock(&copy, FlockOperation::Unlock).unwrap();
        receiver
            .recv_timeout(std::time::Duration::from_secs(20))
            .expect("woken by the unlock");
    });
}

#[test]
fn record_locks_between_processes() {
    let mount = Mount::simple();
    let file = open(&mount);
    record_lock(&file, F_SETLK, F_WRLCK, 10, 10).unwrap();
    record_lock(&file, F_SETLK, F_RDLCK, 100, 0).unwrap();
    let path = mount.join("f");
    let taken = |kind, start, len| {
        in_child(|| {
            let file = OpenOptions::new()
                .read(true)
                .write(true)
                .open(&path)
                .unwrap();
            match record_lock(&file, F_SETLK, kind, start, len) {
                Ok(_) => 0,
                Err(error) => error.raw_os_error().unwrap(),
            }
        })
    };
    let busy = |ended| {
        [libc::EAGAIN, libc::EACCES]
            .map(Ended::Exit)
            .contains(&ended)
    };
    assert_eq!(taken(F_WRLCK, 0, 10), Ended::Exit(0));
    assert!(busy(taken(F_WRLCK, 0, 11)));
    assert!(busy(taken(F_RDLCK, 19, 1)));
    assert_eq!(taken(F_WRLCK, 20, 80), Ended::Exit(0));
    assert_eq!(taken(F_RDLCK, 1 << 40, 5), Ended::Exit(0));
    assert!(busy(taken(F_WRLCK, 1 << 40, 5)));
    let parent = std::process::id().cast_signed();
    let owner = in_child(|| {
        let file = File::open(&path).unwrap();
        let found = record_lock(&file, F_GETLK, F_RDLCK, 0, 0).unwrap();
        i32::from(found.l_pid != parent || found.l_start != 10 || found.l_len != 10)
    });
    assert_eq!(
        owner,
        Ended::Exit(0),
        "F_GETLK names the owner and the range"
    );
    record_lock(&file, F_SETLK, F_UNLCK, 0, 0).unwrap();
    assert_eq!(taken(F_WRLCK, 0, 0), Ended::Exit(0));
}

#[test]
fn closing_any_handle_drops_the_processs_record_locks() {
    let mount = Mount::simple();
    let (file, other) = (open(&mount), open(&mount));
    record_lock(&file, F_SETLK, F_WRLCK, 0, 0).unwrap();
    drop(other);
    let path = mount.join("f");
    let ended = in_child(|| {
        let file = OpenOptions::new().write(true).open(&path).unwrap();
        i32::from(record_lock(&file, F_SETLK, F_WRLCK, 0, 0).is_err())
    });
    assert_eq!(ended, Ended::Exit(0));
}

#[test]
fn open_file_description_locks() {
    let mount = Mount::simple();
    let (one, two) = (open(&mount), open(&mount));
    record_lock(&one, F_OFD_SETLK, F_WRLCK, 0, 100).unwrap();
    assert_eq!(
        errno(record_lock(&two, F_OFD_SETLK, F_RDLCK, 50, 1).map(drop)),
        libc::EAGAIN
    );
    record_lock(&two, F_OFD_SETLK, F_WRLCK, 100, 1).unwrap();
    drop(one);
    // A process that another test is just starting may have a copy for a moment.
    let locked = || record_lock(&two, F_OFD_SETLK, F_WRLCK, 0, 100).is_ok();
    assert!(eventually(PATIENCE, locked));
}

#[test]
fn two_processes_count_under_a_lock() {
    use std::os::unix::fs::FileExt;
    let mount = Mount::simple();
    let path = mount.join("f");
    open(&mount).write_all_at(&0_u64.to_le_bytes(), 0).unwrap();
    let count = || {
        for _ in 0..200 {
            let file = OpenOptions::new()
                .read(true)
                .write(true)
                .open(&path)
                .unwrap();
            record_lock(&file, F_SETLKW, F_WRLCK, 0, 8).unwrap();
            let mut bytes = [0; 8];
            file.read_exact_at(&mut bytes, 0).unwrap();
            file.write_all_at(&(u64::from_le_bytes(bytes) + 1).to_le_bytes(), 0)
                .unwrap();
        }
    };
    std::thread::scope(|scope| {
        let child = scope.spawn(|| {
            in_child(|| {
                count();
                0
            })
        });
        count();
        assert_eq!(child.join().unwrap(), Ended::Exit(0));
    });
    let bytes: [u8; 8] = std::fs::read(&path).unwrap().try_into().unwrap();
    assert_eq!(u64::from_le_bytes(bytes), 400);
}

#[test]
fn locks_need_the_right_access_mode() {
    let mount = Mount::simple();
    drop(open(&mount));
    let read_only = File::open(mount.join("f")).unwrap();
    assert_eq!(
        errno(record_lock(&read_only, F_SETLK, F_WRLCK, 0, 1).map(drop)),
        libc::EBADF
    );
    flock(&read_only, FlockOperation::NonBlockingLockExclusive).unwrap();
}
