//! Records of the volume's write-ahead journal (`content::journal` uses them).
//!
//! A journal file starts with a page that says whose it is, then holds records
//! back to back up to the first one that is not intact:
//!
//! ```text
//! page    0  8  magic "KMSFSJNL"      record  0   4  CRC-32 of the rest and payload
//!         8  2  lowest reading version        4   4  bytes of payload
//!         10 2  version that wrote it         8   8  generation of the journal
//!         12 4  epoch                         16  8  sequence number
//!         16 16 volume id                     24  8  inode number of the file
//!         32 8  generation, 0 = empty         32  16 file id
//!         40 8  identity of the backing root     48  8  first block
//!         48 2  number of unclean epochs      56  8  last block
//!         50 …  unclean epochs, u32           64  1  kind: 1 block, 2 revoke
//!         4080 16 SHA-256, truncated          65  30 entry (block)
//!                                             95  1  zero
//!                                             96  …  ciphertext (block)
//! ```

use crate::types::{FileId, VolumeId};

use super::header::Sha256;
use super::meta::{ENTRY, Entry};
use super::wire::Reader;
use super::{FORMAT_VERSION, FormatError};

const MAGIC: &[u8; 8] = b"KMSFSJNL";
/// Bytes of the page at the start of a journal file.
pub const PAGE: usize = 4096;
/// Bytes of a record before its payload.
pub const RECORD: usize = 96;
/// Most unclean epochs the page can list.
pub const MAX_UNCLEAN: usize = 1000;

/// The first page of a journal file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JournalPage {
    /// The volume it belongs to.
    pub volume: VolumeId,
    /// Tells this use of the file from earlier ones; 0 says it holds nothing.
    pub generation: u64,
    /// The mount that wrote it.
    pub epoch: u32,
    /// Tells the backing root from copies of it (its inode number and time of
    /// birth, mixed): where it differs, the records' inode numbers mean nothing.
    pub root_ino: u64,
    /// Epochs that did not end with a clean unmount.
    pub unclean: Vec<u32>,
}

impl JournalPage {
    /// The page's bytes. Only the newest [`MAX_UNCLEAN`] unclean epochs are kept.
    pub fn encode(&self, sha256: Sha256) -> Vec<u8> {
        let mut out = Vec::with_capacity(PAGE);
        out.extend_from_slice(MAGIC);
        // To read it, and that wrote it: the same in every format.
        out.extend_from_slice(&1u16.to_le_bytes());
        out.extend_from_slice(&1u16.to_le_bytes());
        out.extend_from_slice(&self.epoch.to_le_bytes());
        out.extend_from_slice(&self.volume.0);
        out.extend_from_slice(&self.generation.to_le_bytes());
        out.extend_from_slice(&self.root_ino.to_le_bytes());
        let unclean = &self.unclean[self.unclean.len().saturating_sub(MAX_UNCLEAN)..];
        out.extend_from_slice(&(unclean.len() as u16).to_le_bytes());
        for epoch in unclean {
            out.extend_from_slice(&epoch.to_le_bytes());
        }
        out.resize(PAGE - 16, 0);
        let sum = sha256(&out);
        out.extend_from_slice(&sum[..16]);
        out
    }

    /// `Ok(None)` if the page is not intact.
    ///
    /// # Errors
    /// `TooNew`: what a later version left there must not be written over.
    pub fn decode(bytes: &[u8], sha256: Sha256) -> Result<Option<Self>, FormatError> {
        let Some((body, sum)) = bytes.get(..PAGE).map(|page| page.split_at(PAGE - 16)) else {
            return Ok(None);
        };
        if !body.starts_with(MAGIC) || sum != &sha256(body)[..16] {
            return Ok(None);
        }
        let mut r = Reader(&body[8..]);
        match r.u16() {
            Some(needs) if needs > FORMAT_VERSION => Err(FormatError::TooNew { needs }),
            _ => Ok(Self::decode_body(&mut r)),
        }
    }

    fn decode_body(r: &mut Reader<'_>) -> Option<Self> {
        let _writer = r.u16()?;
        let epoch = r.u32()?;
        let volume = VolumeId(r.array()?);
        let (generation, root_ino) = (r.u64()?, r.u64()?);
        let count = usize::from(r.u16()?);
        let unclean = (0..count).map(|_| r.u32()).collect::<Option<_>>()?;
        Some(Self {
            volume,
            generation,
            epoch,
            root_ino,
            unclean,
        })
    }
}

/// What a record tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecordKind {
    /// The block's new content is the record's payload, decrypted with this.
    Block(Entry),
    /// Earlier records of these blocks no longer count: they were cut off,
    /// punched out or rewritten.
    Revoke,
}

/// A record without its payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record {
    /// Generation of the journal it belongs to.
    pub generation: u64,
    /// Orders records across both journal files.
    pub sequence: u64,
    /// The file's inode number, to find it again.
    pub ino: u64,
    /// The file's id, to be sure of it.
    pub file: FileId,
    /// First block it speaks of.
    pub first: u64,
    /// Last block it speaks of.
    pub last: u64,
    /// What it says.
    pub kind: RecordKind,
}

impl Record {
    /// Appends the record and its payload.
    pub fn encode(&self, payload: &[u8], out: &mut Vec<u8>) {
        let start = out.len();
        out.extend_from_slice(&[0; 4]);
        out.extend_from_slice(&(payload.len() as u32).to_le_bytes());
        for field in [self.generation, self.sequence, self.ino] {
            out.extend_from_slice(&field.to_le_bytes());
        }
        out.extend_from_slice(&self.file.0);
        out.extend_from_slice(&self.first.to_le_bytes());
        out.extend_from_slice(&self.last.to_le_bytes());
        match self.kind {
            RecordKind::Block(entry) => {
                out.push(1);
                out.extend_from_slice(&entry.encode());
            }
            RecordKind::Revoke => {
                out.push(2);
                out.extend_from_slice(&[0; ENTRY]);
            }
        }
        out.push(0);
        out.extend_from_slice(payload);
        let crc = crc32fast::hash(&out[start + 4..]);
        out[start..start + 4].copy_from_slice(&crc.to_le_bytes());
    }

    /// The record at the start of `bytes`, its payload and its whole length;
    /// `None` if it is not intact or of another generation.
    pub fn decode(bytes: &[u8], generation: u64) -> Option<(Self, &[u8], usize)> {
        let mut r = Reader(bytes);
        let crc = r.u32()?;
        let len = RECORD.checked_add(r.u32()? as usize)?;
        let whole = bytes.get(..len)?;
        if crc32fast::hash(&whole[4..]) != crc || r.u64()? != generation {
            return None;
        }
        let (sequence, ino) = (r.u64()?, r.u64()?);
        let file = FileId(r.array()?);
        let (first, last) = (r.u64()?, r.u64()?);
        let (kind, entry) = (r.u8()?, r.array::<ENTRY>()?);
        let payload = &whole[RECORD..];
        let kind = match kind {
            1 => {
                let entry = Entry::decode(&entry)?;
                if entry.len as usize != payload.len() || first != last {
                    return None;
                }
                RecordKind::Block(entry)
            }
            2 => RecordKind::Revoke,
            _ => return None,
        };
        let record = Self {
            generation,
            sequence,
            ino,
            file,
            first,
            last,
            kind,
        };
        Some((record, payload, len))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::sha256;
    use proptest::prelude::*;

    #[test]
    fn the_page_round_trips_and_notices_damage() {
        let page = JournalPage {
            volume: VolumeId([1; 16]),
            generation: 99,
            epoch: 7,
            root_ino: 2,
            unclean: vec![3, 5],
        };
        let mut bytes = page.encode(sha256);
        assert_eq!(bytes.len(), PAGE);
        assert_eq!(JournalPage::decode(&bytes, sha256), Ok(Some(page)));
        bytes[50] ^= 1;
        assert_eq!(JournalPage::decode(&bytes, sha256), Ok(None));
        bytes[50] ^= 1;
        bytes[8] = 3;
        let sum = sha256(&bytes[..PAGE - 16]);
        bytes[PAGE - 16..].copy_from_slice(&sum[..16]);
        let later = JournalPage::decode(&bytes, sha256);
        assert_eq!(later, Err(FormatError::TooNew { needs: 3 }));
    }

    #[test]
    fn records_follow_each_other_until_the_first_damaged_one() {
        let entry = Entry {
            nonce: [1; 12],
            tag: [2; 16],
            len: 100,
        };
        let record = |sequence, kind| Record {
            generation: 42,
            sequence,
            ino: 11,
            file: FileId([6; 16]),
            first: 5,
            last: 5,
            kind,
        };
        let mut bytes = Vec::new();
        record(1, RecordKind::Block(entry)).encode(&[7; 100], &mut bytes);
        let second = bytes.len();
        record(2, RecordKind::Revoke).encode(&[], &mut bytes);
        let (got, payload, len) = Record::decode(&bytes, 42).unwrap();
        assert_eq!(got, record(1, RecordKind::Block(entry)));
        assert_eq!((payload, len), (&[7u8; 100][..], second));
        assert!(Record::decode(&bytes[second..], 42).is_some());
        assert!(Record::decode(&bytes[second..], 41).is_none());
        bytes[second + 30] ^= 1;
        assert!(Record::decode(&bytes[second..], 42).is_none());
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = Record::decode(&bytes, 1);
        }
    }
}
