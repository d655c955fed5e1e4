//! A volume of one file in memory, to be mounted, cut off and killed.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use super::mem_file::MemFile;
use super::replay::{Finder, replay};
use super::*;
use crate::backing::BackingFile;
use crate::crypto::random;
use crate::format::config::NameMode;
use crate::format::journal::JournalPage;
use crate::types::{KeyLen, VolumeId};

/// Keys "wrapped" by being written down.
pub(super) struct OpenKeys;

impl KeySource for OpenKeys {
    fn generate(&self) -> std::result::Result<NewKey, KeyError> {
        let key = Arc::new(DataKey::random(KeyLen::Bits256));
        let wrapped = WrappedKey {
            key_uri: "test:".into(),
            key_version: String::new(),
            algorithm: String::new(),
            iv: Vec::new(),
            ciphertext: key.expose().to_vec(),
        };
        Ok(NewKey {
            file: FileId(random::bytes()),
            key,
            wrapped: vec![wrapped],
        })
    }

    fn prefetch(&self, _wanted: Vec<(FileId, Vec<WrappedKey>)>) {}

    fn unwrap(
        &self,
        _file: FileId,
        wrapped: &[WrappedKey],
    ) -> std::result::Result<Arc<DataKey>, KeyError> {
        Ok(Arc::new(
            DataKey::from_bytes(&wrapped[0].ciphertext).expect("32 bytes"),
        ))
    }

    fn renew(
        &self,
        file: FileId,
        wrapped: &[WrappedKey],
    ) -> std::result::Result<Arc<DataKey>, KeyError> {
        self.unwrap(file, wrapped)
    }

    fn is_local(&self) -> bool {
        true
    }
}

pub(super) const INO: u64 = 11;

/// A volume of one file, and what mounts of it need.
pub(super) struct Disk {
    pub(super) file: Arc<MemFile>,
    pub(super) journals: [Arc<MemFile>; 2],
    pub(super) volume: Volume,
    pub(super) mounts: Mounts,
}

/// Mounts that nobody ended. Their journals hold files, which hold the journals.
#[derive(Default)]
pub(super) struct Mounts(Mutex<Vec<Weak<Journal>>>);

impl Drop for Mounts {
    fn drop(&mut self) {
        for journal in self.0.lock().drain(..).filter_map(|j| j.upgrade()) {
            journal.let_go_for_test();
        }
    }
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
    pub(super) fn new(block_size: u32) -> Self {
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
            mounts: Mounts::default(),
        }
    }

    pub(super) fn mount(&self) -> Arc<EncryptedFile> {
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
        let journal = Journal::start(journals, page.clone(), 4000).unwrap();
        self.mounts.0.lock().push(Arc::downgrade(&journal));
        let volume = VolumeContext {
            volume: self.volume.clone(),
            suite: Suite::Aes256Gcm,
            keys: Box::new(OpenKeys),
            change_times: ChangeTimes::default(),
            epoch: page.epoch,
            unclean: page.unclean.clone(),
            locked: AtomicBool::default(),
            journal: Some(journal),
        };
        EncryptedFile::open(Arc::new(volume), INO, self.file.clone(), true).unwrap()
    }

    /// Closes and opens the file. It stays open as long as blocks wait.
    pub(super) fn reopen(&self, file: Arc<EncryptedFile>) -> Arc<EncryptedFile> {
        let (volume, closed) = (file.volume.clone(), Arc::downgrade(&file));
        drop(file);
        closed
            .upgrade()
            .unwrap_or_else(|| EncryptedFile::open(volume, INO, self.file.clone(), true).unwrap())
    }

    pub(super) fn unmount(&self, file: Arc<EncryptedFile>) {
        let journal = file.volume.journal.clone().unwrap();
        drop(file);
        journal
            .close(|| Ok(self.file.sync(false)?))
            .expect("a clean end");
    }

    pub(super) fn cut(&self, mut pick: impl FnMut(usize) -> usize) -> Self {
        Self {
            file: self.file.cut(&mut pick),
            journals: [
                self.journals[0].cut(&mut pick),
                self.journals[1].cut(&mut pick),
            ],
            volume: self.volume.clone(),
            mounts: Mounts::default(),
        }
    }

    /// As after a power cut that lost what the journals got since their last sync, and
    /// nothing of the file.
    pub(super) fn cut_in_journals(&self) -> Self {
        Self {
            file: self.file.killed(),
            ..self.cut(|_| 0)
        }
    }

    pub(super) fn killed(&self) -> Self {
        Self {
            file: self.file.killed(),
            journals: [self.journals[0].killed(), self.journals[1].killed()],
            volume: self.volume.clone(),
            mounts: Mounts::default(),
        }
    }
}
