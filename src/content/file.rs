//! An open encrypted file: what its handles share.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::io::IoSliceMut;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::{Mutex, RwLock};

use crate::backing::{self, BackingFile};
use crate::crypto::{BlockCipher, Seal};
use crate::format::Layout;
use crate::format::meta::{Entry, MetaPage};

use super::around::Around;
use super::identity::Identity;
use super::lease::{Lease, Withheld};
use super::pages::Pages;
use super::{ContentError, Result, VolumeContext};

/// One encrypted file. All handles of an inode share one of these.
///
/// Reads run in parallel; a change to the file has it to itself.
pub struct EncryptedFile {
    pub(super) me: Weak<Self>,
    pub(super) ino: u64,
    pub(super) volume: Arc<VolumeContext>,
    pub(super) state: RwLock<State>,
    pub(super) pages: Mutex<Pages>,
    /// How many of `State::changes` a sync of the backing file has covered.
    synced: AtomicU64,
    /// Groups of which a crash left entries that fit no block, and that are
    /// still in the backing file.
    pub(super) settled: Mutex<BTreeSet<u64>>,
    /// What the keeper of keys sees without the lock.
    pub(super) lease: Lease,
    /// What small reads have been read around.
    pub(super) around: Around,
    ciphers: Mutex<[CachedCipher; CIPHERS]>,
}

/// A group and its cipher.
type CachedCipher = Option<(u64, Arc<BlockCipher>)>;

/// Group ciphers kept ready a file.
const CIPHERS: usize = 8;

/// Most bytes of a file that is read whole when it is opened: as much as the
/// kernel reads ahead by default.
const SMALL: u64 = 128 << 10;

/// Bytes of a file from which on its ciphertext is not to crowd the page cache,
/// which has its plaintext, too.
const LARGE: u64 = 1 << 20;

thread_local! {
    /// Where small files are read and decrypted.
    static WHOLE: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

pub(super) struct State {
    pub(super) backing: Arc<dyn BackingFile>,
    pub(super) writable: bool,
    /// Length of the plaintext, including what is still pending.
    pub(super) size: u64,
    /// Counts changes that were made in place, which a sync has to cover.
    pub(super) changes: u64,
    pub(super) identity: Option<Arc<Identity>>,
    /// The header lies in the backing file.
    pub(super) header_stored: bool,
    /// Overwritten blocks that are in the journal but not yet in place.
    pub(super) pending: BTreeMap<u64, Pending>,
    /// When `pending` was last empty.
    pub(super) pending_since: Instant,
    /// The newest journal record of this file.
    pub(super) last_record: u64,
    /// Blocks were cut off or punched out, and the file not synced since: see
    /// `before_reuse`.
    pub(super) freed: bool,
    /// The journal has records of blocks from this one on, which were cut off.
    pub(super) revoke_from: Option<u64>,
    /// No entries of blocks past the end are left in the backing file: see
    /// `clean_end`.
    pub(super) end_clean: bool,
    /// A failure to put pending blocks in place, to be told at the next sync.
    pub(super) deferred: Option<ContentError>,
    /// Why programs may not use the key at present.
    pub(super) withheld: Option<Withheld>,
}

/// Who a file that does not exist yet will be, with its data key. Nothing where
/// keys are local: there one is made when the file gets its first content.
pub struct NewIdentity(Option<Arc<Identity>>);

impl NewIdentity {
    /// Gets a new file's data key; may wait for the key provider.
    ///
    /// # Errors
    /// Those of the key provider.
    pub fn get(volume: &VolumeContext) -> Result<Self> {
        if volume.keys.is_local() {
            return Ok(Self(None));
        }
        Ok(Self(Some(Arc::new(Identity::create(volume)?))))
    }
}

/// A block's new content, waiting for its journal record to be durable.
pub(super) struct Pending {
    pub(super) entry: Entry,
    pub(super) ciphertext: Box<[u8]>,
    pub(super) record: u64,
}

pub(super) fn seal_of(entry: &Entry) -> Seal {
    Seal {
        nonce: entry.nonce,
        tag: entry.tag,
    }
}

impl EncryptedFile {
    /// Opens the file of inode `ino`. If it has data, this gets its data key,
    /// and may wait for the key provider.
    ///
    /// # Errors
    /// Those of reading the head, of the header, and of the key provider.
    pub fn open(
        volume: Arc<VolumeContext>,
        ino: u64,
        backing: Arc<dyn BackingFile>,
        writable: bool,
    ) -> Result<Arc<Self>> {
        let backing_len = backing.len()?;
        let mut head = Vec::new();
        if backing_len > 0 {
            head.resize(volume.layout().head_size(), 0);
            backing.read_at(&mut [IoSliceMut::new(&mut head)], 0)?;
        }
        Self::open_with(volume, ino, backing, writable, backing_len, &head)
    }

    /// A file that was just made, with nothing in it yet.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn new(
        volume: Arc<VolumeContext>,
        ino: u64,
        backing: Arc<dyn BackingFile>,
    ) -> Result<Arc<Self>> {
        Self::open_with(volume, ino, backing, true, 0, &[])
    }

    /// As [`Self::open`], and of a small file hands the whole content to `offer`:
    /// head and data are had from the backing file by one call.
    ///
    /// # Errors
    /// As [`Self::open`]. Damaged content is not offered, and no error here.
    pub fn open_whole(
        volume: Arc<VolumeContext>,
        ino: u64,
        backing: Arc<dyn BackingFile>,
        writable: bool,
        offer: impl FnOnce(&[u8]),
    ) -> Result<Arc<Self>> {
        let (backing_len, layout) = (backing.len()?, volume.layout());
        let head_size = layout.head_size();
        let size = layout.plain_len(backing_len);
        if size == 0 || size > SMALL {
            return Self::open(volume, ino, backing, writable);
        }
        WHOLE.with_borrow_mut(|buffer| {
            let blocks = layout.block_count(size) as usize * layout.block_size();
            let len = head_size + blocks;
            if buffer.len() < len {
                buffer.resize(len, 0);
            }
            let (head, blocks) = buffer[..len].split_at_mut(head_size);
            let bufs = &mut [IoSliceMut::new(head), IoSliceMut::new(blocks)];
            backing.read_at(bufs, 0)?;
            let file = Self::open_with(volume, ino, backing, writable, backing_len, head)?;
            if let Some(content) = file.opened_whole(size, blocks) {
                offer(content);
            }
            Ok(file)
        })
    }

    fn open_with(
        volume: Arc<VolumeContext>,
        ino: u64,
        backing: Arc<dyn BackingFile>,
        writable: bool,
        backing_len: u64,
        head: &[u8],
    ) -> Result<Arc<Self>> {
        let size = volume.layout().plain_len(backing_len);
        if size >= LARGE {
            backing.mostly_once();
        }
        let end = volume.layout().block_count(size);
        let journal = volume.journal.as_ref();
        let freed = journal.is_some_and(|j| j.is_freed(ino));
        let last_record = journal.map_or(0, |j| j.newest_of(ino));
        let mut identity = None;
        let lease = Lease::default();
        let mut pages = Pages::default();
        if backing_len == 0 {
            pages.offer(0, MetaPage::empty(0), size, &volume);
        } else {
            identity = Identity::open(&volume, head)?.map(Arc::new);
            if let Some(identity) = &identity {
                lease.begin(identity.obtained);
            }
            let meta = volume.layout().meta_offset(0) as usize;
            let page = MetaPage::from_bytes(0, &head[meta..]);
            pages.offer(0, page, size, &volume);
        }
        // Those of an id that the file has no more are void.
        let recorded = identity.is_some() && journal.is_some_and(|j| j.has_records_from(ino, end));
        Ok(Arc::new_cyclic(|me| Self {
            me: me.clone(),
            ino,
            state: RwLock::new(State {
                backing,
                writable,
                size,
                // Whoever had it open before may have left something.
                changes: 1,
                header_stored: identity.is_some(),
                identity,
                pending: BTreeMap::new(),
                pending_since: Instant::now(),
                last_record,
                freed,
                revoke_from: recorded.then_some(end),
                end_clean: backing_len == 0,
                deferred: None,
                withheld: None,
            }),
            pages: Mutex::new(pages),
            synced: AtomicU64::new(0),
            settled: Mutex::default(),
            lease,
            around: Around::default(),
            ciphers: Mutex::default(),
            volume,
        }))
    }

    /// Length of the plaintext in bytes.
    pub fn size(&self) -> u64 {
        self.state.read().size
    }

    /// Whether the file can be written through this object.
    pub fn is_writable(&self) -> bool {
        self.state.read().writable
    }

    /// Goes on with a writable descriptor of the same file.
    pub fn make_writable(&self, backing: Arc<dyn BackingFile>) {
        let mut state = self.state.write();
        if !state.writable {
            state.backing = backing;
            state.writable = true;
        }
    }

    /// Gets the file a data key if it has none, so that no later write waits
    /// for the key provider. Nothing is locked meanwhile.
    ///
    /// # Errors
    /// Those of the key provider.
    pub fn prepare_write(&self) -> Result<()> {
        if self.volume.keys.is_local() || self.state.read().identity.is_some() {
            return Ok(());
        }
        self.adopt(NewIdentity::get(&self.volume)?);
        Ok(())
    }

    /// Makes the file, if it is new, what was got for it.
    pub fn adopt(&self, new: NewIdentity) {
        if let Some(identity) = new.0 {
            let mut state = self.state.write();
            let identity = state.identity.get_or_insert(identity);
            self.lease.begin(identity.obtained);
        }
    }

    /// Makes all earlier changes durable, or with `data_only` all but times
    /// and modes. Says whether the storage that the file takes has changed.
    ///
    /// # Errors
    /// Those of the backing storage, including earlier ones that no operation
    /// has reported.
    pub fn sync(&self, data_only: bool) -> Result<bool> {
        let (backing, record, changes) = {
            let state = self.state.read();
            (state.backing.clone(), state.last_record, state.changes)
        };
        let unsynced = self.synced.load(Ordering::Acquire) < changes;
        self.flush_journal(record)?;
        if unsynced || !data_only {
            backing.sync(data_only)?;
        }
        if unsynced {
            self.synced_up_to(changes);
        }
        self.take_deferred()?;
        Ok(unsynced)
    }

    /// Reports an earlier failure that no operation has reported yet.
    fn take_deferred(&self) -> Result<()> {
        if self.state.read().deferred.is_none() {
            return Ok(());
        }
        self.state.write().deferred.take().map_or(Ok(()), Err)
    }

    /// Runs `change` while no blocks are put in place, which puts the file's
    /// modification time back to what it was before.
    pub fn with_times_at_rest<T>(&self, change: impl FnOnce() -> T) -> T {
        let _state = self.state.write();
        change()
    }

    /// A failure that no operation has reported yet.
    pub(super) fn deferred(&self) -> Option<ContentError> {
        self.state.read().deferred.clone()
    }

    /// How long the oldest pending block may have been waiting.
    pub(super) fn pending_for(&self) -> Duration {
        let state = self.state.read();
        if state.pending.is_empty() {
            Duration::ZERO
        } else {
            state.pending_since.elapsed()
        }
    }

    /// The oldest record whose block is not in place yet.
    pub(super) fn oldest_pending(&self) -> Option<u64> {
        let state = self.state.read();
        state.pending.values().map(|p| p.record).min()
    }

    /// Makes this file's journal records up to `record` durable.
    pub(super) fn flush_journal(&self, record: u64) -> Result<()> {
        let journal = self.volume.journal.as_ref();
        journal.map_or(Ok(()), |journal| journal.flush(record))
    }

    /// Only now, not when the sync began: another that comes while it runs has to do
    /// its own.
    fn synced_up_to(&self, changes: u64) {
        self.synced.fetch_max(changes, Ordering::AcqRel);
        if self.state.read().freed {
            let mut state = self.state.write();
            if state.changes == changes {
                self.set_freed(&mut state, false);
            }
        }
    }

    /// Sets `freed`, also for when the file is opened again.
    pub(super) fn set_freed(&self, state: &mut State, freed: bool) {
        if state.freed != freed {
            state.freed = freed;
            if let Some(journal) = &self.volume.journal {
                journal.note_freed(self.ino, freed);
            }
        }
    }

    /// The identity, made now if the file never had data.
    pub(super) fn identity_or_new(&self, state: &mut State) -> Result<Arc<Identity>> {
        if let Some(identity) = &state.identity {
            return Ok(identity.clone());
        }
        let identity = Arc::new(Identity::create(&self.volume)?);
        self.lease.begin(identity.obtained);
        state.identity = Some(identity.clone());
        Ok(identity)
    }

    pub(super) fn layout(&self) -> Layout {
        self.volume.layout()
    }

    /// The cipher of `group`, derived or still at hand.
    pub(super) fn cipher(&self, identity: &Identity, group: u64) -> Result<Arc<BlockCipher>> {
        let slot = (group % CIPHERS as u64) as usize;
        if let Some((g, cipher)) = &self.ciphers.lock()[slot]
            && *g == group
        {
            return Ok(cipher.clone());
        }
        let cipher = Arc::new(identity.key()?.group_cipher(group));
        self.ciphers.lock()[slot] = Some((group, cipher.clone()));
        Ok(cipher)
    }

    /// Wipes the ciphers at hand. To be called with the file locked, so that
    /// nobody uses one.
    pub(super) fn drop_ciphers(&self) {
        *self.ciphers.lock() = Default::default();
    }
}

impl From<ContentError> for backing::Errno {
    /// For host code in between that only knows errnos; content errors proper
    /// become EIO.
    fn from(error: ContentError) -> Self {
        match error {
            ContentError::Backing(errno) => errno,
            _ => Self::IO,
        }
    }
}
