//! Refusals of the service, and what they mean.

use std::time::Duration;

use serde::Deserialize;

use crate::keys::KeyError;
use crate::keys::kms::http::Response;

const LONGEST_MESSAGE: usize = 200;

/// An answer other than success.
#[derive(Clone, Debug)]
pub(super) struct Fault {
    pub(super) status: u16,
    pub(super) code: String,
    message: String,
    request_id: String,
    retry_after: Option<Duration>,
    /// The server's clock, in seconds since 1970.
    pub(super) server_time: Option<u64>,
}

/// What was asked for, as far as it decides what a refusal means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Asked {
    /// A data key to be unwrapped: what does not fit is a bad wrapped key.
    Unwrap,
    /// A data key to be wrapped: no part of the answer may quote the request.
    Wrap,
    /// Anything else.
    Other,
}

/// What to do about a refusal before it is final.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Remedy {
    /// Nothing helps but perhaps time.
    None,
    /// Get new credentials.
    Credentials,
    /// Set the clock by the server's.
    Clock,
    /// Another protocol operation that does the same.
    Alternative,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Body {
    #[serde(default)]
    code: String,
    #[serde(default)]
    message: String,
    #[serde(default)]
    request_id: String,
}

impl Fault {
    /// The refusal in an answer of the OpenAPI.
    pub(super) fn from_json(answer: &Response) -> Self {
        let body = serde_json::from_slice(&answer.body).unwrap_or(Body {
            code: String::new(),
            message: String::new(),
            request_id: String::new(),
        });
        Self::new(answer, body.code, body.message, body.request_id)
    }

    /// A refusal whose body was read already.
    pub(super) fn new(
        answer: &Response,
        code: String,
        message: String,
        request_id: String,
    ) -> Self {
        let number = |name| answer.header(name)?.parse::<u64>().ok();
        let milliseconds = number("x-acs-retry-after").map(Duration::from_millis);
        let seconds = || number("retry-after").map(Duration::from_secs);
        Self {
            status: answer.status,
            code: printable(&code),
            message: printable(&message),
            request_id: printable(&request_id),
            retry_after: milliseconds.or_else(seconds),
            server_time: answer.date(),
        }
    }

    /// What may help.
    pub(super) fn remedy(&self) -> Remedy {
        match self.code.as_str() {
            "IllegalTimestamp" | "RequestTimeTooSkewed" => Remedy::Clock,
            code if code.starts_with("InvalidTimeStamp") => Remedy::Clock,
            "Forbidden.AccessKeyNotFound" | "Forbidden.AccessKey" => Remedy::Credentials,
            code if code.starts_with("InvalidSecurityToken") => Remedy::Credentials,
            code if code.starts_with("SecurityTokenExpired") => Remedy::Credentials,
            code if code.starts_with("InvalidAccessKeyId") => Remedy::Credentials,
            "UnsupportedOperation" | "Rejected.UnsupportedOperation" => Remedy::Alternative,
            "InvalidApiName" | "InvalidAction.NotFound" | "InvalidAction" => Remedy::Alternative,
            _ => Remedy::None,
        }
    }

    /// The refusal as the provider of `key` reports it.
    pub(super) fn about(self, key: &str, asked: Asked) -> KeyError {
        let detail = self.detail(asked);
        let key = key.to_owned();
        match self.class(asked) {
            Class::NotFound => KeyError::NotFound { key, detail },
            Class::Disabled => KeyError::Disabled { key, detail },
            Class::Expired => KeyError::Expired { key, detail },
            Class::Denied => KeyError::Denied { key, detail },
            Class::Rejected => KeyError::Rejected { key, detail },
            Class::Throttled => KeyError::Throttled {
                key,
                detail,
                retry_after: self.retry_after,
            },
            Class::Unavailable => KeyError::Unavailable { key, detail },
            Class::Malformed => KeyError::Malformed { key, detail },
        }
    }

    fn class(&self, asked: Asked) -> Class {
        let code = self.code.as_str();
        let starts = |prefix: &str| code.starts_with(prefix);
        match code {
            "Forbidden.KeyNotFound" | "Forbidden.KeyVersionNotFound" => Class::NotFound,
            "Forbidden.AliasNotFound" => Class::NotFound,
            "Rejected.Disabled" | "Rejected.PendingDeletion" => Class::Disabled,
            "Rejected.PendingImport" | "Rejected.StateModifiedFailed" => Class::Disabled,
            "Forbidden.ClientKeyExpired" | "ClientKeyExpired" => Class::Expired,
            "SignatureNonceUsed" | "ServiceUnavailableTemporary" => Class::Unavailable,
            "InternalFailure" | "InternalError" => Class::Unavailable,
            _ if starts("Throttling") || code == "Rejected.Throttling" => Class::Throttled,
            _ if starts("Forbidden") || starts("InvalidAccessKeyId") => Class::Denied,
            _ if starts("InvalidSecurityToken") || starts("SecurityToken") => Class::Denied,
            _ if starts("Signature") || starts("IncompleteSignature") => Class::Denied,
            _ if starts("Unauthorized") || starts("NoPermission") => Class::Denied,
            _ if starts("InvalidTimeStamp") || code == "IllegalTimestamp" => Class::Denied,
            "RequestTimeTooSkewed" | "AccessDeniedError" => Class::Denied,
            // A service key or default key, or an instance that lacks it.
            "UnsupportedOperation" | "Rejected.UnsupportedOperation" => Class::Denied,
            _ if self.status == 400 && asked == Asked::Unwrap && starts("InvalidParam") => {
                Class::Rejected
            }
            _ if self.status == 400 && asked == Asked::Unwrap && starts("InvalidCipher") => {
                Class::Rejected
            }
            _ => match self.status {
                401 | 403 => Class::Denied,
                404 if !code.is_empty() => Class::NotFound,
                429 => Class::Throttled,
                408 | 500..=599 => Class::Unavailable,
                _ => Class::Malformed,
            },
        }
    }

    fn detail(&self, asked: Asked) -> String {
        let mut text = match self.code.as_str() {
            "" => format!("HTTP status {}", self.status),
            code => code.to_owned(),
        };
        // These may quote the request.
        let quotes = asked == Asked::Wrap
            || self.code.starts_with("Signature")
            || self.code.starts_with("IncompleteSignature");
        if !self.message.is_empty() && !quotes {
            text.push_str(&format!(": {}", self.message));
        }
        if !self.request_id.is_empty() {
            text.push_str(&format!(", request {}", self.request_id));
        }
        text
    }
}

enum Class {
    NotFound,
    Disabled,
    Expired,
    Denied,
    Rejected,
    Throttled,
    Unavailable,
    Malformed,
}

/// Text that comes from outside and goes into logs and onto terminals.
fn printable(text: &str) -> String {
    let clean = |c: char| if c.is_control() { ' ' } else { c };
    let text: String = text.chars().take(LONGEST_MESSAGE).map(clean).collect();
    text.trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fault(status: u16, code: &str) -> Fault {
        Fault {
            status,
            code: code.into(),
            message: "The\u{1b}[31m message".into(),
            request_id: "req-1".into(),
            retry_after: Some(Duration::from_millis(1500)),
            server_time: None,
        }
    }

    fn kind(status: u16, code: &str, asked: Asked) -> &'static str {
        match fault(status, code).about("k", asked) {
            KeyError::NotFound { .. } => "not found",
            KeyError::Disabled { .. } => "disabled",
            KeyError::Expired { .. } => "expired",
            KeyError::Denied { .. } => "denied",
            KeyError::Rejected { .. } => "rejected",
            KeyError::Throttled { .. } => "throttled",
            KeyError::Unavailable { .. } => "unavailable",
            KeyError::Malformed { .. } => "malformed",
            KeyError::Configuration { .. } => "configuration",
            KeyError::WouldWait => "would wait",
        }
    }

    #[test]
    fn every_documented_code_has_its_class() {
        let table = [
            (404, "Forbidden.KeyNotFound", "not found"),
            (404, "Forbidden.KeyVersionNotFound", "not found"),
            (404, "Forbidden.AliasNotFound", "not found"),
            (404, "InvalidAccessKeyId.NotFound", "denied"),
            (403, "Forbidden.NoPermission", "denied"),
            (403, "Forbidden.AccessKey", "denied"),
            (403, "Forbidden.KmsServiceNotEnabled", "denied"),
            (403, "Forbidden.InDebt", "denied"),
            (403, "Forbidden.InDebtOverdue", "denied"),
            (403, "Forbidden.ProhibitedByRiskControl", "denied"),
            (400, "IncompleteSignature", "denied"),
            (400, "SignatureDoesNotMatch", "denied"),
            (401, "SignatureNotMatch", "denied"),
            (401, "Unauthorized", "denied"),
            (400, "IllegalTimestamp", "denied"),
            (400, "InvalidSecurityToken.Expired", "denied"),
            (400, "Rejected.UnsupportedOperation", "denied"),
            (400, "UnsupportedOperation", "denied"),
            (409, "Rejected.Disabled", "disabled"),
            (409, "Rejected.PendingDeletion", "disabled"),
            (409, "Rejected.PendingImport", "disabled"),
            (429, "Rejected.Throttling", "throttled"),
            (400, "Throttling", "throttled"),
            (400, "Throttling.User", "throttled"),
            (429, "", "throttled"),
            (400, "SignatureNonceUsed", "unavailable"),
            (500, "InternalFailure", "unavailable"),
            (503, "ServiceUnavailableTemporary", "unavailable"),
            (502, "", "unavailable"),
            (400, "MissingParameter", "malformed"),
            (400, "InvalidParameter", "malformed"),
            (413, "", "malformed"),
            (302, "", "malformed"),
        ];
        for (status, code, expected) in table {
            assert_eq!(kind(status, code, Asked::Other), expected, "{code}");
        }
        assert_eq!(kind(400, "InvalidParameter", Asked::Unwrap), "rejected");
        assert_eq!(kind(400, "InvalidParam", Asked::Unwrap), "rejected");
        assert_eq!(kind(404, "", Asked::Other), "malformed", "not a KMS");
    }

    #[test]
    fn remedies() {
        assert_eq!(fault(400, "IllegalTimestamp").remedy(), Remedy::Clock);
        assert_eq!(fault(400, "RequestTimeTooSkewed").remedy(), Remedy::Clock);
        let expired = fault(400, "InvalidSecurityToken.Expired");
        assert_eq!(expired.remedy(), Remedy::Credentials);
        assert_eq!(
            fault(400, "UnsupportedOperation").remedy(),
            Remedy::Alternative
        );
        assert_eq!(fault(403, "Forbidden.NoPermission").remedy(), Remedy::None);
    }

    #[test]
    fn details_are_clean_and_quote_no_secret() {
        let text = fault(403, "Forbidden.NoPermission").detail(Asked::Other);
        assert!(text.starts_with("Forbidden.NoPermission: The"), "{text}");
        assert!(text.ends_with(", request req-1"));
        assert_eq!(printable("a\u{1b}\nb"), "a  b");
        assert!(printable(&"x".repeat(1000)).len() == LONGEST_MESSAGE);
        let text = fault(400, "InvalidParameter").detail(Asked::Wrap);
        assert_eq!(text, "InvalidParameter, request req-1");
        let text = fault(400, "SignatureDoesNotMatch").detail(Asked::Other);
        assert!(!text.contains("message"));
    }
}
