//! Truncation, hole punching and preallocation.

use std::io::{IoSlice, IoSliceMut};
use std::ops::Range;
use std::sync::Arc;

use super::file::{EncryptedFile, State};
use super::{ContentError, Result};

impl EncryptedFile {
    /// Sets the length to `size`, cutting off or adding a hole.
    ///
    /// # Errors
    /// `TooLarge`, those of the backing storage, and for a cut inside a block
    /// those of reading it.
    pub fn set_size(&self, size: u64) -> Result<()> {
        let backing_len = self.layout().backing_len(size);
        let backing_len = backing_len.ok_or(ContentError::TooLarge)?;
        if let Some(journal) = &self.volume.journal {
            journal.wait_for_room()?;
        }
        let mut state = self.state.write();
        if size >= state.size {
            if size > state.size {
                self.clean_end(&mut state)?;
                self.before_reuse(&mut state)?;
                state.changes += 1;
                state.backing.set_len(backing_len)?;
                state.size = size;
            }
            return Ok(());
        }
        self.cut(&mut state, size, backing_len)
    }

    fn cut(&self, state: &mut State, size: u64, backing_len: u64) -> Result<()> {
        let layout = self.layout();
        let kept = layout.block_count(size);
        self.shorten_tail(state, size)?;
        state.changes += 1;
        drop_pending(state, kept, u64::MAX);
        if size > 0 {
            let groups = layout.group_of(kept).0..=layout.last_group(state.size);
            // Whatever lies past the new end goes with that.
            for group in groups.take_while(|g| layout.meta_offset(*g) < backing_len) {
                let from = layout.first_past_end(group, kept);
                self.clear_entries(state, group, from, usize::MAX)?;
            }
        }
        state.backing.set_len(backing_len)?;
        state.size = size;
        self.set_freed(state, size > 0);
        let cut_off = |group: &u64| layout.meta_offset(*group) >= backing_len;
        self.settled.lock().retain(|group| !cut_off(group));
        self.pages.lock().clear();
        let journal = self.volume.journal.as_ref();
        if journal.is_some_and(|j| j.has_records_from(self.ino, kept)) {
            state.revoke_from = Some(state.revoke_from.map_or(kept, |first| first.min(kept)));
        }
        if size == 0 {
            self.begin_anew(state);
        }
        Ok(())
    }

    /// An empty file has no header; the same id and key serve again when it gets one.
    /// Where they cost less than the flush of a revoke, that has others instead, for
    /// which records of the old are void.
    fn begin_anew(&self, state: &mut State) {
        state.header_stored = false;
        if state.revoke_from.is_some() && state.withheld.is_none() && self.volume.keys.is_local() {
            state.identity = None;
            state.revoke_from = None;
            self.drop_ciphers();
        }
    }

    /// Re-encrypts the block that a cut to `size` goes through at its new
    /// length, and puts it in place: the cut must find it there.
    fn shorten_tail(&self, state: &mut State, size: u64) -> Result<()> {
        let layout = self.layout();
        let len = (size % layout.block_size() as u64) as usize;
        let index = layout.block_of(size);
        let longer = |entry: crate::format::meta::Entry| entry.len as usize > len;
        if len == 0 || !self.entry(state, index)?.is_some_and(longer) {
            return Ok(());
        }
        let identity = state.identity.clone().ok_or(ContentError::NoHeader)?;
        let mut plain = zeroize::Zeroizing::new(vec![0; layout.block_size()]);
        self.read_blocks(state, index, &mut plain)?;
        let sealed = self.sealed(&identity, index, &plain[..len])?;
        self.journal_blocks(state, &identity, vec![sealed])?;
        self.flush_journal(state.last_record)?;
        let placed = self.put_in_place(state, &[index]);
        state.pending.remove(&index);
        placed
    }

    /// Makes `offset .. offset + len` a hole. With `keep_size` false and the
    /// range past the end, the file grows.
    ///
    /// # Errors
    /// As [`Self::write`].
    pub fn punch(&self, offset: u64, len: u64, keep_size: bool) -> Result<()> {
        let Some(end) = offset.checked_add(len) else {
            return Err(ContentError::TooLarge);
        };
        if let Some(journal) = &self.volume.journal {
            journal.wait_for_room()?;
        }
        {
            let mut state = self.state.write();
            self.punch_locked(&mut state, offset, end)?;
        }
        if !keep_size && end > self.size() {
            self.set_size(end)?;
        }
        Ok(())
    }

    fn punch_locked(&self, state: &mut State, offset: u64, end: u64) -> Result<()> {
        let layout = self.layout();
        let block = layout.block_size() as u64;
        let end = end.min(state.size);
        if offset >= end {
            return Ok(());
        }
        // Past the last byte of the file the whole last block may go.
        let first = offset.div_ceil(block);
        let last = if end == state.size {
            layout.block_count(end)
        } else {
            end / block
        };
        if first > last {
            // Inside one block.
            return self.zero(state, offset, end);
        }
        if first * block > offset {
            self.zero(state, offset, (first * block).min(end))?;
        }
        if last * block < end {
            self.zero(state, last * block, end)?;
        }
        if first < last {
            self.free_blocks(state, first, last)?;
        }
        Ok(())
    }

    /// Overwrites with zeros inside one block, unless that is a hole anyway.
    fn zero(&self, state: &mut State, from: u64, to: u64) -> Result<()> {
        if from >= to || self.entry(state, self.layout().block_of(from))?.is_none() {
            return Ok(());
        }
        let zeros = vec![0; (to - from) as usize];
        self.write_locked(state, from, &zeros)
    }

    /// Makes the blocks `first .. last` holes and frees their storage. Their
    /// entries have to be gone from the disk before the storage is, else a
    /// power cut could leave entries that fit nothing.
    fn free_blocks(&self, state: &mut State, first: u64, last: u64) -> Result<()> {
        let layout = self.layout();
        state.changes += 1;
        drop_pending(state, first, last - 1);
        // A pending last block would have made the backing file this long.
        let backing_len = layout.backing_len(state.size).expect("of this size");
        if state.backing.len()? < backing_len {
            state.backing.set_len(backing_len)?;
        }
        let mut group = layout.group_of(first).0;
        let last_group = layout.group_of(last - 1).0;
        let mut cleared = false;
        while group <= last_group {
            let start = layout.group_start(group);
            let from = first.max(start) - start;
            let to = (last - start).min(layout.group_blocks(group));
            cleared |= self.clear_entries(state, group, from as usize, to as usize)?;
            group = self.next_stored_group(state, group)?;
        }
        if !cleared {
            return Ok(());
        }
        state.backing.sync(true)?;
        self.revoke(state, first, last - 1)?;
        self.set_freed(state, true);
        let mut index = first;
        while index < last {
            let (group, _) = layout.group_of(index);
            let next = (layout.group_start(group) + layout.group_blocks(group)).min(last);
            let from = layout.block_offset(index);
            let to = layout.block_offset(next - 1) + layout.block_size() as u64;
            match state.backing.punch(from, to - from) {
                // A filesystem without holes keeps the storage; the entries
                // already say that nothing is there.
                Err(crate::backing::Errno::OPNOTSUPP) => break,
                other => other?,
            }
            index = next.max(layout.group_start(self.next_stored_group(state, group)?));
        }
        Ok(())
    }

    /// Makes holes of entries `from .. to` of `group`; whether any was not one.
    fn clear_entries(&self, state: &mut State, group: u64, from: usize, to: usize) -> Result<bool> {
        let page = self.page(state, group)?;
        let to = to.min(page.entries());
        if (from..to).all(|at| page.get(at).is_none()) {
            return Ok(false);
        }
        drop(page);
        let mut page = self.page_to_change(state, group)?;
        for at in from..to {
            Arc::make_mut(&mut page).set(at, None);
        }
        self.store_page(state, group, page)?;
        Ok(true)
    }

    /// Makes the journal's records of blocks `first ..= last` void. What took
    /// the blocks away has to be durable.
    fn revoke(&self, state: &mut State, first: u64, last: u64) -> Result<()> {
        // Records of an identity the file has no more are void by that.
        if let Some(journal) = &self.volume.journal
            && let Some(file) = state.identity.as_ref().map(|i| i.header.file)
            && let Some(record) = journal.revoke(self.ino, file, first, last)?
        {
            state.last_record = record;
        }
        Ok(())
    }

    /// Syncs a file from which blocks were freed before blocks are put in their
    /// place: the metadata page is overwritten where it lies and may reach the
    /// disk before the host's note that the old blocks are gone, and an entry
    /// would then stand beside the wrong block. (A file cut to nothing has its
    /// pages freed as well, so old and new cannot mix.)
    ///
    /// Only then are records of those blocks revoked, and durably: the host may keep
    /// the new length before the journal, and they would come to lie in it.
    pub(super) fn before_reuse(&self, state: &mut State) -> Result<()> {
        let settled = self.settled.lock().clone();
        for group in settled {
            self.rewrite_page(state, group)?;
            self.settled.lock().remove(&group);
        }
        if state.freed || state.revoke_from.is_some() {
            state.backing.sync(true)?;
            self.set_freed(state, false);
        }
        if let Some(first) = state.revoke_from {
            self.revoke(state, first, u64::MAX)?;
            self.flush_journal(state.last_record)?;
            state.revoke_from = None;
        }
        Ok(())
    }

    /// Empties the storage of the holes `blocks`, if there is anything in it.
    /// A crash, or a write that failed, can leave a block whose entry is
    /// missing. What comes in its place is only recognised as missing if there
    /// were zeros before.
    pub(super) fn empty_holes(&self, state: &mut State, blocks: Range<u64>) -> Result<()> {
        let layout = self.layout();
        let end = blocks.end.min(layout.block_count(state.size));
        let mut index = blocks.start;
        while index < end {
            let group = layout.group_of(index).0;
            let next = end.min(layout.group_start(group) + layout.group_blocks(group));
            let from = layout.block_offset(index);
            let to = layout.block_offset(next - 1) + layout.block_size() as u64;
            if state.backing.next_data(from)?.is_some_and(|at| at < to) {
                self.empty_storage(state, from, to)?;
            }
            index = next;
        }
        Ok(())
    }

    fn empty_storage(&self, state: &mut State, from: u64, to: u64) -> Result<()> {
        let mut bytes = vec![0; (to - from) as usize];
        let n = state
            .backing
            .read_at(&mut [IoSliceMut::new(&mut bytes)], from)?;
        if bytes.iter().all(|&b| b == 0) {
            return Ok(());
        }
        state.changes += 1;
        self.set_freed(state, true);
        match state.backing.punch(from, to - from) {
            Err(crate::backing::Errno::OPNOTSUPP) => {
                bytes.fill(0);
                Ok(state
                    .backing
                    .write_at(&mut [IoSlice::new(&bytes[..n])], from)?)
            }
            other => Ok(other?),
        }
    }

    /// Empties a file that has a length but no header, before it gets one: if
    /// a crash left anything in it, that was sealed under a key that is lost.
    pub(super) fn empty_all(&self, state: &mut State) -> Result<()> {
        let len = state.backing.len()?;
        if state.backing.next_data(0)?.is_some_and(|at| at < len) {
            state.changes += 1;
            state.backing.set_len(0)?;
            state.backing.set_len(len)?;
            state.backing.sync(true)?;
            self.pages.lock().clear();
            self.settled.lock().clear();
        }
        Ok(())
    }

    /// Clears entries past the end before the file grows over them. A power cut
    /// leaves some where a cut reached the disk and the metadata page did not;
    /// that page's epoch may be of a mount that ended cleanly.
    pub(super) fn clean_end(&self, state: &mut State) -> Result<()> {
        if state.end_clean {
            return Ok(());
        }
        let layout = self.layout();
        let blocks = layout.block_count(state.size);
        let first = layout.group_of(blocks).0;
        let groups = first..layout.cluster_of(first).end;
        for (group, stored) in groups.clone().zip(self.stored_pages(state, groups)?) {
            let mut past_end = layout.first_past_end(group, blocks)..stored.entries();
            if past_end.any(|at| stored.get(at).is_some()) {
                // As it is read it has none of them.
                self.rewrite_page(state, group)?;
            }
        }
        state.end_clean = true;
        Ok(())
    }

    /// Writes a page back without the entries that are ignored when it is read.
    fn rewrite_page(&self, state: &mut State, group: u64) -> Result<()> {
        self.set_freed(state, true);
        state.changes += 1;
        let page = self.page_to_change(state, group)?;
        self.store_page(state, group, page)
    }

    /// Reserves storage for `offset .. offset + len`; without `keep_size` the
    /// file grows to hold it.
    ///
    /// # Errors
    /// Those of the backing storage, ENOSPC foremost.
    pub fn allocate(&self, offset: u64, len: u64, keep_size: bool) -> Result<()> {
        let layout = self.layout();
        let end = offset.checked_add(len).ok_or(ContentError::TooLarge)?;
        let to = layout.backing_len(end).ok_or(ContentError::TooLarge)?;
        {
            let state = self.state.read();
            let from = layout.block_offset(layout.block_of(offset));
            // The head too, so that the first write does not run out of space.
            let from = if state.size == 0 { 0 } else { from };
            state.backing.allocate(from, to - from)?;
            // The metadata of the first cluster lies before that.
            let group = layout.group_of(layout.block_of(offset)).0;
            let meta = layout.meta_offset(group);
            let pages = layout.cluster_of(group).end - group;
            if from > meta {
                let len = pages * layout.meta_len(group) as u64;
                state.backing.allocate(meta, len)?;
            }
        }
        self.state.write().changes += 1;
        if !keep_size && end > self.size() {
            self.set_size(end)?;
        }
        Ok(())
    }
}

/// Forgets pending blocks `first ..= last`.
fn drop_pending(state: &mut State, first: u64, last: u64) {
    let gone: Vec<_> = state.pending.range(first..=last).map(|(&i, _)| i).collect();
    for index in gone {
        state.pending.remove(&index);
    }
}
