//! The key that a provider stands for, and whether an answer is about it.

use std::time::Duration;

use super::uri::key_id;
use crate::keys::KeyError;
use crate::keys::kms::retry::Deadline;

/// A key as both protocols need it.
pub(super) struct Target {
    /// The key's id or alias.
    pub(super) key: String,
    /// The key's URI in wrapped keys and errors.
    pub(super) identity: String,
    /// How long a call may take, with all its tries.
    pub(super) time: Duration,
}

impl Target {
    /// Checks that an answer is about this key.
    ///
    /// # Errors
    /// `Malformed`.
    pub(super) fn check_answer(&self, answered: Option<&str>) -> Result<(), KeyError> {
        if self.is_own(answered) {
            return Ok(());
        }
        Err(self.malformed("the answer is about another key"))
    }

    /// Checks that this key is the one that had wrapped what was unwrapped.
    ///
    /// # Errors
    /// `Rejected`.
    pub(super) fn check_unwrapped(&self, answered: Option<&str>) -> Result<(), KeyError> {
        if self.is_own(answered) {
            return Ok(());
        }
        Err(KeyError::Rejected {
            key: self.identity.clone(),
            detail: "it was wrapped by another key".into(),
        })
    }

    fn is_own(&self, answered: Option<&str>) -> bool {
        answered.and_then(key_id).is_some_and(|id| id == self.key)
    }

    /// An answer that makes no sense.
    pub(super) fn malformed(&self, problem: &str) -> KeyError {
        KeyError::Malformed {
            key: self.identity.clone(),
            detail: problem.to_owned(),
        }
    }

    /// When a call that starts now has to be over.
    pub(super) fn deadline(&self) -> Deadline {
        Deadline::after(self.time)
    }
}
