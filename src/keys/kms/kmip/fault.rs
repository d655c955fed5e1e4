//! What refusals and broken connections mean.

use super::connection::Trouble;
use super::message::Refusal;
use super::operation::{Operation, State};
use crate::keys::KeyError;
use crate::keys::kms::printable::printable;

/// The reasons of KMIP 1.4 and 2.0 that matter here.
mod reason {
    pub(super) const ITEM_NOT_FOUND: u32 = 0x01;
    pub(super) const RESPONSE_TOO_LARGE: u32 = 0x02;
    pub(super) const AUTHENTICATION_NOT_SUCCESSFUL: u32 = 0x03;
    pub(super) const INVALID_MESSAGE: u32 = 0x04;
    pub(super) const OPERATION_NOT_SUPPORTED: u32 = 0x05;
    pub(super) const MISSING_DATA: u32 = 0x06;
    pub(super) const INVALID_FIELD: u32 = 0x07;
    pub(super) const FEATURE_NOT_SUPPORTED: u32 = 0x08;
    pub(super) const CRYPTOGRAPHIC_FAILURE: u32 = 0x0a;
    pub(super) const ILLEGAL_OPERATION: u32 = 0x0b;
    pub(super) const PERMISSION_DENIED: u32 = 0x0c;
    pub(super) const OBJECT_ARCHIVED: u32 = 0x0d;
    pub(super) const USAGE_LIMIT_EXCEEDED: u32 = 0x1a;
    pub(super) const BAD_CRYPTOGRAPHIC_PARAMETERS: u32 = 0x24;
    pub(super) const INCOMPATIBLE_USAGE_MASK: u32 = 0x29;
    pub(super) const INTERNAL_SERVER_ERROR: u32 = 0x2a;
    pub(super) const OBJECT_DESTROYED: u32 = 0x36;
    pub(super) const OBJECT_NOT_FOUND: u32 = 0x37;
    pub(super) const NOT_AUTHORISED: u32 = 0x39;
    pub(super) const SERVER_LIMIT_EXCEEDED: u32 = 0x3a;
    pub(super) const UNSUPPORTED_PARAMETERS: u32 = 0x3e;
    pub(super) const UNSUPPORTED_VERSION: u32 = 0x3f;
    pub(super) const WRONG_STATE: u32 = 0x43;
    pub(super) const STORAGE_UNAVAILABLE: u32 = 0x44;
    pub(super) const GENERAL_FAILURE: u32 = 0x100;
}

const NO_GCM: &str = "the server must have Encrypt and Decrypt with AES-GCM, associated data and \
                      an authentication tag (KMIP 1.4 or 2.0); kmsfs does not wrap data keys \
                      without authentication";

impl Refusal {
    fn detail(&self) -> String {
        let text = printable(&self.text);
        match text.as_str() {
            "" => format!("reason {:#x}", self.reason),
            text => format!("{text}; reason {:#x}", self.reason),
        }
    }

    /// Whether the key's state may be behind it, which it does not tell.
    pub(super) fn may_be_state(&self) -> bool {
        matches!(
            self.reason,
            reason::PERMISSION_DENIED
                | reason::ILLEGAL_OPERATION
                | reason::WRONG_STATE
                | reason::NOT_AUTHORISED
        )
    }

    /// Servers say this of a wrapped key that does not authenticate and of their
    /// own failures.
    pub(super) fn is_ambiguous(&self) -> bool {
        matches!(
            self.reason,
            reason::GENERAL_FAILURE | reason::CRYPTOGRAPHIC_FAILURE
        )
    }

    /// Whether it is about many operations in one request.
    pub(super) fn is_about_batch(&self) -> bool {
        matches!(
            self.reason,
            reason::FEATURE_NOT_SUPPORTED
                | reason::OPERATION_NOT_SUPPORTED
                | reason::INVALID_MESSAGE
                | reason::INVALID_FIELD
                | reason::RESPONSE_TOO_LARGE
                | reason::SERVER_LIMIT_EXCEEDED
        )
    }

    /// The refusal of `operation` as the provider of `key` reports it.
    pub(super) fn about(&self, key: &str, operation: &Operation<'_>) -> KeyError {
        let detail = self.detail();
        let key = key.to_owned();
        let decrypts = matches!(operation, Operation::Decrypt { .. });
        let encrypts = matches!(operation, Operation::Encrypt { .. });
        match self.reason {
            reason::ITEM_NOT_FOUND | reason::OBJECT_DESTROYED | reason::OBJECT_NOT_FOUND => {
                KeyError::NotFound { key, detail }
            }
            reason::WRONG_STATE | reason::OBJECT_ARCHIVED => KeyError::Disabled { key, detail },
            reason::AUTHENTICATION_NOT_SUCCESSFUL
            | reason::PERMISSION_DENIED
            | reason::NOT_AUTHORISED
            | reason::ILLEGAL_OPERATION
            | reason::USAGE_LIMIT_EXCEEDED
            | reason::INCOMPATIBLE_USAGE_MASK => KeyError::Denied { key, detail },
            reason::SERVER_LIMIT_EXCEEDED => KeyError::Throttled {
                key,
                detail,
                retry_after: None,
            },
            reason::INTERNAL_SERVER_ERROR
            | reason::STORAGE_UNAVAILABLE
            | reason::GENERAL_FAILURE => KeyError::Unavailable { key, detail },
            reason::UNSUPPORTED_VERSION => version_missing(&detail),
            // That we cannot write down properly what a server wants to know
            // would show when wrapping; what was wrapped before is at fault.
            reason::INVALID_FIELD
            | reason::CRYPTOGRAPHIC_FAILURE
            | reason::BAD_CRYPTOGRAPHIC_PARAMETERS
            | reason::MISSING_DATA
                if decrypts =>
            {
                KeyError::Rejected { key, detail }
            }
            reason::OPERATION_NOT_SUPPORTED
            | reason::FEATURE_NOT_SUPPORTED
            | reason::UNSUPPORTED_PARAMETERS
            | reason::INVALID_FIELD
            | reason::CRYPTOGRAPHIC_FAILURE
            | reason::BAD_CRYPTOGRAPHIC_PARAMETERS
            | reason::MISSING_DATA
                if encrypts || decrypts =>
            {
                KeyError::Configuration {
                    detail: format!("the server cannot wrap with key {key}: {detail}"),
                    hint: Some(NO_GCM.into()),
                }
            }
            _ => KeyError::Malformed { key, detail },
        }
    }
}

/// The server speaks neither version.
pub(super) fn version_missing(detail: &str) -> KeyError {
    KeyError::Configuration {
        detail: format!("the server has not the version of KMIP that is asked for: {detail}"),
        hint: Some(format!("kmsfs speaks KMIP 1.4 and 2.0; {NO_GCM}")),
    }
}

/// The server does not look at the associated data.
pub(super) fn unbound(key: &str) -> KeyError {
    KeyError::Configuration {
        detail: format!("the server of {key} ignores the associated data of AES-GCM"),
        hint: Some(NO_GCM.into()),
    }
}

/// What its state says about a key that was refused; `None` if it is active.
pub(super) fn about_state(state: State, key: &str) -> Option<KeyError> {
    let key = key.to_owned();
    let disabled = |detail: &str| KeyError::Disabled {
        key: key.clone(),
        detail: detail.to_owned(),
    };
    match state {
        State::Active => None,
        State::PreActive => Some(disabled("its state is Pre-Active: activate it first")),
        State::Deactivated => Some(disabled("its state is Deactivated")),
        State::Compromised => Some(disabled("its state is Compromised")),
        State::Destroyed | State::DestroyedCompromised => Some(KeyError::NotFound {
            key,
            detail: "its state is Destroyed".into(),
        }),
    }
}

/// A connection that failed, as the provider of `key` reports it.
pub(super) fn about_connection(trouble: Trouble, key: &str, server: &str) -> KeyError {
    let key = key.to_owned();
    match trouble {
        Trouble::TimedOut => KeyError::Unavailable {
            key,
            detail: format!("{server}: no answer in time"),
        },
        Trouble::Unreachable(detail) => KeyError::Unavailable {
            key,
            detail: format!("{server}: cannot connect: {detail}"),
        },
        Trouble::Broken(detail) => KeyError::Unavailable {
            key,
            detail: format!("{server}: the connection broke: {detail}"),
        },
        Trouble::Nonsense(detail) => KeyError::Malformed {
            key,
            detail: format!("{server}: {detail}"),
        },
        Trouble::Refused(detail) => KeyError::Denied {
            key,
            detail: format!("{server} refused the client's certificate: {detail}"),
        },
        Trouble::Untrusted(detail) => KeyError::Configuration {
            detail: format!("{server}: its certificate is not trusted: {detail}"),
            hint: Some(
                "ca= must name the authority that issued the server's certificate, and the \
                 certificate the host in the key uri"
                    .into(),
            ),
        },
        Trouble::Incompatible(detail) => KeyError::Configuration {
            detail: format!("{server}: no TLS in common: {detail}"),
            hint: Some(
                "the server must offer TLS 1.2 or 1.3 with ECDHE and AES-GCM or ChaCha20; some \
                 offer these only with an ECDSA certificate"
                    .into(),
            ),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(error: &KeyError) -> &'static str {
        error.class()
    }

    #[test]
    fn reasons_have_their_classes() {
        let decrypt = Operation::Decrypt {
            id: "1",
            ciphertext: &[],
            iv: &[],
            aad: &[],
            tag: &[],
        };
        let encrypt = Operation::Encrypt {
            id: "1",
            plaintext: &[],
            iv: &[],
            aad: &[],
        };
        let get = Operation::GetAttributes { id: "1" };
        let cases = [
            (1, decrypt, "not-found"),
            (0x36, encrypt, "not-found"),
            (3, get, "denied"),
            (4, get, "malformed"),
            (5, encrypt, "configuration"),
            (7, decrypt, "rejected"),
            (7, encrypt, "configuration"),
            (0xa, decrypt, "rejected"),
            (0xc, decrypt, "denied"),
            (0x3a, decrypt, "throttled"),
            (0x43, decrypt, "disabled"),
            (0x100, decrypt, "unavailable"),
            (0, get, "malformed"),
        ];
        for (reason, operation, class) in cases {
            let text = "no\u{1b}".to_owned();
            let error = Refusal { reason, text }.about("k", &operation);
            assert_eq!(kind(&error), class, "{reason:#x}");
            assert!(!error.to_string().contains('\u{1b}'));
        }
        assert!(about_state(State::Active, "k").is_none());
        for (state, class) in [
            (State::PreActive, "disabled"),
            (State::Compromised, "disabled"),
            (State::DestroyedCompromised, "not-found"),
        ] {
            assert_eq!(kind(&about_state(state, "k").unwrap()), class);
        }
    }
}
