//! Several users on one mount: owners, groups, set-id bits, odd modes.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, chown, symlink};
use std::path::Path;

use rustix::fs::{CWD, FallocateFlags, FileType, fallocate, mkdirat, mknodat};

use crate::common::sys::{self, as_user};
use crate::common::{Mount, is_root, skip};
use crate::errno;

/// A mount whose root everyone may write to; `None` where others can't be.
fn shared() -> Option<Mount> {
    if !is_root() {
        skip("needs root");
        return None;
    }
    let mount = Mount::simple();
    set_mode(mount.path(), 0o777);
    Some(mount)
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap().mode() & 0o7777
}

fn owner(path: &Path) -> (u32, u32) {
    let metadata = fs::symlink_metadata(path).unwrap();
    (metadata.uid(), metadata.gid())
}

/// Has `act` clear the set-id bits of a file that everyone may write, as another
/// user; and then as root, who clears nothing.
fn clears_set_id_bits(what: &str, act: impl Fn(&Path) + Sync) {
    let Some(mount) = shared() else { return };
    for (before, after) in [
        (0o6777, 0o777),
        (0o4777, 0o777),
        (0o2777, 0o777),
        (0o4766, 0o766),
        // Not executable for the group, which whoever changes it is not in.
        (0o2766, 0o766),
    ] {
        // Twice: the second time the kernel may already believe that there is
        // nothing to clear.
        for round in 0..2 {
            let path = mount.join("f");
            let _ = fs::remove_file(&path);
            fs::write(&path, vec![1; 10_000]).unwrap();
            chown(&path, Some(1001), Some(1001)).unwrap();
            set_mode(&path, 0o666);
            as_user(1002, 1002, &[], || act(&path));
            set_mode(&path, before);
            if round == 1 {
                act(&path);
                assert_eq!(mode(&path), before, "{what} by root keeps {before:o}");
            }
            as_user(1002, 1002, &[], || act(&path));
            assert_eq!(
                mode(&path),
                after,
                "{what} by another on {before:o}, round {round}"
            );
        }
    }
}

#[test]
fn another_users_write_clears_set_id_bits() {
    clears_set_id_bits("a write", |path| {
        OpenOptions::new()
            .write(true)
            .open(path)
            .unwrap()
            .write_all_at(b"x", 5)
            .unwrap();
    });
}

#[test]
fn another_users_truncate_clears_set_id_bits() {
    clears_set_id_bits("truncate", |path| {
        OpenOptions::new()
            .write(true)
            .open(path)
            .unwrap()
            .set_len(5000)
            .unwrap();
    });
}

#[test]
fn another_users_o_trunc_clears_set_id_bits() {
    clears_set_id_bits("O_TRUNC", |path| {
        OpenOptions::new()
            .write(true)
            .truncate(true)
            .open(path)
            .unwrap();
    });
}

#[test]
fn another_users_fallocate_clears_set_id_bits() {
    clears_set_id_bits("fallocate", |path| {
        let file = OpenOptions::new().write(true).open(path).unwrap();
        fallocate(&file, FallocateFlags::empty(), 0, 20_000).unwrap();
    });
}

#[test]
fn another_users_copy_file_range_clears_set_id_bits() {
    clears_set_id_bits("copy_file_range", |path| {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(path)
            .unwrap();
        let copied = rustix::fs::copy_file_range(&file, Some(&mut 0), &file, Some(&mut 5000), 100);
        assert_eq!(copied.unwrap(), 100);
    });
}

#[test]
fn a_handle_opened_before_the_bits_were_set_clears_them_too() {
    let Some(mount) = shared() else { return };
    let path = mount.join("f");
    fs::write(&path, b"x").unwrap();
    set_mode(&path, 0o666);
    let open = || OpenOptions::new().write(true).open(&path).unwrap();
    let file = as_user(1002, 1002, &[], || {
        let file = open();
        file.write_all_at(b"y", 0).unwrap();
        file
    });
    set_mode(&path, 0o4777);
    as_user(1002, 1002, &[], || file.write_all_at(b"z", 0).unwrap());
    assert_eq!(mode(&path), 0o777);
}

#[test]
fn directories_of_every_mode_by_an_unprivileged_user() {
    let Some(mount) = shared() else { return };
    as_user(1001, 1001, &[], || {
        for bits in 0..=0o777_u32 {
            let path = mount.join(format!("d{bits:03o}"));
            mkdirat(CWD, &path, bits.into())
                .unwrap_or_else(|error| panic!("mkdir {bits:o}: {error}"));
            assert_eq!(mode(&path), bits);
            assert_eq!(owner(&path), (1001, 1001));
        }
    });
    // They are whole directories: their owner can use them once he may.
    as_user(1001, 1001, &[], || {
        for bits in [0o000, 0o100, 0o200, 0o400, 0o077, 0o555] {
            let path = mount.join(format!("d{bits:03o}"));
            set_mode(&path, 0o700);
            fs::write(path.join("f"), b"inside").unwrap();
            assert_eq!(fs::read(path.join("f")).unwrap(), b"inside");
            fs::remove_file(path.join("f")).unwrap();
        }
        for bits in 0..=0o777_u32 {
            fs::remove_dir(mount.join(format!("d{bits:03o}")))
                .unwrap_or_else(|error| panic!("rmdir {bits:o}: {error}"));
        }
    });
}

#[test]
fn files_of_every_mode_by_an_unprivileged_user() {
    let Some(mut mount) = shared() else { return };
    as_user(1001, 1001, &[], || {
        for bits in 0..=0o777_u32 {
            let path = mount.join(format!("f{bits:03o}"));
            let mut options = OpenOptions::new();
            std::os::unix::fs::OpenOptionsExt::mode(options.write(true).create_new(true), bits);
            options
                .open(&path)
                .unwrap()
                .write_all_at(b"contents", 0)
                .unwrap();
            assert_eq!(mode(&path), bits);
        }
    });
    mount.remount();
    for bits in 0..=0o777_u32 {
        assert_eq!(
            fs::read(mount.join(format!("f{bits:03o}"))).unwrap(),
            b"contents"
        );
    }
}

/// Every way of making an entry, in a directory.
fn make_all(dir: &Path) -> Vec<std::path::PathBuf> {
    fs::write(dir.join("file"), b"x").unwrap();
    fs::create_dir(dir.join("dir")).unwrap();
    symlink("target", dir.join("link")).unwrap();
    mknodat(CWD, dir.join("fifo"), FileType::Fifo, 0o600.into(), 0).unwrap();
    mknodat(
        CWD,
        dir.join("node"),
        FileType::RegularFile,
        0o600.into(),
        0,
    )
    .unwrap();
    fs::write(dir.join("n".repeat(250)), b"x").unwrap();
    fs::create_dir(dir.join("m".repeat(250))).unwrap();
    symlink("t".repeat(4000), dir.join("long link")).unwrap();
    fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect()
}

#[test]
fn entries_belong_to_who_made_them() {
    let Some(mut mount) = shared() else { return };
    let users = [
        (1001, 1001, vec![]),
        (1002, 2002, vec![1001]),
        (65_534, 65_534, vec![]),
        (3_000_000_000, 3_000_000_001, vec![]),
    ];
    for (uid, gid, groups) in &users {
        let dir = mount.join(uid.to_string());
        as_user(*uid, *gid, groups, || {
            fs::create_dir(&dir).unwrap();
            for path in make_all(&dir) {
                assert_eq!(owner(&path), (*uid, *gid), "{path:?}");
            }
        });
    }
    mount.remount();
    for (uid, gid, _) in users {
        for entry in fs::read_dir(mount.join(uid.to_string())).unwrap() {
            assert_eq!(owner(&entry.unwrap().path()), (uid, gid));
        }
    }
}

#[test]
fn many_users_create_at_the_same_time() {
    let Some(mount) = shared() else { return };
    std::thread::scope(|scope| {
        for uid in 5001..5009 {
            let mount = &mount;
            scope.spawn(move || {
                as_user(uid, uid + 1000, &[], || {
                    for i in 0..100 {
                        let path = mount.join(format!("{uid}-{i}"));
                        fs::write(&path, b"x").unwrap();
                        assert_eq!(owner(&path), (uid, uid + 1000));
                    }
                });
            });
        }
    });
}

#[test]
fn a_supplementary_group_gives_access_to_a_directory() {
    let Some(mount) = shared() else { return };
    let dir = mount.join("team");
    fs::create_dir(&dir).unwrap();
    chown(&dir, Some(0), Some(3000)).unwrap();
    set_mode(&dir, 0o770);
    as_user(1001, 1001, &[42, 3000, 43], || {
        for path in make_all(&dir) {
            assert_eq!(owner(&path), (1001, 1001), "{path:?}");
        }
        fs::rename(dir.join("file"), dir.join("moved")).unwrap();
        fs::hard_link(dir.join("moved"), dir.join("linked")).unwrap();
        fs::remove_file(dir.join("moved")).unwrap();
    });
    as_user(1002, 1002, &[42], || {
        assert_eq!(errno(fs::write(dir.join("x"), b"")), libc::EACCES)
    });
}

#[test]
fn setgid_directories_hand_their_group_down() {
    let Some(mut mount) = shared() else { return };
    let dir = mount.join("team");
    fs::create_dir(&dir).unwrap();
    chown(&dir, Some(0), Some(3000)).unwrap();
    set_mode(&dir, 0o2777);
    let made = as_user(1001, 1001, &[], || make_all(&dir));
    mount.remount();
    for path in made {
        assert_eq!(owner(&path), (1001, 3000), "{path:?}");
        if path.symlink_metadata().unwrap().is_dir() {
            assert_eq!(
                mode(&path) & 0o2000,
                0o2000,
                "{path:?} hands it down in turn"
            );
        }
    }
    // Not in the group: an executable file's setgid bit does not survive.
    as_user(1001, 1001, &[], || {
        let path = dir.join("program");
        let mut options = OpenOptions::new();
        std::os::unix::fs::OpenOptionsExt::mode(options.write(true).create_new(true), 0o2775);
        options.open(&path).unwrap();
        assert_eq!(mode(&path), 0o775);
    });
    as_user(1001, 1001, &[3000], || {
        let path = dir.join("ours");
        let mut options = OpenOptions::new();
        std::os::unix::fs::OpenOptionsExt::mode(options.write(true).create_new(true), 0o2775);
        options.open(&path).unwrap();
        assert_eq!(mode(&path), 0o2775);
    });
}

#[test]
fn user_attributes_of_symlinks_are_refused_to_everyone() {
    use rustix::fs::{XattrFlags, lgetxattr, lsetxattr};
    let Some(mount) = shared() else { return };
    symlink("nowhere", mount.join("s")).unwrap();
    let path = mount.join("s");
    std::os::unix::fs::lchown(&path, Some(1001), Some(1001)).unwrap();
    let set = || lsetxattr(&path, "user.a", b"1", XattrFlags::empty());
    assert_eq!(errno(set()), libc::EPERM);
    assert_eq!(errno(as_user(1001, 1001, &[], set)), libc::EPERM);
    lsetxattr(&path, "trusted.a", b"1", XattrFlags::empty()).unwrap();
    let mut value = [0; 8];
    assert_eq!(
        lgetxattr(&path, "trusted.a", value.as_mut_slice()).unwrap(),
        1
    );
    let hidden = as_user(1001, 1001, &[], || {
        lgetxattr(&path, "trusted.a", [0; 8].as_mut_slice())
    });
    assert_eq!(errno(hidden), libc::ENODATA);
}

#[test]
fn protected_files_of_other_users_stay_theirs() {
    let Some(mount) = shared() else { return };
    as_user(1001, 1001, &[], || {
        fs::write(mount.join("f"), b"private").unwrap();
        set_mode(&mount.join("f"), 0o600);
    });
    // Root has the plaintext in the page cache now; the mode still rules.
    fs::read(mount.join("f")).unwrap();
    as_user(1002, 1002, &[], || {
        assert_eq!(errno(fs::read(mount.join("f"))), libc::EACCES);
        assert_eq!(
            errno(OpenOptions::new().write(true).open(mount.join("f"))),
            libc::EACCES
        );
        assert_eq!(errno(sys::truncate(&mount.join("f"), 0)), libc::EACCES);
    });
}

/// Of a file that its group cannot run, the sgid bit goes with a change by someone
/// outside the group alone; likewise when an ACL is set.
#[test]
fn a_member_of_the_group_keeps_the_sgid_bit() {
    let Some(mount) = shared() else { return };
    let path = mount.join("f");
    fs::write(&path, b"x").unwrap();
    chown(&path, Some(1002), Some(1001)).unwrap();
    let mut acl = 2_u32.to_le_bytes().to_vec();
    for (tag, bits, id) in [
        (1, 7, u32::MAX),
        (2, 5, 1003),
        (4, 5, u32::MAX),
        (16, 5, u32::MAX),
        (32, 5, u32::MAX),
    ] {
        acl.extend_from_slice(&[tag, 0, bits, 0]);
        acl.extend_from_slice(&u32::to_le_bytes(id));
    }
    let write = || {
        let file = OpenOptions::new().write(true).open(&path).unwrap();
        file.write_all_at(b"y", 0).unwrap();
    };
    let set_acl = || {
        let name = "system.posix_acl_access";
        rustix::fs::setxattr(&path, name, &acl, rustix::fs::XattrFlags::empty()).unwrap();
    };
    let acts: [(&(dyn Fn() + Sync), u32, u32); 2] =
        [(&write, 0o766, 0o2766), (&set_acl, 0o755, 0o2755)];
    for (act, without, with) in acts {
        for (gid, groups, after) in [
            (1002, &[][..], without),
            (1001, &[][..], with),
            (1002, &[1001][..], with),
        ] {
            set_mode(&path, 0o2766);
            as_user(1002, gid, groups, act);
            assert_eq!(mode(&path), after, "gid {gid}, groups {groups:?}");
            fs::remove_file(&path).unwrap();
            fs::write(&path, b"x").unwrap();
            chown(&path, Some(1002), Some(1001)).unwrap();
        }
    }
}
