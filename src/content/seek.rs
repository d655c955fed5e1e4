//! `SEEK_DATA` and `SEEK_HOLE`.

use super::Result;
use super::file::{EncryptedFile, State};

impl EncryptedFile {
    /// The first offset from `offset` on that holds data; `None` if only a hole
    /// follows or `offset` is past the end.
    ///
    /// # Errors
    /// Those of reading metadata.
    pub fn next_data(&self, offset: u64) -> Result<Option<u64>> {
        let state = self.state.read();
        // Groups that are not stored have no data.
        self.find(&state, offset, true, |group| {
            self.next_stored_group(&state, group)
        })
    }

    /// The first offset from `offset` on that is a hole, at the latest the end
    /// of the file; `None` if `offset` is past the end.
    ///
    /// # Errors
    /// Those of reading metadata.
    pub fn next_hole(&self, offset: u64) -> Result<Option<u64>> {
        let state = self.state.read();
        if offset >= state.size {
            return Ok(None);
        }
        let found = self.find(&state, offset, false, |group| Ok(group + 1))?;
        Ok(Some(found.map_or(state.size, |at| at.min(state.size))))
    }

    /// The first offset from `offset` on in a block that is stored, or is not;
    /// `next` gives the group to look at after one that has no such block.
    fn find(
        &self,
        state: &State,
        offset: u64,
        stored: bool,
        next: impl Fn(u64) -> Result<u64>,
    ) -> Result<Option<u64>> {
        let layout = self.layout();
        let end = layout.block_count(state.size);
        let mut index = layout.block_of(offset);
        while offset < state.size && index < end {
            let (group, at) = layout.group_of(index);
            let page = self.page(state, group)?;
            let start = layout.group_start(group);
            let in_group = (end - start).min(layout.group_blocks(group)) as usize;
            if let Some(at) = (at..in_group).find(|&at| page.get(at).is_some() == stored) {
                let found = (start + at as u64) * layout.block_size() as u64;
                return Ok(Some(found.max(offset)));
            }
            index = layout.group_start(next(group)?);
        }
        Ok(None)
    }

    /// The next group after `group` that may have metadata on the disk: whole
    /// groups of a sparse file are skipped without reading them.
    pub(super) fn next_stored_group(&self, state: &State, group: u64) -> Result<u64> {
        let layout = self.layout();
        let next = group + 1;
        let from = layout.meta_offset(next);
        let Some(data) = state.backing.next_data(from)? else {
            return Ok(layout.group_of(layout.block_count(state.size)).0 + 1);
        };
        Ok(next.max(layout.group_of(layout.block_of(layout.plain_len(data))).0))
    }
}
