//! How long the kernel may keep what it is told, and how to open, as `fs` takes it.

use std::time::Duration;

use crate::fs::{Entry, OpenOptions};

use super::protocol::{FOPEN_KEEP_CACHE, Message};
use super::reply::Reply;

/// How long the kernel may keep what it was told: this mount is the volume's
/// only writer, so nothing changes behind the kernel's back.
pub(super) const TTL: Duration = Duration::from_secs(24 * 60 * 60);
/// The same for the attributes of a file that is open for writing.
const BUSY_TTL: Duration = Duration::from_secs(1);

/// How long the kernel may keep attributes. It does not count the blocks of a
/// file that is being written, and has to ask at each write where the key is
/// withheld.
pub(super) fn attr_ttl(entry: &Entry) -> Duration {
    match (entry.attr.withheld, entry.busy) {
        (true, _) => Duration::ZERO,
        (false, true) => BUSY_TTL,
        (false, false) => TTL,
    }
}

/// The same for entries of a listing.
pub(super) fn listed_ttl(entry: &Entry) -> Duration {
    match entry.attr.withheld {
        true => Duration::ZERO,
        false => TTL,
    }
}

/// Replies with an entry.
pub(super) fn reply_entry(reply: Reply, entry: &Entry) {
    let message = Message::with_capacity(128);
    reply.message(&message.entry(&entry.attr, entry.generation, TTL, attr_ttl(entry)));
}

/// Replies with attributes.
pub(super) fn reply_attr(reply: Reply, entry: &Entry) {
    let message = Message::with_capacity(104);
    reply.message(&message.attr_out(&entry.attr, attr_ttl(entry)));
}

/// Replies with attributes, the time of birth among them.
pub(super) fn reply_statx(reply: Reply, entry: &Entry) {
    let message = Message::with_capacity(288);
    reply.message(&message.statx_out(&entry.attr, attr_ttl(entry)));
}

/// Replies with a new file, its first attributes and the handle that it is open by.
pub(super) fn reply_created(reply: Reply, entry: &Entry, handle: u64) {
    let message = Message::with_capacity(144);
    let message = message.entry(&entry.attr, entry.generation, TTL, TTL);
    reply.message(&message.opened(handle, FOPEN_KEEP_CACHE));
}

/// How to open, by the flags of `open(2)`.
pub(super) fn open_options(flags: u32) -> OpenOptions {
    OpenOptions {
        write: flags & open_flag::ACCESS != 0,
        truncate: flags & open_flag::TRUNC != 0,
    }
}

/// The flags of `open(2)` that are looked at here.
pub(super) mod open_flag {
    pub(super) const ACCESS: u32 = 0o3;
    pub(super) const TRUNC: u32 = 0o1000;
    pub(crate) const EXCL: u32 = 0o200;
    pub(crate) const DIRECT: u32 = 0o40000;
}
