//! What a crash can leave of blocks that were written for the first time.
//!
//! A fresh block and its metadata entry are written in place, without the
//! journal: there is nothing to protect. If the machine stops before both are
//! on the disk, either may be missing:
//!
//! * the entry is missing: the block is a hole, as before;
//! * the block is missing, or one of its pages is, so there are zeros or the end
//!   of the file, and the entry makes no sense. (Zeros can be a true ciphertext,
//!   of a block of one byte in one case of 256: only what does not authenticate
//!   is missing.)
//!
//! * the header is missing: then nothing of the file was ever synced.
//!
//! The latter two are settled here, when the page is loaded: such entries
//! become holes again. That would also turn a block that somebody zeroed into
//! a hole, so it is only done for pages that were last written by a mount that
//! did not end cleanly (the page's epoch), and it is only looked at when they
//! are first used. Before such a hole is filled, the entry has to be gone from
//! the disk as well (`before_reuse`), or it could stand beside the new block.

use std::io::IoSliceMut;

use crate::format::meta::MetaPage;

use super::Result;
use super::file::{EncryptedFile, State, seal_of};

/// What the host writes at once.
const HOST_PAGE: usize = 4096;

impl EncryptedFile {
    /// Makes holes of the entries in `page` whose blocks never reached the disk.
    pub(super) fn settle(&self, state: &State, group: u64, page: &mut MetaPage) -> Result<()> {
        let layout = self.layout();
        let stored_size = layout.plain_len(state.backing.len()?);
        let mut block = vec![0; layout.block_size()];
        for at in 0..page.entries() {
            let Some(entry) = page.get(at) else { continue };
            let index = layout.group_start(group) + at as u64;
            if state.pending.contains_key(&index) {
                continue;
            }
            let stored = layout.stored_len(index, stored_size);
            let missing = match &state.identity {
                Some(identity) if entry.len as usize <= stored => {
                    let block = &mut block[..entry.len as usize];
                    let bufs = &mut [IoSliceMut::new(block)];
                    let read = state.backing.read_at(bufs, layout.block_offset(index))?;
                    block[read..].fill(0);
                    let empty = |page: &[u8]| page.iter().all(|&b| b == 0);
                    block.chunks(HOST_PAGE).any(empty) && {
                        let cipher = self.cipher(identity, group)?;
                        cipher.open(index, &seal_of(&entry), block).is_err()
                    }
                }
                _ => true,
            };
            if missing {
                page.set(at, None);
                self.settled.lock().insert(group);
            }
        }
        Ok(())
    }
}
