//! What can go wrong between kmsfs and a key provider.

use std::time::Duration;

/// Why a provider gave no key. The classes are those of `docs/SEMANTICS.md`,
/// where each has its errno; `detail` is the provider's own code or wording,
/// never key material.
#[derive(Clone, Debug, thiserror::Error)]
pub enum KeyError {
    /// The key (or its version) does not exist any more, or never did.
    #[error("key {key} does not exist ({detail})")]
    NotFound {
        /// The key's URI.
        key: String,
        /// The provider's code or wording.
        detail: String,
    },
    /// The key exists but is disabled or scheduled for deletion.
    #[error("key {key} is disabled ({detail})")]
    Disabled {
        /// The key's URI.
        key: String,
        /// The provider's code or wording.
        detail: String,
    },
    /// The key's validity, or that of the wrapped key, has ended.
    #[error("key {key} has expired ({detail})")]
    Expired {
        /// The key's URI.
        key: String,
        /// The provider's code or wording.
        detail: String,
    },
    /// The caller may not use the key, or its credentials are wrong.
    #[error("access to key {key} was denied ({detail})")]
    Denied {
        /// The key's URI.
        key: String,
        /// The provider's code or wording.
        detail: String,
    },
    /// The wrapped key or its context does not authenticate under the key.
    #[error("key {key} rejected the wrapped key ({detail})")]
    Rejected {
        /// The key's URI.
        key: String,
        /// The provider's code or wording.
        detail: String,
    },
    /// The provider asks for fewer requests.
    #[error("key provider of {key} is throttling ({detail})")]
    Throttled {
        /// The key's URI.
        key: String,
        /// The provider's code or wording.
        detail: String,
        /// How long the provider asks to wait, if it says.
        retry_after: Option<Duration>,
    },
    /// The provider could not be reached, or failed on its side.
    #[error("key provider of {key} is unavailable ({detail})")]
    Unavailable {
        /// The key's URI.
        key: String,
        /// The provider's code or wording.
        detail: String,
    },
    /// The provider's answer makes no sense.
    #[error("key provider of {key} gave a malformed answer ({detail})")]
    Malformed {
        /// The key's URI.
        key: String,
        /// What was wrong with it.
        detail: String,
    },
    /// The provider was set up wrongly: a URI, a file, a passphrase.
    #[error("{detail}")]
    Configuration {
        /// What is wrong and where.
        detail: String,
        /// What to do about it.
        hint: Option<String>,
    },
    /// The volume is locked: no key is given until it is unlocked.
    #[error("the volume is locked")]
    Locked,
    /// The key is not in memory, and this thread may not wait for it. Never
    /// reaches a program: what needed the key is done again on a thread that may.
    #[error("the key is not in memory")]
    WouldWait,
}

impl KeyError {
    /// The error's class in a word, for logs that programs read.
    pub fn class(&self) -> &'static str {
        match self {
            Self::NotFound { .. } => "not-found",
            Self::Disabled { .. } => "disabled",
            Self::Expired { .. } => "expired",
            Self::Denied { .. } => "denied",
            Self::Rejected { .. } => "rejected",
            Self::Throttled { .. } => "throttled",
            Self::Unavailable { .. } => "unavailable",
            Self::Malformed { .. } => "malformed",
            Self::Configuration { .. } => "configuration",
            Self::Locked => "locked",
            Self::WouldWait => "would-wait",
        }
    }

    /// Whether a provider has decided that this key is not to be had, rather
    /// than failed to say.
    pub fn is_refusal(&self) -> bool {
        matches!(
            self,
            Self::NotFound { .. }
                | Self::Disabled { .. }
                | Self::Expired { .. }
                | Self::Denied { .. }
                | Self::Rejected { .. }
        )
    }

    /// Whether the same call may succeed a moment later.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Throttled { .. } | Self::Unavailable { .. })
    }
}
