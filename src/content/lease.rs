//! A file's key is lent for a while: the keeper of keys renews it, or takes it
//! away when it cannot.
//!
//! An operation pays nothing for that. The key lies behind the file's lock, and
//! who has the lock has the key, or sees why it is withheld. No operation looks
//! at a clock: the keeper does, and takes the lock to take the key away.
//!
//! That goes in three steps. First the key is *withheld*: programs get an error,
//! but what the kernel has accepted from them before can be written back. Then
//! the keeper makes the kernel do that. Last the key is *wiped*. The next
//! operation of a program asks for it again, though not more often than once in
//! [`PAUSE`].

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{RwLockReadGuard, RwLockWriteGuard};

use crate::keys::KeyError;
use crate::types::FileId;

use super::file::{EncryptedFile, State};
use super::{ContentError, Result};

/// How long after a failure nobody is asked for the key again.
const PAUSE: Duration = Duration::from_secs(1);

/// How often a writer tries for the file before it sleeps: for some ten microseconds.
const SPINS: u32 = 300;

/// Why programs may not use the key.
pub(super) struct Withheld {
    why: ContentError,
    /// The providers are not asked again before.
    again: Instant,
}

/// Who writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    /// A program, which can be told that there is no key.
    Program,
    /// The kernel, which told a program long ago that the data is written.
    PageCache,
}

/// When the key in memory was had from a provider, in milliseconds since boot;
/// 0 if there is none.
#[derive(Default)]
pub(super) struct Lease(AtomicU64);

impl Lease {
    pub(super) fn begin(&self, obtained: Duration) {
        let millis = (obtained.as_millis() as u64).max(1);
        self.0.store(millis, Ordering::Release);
    }

    fn end(&self) {
        self.0.store(0, Ordering::Release);
    }
}

impl State {
    fn has_key(&self) -> bool {
        self.identity.as_ref().is_some_and(|i| i.key.is_ok())
    }
}

impl EncryptedFile {
    /// When the key in memory was had from a provider, as time since boot;
    /// `None` if no key is in memory.
    pub fn key_obtained(&self) -> Option<Duration> {
        match self.lease.0.load(Ordering::Acquire) {
            0 => None,
            millis => Some(Duration::from_millis(millis)),
        }
    }

    /// The file's id, once it has data.
    pub fn id(&self) -> Option<FileId> {
        self.state.read().identity.as_ref().map(|i| i.header.file)
    }

    /// Number of the inode on the host.
    pub fn host_ino(&self) -> u64 {
        self.ino
    }

    /// Whether programs may not use the key at present.
    pub fn is_withheld(&self) -> bool {
        self.state.read().withheld.is_some()
    }

    /// Asks the providers whether they still give the file's key.
    ///
    /// # Errors
    /// Theirs. The key in memory stays as it is.
    pub fn renew_key(&self) -> Result<()> {
        let (file, wrapped) = match &self.state.read().identity {
            Some(identity) => (identity.header.file, identity.wrapped()),
            None => return Ok(()),
        };
        let key = self.volume.keys.renew(file, &wrapped)?;
        let mut state = self.state.write();
        if let Some(identity) = state.identity.clone()
            && identity.header.file == file
            && identity.key.is_ok()
        {
            let renewed = identity.with_key(&key)?;
            self.lease.begin(renewed.obtained);
            state.identity = Some(renewed.into());
        }
        Ok(())
    }

    /// Keeps programs from using the key from now on, and says why.
    pub fn withhold(&self, why: KeyError) {
        let pause = match why {
            KeyError::Locked => Duration::ZERO,
            _ => PAUSE,
        };
        self.state.write().withheld = Some(Withheld {
            why: why.into(),
            again: Instant::now() + pause,
        });
    }

    /// Lets go of a key that is withheld: it is wiped, and all that follows from
    /// it.
    pub fn wipe_key(&self) {
        let mut state = self.state.write();
        // Otherwise someone was given the key again meanwhile.
        if let Some(withheld) = &state.withheld {
            let why = withheld.why.clone();
            state.identity = state.identity.as_ref().map(|i| i.without_key(why).into());
            self.drop_ciphers();
            self.lease.end();
        }
    }

    /// Puts pending blocks in place, as they need no key.
    ///
    /// # Errors
    /// Those of the backing storage.
    pub fn put_pending_in_place(&self) -> Result<()> {
        self.settle_pending()
    }

    /// Sees to it that programs may use the key, by asking for it if it is
    /// withheld.
    ///
    /// # Errors
    /// `Key(Locked)`, those of the key providers.
    pub fn ensure_key(&self) -> Result<()> {
        match self.is_withheld() {
            true => self.regain(),
            false => Ok(()),
        }
    }

    /// The locked state, with a key that programs may use.
    pub(super) fn usable_for_read(&self) -> Result<RwLockReadGuard<'_, State>> {
        loop {
            let state = self.state.read();
            if state.withheld.is_none() {
                return Ok(state);
            }
            drop(state);
            self.regain()?;
        }
    }

    /// The locked state, with a key that `origin` may use.
    pub(super) fn usable_for_write(&self, origin: Origin) -> Result<RwLockWriteGuard<'_, State>> {
        loop {
            let state = self.write_lock();
            let accepted = origin == Origin::PageCache;
            // A file without any key yet gets one for what was accepted.
            let at_hand = state.identity.is_none() || state.has_key();
            if state.withheld.is_none() || (accepted && at_hand) {
                return Ok(state);
            }
            drop(state);
            self.regain()?;
        }
    }

    /// The locked state. Another writer has it for a few microseconds, which is less
    /// than it takes to sleep and be woken.
    fn write_lock(&self) -> RwLockWriteGuard<'_, State> {
        for _ in 0..SPINS {
            if let Some(state) = self.state.try_write() {
                return state;
            }
            std::hint::spin_loop();
        }
        self.state.write()
    }

    /// Asks for a key that is withheld.
    fn regain(&self) -> Result<()> {
        self.volume.refuse_if_locked()?;
        let (file, wrapped) = {
            let state = self.state.read();
            let Some(withheld) = &state.withheld else {
                return Ok(());
            };
            if Instant::now() < withheld.again {
                return Err(withheld.why.clone());
            }
            match &state.identity {
                Some(identity) => (identity.header.file, identity.wrapped()),
                None => {
                    drop(state);
                    self.state.write().withheld = None;
                    return Ok(());
                }
            }
        };
        let asked = self.volume.keys.unwrap(file, &wrapped);
        let mut state = self.state.write();
        let Some(identity) = state.identity.clone() else {
            return Ok(());
        };
        let regained = match asked {
            // Not an answer: this is done again where it may wait for one.
            Err(KeyError::WouldWait) => return Err(KeyError::WouldWait.into()),
            Err(error) => Err(error.into()),
            Ok(key) => identity.with_key(&key),
        };
        // The volume may have been locked meanwhile.
        self.volume.refuse_if_locked()?;
        match regained {
            Ok(identity) => {
                self.lease.begin(identity.obtained);
                state.identity = Some(identity.into());
                state.withheld = None;
                Ok(())
            }
            Err(why) => {
                if let Some(withheld) = &mut state.withheld {
                    withheld.why = why.clone();
                    withheld.again = Instant::now() + PAUSE;
                }
                Err(why)
            }
        }
    }
}
