//! Credentials that end: the ones in use, and when to get others.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Mutex, MutexGuard};

use crate::keys::KeyError;
use crate::keys::kms::retry::Deadline;
use crate::sys::clock;

/// How often renewing is tried while the old ones still work; more often if
/// they end soon.
const PAUSE: Duration = Duration::from_secs(60);

/// Something that a service gave for a time.
pub(super) trait Lease {
    /// When to get another, in seconds since 1970; `None` if it does not end.
    fn renewal(&self) -> Option<u64>;

    /// When it ends, in seconds since 1970.
    fn end(&self) -> Option<u64>;

    /// Whether using `other` instead would make no difference.
    fn is_same_as(&self, other: &Self) -> bool;
}

/// Keeps a lease, and replaces it when it ends or is refused.
pub(super) struct LeaseHolder<T> {
    key: String,
    current: Mutex<Option<Held<T>>>,
}

struct Held<T> {
    lease: Arc<T>,
    tried: Instant,
}

impl<T> Held<T> {
    fn new(lease: &Arc<T>) -> Self {
        Self {
            lease: Arc::clone(lease),
            tried: Instant::now(),
        }
    }
}

impl<T: Lease> LeaseHolder<T> {
    /// None yet; errors will name `key`, the key it is needed for.
    pub(super) fn new(key: String) -> Self {
        Self {
            key,
            current: Mutex::new(None),
        }
    }

    /// What to use now. `fetch` gets another; it is shown the one to renew.
    pub(super) fn get(
        &self,
        deadline: Deadline,
        fetch: impl FnOnce(Option<&T>) -> Result<T, KeyError>,
    ) -> Result<Arc<T>, KeyError> {
        let mut current = self.lock(deadline)?;
        let Some(held) = &mut *current else {
            let lease = self.named(fetch(None))?;
            *current = Some(Held::new(&lease));
            return Ok(lease);
        };
        let now = clock::unix_seconds();
        let due = held.lease.renewal().is_some_and(|time| time <= now);
        let left = held
            .lease
            .end()
            .map_or(u64::MAX, |end| end.saturating_sub(now));
        let alive = left > 0;
        let pause = PAUSE.min(Duration::from_secs(left) / 2);
        if alive && (!due || held.tried.elapsed() < pause) {
            return Ok(Arc::clone(&held.lease));
        }
        held.tried = Instant::now();
        match self.named(fetch(alive.then_some(&held.lease))) {
            Ok(lease) => held.lease = lease,
            Err(error) if alive => {
                log::warn!("credentials could not be renewed and end soon: {error}");
            }
            Err(error) => return Err(error),
        }
        Ok(Arc::clone(&held.lease))
    }

    /// What to use instead of what was refused; `None` if `fetch` gets the
    /// same again.
    pub(super) fn replace(
        &self,
        refused: &Arc<T>,
        deadline: Deadline,
        fetch: impl FnOnce() -> Result<T, KeyError>,
    ) -> Result<Option<Arc<T>>, KeyError> {
        let mut current = self.lock(deadline)?;
        if let Some(held) = &*current
            && !Arc::ptr_eq(&held.lease, refused)
        {
            // Another thread was here first.
            return Ok(Some(Arc::clone(&held.lease)));
        }
        let lease = self.named(fetch())?;
        if lease.is_same_as(refused) {
            return Ok(None);
        }
        *current = Some(Held::new(&lease));
        Ok(Some(lease))
    }

    /// Errors of credentials name the key they were needed for.
    fn named(&self, result: Result<T, KeyError>) -> Result<Arc<T>, KeyError> {
        result.map(Arc::new).map_err(|mut error| {
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
        })
    }

    /// One thread gets the lease, the others wait for it, but not longer than
    /// they may.
    fn lock(&self, deadline: Deadline) -> Result<MutexGuard<'_, Option<Held<T>>>, KeyError> {
        let lock = self.current.try_lock_for(deadline.left());
        lock.ok_or_else(|| KeyError::Unavailable {
            key: self.key.clone(),
            detail: "credentials did not come in time".into(),
        })
    }
}
