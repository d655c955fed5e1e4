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

/// Keeps a lease, and replaces it when it ends or is refused. While one thread gets
/// another, the rest go on with what still works.
pub(super) struct LeaseHolder<T> {
    key: String,
    current: Mutex<Option<Held<T>>>,
    /// Held by the thread that gets another; `current` is not, meanwhile.
    turn: Mutex<()>,
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

    /// Whether it has not ended.
    fn works(&self) -> bool {
        self.seconds_left() > 0
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
            turn: Mutex::new(()),
        }
    }

    /// Whether [`Self::get`] would now replace what has not ended yet. Says no while
    /// that is being done.
    #[cfg(feature = "hashivault")]
    pub(super) fn is_due(&self) -> bool {
        let is_due = |held: &Held<T>| held.works() && held.is_due();
        self.held_if(is_due).is_some() && !self.turn.is_locked()
    }

    /// What to use now. `fetch` gets another; it is shown the one to renew,
    /// whose time may be over.
    pub(super) fn get(
        &self,
        deadline: Deadline,
        fetch: impl FnOnce(Option<&T>) -> Result<T, KeyError>,
    ) -> Result<Arc<T>, KeyError> {
        let is_fresh = |held: &Held<T>| !held.is_due();
        if let Some(lease) = self.held_if(is_fresh) {
            return Ok(lease);
        }
        let _turn = match self.turn.try_lock() {
            Some(turn) => turn,
            None => match self.held_if(Held::works) {
                Some(lease) => return Ok(lease),
                None => self.wait_for_turn(deadline)?,
            },
        };
        if let Some(lease) = self.held_if(is_fresh) {
            // Another thread was here first.
            return Ok(lease);
        }
        let old = self.current.lock().as_mut().map(|held| {
            held.tried = Instant::now();
            Arc::clone(&held.lease)
        });
        let error = match self.named(fetch(old.as_deref())) {
            Ok(lease) => {
                *self.current.lock() = Some(Held::new(&lease));
                return Ok(lease);
            }
            Err(error) => error,
        };
        let Some(lease) = self.held_if(Held::works) else {
            return Err(error);
        };
        log::warn!("credentials could not be renewed and end soon: {error}");
        Ok(lease)
    }

    /// What is held, if it is as wanted.
    fn held_if(&self, wanted: impl Fn(&Held<T>) -> bool) -> Option<Arc<T>> {
        let current = self.current.lock();
        let held = current.as_ref().filter(|held| wanted(held))?;
        Some(Arc::clone(&held.lease))
    }

    /// What to use instead of what was refused; `None` if `fetch` gets the
    /// same again.
    pub(super) fn replace(
        &self,
        refused: &Arc<T>,
        deadline: Deadline,
        fetch: impl FnOnce() -> Result<T, KeyError>,
    ) -> Result<Option<Arc<T>>, KeyError> {
        let _turn = self.wait_for_turn(deadline)?;
        let is_another = |held: &Held<T>| !Arc::ptr_eq(&held.lease, refused);
        if let Some(lease) = self.held_if(is_another) {
            // Another thread was here first.
            return Ok(Some(lease));
        }
        let lease = self.named(fetch())?;
        if lease.is_same_as(refused) {
            return Ok(None);
        }
        *self.current.lock() = Some(Held::new(&lease));
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

    /// Threads that have nothing to go on with wait, but not longer than they may.
    fn wait_for_turn(&self, deadline: Deadline) -> Result<MutexGuard<'_, ()>, KeyError> {
        let turn = self.turn.try_lock_for(deadline.left());
        turn.ok_or_else(|| KeyError::Unavailable {
            key: self.key.clone(),
            detail: "credentials did not come in time".into(),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::thread;

    use super::*;

    /// A token that is to be renewed from the beginning.
    struct Token {
        number: u32,
        end: u64,
    }

    impl Lease for Token {
        fn renewal(&self) -> Option<u64> {
            Some(0)
        }

        fn end(&self) -> Option<u64> {
            Some(self.end)
        }

        fn is_same_as(&self, other: &Self) -> bool {
            self.number == other.number
        }
    }

    fn token(number: u32, seconds: u64) -> Token {
        let end = clock::unix_seconds() + seconds;
        Token { number, end }
    }

    /// A holder of token 0, which lasts for so long, and has not been tried to renew for
    /// a while.
    fn holder(seconds: u64) -> LeaseHolder<Token> {
        let holder = LeaseHolder::new("key".into());
        holder.get(soon(), |_| Ok(token(0, seconds))).unwrap();
        if let Some(held) = &mut *holder.current.lock() {
            held.tried = Instant::now().checked_sub(PAUSE).expect("up for a minute");
        }
        holder
    }

    fn soon() -> Deadline {
        Deadline::after(Duration::from_secs(5))
    }

    fn refused<T>() -> Result<T, KeyError> {
        Err(KeyError::Unavailable {
            key: String::new(),
            detail: "no".into(),
        })
    }

    /// Does `meanwhile` while another thread gets token 1 instead of token 0, which it has
    /// as soon as something is sent.
    fn while_another_is_got(holder: &LeaseHolder<Token>, meanwhile: impl FnOnce(mpsc::Sender<()>)) {
        let (started, wait_for_start) = mpsc::channel();
        let (finish, wait_for_finish) = mpsc::channel();
        thread::scope(|scope| {
            let other = scope.spawn(move || {
                holder.get(soon(), |old| {
                    assert_eq!(old.unwrap().number, 0);
                    started.send(()).unwrap();
                    wait_for_finish.recv().unwrap();
                    Ok(token(1, 3600))
                })
            });
            wait_for_start.recv().unwrap();
            meanwhile(finish);
            assert_eq!(other.join().unwrap().unwrap().number, 1);
        });
    }

    #[test]
    fn nobody_waits_for_a_renewal_while_the_old_one_works() {
        let holder = holder(3600);
        while_another_is_got(&holder, |finish| {
            let meanwhile = holder.get(soon(), |_| unreachable!("one renews"));
            assert_eq!(meanwhile.unwrap().number, 0);
            finish.send(()).unwrap();
        });
        let after = holder.get(soon(), |_| unreachable!("it was just renewed"));
        assert_eq!(after.unwrap().number, 1);
    }

    #[test]
    fn one_that_ended_is_waited_for() {
        let holder = holder(0);
        while_another_is_got(&holder, |finish| {
            let brief = Deadline::after(Duration::from_millis(50));
            let in_vain = holder.get(brief, |_| unreachable!("one renews"));
            assert!(matches!(in_vain, Err(KeyError::Unavailable { .. })));
            finish.send(()).unwrap();
            let waited = holder.get(soon(), |_| unreachable!("one renews"));
            assert_eq!(waited.unwrap().number, 1);
        });
    }

    #[test]
    fn a_failed_renewal_is_not_repeated_at_once() {
        let holder = holder(3600);
        assert_eq!(holder.get(soon(), |_| refused()).unwrap().number, 0);
        let again = holder.get(soon(), |_| unreachable!("it was just tried"));
        assert_eq!(again.unwrap().number, 0);
    }

    #[test]
    fn what_was_refused_is_replaced_by_one_thread() {
        let holder = holder(3600);
        let old = holder.get(soon(), |_| refused()).unwrap();
        let new = holder.replace(&old, soon(), || Ok(token(1, 3600))).unwrap();
        assert_eq!(new.unwrap().number, 1);
        let other = holder.replace(&old, soon(), || unreachable!("it was replaced"));
        assert_eq!(other.unwrap().unwrap().number, 1);
        let current = holder.get(soon(), |_| unreachable!("new")).unwrap();
        let same = holder.replace(&current, soon(), || Ok(token(1, 3600)));
        assert!(same.unwrap().is_none());
    }
}
