//! Changing attributes.

use crate::backing::dir::{self, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT};

use super::inode::entry;
use super::open::strip_privileges;
use super::xattr::remove_capabilities;
use super::{Entry, Fs, Result, TimeSpec};

/// A time to set.
#[derive(Clone, Copy, Debug)]
pub enum SetTime {
    /// To the present.
    Now,
    /// To this.
    At(TimeSpec),
}

/// What to change; `None` stays.
#[derive(Clone, Copy, Debug, Default)]
pub struct Changes {
    /// Permission bits.
    pub mode: Option<u32>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Size of the plaintext.
    pub size: Option<u64>,
    /// Last access.
    pub atime: Option<SetTime>,
    /// Last change of the content.
    pub mtime: Option<SetTime>,
}

impl Fs {
    /// Changes attributes and gives them all. `privileged` says that the caller
    /// keeps suid and sgid bits on a change of size.
    ///
    /// # Errors
    /// Those of the host and of the content.
    pub fn setattr(&self, ino: u64, changes: &Changes, privileged: bool) -> Result<Entry> {
        let inode = self.inodes.get(ino)?;
        // First, as it may have to be done again where it can wait for a key.
        let sized = match changes.size {
            Some(size) => Some((size, self.open_content(&inode, true)?)),
            None => None,
        };
        if changes.uid.is_some() || changes.gid.is_some() {
            dir::chown(inode.fd()?, changes.uid, changes.gid)?;
        }
        if let Some((size, file)) = sized {
            file.set_size(size)?;
            if !privileged {
                strip_privileges(&inode)?;
            }
            remove_capabilities(&inode)?;
        }
        // After the owner: changing that takes bits away.
        if let Some(mode) = changes.mode {
            dir::chmod(inode.fd()?, mode)?;
        }
        if changes.atime.is_some() || changes.mtime.is_some() {
            let times = Timestamps {
                last_access: timespec(changes.atime),
                last_modification: timespec(changes.mtime),
            };
            let set = || dir::set_times(inode.fd()?, &times);
            match self.files.get(inode.host_ino) {
                Some(file) => file.with_times_at_rest(set)?,
                None => set()?,
            }
        }
        self.attr(&inode).map(|attr| entry(&inode, attr))
    }
}

fn timespec(time: Option<SetTime>) -> Timespec {
    let (tv_sec, tv_nsec) = match time {
        None => (0, UTIME_OMIT),
        Some(SetTime::Now) => (0, UTIME_NOW),
        Some(SetTime::At(t)) => (t.sec, t.nsec.into()),
    };
    Timespec { tv_sec, tv_nsec }
}
