//! New files, directories and nodes.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::backing::{Errno, dir};
use crate::content::{EncryptedFile, NewIdentity};
use crate::sys::creds::{Caller, run_as};

use super::inode::{Entry, Inode, entry};
use super::open::OpenOptions;
use super::{Attr, Fs, FsError, Result};

/// Who makes a node, and with which permissions.
#[derive(Clone, Copy, Debug)]
pub struct NewNode {
    /// Becomes the owner.
    pub caller: Caller,
    /// Permission bits, for `mknod` also the kind.
    pub mode: u32,
    /// The caller's umask, which a default ACL overrides.
    pub umask: u32,
}

impl Fs {
    /// Creates a regular file and opens it; gives the entry and the handle.
    ///
    /// # Errors
    /// Those of the host, of names, and of the key provider.
    pub fn create(
        &self,
        parent: u64,
        name: &[u8],
        new: NewNode,
        exclusive: bool,
        options: OpenOptions,
    ) -> Result<(Entry, u64)> {
        self.volume.refuse_if_locked()?;
        let parent = self.inodes.get_to_change(parent)?;
        let stored = self.stored_name(&parent, name)?;
        // Before anything is made, as it may have to be waited for.
        let identity = NewIdentity::get(&self.volume)?;
        stored.prepare(&parent)?;
        let create = |exclusive| dir::create(parent.fd()?, stored.entry(), new.mode, exclusive);
        let created = run_as(new.caller, new.umask, || match create(true) {
            Err(Errno::EXIST) if !exclusive => Ok((create(false)?, false)),
            created => Ok((created?, true)),
        });
        let (fd, is_new) = match created {
            Ok(created) => created,
            Err(error) => {
                stored.clean_up(&parent);
                return Err(FsError::Host(error));
            }
        };
        let stat = dir::stat(&fd)?;
        let (inode, attr) = self.admit_found(&parent, stored.entry(), None, &stat)?;
        match self.open_created(&inode, &attr, fd, identity, is_new, options) {
            Ok(handle) => Ok((entry(&inode, attr), handle)),
            Err(error) => {
                // The caller is told that there is no such file.
                if is_new {
                    let _ = dir::unlink(parent.fd()?, stored.entry());
                    stored.clean_up(&parent);
                }
                self.forget(inode.ino, 1);
                Err(error)
            }
        }
    }

    /// Creates a regular file without a name in a directory and opens it; gives the
    /// entry and the handle.
    ///
    /// # Errors
    /// Those of the host and of the key provider.
    pub fn create_unnamed(
        &self,
        directory: u64,
        new: NewNode,
        options: OpenOptions,
    ) -> Result<(Entry, u64)> {
        self.volume.refuse_if_locked()?;
        let directory = self.inodes.get(directory)?;
        let identity = NewIdentity::get(&self.volume)?;
        let fd = run_as(new.caller, new.umask, || {
            dir::create_unnamed(directory.fd()?, new.mode)
        })?;
        let stat = dir::stat(&fd)?;
        let (inode, attr) = self.admit(dir::reopen_path(&fd)?, &stat)?;
        match self.open_created(&inode, &attr, fd, identity, true, options) {
            Ok(handle) => Ok((entry(&inode, attr), handle)),
            Err(error) => {
                self.forget(inode.ino, 1);
                Err(error)
            }
        }
    }

    /// Opens the content of the inode behind `fd`, which was opened as it was made or,
    /// unless `is_new`, found.
    fn open_created(
        &self,
        inode: &Arc<Inode>,
        attr: &Attr,
        fd: OwnedFd,
        identity: NewIdentity,
        is_new: bool,
        options: OpenOptions,
    ) -> Result<u64> {
        self.inodes.kept.changes(inode);
        let file = self.files.get_or_open(inode.host_ino(), || {
            inode.offered.store(true, Ordering::Release);
            let (volume, ino) = (self.volume.clone(), inode.host_ino());
            let backing = inode.reference.content(fd);
            match is_new {
                true => EncryptedFile::new(volume, ino, backing),
                false => EncryptedFile::open(volume, ino, backing, true),
            }
        })?;
        file.adopt(identity);
        self.volume.refuse_if_locked()?;
        file.ensure_key()?;
        if is_new {
            inode.held_times.expect(attr);
        }
        Ok(self.handles.add(inode, file, options))
    }

    /// Creates a directory.
    ///
    /// # Errors
    /// Those of the host and of names.
    pub fn mkdir(&self, parent: u64, name: &[u8], new: NewNode) -> Result<Entry> {
        let parent = self.inodes.get_to_change(parent)?;
        let stored = self.stored_name(&parent, name)?;
        stored.prepare(&parent)?;
        // Its maker puts the id inside, so needs access for a moment even
        // where the mode will give none.
        let needs_access = !crate::sys::creds::can_override();
        let mode = if needs_access {
            new.mode | 0o300
        } else {
            new.mode
        };
        let make = || -> Result<_> {
            dir::mkdir(parent.fd()?, stored.entry(), mode)?;
            let fd = dir::open_path(parent.fd()?, stored.entry())?;
            if let Err(error) = self.make_dir_id(&fd) {
                let _ = dir::rmdir(parent.fd()?, stored.entry());
                return Err(error);
            }
            if mode != new.mode {
                dir::chmod(
                    &fd,
                    u32::from(dir::stat(&fd)?.stx_mode) & !(0o300 & !new.mode),
                )?;
            }
            Ok(fd)
        };
        match run_as(new.caller, new.umask, make) {
            Ok(fd) => {
                let stat = dir::stat(&fd)?;
                let (inode, attr) = self.admit_found(&parent, stored.entry(), Some(fd), &stat)?;
                Ok(entry(&inode, attr))
            }
            Err(error) => {
                stored.clean_up(&parent);
                Err(error)
            }
        }
    }

    /// Creates a fifo, socket, device or empty regular file.
    ///
    /// # Errors
    /// Those of the host and of names.
    pub fn mknod(&self, parent: u64, name: &[u8], new: NewNode, device: u32) -> Result<Entry> {
        let parent = self.inodes.get_to_change(parent)?;
        let stored = self.stored_name(&parent, name)?;
        stored.prepare(&parent)?;
        let make = || dir::mknod(parent.fd()?, stored.entry(), new.mode, device);
        // Devices need a capability that taking on the caller's ids drops; the
        // kernel has checked that the caller may make them.
        let made = if matches!(new.mode & 0o170_000, 0o020_000 | 0o060_000) {
            run_as(Caller { uid: 0, gid: 0 }, new.umask, make).and_then(|()| {
                let fd = dir::open_path(parent.fd()?, stored.entry())?;
                let mode = dir::stat(&fd)?.stx_mode;
                dir::chown(&fd, Some(new.caller.uid), None)?;
                let setgid = u32::from(dir::stat(parent.fd()?)?.stx_mode) & 0o2000 != 0;
                if !setgid {
                    dir::chown(&fd, None, Some(new.caller.gid))?;
                }
                // A change of the owner takes suid and sgid bits away.
                dir::chmod(&fd, mode.into())
            })
        } else {
            run_as(new.caller, new.umask, make)
        };
        if let Err(error) = made {
            stored.clean_up(&parent);
            return Err(FsError::Host(error));
        }
        self.look_up_stored(&parent, stored.entry())
    }
}
