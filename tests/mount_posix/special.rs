//! FIFOs, sockets, devices.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};

use rustix::fs::{CWD, FileType, makedev, mknodat};

use crate::common::{Mount, PATIENCE, eventually, is_root, skip, sys};
use crate::errno;

#[test]
fn mknod_makes_every_kind() {
    if !is_root() {
        return skip("needs root");
    }
    let mut mount = Mount::simple();
    let null = makedev(1, 3);
    let kinds = [
        ("file", FileType::RegularFile, 0),
        ("fifo", FileType::Fifo, 0),
        ("socket", FileType::Socket, 0),
        ("char", FileType::CharacterDevice, null),
        ("block", FileType::BlockDevice, makedev(250, 0xfff)),
        ("large", FileType::CharacterDevice, makedev(0xfff, 0xf_ffff)),
    ];
    for (name, kind, device) in kinds {
        sys::with_umask(0, || {
            mknodat(CWD, mount.join(name), kind, 0o640.into(), device)
        })
        .unwrap();
    }
    mount.remount();
    for (name, kind, device) in kinds {
        let metadata = fs::symlink_metadata(mount.join(name)).unwrap();
        assert_eq!(FileType::from_raw_mode(metadata.mode()), kind, "{name}");
        assert_eq!(metadata.mode() & 0o7777, 0o640, "{name}");
        assert_eq!(metadata.rdev(), device, "{name}");
        assert_eq!(
            errno(mknodat(CWD, mount.join(name), kind, 0o640.into(), device)),
            libc::EEXIST
        );
    }
    let mut device = OpenOptions::new()
        .read(true)
        .write(true)
        .open(mount.join("char"))
        .unwrap();
    device.write_all(b"into the void").unwrap();
    assert_eq!(device.read(&mut [0; 4]).unwrap(), 0);
    for (name, ..) in kinds {
        fs::remove_file(mount.join(name)).unwrap();
    }
}

#[test]
fn devices_are_roots_to_make() {
    if !is_root() {
        return skip("needs root");
    }
    let mount = Mount::simple();
    fs::set_permissions(
        mount.path(),
        std::os::unix::fs::PermissionsExt::from_mode(0o777),
    )
    .unwrap();
    sys::as_user(1001, 1001, &[], || {
        let made = mknodat(
            CWD,
            mount.join("null"),
            FileType::CharacterDevice,
            0o600.into(),
            makedev(1, 3),
        );
        assert_eq!(errno(made), libc::EPERM);
        mknodat(CWD, mount.join("fifo"), FileType::Fifo, 0o600.into(), 0).unwrap();
        assert_eq!(
            fs::symlink_metadata(mount.join("fifo")).unwrap().uid(),
            1001
        );
    });
}

#[test]
fn a_fifo_carries_data() {
    let mount = Mount::simple();
    let path = mount.join("fifo");
    mknodat(CWD, &path, FileType::Fifo, 0o600.into(), 0).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            OpenOptions::new()
                .write(true)
                .open(&path)
                .unwrap()
                .write_all(b"hello")
                .unwrap()
        });
        let mut text = String::new();
        File::open(&path)
            .unwrap()
            .read_to_string(&mut text)
            .unwrap();
        assert_eq!(text, "hello");
    });
    assert_eq!(fs::metadata(&path).unwrap().len(), 0);
}

#[test]
fn a_socket_accepts_connections() {
    let mount = Mount::simple();
    let path = mount.join("socket");
    let listener = UnixListener::bind(&path).unwrap();
    assert!(fs::metadata(&path).unwrap().file_type().is_socket());
    std::thread::scope(|scope| {
        scope.spawn(|| {
            UnixStream::connect(&path)
                .unwrap()
                .write_all(b"hello")
                .unwrap()
        });
        let mut text = String::new();
        listener
            .accept()
            .unwrap()
            .0
            .read_to_string(&mut text)
            .unwrap();
        assert_eq!(text, "hello");
    });
    drop(listener);
    // Children that other tests have forked meanwhile hold it until they end.
    let refused = eventually(PATIENCE, || {
        let refused = UnixStream::connect(&path).err();
        refused.is_some_and(|error| error.raw_os_error() == Some(libc::ECONNREFUSED))
    });
    assert!(refused, "somebody still listens");
}

#[test]
fn special_files_can_be_linked_renamed_and_changed() {
    let mut mount = Mount::simple();
    let path = mount.join("fifo");
    mknodat(CWD, &path, FileType::Fifo, 0o600.into(), 0).unwrap();
    fs::hard_link(&path, mount.join("second")).unwrap();
    fs::rename(&path, mount.join("third")).unwrap();
    fs::set_permissions(
        mount.join("third"),
        std::os::unix::fs::PermissionsExt::from_mode(0o604),
    )
    .unwrap();
    mount.remount();
    let metadata = fs::metadata(mount.join("second")).unwrap();
    assert!(metadata.file_type().is_fifo());
    assert_eq!((metadata.nlink(), metadata.mode() & 0o777), (2, 0o604));
}

#[test]
fn programs_can_run_from_it() {
    let mut mount = Mount::simple();
    let path = mount.join("true");
    fs::copy("/bin/true", &path).unwrap();
    fs::write(mount.join("script"), "#!/bin/sh\nexit 7\n").unwrap();
    fs::set_permissions(
        mount.join("script"),
        std::os::unix::fs::PermissionsExt::from_mode(0o755),
    )
    .unwrap();
    mount.remount();
    assert!(
        std::process::Command::new(mount.join("true"))
            .status()
            .unwrap()
            .success()
    );
    let status = std::process::Command::new(mount.join("script"))
        .status()
        .unwrap();
    assert_eq!(status.code(), Some(7));
}
