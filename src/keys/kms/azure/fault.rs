//! Refusals of Key Vault, and what they mean.

use std::time::Duration;

use serde::Deserialize;

use crate::keys::KeyError;
use crate::keys::audit::request;
use crate::keys::kms::bearer::retry_after;
use crate::keys::kms::http::Response;
use crate::keys::kms::printable::printable;

/// What was asked for, as far as it decides what a refusal means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Asked {
    /// A data key to be unwrapped: what does not fit is a bad wrapped key.
    Unwrap,
    /// Anything else.
    Other,
}

/// An answer other than success.
#[derive(Debug)]
pub(super) struct Fault {
    status: u16,
    /// The outer code, and the inner ones.
    codes: Vec<String>,
    message: String,
    retry_after: Option<Duration>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Body {
    error: Error,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Error {
    code: String,
    message: String,
    innererror: Option<Box<Error>>,
}

/// Notes the id of a call, for the audit log.
pub(super) fn note_id(answer: &Response) {
    request::note(&printable(
        answer.header("x-ms-request-id").unwrap_or_default(),
    ));
}

impl Fault {
    /// The refusal in an answer.
    pub(super) fn of(answer: &Response) -> Self {
        let body: Body = serde_json::from_slice(&answer.body).unwrap_or_default();
        let mut codes = vec![printable(&body.error.code)];
        let mut inner = &body.error.innererror;
        while let Some(error) = inner {
            codes.push(printable(&error.code));
            inner = &error.innererror;
        }
        codes.retain(|code| !code.is_empty());
        Self {
            status: answer.status,
            codes,
            message: printable(&body.error.message),
            retry_after: retry_after(answer),
        }
    }

    /// The refusal as the provider of `key` reports it.
    pub(super) fn about(self, key: &str, asked: Asked) -> KeyError {
        let detail = self.detail();
        let key = key.to_owned();
        let code = |word: &str| self.codes.iter().any(|code| code == word);
        // The inner code may be missing; the words are always the same.
        let says = |words: &str| self.message.contains(words);
        match self.status {
            403 if code("KeyDisabled") || says("disabled key") => {
                KeyError::Disabled { key, detail }
            }
            403 if code("KeyExpired") || says("expired key") => KeyError::Expired { key, detail },
            403 if code("KeyNotYetValid") || says("not yet valid") => {
                KeyError::Disabled { key, detail }
            }
            401 | 403 => KeyError::Denied { key, detail },
            404 => KeyError::NotFound { key, detail },
            // Deleted, but not for good yet.
            409 => KeyError::Disabled { key, detail },
            400 if asked == Asked::Unwrap => KeyError::Rejected { key, detail },
            429 => KeyError::Throttled {
                key,
                detail,
                retry_after: self.retry_after,
            },
            408 | 500..=599 => KeyError::Unavailable { key, detail },
            _ => KeyError::Malformed { key, detail },
        }
    }

    fn detail(&self) -> String {
        let mut words: Vec<&str> = self.codes.iter().map(String::as_str).collect();
        if !self.message.is_empty() {
            words.push(&self.message);
        }
        match words.is_empty() {
            true => format!("HTTP status {}", self.status),
            false => words.join(": "),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(status: u16, codes: &[&str], message: &str, asked: Asked) -> String {
        let fault = Fault {
            status,
            codes: codes.iter().map(|code| (*code).to_owned()).collect(),
            message: message.into(),
            retry_after: None,
        };
        let debug = format!("{:?}", fault.about("k", asked));
        debug.split(' ').next().unwrap().to_owned()
    }

    #[test]
    fn the_inner_code_decides_what_forbidden_means() {
        let cases: [(u16, &[&str], &str, &str); 14] = [
            (403, &["Forbidden", "KeyDisabled"], "", "Disabled"),
            (
                403,
                &["Forbidden"],
                "Operation unwrapKey is not allowed on a disabled key.",
                "Disabled",
            ),
            (
                403,
                &["Forbidden"],
                "Operation wrapKey is not allowed on an expired key.",
                "Expired",
            ),
            (403, &["Forbidden", "KeyNotYetValid"], "", "Disabled"),
            (403, &["Forbidden", "ForbiddenByPolicy"], "", "Denied"),
            (403, &["Forbidden", "ForbiddenByRbac"], "", "Denied"),
            (403, &["Forbidden", "ForbiddenByFirewall"], "", "Denied"),
            (401, &["Unauthorized"], "", "Denied"),
            (404, &["KeyNotFound"], "", "NotFound"),
            (
                409,
                &["Conflict", "ObjectIsDeletedButRecoverable"],
                "",
                "Disabled",
            ),
            (400, &["BadParameter"], "", "Rejected"),
            (429, &["Throttled"], "", "Throttled"),
            (503, &[], "", "Unavailable"),
            (302, &[], "", "Malformed"),
        ];
        for (status, codes, message, expected) in cases {
            let found = kind(status, codes, message, Asked::Unwrap);
            assert_eq!(found, expected, "{status} {codes:?} {message}");
        }
        assert_eq!(kind(400, &["BadParameter"], "", Asked::Other), "Malformed");
    }
}
