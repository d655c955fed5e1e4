//! Refusals of the server, and what they mean. Its status codes say little, so
//! its words have to.

use std::time::Duration;

use serde::Deserialize;

use crate::keys::KeyError;
use crate::keys::kms::http::Response;
use crate::keys::kms::printable::printable;

/// An answer other than success.
#[derive(Debug)]
pub(super) struct Fault {
    status: u16,
    text: String,
    retry_after: Option<Duration>,
}

/// What was asked for, as far as it decides what a refusal means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Asked {
    /// A data key to be unwrapped: what does not fit is a bad wrapped key.
    Unwrap,
    /// Anything else.
    Other,
}

#[derive(Deserialize)]
struct Body {
    #[serde(default)]
    errors: Vec<String>,
}

impl Fault {
    /// The refusal in an answer.
    pub(super) fn of(answer: &Response) -> Self {
        let body = serde_json::from_slice(&answer.body).unwrap_or(Body { errors: Vec::new() });
        let seconds = answer.header("retry-after").and_then(|s| s.parse().ok());
        Self {
            status: answer.status,
            text: printable(&body.errors.join("; ")),
            retry_after: seconds.map(Duration::from_secs),
        }
    }

    /// The refusal of one part of a batch.
    pub(super) fn of_item(text: &str) -> Self {
        Self {
            status: 400,
            text: printable(text),
            retry_after: None,
        }
    }

    /// Whether another token may help.
    pub(super) fn is_denial(&self) -> bool {
        self.status == 403 || self.text.contains("missing client token")
    }

    /// Whether the same call may succeed a moment later.
    pub(super) fn is_transient(&self) -> bool {
        matches!(self.status, 307 | 408 | 412 | 429 | 472 | 473 | 500..=599)
    }

    /// Whether it is for want of a context, which only derived keys need.
    pub(super) fn wants_context(&self) -> bool {
        self.text.contains("missing 'context'")
    }

    /// Whether it is only about the wrapped key, so that the key itself is fit
    /// for use.
    pub(super) fn is_about_ciphertext(&self) -> bool {
        self.text.contains("ciphertext") || self.text.contains("authentication failed")
    }

    /// The refusal as the provider of `key` reports it.
    pub(super) fn about(self, key: &str, asked: Asked) -> KeyError {
        let detail = match self.text.as_str() {
            "" => format!("HTTP status {}", self.status),
            text => text.to_owned(),
        };
        let key = key.to_owned();
        if self.is_transient() && self.status != 429 {
            // Also a replica that lags, and nodes that are not the active one.
            return KeyError::Unavailable { key, detail };
        }
        let says = |words: &str| detail.contains(words);
        match self.status {
            _ if self.is_denial() => KeyError::Denied { key, detail },
            400 if says("key not found") => KeyError::NotFound { key, detail },
            400 if says("too old") || says("soft-deleted") => KeyError::Disabled { key, detail },
            400 if asked == Asked::Unwrap => KeyError::Rejected { key, detail },
            401 => KeyError::Denied { key, detail },
            404 => KeyError::NotFound { key, detail },
            429 => KeyError::Throttled {
                key,
                detail,
                retry_after: self.retry_after,
            },
            _ => KeyError::Malformed { key, detail },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(status: u16, text: &str, asked: Asked) -> String {
        let fault = Fault {
            status,
            ..Fault::of_item(text)
        };
        let debug = format!("{:?}", fault.about("k", asked));
        debug.split(' ').next().unwrap().to_owned()
    }

    #[test]
    fn words_decide_where_the_status_does_not() {
        let cases = [
            (400, "encryption key not found", "NotFound"),
            (400, "refusing to use soft-deleted key", "Disabled"),
            (
                400,
                "ciphertext or signature version is disallowed by policy (too old)",
                "Disabled",
            ),
            (400, "cipher: message authentication failed", "Rejected"),
            (400, "invalid ciphertext: no prefix", "Rejected"),
            (403, "permission denied", "Denied"),
            (400, "missing client token", "Denied"),
            (404, "no handler for route", "NotFound"),
            (429, "", "Throttled"),
            (473, "", "Unavailable"),
            (503, "Vault is sealed", "Unavailable"),
            (302, "", "Malformed"),
        ];
        for (status, text, expected) in cases {
            assert_eq!(
                kind(status, text, Asked::Unwrap),
                expected,
                "{status} {text}"
            );
        }
        assert_eq!(kind(400, "invalid bit length", Asked::Other), "Malformed");
    }
}
