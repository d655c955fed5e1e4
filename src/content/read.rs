//! Reading: one `preadv` a request, decryption where the bytes landed.

use std::io::IoSliceMut;
use std::ops::Range;
use std::time::Instant;

use crate::backing::PageBuffer;
use crate::format::meta::Entry;

use super::around::PIECE;
use super::file::{EncryptedFile, Pending, State, seal_of};
use super::identity::Identity;
use super::{ContentError, Result};

/// Bytes of a request from which on it is a part of much that is read in turn: the
/// plaintext stays in the page cache, so the ciphertext need not.
const LONG: usize = 256 << 10;

/// A buffer that keeps its memory from one request to the next.
#[derive(Default)]
pub struct ReadBuffer(PageBuffer);

impl ReadBuffer {
    /// The bytes that a read said it put here.
    pub fn slice(&self, range: Range<usize>) -> &[u8] {
        &self.0.bytes()[range]
    }
}

impl EncryptedFile {
    /// Reads up to `len` bytes from `offset` into `buffer` and says where in it
    /// they are; fewer only at the end of the file.
    ///
    /// # Errors
    /// `BadBlock` if any block does not authenticate: part of a read would look
    /// like the end of the file.
    pub fn read(&self, offset: u64, len: usize, buffer: &mut ReadBuffer) -> Result<Range<usize>> {
        self.read_to(offset, len, |needed| buffer.0.get(needed))
    }

    /// The same into `room`, which has to have two blocks more than `len`.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn read_into(&self, offset: u64, len: usize, room: &mut [u8]) -> Result<Range<usize>> {
        self.read_to(offset, len, |needed| &mut room[..needed])
    }

    fn read_to<'b>(
        &self,
        offset: u64,
        len: usize,
        room: impl FnOnce(usize) -> &'b mut [u8],
    ) -> Result<Range<usize>> {
        let state = self.usable_for_read()?;
        let end = offset.saturating_add(len as u64).min(state.size);
        if offset >= end {
            return Ok(0..0);
        }
        let layout = self.layout();
        let block = layout.block_size();
        let (first, last) = (layout.block_of(offset), layout.block_of(end - 1));
        let out = room((last - first + 1) as usize * block);
        self.read_blocks(&state, first, out)?;
        let start = (offset - first * block as u64) as usize;
        Ok(start..start + (end - offset) as usize)
    }

    /// Reads the whole blocks from `first` on that `out` has room for. What
    /// lies past the end of a block's data, or of the file, is zero.
    pub(super) fn read_blocks(&self, state: &State, first: u64, out: &mut [u8]) -> Result<()> {
        let layout = self.layout();
        let block = layout.block_size();
        let count = (out.len() / block) as u64;
        let (first_group, last_group) = (
            layout.group_of(first).0,
            layout.group_of(first + count - 1).0,
        );
        let (long, missing) = (
            out.len() >= LONG,
            self.pages.lock().get(first_group).is_none(),
        );
        if missing {
            // The data comes from elsewhere than the metadata: let both be read
            // at once, of a long read the data first, as that passes the host's page
            // cache by.
            let (at, len) = match long {
                true => (layout.meta_offset(first_group), layout.cluster_meta_len()),
                false => (layout.block_offset(first), out.len()),
            };
            state.backing.will_need(at, len as u64);
        }
        let there = missing && long;
        if there {
            self.read_ciphertext(state, first, out)?;
        }
        let mut entries: Vec<Option<Entry>> = Vec::with_capacity(count as usize);
        for group in first_group..=last_group {
            let page = self.page(state, group)?;
            let start = layout.group_start(group);
            let from = first.max(start) - start;
            let to = (first + count - start).min(layout.group_blocks(group));
            entries.extend((from..to).map(|at| page.get(at as usize)));
        }
        if !there && entries.iter().any(Option::is_some) {
            match out.len() <= PIECE {
                true => self.read_piece(state, first, out)?,
                false => self.read_ciphertext(state, first, out)?,
            }
        }
        self.open_blocks(state, first, &entries, out)
    }

    /// Reads the ciphertext of a small piece, and has what lies around that read ahead
    /// if it is due.
    fn read_piece(&self, state: &State, first: u64, out: &mut [u8]) -> Result<()> {
        let start = Instant::now();
        let offset = self.layout().block_offset(first);
        let is_there = |at| state.backing.is_there(at);
        if let Some(span) = self.around.due(state.size, offset, is_there) {
            // What is waited for comes first.
            state.backing.will_need(offset, out.len() as u64);
            state.backing.will_need(span.start, span.end - span.start);
        }
        self.read_ciphertext(state, first, out)?;
        self.around.took(start.elapsed());
        Ok(())
    }

    /// The content of a file of `size` bytes of which `blocks` has all whole
    /// blocks as they lie in the backing file; `None` if that needs more than
    /// decrypting.
    pub(super) fn opened_whole<'b>(&self, size: u64, blocks: &'b mut [u8]) -> Option<&'b [u8]> {
        let state = self.usable_for_read().ok()?;
        let page = self.pages.lock().get(0)?;
        let count = self.layout().block_count(size) as usize;
        if count > self.layout().group_blocks(0) as usize || state.size != size {
            return None;
        }
        let entries: Vec<_> = (0..count).map(|at| page.get(at)).collect();
        self.open_blocks(&state, 0, &entries, blocks).ok()?;
        Some(&blocks[..size as usize])
    }

    /// Decrypts whole blocks from `first` on where they are.
    fn open_blocks(
        &self,
        state: &State,
        first: u64,
        entries: &[Option<Entry>],
        out: &mut [u8],
    ) -> Result<()> {
        let layout = self.layout();
        let block = layout.block_size();
        let mut cipher = None;
        for (i, (entry, data)) in entries.iter().zip(out.chunks_mut(block)).enumerate() {
            let index = first + i as u64;
            let pending = state.pending.get(&index);
            if entry.is_none() && pending.is_none() {
                data.fill(0);
                continue;
            }
            let identity = state.identity.as_deref().ok_or(ContentError::NoHeader)?;
            let group = layout.group_of(index).0;
            if !matches!(&cipher, Some((g, _)) if *g == group) {
                cipher = Some((group, self.cipher(identity, group)?));
            }
            let (_, cipher) = cipher.as_ref().expect("set above");
            let entry = match (pending, entry) {
                (
                    Some(Pending {
                        entry, ciphertext, ..
                    }),
                    _,
                ) => {
                    data[..ciphertext.len()].copy_from_slice(ciphertext);
                    entry
                }
                (None, Some(entry)) => entry,
                (None, None) => unreachable!("a hole"),
            };
            let len = entry.len as usize;
            if len > layout.stored_len(index, state.size) {
                return Err(ContentError::BadBlock(index));
            }
            let (sealed, rest) = data.split_at_mut(len);
            cipher
                .open(index, &seal_of(entry), sealed)
                .map_err(|_| ContentError::BadBlock(index))?;
            rest.fill(0);
        }
        Ok(())
    }

    /// One `preadv` of the ciphertext of whole blocks; the metadata in between
    /// lands in a scrap buffer.
    fn read_ciphertext(&self, state: &State, first: u64, out: &mut [u8]) -> Result<()> {
        let layout = self.layout();
        let block = layout.block_size();
        let long = out.len() >= LONG;
        let mut scrap = PageBuffer::default();
        let mut runs = Vec::new();
        let (mut index, mut rest) = (first, out);
        while !rest.is_empty() {
            let blocks = (layout.blocks_together(index) as usize).min(rest.len() / block);
            let (run, more) = rest.split_at_mut(blocks * block);
            runs.push(run);
            rest = more;
            index += blocks as u64;
        }
        let scrap = scrap.get((runs.len() - 1) * layout.cluster_meta_len());
        let mut scraps = scrap.chunks_exact_mut(layout.cluster_meta_len());
        let mut bufs = Vec::with_capacity(2 * runs.len());
        for run in runs {
            bufs.push(IoSliceMut::new(run));
            bufs.extend(scraps.next().map(IoSliceMut::new));
        }
        let at = layout.block_offset(first);
        match long {
            true => state.backing.read_once(&mut bufs, at)?,
            false => state.backing.read_at(&mut bufs, at)?,
        };
        Ok(())
    }

    /// What block `index` is now: its entry wherever that is, or a hole.
    pub(super) fn entry(&self, state: &State, index: u64) -> Result<Option<Entry>> {
        if let Some(pending) = state.pending.get(&index) {
            return Ok(Some(pending.entry));
        }
        let (group, at) = self.layout().group_of(index);
        Ok(self.page(state, group)?.get(at))
    }
}

/// Seals a block's content.
pub(super) fn seal_block(
    file: &EncryptedFile,
    identity: &Identity,
    index: u64,
    plain: &[u8],
    out: &mut [u8],
) -> Result<Entry> {
    let group = file.layout().group_of(index).0;
    let seal = file.cipher(identity, group)?.seal(index, plain, out);
    Ok(Entry {
        nonce: seal.nonce,
        tag: seal.tag,
        len: plain.len() as u32,
    })
}
