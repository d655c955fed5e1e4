//! Extended attributes, through `/proc/self/fd` because the descriptors are
//! `O_PATH`.

use std::os::fd::AsFd;

use rustix::fs::{self, XattrFlags};
use rustix::io::Errno;

use super::Result;
use super::dir::proc_path;

/// Largest value and longest list that Linux allows.
const MOST: usize = 65536;

/// The value of an attribute.
pub fn get(fd: impl AsFd, name: &[u8]) -> Result<Vec<u8>> {
    let path = proc_path(fd);
    let mut value = vec![0; 256];
    loop {
        match fs::getxattr(&path, name, &mut value) {
            Ok(len) => {
                value.truncate(len);
                return Ok(value);
            }
            Err(Errno::RANGE) if value.len() < MOST => value.resize(MOST, 0),
            Err(e) => return Err(e),
        }
    }
}

/// Sets an attribute; `flags` as in `setxattr(2)`.
pub fn set(fd: impl AsFd, name: &[u8], value: &[u8], flags: u32) -> Result<()> {
    fs::setxattr(
        proc_path(fd),
        name,
        value,
        XattrFlags::from_bits_retain(flags),
    )
}

/// The names of all attributes.
pub fn list(fd: impl AsFd) -> Result<Vec<Vec<u8>>> {
    let path = proc_path(fd);
    let mut names = vec![0; 1024];
    loop {
        match fs::listxattr(&path, &mut names) {
            Ok(len) => {
                names.truncate(len);
                let split = names.split(|&b| b == 0).filter(|n| !n.is_empty());
                return Ok(split.map(<[u8]>::to_vec).collect());
            }
            Err(Errno::RANGE) if names.len() < MOST => names.resize(MOST, 0),
            Err(e) => return Err(e),
        }
    }
}

/// Removes an attribute.
pub fn remove(fd: impl AsFd, name: &[u8]) -> Result<()> {
    fs::removexattr(proc_path(fd), name)
}
