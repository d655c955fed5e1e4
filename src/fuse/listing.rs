//! Filling replies with a directory's entries.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use fuser::{FileType, Generation, INodeNo, ReplyDirectory, ReplyDirectoryPlus};

use crate::fs::{Fs, Result};

use super::convert::{TTL, attr, kind, listed_ttl, no_entry};

/// Adds entries from `offset` on until the reply is full.
pub(super) fn fill(fs: &Fs, ino: u64, offset: u64, reply: &mut ReplyDirectory) -> Result<()> {
    fs.readdir(ino, offset, |entry| {
        let known = entry.kind.map_or(FileType::RegularFile, kind);
        let name = OsStr::from_bytes(&entry.name);
        !reply.add(INodeNo(entry.ino), entry.next, known, name)
    })
}

/// The same with the entries' attributes; each counts as a lookup.
pub(super) fn fill_plus(
    fs: &Fs,
    ino: u64,
    offset: u64,
    reply: &mut ReplyDirectoryPlus,
) -> Result<()> {
    fs.readdir(ino, offset, |listed| {
        let name = OsStr::from_bytes(&listed.name);
        if matches!(listed.name.as_slice(), b"." | b"..") {
            // Not a lookup: the kernel takes only number and kind of these.
            let mut dot = no_entry();
            dot.ino = INodeNo(listed.ino);
            dot.kind = FileType::Directory;
            return !reply.add(dot.ino, listed.next, name, &TTL, &dot, Generation(0));
        }
        // Gone since it was listed, or not to be had.
        let Ok(entry) = fs.look_up_listed(ino, listed) else {
            return true;
        };
        let full = reply.add(
            INodeNo(entry.attr.ino),
            listed.next,
            name,
            &listed_ttl(&entry),
            &attr(&entry.attr),
            Generation(entry.generation),
        );
        if full {
            fs.forget(entry.attr.ino, 1);
        }
        !full
    })
}
