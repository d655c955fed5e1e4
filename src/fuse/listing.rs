//! A directory's entries as the kernel takes them.

use crate::fs::{FileKind, Fs, Result};

use super::convert::listed_ttl;
use super::protocol::{ENTRY_OUT, Message, dirent_len};

/// Entries from `offset` on, at most `size` bytes of them.
pub(super) fn list(fs: &Fs, ino: u64, offset: u64, size: usize) -> Result<Message> {
    let mut message = Message::with_capacity(size);
    fs.readdir(ino, offset, |entry| {
        if message.0.len() + dirent_len(&entry.name) > size {
            return false;
        }
        let kind = entry.kind.unwrap_or(FileKind::Regular);
        let before = std::mem::take(&mut message);
        message = before.dirent(entry.ino, entry.next, kind, &entry.name);
        true
    })?;
    Ok(message)
}

/// The same with the entries' attributes; each counts as a lookup.
pub(super) fn list_plus(fs: &Fs, ino: u64, offset: u64, size: usize) -> Result<Message> {
    let mut message = Message::with_capacity(size);
    fs.readdir(ino, offset, |listed| {
        if message.0.len() + ENTRY_OUT + dirent_len(&listed.name) > size {
            return false;
        }
        if matches!(listed.name.as_slice(), b"." | b"..") {
            // Not a lookup: the kernel takes only number and kind of these.
            let before = std::mem::take(&mut message).zeros(ENTRY_OUT);
            message = before.dirent(listed.ino, listed.next, FileKind::Directory, &listed.name);
            return true;
        }
        // Gone since it was listed, or not to be had.
        let Ok(entry) = fs.look_up_listed(ino, listed) else {
            return true;
        };
        let (attr, keep) = (&entry.attr, listed_ttl(&entry));
        message = std::mem::take(&mut message)
            .entry(attr, entry.generation, keep, keep)
            .dirent(attr.ino, listed.next, attr.kind, &listed.name);
        true
    })?;
    Ok(message)
}
