//! Extended attributes. POSIX ACLs have a module of their own.

use std::fs;
use std::os::unix::fs::{FileExt, symlink};
use std::path::Path;

use rustix::fs::{
    XattrFlags, getxattr, lgetxattr, listxattr, llistxattr, lremovexattr, lsetxattr, removexattr,
    setxattr,
};

use crate::common::{Mount, is_root, noise, skip, sys};
use crate::errno;

fn get(path: &Path, name: &str) -> rustix::io::Result<Vec<u8>> {
    let mut value = vec![0; 65_536];
    let len = getxattr(path, name, value.as_mut_slice())?;
    value.truncate(len);
    Ok(value)
}

fn names(path: &Path) -> Vec<String> {
    let mut buffer = vec![0; 65_536];
    let len = listxattr(path, buffer.as_mut_slice()).unwrap();
    let mut names: Vec<String> = buffer[..len]
        .split(|&byte| byte == 0)
        .filter(|name| !name.is_empty())
        .map(|name| String::from_utf8(name.to_vec()).unwrap())
        .filter(|name| !name.starts_with("security."))
        .collect();
    names.sort();
    names
}

const NONE: XattrFlags = XattrFlags::empty();

#[test]
fn user_attributes_of_files_and_directories() {
    let mut mount = Mount::simple();
    fs::write(mount.join("f"), b"").unwrap();
    fs::create_dir(mount.join("d")).unwrap();
    for name in ["f", "d", "."] {
        let path = mount.join(name);
        setxattr(&path, "user.one", b"first", NONE).unwrap();
        setxattr(&path, "user.two", &noise(1, 1000), NONE).unwrap();
        setxattr(&path, "user.empty", b"", NONE).unwrap();
        setxattr(&path, "user.ünï", &[0, 255, 10], NONE).unwrap();
        setxattr(&path, "user.one", b"replaced", NONE).unwrap();
    }
    mount.remount();
    for name in ["f", "d", "."] {
        let path = mount.join(name);
        assert_eq!(
            names(&path),
            ["user.empty", "user.one", "user.two", "user.ünï"]
        );
        assert_eq!(get(&path, "user.one").unwrap(), b"replaced");
        assert_eq!(get(&path, "user.two").unwrap(), noise(1, 1000));
        assert_eq!(get(&path, "user.empty").unwrap(), b"");
        assert_eq!(get(&path, "user.ünï").unwrap(), [0, 255, 10]);
        removexattr(&path, "user.two").unwrap();
        assert_eq!(errno(get(&path, "user.two")), libc::ENODATA);
        assert_eq!(errno(removexattr(&path, "user.two")), libc::ENODATA);
        assert_eq!(names(&path).len(), 3);
    }
}

#[test]
fn create_and_replace_flags() {
    let mount = Mount::simple();
    let path = mount.join("f");
    fs::write(&path, b"").unwrap();
    assert_eq!(
        errno(setxattr(&path, "user.a", b"1", XattrFlags::REPLACE)),
        libc::ENODATA
    );
    setxattr(&path, "user.a", b"1", XattrFlags::CREATE).unwrap();
    assert_eq!(
        errno(setxattr(&path, "user.a", b"2", XattrFlags::CREATE)),
        libc::EEXIST
    );
    assert_eq!(get(&path, "user.a").unwrap(), b"1");
    setxattr(&path, "user.a", b"2", XattrFlags::REPLACE).unwrap();
    assert_eq!(get(&path, "user.a").unwrap(), b"2");
}

#[test]
fn sizes_can_be_asked_for_and_short_buffers_are_told() {
    let mount = Mount::simple();
    let path = mount.join("f");
    fs::write(&path, b"").unwrap();
    setxattr(&path, "user.a", b"twelve bytes", NONE).unwrap();
    assert_eq!(sys::xattr_sizes(&path, "user.a").unwrap().0, 12);
    assert_eq!(
        errno(getxattr(&path, "user.a", &mut [0; 11][..])),
        libc::ERANGE
    );
    assert_eq!(getxattr(&path, "user.a", &mut [0; 12][..]).unwrap(), 12);
    let len = sys::xattr_sizes(&path, "user.a").unwrap().1;
    assert!(len >= 7);
    let mut exact = vec![0; len];
    assert_eq!(listxattr(&path, exact.as_mut_slice()).unwrap(), len);
    assert_eq!(errno(listxattr(&path, &mut exact[..len - 1])), libc::ERANGE);
}

#[test]
fn attribute_names_up_to_the_limit() {
    let mount = Mount::simple();
    let path = mount.join("f");
    fs::write(&path, b"").unwrap();
    for len in [6, 100, 150, 180, 200, 230, 255] {
        let name = format!("user.{}", "n".repeat(len - 5));
        setxattr(&path, name.as_str(), b"value", NONE)
            .unwrap_or_else(|error| panic!("{len}: {error}"));
        assert_eq!(get(&path, &name).unwrap(), b"value");
        assert_eq!(names(&path).concat(), name);
        removexattr(&path, name.as_str()).unwrap();
    }
    let name = format!("user.{}", "n".repeat(251));
    assert_eq!(
        errno(setxattr(&path, name.as_str(), b"", NONE)),
        libc::ERANGE
    );
    assert_eq!(errno(setxattr(&path, "user.", b"", NONE)), libc::EINVAL);
    assert_eq!(
        errno(setxattr(&path, "nonsense.x", b"", NONE)),
        libc::EOPNOTSUPP
    );
}

#[test]
fn values_that_do_not_fit_say_so() {
    let mount = Mount::simple();
    let path = mount.join("f");
    fs::write(&path, b"").unwrap();
    setxattr(&path, "user.large", &noise(1, 3000), NONE).unwrap();
    assert_eq!(get(&path, "user.large").unwrap(), noise(1, 3000));
    let errno = errno(setxattr(&path, "user.large", &noise(1, 65_536), NONE));
    assert!(
        [libc::ENOSPC, libc::E2BIG, libc::ERANGE].contains(&errno),
        "{errno}"
    );
    assert_eq!(
        get(&path, "user.large").unwrap(),
        noise(1, 3000),
        "the old value stays"
    );
    assert_eq!(
        crate::errno(setxattr(&path, "user.large", &noise(1, 65_537), NONE)),
        libc::E2BIG
    );
}

#[test]
fn trusted_attributes_are_roots() {
    if !is_root() {
        return skip("needs root");
    }
    let mut mount = Mount::simple();
    let path = mount.join("f");
    fs::write(&path, b"").unwrap();
    std::os::unix::fs::chown(&path, Some(1001), Some(1001)).unwrap();
    setxattr(&path, "trusted.secret", b"root's", NONE).unwrap();
    mount.remount();
    assert_eq!(get(&path, "trusted.secret").unwrap(), b"root's");
    assert_eq!(names(&path), ["trusted.secret"]);
    sys::as_user(1001, 1001, &[], || {
        assert_eq!(errno(get(&path, "trusted.secret")), libc::ENODATA);
        assert_eq!(
            errno(setxattr(&path, "trusted.secret", b"x", NONE)),
            libc::EPERM
        );
    });
}

#[test]
fn permissions_on_user_attributes() {
    if !is_root() {
        return skip("needs root");
    }
    let mount = Mount::simple();
    let path = mount.join("f");
    fs::write(&path, b"").unwrap();
    setxattr(&path, "user.a", b"1", NONE).unwrap();
    fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o640)).unwrap();
    sys::as_user(1001, 1001, &[], || {
        assert_eq!(errno(get(&path, "user.a")), libc::EACCES);
        assert_eq!(errno(setxattr(&path, "user.a", b"2", NONE)), libc::EACCES);
        assert_eq!(errno(removexattr(&path, "user.a")), libc::EACCES);
    });
    assert_eq!(get(&path, "user.a").unwrap(), b"1");
}

#[test]
fn attributes_of_symlinks() {
    if !is_root() {
        return skip("needs root");
    }
    let mut mount = Mount::simple();
    fs::write(mount.join("f"), b"").unwrap();
    symlink("f", mount.join("s")).unwrap();
    let path = mount.join("s");
    assert_eq!(errno(lsetxattr(&path, "user.a", b"1", NONE)), libc::EPERM);
    lsetxattr(&path, "trusted.a", b"of the link", NONE).unwrap();
    setxattr(&path, "trusted.a", b"of the file", NONE).unwrap();
    mount.remount();
    let mut value = [0; 32];
    let len = lgetxattr(&path, "trusted.a", value.as_mut_slice()).unwrap();
    assert_eq!(&value[..len], b"of the link");
    assert_eq!(get(&path, "trusted.a").unwrap(), b"of the file");
    assert_eq!(fs::read_link(&path).unwrap().to_str(), Some("f"));
    let len = llistxattr(&path, value.as_mut_slice()).unwrap();
    assert_eq!(&value[..len], b"trusted.a\0");
    lremovexattr(&path, "trusted.a").unwrap();
    assert_eq!(
        errno(lgetxattr(&path, "trusted.a", value.as_mut_slice())),
        libc::ENODATA
    );
}

#[test]
fn attributes_of_special_files() {
    if !is_root() {
        return skip("needs root");
    }
    let mount = Mount::simple();
    let path = mount.join("fifo");
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &path,
        rustix::fs::FileType::Fifo,
        0o600.into(),
        0,
    )
    .unwrap();
    assert_eq!(errno(setxattr(&path, "user.a", b"1", NONE)), libc::EPERM);
    setxattr(&path, "trusted.a", b"1", NONE).unwrap();
    assert_eq!(get(&path, "trusted.a").unwrap(), b"1");
}

#[test]
fn attributes_follow_renames_and_links_and_do_not_touch_contents() {
    let mut mount = Mount::simple();
    fs::write(mount.join("f"), noise(1, 9000)).unwrap();
    setxattr(mount.join("f"), "user.a", b"1", NONE).unwrap();
    fs::hard_link(mount.join("f"), mount.join("g")).unwrap();
    fs::rename(mount.join("f"), mount.join("h")).unwrap();
    setxattr(mount.join("g"), "user.a", b"2", NONE).unwrap();
    mount.remount();
    assert_eq!(get(&mount.join("h"), "user.a").unwrap(), b"2");
    assert_eq!(fs::read(mount.join("h")).unwrap(), noise(1, 9000));
}

#[test]
fn writing_strips_file_capabilities() {
    if !is_root() {
        return skip("needs root");
    }
    let mount = Mount::simple();
    let path = mount.join("f");
    fs::write(&path, b"program").unwrap();
    // cap_net_raw=ep, in the version 2 layout.
    let mut capability = vec![1, 0, 0, 2, 0, 0x20, 0, 0];
    capability.resize(20, 0);
    let again = || {
        setxattr(&path, "security.capability", &capability, NONE).unwrap();
        assert_eq!(get(&path, "security.capability").unwrap(), capability);
    };
    again();
    let file = fs::File::options().write(true).open(&path).unwrap();
    file.write_all_at(b"P", 0).unwrap();
    assert_eq!(
        errno(get(&path, "security.capability")),
        libc::ENODATA,
        "by write"
    );
    again();
    file.set_len(3).unwrap();
    assert_eq!(
        errno(get(&path, "security.capability")),
        libc::ENODATA,
        "by truncate"
    );
    again();
    std::os::unix::fs::chown(&path, Some(1001), None).unwrap();
    assert_eq!(
        errno(get(&path, "security.capability")),
        libc::ENODATA,
        "by chown"
    );
}
