//! Replaying the journals of a mount that did not end cleanly.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io::{IoSlice, IoSliceMut};
use std::sync::Arc;

use crate::backing::BackingFile;
use crate::crypto::sha256;
use crate::format::Layout;
use crate::format::header::Header;
use crate::format::journal::{JournalPage, PAGE, Record, RecordKind};
use crate::format::meta::{Entry, MetaPage};
use crate::types::{FileId, VolumeId};

use super::Result;

/// Opens backing files by what the journal knows of them.
pub trait Finder {
    /// The regular files with these inode numbers, opened for writing.
    ///
    /// # Errors
    /// Those of walking the backing directory.
    fn by_inode(&mut self, inodes: &HashSet<u64>) -> Result<HashMap<u64, Arc<dyn BackingFile>>>;

    /// Calls `each` with every regular file, for a volume that was copied and
    /// whose inode numbers mean nothing any more.
    ///
    /// # Errors
    /// Those of walking the backing directory.
    fn every_file(
        &mut self,
        each: &mut dyn FnMut(Arc<dyn BackingFile>) -> Result<()>,
    ) -> Result<()>;
}

/// What the journals said before this mount.
#[derive(Debug, Default)]
pub struct Recovered {
    /// The newest epoch on record.
    pub epoch: u32,
    /// Epochs without a clean end.
    pub unclean: Vec<u32>,
    /// Blocks that were put in place.
    pub blocks: usize,
}

/// The records of one file.
#[derive(Default)]
struct FileRecords {
    /// Block index to sequence number, entry, ciphertext.
    blocks: BTreeMap<u64, (u64, Entry, Vec<u8>)>,
    /// Sequence number, first and last block.
    revokes: Vec<(u64, u64, u64)>,
}

/// Reads both journals, puts what they hold in place and on the disk, and
/// empties them.
///
/// # Errors
/// Those of the backing storage. Trying again is safe.
pub fn replay(
    journals: &[Arc<dyn BackingFile>; 2],
    volume: VolumeId,
    layout: Layout,
    root_ino: u64,
    finder: &mut dyn Finder,
) -> Result<Recovered> {
    let mut recovered = Recovered::default();
    let mut files: HashMap<(u64, FileId), FileRecords> = HashMap::new();
    let mut moved = false;
    let mut newest = [None; 2];
    for (journal, newest) in journals.iter().zip(&mut newest) {
        let bytes = read_all(journal.as_ref())?;
        let Some(page) = JournalPage::decode(&bytes, sha256)?.filter(|p| p.volume == volume) else {
            continue;
        };
        recovered.epoch = recovered.epoch.max(page.epoch);
        for epoch in &page.unclean {
            if !recovered.unclean.contains(epoch) {
                recovered.unclean.push(*epoch);
            }
        }
        if page.generation == 0 {
            continue;
        }
        if !recovered.unclean.contains(&page.epoch) {
            recovered.unclean.push(page.epoch);
        }
        moved |= page.root_ino != root_ino;
        *newest = collect(&bytes[PAGE..], page.generation, &mut files);
    }
    files.retain(|_, records| records.drop_revoked());
    recovered.blocks = put_all_in_place(files, layout, moved, finder)?;
    // Records must not outlive those that replaced or revoked them.
    let order = if newest[0] > newest[1] {
        [1, 0]
    } else {
        [0, 1]
    };
    for at in order {
        if newest[at].is_some() {
            let page = JournalPage {
                volume,
                generation: 0,
                epoch: recovered.epoch,
                root_ino,
                unclean: recovered.unclean.clone(),
            };
            journals[at].write_at(&mut [IoSlice::new(&page.encode(sha256))], 0)?;
            journals[at].sync(true)?;
        }
    }
    Ok(recovered)
}

/// Finds the files and puts their blocks in place; gives the number of blocks.
fn put_all_in_place(
    files: HashMap<(u64, FileId), FileRecords>,
    layout: Layout,
    moved: bool,
    finder: &mut dyn Finder,
) -> Result<usize> {
    let mut blocks = 0;
    if files.is_empty() {
        return Ok(0);
    }
    if moved {
        let mut by_id: HashMap<FileId, FileRecords> =
            files.into_iter().map(|((_, id), r)| (id, r)).collect();
        finder.every_file(&mut |file| {
            if let Some(header) = header_of(file.as_ref(), layout)?
                && let Some(records) = by_id.remove(&header.file)
            {
                blocks += put_in_place(file.as_ref(), layout, &records)?;
            }
            Ok(())
        })?;
        return Ok(blocks);
    }
    let inodes = files.keys().map(|(ino, _)| *ino).collect();
    let found = finder.by_inode(&inodes)?;
    for ((ino, id), records) in files {
        // Not found: deleted since. Another file in its place: the same.
        if let Some(file) = found.get(&ino)
            && header_of(file.as_ref(), layout)?.is_some_and(|h| h.file == id)
        {
            blocks += put_in_place(file.as_ref(), layout, &records)?;
        }
    }
    Ok(blocks)
}

impl FileRecords {
    /// Drops blocks revoked after they were recorded; whether any are left.
    fn drop_revoked(&mut self) -> bool {
        let revokes = &self.revokes;
        self.blocks.retain(|index, (sequence, ..)| {
            !revokes
                .iter()
                .any(|(at, first, last)| at > sequence && first <= index && index <= last)
        });
        !self.blocks.is_empty()
    }
}

fn read_all(file: &dyn BackingFile) -> Result<Vec<u8>> {
    let mut bytes = vec![0; file.len()? as usize];
    let n = file.read_at(&mut [IoSliceMut::new(&mut bytes)], 0)?;
    bytes.truncate(n);
    Ok(bytes)
}

/// Adds the records of one journal to `files`; gives the newest one's number.
fn collect(
    mut bytes: &[u8],
    generation: u64,
    files: &mut HashMap<(u64, FileId), FileRecords>,
) -> Option<u64> {
    let mut newest = None;
    while let Some((record, payload, len)) = Record::decode(bytes, generation) {
        bytes = &bytes[len..];
        newest = newest.max(Some(record.sequence));
        let records = files.entry((record.ino, record.file)).or_default();
        match record.kind {
            RecordKind::Block(entry) => {
                let newer = records
                    .blocks
                    .get(&record.first)
                    .is_some_and(|(sequence, ..)| *sequence > record.sequence);
                if !newer {
                    let block = (record.sequence, entry, payload.to_vec());
                    records.blocks.insert(record.first, block);
                }
            }
            RecordKind::Revoke => {
                records
                    .revokes
                    .push((record.sequence, record.first, record.last));
            }
        }
    }
    newest
}

fn header_of(file: &dyn BackingFile, layout: Layout) -> Result<Option<Header>> {
    let mut head = vec![0; layout.head_size()];
    let n = file.read_at(&mut [IoSliceMut::new(&mut head)], 0)?;
    Ok(Header::newest(&head[..n], layout, sha256)
        .ok()
        .flatten()
        .map(|(_, header)| header))
}

/// Writes the recorded blocks where they belong, except past the end of the
/// file: those were cut off, or their growth was never made durable.
fn put_in_place(file: &dyn BackingFile, layout: Layout, records: &FileRecords) -> Result<usize> {
    let mut done = 0;
    let size = layout.plain_len(file.len()?);
    let mut change = || {
        let mut page: Option<(u64, MetaPage)> = None;
        for (&index, (_, entry, ciphertext)) in &records.blocks {
            if index >= layout.block_count(size) {
                continue;
            }
            let (group, at) = layout.group_of(index);
            if page.as_ref().is_none_or(|(g, _)| *g != group) {
                store(file, layout, page.take())?;
                let mut bytes = vec![0; layout.meta_len(group)];
                let bufs = &mut [IoSliceMut::new(&mut bytes)];
                let n = file.read_at(bufs, layout.meta_offset(group))?;
                page = Some((group, MetaPage::from_bytes(group, &bytes[..n])));
            }
            let bufs = &mut [IoSlice::new(ciphertext)];
            file.write_at(bufs, layout.block_offset(index))?;
            let (_, page) = page.as_mut().expect("loaded above");
            page.set(at, Some(*entry));
            done += 1;
        }
        store(file, layout, page.take())
    };
    file.keeping_mtime(&mut change)?;
    file.sync(false)?;
    Ok(done)
}

fn store(
    file: &dyn BackingFile,
    layout: Layout,
    page: Option<(u64, MetaPage)>,
) -> crate::backing::Result<()> {
    let Some((group, page)) = page else {
        return Ok(());
    };
    file.write_at(
        &mut [IoSlice::new(page.as_bytes())],
        layout.meta_offset(group),
    )
}
