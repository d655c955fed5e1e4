//! Notices to the kernel, sent from a thread of their own: one may wait for the
//! kernel to send requests back, which a thread that serves requests could not
//! answer.

use std::io::{self, IoSlice};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, OnceLock};
use std::thread;

use crate::sys::fuse_device::FuseDevice;

use super::protocol::{Message, NOTIFY_INVAL_INODE, NOTIFY_RETRIEVE, NOTIFY_STORE};
use super::reply::header;

type Then = Box<dyn FnOnce() + Send>;

struct Notice {
    ino: u64,
    offset: i64,
    then: Then,
}

/// The way to the kernel, and to the thread that sends notices.
#[derive(Default)]
pub(super) struct Notices {
    direct: OnceLock<Arc<FuseDevice>>,
    thread: OnceLock<Sender<Notice>>,
}

impl Notices {
    /// Starts the thread; it ends with the last reference to this.
    pub(super) fn start(&self, device: Arc<FuseDevice>) {
        let (sender, receiver) = channel::<Notice>();
        let _ = self.direct.set(device.clone());
        let run = move || {
            for notice in receiver {
                // Not known any more: then there is nothing to write back.
                let _ = invalidate(&device, notice.ino, notice.offset);
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
    pub(super) fn attributes_changed(&self, ino: u64) {
        if let Some(device) = self.direct.get() {
            let _ = invalidate(device, ino, -1);
        }
    }

    /// Puts a file's whole content into the kernel's page cache. Only for a file
    /// that nobody has open: this waits for the pages, and whoever is reading one
    /// may be waiting for the thread that called this.
    pub(super) fn store(&self, ino: u64, content: &[u8]) {
        if let Some(device) = self.direct.get() {
            // Without it the kernel reads the file.
            let _ = store(device, ino, content);
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
        if let Some(device) = self.direct.get() {
            let _ = invalidate(device, ino, 0);
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

/// Has the kernel write back and drop what it holds of a file's content from
/// `offset` on, and its attributes; those alone if `offset` is negative.
fn invalidate(device: &FuseDevice, ino: u64, offset: i64) -> io::Result<()> {
    let to_the_end = 0;
    let message = Message::with_capacity(24).u64(ino).u64(offset as u64);
    send(device, NOTIFY_INVAL_INODE, &message.u64(to_the_end), &[])
}

/// Puts `content` where a file begins.
fn store(device: &FuseDevice, ino: u64, content: &[u8]) -> io::Result<()> {
    let message = Message::with_capacity(24).u64(ino).u64(0);
    let message = message.u32(content.len() as u32).u32(0);
    send(device, NOTIFY_STORE, &message, content)
}

/// Has the kernel send a request, to the queue of the processor that this thread
/// runs on: it asks for none of the content of a regular file that the kernel knows.
pub(super) fn ask_for_request(device: &FuseDevice, ino: u64) -> io::Result<()> {
    /// Even, as the kernel's own numbers are, and far above them.
    static NEXT: AtomicU64 = AtomicU64::new(1 << 63);
    let unique = NEXT.fetch_add(2, Ordering::Relaxed);
    let message = Message::with_capacity(32).u64(unique).u64(ino);
    let (offset, size) = (0, 0);
    send(
        device,
        NOTIFY_RETRIEVE,
        &message.u64(offset).u32(size).u32(0),
        &[],
    )
}

/// A notice is a reply to no request, with its number where an error would be.
fn send(device: &FuseDevice, number: i32, message: &Message, content: &[u8]) -> io::Result<()> {
    let header = header(0, -number, message.0.len() + content.len());
    device.send(&[
        IoSlice::new(&header),
        IoSlice::new(&message.0),
        IoSlice::new(content),
    ])
}
