//! Extended attributes, through `/proc/self/fd` where the descriptor is `O_PATH`.

use std::os::fd::AsFd;

use rustix::fs::{self, XattrFlags};
use rustix::io::Errno;

use super::Result;
use super::dir::or_by_path;

/// Largest value and longest list that Linux allows.
const MOST: usize = 65536;

/// The value of an attribute.
pub fn get(fd: impl AsFd, name: &[u8]) -> Result<Vec<u8>> {
    let mut value = vec![0; 256];
    loop {
        let direct = fs::fgetxattr(&fd, name, &mut value);
        match or_by_path(direct, &fd, |path| fs::getxattr(path, name, &mut value)) {
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
    let flags = XattrFlags::from_bits_retain(flags);
    let direct = fs::fsetxattr(&fd, name, value, flags);
    or_by_path(direct, &fd, |path| fs::setxattr(path, name, value, flags))
}

/// The names of all attributes.
pub fn list(fd: impl AsFd) -> Result<Vec<Vec<u8>>> {
    let mut names = vec![0; 1024];
    loop {
        let direct = fs::flistxattr(&fd, &mut names);
        match or_by_path(direct, &fd, |path| fs::listxattr(path, &mut names)) {
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
    let direct = fs::fremovexattr(&fd, name);
    or_by_path(direct, &fd, |path| fs::removexattr(path, name))
}
