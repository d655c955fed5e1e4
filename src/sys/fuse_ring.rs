//! FUSE over `io_uring` (Linux 6.14 and later, `fuse-io-uring.rst` of the kernel's
//! documentation): the kernel puts a request into a buffer of ours and wakes the
//! thread that offered it; one system call gives the reply and offers the buffer
//! again.
//!
//! Each processor has a queue, which gets the requests of the programs that run
//! there. The kernel takes the buffer that was offered last.
#![allow(unsafe_code)]

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::ptr::NonNull;
use std::slice;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use io_uring::squeue::Entry128;
use io_uring::types::{Fd, SubmitArgs};
use io_uring::{EnterFlags, IoUring, cqueue, opcode};
use rustix::event::EventfdFlags;
use rustix::fs::FlockOperation;
use rustix::mm::{Advice, MapFlags, ProtFlags};

use super::fuse_device::FuseDevice;
use super::process::kernel_version;

/// Of `linux/fuse.h`: `enum fuse_uring_cmd`, and where the parts of `struct
/// fuse_uring_req_header` lie.
const REGISTER: u32 = 1;
const COMMIT_AND_FETCH: u32 = 2;
const OPERATION_AT: usize = 128;
const COMMIT_ID_AT: usize = 264;
const PAYLOAD_LEN_AT: usize = 272;
const HEADER_LEN: usize = 288;

/// The header has a page of its own.
const PAGE: usize = 4096;

/// Commands in a ring of which at most a few are ever used at once.
const COMMANDS: u32 = 8;

/// What woke a thread that was not a request.
const BELL: u64 = u64::MAX;

/// A processor's queue of requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Queue {
    processor: u16,
    /// There is such a processor now.
    pub online: bool,
}

impl Queue {
    /// One for each processor that this machine can ever have, which the kernel
    /// insists on.
    pub fn all() -> Vec<Self> {
        let online = processors("online").unwrap_or_default();
        let queue = |processor| Queue {
            processor,
            online: online.contains(&processor),
        };
        // The kernel numbers as many queues as there are processors.
        let count = processors("possible").map_or(1, |list| list.len());
        (0..count as u16).map(queue).collect()
    }

    /// The processor's number.
    pub fn processor(self) -> u16 {
        self.processor
    }
}

/// Which processors are `possible`, or `online`.
fn processors(state: &str) -> Option<Vec<u16>> {
    let list = std::fs::read_to_string(format!("/sys/devices/system/cpu/{state}"));
    numbers(&list.ok()?)
}

/// The numbers of a list such as `0-3,8`.
fn numbers(list: &str) -> Option<Vec<u16>> {
    let mut numbers = Vec::new();
    for range in list.trim().split(',') {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last) = (first.parse::<u16>().ok()?, last.parse::<u16>().ok()?);
        numbers.extend(first..=last);
    }
    Some(numbers)
}

/// Memory that the kernel and one thread write to in turn.
struct Buffer {
    map: NonNull<u8>,
    len: usize,
    /// The kernel has it.
    offered: bool,
}

// SAFETY: the mapping belongs to the buffer and is not bound to a thread.
unsafe impl Send for Buffer {}

impl Buffer {
    fn new(payload: usize) -> io::Result<Self> {
        let len = PAGE + payload;
        let (protection, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE);
        // SAFETY: a new mapping, where the kernel finds room.
        let map =
            unsafe { rustix::mm::mmap_anonymous(std::ptr::null_mut(), len, protection, flags) }?;
        let map = NonNull::new(map.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self {
            map,
            len,
            offered: false,
        })
    }

    fn bytes(&mut self) -> &mut [u8] {
        assert!(!self.offered, "the kernel has this buffer");
        // SAFETY: the mapping is ours, of this length, and the kernel does not
        // write to it.
        unsafe { slice::from_raw_parts_mut(self.map.as_ptr(), self.len) }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if self.offered {
            // The kernel may still write to it.
            return;
        }
        // SAFETY: the mapping is ours, and nothing refers to it any more.
        let _ = unsafe { rustix::mm::munmap(self.map.as_ptr().cast(), self.len) };
    }
}

/// The parts of a buffer that holds a request.
pub struct Held<'a> {
    /// `struct fuse_in_header`, then that of the operation.
    pub header: &'a mut [u8],
    /// What the operation's own header is.
    pub operation: &'a [u8],
    /// How much of `payload` the request is.
    pub len: usize,
    /// The rest of the request, and room for the reply.
    pub payload: &'a mut [u8],
}

/// What a thread was woken for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A request is in this buffer.
    Request(usize),
    /// Somebody rang the bell.
    Bell,
    /// The kernel will not put any more into a buffer, for this reason: an
    /// `errno`, of which `ENOTCONN` is that the filesystem is unmounted.
    End(i32),
}

/// Wakes a ring's thread.
#[derive(Clone)]
pub struct Bell(Arc<OwnedFd>);

impl Bell {
    /// Wakes it.
    pub fn ring(&self) {
        // Fails only where it has been rung 2^64 times.
        let _ = rustix::io::write(&*self.0, &1u64.to_ne_bytes());
    }
}

/// One thread's way to the kernel.
pub struct FuseRing {
    ring: IoUring<Entry128>,
    device: Arc<FuseDevice>,
    queue: Queue,
    buffers: Vec<Buffer>,
    payload: usize,
    bell: Bell,
    /// A thread that waits for requests does not wait for a disk.
    waiting: EnterFlags,
}

impl FuseRing {
    /// A ring whose buffers take `payload` bytes each.
    ///
    /// # Errors
    /// Those of `io_uring_setup(2)`, which a sysctl, a container or an old kernel
    /// may refuse.
    pub fn new(device: Arc<FuseDevice>, queue: Queue, payload: usize) -> io::Result<Self> {
        let ring = IoUring::<Entry128>::builder()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_r_disabled()
            .setup_clamp()
            .build(COMMANDS)?;
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        let waiting = match ring.params().is_feature_no_iowait() {
            true => EnterFlags::NO_IOWAIT,
            false => EnterFlags::empty(),
        };
        Ok(Self {
            ring,
            device,
            queue,
            buffers: Vec::new(),
            payload,
            bell: Bell(Arc::new(rustix::event::eventfd(0, flags)?)),
            waiting,
        })
    }

    /// Makes the calling thread the one that uses the ring.
    ///
    /// # Errors
    /// Those of `io_uring_register(2)`.
    pub fn start(&mut self) -> io::Result<()> {
        self.ring.submitter().register_enable_rings()?;
        self.listen();
        self.offer_another()
    }

    /// What wakes the thread.
    pub fn bell(&self) -> Bell {
        self.bell.clone()
    }

    /// The queue whose requests come here.
    pub fn queue(&self) -> Queue {
        self.queue
    }

    /// Whether a request can come, or has come that [`Self::wait`] has not told of.
    pub fn is_offered_any(&self) -> bool {
        self.buffers.iter().any(|buffer| buffer.offered)
    }

    /// Offers one more buffer.
    ///
    /// # Errors
    /// Those of `mmap(2)`.
    pub fn offer_another(&mut self) -> io::Result<()> {
        let mut buffer = Buffer::new(self.payload)?;
        let map = buffer.map.as_ptr();
        buffer.offered = true;
        let index = self.buffers.len();
        self.buffers.push(buffer);
        let parts = [
            libc::iovec {
                iov_base: map.cast(),
                iov_len: HEADER_LEN,
            },
            libc::iovec {
                // SAFETY: within the mapping.
                iov_base: unsafe { map.add(PAGE) }.cast(),
                iov_len: self.payload,
            },
        ];
        let mut command = self.command(REGISTER, 0, Some(parts.as_ptr() as u64));
        // SAFETY: an entry is the kernel's `struct io_uring_sqe` of 128 bytes, in
        // which the length lies at 24; the crate has no way to set it here.
        unsafe {
            let len = (&raw mut command).cast::<u8>().add(24).cast::<u32>();
            len.write_unaligned(parts.len() as u32);
        }
        self.push(command.user_data(index as u64));
        // The parts are read during this call.
        self.ring.submit()?;
        Ok(())
    }

    /// Submits what is to be submitted, and waits.
    ///
    /// # Errors
    /// Those of `io_uring_enter(2)`.
    pub fn wait(&mut self) -> io::Result<Event> {
        loop {
            // A reply goes out before the next request is looked at.
            let idle = self.ring.completion().is_empty();
            if idle || !self.ring.submission().is_empty() {
                let args = SubmitArgs::new();
                let want = usize::from(idle);
                let submitter = self.ring.submitter();
                match submitter.submit_with_args_and_flags(want, &args, self.waiting) {
                    Ok(_) => {}
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) => return Err(error),
                }
            }
            let next = self.ring.completion().next();
            if let Some(completion) = next {
                return Ok(self.event(&completion));
            }
        }
    }

    fn event(&mut self, completion: &cqueue::Entry) -> Event {
        if completion.user_data() == BELL {
            let mut count = [0; 8];
            let _ = rustix::io::read(&*self.bell.0, &mut count);
            self.listen();
            return Event::Bell;
        }
        let index = completion.user_data() as usize;
        self.buffers[index].offered = false;
        match completion.result() {
            0.. => Event::Request(index),
            error => Event::End(-error),
        }
    }

    /// The buffer of a request that came.
    pub fn held(&mut self, index: usize) -> Held<'_> {
        let (page, payload) = self.buffers[index].bytes().split_at_mut(PAGE);
        let len = u32_at(page, PAYLOAD_LEN_AT) as usize;
        let (header, rest) = page.split_at_mut(OPERATION_AT);
        Held {
            header,
            operation: &rest[..OPERATION_AT],
            len: len.min(payload.len()),
            payload,
        }
    }

    /// Gives the reply that is in a buffer, `len` bytes of its payload, with the
    /// next [`Self::wait`].
    pub fn commit(&mut self, index: usize, len: usize) {
        let queue = self.buffers[index].bytes();
        let id = u64_at(queue, COMMIT_ID_AT);
        queue[PAYLOAD_LEN_AT..PAYLOAD_LEN_AT + 4].copy_from_slice(&(len as u32).to_ne_bytes());
        self.buffers[index].offered = true;
        let command = self.command(COMMIT_AND_FETCH, id, None);
        self.push(command.user_data(index as u64));
    }

    /// Gives the memory back that a buffer's payload takes; its content is lost.
    pub fn discard(&mut self, index: usize) {
        let payload = &mut self.buffers[index].bytes()[PAGE..];
        let (start, len) = (payload.as_mut_ptr().cast(), payload.len());
        // Where memory is locked, only the second does it, from Linux 5.18 on.
        for advice in [Advice::LinuxDontNeed, Advice::LinuxDontneedLocked] {
            // SAFETY: whole pages of a mapping of ours; they read as zeros afterwards.
            if unsafe { rustix::mm::madvise(start, len, advice) }.is_ok() {
                break;
            }
        }
    }

    /// `struct fuse_uring_cmd_req`: flags, the request's id, the queue.
    fn command(&self, operation: u32, id: u64, parts: Option<u64>) -> Entry128 {
        let mut request = [0; 80];
        request[8..16].copy_from_slice(&id.to_ne_bytes());
        request[16..18].copy_from_slice(&self.queue.processor.to_ne_bytes());
        let fd = Fd(self.device.as_fd().as_raw_fd());
        opcode::UringCmd80::new(fd, operation)
            .cmd(request)
            .addr(parts)
            .build()
    }

    fn listen(&mut self) {
        let fd = Fd(self.bell.0.as_raw_fd());
        let command = opcode::PollAdd::new(fd, libc::POLLIN as u32).build();
        self.push(command.user_data(BELL).into());
    }

    fn push(&mut self, command: Entry128) {
        // SAFETY: what a command refers to is read while it is submitted, or is a
        // buffer that lives until the kernel gives it back.
        while unsafe { self.ring.submission().push(&command) }.is_err() {
            // Full: then the kernel takes what there is.
            if self.ring.submit().is_err() {
                thread::yield_now();
            }
        }
    }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_ne_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

/// Where the kernel says whether it offers `io_uring` to new connections.
const SETTING: &str = "/sys/module/fuse/parameters/enable_uring";

/// Since when kmsfs trusts the kernel with it, where nobody has turned it on: the
/// oldest version that it was tested on.
const TRUSTED: (u32, u32) = (6, 18);

/// How often, and how far apart, the lock on the setting is tried for.
const TRIES: u32 = 50;
const BETWEEN: Duration = Duration::from_millis(20);

/// Keeps the kernel offering `io_uring` to new connections; what it did before it
/// does again when this is dropped. A connection that was offered it keeps it.
pub struct Offered {
    setting: File,
}

impl Offered {
    /// Sees to it, where the kernel can and this process may. `None` where nothing
    /// was changed.
    pub fn new() -> Option<Self> {
        if kernel_version()? < TRUSTED {
            return None;
        }
        let setting = OpenOptions::new().read(true).write(true).open(SETTING);
        let setting = setting.ok()?;
        // Others must not take for the usual setting what this makes of it. Anyone
        // may lock the file, so this does not wait forever.
        let lock = || rustix::fs::flock(&setting, FlockOperation::NonBlockingLockExclusive);
        let mut tries = 0..TRIES;
        while lock().is_err() {
            tries.next()?;
            thread::sleep(BETWEEN);
        }
        let mut value = [0];
        setting.read_at(&mut value, 0).ok()?;
        if value == *b"Y" {
            return None;
        }
        setting.write_all_at(b"Y", 0).ok()?;
        Some(Self { setting })
    }
}

impl Drop for Offered {
    fn drop(&mut self) {
        if let Err(error) = self.setting.write_all_at(b"N", 0) {
            log::warn!("{SETTING} stays Y: {error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_processors() {
        assert_eq!(numbers("0\n"), Some(vec![0]));
        assert_eq!(numbers("0-1\n"), Some(vec![0, 1]));
        assert_eq!(numbers("0-2,8-9,16\n"), Some(vec![0, 1, 2, 8, 9, 16]));
        assert_eq!(numbers(""), None);
        assert_eq!(numbers("a-b"), None);
    }
}
