//! The corners where other encrypted filesystems fail, each as on ext4
//! (`KMSFS_TEST_DIR=/a/dir/on/ext4` checks that ext4 does pass).

#[path = "../common/mod.rs"]
mod common;

mod handles;
mod io;
mod limits;
mod listings;
mod owners;

use std::fmt::Debug;

/// The errno of a call that must have failed.
fn errno<T: Debug, E: Into<std::io::Error>>(result: Result<T, E>) -> i32 {
    let error: std::io::Error = result.map_err(Into::into).expect_err("must fail");
    error.raw_os_error().expect("an errno")
}
