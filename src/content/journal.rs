//! The volume's write-ahead journal: how a block that has content is replaced.
//!
//! A block's ciphertext and its metadata entry lie in different pages, so no
//! single write replaces both. The new ciphertext and entry are therefore first
//! appended to the journal; once that is durable (one flush, shared by all who
//! wait for it) they are put in place, in any order, and a crash in between is
//! made good by replaying the journal at the next mount. Until then the old
//! block is untouched, and readers are served from memory (`State::pending`).
//!
//! There are two journal files. When the active one is long enough, writing
//! moves to the other; the first is retired once everything it protects is in
//! place and durable there (a *checkpoint*).
//!
//! The invariants, and why a power cut at any point is harmless:
//!
//! 1. No block with content is written in place before its record is durable.
//! 2. A journal is retired (generation 0, flushed) only after all its blocks
//!    are in place and their files flushed; and before the other one is, so a
//!    stale record never meets a block whose newer record is gone.
//! 3. Records of blocks that were cut off or punched out are revoked, but not
//!    before the cut or the cleared entries are durable: until then a power cut
//!    brings the blocks back, and they may need their records. The revoke of a cut
//!    is durable before the file grows again, lest replay fill what has grown; that
//!    of a hole at the latest when the file is next synced, which is when anything
//!    may rely on the hole.

use std::collections::{HashMap, HashSet};
use std::io::IoSlice;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use crate::backing::{BackingFile, Errno};
use crate::crypto::{random, sha256};
use crate::format::journal::{JournalPage, PAGE, Record, RecordKind};
use crate::format::meta::Entry;
use crate::types::FileId;

use super::file::EncryptedFile;
use super::segment::{Segment, Touched};
use super::{ContentError, Result};

/// Length at which a journal file is checkpointed.
const SOFT: u64 = 32 << 20;
/// Length at which writers wait for the checkpoint.
const HARD: u64 = 96 << 20;
/// Files with records in one journal at which writers wait for the checkpoint, which
/// flushes each of them, however many descriptors there are.
const MOST_FILES: usize = 2048;
/// How long an overwrite stays in the journal alone.
const COMMIT: Duration = Duration::from_secs(5);
/// How long a journal may be idle before it is checkpointed.
const IDLE: Duration = Duration::from_secs(15);

/// A new content of a block, to be recorded.
pub struct BlockRecord {
    /// Which block.
    pub index: u64,
    /// How to decrypt it.
    pub entry: Entry,
    /// What to store.
    pub ciphertext: Box<[u8]>,
}

struct State {
    segments: [Segment; 2],
    active: usize,
    sequence: u64,
    page: JournalPage,
    last_append: Instant,
    /// Why the last checkpoint failed, until one succeeds.
    failed: Option<ContentError>,
    /// A flush failed. The kernel has then dropped what it could not write, so
    /// no later flush may claim that it is there.
    broken: Option<Errno>,
    /// Some file has so many blocks pending that a commit should not wait.
    commit_wanted: bool,
}

/// The journal of a mounted volume.
pub struct Journal {
    state: Mutex<State>,
    /// All records up to this one are durable.
    durable: AtomicU64,
    /// Held while flushing: who waits for it finds its record durable.
    flushing: Mutex<()>,
    checkpointing: Mutex<()>,
    /// The active one is so long, or keeps so many files open, that writers wait.
    full: AtomicBool,
    room: Condvar,
    work: Condvar,
    /// Files with pending blocks, kept open until those are in place. May be locked
    /// while `state` is, never the reverse.
    pending: Mutex<HashMap<u64, Arc<EncryptedFile>>>,
    /// Files with records in one journal at which writers wait for its checkpoint,
    /// because it keeps them open. It begins at half of them.
    most_files: usize,
    /// Files of which blocks were freed, and which were not synced since: see
    /// `before_reuse`. They may have been closed meanwhile.
    freed: Mutex<HashSet<u64>>,
}

impl Journal {
    /// Starts on two journal files that hold nothing worth replaying, and makes
    /// it durable that `page.epoch` has begun. About `descriptors` may be used to
    /// keep files open.
    ///
    /// # Errors
    /// Those of writing the files.
    pub fn start(
        files: [Arc<dyn BackingFile>; 2],
        page: JournalPage,
        descriptors: usize,
    ) -> Result<Arc<Self>> {
        let mut page = page;
        let [a, b] = files;
        let mut segments = [Segment::on(a)?, Segment::on(b)?];
        // The epoch is open from here on, whichever page a crash leaves.
        page.generation = fresh_generation();
        segments[0].write_page(&page)?;
        segments[0].generation = page.generation;
        segments[0].backing.sync(false)?;
        let other = JournalPage {
            generation: 0,
            ..page.clone()
        };
        segments[1].write_page(&other)?;
        segments[1].backing.sync(false)?;
        Ok(Arc::new(Self {
            state: Mutex::new(State {
                segments,
                active: 0,
                sequence: 1,
                page,
                last_append: Instant::now(),
                failed: None,
                broken: None,
                commit_wanted: false,
            }),
            durable: AtomicU64::new(0),
            flushing: Mutex::new(()),
            checkpointing: Mutex::new(()),
            full: AtomicBool::new(false),
            room: Condvar::new(),
            work: Condvar::new(),
            pending: Mutex::new(HashMap::new()),
            most_files: MOST_FILES.min(descriptors / 2),
            freed: Mutex::default(),
        }))
    }

    /// Records new contents of `blocks` of one file; gives the first record's
    /// number, the others follow. They are not durable before [`Self::flush`].
    /// If the file had none pending, it is `opened`, and kept open until they are in
    /// place.
    pub(super) fn append_blocks(
        &self,
        ino: u64,
        file: FileId,
        backing: &Arc<dyn BackingFile>,
        blocks: &[BlockRecord],
        opened: Option<Arc<EncryptedFile>>,
    ) -> Result<u64> {
        let mut state = self.state.lock();
        let first = state.sequence;
        let active = state.active;
        let generation = state.segments[active].generation;
        state.segments[active].append(|out| {
            for (block, sequence) in blocks.iter().zip(first..) {
                let record = Record {
                    generation,
                    sequence,
                    ino,
                    file,
                    first: block.index,
                    last: block.index,
                    kind: RecordKind::Block(block.entry),
                };
                record.encode(&block.ciphertext, out);
            }
        })?;
        // In one step with the record: who finds that has to find the file.
        if let Some(opened) = opened {
            self.pending.lock().insert(ino, opened);
        }
        let touched = state.segments[active].touched.entry(ino);
        let touched = touched.or_insert_with(|| Touched {
            backing: backing.clone(),
            end: 0,
        });
        let end = blocks.iter().map(|b| b.index + 1).max();
        touched.end = touched.end.max(end.unwrap_or(0));
        state.sequence += blocks.len() as u64;
        state.last_append = Instant::now();
        self.full.store(self.is_full(&state), Ordering::Relaxed);
        if self.is_long(&state) && state.failed.is_none() {
            self.work.notify_one();
        }
        Ok(first)
    }

    /// Whether records of a file's block `first` or later ones are in force.
    pub(super) fn has_records_from(&self, ino: u64, first: u64) -> bool {
        let state = self.state.lock();
        let mut touched = state.segments.iter().filter_map(|s| s.touched.get(&ino));
        touched.any(|t| t.end > first)
    }

    /// A record that is not older than any of a file; 0 if it has none.
    pub(super) fn newest_of(&self, ino: u64) -> u64 {
        let state = self.state.lock();
        match state.segments.iter().any(|s| s.touched.contains_key(&ino)) {
            true => state.sequence - 1,
            false => 0,
        }
    }

    /// Makes earlier records of blocks `first ..= last` of a file void; gives
    /// the record's number if there are any such records.
    pub(super) fn revoke(
        &self,
        ino: u64,
        file: FileId,
        first: u64,
        last: u64,
    ) -> Result<Option<u64>> {
        let mut state = self.state.lock();
        if !state.segments.iter().any(|s| s.touched.contains_key(&ino)) {
            return Ok(None);
        }
        let active = state.active;
        let record = Record {
            generation: state.segments[active].generation,
            sequence: state.sequence,
            ino,
            file,
            first,
            last,
            kind: RecordKind::Revoke,
        };
        state.segments[active].append(|out| record.encode(&[], out))?;
        if last == u64::MAX {
            for segment in &mut state.segments {
                if let Some(touched) = segment.touched.get_mut(&ino) {
                    touched.end = touched.end.min(first);
                }
            }
        }
        state.sequence += 1;
        state.last_append = Instant::now();
        Ok(Some(record.sequence))
    }

    /// Makes all records up to `record` durable.
    ///
    /// # Errors
    /// Those of the flush.
    pub fn flush(&self, record: u64) -> Result<()> {
        if self.durable.load(Ordering::Acquire) >= record {
            return Ok(());
        }
        let _turn = self.flushing.lock();
        if self.durable.load(Ordering::Acquire) >= record {
            return Ok(());
        }
        let (newest, dirty) = {
            let mut state = self.state.lock();
            if let Some(error) = state.broken {
                return Err(error.into());
            }
            let mut dirty = Vec::new();
            for segment in &mut state.segments {
                if std::mem::take(&mut segment.dirty) {
                    dirty.push(segment.backing.clone());
                }
            }
            (state.sequence - 1, dirty)
        };
        for backing in dirty {
            if let Err(error) = backing.sync(true) {
                log::error!("journal: {error}; no overwrite is safe until a new mount");
                self.state.lock().broken = Some(error);
                return Err(error.into());
            }
        }
        self.durable.store(newest, Ordering::Release);
        Ok(())
    }

    /// Remembers whether a file has freed blocks that no sync has covered.
    pub(super) fn note_freed(&self, ino: u64, freed: bool) {
        let mut files = self.freed.lock();
        match freed {
            true => files.insert(ino),
            false => files.remove(&ino),
        };
    }

    /// What [`Self::note_freed`] was told last of a file.
    pub(super) fn is_freed(&self, ino: u64) -> bool {
        self.freed.lock().contains(&ino)
    }

    /// Waits while the journal is so long, or keeps so many files open, that it must
    /// be checkpointed first. Not to be called with a file locked.
    ///
    /// # Errors
    /// Why it can't be: the storage of some file refuses what was written to it.
    pub(super) fn wait_for_room(&self) -> Result<()> {
        if !self.full.load(Ordering::Relaxed) {
            return Ok(());
        }
        let mut state = self.state.lock();
        while self.is_full(&state) {
            if let Some(error) = &state.failed {
                return Err(error.clone());
            }
            let timeout = Duration::from_secs(1);
            self.room.wait_for(&mut state, timeout);
        }
        Ok(())
    }

    fn is_full(&self, state: &State) -> bool {
        let active = &state.segments[state.active];
        active.end > HARD || active.touched.len() > self.most_files
    }

    fn is_long(&self, state: &State) -> bool {
        let active = &state.segments[state.active];
        active.end > SOFT || active.touched.len() > self.most_files / 2
    }

    /// Has [`Self::commit`] called soon, on the thread that looks after the journal.
    pub(super) fn want_commit(&self) {
        let mut state = self.state.lock();
        if !state.commit_wanted {
            state.commit_wanted = true;
            self.work.notify_one();
        }
    }

    /// Makes every overwrite durable and puts it in place; gives the newest
    /// record that this covered.
    ///
    /// # Errors
    /// Those of the flush.
    pub fn commit(&self) -> Result<u64> {
        // A checkpoint must not retire records whose blocks are in the hands of
        // another commit.
        let _turn = self.checkpointing.lock();
        self.commit_in_turn()
    }

    fn commit_in_turn(&self) -> Result<u64> {
        let newest = self.state.lock().sequence - 1;
        self.flush(newest)?;
        let files: Vec<_> = self.pending.lock().drain().collect();
        for (ino, file) in files {
            file.apply(newest);
            if !file.state.read().pending.is_empty() {
                self.pending.lock().insert(ino, file);
            }
        }
        Ok(newest)
    }

    // A copy: a file is locked before this map, never after it.
    fn pending_files(&self) -> Vec<Arc<EncryptedFile>> {
        self.pending.lock().values().cloned().collect()
    }

    /// Commits, flushes the files that have records in the active journal, and
    /// retires it.
    ///
    /// # Errors
    /// Those of the flushes; the journal then stays in force.
    pub fn checkpoint(&self) -> Result<()> {
        let _turn = self.checkpointing.lock();
        let old = self.rotate()?;
        let newest = self.commit_in_turn()?;
        // A file whose blocks could not be put in place keeps the journal.
        for file in self.pending_files() {
            if file.oldest_pending().is_some_and(|oldest| oldest <= newest) {
                return Err(file.deferred().unwrap_or(Errno::IO.into()));
            }
        }
        let files: Vec<_> = {
            let state = self.state.lock();
            let touched = state.segments[old].touched.values();
            touched.map(|t| t.backing.clone()).collect()
        };
        for backing in files {
            backing.sync(true)?;
        }
        // A block may have been overwritten again before it was put in place:
        // its newer record replaces the one that is about to go.
        let newest = self.state.lock().sequence - 1;
        self.flush(newest)?;
        let mut state = self.state.lock();
        let page = JournalPage {
            generation: 0,
            ..state.page.clone()
        };
        state.segments[old].write_page(&page)?;
        let backing = state.segments[old].backing.clone();
        drop(state);
        backing.sync(true)?;
        let mut state = self.state.lock();
        let segment = &mut state.segments[old];
        segment.touched.clear();
        segment.generation = 0;
        self.room.notify_all();
        Ok(())
    }

    /// Moves writing to the other journal; gives the one that was active.
    fn rotate(&self) -> Result<usize> {
        let (old, page, backing) = {
            let state = self.state.lock();
            let old = state.active;
            let next = &state.segments[1 - old];
            if next.generation != 0 {
                // A checkpoint of it failed: finish that one first.
                return Ok(1 - old);
            }
            (old, state.page.clone(), next.backing.clone())
        };
        // The new page has to be on the disk before the old journal is retired,
        // or none would say that the epoch is still open.
        let page = JournalPage {
            generation: fresh_generation(),
            ..page
        };
        backing.write_at(&mut [IoSlice::new(&page.encode(sha256))], 0)?;
        backing.sync(true)?;
        let mut state = self.state.lock();
        let next = &mut state.segments[1 - old];
        next.generation = page.generation;
        next.rewind();
        state.active = 1 - old;
        self.full.store(false, Ordering::Relaxed);
        self.room.notify_all();
        Ok(old)
    }

    /// A checkpoint that is interrupted after its first step.
    #[cfg(test)]
    pub(super) fn rotate_for_test(&self) {
        self.rotate().unwrap();
    }

    /// Lets go of the files that a killed mount leaves with pending blocks.
    #[cfg(test)]
    pub(super) fn let_go_for_test(&self) {
        let files = std::mem::take(&mut *self.pending.lock());
        drop(files);
    }

    /// Makes a waiting [`Self::maintain`] return now.
    pub fn wake(&self) {
        self.work.notify_all();
    }

    /// What has to be done now and then. Waits until there is something to do,
    /// at most `timeout`.
    pub fn maintain(&self, timeout: Duration) {
        {
            let mut state = self.state.lock();
            // After a failure the next try can wait, too.
            let due = state.commit_wanted || self.is_long(&state);
            if state.failed.is_some() || !due {
                self.work.wait_for(&mut state, timeout);
            }
        }
        let (idle, long, any, wanted) = {
            let mut state = self.state.lock();
            let wanted = std::mem::take(&mut state.commit_wanted);
            let any = state.segments.iter().any(|s| !s.touched.is_empty());
            (
                state.last_append.elapsed(),
                self.is_long(&state),
                any,
                wanted,
            )
        };
        let result = if long || (any && idle > IDLE) {
            let result = self.checkpoint();
            self.state.lock().failed = result.clone().err();
            self.room.notify_all();
            result
        } else if wanted {
            self.commit().map(drop)
        } else {
            self.commit_if_old()
        };
        if let Err(error) = result {
            log::error!("journal: {error}; trying again");
        }
    }

    fn commit_if_old(&self) -> Result<()> {
        let files = self.pending_files();
        if files.iter().any(|f| f.pending_for() > COMMIT) {
            self.commit()?;
        }
        Ok(())
    }

    /// Puts everything in place and leaves journals that say the epoch ended
    /// cleanly. `sync_all` makes the whole backing filesystem durable.
    ///
    /// # Errors
    /// Those of the flushes; the epoch then counts as unclean.
    pub fn close(&self, sync_all: impl FnOnce() -> Result<()>) -> Result<()> {
        self.checkpoint()?;
        // The other one too, in case its checkpoint had failed before.
        self.checkpoint()?;
        sync_all()?;
        let mut state = self.state.lock();
        let page = JournalPage {
            generation: 0,
            ..state.page.clone()
        };
        for segment in &mut state.segments {
            segment.write_page(&page)?;
            segment.backing.set_len(PAGE as u64)?;
            segment.backing.sync(false)?;
        }
        Ok(())
    }
}

fn fresh_generation() -> u64 {
    u64::from_le_bytes(random::bytes()) | 1
}
