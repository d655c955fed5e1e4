//! The content layer against a plain byte vector, and against power cuts.

use std::collections::{HashMap, HashSet};
use std::io::{IoSlice, IoSliceMut};
use std::sync::Arc;

use parking_lot::Mutex;
use proptest::prelude::*;

use super::read::ReadBuffer;
use super::replay::{Finder, replay};
use super::*;
use crate::backing::BackingFile;
use crate::crypto::random;
use crate::format::config::NameMode;
use crate::format::journal::JournalPage;
use crate::types::{KeyLen, VolumeId};

/// A file in memory that remembers what a power cut may lose: every write since
/// the last sync may have reached the disk or not, page by page.
#[derive(Default)]
struct MemFile(Mutex<Mem>);

#[derive(Default, Clone)]
struct Mem {
    now: Vec<u8>,
    durable: Vec<u8>,
    /// Shortest length since the last sync. Filesystems journal truncations:
    /// what was cut off is either all there or all gone.
    floor: usize,
}

const PAGE: usize = 4096;

impl MemFile {
    /// What the disk may hold after a power cut. The length is as after the
    /// last sync, as now, or as after a truncation in between; a page is the
    /// old or the new one.
    fn cut(&self, mut coin: impl FnMut() -> bool) -> Arc<Self> {
        let mem = self.0.lock().clone();
        let truncated = coin();
        let len = match (truncated, coin()) {
            (true, true) => mem.now.len(),
            (true, false) => mem.floor,
            (false, _) if mem.floor < mem.durable.len() => mem.durable.len(),
            (false, grown) => [mem.durable.len(), mem.now.len()][usize::from(grown)],
        };
        let mut disk = vec![0; len];
        for start in (0..len).step_by(PAGE) {
            let old_kept = start < mem.floor || !truncated;
            let cut_off = start + PAGE > mem.floor && mem.floor < mem.durable.len();
            let from = match (coin(), old_kept) {
                (true, _) if truncated || !cut_off => &mem.now,
                (_, true) => &mem.durable,
                _ => &mem.now,
            };
            let end = (start + PAGE).min(len);
            for (at, byte) in disk.iter_mut().enumerate().take(end).skip(start) {
                *byte = from.get(at).copied().unwrap_or(0);
            }
        }
        Arc::new(Self(Mutex::new(Mem {
            now: disk.clone(),
            floor: disk.len(),
            durable: disk,
        })))
    }
}

impl BackingFile for MemFile {
    fn read_at(&self, bufs: &mut [IoSliceMut<'_>], offset: u64) -> crate::backing::Result<usize> {
        let mem = self.0.lock();
        let mut at = offset as usize;
        let mut total = 0;
        for buf in bufs {
            let rest = mem.now.get(at..).unwrap_or(&[]);
            let n = rest.len().min(buf.len());
            buf[..n].copy_from_slice(&rest[..n]);
            total += n;
            at += n;
        }
        Ok(total)
    }

    fn write_at(&self, bufs: &mut [IoSlice<'_>], offset: u64) -> crate::backing::Result<()> {
        let mut mem = self.0.lock();
        let mut at = offset as usize;
        for buf in bufs.iter() {
            if mem.now.len() < at + buf.len() {
                mem.now.resize(at + buf.len(), 0);
            }
            mem.now[at..at + buf.len()].copy_from_slice(buf);
            at += buf.len();
        }
        Ok(())
    }

    fn len(&self) -> crate::backing::Result<u64> {
        Ok(self.0.lock().now.len() as u64)
    }

    fn set_len(&self, len: u64) -> crate::backing::Result<()> {
        let mut mem = self.0.lock();
        mem.now.resize(len as usize, 0);
        mem.floor = mem.floor.min(len as usize);
        Ok(())
    }

    fn sync(&self, _data_only: bool) -> crate::backing::Result<()> {
        let mut mem = self.0.lock();
        mem.durable = mem.now.clone();
        mem.floor = mem.now.len();
        Ok(())
    }

    fn punch(&self, offset: u64, len: u64) -> crate::backing::Result<()> {
        let mut mem = self.0.lock();
        let end = ((offset + len) as usize).min(mem.now.len());
        if (offset as usize) < end {
            mem.now[offset as usize..end].fill(0);
        }
        Ok(())
    }

    fn allocate(&self, _offset: u64, _len: u64) -> crate::backing::Result<()> {
        Ok(())
    }

    fn next_data(&self, offset: u64) -> crate::backing::Result<Option<u64>> {
        let mem = self.0.lock();
        let pages = mem
            .now
            .chunks(PAGE)
            .enumerate()
            .skip(offset as usize / PAGE);
        let data = pages.filter(|(_, page)| page.iter().any(|&b| b != 0));
        Ok(data.map(|(i, _)| ((i * PAGE) as u64).max(offset)).next())
    }

    fn keeping_mtime(
        &self,
        change: &mut dyn FnMut() -> crate::backing::Result<()>,
    ) -> crate::backing::Result<()> {
        change()
    }
}

/// Keys "wrapped" by being written down.
struct OpenKeys;

impl KeySource for OpenKeys {
    fn generate(
        &self,
        _file: FileId,
    ) -> std::result::Result<(Arc<DataKey>, Vec<WrappedKey>), KeyError> {
        let key = Arc::new(DataKey::random(KeyLen::Bits256));
        let wrapped = WrappedKey {
            key_uri: "test:".into(),
            key_version: String::new(),
            algorithm: String::new(),
            iv: Vec::new(),
            ciphertext: key.expose().to_vec(),
        };
        Ok((key, vec![wrapped]))
    }

    fn unwrap(
        &self,
        _file: FileId,
        wrapped: &[WrappedKey],
    ) -> std::result::Result<Arc<DataKey>, KeyError> {
        Ok(Arc::new(
            DataKey::from_bytes(&wrapped[0].ciphertext).expect("32 bytes"),
        ))
    }

    fn is_local(&self) -> bool {
        true
    }
}

const INO: u64 = 11;

/// A volume of one file, and what mounts of it need.
struct Disk {
    file: Arc<MemFile>,
    journals: [Arc<MemFile>; 2],
    volume: Volume,
}

struct One(Arc<MemFile>);

impl Finder for One {
    fn by_inode(&mut self, inodes: &HashSet<u64>) -> Result<HashMap<u64, Arc<dyn BackingFile>>> {
        let file: Arc<dyn BackingFile> = self.0.clone();
        Ok(inodes.iter().map(|ino| (*ino, file.clone())).collect())
    }

    fn every_file(
        &mut self,
        each: &mut dyn FnMut(Arc<dyn BackingFile>) -> Result<()>,
    ) -> Result<()> {
        each(self.0.clone())
    }
}

impl Disk {
    fn new(block_size: u32) -> Self {
        Self {
            file: Arc::default(),
            journals: [Arc::default(), Arc::default()],
            volume: Volume {
                id: VolumeId([1; 16]),
                suite: 1,
                layout: Layout::new(block_size, 4096).unwrap(),
                names: NameMode::Encrypted,
                commitment: [0; 32],
                keys: vec![],
                recipients: vec![],
                writable: true,
            },
        }
    }

    fn mount(&self) -> Arc<EncryptedFile> {
        let journals = self.journals.clone().map(|j| j as Arc<dyn BackingFile>);
        let mut finder = One(self.file.clone());
        let layout = self.volume.layout;
        let recovered = replay(&journals, self.volume.id, layout, 2, &mut finder).unwrap();
        let page = JournalPage {
            volume: self.volume.id,
            generation: 0,
            epoch: recovered.epoch + 1,
            root_ino: 2,
            unclean: recovered.unclean.clone(),
        };
        let volume = VolumeContext {
            volume: self.volume.clone(),
            suite: Suite::Aes256Gcm,
            keys: Box::new(OpenKeys),
            epoch: page.epoch,
            unclean: page.unclean.clone(),
            journal: Some(Journal::start(journals, page).unwrap()),
        };
        EncryptedFile::open(Arc::new(volume), INO, self.file.clone(), true).unwrap()
    }

    fn unmount(&self, file: Arc<EncryptedFile>) {
        let journal = file.volume.journal.clone().unwrap();
        drop(file);
        journal
            .close(|| Ok(self.file.sync(false)?))
            .expect("a clean end");
    }

    fn cut(&self, mut coin: impl FnMut() -> bool) -> Self {
        Self {
            file: self.file.cut(&mut coin),
            journals: [
                self.journals[0].cut(&mut coin),
                self.journals[1].cut(&mut coin),
            ],
            volume: self.volume.clone(),
        }
    }
}

fn read_all(file: &EncryptedFile) -> Result<Vec<u8>> {
    let mut buffer = ReadBuffer::default();
    let range = file.read(0, file.size() as usize, &mut buffer)?;
    Ok(buffer.slice(range).to_vec())
}

#[derive(Clone, Debug)]
enum Op {
    Write { at: u32, len: u32, seed: u8 },
    SetSize(u32),
    Punch { at: u32, len: u32 },
    Sync,
    Commit,
    Checkpoint,
    Remount,
}

fn op(most: u32) -> impl Strategy<Value = Op> {
    let at = 0..most;
    let len = prop_oneof![1..64u32, 1..9000u32, 1..most / 2];
    prop_oneof![
        6 => (at.clone(), len.clone(), any::<u8>()).prop_map(|(at, len, seed)| Op::Write { at, len, seed }),
        3 => (0..most).prop_map(Op::SetSize),
        2 => (at, len).prop_map(|(at, len)| Op::Punch { at, len }),
        2 => Just(Op::Sync),
        1 => Just(Op::Commit),
        1 => Just(Op::Checkpoint),
        1 => Just(Op::Remount),
    ]
}

fn apply_to_model(model: &mut Vec<u8>, op: &Op) {
    match *op {
        Op::Write { at, len, seed } => {
            let end = (at + len) as usize;
            if model.len() < end {
                model.resize(end, 0);
            }
            fill(&mut model[at as usize..end], seed);
        }
        Op::SetSize(size) => model.resize(size as usize, 0),
        Op::Punch { at, len } => {
            let end = ((at + len) as usize).min(model.len());
            if (at as usize) < end {
                model[at as usize..end].fill(0);
            }
        }
        Op::Sync | Op::Commit | Op::Checkpoint | Op::Remount => {}
    }
}

fn fill(out: &mut [u8], seed: u8) {
    for (i, byte) in out.iter_mut().enumerate() {
        *byte = (i as u8).wrapping_mul(31).wrapping_add(seed) | 1;
    }
}

fn apply_to_file(disk: &Disk, file: Arc<EncryptedFile>, op: &Op) -> Arc<EncryptedFile> {
    let journal = file.volume.journal.clone().unwrap();
    match *op {
        Op::Write { at, len, seed } => {
            let mut data = vec![0; len as usize];
            fill(&mut data, seed);
            file.write(at.into(), &data).unwrap();
        }
        Op::SetSize(size) => file.set_size(size.into()).unwrap(),
        Op::Punch { at, len } => file.punch(at.into(), len.into(), true).unwrap(),
        Op::Sync => file.sync(true).unwrap(),
        Op::Commit => drop(journal.commit().unwrap()),
        Op::Checkpoint => journal.checkpoint().unwrap(),
        Op::Remount => {
            drop(journal);
            disk.unmount(file);
            return disk.mount();
        }
    }
    file
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    /// Whatever is done to it, a file reads like a vector that the same was
    /// done to.
    #[test]
    fn behaves_like_a_vector(
        big_blocks: bool,
        ops in proptest::collection::vec(op(600_000), 1..30),
    ) {
        let disk = Disk::new(if big_blocks { 65536 } else { 4096 });
        let mut file = disk.mount();
        let mut model = Vec::new();
        for op in &ops {
            file = apply_to_file(&disk, file, op);
            apply_to_model(&mut model, op);
            prop_assert_eq!(file.size(), model.len() as u64);
            prop_assert!(read_all(&file).unwrap() == model, "after {:?}", op);
        }
    }

    /// SIGKILL after any operation: everything written is there.
    #[test]
    fn survives_being_killed(ops in proptest::collection::vec(op(300_000), 1..20)) {
        let disk = Disk::new(4096);
        let mut file = disk.mount();
        let mut model = Vec::new();
        for op in &ops {
            file = apply_to_file(&disk, file, op);
            apply_to_model(&mut model, op);
        }
        drop(file);
        let file = disk.mount();
        prop_assert!(read_all(&file).unwrap() == model);
    }

    /// A power cut after any operation: every block is readable; every block
    /// not touched since the last sync has its content.
    #[test]
    fn survives_power_cuts(
        ops in proptest::collection::vec(op(300_000), 1..20),
        coins in proptest::collection::vec(any::<bool>(), 500),
    ) {
        let disk = Disk::new(4096);
        let mut file = disk.mount();
        let mut model: Vec<u8> = Vec::new();
        let mut synced = Vec::new();
        let mut touched: HashSet<usize> = HashSet::new();
        let mut resized = false;
        for op in &ops {
            file = apply_to_file(&disk, file, op);
            let before = model.len();
            apply_to_model(&mut model, op);
            match op {
                Op::Sync | Op::Remount => {
                    synced = model.clone();
                    touched.clear();
                    resized = false;
                }
                Op::Write { at, len, .. } | Op::Punch { at, len } => {
                    touched.extend(*at as usize / 4096..=(at + len) as usize / 4096);
                }
                Op::SetSize(size) => {
                    let from = before.min(*size as usize) / 4096;
                    touched.extend(from..=before.max(*size as usize) / 4096);
                }
                Op::Commit | Op::Checkpoint => {}
            }
            resized |= model.len() != before;
        }
        let mut flips = coins.iter().cycle();
        let after = disk.cut(|| *flips.next().unwrap());
        let file = after.mount();
        let content = read_all(&file);
        prop_assert!(content.is_ok(), "unreadable: {:?}", content);
        let content = content.unwrap();
        if !resized {
            prop_assert_eq!(content.len(), synced.len());
        }
        for (i, block) in synced.chunks(4096).enumerate() {
            if !touched.contains(&i) {
                prop_assert!(&content[i * 4096..][..block.len()] == block, "block {}", i);
            }
        }
    }
}

#[test]
fn the_holes_of_a_sparse_file_are_found() {
    let disk = Disk::new(4096);
    let file = disk.mount();
    file.set_size(10 << 20).unwrap();
    assert_eq!(file.next_data(0).unwrap(), None);
    file.write(5 << 20, &[1; 8192]).unwrap();
    assert_eq!(file.next_data(0).unwrap(), Some(5 << 20));
    assert_eq!(file.next_hole(5 << 20).unwrap(), Some((5 << 20) + 8192));
    assert_eq!(file.next_hole(3).unwrap(), Some(3));
    assert_eq!(file.next_data(6 << 20).unwrap(), None);
    assert_eq!(file.next_hole(10 << 20).unwrap(), None);
}

#[test]
fn a_rewritten_file_keeps_its_identity() {
    let disk = Disk::new(4096);
    let file = disk.mount();
    file.write(0, b"first").unwrap();
    let id = file.state.read().identity.clone().unwrap().header.file;
    file.set_size(0).unwrap();
    assert_eq!(disk.file.len().unwrap(), 0, "an empty file has no header");
    file.write(0, b"second").unwrap();
    assert_eq!(file.state.read().identity.clone().unwrap().header.file, id);
    disk.unmount(file);
    assert_eq!(read_all(&disk.mount()).unwrap(), b"second");
}

#[test]
fn every_flipped_byte_is_noticed_or_harmless() {
    let disk = Disk::new(4096);
    let file = disk.mount();
    let mut plain = vec![0; 9000];
    random::fill(&mut plain);
    file.write(0, &plain).unwrap();
    disk.unmount(file);
    let len = disk.file.len().unwrap() as usize;
    for at in 0..len {
        disk.file.0.lock().now[at] ^= 0x40;
        let journals = disk.journals.clone().map(|j| j as Arc<dyn BackingFile>);
        let page = JournalPage {
            volume: disk.volume.id,
            generation: 0,
            epoch: 9,
            root_ino: 2,
            unclean: vec![],
        };
        let volume = VolumeContext {
            volume: disk.volume.clone(),
            suite: Suite::Aes256Gcm,
            keys: Box::new(OpenKeys),
            epoch: 9,
            unclean: vec![],
            journal: Some(Journal::start(journals, page).unwrap()),
        };
        let opened = EncryptedFile::open(Arc::new(volume), INO, disk.file.clone(), true);
        if let Ok(content) = opened.and_then(|file| read_all(&file)) {
            assert!(content == plain, "byte {at} gave wrong plaintext");
        }
        disk.file.0.lock().now[at] ^= 0x40;
    }
}
