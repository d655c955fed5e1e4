//! The metadata pages of an open file: read once, written through.

use std::collections::HashMap;
use std::io::{IoSlice, IoSliceMut};
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

    /// Forgets the page of `group`.
    pub(super) fn forget(&mut self, group: u64) {
        self.0.remove(&group);
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
    /// The metadata page of `group`, from memory or the backing file.
    pub(super) fn page(&self, state: &State, group: u64) -> Result<Arc<MetaPage>> {
        if let Some(page) = self.pages.lock().get(group) {
            return Ok(page);
        }
        let layout = self.layout();
        let mut bytes = vec![0; layout.meta_len(group)];
        let n = state.backing.read_at(
            &mut [IoSliceMut::new(&mut bytes)],
            layout.meta_offset(group),
        )?;
        let mut page = MetaPage::from_bytes(group, &bytes[..n]);
        forget_past_end(&mut page, group, state.size, &self.volume);
        if self.volume.unclean.contains(&page.epoch()) {
            self.settle(state, group, &mut page)?;
        }
        let page = Arc::new(page);
        self.keep_page(group, page.clone());
        Ok(page)
    }

    /// A page to change. Until [`Self::store_page`] it is not at hand for
    /// others, so a failure in between leaves what the backing file says.
    pub(super) fn page_to_change(&self, state: &State, group: u64) -> Result<Arc<MetaPage>> {
        let mut page = self.page(state, group)?;
        self.pages.lock().forget(group);
        Arc::make_mut(&mut page).set_epoch(self.volume.epoch);
        Ok(page)
    }

    /// Writes a changed page to the backing file, and keeps it.
    pub(super) fn store_page(&self, state: &State, group: u64, page: Arc<MetaPage>) -> Result<()> {
        let bufs = &mut [IoSlice::new(page.as_bytes())];
        let offset = self.layout().meta_offset(group);
        state.backing.write_at(bufs, offset)?;
        self.keep_page(group, page);
        Ok(())
    }

    /// Keeps a page that has been written to the backing file.
    pub(super) fn keep_page(&self, group: u64, page: Arc<MetaPage>) {
        self.pages.lock().put(group, page);
    }
}
