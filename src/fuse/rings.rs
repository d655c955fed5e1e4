//! Serving requests that come over `io_uring`: several threads for each
//! processor, of which each has one buffer for the kernel to put a request into.

use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use parking_lot::Mutex;

use crate::backing::Errno;
use crate::sys::fuse_device::FuseDevice;
use crate::sys::fuse_ring::{Bell, Event, FuseRing, Queue};
use crate::sys::thread_place;

use super::adapter::Adapter;
use super::connection::ROOM;
use super::device;
use super::notices;
use super::occupancy::Occupancy;
use super::precedence::{Member, Precedence};
use super::protocol::{Fields, OUT_HEADER};
use super::reply::{Reply, Sink, header};
use super::request::Request;

/// After how many quick requests in a row a thread that had one that takes long is
/// bound to its queue's processor again: both changes cost more than they give
/// where requests of both kinds alternate.
const QUICK: u32 = 8;

/// By how many requests that take long, more that came while all processors had one than
/// while not or the reverse, a thread changes whether it is bound for them.
const CROWD: u32 = 16;

/// Rings that the kernel does not know of yet.
pub(super) struct Rings(Vec<FuseRing>);

impl Rings {
    /// Some for each processor.
    ///
    /// # Errors
    /// Those of `io_uring_setup(2)`; a process that may not run everywhere, as its
    /// threads have to where programs do.
    pub(super) fn new(device: &Arc<FuseDevice>) -> io::Result<Self> {
        let queues = Queue::all();
        let online = queues.iter().filter(|queue| queue.online);
        if !thread_place::may_run_on(online.map(|queue| queue.processor())) {
            let why = "this process may not use every processor";
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, why));
        }
        // A request that waits for the disk keeps its thread.
        let depth = |queue: Queue| match queue.online {
            true => (8 / queues.len()).clamp(2, 4),
            false => 1,
        };
        let ring = |queue| FuseRing::new(device.clone(), queue, ROOM);
        let each = |&queue: &Queue| (0..depth(queue)).map(move |_| ring(queue));
        Ok(Self(
            queues.iter().flat_map(each).collect::<io::Result<_>>()?,
        ))
    }

    /// Starts their threads. One whose ring the kernel does not take serves what is
    /// read from the device instead.
    ///
    /// # Errors
    /// Those of starting threads.
    pub(super) fn start(
        self,
        device: &Arc<FuseDevice>,
        adapter: &Arc<Adapter>,
    ) -> io::Result<Vec<JoinHandle<io::Result<()>>>> {
        let precedence = Precedence::start()?;
        let queues = self.0.iter().map(FuseRing::queue);
        let online = queues.filter(|queue| queue.online);
        let mut processors: Vec<_> = online.map(|queue| queue.processor()).collect();
        // Each has several rings, one after the other.
        processors.dedup();
        let occupancy = Arc::new(Occupancy::new(&processors));
        let start = |ring: FuseRing| {
            let (device, adapter) = (device.clone(), adapter.clone());
            let (precedence, occupancy) = (precedence.clone(), occupancy.clone());
            let name = format!("kmsfs-ring-{}", ring.queue().processor());
            thread::Builder::new().name(name).spawn(move || {
                let queue = ring.queue();
                let place = Place::new(queue, precedence);
                let served = serve(ring, place, device.clone(), &adapter, &occupancy);
                thread_place::as_usual();
                match served {
                    Ok(()) => Ok(()),
                    Err(error) => {
                        log::warn!("no io_uring for processor {}: {error}", queue.processor());
                        device::serve(device, &adapter)
                    }
                }
            })
        };
        self.0.into_iter().map(start).collect()
    }
}

/// Answers that were given after their request had been put aside.
struct Late {
    slots: Mutex<Vec<usize>>,
    bell: Bell,
}

/// Where the answer to the request in a buffer is put.
pub(super) struct Slot {
    index: usize,
    late: Arc<Late>,
    answer: Mutex<Answer>,
}

#[derive(Default)]
struct Answer {
    stage: Stage,
    error: i32,
    data: Vec<u8>,
    placed: Option<Range<usize>>,
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Stage {
    /// The ring's thread is at it.
    #[default]
    AtWork,
    /// The ring's thread has gone on to other requests.
    PutAside,
    /// There is an answer.
    Answered,
}

impl Slot {
    pub(super) fn answer(&self, error: i32, data: &[u8]) {
        self.complete(|answer| {
            answer.error = error;
            answer.data.extend_from_slice(data);
        });
    }

    /// The answer lies in the buffer already.
    pub(super) fn placed(&self, part: Range<usize>) {
        self.complete(|answer| answer.placed = Some(part));
    }

    fn complete(&self, set: impl FnOnce(&mut Answer)) {
        let mut answer = self.answer.lock();
        set(&mut answer);
        let before = std::mem::replace(&mut answer.stage, Stage::Answered);
        drop(answer);
        if before == Stage::PutAside {
            self.late.slots.lock().push(self.index);
            self.late.bell.ring();
        }
    }
}

/// One ring, and what is known of its buffers.
struct Served<'a> {
    ring: FuseRing,
    device: Arc<FuseDevice>,
    adapter: &'a Adapter,
    occupancy: &'a Occupancy,
    slots: Vec<Arc<Slot>>,
    late: Arc<Late>,
    place: Place,
    /// The regular file that was last asked for; none at first.
    file: u64,
}

/// Serves until the filesystem is unmounted.
fn serve(
    ring: FuseRing,
    place: Place,
    device: Arc<FuseDevice>,
    adapter: &Adapter,
    occupancy: &Occupancy,
) -> io::Result<()> {
    let late = Arc::new(Late {
        slots: Mutex::default(),
        bell: ring.bell(),
    });
    let mut served = Served {
        ring,
        device,
        adapter,
        occupancy,
        slots: Vec::new(),
        late,
        place,
        file: 0,
    };
    served.ring.start()?;
    served.add_slot();
    loop {
        match served.ring.wait()? {
            Event::Request(index) => served.request(index)?,
            Event::Bell => {
                let late = std::mem::take(&mut *served.late.slots.lock());
                late.into_iter().for_each(|index| served.commit(index));
            }
            Event::End(error) => match Errno::from_raw_os_error(error) {
                Errno::NOTCONN | Errno::CONNABORTED | Errno::CANCELED => return Ok(()),
                error => return Err(error.into()),
            },
        }
    }
}

impl Served<'_> {
    fn add_slot(&mut self) {
        self.slots.push(Arc::new(Slot {
            index: self.slots.len(),
            late: self.late.clone(),
            answer: Mutex::default(),
        }));
    }

    fn request(&mut self, index: usize) -> io::Result<()> {
        let slot = self.slots[index].clone();
        let held = self.ring.held(index);
        let (header, mut no_room) = (&*held.header, []);
        // What is read is put where the kernel takes it from; such a request is
        // nothing but headers.
        let (rest, room) = match held.len {
            0 => (&[][..], held.payload),
            len => (&held.payload[..len], &mut no_room[..]),
        };
        let request = Request::from_parts(header, held.operation, rest);
        let request = request.ok_or(io::ErrorKind::InvalidData)?;
        let (occupancy, long) = (self.occupancy, request.takes_long());
        let _occupied = long.then(|| occupancy.enter(self.place.processor));
        self.place.choose(long, occupancy);
        if request.is_for_file() {
            self.file = request.ino;
        }
        let reply = Reply::new(request.unique, Sink::Ring(slot.clone()));
        self.adapter.serve(&request, room, reply);
        let mut answer = slot.answer.lock();
        if answer.stage == Stage::Answered {
            drop(answer);
            self.commit(index);
            return Ok(());
        }
        answer.stage = Stage::PutAside;
        drop(answer);
        self.ring.discard(index);
        // Another request must be able to come meanwhile: this one may wait for it.
        if self.ring.is_offered_any() {
            return Ok(());
        }
        // A thread has more than one buffer then, which only matters in that a
        // request may wait for another one while a thread of the queue is idle.
        self.add_slot();
        self.ring.offer_another()?;
        // Requests that came when no buffer was free are only looked for after a
        // reply (`fuse_uring_commit_fetch`), so there has to be one.
        self.place.bind(true);
        if let Err(error) = notices::ask_for_request(&self.device, self.file) {
            log::debug!("requests may wait for one that waits: {error}");
        }
        Ok(())
    }

    fn commit(&mut self, index: usize) {
        let answer = std::mem::take(&mut *self.slots[index].answer.lock());
        let held = self.ring.held(index);
        let len = match answer.placed {
            Some(part) => {
                let len = part.len();
                if part.start != 0 {
                    held.payload.copy_within(part, 0);
                }
                len
            }
            None => {
                held.payload[..answer.data.len()].copy_from_slice(&answer.data);
                answer.data.len()
            }
        };
        // It is still the request's header, which has the number at the same place.
        let unique = Fields(&held.header[8..]).u64().expect("a header");
        held.header[..OUT_HEADER].copy_from_slice(&header(unique, answer.error, len));
        self.ring.commit(index, len);
    }
}

/// Where a ring's thread runs, and whom it lets run before it.
struct Place {
    processor: u16,
    /// Only there, where the queue's programs do.
    bound: bool,
    /// Quick requests since the last one that takes long.
    quick: u32,
    /// How often all processors had a request that takes long, less how often not; from
    /// none to [`CROWD`].
    full: u32,
    /// It stays bound for those.
    stays: bool,
    member: Option<Member>,
}

impl Place {
    fn new(queue: Queue, precedence: Option<Arc<Precedence>>) -> Self {
        let member = precedence.map(Precedence::join).transpose();
        let mut place = Self {
            processor: queue.processor(),
            bound: false,
            quick: 0,
            full: 0,
            stays: false,
            member: member
                .inspect_err(|error| log::debug!("a thread does not give way: {error}"))
                .unwrap_or_default(),
        };
        place.bind(true);
        place
    }

    fn choose(&mut self, takes_long: bool, occupancy: &Occupancy) {
        if let Some(member) = &self.member {
            member.request(takes_long);
        }
        if takes_long {
            self.quick = 0;
            self.full = match occupancy.is_full() {
                true => CROWD.min(self.full + 1),
                false => self.full.saturating_sub(1),
            };
            match self.full {
                0 => self.stays = false,
                CROWD => self.stays = true,
                _ => {}
            }
            if self.bound != self.stays {
                self.bind(self.stays);
            }
        } else if !self.bound {
            self.quick += 1;
            if self.quick > QUICK {
                self.bind(true);
            }
        }
    }

    fn bind(&mut self, here: bool) {
        self.bound = here;
        match here {
            true => thread_place::bind(self.processor),
            false => thread_place::unbind(),
        }
    }
}
