//! One of the two journal files, as it is written.

use std::collections::HashMap;
use std::io::IoSlice;
use std::sync::Arc;

use crate::backing::BackingFile;
use crate::crypto::sha256;
use crate::format::journal::{JournalPage, PAGE};

use super::Result;

/// Zeros written ahead of the records, so that a flush of the journal changes
/// neither its length nor its allocation.
const AHEAD: u64 = 1 << 20;

/// A file that has records in a journal.
pub(super) struct Touched {
    pub(super) backing: Arc<dyn BackingFile>,
    /// One more than the last block with a record that is in force; 0 for none.
    pub(super) end: u64,
}

/// One of the two journal files.
pub(super) struct Segment {
    pub(super) backing: Arc<dyn BackingFile>,
    pub(super) generation: u64,
    /// Where the next record goes.
    pub(super) end: u64,
    /// Bytes from the last page boundary to `end`.
    tail: Vec<u8>,
    /// Up to here the file has been written before.
    written: u64,
    /// Has records that no flush has covered.
    pub(super) dirty: bool,
    pub(super) touched: HashMap<u64, Touched>,
}

impl Segment {
    /// On a file that holds nothing worth replaying.
    pub(super) fn on(backing: Arc<dyn BackingFile>) -> Result<Self> {
        let mut segment = Self {
            backing,
            generation: 0,
            end: PAGE as u64,
            tail: Vec::new(),
            written: 0,
            dirty: false,
            touched: HashMap::new(),
        };
        segment.prepare(AHEAD)?;
        Ok(segment)
    }

    /// Has the next record come first.
    pub(super) fn rewind(&mut self) {
        self.end = PAGE as u64;
        self.tail.clear();
    }

    pub(super) fn write_page(&mut self, page: &JournalPage) -> Result<()> {
        let bytes = page.encode(sha256);
        self.backing.write_at(&mut [IoSlice::new(&bytes)], 0)?;
        self.written = self.written.max(PAGE as u64);
        Ok(())
    }

    /// Writes zeros up to `end`, if that was never written.
    fn prepare(&mut self, end: u64) -> Result<()> {
        if end <= self.written {
            return Ok(());
        }
        let zeros = vec![0; (end - self.written) as usize];
        self.backing
            .write_at(&mut [IoSlice::new(&zeros)], self.written)?;
        self.written = end;
        Ok(())
    }

    /// Appends whole pages, starting with the one the last append ended in, so
    /// that the host never has to read a page in order to change part of it.
    pub(super) fn append(&mut self, records: &[u8]) -> Result<()> {
        let at = self.end - self.tail.len() as u64;
        let end = self.end + records.len() as u64;
        let padded = end.next_multiple_of(PAGE as u64);
        if padded > self.written {
            self.prepare(padded + AHEAD)?;
        }
        let padding = vec![0; (padded - end) as usize];
        let mut bufs = [
            IoSlice::new(&self.tail),
            IoSlice::new(records),
            IoSlice::new(&padding),
        ];
        self.backing.write_at(&mut bufs, at)?;
        self.dirty = true;
        self.tail.extend_from_slice(records);
        let keep = (end % PAGE as u64) as usize;
        let drop = self.tail.len() - keep;
        self.tail.drain(..drop);
        self.end = end;
        Ok(())
    }
}
