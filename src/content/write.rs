//! Writing. A block that was a hole is written in place; one that has content
//! goes through the journal (see `journal` for why).

use std::cell::RefCell;
use std::io::IoSlice;
use std::ops::Range;
use std::sync::Arc;

use crate::format::meta::MetaPage;

use super::file::{EncryptedFile, Pending, State};
use super::identity::Identity;
use super::journal::BlockRecord;
use super::lease::Origin;
use super::read::seal_block;
use super::{ContentError, Result};

thread_local! {
    /// Where runs of fresh blocks are laid out; as large as the largest write.
    static RUN: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Bytes of fresh blocks in one request from which on they are sent to the disk
/// without waiting for a sync: the kernel has them in the clear, so nobody reads
/// them from here soon.
const LONG_RUN: usize = 256 << 10;

/// Pending bytes of one file at which they are put in place without waiting for
/// their time.
const MANY_PENDING: usize = 8 << 20;
/// Pending bytes at which a writer does that itself, as it is faster than the thread
/// whose work it is.
const MOST_PENDING: usize = 40 << 20;

/// Most blocks put in place without letting go of the file.
const AT_ONCE: usize = 256;

impl EncryptedFile {
    /// Writes `data` at `offset`, all of it or an error.
    ///
    /// # Errors
    /// After an error each block has its old or its new content.
    pub fn write(&self, offset: u64, data: &[u8]) -> Result<()> {
        self.write_as(offset, data, Origin::Program)
    }

    /// Writes what the kernel accepted from a program earlier: this may still
    /// be written when programs may no longer use the key.
    ///
    /// # Errors
    /// As [`Self::write`].
    pub fn write_back(&self, offset: u64, data: &[u8]) -> Result<()> {
        self.write_as(offset, data, Origin::PageCache)
    }

    fn write_as(&self, offset: u64, data: &[u8], origin: Origin) -> Result<()> {
        let Some(end) = offset.checked_add(data.len() as u64) else {
            return Err(ContentError::TooLarge);
        };
        if self.layout().backing_len(end).is_none() {
            return Err(ContentError::TooLarge);
        }
        if data.is_empty() {
            return Ok(());
        }
        self.prepare_write()?;
        if let Some(journal) = &self.volume.journal {
            journal.wait_for_room()?;
        }
        let sealed = self.sealed_before(offset, data)?;
        let pending = {
            let mut state = self.usable_for_write(origin)?;
            match sealed {
                Some(sealed) if self.still_replaces(&state, &sealed)? => {
                    self.journal_blocks(&mut state, &sealed.identity, sealed.records)?;
                }
                _ => self.write_locked(&mut state, offset, data)?,
            }
            state.pending.len() * self.layout().block_size()
        };
        if pending > MOST_PENDING {
            self.settle_pending()?;
        } else if pending > MANY_PENDING
            && let Some(journal) = &self.volume.journal
        {
            journal.want_commit();
        }
        Ok(())
    }

    /// Encrypts what replaces whole blocks while others may use the file. `None` if it
    /// does something else, or there is no key.
    fn sealed_before(&self, offset: u64, data: &[u8]) -> Result<Option<Replacement>> {
        let block = self.layout().block_size();
        let whole = offset.is_multiple_of(block as u64) && data.len().is_multiple_of(block);
        if !whole {
            return Ok(None);
        }
        let state = self.state.read();
        let identity = match &state.identity {
            Some(identity) if state.withheld.is_none() => identity.clone(),
            _ => return Ok(None),
        };
        let first = self.layout().block_of(offset);
        let blocks = first..first + (data.len() / block) as u64;
        if !self.replaces(&state, blocks.clone())? {
            return Ok(None);
        }
        let plain = data.chunks_exact(block).zip(blocks.clone());
        let records = plain.map(|(plain, index)| self.sealed(&identity, index, plain));
        Ok(Some(Replacement {
            records: records.collect::<Result<_>>()?,
            identity,
            blocks,
        }))
    }

    /// Whether whole `blocks` all have content, and the file does not grow.
    fn replaces(&self, state: &State, blocks: Range<u64>) -> Result<bool> {
        if blocks.end * self.layout().block_size() as u64 > state.size {
            return Ok(false);
        }
        for index in blocks {
            if self.entry(state, index)?.is_none() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Whether what was encrypted before the file was locked is still what to write.
    fn still_replaces(&self, state: &State, sealed: &Replacement) -> Result<bool> {
        let identity = state.identity.as_ref();
        let same = identity.is_some_and(|identity| Arc::ptr_eq(identity, &sealed.identity));
        Ok(same && self.replaces(state, sealed.blocks.clone())?)
    }

    /// Makes this file's journal records durable and puts its pending blocks in
    /// place.
    pub(super) fn settle_pending(&self) -> Result<()> {
        let record = self.state.read().last_record;
        self.flush_journal(record)?;
        self.apply(record);
        Ok(())
    }

    pub(super) fn write_locked(&self, state: &mut State, offset: u64, data: &[u8]) -> Result<()> {
        let end = offset + data.len() as u64;
        if state.identity.is_none() && state.size > 0 {
            self.empty_all(state)?;
        }
        let identity = self.identity_or_new(state)?;
        let size = state.size.max(end);
        let layout = self.layout();
        let block = layout.block_size() as u64;
        let last = layout.block_of(end - 1);
        if last >= layout.block_count(state.size) {
            self.clean_end(state)?;
        }
        let mut overwritten = Vec::new();
        let mut index = layout.block_of(offset);
        while index <= last {
            if self.entry(state, index)?.is_some() {
                let plain = self.merged(state, index, false, size, offset, data)?;
                overwritten.push(self.sealed(&identity, index, plain.as_ref())?);
                index += 1;
                continue;
            }
            let start = index;
            while index <= last && self.entry(state, index)?.is_none() {
                index += 1;
            }
            self.write_fresh(state, &identity, start..index, size, offset, data)?;
            state.size = state.size.max(size.min(index * block));
        }
        self.journal_blocks(state, &identity, overwritten)?;
        state.size = size;
        Ok(())
    }

    /// The new plaintext of block `index` when `data` is written at `offset` of
    /// a file that will have `size` bytes.
    fn merged<'d>(
        &self,
        state: &State,
        index: u64,
        hole: bool,
        size: u64,
        offset: u64,
        data: &'d [u8],
    ) -> Result<Plain<'d>> {
        let layout = self.layout();
        let start = index * layout.block_size() as u64;
        let len = layout.stored_len(index, size);
        let from = offset.max(start);
        let to = (offset + data.len() as u64).min(start + len as u64);
        let new = &data[(from - offset) as usize..(to - offset) as usize];
        if new.len() == len {
            return Ok(Plain::Borrowed(new));
        }
        let mut plain = zeroize::Zeroizing::new(vec![0; layout.block_size()]);
        if !hole {
            self.read_blocks(state, index, &mut plain)?;
        }
        plain[(from - start) as usize..(to - start) as usize].copy_from_slice(new);
        plain.truncate(len);
        Ok(Plain::Owned(plain))
    }

    pub(super) fn sealed(
        &self,
        identity: &Identity,
        index: u64,
        plain: &[u8],
    ) -> Result<BlockRecord> {
        let mut ciphertext = vec![0; plain.len()].into_boxed_slice();
        let entry = seal_block(self, identity, index, plain, &mut ciphertext)?;
        Ok(BlockRecord {
            index,
            entry,
            ciphertext,
        })
    }

    /// Hands overwritten blocks to the journal; they are pending from then on.
    pub(super) fn journal_blocks(
        &self,
        state: &mut State,
        identity: &Identity,
        blocks: Vec<BlockRecord>,
    ) -> Result<()> {
        if blocks.is_empty() {
            return Ok(());
        }
        let journal = self.volume.journal.as_ref();
        let journal = journal.ok_or(ContentError::Backing(crate::backing::Errno::ROFS))?;
        let mut opened = None;
        if state.pending.is_empty() {
            state.pending_since = std::time::Instant::now();
            opened = Some(self.me.upgrade().expect("a method of self is running"));
        }
        let file = identity.header.file;
        let first = journal.append_blocks(self.ino, file, &state.backing, &blocks, opened)?;
        state.last_record = first + blocks.len() as u64 - 1;
        for (block, record) in blocks.into_iter().zip(first..) {
            let pending = Pending {
                entry: block.entry,
                ciphertext: block.ciphertext,
                record,
            };
            state.pending.insert(block.index, pending);
        }
        Ok(())
    }

    /// Encrypts the holes `blocks` and writes them and their metadata in place.
    fn write_fresh(
        &self,
        state: &mut State,
        identity: &Identity,
        blocks: Range<u64>,
        size: u64,
        offset: u64,
        data: &[u8],
    ) -> Result<()> {
        self.empty_holes(state, blocks.clone())?;
        self.before_reuse(state)?;
        state.changes += 1;
        RUN.with_borrow_mut(|out| {
            out.clear();
            let layout = self.layout();
            let mut pages: Vec<(u64, Arc<MetaPage>)> = Vec::new();
            // The first blocks lie right behind their metadata, and in a new file
            // behind the header.
            let with_header = !state.header_stored;
            let mut run_offset = layout.block_offset(blocks.start);
            if blocks.start == 0 {
                run_offset = layout.meta_offset(0);
                if with_header {
                    run_offset = 0;
                    out.extend_from_slice(&identity.encode_slots()?);
                }
                out.resize(out.len() + layout.meta_len(0), 0);
            }
            let meta_end = out.len();
            let mut runs = Vec::new();
            let mut run_start = 0;
            let mut run_end = blocks.start + layout.blocks_together(blocks.start);
            for index in blocks.clone() {
                if index == run_end {
                    runs.push((run_offset, run_start..out.len()));
                    (run_offset, run_start) = (layout.block_offset(index), out.len());
                    run_end += layout.blocks_together(index);
                }
                let (group, at) = layout.group_of(index);
                if pages.last().is_none_or(|(g, _)| *g != group) {
                    pages.push((group, self.page_to_change(state, group)?));
                }
                let plain = self.merged(state, index, true, size, offset, data)?;
                let plain = plain.as_ref();
                let at_out = out.len();
                out.resize(at_out + plain.len(), 0);
                let entry = seal_block(self, identity, index, plain, &mut out[at_out..])?;
                let (_, page) = pages.last_mut().expect("pushed above");
                Arc::make_mut(page).set(at, Some(entry));
            }
            runs.push((run_offset, run_start..out.len()));
            let (adjacent, apart) = pages.split_at(usize::from(blocks.start == 0));
            if let [(_, page)] = adjacent {
                out[meta_end - layout.meta_len(0)..meta_end].copy_from_slice(page.as_bytes());
            }
            let long = out.len() >= LONG_RUN;
            for (offset, run) in runs {
                let bufs = &mut [IoSlice::new(&out[run])];
                match long {
                    false => state.backing.write_at(bufs, offset)?,
                    true => state.backing.write_behind(bufs, offset)?,
                }
            }
            self.store_pages(state, apart)?;
            if with_header && blocks.start > 0 {
                let head = identity.encode_slots()?;
                state.backing.write_at(&mut [IoSlice::new(&head)], 0)?;
            }
            state.header_stored = true;
            self.keep_pages(adjacent);
            Ok(())
        })
    }

    /// Puts the pending blocks whose records are durable (up to `durable`) in
    /// place, some at a time so that others get at the file in between. A failure
    /// is kept for the next sync; the blocks stay pending.
    pub(super) fn apply(&self, durable: u64) {
        let mut from = 0;
        while let Some(next) = self.apply_some(durable, from) {
            from = next;
        }
    }

    /// Puts the first of them from block `from` on in place; gives the block to go
    /// on from, if there may be more.
    fn apply_some(&self, durable: u64, from: u64) -> Option<u64> {
        let mut state = self.state.write();
        let ready: Vec<u64> = state
            .pending
            .range(from..)
            .filter(|(_, p)| p.record <= durable)
            .map(|(&index, _)| index)
            .take(AT_ONCE)
            .collect();
        let last = *ready.last()?;
        let backing = state.backing.clone();
        let result = backing.keeping_mtime(&mut || Ok(self.put_in_place(&state, &ready)?));
        match result {
            Ok([before, after]) => {
                self.volume.change_times.moved(self.ino, before, after);
                for index in ready {
                    state.pending.remove(&index);
                }
                Some(last + 1)
            }
            Err(error) => {
                log::error!(
                    "inode {}: could not write {} blocks back: {error}",
                    self.ino,
                    ready.len()
                );
                state.deferred = Some(error.into());
                None
            }
        }
    }

    /// Writes the pending blocks `ready`, in rising order, where they belong.
    pub(super) fn put_in_place(&self, state: &State, ready: &[u64]) -> Result<()> {
        let layout = self.layout();
        let mut rest = ready;
        while let Some(&first) = rest.first() {
            let group = layout.group_of(first).0;
            let n = rest
                .iter()
                .take_while(|&&i| layout.group_of(i).0 == group)
                .count();
            let (here, later) = rest.split_at(n);
            rest = later;
            let mut page = self.page_to_change(state, group)?;
            // A block that was once the last one can be shorter than the space
            // it has, and the next one does not start where it ends.
            let whole = |i: &u64| state.pending[i].ciphertext.len() == layout.block_size();
            for run in here.chunk_by(|a, b| a + 1 == *b && whole(a)) {
                let mut bufs: Vec<_> = run
                    .iter()
                    .map(|i| IoSlice::new(&state.pending[i].ciphertext))
                    .collect();
                let at = layout.block_offset(run[0]);
                state.backing.write_at(&mut bufs, at)?;
            }
            for index in here {
                let at = layout.group_of(*index).1;
                Arc::make_mut(&mut page).set(at, Some(state.pending[index].entry));
            }
            self.store_page(state, group, page)?;
        }
        Ok(())
    }
}

/// New contents of blocks in a row.
struct Replacement {
    identity: Arc<Identity>,
    blocks: Range<u64>,
    records: Vec<BlockRecord>,
}

/// A block's plaintext: the caller's, or put together here and wiped.
enum Plain<'a> {
    Borrowed(&'a [u8]),
    Owned(zeroize::Zeroizing<Vec<u8>>),
}

impl AsRef<[u8]> for Plain<'_> {
    fn as_ref(&self) -> &[u8] {
        match self {
            Self::Borrowed(bytes) => bytes,
            Self::Owned(bytes) => bytes,
        }
    }
}
