//! What listings told, kept for when the kernel lists a directory anew.
//!
//! The kernel drops names and inodes of which it has not heard for a while, and the host
//! drops what lies below them. So who walks through a tree from time to time, as a backup
//! does, would have the host read it from the disk each time. This mount is the volume's
//! only writer: what it was told stays true until it changes something.
//!
//! Kept are attributes of inodes that were only looked at, and the listings of
//! directories whose entries did not change. Whoever might change an inode gets it by
//! `InodeTable::get_to_change`; from then on nothing is kept of it for as long as the
//! kernel knows it. So neither is anything kept of files that are open.

use std::num::NonZero;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use lru::LruCache;
use parking_lot::Mutex;

use super::Attr;
use super::directory::ListedEntry;
use super::inode::Inode;

/// Most inodes of which attributes are kept, and most entries of all listings: about
/// 25 MB of memory.
const MOST: NonZero<usize> = NonZero::new(65_536).expect("not zero");
/// Most entries of one listing.
pub(super) const MOST_IN_ONE: usize = MOST.get() / 8;

/// See the module.
pub(super) struct Kept {
    attributes: Mutex<LruCache<u64, (u64, Attr)>>,
    listings: Mutex<Listings>,
}

struct Listings {
    of: LruCache<u64, Arc<KeptListing>>,
    entries: usize,
}

/// All that is visible of a directory, in the host's order.
pub(super) struct KeptListing(Vec<ListedEntry>);

impl Default for Kept {
    fn default() -> Self {
        Self {
            attributes: Mutex::new(LruCache::new(MOST)),
            listings: Mutex::new(Listings {
                of: LruCache::unbounded(),
                entries: 0,
            }),
        }
    }
}

impl Kept {
    /// Lets go of what is kept of an inode that is about to be changed.
    pub(super) fn changes(&self, inode: &Inode) {
        // Before anything is let go of: see `keep_attributes`.
        if !inode.changes.swap(true, Ordering::SeqCst) {
            self.drop_all(inode.ino);
        }
    }

    /// Lets go of what is kept of the inode with that number.
    pub(super) fn drop_all(&self, ino: u64) {
        self.attributes.lock().pop(&ino);
        self.listings.lock().remove(ino);
    }

    /// Keeps attributes that were had after `inode` was, unless it changes.
    pub(super) fn keep_attributes(&self, inode: &Inode, attr: &Attr) {
        let mut attributes = self.attributes.lock();
        // Under the lock: who changes it says so first, and then takes the lock.
        if !inode.changes.load(Ordering::SeqCst) {
            attributes.put(inode.ino, (inode.generation(), *attr));
        }
    }

    /// The generation and the attributes of an inode.
    pub(super) fn attributes(&self, ino: u64) -> Option<(u64, Attr)> {
        // Whoever walks through a tree asks for all of it, so it says little which were
        // asked for last, and noting it takes as long as the rest of this.
        self.attributes.lock().peek(&ino).copied()
    }

    /// The attributes of an inode that the table knows.
    pub(super) fn attributes_of(&self, inode: &Inode) -> Option<Attr> {
        // Of those that change, which are most that are asked for, without the lock.
        if inode.changes.load(Ordering::SeqCst) {
            return None;
        }
        let (generation, attr) = self.attributes(inode.ino)?;
        (generation == inode.generation()).then_some(attr)
    }

    /// Keeps the whole listing of a directory, unless its entries change.
    pub(super) fn keep_listing(&self, inode: &Inode, mut entries: Vec<ListedEntry>) {
        entries.shrink_to_fit();
        let mut listings = self.listings.lock();
        if !inode.changes.load(Ordering::SeqCst) {
            listings.add(inode.ino, KeptListing(entries));
        }
    }

    /// The listing of a directory.
    pub(super) fn listing(&self, ino: u64) -> Option<Arc<KeptListing>> {
        self.listings.lock().of.get(&ino).cloned()
    }
}

impl Listings {
    fn add(&mut self, ino: u64, listing: KeptListing) {
        self.remove(ino);
        self.entries += listing.0.len();
        self.of.put(ino, Arc::new(listing));
        while self.entries > MOST.get()
            && let Some((_, oldest)) = self.of.pop_lru()
        {
            self.entries -= oldest.0.len();
        }
    }

    fn remove(&mut self, ino: u64) {
        if let Some(listing) = self.of.pop(&ino) {
            self.entries -= listing.0.len();
        }
    }
}

impl KeptListing {
    /// The entries behind `position` (0 is the start), if it is one of this listing's.
    pub(super) fn behind(&self, position: u64) -> Option<&[ListedEntry]> {
        if position == 0 {
            return Some(&self.0);
        }
        let at = self.0.iter().position(|entry| entry.next == position)?;
        Some(&self.0[at + 1..])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listing(len: u64) -> KeptListing {
        let entry = |next| ListedEntry {
            name: b"name".to_vec(),
            ino: 7,
            kind: None,
            next,
            stored: b"stored".to_vec(),
        };
        KeptListing((1..=len).map(|at| entry(10 * at)).collect())
    }

    #[test]
    fn a_listing_goes_on_where_it_was_left() {
        let listing = listing(3);
        let left = |position| listing.behind(position).map(<[_]>::len);
        assert_eq!(left(0), Some(3));
        assert_eq!(left(10), Some(2));
        assert_eq!(left(30), Some(0));
        assert_eq!(left(15), None);
    }

    #[test]
    fn only_so_many_entries_are_kept() {
        let kept = Kept::default();
        let most = MOST_IN_ONE as u64;
        for ino in 2..12 {
            kept.listings.lock().add(ino, listing(most));
        }
        assert!(kept.listing(3).is_none(), "the oldest go first");
        assert!(kept.listing(4).is_some() && kept.listing(11).is_some());
        kept.listings.lock().add(5, listing(1));
        kept.drop_all(6);
        let listings = kept.listings.lock();
        assert_eq!(listings.entries, 6 * MOST_IN_ONE + 1);
    }
}
