//! Serving requests that are read from `/dev/fuse`.

use std::io;
use std::sync::Arc;

use crate::backing::PageBuffer;
use crate::sys::fuse_device::FuseDevice;

use super::adapter::Adapter;
use super::connection::{MAX_WRITE, ROOM};
use super::protocol::op;
use super::reply::{Reply, Sink};
use super::request::Request;

/// The headers of a request, and then some: the kernel wants more than it uses.
const HEADERS: usize = 4096;

/// Serves until the filesystem is unmounted.
///
/// # Errors
/// Those of the device.
pub(super) fn serve(device: Arc<FuseDevice>, adapter: &Adapter) -> io::Result<()> {
    let mut bytes = vec![0; HEADERS + MAX_WRITE];
    let mut room = PageBuffer::default();
    while let Some(len) = device.receive(&mut bytes)? {
        let Some(request) = Request::from_device(&bytes[..len]) else {
            log::error!("the kernel sent {len} bytes that are no request");
            continue;
        };
        if matches!(request.opcode, op::FORGET | op::BATCH_FORGET) {
            adapter.forget(&request);
            continue;
        }
        let reply = Reply::new(request.unique, Sink::Device(device.clone()));
        adapter.serve(&request, room.get(ROOM), reply);
    }
    Ok(())
}
