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
/// As much of them at once: the host keeps what is written together as one, and going
/// through that costs each later record more the larger it is.
const AT_ONCE: u64 = 256 << 10;

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
    /// Bytes from the last page boundary to `end`. Its memory is where records are laid
    /// out.
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
        let zeros = vec![0; AT_ONCE as usize];
        while self.written < end {
            let len = AT_ONCE.min(end - self.written);
            let bufs = &mut [IoSlice::new(&zeros[..len as usize])];
            self.backing.write_at(bufs, self.written)?;
            self.written += len;
        }
        Ok(())
    }

    /// Appends the records that `encode` appends to what it is given.
    pub(super) fn append(&mut self, encode: impl FnOnce(&mut Vec<u8>)) -> Result<()> {
        let (at, before) = (self.end - self.tail.len() as u64, self.tail.len());
        encode(&mut self.tail);
        let len = self.tail.len();
        let written = self.write_tail(at);
        // What is left of the page that they end in; after a failure, of the one that
        // they begin in.
        let kept = match written {
            Ok(()) => len - len % PAGE..len,
            Err(_) => 0..before,
        };
        let left = kept.len();
        self.tail.copy_within(kept, 0);
        self.tail.truncate(left);
        written?;
        self.dirty = true;
        self.end = at + len as u64;
        Ok(())
    }

    /// Writes whole pages, starting with the one the last append ended in, so that the
    /// host never has to read a page in order to change part of it.
    fn write_tail(&mut self, at: u64) -> Result<()> {
        self.tail.resize(self.tail.len().next_multiple_of(PAGE), 0);
        let end = at + self.tail.len() as u64;
        if end > self.written {
            self.prepare(end + AHEAD)?;
        }
        Ok(self.backing.write_at(&mut [IoSlice::new(&self.tail)], at)?)
    }
}
