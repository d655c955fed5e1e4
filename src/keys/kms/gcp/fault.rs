//! Refusals of Cloud KMS, and what they mean.

use std::time::Duration;

use serde::Deserialize;

use crate::keys::KeyError;
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
    http_status: u16,
    status: String,
    message: String,
    /// What a precondition is about, as `KEY_DISABLED`.
    violations: Vec<String>,
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
    status: String,
    message: String,
    details: Vec<Detail>,
}

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "camelCase")]
struct Detail {
    violations: Vec<Violation>,
    reason: String,
    /// As `1.5s`.
    retry_delay: String,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Violation {
    #[serde(rename = "type")]
    kind: String,
}

impl Fault {
    /// The refusal in an answer.
    pub(super) fn of(answer: &Response) -> Self {
        let body: Body = serde_json::from_slice(&answer.body).unwrap_or_default();
        let details = &body.error.details;
        let delay = details.iter().find_map(|detail| {
            let seconds: f64 = detail.retry_delay.strip_suffix('s')?.parse().ok()?;
            Duration::try_from_secs_f64(seconds).ok()
        });
        let kinds = details.iter().flat_map(|detail| {
            let violations = detail.violations.iter().map(|v| v.kind.as_str());
            violations.chain([detail.reason.as_str()])
        });
        Self {
            http_status: answer.status,
            violations: kinds
                .filter(|kind| !kind.is_empty())
                .map(printable)
                .collect(),
            status: printable(&body.error.status),
            message: printable(&body.error.message),
            retry_after: retry_after(answer).or(delay),
        }
    }

    /// The refusal as the provider of `key` reports it.
    pub(super) fn about(self, key: &str, asked: Asked) -> KeyError {
        let detail = self.detail();
        let key = key.to_owned();
        let says = |word: &str| {
            self.message.contains(word) || self.violations.iter().any(|kind| kind.contains(word))
        };
        match (self.status.as_str(), self.http_status) {
            // "DESTROY_SCHEDULED" can still be restored.
            ("FAILED_PRECONDITION", _) if says("DESTROYED") => KeyError::NotFound { key, detail },
            ("FAILED_PRECONDITION", _) => KeyError::Disabled { key, detail },
            // What was sent is not what arrived.
            ("INVALID_ARGUMENT", _) if says("crc32c") || says("checksum") => {
                KeyError::Unavailable { key, detail }
            }
            ("INVALID_ARGUMENT", _) if asked == Asked::Unwrap => KeyError::Rejected { key, detail },
            ("PERMISSION_DENIED" | "UNAUTHENTICATED", _) | (_, 401 | 403) => {
                KeyError::Denied { key, detail }
            }
            ("NOT_FOUND", _) | (_, 404) => KeyError::NotFound { key, detail },
            ("RESOURCE_EXHAUSTED", _) | (_, 429) => KeyError::Throttled {
                key,
                detail,
                retry_after: self.retry_after,
            },
            ("ABORTED" | "CANCELLED" | "DEADLINE_EXCEEDED", _) | (_, 408 | 499 | 500..=599) => {
                KeyError::Unavailable { key, detail }
            }
            _ => KeyError::Malformed { key, detail },
        }
    }

    fn detail(&self) -> String {
        let mut words: Vec<&str> = vec![&self.status];
        words.extend(self.violations.iter().map(String::as_str));
        words.push(&self.message);
        words.retain(|word| !word.is_empty());
        match words.is_empty() {
            true => format!("HTTP status {}", self.http_status),
            false => words.join(": "),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(http_status: u16, status: &str, words: &[&str], asked: Asked) -> String {
        let fault = Fault {
            http_status,
            status: status.into(),
            message: words[0].into(),
            violations: words[1..].iter().map(|word| (*word).to_owned()).collect(),
            retry_after: None,
        };
        let debug = format!("{:?}", fault.about("k", asked));
        debug.split(' ').next().unwrap().to_owned()
    }

    #[test]
    fn the_status_decides_and_the_reason_refines() {
        let failed = "FAILED_PRECONDITION";
        let cases: [(u16, &str, &[&str], &str); 15] = [
            (400, failed, &["x", "KEY_DISABLED"], "Disabled"),
            (
                400,
                failed,
                &["it is not enabled, current state is: DESTROY_SCHEDULED."],
                "Disabled",
            ),
            (
                400,
                failed,
                &["it is not enabled, current state is: DESTROYED."],
                "NotFound",
            ),
            (400, failed, &["x", "KEY_DESTROYED"], "NotFound"),
            (
                400,
                failed,
                &["Failed precondition on Cloud KMS resource [k]"],
                "Disabled",
            ),
            (
                400,
                "INVALID_ARGUMENT",
                &["Decryption failed: the ciphertext is invalid."],
                "Rejected",
            ),
            (
                400,
                "INVALID_ARGUMENT",
                &["The checksum in field ciphertext_crc32c did not match"],
                "Unavailable",
            ),
            (401, "UNAUTHENTICATED", &[""], "Denied"),
            (
                403,
                "PERMISSION_DENIED",
                &["off", "SERVICE_DISABLED"],
                "Denied",
            ),
            (404, "NOT_FOUND", &[""], "NotFound"),
            (429, "RESOURCE_EXHAUSTED", &[""], "Throttled"),
            (503, "UNAVAILABLE", &[""], "Unavailable"),
            (504, "DEADLINE_EXCEEDED", &[""], "Unavailable"),
            (502, "", &[""], "Unavailable"),
            (302, "", &[""], "Malformed"),
        ];
        for (http_status, status, words, expected) in cases {
            let found = kind(http_status, status, words, Asked::Unwrap);
            assert_eq!(found, expected, "{http_status} {status} {words:?}");
        }
        let other = kind(400, "INVALID_ARGUMENT", &["purpose"], Asked::Other);
        assert_eq!(other, "Malformed");
    }
}
