//! A key is disabled, or access to it denied, while programs use it.

use std::fs::{self, File};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::common::{Mount, said, sys, write_synced};
use crate::kms_servers::alibaba::{Server, State};
use crate::*;

/// How a program ends that looks at a mapped file.
fn look(map: &sys::Map) -> sys::Ended {
    sys::in_child(|| i32::from(map.get(8, 1)[0] != block(0)[8]))
}

fn a_revoked_key_stops_everyone(
    mount: &Mount,
    errno_wanted: i32,
    revoke: impl Fn(),
    restore: impl Fn(),
) {
    let path = mount.join("f");
    let flushed: Vec<u8> = (0..64).flat_map(block).collect();
    write_synced(&path, &flushed);
    let (reader, writer) = (File::open(&path).unwrap(), open_both(&path).unwrap());
    let map = sys::Map::new(&reader, BLOCK, false).unwrap();
    for index in 0..64 {
        read_block(&reader, index).unwrap();
    }
    assert_eq!(look(&map), sys::Ended::Exit(0));
    let written = AtomicU64::new(64);
    std::thread::scope(|scope| {
        let reading = scope.spawn(|| {
            let mut index = 0;
            until_it_fails(NOTICED, || {
                index = (index + 1) % 64;
                read_block(&reader, index)
            })
        });
        let writing = scope.spawn(|| {
            until_it_fails(NOTICED, || {
                write_block(&writer, written.load(Ordering::SeqCst))?;
                written.fetch_add(1, Ordering::SeqCst);
                Ok(())
            })
        });
        revoke();
        assert_eq!(reading.join().unwrap(), errno_wanted, "the reader's");
        assert_eq!(writing.join().unwrap(), errno_wanted, "the writer's");
    });
    // It stays so: cached pages do not come back, and no handle is better.
    for index in 0..64 {
        assert_eq!(errno(read_block(&reader, index)), errno_wanted);
        assert_eq!(errno(write_block(&writer, index)), errno_wanted);
    }
    assert_eq!(
        look(&map),
        sys::Ended::Signal(libc::SIGBUS),
        "mapped pages are left"
    );
    assert_eq!(errno(File::open(&path)), errno_wanted);
    // What needs no key goes on.
    assert_eq!(
        fs::metadata(&path).unwrap().len(),
        written.load(Ordering::SeqCst) * 4096
    );
    assert_eq!(fs::read_dir(mount.path()).unwrap().count(), 1);
    restore();
    until_it_works(NOTICED, || read_block(&reader, 0));
    // Every write that a program was told of is there, flushed or not.
    let written = written.load(Ordering::SeqCst);
    assert!(written > 64);
    for index in 0..written {
        read_block(&reader, index).unwrap();
    }
    until_it_works(NOTICED, || write_block(&writer, written));
    writer.sync_all().unwrap();
    read_block(&File::open(&path).unwrap(), written).unwrap();
}

#[test]
fn a_key_disabled_at_the_kms() {
    needs_mounts!();
    let server = Server::start();
    let mut mount = kms_mount(&server, &[]);
    a_revoked_key_stops_everyone(
        &mount,
        libc::EKEYREVOKED,
        || server.change(|key| key.state = State::Disabled),
        || server.change(|key| key.state = State::Enabled),
    );
    mount.remount();
    read_block(&File::open(mount.join("f")).unwrap(), 64).unwrap();
}

#[test]
fn access_denied_at_the_kms() {
    needs_mounts!();
    let server = Server::start();
    let mount = kms_mount(&server, &["--outage-grace", "600"]);
    a_revoked_key_stops_everyone(
        &mount,
        libc::EACCES,
        || server.change(|key| key.denied = true),
        || server.change(|key| key.denied = false),
    );
}

#[test]
fn a_local_key_disabled() {
    needs_mounts!();
    let mount = local_mount(&[]);
    let key = |command| {
        let output = mount.volume().run(&["key", command, "default"]);
        assert!(output.status.success(), "{}", said(&output));
    };
    a_revoked_key_stops_everyone(
        &mount,
        libc::EKEYREVOKED,
        || key("disable"),
        || key("enable"),
    );
}

/// Renewing goes unnoticed.
#[test]
fn a_healthy_key_is_renewed_while_files_are_open() {
    needs_mounts!();
    let server = Server::start();
    let mount = kms_mount(&server, &[]);
    let path = mount.join("f");
    write_synced(&path, &block(0));
    let file = open_both(&path).unwrap();
    let calls = server.calls();
    let end = Instant::now() + Duration::from_secs(3 * TTL);
    while Instant::now() < end {
        read_block(&file, 0).unwrap();
        write_block(&file, 1).unwrap();
        std::thread::sleep(Duration::from_millis(20));
    }
    let renewals = server.calls() - calls;
    assert!((2..=8).contains(&renewals), "{renewals} calls");
    assert!(!mount.log().contains("taken away"), "{}", mount.log());
}
