//! What POSIX and Linux promise of a filesystem, one module a family. Each test
//! holds on ext4 (`KMSFS_TEST_DIR=/a/dir/on/ext4`) and has to hold on a mount.

#[path = "../common/mod.rs"]
mod common;

mod acl;
mod attributes;
mod concurrent;
mod dirs;
mod files;
mod links;
mod locks;
mod names;
mod rename;
mod space;
mod special;
mod unnamed;
mod xattrs;

use std::fmt::Debug;
use std::path::Path;

/// The errno of a call that must have failed.
fn errno<T: Debug, E: Into<std::io::Error>>(result: Result<T, E>) -> i32 {
    let error: std::io::Error = result.map_err(Into::into).expect_err("must fail");
    error.raw_os_error().expect("an errno")
}

/// The sorted names in a directory.
fn list(dir: &Path) -> Vec<std::ffi::OsString> {
    let mut names: Vec<_> = std::fs::read_dir(dir)
        .expect("opendir")
        .map(|entry| entry.expect("readdir").file_name())
        .collect();
    names.sort();
    names
}
