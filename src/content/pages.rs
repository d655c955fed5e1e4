//! The metadata pages of an open file: read once, written through.

use std::collections::HashMap;
use std::io::{IoSlice, IoSliceMut};
use std::ops::Range;
use std::sync::Arc;

use crate::format::meta::MetaPage;

use super::file::{EncryptedFile, State};
use super::{Result, VolumeContext};

/// Most pages kept a file: 512 MiB of 4 KiB blocks.
const MOST: usize = 1024;

/// Pages at hand. What is here equals what is on the backing file, so pages can
/// be dropped at any time.
#[derive(Default)]
pub(super) struct Pages(HashMap<u64, Arc<MetaPage>>);

impl Pages {
    /// Takes group 0's page as it was read with the head, unless it needs more
    /// care than that.
    pub(super) fn offer_first(&mut self, bytes: &[u8], size: u64, volume: &VolumeContext) {
        let mut page = MetaPage::from_bytes(0, bytes);
        if !volume.unclean.contains(&page.epoch()) {
            forget_past_end(&mut page, 0, size, volume);
            self.0.insert(0, Arc::new(page));
        }
    }

    /// The page of `group` if it is at hand.
    pub(super) fn get(&self, group: u64) -> Option<Arc<MetaPage>> {
        self.0.get(&group).cloned()
    }

    /// Keeps the page of `group`.
    pub(super) fn put(&mut self, group: u64, page: Arc<MetaPage>) {
        if self.0.len() >= MOST {
            self.0.clear();
        }
        self.0.insert(group, page);
    }

    /// Keeps the page of `group`, if there is none and room.
    fn offer(&mut self, group: u64, page: Arc<MetaPage>) {
        if self.0.len() < MOST {
            self.0.entry(group).or_insert(page);
        }
    }

    /// Takes the page of `group` away.
    fn take(&mut self, group: u64) -> Option<Arc<MetaPage>> {
        self.0.remove(&group)
    }

    /// Forgets all pages.
    pub(super) fn clear(&mut self) {
        self.0.clear();
    }
}

/// Entries of blocks past the end are left over from before a truncation.
fn forget_past_end(page: &mut MetaPage, group: u64, size: u64, volume: &VolumeContext) {
    let layout = volume.layout();
    let blocks = layout.block_count(size);
    let first = blocks.saturating_sub(layout.group_start(group));
    for at in first as usize..page.entries() {
        page.set(at, None);
    }
}

impl EncryptedFile {
    /// The metadata page of `group`, from memory or the backing file. With it come
    /// those of its cluster, as they cost the disk no more.
    pub(super) fn page(&self, state: &State, group: u64) -> Result<Arc<MetaPage>> {
        if let Some(page) = self.pages.lock().get(group) {
            return Ok(page);
        }
        let layout = self.layout();
        let cluster = layout.cluster_of(group);
        let blocks = layout.block_count(state.size);
        let end = layout.group_of(blocks.saturating_sub(1)).0 + 1;
        let groups = cluster.start..cluster.end.min(end.max(group + 1));
        let mut found = None;
        for (at, page) in groups.clone().zip(self.stored_pages(state, groups)?) {
            if at == group {
                found = Some(self.loaded(state, at, page)?);
            } else if !self.volume.unclean.contains(&page.epoch()) {
                self.pages.lock().offer(at, self.loaded(state, at, page)?);
            }
        }
        let page = found.expect("one of its cluster");
        self.keep_page(group, page.clone());
        Ok(page)
    }

    /// The pages of `groups`, all of one cluster, as they are on the backing file.
    pub(super) fn stored_pages(&self, state: &State, groups: Range<u64>) -> Result<Vec<MetaPage>> {
        let layout = self.layout();
        let lengths = groups.clone().map(|group| layout.meta_len(group));
        let mut bytes = vec![0; lengths.sum()];
        let bufs = &mut [IoSliceMut::new(&mut bytes)];
        let n = state
            .backing
            .read_at(bufs, layout.meta_offset(groups.start))?;
        bytes[n..].fill(0);
        let mut rest = bytes.as_slice();
        let page = |group| {
            let (page, more) = rest.split_at(layout.meta_len(group));
            rest = more;
            MetaPage::from_bytes(group, page)
        };
        Ok(groups.map(page).collect())
    }

    /// A stored page without what does not count.
    fn loaded(&self, state: &State, group: u64, mut page: MetaPage) -> Result<Arc<MetaPage>> {
        forget_past_end(&mut page, group, state.size, &self.volume);
        if self.volume.unclean.contains(&page.epoch()) {
            self.settle(state, group, &mut page)?;
        }
        Ok(Arc::new(page))
    }

    /// A page to change. Until [`Self::store_page`] it is not at hand for
    /// others, so a failure in between leaves what the backing file says.
    pub(super) fn page_to_change(&self, state: &State, group: u64) -> Result<Arc<MetaPage>> {
        let at_hand = self.pages.lock().take(group);
        let mut page = match at_hand {
            Some(page) => page,
            // Not its cluster: others of that may just be being changed.
            None => {
                let stored = self.stored_pages(state, group..group + 1)?.remove(0);
                self.loaded(state, group, stored)?
            }
        };
        Arc::make_mut(&mut page).set_epoch(self.volume.epoch);
        Ok(page)
    }

    /// Writes a changed page to the backing file, and keeps it.
    pub(super) fn store_page(&self, state: &State, group: u64, page: Arc<MetaPage>) -> Result<()> {
        self.store_pages(state, vec![(group, page)])
    }

    /// The same for several groups, in rising order: one call for those that lie
    /// together.
    pub(super) fn store_pages(
        &self,
        state: &State,
        pages: Vec<(u64, Arc<MetaPage>)>,
    ) -> Result<()> {
        let layout = self.layout();
        let together =
            |(a, _): &(u64, _), (b, _): &(u64, _)| a + 1 == *b && layout.cluster_of(*a).contains(b);
        for run in pages.chunk_by(together) {
            let mut bufs: Vec<_> = run
                .iter()
                .map(|(_, p)| IoSlice::new(p.as_bytes()))
                .collect();
            state
                .backing
                .write_at(&mut bufs, layout.meta_offset(run[0].0))?;
        }
        for (group, page) in pages {
            self.keep_page(group, page);
        }
        Ok(())
    }

    /// Keeps a page that has been written to the backing file.
    pub(super) fn keep_page(&self, group: u64, page: Arc<MetaPage>) {
        self.pages.lock().put(group, page);
    }
}
