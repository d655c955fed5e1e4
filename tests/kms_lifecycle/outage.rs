//! The key service does not answer.

use std::fs::File;

use crate::common::write_synced;
use crate::kms_servers::alibaba::Server;
use crate::*;

#[test]
fn open_files_fail_after_their_time_and_recover_by_themselves() {
    needs_mounts!();
    let server = Server::start();
    let mount = kms_mount(&server, &[]);
    let path = mount.join("f");
    write_synced(&path, &block(0));
    let file = open_both(&path).unwrap();
    silence(&server, true);
    // Accepted by the kernel, and nothing says that it is on the disk.
    for index in 1..200 {
        write_block(&file, index).unwrap();
    }
    let began = Instant::now();
    let failed = until_it_fails(NOTICED, || read_block(&file, 0));
    assert_eq!(failed, libc::ETIMEDOUT);
    assert!(
        began.elapsed() > Duration::from_secs(1),
        "sooner than its time"
    );
    assert_eq!(errno(write_block(&file, 1)), libc::ETIMEDOUT);
    assert_eq!(errno(File::open(&path)), libc::ETIMEDOUT);
    silence(&server, false);
    until_it_works(Duration::from_secs(4), || read_block(&file, 0));
    for index in 1..200 {
        read_block(&file, index).unwrap();
    }
    write_block(&file, 200).unwrap();
    file.sync_all().unwrap();
    // It was written, not remembered.
    let mut mount = mount;
    drop(file);
    mount.remount();
    let file = File::open(&path).unwrap();
    for index in 0..=200 {
        read_block(&file, index).unwrap();
    }
}

#[test]
fn with_a_grace_open_files_go_on() {
    needs_mounts!();
    let server = Server::start();
    let mount = kms_mount(&server, &["--outage-grace", "60"]);
    let path = mount.join("f");
    write_synced(&path, &block(0));
    let file = open_both(&path).unwrap();
    silence(&server, true);
    let end = Instant::now() + Duration::from_secs(3 * TTL);
    while Instant::now() < end {
        read_block(&file, 0).unwrap();
        write_block(&file, 1).unwrap();
        std::thread::sleep(Duration::from_millis(50));
    }
    // A new open is no use of an open file.
    assert_eq!(errno(File::create(mount.join("new"))), libc::ETIMEDOUT);
    silence(&server, false);
    until_it_works(Duration::from_secs(4), || {
        File::create(mount.join("new")).map(drop)
    });
}
