//! The keeper of the keys that open files use: renews them before their time is
//! over, takes them away when they are refused or cannot be renewed, and locks
//! and unlocks the volume.
//!
//! It never works on a thread that serves requests: it waits for key providers,
//! and for the kernel to write back, which those threads have to answer.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::content::identity::to_wrapped;
use crate::content::{ContentError, EncryptedFile};
use crate::keys::{KeyError, KeyService};
use crate::sys::clock::{BootClock, Clock};
use crate::sys::workers::Workers;

use super::volume::volume_context;
use super::{Fs, Result};

/// The most threads that ask for keys again: as each makes one call after the
/// other, 32 renew 10,000 keys in a minute where a call takes 0.2 s.
const RENEWING: usize = 32;
/// The most threads that take keys away.
const ENDING: usize = 8;
/// Pause after a renewal that got no answer.
const PAUSE: Duration = Duration::from_secs(1);
/// The longest time before its end at which a lease is renewed.
const MOST_AHEAD: Duration = Duration::from_secs(60);
/// Shorter leases than this are not kept to.
const SHORTEST: Duration = Duration::from_secs(1);

/// How long the key of an open file may be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeaseTerms {
    /// After it was last had from a provider; at least a second.
    pub time_to_live: Duration,
    /// And then, while no provider can be reached.
    pub grace: Duration,
}

impl LeaseTerms {
    fn term(&self) -> Duration {
        self.time_to_live.max(SHORTEST)
    }

    fn renew_after(&self) -> Duration {
        self.term() - (self.term() / 4).min(MOST_AHEAD)
    }

    fn ends_after(&self) -> Duration {
        self.term().saturating_add(self.grace)
    }

    /// How often to look whether something is due.
    pub fn interval(&self) -> Duration {
        (self.term() / 20).clamp(Duration::from_millis(50), Duration::from_secs(1))
    }
}

/// Takes what the kernel holds of an inode away from it, after it was written
/// back.
pub type DropPages = Box<dyn Fn(u64) + Send + Sync>;

/// Keeps the keys of a volume's open files.
pub struct KeyKeeper {
    fs: Arc<Fs>,
    keys: Arc<KeyService>,
    terms: LeaseTerms,
    drop_pages: DropPages,
    renewals: Workers,
    endings: Workers,
    /// What is being done about files whose leases are running out, by inode
    /// number.
    attempts: Mutex<HashMap<u64, Attempt>>,
    /// One lock or unlock at a time.
    locking: Mutex<()>,
}

#[derive(Default)]
struct Attempt {
    renewing: bool,
    ending: bool,
    not_before: Option<Instant>,
    last: Option<KeyError>,
}

impl KeyKeeper {
    /// A keeper of the keys of `fs`, which come from `keys`.
    pub fn new(
        fs: Arc<Fs>,
        keys: Arc<KeyService>,
        terms: LeaseTerms,
        drop_pages: DropPages,
    ) -> Arc<Self> {
        Arc::new(Self {
            fs,
            keys,
            terms,
            drop_pages,
            renewals: Workers::new("kmsfs-renewals", RENEWING),
            endings: Workers::new("kmsfs-endings", ENDING),
            attempts: Mutex::default(),
            locking: Mutex::default(),
        })
    }

    /// How long keys may be used.
    pub fn terms(&self) -> LeaseTerms {
        self.terms
    }

    /// Where the keys come from.
    pub fn keys(&self) -> &Arc<KeyService> {
        &self.keys
    }

    /// Files that are open, and how many of them have their key in memory.
    pub fn open_files(&self) -> (usize, usize) {
        let open = self.fs.files.select(|_| true);
        let with_key = open.iter().filter(|f| f.key_obtained().is_some()).count();
        (open.len(), with_key)
    }

    /// Whether the volume is locked.
    pub fn is_locked(&self) -> bool {
        self.fs.volume.locked.load(Ordering::SeqCst)
    }

    /// Does what is due. To be called every [`LeaseTerms::interval`]; waits for
    /// nothing.
    pub fn tick(self: &Arc<Self>) {
        let now = BootClock.now();
        let age = |file: &EncryptedFile| Some(now.saturating_sub(file.key_obtained()?));
        let renew_after = self.terms.renew_after();
        let due = |file: &EncryptedFile| age(file).is_some_and(|age| age >= renew_after);
        let due = self.fs.files.select(due);
        let mut attempts = self.attempts.lock();
        let inodes: HashSet<u64> = due.iter().map(|file| file.host_ino()).collect();
        attempts.retain(|ino, a| a.renewing || a.ending || inodes.contains(ino));
        for file in due {
            let attempt = attempts.entry(file.host_ino()).or_default();
            let me = self.clone();
            if age(&file).is_some_and(|age| age >= self.terms.ends_after()) {
                if !attempt.ending {
                    attempt.ending = true;
                    let why = attempt.last.clone();
                    self.endings.run(move || me.end(&file, why));
                }
            } else if !attempt.renewing && attempt.not_before.is_none_or(|t| t <= Instant::now()) {
                attempt.renewing = true;
                self.renewals.run(move || me.renew(&file));
            }
        }
    }

    fn renew(&self, file: &EncryptedFile) {
        let renewed = file.renew_key();
        let mut attempts = self.attempts.lock();
        let attempt = attempts.entry(file.host_ino()).or_default();
        attempt.renewing = false;
        match renewed {
            Ok(()) => {
                attempt.last = None;
                attempt.not_before = None;
            }
            Err(ContentError::Key(error)) if error.is_refusal() => {
                attempt.ending = true;
                drop(attempts);
                self.end(file, Some(error));
            }
            Err(error) => {
                // Once a second for each open file would be too much.
                let level = match attempt.not_before {
                    None => log::Level::Warn,
                    Some(_) => log::Level::Debug,
                };
                log::log!(
                    level,
                    "inode {}: its key is not renewed: {error}",
                    file.host_ino()
                );
                attempt.not_before = Some(Instant::now() + PAUSE);
                attempt.last = match error {
                    ContentError::Key(error) => Some(error),
                    _ => None,
                };
            }
        }
    }

    fn end(&self, file: &EncryptedFile, why: Option<KeyError>) {
        let why = why.unwrap_or_else(|| KeyError::Unavailable {
            key: self.keys.ring().uris().collect::<Vec<_>>().join(", "),
            detail: "the key's time in memory is over".into(),
        });
        log::warn!("inode {}: its key is taken away: {why}", file.host_ino());
        file.withhold(why);
        self.take_away(file);
        self.attempts.lock().remove(&file.host_ino());
    }

    /// Wipes a withheld key, after what programs wrote under it has come here.
    fn take_away(&self, file: &EncryptedFile) {
        let ino = self.fs.inodes.visible(file.host_ino());
        (self.drop_pages)(ino);
        if let Err(error) = file.put_pending_in_place() {
            log::error!("inode {}: {error}", file.host_ino());
        }
        // Once more: a write that was under way may have come in since.
        (self.drop_pages)(ino);
        if let Some(id) = file.id() {
            self.keys.remove(id);
        }
        file.wipe_key();
    }

    /// Takes every key away, of open files and of those that were open; they
    /// are asked for anew when they are needed.
    ///
    /// # Errors
    /// Those of making durable what was not.
    pub fn drop_keys(&self) -> Result<()> {
        let _turn = self.locking.lock();
        // First of all: who uses a file meanwhile is not to get its key from there.
        self.keys.drop_all();
        self.withhold_all();
        self.write_back()?;
        self.keys.drop_all();
        self.wipe_all();
        Ok(())
    }

    /// Locks the volume: everything is written back, every data key wiped, the
    /// kernel's plaintext dropped, and what needs a key fails until
    /// [`Self::unlock`].
    ///
    /// # Errors
    /// Those of making durable what was not; the volume is locked all the same.
    pub fn lock(&self) -> Result<()> {
        let _turn = self.locking.lock();
        self.fs.volume.locked.store(true, Ordering::SeqCst);
        // Those that nothing is written under need not wait for what is.
        self.keys.drop_all();
        self.withhold_all();
        let written = self.write_back();
        self.keys.set_locked(true);
        self.wipe_all();
        log::info!("the volume is locked");
        written
    }

    /// Unlocks the volume if a provider gives the volume's key.
    ///
    /// # Errors
    /// Those of the providers; the volume stays locked.
    pub fn unlock(&self) -> std::result::Result<(), KeyError> {
        let _turn = self.locking.lock();
        let volume = &self.fs.volume.volume;
        let wrapped: Vec<_> = volume.recipients.iter().map(to_wrapped).collect();
        self.keys.is_given(&volume_context(volume), &wrapped)?;
        self.keys.set_locked(false);
        self.fs.volume.locked.store(false, Ordering::SeqCst);
        log::info!("the volume is unlocked");
        Ok(())
    }

    fn withhold_all(&self) {
        for file in self.fs.files.select(|_| true) {
            file.withhold(KeyError::Locked);
        }
    }

    /// Has the kernel write back and drop what it holds, of all files that it
    /// knows, and makes it durable.
    fn write_back(&self) -> Result<()> {
        let known = self.fs.inodes.regular_files();
        let known: Vec<_> = known.into_iter().map(|inode| inode.ino).collect();
        for ino in known {
            (self.drop_pages)(ino);
        }
        if let Some(journal) = &self.fs.volume.journal {
            journal.commit()?;
        }
        Ok(())
    }

    fn wipe_all(&self) {
        for file in self.fs.files.select(|_| true) {
            self.take_away(&file);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leases_are_renewed_before_they_end() {
        let terms = |ttl, grace| LeaseTerms {
            time_to_live: Duration::from_secs(ttl),
            grace: Duration::from_secs(grace),
        };
        let usual = terms(600, 0);
        assert_eq!(usual.renew_after(), Duration::from_secs(540));
        assert_eq!(usual.ends_after(), Duration::from_secs(600));
        assert_eq!(usual.interval(), Duration::from_secs(1));
        assert_eq!(terms(8, 30).renew_after(), Duration::from_secs(6));
        assert_eq!(terms(8, 30).ends_after(), Duration::from_secs(38));
        assert_eq!(terms(0, 0).ends_after(), SHORTEST);
        assert!(terms(0, 0).interval() < Duration::from_millis(100));
        assert!(terms(u64::MAX, u64::MAX).ends_after() > Duration::from_secs(u64::MAX));
    }
}
