//! What is agreed with the kernel when a mount begins (`FUSE_INIT`).

use std::io::{self, IoSlice};

use crate::sys::fuse_device::FuseDevice;

use super::protocol::{Fields, Message, op};
use super::reply::header;
use super::request::Request;

/// The most that a write brings and a read asks for.
pub(super) const MAX_WRITE: usize = 1 << 20;
/// Room for what is read: a read may begin and end within blocks.
pub(super) const ROOM: usize = MAX_WRITE + 2 * (64 << 10);

const MAX_BACKGROUND: u16 = 128;
const CONGESTION: u16 = 96;

/// The protocol's version that this module speaks.
const MAJOR: u32 = 7;
const MINOR: u32 = 40;

/// Bits of `fuse_init_in.flags`, above them `flags2`.
mod flag {
    pub(super) const ASYNC_READ: u64 = 1;
    pub(super) const EXPORT_SUPPORT: u64 = 1 << 4;
    pub(super) const BIG_WRITES: u64 = 1 << 5;
    pub(super) const DONT_MASK: u64 = 1 << 6;
    pub(super) const DO_READDIRPLUS: u64 = 1 << 13;
    pub(super) const ASYNC_DIO: u64 = 1 << 15;
    pub(super) const WRITEBACK_CACHE: u64 = 1 << 16;
    pub(super) const PARALLEL_DIROPS: u64 = 1 << 18;
    pub(super) const POSIX_ACL: u64 = 1 << 20;
    pub(super) const MAX_PAGES: u64 = 1 << 22;
    pub(super) const CACHE_SYMLINKS: u64 = 1 << 23;
    pub(super) const EXPLICIT_INVAL_DATA: u64 = 1 << 25;
    pub(super) const HANDLE_KILLPRIV_V2: u64 = 1 << 28;
    pub(super) const INIT_EXT: u64 = 1 << 30;
    pub(super) const OVER_IO_URING: u64 = 1 << 41;
}

const WANTED: u64 = flag::ASYNC_READ
    | flag::EXPORT_SUPPORT
    | flag::BIG_WRITES
    | flag::DONT_MASK
    | flag::DO_READDIRPLUS
    | flag::ASYNC_DIO
    | flag::WRITEBACK_CACHE
    | flag::PARALLEL_DIROPS
    | flag::POSIX_ACL
    | flag::MAX_PAGES
    | flag::CACHE_SYMLINKS
    | flag::EXPLICIT_INVAL_DATA
    | flag::HANDLE_KILLPRIV_V2
    | flag::INIT_EXT;

/// Answers the kernel's first request. `rings` is asked whether they are there,
/// where the kernel offers to use them, and then they are used. Says whether the
/// kernel caches writes, and keeps the times of regular files then.
///
/// # Errors
/// Those of the device; a kernel that speaks another protocol.
pub(super) fn agree(device: &FuseDevice, rings: impl FnOnce() -> bool) -> io::Result<bool> {
    let mut bytes = vec![0; MAX_WRITE + 4096];
    let len = device.receive(&mut bytes)?;
    let request = len.and_then(|len| Request::from_device(&bytes[..len]));
    let request = request.filter(|request| request.opcode == op::INIT);
    let request = request.ok_or(io::ErrorKind::NotConnected)?;
    let offer = Offer::parse(request.operation).ok_or(io::ErrorKind::InvalidData)?;
    if offer.major != MAJOR {
        return Err(io::Error::new(
            io::ErrorKind::Unsupported,
            format!("the kernel speaks version {} of FUSE", offer.major),
        ));
    }
    let missing = WANTED & !offer.flags;
    if missing != 0 {
        log::info!("this kernel lacks FUSE capabilities {missing:#x}");
    }
    let mut flags = WANTED & offer.flags;
    if offer.flags & flag::OVER_IO_URING != 0 && rings() {
        flags |= flag::OVER_IO_URING;
    }
    let background = u32::from(MAX_BACKGROUND) | u32::from(CONGESTION) << 16;
    let reply = Message::with_capacity(64)
        .u32(MAJOR)
        .u32(MINOR.min(offer.minor))
        .u32(offer.max_readahead.min(MAX_WRITE as u32))
        .u32(flags as u32)
        .u32(background)
        .u32(MAX_WRITE as u32)
        // Times are in nanoseconds.
        .u32(1)
        .u32((MAX_WRITE / rustix::param::page_size()) as u32)
        .u32((flags >> 32) as u32)
        .zeros(28);
    let header = header(request.unique, 0, reply.0.len());
    device.send(&[IoSlice::new(&header), IoSlice::new(&reply.0)])?;
    Ok(flags & flag::WRITEBACK_CACHE != 0)
}

/// `struct fuse_init_in`.
struct Offer {
    major: u32,
    minor: u32,
    max_readahead: u32,
    flags: u64,
}

impl Offer {
    fn parse(mut fields: Fields<'_>) -> Option<Self> {
        let (major, minor) = (fields.u32()?, fields.u32()?);
        let max_readahead = fields.u32()?;
        let mut flags = u64::from(fields.u32()?);
        if flags & flag::INIT_EXT != 0 {
            flags |= u64::from(fields.u32()?) << 32;
        }
        Some(Self {
            major,
            minor,
            max_readahead,
            flags,
        })
    }
}
