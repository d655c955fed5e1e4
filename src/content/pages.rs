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
    /// Takes a page of a file of `size` bytes that was read along with something
    /// else, unless there is one, there is no room, or it needs more care.
    pub(super) fn offer(
        &mut self,
        group: u64,
        mut page: MetaPage,
        size: u64,
        volume: &VolumeContext,
    ) {
        if self.0.len() < MOST && !volume.unclean.contains(&page.epoch()) {
            forget_past_end(&mut page, group, size, volume);
            self.0.entry(group).or_insert_with(|| Arc::new(page));
        }
    }

    /// The page of `group` if it is at hand.
    pub(super) fn get(&self, group: u64) -> Option<Arc<MetaPage>> {
        self.0.get(&group).cloned()
    }

    /// Keeps the page of `group`.
    fn put(&mut self, group: u64, page: Arc<MetaPage>) {
        if self.0.len() >= MOST {
            self.0.clear();
        }
        self.0.insert(group, page);
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
    let first = layout.first_past_end(group, layout.block_count(size));
    for at in first..page.entries() {
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
        let end = layout.last_group(state.size).max(group) + 1;
        let groups = cluster.start..cluster.end.min(end);
        let mut stored = self.stored_pages(state, groups.clone())?;
        let page = stored.remove((group - groups.start) as usize);
        let page = self.loaded(state, group, page)?;
        let mut pages = self.pages.lock();
        pages.put(group, page.clone());
        for (at, neighbour) in groups.filter(|at| *at != group).zip(stored) {
            pages.offer(at, neighbour, state.size, &self.volume);
        }
        Ok(page)
    }

    /// The pages of `groups`, all of one cluster, as they are on the backing file.
    pub(super) fn stored_pages(&self, state: &State, groups: Range<u64>) -> Result<Vec<MetaPage>> {
        let layout = self.layout();
        let lengths = groups.clone().map(|group| layout.meta_len(group));
        let mut bytes = vec![0; lengths.sum()];
        let bufs = &mut [IoSliceMut::new(&mut bytes)];
        // Past the end of the file they stay zero.
        state
            .backing
            .read_at(bufs, layout.meta_offset(groups.start))?;
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
        self.store_pages(state, &[(group, page)])
    }

    /// The same for several groups, in rising order: one call for those that lie
    /// together.
    pub(super) fn store_pages(&self, state: &State, pages: &[(u64, Arc<MetaPage>)]) -> Result<()> {
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
        self.keep_pages(pages);
        Ok(())
    }

    /// Keeps pages that have been written to the backing file.
    pub(super) fn keep_pages(&self, written: &[(u64, Arc<MetaPage>)]) {
        let mut pages = self.pages.lock();
        for (group, page) in written {
            pages.put(*group, page.clone());
        }
    }
}
