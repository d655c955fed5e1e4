//! From requests to the adapter's methods.

use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::backing::Errno;
use crate::fs::{Changes, SetTime, TimeSpec, WriteKind};

use super::adapter::Adapter;
use super::protocol::{
    self, FSYNC_FDATASYNC, GETATTR_FH, WRITE_CACHE, WRITE_KILL_SUIDGID, op, valid,
};
use super::reply::Reply;
use super::request::Request;

impl Adapter {
    /// Does what is asked, and sees to it that `reply` is sent, perhaps later.
    /// `room` is for what a read gives.
    pub(super) fn serve(&self, req: &Request<'_>, room: &mut [u8], reply: Reply) {
        // The reply that is dropped on the way says EIO; the hook tells the log.
        let dispatch = AssertUnwindSafe(|| self.dispatch(req, room, reply));
        if let Ok(None) = catch_unwind(dispatch) {
            log::error!("request {} is shorter than it should be", req.opcode);
        }
    }

    fn dispatch(&self, req: &Request<'_>, room: &mut [u8], reply: Reply) -> Option<()> {
        let (mut fields, mut rest) = (req.operation, req.rest);
        match req.opcode {
            op::LOOKUP => self.lookup(req, rest.name()?, reply),
            op::GETATTR => {
                let flags = fields.u32()?;
                fields.u32()?;
                let handle = fields.u64()?;
                self.getattr(req, (flags & GETATTR_FH != 0).then_some(handle), reply);
            }
            // Whoever asks by this has no handle.
            op::STATX => self.statx(req, reply),
            op::SETATTR => self.setattr(req, changes(req)?, reply),
            op::READLINK => self.readlink(req, reply),
            op::SYMLINK => self.symlink(req, rest.name()?, rest.name()?, reply),
            op::MKNOD => {
                let (mode, rdev, umask) = (fields.u32()?, fields.u32()?, fields.u32()?);
                self.mknod(req, rest.name()?, req.new_node(mode, umask), rdev, reply);
            }
            op::MKDIR => {
                let (mode, umask) = (fields.u32()?, fields.u32()?);
                self.mkdir(req, rest.name()?, req.new_node(mode, umask), reply);
            }
            op::UNLINK => self.unlink(req, rest.name()?, reply),
            op::RMDIR => self.rmdir(req, rest.name()?, reply),
            op::RENAME | op::RENAME2 => {
                let to = fields.u64()?;
                let flags = match req.opcode {
                    op::RENAME2 => fields.u32()?,
                    _ => 0,
                };
                self.rename(req, rest.name()?, to, rest.name()?, flags, reply);
            }
            op::LINK => self.link(req, fields.u64()?, rest.name()?, reply),
            op::OPEN => self.open(req, fields.u32()?, reply),
            op::CREATE => {
                let (flags, mode, umask) = (fields.u32()?, fields.u32()?, fields.u32()?);
                self.create(req, rest.name()?, flags, req.new_node(mode, umask), reply);
            }
            op::TMPFILE => {
                let (flags, mode, umask) = (fields.u32()?, fields.u32()?, fields.u32()?);
                self.create_unnamed(req, flags, req.new_node(mode, umask), reply);
            }
            op::READ => {
                let (handle, offset, size) = (fields.u64()?, fields.u64()?, fields.u32()?);
                self.read(req, handle, offset, size as usize, room, reply);
            }
            op::WRITE => {
                let (handle, offset) = (fields.u64()?, fields.u64()?);
                let (size, flags) = (fields.u32()?, fields.u32()?);
                let kind = WriteKind {
                    accepted_before: flags & WRITE_CACHE != 0,
                    by: match flags & WRITE_KILL_SUIDGID != 0 {
                        true => req.changer(),
                        false => None,
                    },
                };
                let data = rest.bytes(size as usize)?;
                self.write(req, handle, offset, data, kind, reply);
            }
            op::RELEASE => self.release(fields.u64()?, reply),
            op::FSYNC => {
                let (handle, flags) = (fields.u64()?, fields.u32()?);
                self.fsync(req, handle, flags & FSYNC_FDATASYNC != 0, reply);
            }
            op::FSYNCDIR => {
                let (_handle, flags) = (fields.u64()?, fields.u32()?);
                self.fsyncdir(req, flags & FSYNC_FDATASYNC != 0, reply);
            }
            op::READDIR | op::READDIRPLUS => {
                let (_handle, offset, size) = (fields.u64()?, fields.u64()?, fields.u32()?);
                let plus = req.opcode == op::READDIRPLUS;
                self.readdir(req, offset, size as usize, plus, reply);
            }
            op::STATFS => self.statfs(req, reply),
            op::SETXATTR => {
                let (size, flags) = (fields.u32()?, fields.u32()?);
                let name = rest.name()?;
                self.setxattr(req, name, rest.bytes(size as usize)?, flags, reply);
            }
            op::GETXATTR => self.getxattr(req, rest.name()?, fields.u32()?, reply),
            op::LISTXATTR => self.listxattr(req, fields.u32()?, reply),
            op::REMOVEXATTR => self.removexattr(req, rest.name()?, reply),
            op::FALLOCATE => {
                let (handle, offset, length) = (fields.u64()?, fields.u64()?, fields.u64()?);
                self.fallocate(req, handle, offset, length, fields.u32()?, reply);
            }
            op::LSEEK => {
                let (handle, offset, whence) = (fields.u64()?, fields.u64()?, fields.u32()?);
                self.lseek(req, handle, offset, whence, reply);
            }
            op::IOCTL => reply.error(Errno::NOTTY),
            op::DESTROY | op::NOTIFY_REPLY => reply.ok(),
            // The kernel remembers that these are not there, and does without. FLUSH:
            // it writes back dirty pages at close and reports their errors by itself.
            // OPENDIR: it then lists directories without opening them, and caches
            // what it is told. ACCESS: it checks permissions itself
            // (`default_permissions`). COPY_FILE_RANGE: it copies in its own page
            // cache, where the source often is, and writes the copy back as any other
            // write; here it would be decrypted and encrypted within one request.
            _ => reply.error(Errno::NOSYS),
        }
        Some(())
    }

    /// Takes in that the kernel does not know inodes any more; nobody waits for an
    /// answer.
    pub(super) fn forget(&self, req: &Request<'_>) {
        let (mut fields, mut rest) = (req.operation, req.rest);
        if req.opcode == op::FORGET {
            if let Some(lookups) = fields.u64() {
                self.served.fs.forget(req.ino, lookups);
            }
            return;
        }
        for _ in 0..fields.u32().unwrap_or(0) {
            let (Some(ino), Some(lookups)) = (rest.u64(), rest.u64()) else {
                return;
            };
            self.served.fs.forget(ino, lookups);
        }
    }
}

/// `struct fuse_setattr_in`.
fn changes(req: &Request<'_>) -> Option<Changes> {
    let mut fields = req.operation;
    let bits = fields.u32()?;
    fields.u32()?;
    let _handle = fields.u64()?;
    let size = fields.u64()?;
    let _lock_owner = fields.u64()?;
    let seconds = [fields.u64()?, fields.u64()?, fields.u64()?];
    let nanoseconds = [fields.u32()?, fields.u32()?, fields.u32()?];
    let mode = fields.u32()?;
    fields.u32()?;
    let (uid, gid) = (fields.u32()?, fields.u32()?);
    let has = |bit| bits & bit != 0;
    let at = |which: usize| -> TimeSpec { protocol::time(seconds[which], nanoseconds[which]) };
    let set = |bit, now, which| match (has(bit), has(now)) {
        (false, _) => None,
        (true, true) => Some(SetTime::Now),
        (true, false) => Some(SetTime::At(at(which))),
    };
    Some(Changes {
        mode: has(valid::MODE).then_some(mode),
        uid: has(valid::UID).then_some(uid),
        gid: has(valid::GID).then_some(gid),
        size: has(valid::SIZE).then_some(size),
        atime: set(valid::ATIME, valid::ATIME_NOW, 0),
        mtime: set(valid::MTIME, valid::MTIME_NOW, 1),
        ctime: has(valid::CTIME).then(|| at(2)),
    })
}
