//! fuser's trait on [`Fs`]: every method unpacks, calls, and replies.

use std::cell::RefCell;
use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use fuser::{
    AccessFlags, BsdFileFlags, CopyFileRangeFlags, Errno, FileHandle, Filesystem, FopenFlags,
    Generation, INodeNo, IoctlFlags, KernelConfig, LockOwner, OpenFlags, RenameFlags, ReplyAttr,
    ReplyCreate, ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyIoctl,
    ReplyLseek, ReplyOpen, ReplyStatfs, ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};

use crate::content::ContentError;
use crate::fs::{Changes, Entry, Fs, FsError, ReadBuffer, WriteKind};
use crate::keys::KeyError;
use crate::keys::audit::caller;

use super::connection;
use super::convert::{
    TTL, attr, attr_ttl, changer, libc_o, new_node, no_entry, open_options, reply_entry,
    reply_xattr,
};
use super::errno::{errno, is_remarkable};
use super::listing;
use super::notices::Notices;
use super::time;
use super::waiting::Served;

thread_local! {
    /// Where reads of this thread are decrypted.
    static READ: RefCell<ReadBuffer> = RefCell::default();
}

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
            Err(error) => $reply.error(failed($operation, $ino.0, &error)),
        }
    };
}

impl Filesystem for Adapter {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> io::Result<()> {
        if connection::configure(config) {
            self.served.fs.kernel_keeps_times();
        }
        Ok(())
    }

    fn lookup(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match self.served.fs.lookup(parent.0, name.as_bytes()) {
            Ok(entry) => reply_entry(reply, &entry),
            Err(FsError::NotFound) => reply.entry(&TTL, &no_entry(), Generation(0)),
            Err(FsError::Reserved) => reply.error(Errno::ENOENT),
            Err(error) => reply.error(failed("lookup", parent.0, &error)),
        }
    }

    fn forget(&self, _req: &Request, ino: INodeNo, lookups: u64) {
        self.served.fs.forget(ino.0, lookups);
    }

    /// With a handle it is the kernel that wants to know, before it puts a write
    /// into its cache: the one moment at which a program can still be told that
    /// there is no key. `fstat(2)` has no handle here.
    fn getattr(&self, req: &Request, ino: INodeNo, fh: Option<FileHandle>, reply: ReplyAttr) {
        caller::set(req.pid(), req.uid());
        let work = move |fs: &Arc<Fs>| {
            let usable = fh.map_or(Ok(()), |fh| fs.ensure_key(fh.0));
            usable.and_then(|()| fs.getattr(ino.0))
        };
        let finish = move |result| {
            answer!("getattr", ino, result, reply, |e: Entry| reply
                .attr(&attr_ttl(&e), &attr(&e.attr)));
        };
        self.served.serve(work, || work, finish);
    }

    fn setattr(
        &self,
        req: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        ctime: Option<SystemTime>,
        _fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        caller::set(req.pid(), req.uid());
        let changes = Changes {
            mode,
            uid,
            gid,
            size,
            atime: atime.map(time::from_fuser),
            mtime: mtime.map(time::from_fuser),
            ctime: ctime.map(time::from_system),
        };
        let by = changer(req);
        let work = move |fs: &Arc<Fs>| fs.setattr(ino.0, &changes, by);
        self.served.serve(
            work,
            || work,
            move |result| {
                answer!("setattr", ino, result, reply, |e: Entry| reply
                    .attr(&attr_ttl(&e), &attr(&e.attr)));
            },
        );
    }

    fn readlink(&self, _req: &Request, ino: INodeNo, reply: ReplyData) {
        let result = self.served.fs.readlink(ino.0);
        answer!("readlink", ino, result, reply, |target: Vec<u8>| {
            reply.data(&target)
        });
    }

    fn mknod(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        rdev: u32,
        reply: ReplyEntry,
    ) {
        let new = new_node(req, mode, umask);
        let result = self.served.fs.mknod(parent.0, name.as_bytes(), new, rdev);
        answer!("mknod", parent, result, reply, |e| reply_entry(reply, &e));
    }

    fn mkdir(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        reply: ReplyEntry,
    ) {
        let new = new_node(req, mode, umask);
        let result = self.served.fs.mkdir(parent.0, name.as_bytes(), new);
        answer!("mkdir", parent, result, reply, |e| reply_entry(reply, &e));
    }

    fn unlink(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let result = self.served.fs.unlink(parent.0, name.as_bytes());
        answer!("unlink", parent, result, reply, |()| reply.ok());
    }

    fn rmdir(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let result = self.served.fs.rmdir(parent.0, name.as_bytes());
        answer!("rmdir", parent, result, reply, |()| reply.ok());
    }

    fn symlink(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        target: &Path,
        reply: ReplyEntry,
    ) {
        let target = target.as_os_str().as_bytes();
        let new = new_node(req, 0o777, 0);
        let result = self
            .served
            .fs
            .symlink(parent.0, name.as_bytes(), target, new);
        answer!("symlink", parent, result, reply, |e| reply_entry(reply, &e));
    }

    fn rename(
        &self,
        _req: &Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let (name, newname) = (name.as_bytes(), newname.as_bytes());
        let result = self
            .served
            .fs
            .rename(parent.0, name, newparent.0, newname, flags.bits());
        answer!("rename", parent, result, reply, |()| reply.ok());
    }

    fn link(
        &self,
        _req: &Request,
        ino: INodeNo,
        newparent: INodeNo,
        newname: &OsStr,
        reply: ReplyEntry,
    ) {
        let result = self.served.fs.link(ino.0, newparent.0, newname.as_bytes());
        answer!("link", ino, result, reply, |e| reply_entry(reply, &e));
    }

    fn open(&self, req: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        caller::set(req.pid(), req.uid());
        let options = open_options(flags);
        let notices = self.notices.clone();
        let offer = {
            let notices = notices.clone();
            let cached = flags.0 & libc_o::DIRECT == 0;
            move |content: &[u8]| {
                if cached {
                    notices.store(ino, content);
                }
            }
        };
        let work = {
            let offer = offer.clone();
            move |fs: &Arc<Fs>| fs.open(ino.0, options, offer)
        };
        let again = || move |fs: &Arc<Fs>| fs.open(ino.0, options, offer);
        let finish = move |result| {
            if let Err(FsError::Content(ContentError::Key(error))) = &result
                && (error.is_refusal() || matches!(error, KeyError::Locked))
            {
                // What the kernel still has of it, no one may see any more.
                notices.drop_pages(ino.0);
            }
            answer!("open", ino, result, reply, |handle| reply
                .opened(FileHandle(handle), FopenFlags::FOPEN_KEEP_CACHE));
        };
        self.served.serve(work, again, finish);
    }

    fn create(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        caller::set(req.pid(), req.uid());
        let new = new_node(req, mode, umask);
        let exclusive = flags & libc_o::EXCL != 0;
        let options = open_options(OpenFlags(flags));
        let create =
            move |fs: &Arc<Fs>, name: &[u8]| fs.create(parent.0, name, new, exclusive, options);
        let finish = move |result| {
            answer!("create", parent, result, reply, |(entry, handle): (
                Entry,
                u64
            )| reply
                .created(
                    &TTL,
                    &attr(&entry.attr),
                    Generation(entry.generation),
                    FileHandle(handle),
                    FopenFlags::FOPEN_KEEP_CACHE,
                ));
        };
        let again = || {
            let name = name.to_owned();
            move |fs: &Arc<Fs>| create(fs, name.as_bytes())
        };
        self.served
            .serve(|fs| create(fs, name.as_bytes()), again, finish);
    }

    fn read(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        caller::set(req.pid(), req.uid());
        let size = size as usize;
        READ.with_borrow_mut(|buffer| {
            let read = |fs: &Arc<Fs>| fs.read(fh.0, offset, size, buffer);
            match self.served.at_once(read) {
                Err(error) if error.would_wait() => self.served.later(move |fs| {
                    let mut buffer = ReadBuffer::default();
                    let result = fs.read(fh.0, offset, size, &mut buffer);
                    answer!("read", ino, result, reply, |range| reply
                        .data(buffer.slice(range)));
                }),
                result => answer!("read", ino, result, reply, |range| reply
                    .data(buffer.slice(range))),
            }
        });
    }

    fn write(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        data: &[u8],
        write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let kind = WriteKind {
            accepted_before: write_flags.contains(WriteFlags::FUSE_WRITE_CACHE),
            by: match write_flags.contains(WriteFlags::FUSE_WRITE_KILL_SUIDGID) {
                true => changer(req),
                false => None,
            },
        };
        caller::set(req.pid(), req.uid());
        let len = data.len() as u32;
        let again = || {
            let data = data.to_owned();
            move |fs: &Arc<Fs>| fs.write(fh.0, offset, &data, kind)
        };
        let work = |fs: &Arc<Fs>| fs.write(fh.0, offset, data, kind);
        self.served.serve(work, again, move |result| {
            answer!("write", ino, result, reply, |()| reply.written(len));
        });
    }

    /// Not implemented, which the kernel remembers: it writes back dirty pages
    /// at close and reports their errors by itself.
    fn flush(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _lock_owner: LockOwner,
        reply: ReplyEmpty,
    ) {
        reply.error(Errno::ENOSYS);
    }

    fn release(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        self.served.fs.release(fh.0);
        reply.ok();
    }

    fn fsync(
        &self,
        _req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        datasync: bool,
        reply: ReplyEmpty,
    ) {
        let result = self.served.fs.fsync(fh.0, datasync);
        if let Ok(true) = result {
            self.notices.attributes_changed(ino);
        }
        answer!("fsync", ino, result, reply, |_| reply.ok());
    }

    /// Not implemented, which the kernel remembers: it then lists directories
    /// without opening them, and caches what it is told.
    fn opendir(&self, _req: &Request, _ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        reply.error(Errno::ENOSYS);
    }

    fn readdir(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let result = listing::fill(&self.served.fs, ino.0, offset, &mut reply);
        answer!("readdir", ino, result, reply, |()| reply.ok());
    }

    fn readdirplus(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        let result = listing::fill_plus(&self.served.fs, ino.0, offset, &mut reply);
        answer!("readdirplus", ino, result, reply, |()| reply.ok());
    }

    fn fsyncdir(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        datasync: bool,
        reply: ReplyEmpty,
    ) {
        let result = self.served.fs.fsyncdir(ino.0, datasync);
        answer!("fsyncdir", ino, result, reply, |()| reply.ok());
    }

    fn statfs(&self, _req: &Request, ino: INodeNo, reply: ReplyStatfs) {
        let result = self.served.fs.statfs();
        answer!(
            "statfs",
            ino,
            result,
            reply,
            |s: crate::backing::dir::StatFs| reply.statfs(
                s.f_blocks,
                s.f_bfree,
                s.f_bavail,
                s.f_files,
                s.f_ffree,
                s.f_bsize as u32,
                255,
                s.f_frsize as u32,
            )
        );
    }

    fn setxattr(
        &self,
        req: &Request,
        ino: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        let result =
            self.served
                .fs
                .setxattr(ino.0, name.as_bytes(), value, flags as u32, changer(req));
        answer!("setxattr", ino, result, reply, |()| reply.ok());
    }

    fn getxattr(&self, _req: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        let result = self.served.fs.getxattr(ino.0, name.as_bytes());
        answer!("getxattr", ino, result, reply, |value: Vec<u8>| {
            reply_xattr(reply, &value, size)
        });
    }

    fn listxattr(&self, _req: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        let result = self.served.fs.listxattr(ino.0);
        answer!("listxattr", ino, result, reply, |names: Vec<Vec<u8>>| {
            let mut list = Vec::new();
            for name in names {
                list.extend_from_slice(&name);
                list.push(0);
            }
            reply_xattr(reply, &list, size);
        });
    }

    fn removexattr(&self, _req: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let result = self.served.fs.removexattr(ino.0, name.as_bytes());
        answer!("removexattr", ino, result, reply, |()| reply.ok());
    }

    /// The kernel checks permissions itself (`default_permissions`).
    fn access(&self, _req: &Request, _ino: INodeNo, _mask: AccessFlags, reply: ReplyEmpty) {
        reply.error(Errno::ENOSYS);
    }

    fn ioctl(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _flags: IoctlFlags,
        _cmd: u32,
        _in_data: &[u8],
        _out_size: u32,
        reply: ReplyIoctl,
    ) {
        reply.error(Errno::ENOTTY);
    }

    fn fallocate(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        caller::set(req.pid(), req.uid());
        let by = changer(req);
        let work = move |fs: &Arc<Fs>| fs.fallocate(fh.0, mode as u32, offset, length, by);
        self.served.serve(
            work,
            || work,
            move |result| {
                answer!("fallocate", ino, result, reply, |()| reply.ok());
            },
        );
    }

    fn lseek(
        &self,
        _req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        const SEEK_DATA: i32 = 3;
        const SEEK_HOLE: i32 = 4;
        let hole = match whence {
            SEEK_DATA => false,
            SEEK_HOLE => true,
            _ => return reply.error(Errno::EINVAL),
        };
        let Ok(offset) = u64::try_from(offset) else {
            return reply.error(Errno::ENXIO);
        };
        let fs = self.served.fs.clone();
        let answer = move || match fs.seek(fh.0, offset, hole) {
            Ok(at) => reply.offset(at as i64),
            Err(error) => reply.error(failed("lseek", ino.0, &error)),
        };
        // The kernel does not write its dirty pages back before it asks, and
        // they would look like holes.
        if self.served.fs.has_writers(fh.0).unwrap_or(false) {
            self.notices.write_back(ino.0, offset, answer);
        } else {
            answer();
        }
    }

    /// Not implemented, which the kernel remembers: it then copies in its own page
    /// cache, where the source often is, and writes the copy back as any other
    /// write. Here it would be decrypted and encrypted within one request.
    fn copy_file_range(
        &self,
        _req: &Request,
        _ino_in: INodeNo,
        _fh_in: FileHandle,
        _offset_in: u64,
        _ino_out: INodeNo,
        _fh_out: FileHandle,
        _offset_out: u64,
        _len: u64,
        _flags: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        reply.error(Errno::ENOSYS);
    }
}
