//! Times that the kernel keeps.
//!
//! Of a regular file whose writes it caches, the kernel has its own modification
//! and change time, shows those to programs, and hands them down when it thinks
//! that they changed. To a program that writes in the tick of the clock in which
//! the times were set last, it hands nothing down: nothing changed. But the
//! write, when it comes here, moves the backing file's times. So what the kernel
//! has is noted before a file is changed, and the times are put back at `close`.

use std::sync::atomic::Ordering;

use parking_lot::{Mutex, MutexGuard};

use crate::backing::Errno;
use crate::backing::dir::Timestamps;

use super::inode::Inode;
use super::setattr::{SetTime, timespec};
use super::{Attr, Changes, Fs, FsError, Result, TimeSpec};

/// What the kernel has of a file.
#[derive(Default)]
pub(super) struct HeldTimes {
    held: Mutex<Held>,
    /// Held while the backing file's times are set.
    setting: Mutex<()>,
}

#[derive(Default)]
struct Held {
    /// Modification and change time, once they are known.
    times: Option<(TimeSpec, TimeSpec)>,
    /// The backing file's may be others by now.
    moved: bool,
    /// Changes of the content that are under way.
    running: usize,
}

/// A change of a file's content that is under way.
pub(super) struct Running<'a>(&'a Mutex<Held>);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.lock().running -= 1;
    }
}

impl HeldTimes {
    /// Notes what the kernel is told of a new file.
    pub(super) fn expect(&self, attr: &Attr) {
        self.held.lock().times = Some((attr.mtime, attr.ctime));
    }

    /// The turn to set the backing file's times. A file may be closed while newer ones
    /// are set, and what is put back then must not outlive those.
    pub(super) fn turn(&self) -> MutexGuard<'_, ()> {
        self.setting.lock()
    }

    /// Notes what the kernel is about to set.
    pub(super) fn set(&self, changes: &Changes) {
        let mut held = self.held.lock();
        match (changes.mtime, changes.ctime, held.times) {
            (Some(SetTime::At(mtime)), Some(ctime), _) => {
                held.times = Some((mtime, ctime));
                held.moved = held.running > 0;
            }
            (None, Some(ctime), Some((mtime, _))) => held.times = Some((mtime, ctime)),
            (None, None, _) => {}
            _ => {
                held.times = None;
                held.moved = false;
            }
        }
    }

    /// The times, if the backing file's may be others.
    fn take_moved(&self) -> Option<(TimeSpec, TimeSpec)> {
        let mut held = self.held.lock();
        let moved = held.moved;
        held.moved = held.running > 0;
        held.times.filter(|_| moved)
    }
}

impl Fs {
    /// Says that the kernel keeps the times of regular files.
    pub fn kernel_keeps_times(&self) {
        self.times_are_kept.store(true, Ordering::Relaxed);
    }

    /// To be called before a file's content is changed, and kept until it is.
    pub(super) fn hold_times<'a>(&self, inode: &'a Inode) -> Result<Option<Running<'a>>> {
        if !self.times_are_kept.load(Ordering::Relaxed) {
            return Ok(None);
        }
        let mut held = inode.held_times.held.lock();
        if held.times.is_none() {
            let attr = self.attr(inode)?;
            held.times = Some((attr.mtime, attr.ctime));
        }
        held.moved = true;
        held.running += 1;
        Ok(Some(Running(&inode.held_times.held)))
    }

    /// Gives the backing file the times that the kernel has.
    pub(super) fn restore_times(&self, inode: &Inode) {
        let _turn = inode.held_times.turn();
        let Some((mtime, ctime)) = inode.held_times.take_moved() else {
            return;
        };
        let times = Timestamps {
            last_access: timespec(None),
            last_modification: timespec(Some(SetTime::At(mtime))),
        };
        match self.set_times(inode, Some(&times), Some(ctime)) {
            // Another user's file on an unprivileged mount: its times move.
            Ok(_) | Err(FsError::Host(Errno::PERM)) => {}
            Err(error) => log::debug!("the times of inode {}: {error}", inode.ino),
        }
    }
}
