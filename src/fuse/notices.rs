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

/// The way to the kernel, and to the thread that sends notices.
#[derive(Default)]
pub(super) struct Notices {
    direct: OnceLock<Notifier>,
    thread: OnceLock<Sender<Notice>>,
}

impl Notices {
    /// Starts the thread; it ends with the last reference to this.
    pub(super) fn start(&self, notifier: Notifier) {
        let (sender, receiver) = channel::<Notice>();
        let _ = self.direct.set(notifier.clone());
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
        let _ = self.thread.set(sender);
    }

    /// Makes the kernel ask for an inode's attributes when it next needs them.
    /// This one notice waits for nothing, so any thread may send it.
    pub(super) fn attributes_changed(&self, ino: INodeNo) {
        if let Some(notifier) = self.direct.get() {
            let _ = notifier.inval_inode(ino, -1, 0);
        }
    }

    /// Puts a file's whole content into the kernel's page cache. Only for a file
    /// that nobody has open: this waits for the pages, and whoever is reading one
    /// may be waiting for the thread that called this.
    pub(super) fn store(&self, ino: INodeNo, content: &[u8]) {
        if let Some(notifier) = self.direct.get() {
            // Without it the kernel reads the file.
            let _ = notifier.store(ino, 0, content);
        }
    }

    /// Makes the kernel write back and drop what it holds of a file from
    /// `offset` on, then calls `then`.
    pub(super) fn write_back(&self, ino: u64, offset: u64, then: impl FnOnce() + Send + 'static) {
        self.send(Notice {
            ino,
            offset: offset as i64,
            then: Box::new(then),
        });
    }

    /// Makes the kernel write back and drop what it holds of a file, soon.
    pub(super) fn drop_pages(&self, ino: u64) {
        self.write_back(ino, 0, || {});
    }

    /// The same, and waits for it. Not for a thread that serves requests.
    pub(super) fn drop_pages_now(&self, ino: u64) {
        if let Some(notifier) = self.direct.get() {
            let _ = notifier.inval_inode(INodeNo(ino), 0, 0);
        }
    }

    fn send(&self, notice: Notice) {
        match self.thread.get() {
            Some(sender) => {
                if let Err(unsent) = sender.send(notice) {
                    (unsent.0.then)();
                }
            }
            None => (notice.then)(),
        }
    }
}
