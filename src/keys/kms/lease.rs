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

impl<T: Lease> Held<T> {
    fn new(lease: &Arc<T>) -> Self {
        Self {
            lease: Arc::clone(lease),
            tried: Instant::now(),
        }
    }

    fn seconds_left(&self) -> u64 {
        let end = self.lease.end();
        end.map_or(u64::MAX, |end| end.saturating_sub(clock::unix_seconds()))
    }

    /// Whether to try and get another now.
    fn is_due(&self) -> bool {
        let left = self.seconds_left();
        let renewal = self.lease.renewal();
        left == 0
            || renewal.is_some_and(|time| time <= clock::unix_seconds())
                && self.tried.elapsed() >= PAUSE.min(Duration::from_secs(left) / 2)
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

    /// Whether [`Self::get`] would now replace what has not ended yet. Does not
    /// wait, and says no while that is being done.
    #[cfg(feature = "hashivault")]
    pub(super) fn is_due(&self) -> bool {
        let is_due = |held: &Held<T>| held.seconds_left() > 0 && held.is_due();
        let current = self.current.try_lock();
        current.is_some_and(|current| current.as_ref().is_some_and(is_due))
    }

    /// What to use now. `fetch` gets another; it is shown the one to renew,
    /// whose time may be over.
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
        if !held.is_due() {
            return Ok(Arc::clone(&held.lease));
        }
        held.tried = Instant::now();
        match self.named(fetch(Some(&held.lease))) {
            Ok(lease) => held.lease = lease,
            Err(error) if held.seconds_left() > 0 => {
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
