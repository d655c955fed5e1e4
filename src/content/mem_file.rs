//! A backing file in memory, for tests: it knows what a power cut may leave.

use std::io::{IoSlice, IoSliceMut};
use std::sync::{Arc, Barrier};

use parking_lot::Mutex;

use crate::backing::BackingFile;
use crate::types::TimeSpec;

/// A file in memory that remembers what a power cut may lose.
#[derive(Default)]
pub(super) struct MemFile(pub(super) Mutex<Mem>);

#[derive(Default, Clone)]
pub(super) struct Mem {
    /// What programs of the host see.
    pub(super) now: Vec<u8>,
    /// What the last sync made durable.
    pub(super) durable: Vec<u8>,
    /// What was done since the last sync.
    events: Vec<Event>,
}

#[derive(Clone)]
struct Event {
    kind: Kind,
    /// Length of the file afterwards.
    len: usize,
}

#[derive(Clone)]
enum Kind {
    /// A page's content from then on.
    Write {
        page: usize,
        bytes: Box<[u8]>,
    },
    SetLen,
    /// Pages of which the storage was freed.
    Punch {
        first: usize,
        end: usize,
    },
}

impl Event {
    /// Whether `page` has no storage, or no longer the same, afterwards.
    fn frees(&self, page: usize) -> bool {
        match self.kind {
            Kind::Write { .. } => false,
            Kind::SetLen => page * PAGE >= self.len,
            Kind::Punch { first, end } => (first..end).contains(&page),
        }
    }
}

const PAGE: usize = 4096;

thread_local! {
    /// Whether syncs fail.
    pub(super) static SYNC_FAILS: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
    /// This thread's next sync stops before it does anything, and goes on later.
    pub(super) static SYNC_STOPS: std::cell::Cell<Option<Arc<Barrier>>> = const { std::cell::Cell::new(None) };
    /// Writes that this thread's files still take before they all fail.
    pub(super) static WRITES_LEFT: std::cell::Cell<usize> = const { std::cell::Cell::new(usize::MAX) };
}

impl MemFile {
    /// What the disk may hold after a power cut, on a filesystem that journals
    /// its metadata: lengths and freed storage are as after some event since the
    /// last sync, whichever `pick` picks; each page is any of those that were
    /// ever in that storage since.
    pub(super) fn cut(&self, pick: &mut dyn FnMut(usize) -> usize) -> Arc<Self> {
        let mem = self.0.lock().clone();
        let committed = pick(mem.events.len() + 1);
        let len = match committed {
            0 => mem.durable.len(),
            n => mem.events[n - 1].len,
        };
        let mut disk = vec![0; len.next_multiple_of(PAGE)];
        for (page, out) in disk.chunks_mut(PAGE).enumerate() {
            let freed = mem.events.iter().enumerate().filter(|(_, e)| e.frees(page));
            let before = freed.clone().rfind(|(i, _)| *i < committed);
            let after = freed.clone().find(|(i, _)| *i >= committed);
            let from = before.map_or(0, |(i, _)| i + 1);
            let to = after.map_or(mem.events.len(), |(i, _)| i);
            let mut versions: Vec<(usize, &[u8])> = vec![(from, &[])];
            if before.is_none() && page * PAGE < mem.durable.len() {
                let end = mem.durable.len().min((page + 1) * PAGE);
                versions[0].1 = &mem.durable[page * PAGE..end];
            }
            for (i, event) in mem.events.iter().enumerate().take(to).skip(from) {
                match &event.kind {
                    Kind::Write { page: p, bytes } if *p == page => versions.push((i, bytes)),
                    _ => {}
                }
            }
            let (at, bytes) = versions[pick(versions.len())];
            out[..bytes.len()].copy_from_slice(bytes);
            // A cut inside the page zeroes the rest.
            for event in mem.events.iter().take(committed).skip(at) {
                if matches!(event.kind, Kind::SetLen) && event.len / PAGE == page {
                    out[event.len % PAGE..].fill(0);
                }
            }
        }
        disk.truncate(len);
        Self::holding(disk)
    }

    /// As after SIGKILL: all that was written is there.
    pub(super) fn killed(&self) -> Arc<Self> {
        Self::holding(self.0.lock().now.clone())
    }

    /// A file that holds `bytes`, durably.
    pub(super) fn holding(bytes: Vec<u8>) -> Arc<Self> {
        Arc::new(Self(Mutex::new(Mem {
            now: bytes.clone(),
            durable: bytes,
            events: Vec::new(),
        })))
    }
}

impl Mem {
    fn record(&mut self, kind: Kind) {
        let len = self.now.len();
        self.events.push(Event { kind, len });
    }
}

impl BackingFile for MemFile {
    fn will_need(&self, _offset: u64, _len: u64) {}

    fn is_there(&self, _offset: u64) -> bool {
        true
    }

    fn read_at(&self, bufs: &mut [IoSliceMut<'_>], offset: u64) -> crate::backing::Result<usize> {
        let mem = self.0.lock();
        let mut at = offset as usize;
        let mut total = 0;
        for buf in bufs {
            let rest = mem.now.get(at..).unwrap_or(&[]);
            let n = rest.len().min(buf.len());
            buf[..n].copy_from_slice(&rest[..n]);
            total += n;
            at += n;
        }
        Ok(total)
    }

    fn write_at(&self, bufs: &mut [IoSlice<'_>], offset: u64) -> crate::backing::Result<()> {
        let left = WRITES_LEFT.get();
        if left == 0 {
            return Err(crate::backing::Errno::IO);
        }
        WRITES_LEFT.set(left - 1);
        let mut mem = self.0.lock();
        let mut at = offset as usize;
        for buf in bufs.iter() {
            if mem.now.len() < at + buf.len() {
                mem.now.resize(at + buf.len(), 0);
            }
            mem.now[at..at + buf.len()].copy_from_slice(buf);
            at += buf.len();
        }
        for page in offset as usize / PAGE..at.div_ceil(PAGE) {
            let end = mem.now.len().min((page + 1) * PAGE);
            let bytes = mem.now[page * PAGE..end].into();
            mem.record(Kind::Write { page, bytes });
        }
        Ok(())
    }

    fn len(&self) -> crate::backing::Result<u64> {
        Ok(self.0.lock().now.len() as u64)
    }

    fn set_len(&self, len: u64) -> crate::backing::Result<()> {
        let mut mem = self.0.lock();
        mem.now.resize(len as usize, 0);
        mem.record(Kind::SetLen);
        Ok(())
    }

    fn sync(&self, _data_only: bool) -> crate::backing::Result<()> {
        if SYNC_FAILS.get() {
            return Err(crate::backing::Errno::IO);
        }
        if let Some(barrier) = SYNC_STOPS.take() {
            barrier.wait();
            barrier.wait();
        }
        let mut mem = self.0.lock();
        mem.durable = mem.now.clone();
        mem.events.clear();
        Ok(())
    }

    fn punch(&self, offset: u64, len: u64) -> crate::backing::Result<()> {
        let mut mem = self.0.lock();
        let end = ((offset + len) as usize).min(mem.now.len());
        if (offset as usize) < end {
            mem.now[offset as usize..end].fill(0);
            let (first, end) = (offset as usize / PAGE, end.div_ceil(PAGE));
            mem.record(Kind::Punch { first, end });
        }
        Ok(())
    }

    fn allocate(&self, _offset: u64, _len: u64) -> crate::backing::Result<()> {
        Ok(())
    }

    fn next_data(&self, offset: u64) -> crate::backing::Result<Option<u64>> {
        let mem = self.0.lock();
        let pages = mem
            .now
            .chunks(PAGE)
            .enumerate()
            .skip(offset as usize / PAGE);
        let data = pages.filter(|(_, page)| page.iter().any(|&b| b != 0));
        Ok(data.map(|(i, _)| ((i * PAGE) as u64).max(offset)).next())
    }

    fn keeping_mtime(
        &self,
        change: &mut dyn FnMut() -> crate::backing::Result<()>,
    ) -> crate::backing::Result<[TimeSpec; 2]> {
        change()?;
        Ok(Default::default())
    }
}
