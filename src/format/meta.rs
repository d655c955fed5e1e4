//! The metadata of a group of blocks: one entry a block, and the page's epoch.
//!
//! ```text
//! entry i at 30·i:  nonce 12 | tag 16 | stored length - 1, u16
//! reserved area:    epoch u32 | zero          (128 bytes in group 0, 256 later)
//! ```
//!
//! An entry of zeros is a hole. The epoch is that of the mount that last wrote
//! the page (see `content::settle` for what it is for).

use super::layout::{FIRST_GROUP, GROUP, META_FIRST, META_PAGE};

/// Bytes of an entry.
pub const ENTRY: usize = 30;

/// How to decrypt one block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The AEAD nonce.
    pub nonce: [u8; 12],
    /// The AEAD tag.
    pub tag: [u8; 16],
    /// Bytes of plaintext, and of ciphertext: 1 ..= 65536.
    pub len: u32,
}

impl Entry {
    /// The entry's bytes.
    pub fn encode(&self) -> [u8; ENTRY] {
        let mut out = [0; ENTRY];
        out[..12].copy_from_slice(&self.nonce);
        out[12..28].copy_from_slice(&self.tag);
        out[28..].copy_from_slice(&((self.len - 1) as u16).to_le_bytes());
        out
    }

    /// `None` is a hole. Every other value is an entry; whether it is a true
    /// one only its tag can tell.
    pub fn decode(bytes: &[u8; ENTRY]) -> Option<Self> {
        if bytes.iter().all(|&b| b == 0) {
            return None;
        }
        let (nonce, rest) = bytes.split_first_chunk().expect("30 bytes");
        let (tag, len) = rest.split_first_chunk().expect("18 bytes");
        Some(Self {
            nonce: *nonce,
            tag: *tag,
            len: u32::from(u16::from_le_bytes([len[0], len[1]])) + 1,
        })
    }
}

/// A group's metadata as it lies on disk.
#[derive(Clone)]
pub struct MetaPage {
    bytes: Box<[u8]>,
}

impl MetaPage {
    /// A page that has only holes.
    pub fn empty(group: u64) -> Self {
        Self {
            bytes: vec![0; Self::len_of(group)].into_boxed_slice(),
        }
    }

    /// The page as read from disk, zero-filled where the file ended before it.
    pub fn from_bytes(group: u64, read: &[u8]) -> Self {
        let mut page = Self::empty(group);
        let n = read.len().min(page.bytes.len());
        page.bytes[..n].copy_from_slice(&read[..n]);
        page
    }

    /// The page's bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Number of entries.
    pub fn entries(&self) -> usize {
        if self.bytes.len() == META_FIRST as usize {
            FIRST_GROUP as usize
        } else {
            GROUP as usize
        }
    }

    /// The entry of the group's `at`-th block; `None` is a hole.
    pub fn get(&self, at: usize) -> Option<Entry> {
        let bytes = &self.bytes[at * ENTRY..][..ENTRY];
        Entry::decode(bytes.try_into().expect("ENTRY bytes"))
    }

    /// Sets the entry of the group's `at`-th block, or makes it a hole.
    pub fn set(&mut self, at: usize, entry: Option<Entry>) {
        let bytes = entry.map_or([0; ENTRY], |e| e.encode());
        self.bytes[at * ENTRY..][..ENTRY].copy_from_slice(&bytes);
    }

    /// The mount that last wrote the page; 0 for none.
    pub fn epoch(&self) -> u32 {
        let at = self.entries() * ENTRY;
        u32::from_le_bytes(self.bytes[at..at + 4].try_into().expect("4 bytes"))
    }

    /// Marks the page as written by mount `epoch`.
    pub fn set_epoch(&mut self, epoch: u32) {
        let at = self.entries() * ENTRY;
        self.bytes[at..at + 4].copy_from_slice(&epoch.to_le_bytes());
    }

    fn len_of(group: u64) -> usize {
        (if group == 0 { META_FIRST } else { META_PAGE }) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_round_trip_and_zero_is_a_hole() {
        for group in [0, 1] {
            let mut page = MetaPage::empty(group);
            assert!((0..page.entries()).all(|i| page.get(i).is_none()));
            let last = page.entries() - 1;
            let entry = Entry {
                nonce: [1; 12],
                tag: [2; 16],
                len: 65536,
            };
            page.set(last, Some(entry));
            page.set_epoch(7);
            let again = MetaPage::from_bytes(group, page.as_bytes());
            assert_eq!(again.get(last), Some(entry));
            assert_eq!(again.get(last - 1), None);
            assert_eq!(again.epoch(), 7);
            page.set(last, None);
            assert_eq!(page.get(last), None);
        }
    }
}
