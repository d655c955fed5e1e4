//! POSIX ACLs: stored, inherited, enforced.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use rustix::fs::{XattrFlags, getxattr, removexattr, setxattr};

use crate::common::{Mount, is_root, skip, sys};
use crate::errno;

const ACCESS: &str = "system.posix_acl_access";
const DEFAULT: &str = "system.posix_acl_default";
const USER_OBJ: u16 = 1;
const USER: u16 = 2;
const GROUP_OBJ: u16 = 4;
const GROUP: u16 = 8;
const MASK: u16 = 16;
const OTHER: u16 = 32;
const NOBODY: u32 = u32::MAX;

/// The xattr's bytes of a list of (tag, permissions, id).
fn acl(entries: &[(u16, u16, u32)]) -> Vec<u8> {
    let mut bytes = 2_u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in entries {
        bytes.extend(tag.to_le_bytes());
        bytes.extend(permissions.to_le_bytes());
        bytes.extend(id.to_le_bytes());
    }
    bytes
}

fn get(path: &Path, name: &str) -> rustix::io::Result<Vec<u8>> {
    let mut value = vec![0; 4096];
    let len = getxattr(path, name, value.as_mut_slice())?;
    value.truncate(len);
    Ok(value)
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().mode() & 0o7777
}

#[test]
fn an_acl_is_kept_and_enforced() {
    if !is_root() {
        return skip("needs root");
    }
    let mut mount = Mount::simple();
    let path = mount.join("f");
    fs::write(&path, b"secret").unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    let value = acl(&[
        (USER_OBJ, 6, NOBODY),
        (USER, 4, 1001),
        (GROUP_OBJ, 0, NOBODY),
        (GROUP, 6, 2001),
        (MASK, 6, NOBODY),
        (OTHER, 0, NOBODY),
    ]);
    setxattr(&path, ACCESS, &value, XattrFlags::empty()).unwrap();
    let check = |path: &Path| {
        assert_eq!(get(path, ACCESS).unwrap(), value);
        assert_eq!(mode(path), 0o660, "the mask shows as the group's bits");
        sys::as_user(1001, 1001, &[], || {
            assert_eq!(fs::read(path).unwrap(), b"secret");
            assert_eq!(
                errno(fs::OpenOptions::new().write(true).open(path)),
                libc::EACCES
            );
        });
        sys::as_user(1002, 1002, &[2001], || {
            fs::OpenOptions::new().write(true).open(path).unwrap();
        });
        sys::as_user(1003, 1003, &[], || {
            assert_eq!(errno(fs::read(path)), libc::EACCES)
        });
    };
    check(&path);
    mount.remount();
    check(&path);
    // chmod moves the mask.
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    sys::as_user(1001, 1001, &[], || {
        assert_eq!(errno(fs::read(&path)), libc::EACCES)
    });
    removexattr(&path, ACCESS).unwrap();
    assert_eq!(errno(get(&path, ACCESS)), libc::ENODATA);
}

#[test]
fn an_acl_that_is_only_a_mode_becomes_the_mode() {
    let mount = Mount::simple();
    let path = mount.join("f");
    fs::write(&path, b"").unwrap();
    let value = acl(&[
        (USER_OBJ, 7, NOBODY),
        (GROUP_OBJ, 5, NOBODY),
        (OTHER, 1, NOBODY),
    ]);
    setxattr(&path, ACCESS, &value, XattrFlags::empty()).unwrap();
    assert_eq!(mode(&path), 0o751);
    assert_eq!(errno(get(&path, ACCESS)), libc::ENODATA);
}

#[test]
fn default_acls_are_inherited_in_place_of_the_umask() {
    if !is_root() {
        return skip("needs root");
    }
    let mut mount = Mount::simple();
    let dir = mount.join("d");
    fs::create_dir(&dir).unwrap();
    let value = acl(&[
        (USER_OBJ, 7, NOBODY),
        (USER, 7, 1001),
        (GROUP_OBJ, 5, NOBODY),
        (MASK, 7, NOBODY),
        (OTHER, 0, NOBODY),
    ]);
    setxattr(&dir, DEFAULT, &value, XattrFlags::empty()).unwrap();
    assert_eq!(get(&dir, DEFAULT).unwrap(), value);
    mount.remount();
    sys::with_umask(0o077, || {
        fs::write(dir.join("file"), b"x").unwrap();
        fs::create_dir(dir.join("sub")).unwrap();
        rustix::fs::mknodat(
            rustix::fs::CWD,
            dir.join("fifo"),
            rustix::fs::FileType::Fifo,
            0o666.into(),
            0,
        )
        .unwrap();
    });
    mount.remount();
    // The file asked for 0666: the mask keeps rw-, the umask does not count.
    assert_eq!(mode(&dir.join("file")), 0o660);
    let expected = acl(&[
        (USER_OBJ, 6, NOBODY),
        (USER, 7, 1001),
        (GROUP_OBJ, 5, NOBODY),
        (MASK, 6, NOBODY),
        (OTHER, 0, NOBODY),
    ]);
    assert_eq!(get(&dir.join("file"), ACCESS).unwrap(), expected);
    assert_eq!(get(&dir.join("fifo"), ACCESS).unwrap(), expected);
    assert_eq!(mode(&dir.join("sub")), 0o770);
    assert_eq!(get(&dir.join("sub"), DEFAULT).unwrap(), value);
    sys::as_user(1001, 1001, &[], || {
        assert_eq!(fs::read(dir.join("file")).unwrap(), b"x");
        fs::write(dir.join("sub/mine"), b"").unwrap();
    });
}

#[test]
fn an_acl_lets_a_user_create_in_another_users_directory() {
    if !is_root() {
        return skip("needs root");
    }
    let mount = Mount::simple();
    let dir = mount.join("d");
    fs::create_dir(&dir).unwrap();
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o700)).unwrap();
    let value = acl(&[
        (USER_OBJ, 7, NOBODY),
        (USER, 7, 1001),
        (GROUP_OBJ, 0, NOBODY),
        (GROUP, 7, 2001),
        (MASK, 7, NOBODY),
        (OTHER, 0, NOBODY),
    ]);
    setxattr(&dir, ACCESS, &value, XattrFlags::empty()).unwrap();
    for (uid, groups, name) in [(1001, vec![], "by user"), (1002, vec![2001], "by group")] {
        sys::as_user(uid, uid, &groups, || {
            fs::write(dir.join(name), name).unwrap();
            fs::create_dir(dir.join(format!("{name} dir"))).unwrap();
            std::os::unix::fs::symlink("x", dir.join(format!("{name} link"))).unwrap();
            fs::rename(dir.join(name), dir.join(format!("{name} moved"))).unwrap();
        });
        assert_eq!(
            fs::metadata(dir.join(format!("{name} moved")))
                .unwrap()
                .uid(),
            uid
        );
    }
    sys::as_user(1003, 1003, &[], || {
        assert_eq!(errno(fs::write(dir.join("x"), b"")), libc::EACCES);
    });
}

#[test]
fn malformed_acls_are_refused() {
    let mount = Mount::simple();
    let path = mount.join("f");
    fs::write(&path, b"").unwrap();
    for value in [
        &b"\x02\0\0"[..],
        &[9, 0, 0, 0, 1, 0, 6, 0, 255, 255, 255, 255],
        &acl(&[(USER_OBJ, 6, NOBODY)]),
    ] {
        let errno = errno(setxattr(&path, ACCESS, value, XattrFlags::empty()));
        assert!([libc::EINVAL, libc::EOPNOTSUPP].contains(&errno), "{errno}");
    }
    let value = acl(&[
        (USER_OBJ, 6, NOBODY),
        (GROUP_OBJ, 0, NOBODY),
        (OTHER, 0, NOBODY),
    ]);
    assert_eq!(
        errno(setxattr(&path, DEFAULT, &value, XattrFlags::empty())),
        libc::EACCES
    );
}
