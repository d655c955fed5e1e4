//! The operations on [`Fs`]: every method calls, and replies.

use std::sync::Arc;

use crate::backing::Errno;
use crate::content::ContentError;
use crate::fs::{Changes, Entry, Fs, FsError, NewNode, ReadBuffer, WriteKind};
use crate::keys::KeyError;
use crate::keys::audit::caller;

use super::convert::{
    TTL, open_flag, open_options, reply_attr, reply_created, reply_entry, reply_statx,
};
use super::errno::{errno, is_remarkable};
use super::listing;
use super::notices::Notices;
use super::protocol::{FOPEN_KEEP_CACHE, Message};
use super::reply::Reply;
use super::request::Request;
use super::waiting::Served;

pub(super) struct Adapter {
    pub(super) served: Served,
    pub(super) notices: Arc<Notices>,
}

fn failed(operation: &str, ino: u64, error: &FsError) -> Errno {
    if is_remarkable(error) {
        log::error!("{operation} of inode {ino}: {error}");
    }
    errno(error)
}

/// Sends what a call gave, or its errno.
macro_rules! answer {
    ($operation:literal, $ino:expr, $result:expr, $reply:ident, $ok:expr) => {
        match $result {
            Ok(value) => $ok(value),
            Err(error) => $reply.error(failed($operation, $ino, &error)),
        }
    };
}

/// Has the audit trail name who asks.
fn name_caller(req: &Request<'_>) {
    caller::set(req.pid, req.uid);
}

impl Adapter {
    pub(super) fn lookup(&self, req: &Request<'_>, name: &[u8], reply: Reply) {
        match self.served.fs.lookup(req.ino, name) {
            Ok(entry) => reply_entry(reply, &entry),
            Err(FsError::NotFound) => reply.message(&Message::with_capacity(128).no_entry(TTL)),
            Err(FsError::Reserved) => reply.error(Errno::NOENT),
            Err(error) => reply.error(failed("lookup", req.ino, &error)),
        }
    }

    /// With a handle it is the kernel that wants to know, before it puts a write
    /// into its cache: the one moment at which a program can still be told that
    /// there is no key. `fstat(2)` has no handle here.
    pub(super) fn getattr(&self, req: &Request<'_>, handle: Option<u64>, reply: Reply) {
        name_caller(req);
        let ino = req.ino;
        let work = move |fs: &Arc<Fs>| {
            let usable = handle.map_or(Ok(()), |handle| fs.ensure_key(handle));
            usable.and_then(|()| fs.getattr(ino))
        };
        let finish = move |result| {
            answer!("getattr", ino, result, reply, |e: Entry| reply_attr(
                reply, &e
            ));
        };
        self.served.serve(work, || work, finish);
    }

    pub(super) fn statx(&self, req: &Request<'_>, reply: Reply) {
        let result = self.served.fs.getattr(req.ino);
        answer!("statx", req.ino, result, reply, |e: Entry| reply_statx(
            reply, &e
        ));
    }

    pub(super) fn setattr(&self, req: &Request<'_>, changes: Changes, reply: Reply) {
        name_caller(req);
        let (ino, by) = (req.ino, req.changer());
        let work = move |fs: &Arc<Fs>| fs.setattr(ino, &changes, by);
        let finish = move |result| {
            answer!("setattr", ino, result, reply, |e: Entry| reply_attr(
                reply, &e
            ));
        };
        self.served.serve(work, || work, finish);
    }

    pub(super) fn readlink(&self, req: &Request<'_>, reply: Reply) {
        let result = self.served.fs.readlink(req.ino);
        answer!("readlink", req.ino, result, reply, |target: Vec<u8>| {
            reply.data(&target)
        });
    }

    pub(super) fn mknod(
        &self,
        req: &Request<'_>,
        name: &[u8],
        new: NewNode,
        rdev: u32,
        reply: Reply,
    ) {
        let result = self.served.fs.mknod(req.ino, name, new, rdev);
        answer!("mknod", req.ino, result, reply, |e| reply_entry(reply, &e));
    }

    pub(super) fn mkdir(&self, req: &Request<'_>, name: &[u8], new: NewNode, reply: Reply) {
        let result = self.served.fs.mkdir(req.ino, name, new);
        answer!("mkdir", req.ino, result, reply, |e| reply_entry(reply, &e));
    }

    pub(super) fn unlink(&self, req: &Request<'_>, name: &[u8], reply: Reply) {
        let result = self.served.fs.unlink(req.ino, name);
        answer!("unlink", req.ino, result, reply, |()| reply.ok());
    }

    pub(super) fn rmdir(&self, req: &Request<'_>, name: &[u8], reply: Reply) {
        let result = self.served.fs.rmdir(req.ino, name);
        answer!("rmdir", req.ino, result, reply, |()| reply.ok());
    }

    pub(super) fn symlink(&self, req: &Request<'_>, name: &[u8], target: &[u8], reply: Reply) {
        let new = req.new_node(0o777, 0);
        let result = self.served.fs.symlink(req.ino, name, target, new);
        answer!("symlink", req.ino, result, reply, |e| reply_entry(
            reply, &e
        ));
    }

    pub(super) fn rename(
        &self,
        req: &Request<'_>,
        name: &[u8],
        to: u64,
        new_name: &[u8],
        flags: u32,
        reply: Reply,
    ) {
        let result = self.served.fs.rename(req.ino, name, to, new_name, flags);
        answer!("rename", req.ino, result, reply, |()| reply.ok());
    }

    /// The request's own inode is the directory of the new name.
    pub(super) fn link(&self, req: &Request<'_>, ino: u64, name: &[u8], reply: Reply) {
        let result = self.served.fs.link(ino, req.ino, name);
        answer!("link", ino, result, reply, |e| reply_entry(reply, &e));
    }

    pub(super) fn open(&self, req: &Request<'_>, flags: u32, reply: Reply) {
        name_caller(req);
        let (ino, options) = (req.ino, open_options(flags));
        let notices = self.notices.clone();
        let offer = {
            let notices = notices.clone();
            let cached = flags & open_flag::DIRECT == 0;
            move |content: &[u8]| {
                if cached {
                    notices.store(ino, content);
                }
            }
        };
        let work = {
            let offer = offer.clone();
            move |fs: &Arc<Fs>| fs.open(ino, options, offer)
        };
        let again = || move |fs: &Arc<Fs>| fs.open(ino, options, offer);
        let finish = move |result| {
            if let Err(FsError::Content(ContentError::Key(error))) = &result
                && (error.is_refusal() || matches!(error, KeyError::Locked))
            {
                // What the kernel still has of it, no one may see any more.
                notices.drop_pages(ino);
            }
            answer!("open", ino, result, reply, |handle| {
                reply.message(&Message::with_capacity(16).opened(handle, FOPEN_KEEP_CACHE))
            });
        };
        self.served.serve(work, again, finish);
    }

    pub(super) fn create(
        &self,
        req: &Request<'_>,
        name: &[u8],
        flags: u32,
        new: NewNode,
        reply: Reply,
    ) {
        name_caller(req);
        let (parent, options) = (req.ino, open_options(flags));
        let exclusive = flags & open_flag::EXCL != 0;
        let create =
            move |fs: &Arc<Fs>, name: &[u8]| fs.create(parent, name, new, exclusive, options);
        let finish = move |result| {
            answer!("create", parent, result, reply, |(entry, handle)| {
                reply_created(reply, &entry, handle);
            });
        };
        let again = || {
            let name = name.to_owned();
            move |fs: &Arc<Fs>| create(fs, &name)
        };
        self.served.serve(|fs| create(fs, name), again, finish);
    }

    pub(super) fn create_unnamed(&self, req: &Request<'_>, flags: u32, new: NewNode, reply: Reply) {
        name_caller(req);
        let (directory, options) = (req.ino, open_options(flags));
        let create = move |fs: &Arc<Fs>| fs.create_unnamed(directory, new, options);
        let finish = move |result| {
            answer!("tmpfile", directory, result, reply, |(entry, handle)| {
                reply_created(reply, &entry, handle);
            });
        };
        self.served.serve(create, || create, finish);
    }

    pub(super) fn read(
        &self,
        req: &Request<'_>,
        handle: u64,
        offset: u64,
        size: usize,
        room: &mut [u8],
        reply: Reply,
    ) {
        name_caller(req);
        let ino = req.ino;
        let read = |fs: &Arc<Fs>| fs.read_into(handle, offset, size, room);
        match self.served.at_once(read) {
            Err(error) if error.would_wait() => self.served.later(move |fs| {
                let mut buffer = ReadBuffer::default();
                let result = fs.read(handle, offset, size, &mut buffer);
                answer!("read", ino, result, reply, |range| reply
                    .data(buffer.slice(range)));
            }),
            result => answer!("read", ino, result, reply, |range| reply
                .placed(room, range)),
        }
    }

    pub(super) fn write(
        &self,
        req: &Request<'_>,
        handle: u64,
        offset: u64,
        data: &[u8],
        kind: WriteKind,
        reply: Reply,
    ) {
        name_caller(req);
        let (ino, len) = (req.ino, data.len() as u32);
        let again = || {
            let data = data.to_owned();
            move |fs: &Arc<Fs>| fs.write(handle, offset, &data, kind)
        };
        let work = |fs: &Arc<Fs>| fs.write(handle, offset, data, kind);
        self.served.serve(work, again, move |result| {
            answer!("write", ino, result, reply, |()| {
                reply.message(&Message::with_capacity(8).u32(len).u32(0))
            });
        });
    }

    pub(super) fn release(&self, handle: u64, reply: Reply) {
        self.served.fs.release(handle);
        reply.ok();
    }

    pub(super) fn fsync(&self, req: &Request<'_>, handle: u64, data_only: bool, reply: Reply) {
        let result = self.served.fs.fsync(handle, data_only);
        if let Ok(true) = result {
            self.notices.attributes_changed(req.ino);
        }
        answer!("fsync", req.ino, result, reply, |_| reply.ok());
    }

    pub(super) fn fsyncdir(&self, req: &Request<'_>, data_only: bool, reply: Reply) {
        let result = self.served.fs.fsyncdir(req.ino, data_only);
        answer!("fsyncdir", req.ino, result, reply, |()| reply.ok());
    }

    pub(super) fn readdir(
        &self,
        req: &Request<'_>,
        offset: u64,
        size: usize,
        plus: bool,
        reply: Reply,
    ) {
        let list = match plus {
            true => listing::list_plus,
            false => listing::list,
        };
        let result = list(&self.served.fs, req.ino, offset, size);
        answer!("readdir", req.ino, result, reply, |list| reply
            .message(&list));
    }

    pub(super) fn statfs(&self, req: &Request<'_>, reply: Reply) {
        let result = self.served.fs.statfs();
        answer!(
            "statfs",
            req.ino,
            result,
            reply,
            |s: crate::backing::dir::StatFs| {
                let message = Message::with_capacity(80)
                    .u64(s.f_blocks)
                    .u64(s.f_bfree)
                    .u64(s.f_bavail)
                    .u64(s.f_files)
                    .u64(s.f_ffree)
                    .u32(s.f_bsize as u32)
                    .u32(255)
                    .u32(s.f_frsize as u32);
                reply.message(&message.zeros(28));
            }
        );
    }

    pub(super) fn setxattr(
        &self,
        req: &Request<'_>,
        name: &[u8],
        value: &[u8],
        flags: u32,
        reply: Reply,
    ) {
        let fs = &self.served.fs;
        let result = fs.setxattr(req.ino, name, value, flags, req.changer());
        answer!("setxattr", req.ino, result, reply, |()| reply.ok());
    }

    pub(super) fn getxattr(&self, req: &Request<'_>, name: &[u8], size: u32, reply: Reply) {
        let result = self.served.fs.getxattr(req.ino, name);
        answer!("getxattr", req.ino, result, reply, |value: Vec<u8>| {
            reply.value(&value, size)
        });
    }

    pub(super) fn listxattr(&self, req: &Request<'_>, size: u32, reply: Reply) {
        let result = self.served.fs.listxattr(req.ino);
        answer!("listxattr", req.ino, result, reply, |names: Vec<
            Vec<u8>,
        >| {
            let mut list = Vec::new();
            for name in names {
                list.extend_from_slice(&name);
                list.push(0);
            }
            reply.value(&list, size);
        });
    }

    pub(super) fn removexattr(&self, req: &Request<'_>, name: &[u8], reply: Reply) {
        let result = self.served.fs.removexattr(req.ino, name);
        answer!("removexattr", req.ino, result, reply, |()| reply.ok());
    }

    pub(super) fn fallocate(
        &self,
        req: &Request<'_>,
        handle: u64,
        offset: u64,
        length: u64,
        mode: u32,
        reply: Reply,
    ) {
        name_caller(req);
        let (ino, by) = (req.ino, req.changer());
        let work = move |fs: &Arc<Fs>| fs.fallocate(handle, mode, offset, length, by);
        self.served.serve(
            work,
            || work,
            move |result| {
                answer!("fallocate", ino, result, reply, |()| reply.ok());
            },
        );
    }

    pub(super) fn lseek(
        &self,
        req: &Request<'_>,
        handle: u64,
        offset: u64,
        whence: u32,
        reply: Reply,
    ) {
        const SEEK_DATA: u32 = 3;
        const SEEK_HOLE: u32 = 4;
        let hole = match whence {
            SEEK_DATA => false,
            SEEK_HOLE => true,
            _ => return reply.error(Errno::INVAL),
        };
        if i64::try_from(offset).is_err() {
            return reply.error(Errno::NXIO);
        }
        let (ino, fs) = (req.ino, self.served.fs.clone());
        let answer = move || match fs.seek(handle, offset, hole) {
            Ok(at) => reply.message(&Message::with_capacity(8).u64(at)),
            Err(error) => reply.error(failed("lseek", ino, &error)),
        };
        // The kernel does not write its dirty pages back before it asks, and
        // they would look like holes.
        if self.served.fs.has_writers(handle).unwrap_or(false) {
            self.notices.write_back(ino, offset, answer);
        } else {
            answer();
        }
    }
}
