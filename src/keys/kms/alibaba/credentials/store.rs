//! The access key in use, and when to get another.

use std::sync::Arc;

use super::remote::Remote;
use super::{Credentials, search};
use crate::keys::KeyError;
use crate::keys::kms::environment::Environment;
use crate::keys::kms::lease::{Lease, LeaseHolder};
use crate::keys::kms::retry::Deadline;

/// How long before its end an access key is replaced.
const MARGIN: u64 = 15 * 60;

/// Keeps an access key, and replaces it when it ends or is refused.
pub(in crate::keys::kms::alibaba) struct CredentialStore {
    env: Environment,
    profile: Option<String>,
    remote: Remote,
    holder: LeaseHolder<Credentials>,
}

impl Lease for Credentials {
    fn renewal(&self) -> Option<u64> {
        Some(self.expires?.saturating_sub(MARGIN))
    }

    fn end(&self) -> Option<u64> {
        self.expires
    }

    fn is_same_as(&self, other: &Self) -> bool {
        self.id == other.id && self.secret == other.secret && self.token == other.token
    }
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
            env,
            profile,
            remote: Remote::default(),
            holder: LeaseHolder::new(key),
        }
    }

    /// The access key to sign with.
    pub(in crate::keys::kms::alibaba) fn get(
        &self,
        deadline: Deadline,
    ) -> Result<Arc<Credentials>, KeyError> {
        self.holder.get(deadline, |_| self.fetch(deadline))
    }

    /// The access key to use instead of one that was refused; `None` if there
    /// is no other.
    pub(in crate::keys::kms::alibaba) fn replace(
        &self,
        refused: &Arc<Credentials>,
        deadline: Deadline,
    ) -> Result<Option<Arc<Credentials>>, KeyError> {
        self.holder
            .replace(refused, deadline, || self.fetch(deadline))
    }

    fn fetch(&self, deadline: Deadline) -> Result<Credentials, KeyError> {
        // Searched again each time, as files and variables' files change.
        let source = search::search(&self.env, self.profile.as_deref())?;
        self.remote.fetch(&source, &self.env, deadline)
    }
}
