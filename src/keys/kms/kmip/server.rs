//! The server: its version of the protocol, calls, and trying them again.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use zeroize::Zeroizing;

use super::fault;
use super::message::{self, Answers, Refusal};
use super::operation::{self, Attributes, Operation};
use super::pool::Pool;
use super::ttlv::{Nonsense, Reader};
use super::uri::Version;
use crate::keys::KeyError;
use crate::keys::kms::retry::{self, Deadline};

/// A server as the provider of one key sees it.
pub(super) struct Server {
    pool: Pool,
    /// The key's URI in errors.
    key: String,
    version: OnceLock<Version>,
    /// Cleared when the server turns out not to take several operations at once.
    batches: AtomicBool,
}

/// What one operation gave, or why it was refused.
pub(super) type Outcome<T> = Result<T, Refusal>;

impl Server {
    /// Speaks `version`, or else what the server prefers of ours.
    pub(super) fn new(pool: Pool, key: String, version: Option<Version>) -> Self {
        let spoken = OnceLock::new();
        if let Some(version) = version {
            let _ = spoken.set(version);
        }
        Self {
            pool,
            key,
            version: spoken,
            batches: AtomicBool::new(true),
        }
    }

    /// Makes one call, again if it fails for a moment. `read` takes what is
    /// wanted from the answer.
    pub(super) fn call<T>(
        &self,
        operation: &Operation<'_>,
        deadline: Deadline,
        read: impl Fn(Reader<'_>) -> Result<T, Nonsense>,
    ) -> Result<Outcome<T>, KeyError> {
        let decrypts = matches!(operation, Operation::Decrypt { .. });
        retry::until(deadline, || {
            let version = self.version(deadline)?;
            let operations = [*operation];
            let answer = self.send(version, &operations, deadline)?;
            let results = self.read(&answer, &operations)?;
            let result = match results {
                Ok(mut results) => results.remove(0),
                Err(refusal) => Err(refusal),
            };
            match result {
                Ok(payload) => read(payload)
                    .map(Ok)
                    .map_err(|error| self.malformed(&error)),
                Err(refusal) if refusal.is_ambiguous() && decrypts => Ok(Err(refusal)),
                Err(refusal) => match refusal.about(&self.key, operation) {
                    error if error.is_transient() => Err(error),
                    _ => Ok(Err(refusal)),
                },
            }
        })
    }

    /// Makes several calls in one request; `None` if the server does not take
    /// that, which it is not asked again.
    pub(super) fn call_many<T>(
        &self,
        operations: &[Operation<'_>],
        deadline: Deadline,
        read: impl Fn(Reader<'_>) -> Result<T, Nonsense>,
    ) -> Result<Option<Vec<Outcome<T>>>, KeyError> {
        if !self.batches.load(Ordering::Relaxed) {
            return Ok(None);
        }
        retry::until(deadline, || {
            let version = self.version(deadline)?;
            let answer = self.send(version, operations, deadline)?;
            let results = match self.read(&answer, operations)? {
                Ok(results) => results,
                Err(refusal) if refusal.is_about_batch() => {
                    self.batches.store(false, Ordering::Relaxed);
                    return Ok(None);
                }
                Err(refusal) => return Err(refusal.about(&self.key, &operations[0])),
            };
            let each = results.into_iter().map(|result| match result {
                Ok(payload) => read(payload)
                    .map(Ok)
                    .map_err(|error| self.malformed(&error)),
                Err(refusal) => Ok(Err(refusal)),
            });
            each.collect::<Result<Vec<_>, _>>().map(Some)
        })
    }

    /// What is known about a key.
    pub(super) fn attributes(
        &self,
        id: &str,
        deadline: Deadline,
    ) -> Result<Outcome<Attributes>, KeyError> {
        let operation = Operation::GetAttributes { id };
        self.call(&operation, deadline, operation::attributes)
    }

    /// The version of the protocol that is spoken.
    pub(super) fn version(&self, deadline: Deadline) -> Result<Version, KeyError> {
        if let Some(version) = self.version.get() {
            return Ok(*version);
        }
        let mut refused = "it has none of them".to_owned();
        // Whether a server understands the question may depend on the version it
        // is asked in.
        for asked in Version::ALL {
            let operations = [Operation::DiscoverVersions];
            let answer = self.send(asked, &operations, deadline)?;
            let result = match self.read(&answer, &operations)? {
                Ok(mut results) => results.remove(0),
                Err(refusal) => Err(refusal),
            };
            match result {
                Ok(payload) => {
                    let spoken =
                        operation::versions(payload).map_err(|error| self.malformed(&error))?;
                    let mut ours = Version::ALL.into_iter();
                    if let Some(version) = ours.find(|version| spoken.contains(version)) {
                        return Ok(*self.version.get_or_init(|| version));
                    }
                }
                Err(refusal) => match refusal.about(&self.key, &operations[0]) {
                    error @ (KeyError::Denied { .. }
                    | KeyError::Unavailable { .. }
                    | KeyError::Throttled { .. }) => return Err(error),
                    error => refused = error.to_string(),
                },
            }
        }
        Err(fault::version_missing(&refused))
    }

    fn send(
        &self,
        version: Version,
        operations: &[Operation<'_>],
        deadline: Deadline,
    ) -> Result<Zeroizing<Vec<u8>>, KeyError> {
        let request = message::encode(version, operations);
        let one_try = deadline.within(deadline.one_try());
        self.pool.exchange(&request, one_try)
    }

    fn read<'a>(
        &self,
        answer: &'a [u8],
        operations: &[Operation<'_>],
    ) -> Result<Answers<'a>, KeyError> {
        message::decode(answer, operations).map_err(|error| self.malformed(&error))
    }

    fn malformed(&self, error: &Nonsense) -> KeyError {
        KeyError::Malformed {
            key: self.key.clone(),
            detail: error.0.to_owned(),
        }
    }
}
