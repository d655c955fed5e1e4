//! The access key in use, and when to get another.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::environment::Environment;
use super::remote::Remote;
use super::{Credentials, search};
use crate::keys::KeyError;
use crate::keys::kms::retry::Deadline;
use crate::sys::clock;

/// How long before its end an access key is replaced.
const MARGIN: u64 = 15 * 60;
/// How often that is tried while the old one still works.
const PAUSE: Duration = Duration::from_secs(60);

/// Keeps an access key, and replaces it when it ends or is refused.
pub(in crate::keys::kms::alibaba) struct CredentialStore {
    key: String,
    env: Environment,
    profile: Option<String>,
    remote: Remote,
    current: Mutex<Option<Held>>,
}

struct Held {
    credentials: Arc<Credentials>,
    tried: Instant,
}

impl CredentialStore {
    /// Credentials for the key `key`, found through `env`. Nothing is searched
    /// before the first use.
    pub(in crate::keys::kms::alibaba) fn new(
        key: String,
        env: Environment,
        profile: Option<String>,
    ) -> Self {
        Self {
            key,
            env,
            profile,
            remote: Remote::default(),
            current: Mutex::new(None),
        }
    }

    /// The access key to sign with.
    pub(in crate::keys::kms::alibaba) fn get(
        &self,
        deadline: Deadline,
    ) -> Result<Arc<Credentials>, KeyError> {
        let mut current = self.lock(deadline)?;
        if let Some(held) = &mut *current {
            let left = held
                .credentials
                .expires
                .map(|end| end.saturating_sub(clock::unix_seconds()));
            let due = left.is_some_and(|left| left < MARGIN);
            let alive = left != Some(0);
            if !due || (alive && held.tried.elapsed() < PAUSE) {
                return Ok(Arc::clone(&held.credentials));
            }
            held.tried = Instant::now();
            return match self.fetch(deadline) {
                Ok(credentials) => {
                    held.credentials = credentials;
                    Ok(Arc::clone(&held.credentials))
                }
                Err(error) if alive => {
                    log::warn!("credentials could not be renewed and end soon: {error}");
                    Ok(Arc::clone(&held.credentials))
                }
                Err(error) => Err(error),
            };
        }
        let credentials = self.fetch(deadline)?;
        *current = Some(Held {
            credentials: Arc::clone(&credentials),
            tried: Instant::now(),
        });
        Ok(credentials)
    }

    /// The access key to use instead of one that was refused; `None` if there
    /// is no other.
    pub(in crate::keys::kms::alibaba) fn replace(
        &self,
        refused: &Arc<Credentials>,
        deadline: Deadline,
    ) -> Result<Option<Arc<Credentials>>, KeyError> {
        let mut current = self.lock(deadline)?;
        if let Some(held) = &*current
            && !Arc::ptr_eq(&held.credentials, refused)
        {
            // Another thread was here first.
            return Ok(Some(Arc::clone(&held.credentials)));
        }
        let credentials = self.fetch(deadline)?;
        if credentials.is_same_as(refused) {
            return Ok(None);
        }
        *current = Some(Held {
            credentials: Arc::clone(&credentials),
            tried: Instant::now(),
        });
        Ok(Some(credentials))
    }

    fn fetch(&self, deadline: Deadline) -> Result<Arc<Credentials>, KeyError> {
        // Searched again each time, as files and variables' files change.
        let source = search::search(&self.env, self.profile.as_deref())?;
        let fetched = self.remote.fetch(&source, &self.env, deadline);
        fetched.map(Arc::new).map_err(|error| self.name_key(error))
    }

    /// Errors of credentials name the key they were needed for.
    fn name_key(&self, mut error: KeyError) -> KeyError {
        match &mut error {
            KeyError::NotFound { key, .. }
            | KeyError::Disabled { key, .. }
            | KeyError::Expired { key, .. }
            | KeyError::Denied { key, .. }
            | KeyError::Rejected { key, .. }
            | KeyError::Throttled { key, .. }
            | KeyError::Unavailable { key, .. }
            | KeyError::Malformed { key, .. } => key.clone_from(&self.key),
            KeyError::Configuration { .. } | KeyError::Locked | KeyError::WouldWait => {}
        }
        error
    }

    /// One thread gets the credentials, the others wait for it, but not longer
    /// than they may.
    fn lock(
        &self,
        deadline: Deadline,
    ) -> Result<parking_lot::MutexGuard<'_, Option<Held>>, KeyError> {
        let lock = self.current.try_lock_for(deadline.left());
        lock.ok_or_else(|| KeyError::Unavailable {
            key: self.key.clone(),
            detail: "credentials did not come in time".into(),
        })
    }
}
