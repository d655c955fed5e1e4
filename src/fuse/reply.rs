//! The answer to a request.

use std::io::{self, IoSlice};
use std::ops::Range;
use std::sync::Arc;

use crate::backing::Errno;
use crate::sys::fuse_device::FuseDevice;

use super::protocol::{Message, OUT_HEADER};
use super::rings::Slot;

/// Where an answer goes.
pub(super) enum Sink {
    /// It is written to the device.
    Device(Arc<FuseDevice>),
    /// It goes into the buffer that brought the request.
    Ring(Arc<Slot>),
}

/// The one answer that a request gets, from whichever thread; `EIO` if it is
/// dropped.
pub(super) struct Reply {
    unique: u64,
    sink: Option<Sink>,
}

impl Reply {
    pub(super) fn new(unique: u64, sink: Sink) -> Self {
        let sink = Some(sink);
        Self { unique, sink }
    }

    pub(super) fn error(self, errno: Errno) {
        self.send(errno.raw_os_error(), &[]);
    }

    pub(super) fn ok(self) {
        self.send(0, &[]);
    }

    pub(super) fn data(self, data: &[u8]) {
        self.send(0, data);
    }

    pub(super) fn message(self, message: &Message) {
        self.send(0, &message.0);
    }

    /// Answers with a part of the room that [`super::adapter::Adapter::serve`] was
    /// given for this.
    pub(super) fn placed(mut self, room: &[u8], part: Range<usize>) {
        match self.sink.take() {
            Some(Sink::Ring(slot)) => slot.placed(part),
            Some(Sink::Device(device)) => write(&device, self.unique, 0, &room[part]),
            None => {}
        }
    }

    /// Answers with the value of an extended attribute, or with how long it is.
    pub(super) fn value(self, value: &[u8], size: u32) {
        if size == 0 {
            let len = value.len() as u32;
            self.message(&Message::with_capacity(8).u32(len).u32(0));
        } else if value.len() > size as usize {
            self.error(Errno::RANGE);
        } else {
            self.data(value);
        }
    }

    fn send(mut self, error: i32, data: &[u8]) {
        self.answer(error, data);
    }

    fn answer(&mut self, error: i32, data: &[u8]) {
        match self.sink.take() {
            Some(Sink::Device(device)) => write(&device, self.unique, error, data),
            Some(Sink::Ring(slot)) => slot.answer(error, data),
            None => {}
        }
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        self.answer(Errno::IO.raw_os_error(), &[]);
    }
}

fn write(device: &FuseDevice, unique: u64, error: i32, data: &[u8]) {
    let header = header(unique, error, data.len());
    match device.send(&[IoSlice::new(&header), IoSlice::new(data)]) {
        Ok(()) => {}
        // It came after the request was given up: nothing is wrong.
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => log::error!("cannot answer the kernel: {error}"),
    }
}

/// `struct fuse_out_header` of an answer with `len` bytes behind it.
pub(super) fn header(unique: u64, error: i32, len: usize) -> [u8; OUT_HEADER] {
    let mut header = [0; OUT_HEADER];
    header[..4].copy_from_slice(&((OUT_HEADER + len) as u32).to_ne_bytes());
    header[4..8].copy_from_slice(&(-error).to_ne_bytes());
    header[8..].copy_from_slice(&unique.to_ne_bytes());
    header
}
