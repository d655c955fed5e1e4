//! Changing attributes.

use crate::backing::dir::{self, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT};

use crate::sys::creds::Changer;

use super::attr::time;
use super::inode::{Inode, entry};
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
    /// Last change of anything, as the kernel keeps it of a regular file.
    pub ctime: Option<TimeSpec>,
}

impl Fs {
    /// Changes attributes and gives them all. `by` is who
    /// changes them, unless that keeps suid and sgid bits on a change of size.
    ///
    /// # Errors
    /// Those of the host and of the content.
    pub fn setattr(&self, ino: u64, changes: &Changes, by: Option<Changer>) -> Result<Entry> {
        let inode = self.inodes.get_to_change(ino)?;
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
            if let Some(by) = by {
                strip_privileges(&inode, by)?;
            }
            remove_capabilities(&inode)?;
        }
        // After the owner: changing that takes bits away.
        if let Some(mode) = changes.mode {
            dir::chmod(inode.fd()?, mode)?;
        }
        let stat = match self.change_times_of(&inode, changes)? {
            Some(stat) => stat,
            None => dir::stat(inode.fd()?)?,
        };
        let attr = self.attr_of(&inode, &stat);
        attr.map(|attr| entry(&inode, attr))
    }

    /// Gives what the host says after that, if it was asked.
    fn change_times_of(&self, inode: &Inode, changes: &Changes) -> Result<Option<dir::Stat>> {
        let _turn = inode.held_times.turn();
        inode.held_times.set(changes);
        let times = Timestamps {
            last_access: timespec(changes.atime),
            last_modification: timespec(changes.mtime),
        };
        if changes.atime.is_some() || changes.mtime.is_some() {
            self.set_times(inode, Some(&times), changes.ctime)
        } else if changes.ctime.is_some() {
            self.set_times(inode, None, changes.ctime)
        } else {
            Ok(None)
        }
    }

    /// Sets times, and what to show as the change time that this makes; with that,
    /// gives what the host says then.
    pub(super) fn set_times(
        &self,
        inode: &Inode,
        times: Option<&Timestamps>,
        ctime: Option<TimeSpec>,
    ) -> Result<Option<dir::Stat>> {
        let set = || -> Result<_> {
            let fd = inode.fd()?;
            if let Some(times) = times {
                dir::set_times(&fd, times)?;
            }
            let Some(shown) = ctime else {
                return Ok(None);
            };
            let stat = dir::stat(&fd)?;
            let known = &self.volume.change_times;
            known.show(inode.host_ino(), time(stat.stx_ctime), shown);
            Ok(Some(stat))
        };
        match self.files.get(inode.host_ino()) {
            Some(file) => file.with_times_at_rest(set),
            None => set(),
        }
    }
}

pub(super) fn timespec(time: Option<SetTime>) -> Timespec {
    let (tv_sec, tv_nsec) = match time {
        None => (0, UTIME_OMIT),
        Some(SetTime::Now) => (0, UTIME_NOW),
        Some(SetTime::At(t)) => (t.sec, t.nsec.into()),
    };
    Timespec { tv_sec, tv_nsec }
}
