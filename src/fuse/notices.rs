//! Notices to the kernel, sent from a thread of their own: one may wait for the
//! kernel to send requests back, which a thread that serves requests could not
//! answer.

use std::sync::OnceLock;
use std::sync::mpsc::{Sender, channel};
use std::thread;

use fuser::{INodeNo, Notifier};

type Then = Box<dyn FnOnce() + Send>;

struct Notice {
    ino: u64,
    offset: i64,
    then: Then,
}

/// The way to the thread that sends notices.
#[derive(Default)]
pub(super) struct Notices(OnceLock<Sender<Notice>>);

impl Notices {
    /// Starts the thread; it ends with the last reference to this.
    pub(super) fn start(&self, notifier: Notifier) {
        let (sender, receiver) = channel::<Notice>();
        let run = move || {
            for notice in receiver {
                let ino = INodeNo(notice.ino);
                // Not known any more: then there is nothing to write back.
                let _ = notifier.inval_inode(ino, notice.offset, 0);
                (notice.then)();
            }
        };
        let thread = thread::Builder::new().name("kmsfs-notices".into());
        if let Err(error) = thread.spawn(run) {
            log::error!("cannot start the thread for notices: {error}");
            return;
        }
        let _ = self.0.set(sender);
    }

    /// Makes the kernel write back and drop what it holds of a file from
    /// `offset` on, then calls `then`.
    pub(super) fn write_back(&self, ino: u64, offset: u64, then: impl FnOnce() + Send + 'static) {
        let notice = Notice {
            ino,
            offset: offset as i64,
            then: Box::new(then),
        };
        match self.0.get() {
            Some(sender) => {
                if let Err(unsent) = sender.send(notice) {
                    (unsent.0.then)();
                }
            }
            None => (notice.then)(),
        }
    }
}
