//! Refusals of the service, and what they mean. Throttling comes as HTTP 400,
//! so it is the error's name that decides.

use aws_sdk_kms::config::http::HttpResponse;
use aws_sdk_kms::error::{ErrorMetadata, ProvideErrorMetadata, SdkError};

use crate::keys::KeyError;
use crate::keys::kms::http::HttpError;
use crate::keys::kms::printable::printable;
use crate::keys::kms::time::parse_http_date;

/// An answer other than success.
#[derive(Debug)]
pub(super) struct Fault {
    code: String,
    message: String,
    request: Option<String>,
    status: u16,
    /// The service's clock, in seconds since 1970.
    pub(super) date: Option<u64>,
}

impl Fault {
    /// The refusal in an error of the SDK.
    ///
    /// # Errors
    /// What else may have happened to a call about `key`.
    pub(super) fn of<E>(
        error: &SdkError<E, HttpResponse>,
        key: &str,
        server: &str,
    ) -> Result<Self, KeyError>
    where
        E: ProvideErrorMetadata + std::error::Error + 'static,
    {
        let unavailable = |detail: String| KeyError::Unavailable {
            key: key.to_owned(),
            detail: format!("{server}: {detail}"),
        };
        match error {
            SdkError::ServiceError(refusal) => {
                let raw = refusal.raw();
                let header = |name| raw.headers().get(name);
                Ok(Self {
                    code: short(refusal.err().code().unwrap_or_default()),
                    message: printable(refusal.err().message().unwrap_or_default()),
                    request: header("x-amzn-requestid").map(printable),
                    status: raw.status().as_u16(),
                    date: header("date").and_then(parse_http_date),
                })
            }
            SdkError::DispatchFailure(failure) => {
                let error = failure.as_connector_error();
                let error = error.and_then(std::error::Error::source);
                Err(match error.and_then(|error| error.downcast_ref()) {
                    Some(error) => HttpError::about(error, key, server),
                    None => unavailable("the call was not sent".into()),
                })
            }
            SdkError::TimeoutError(_) => Err(unavailable("no answer in time".into())),
            SdkError::ResponseError(_) => Err(KeyError::Malformed {
                key: key.to_owned(),
                detail: format!("{server}: it is not what was asked for"),
            }),
            error => {
                let mut cause: &dyn std::error::Error = error;
                while let Some(source) = cause.source() {
                    cause = source;
                }
                Err(KeyError::Configuration {
                    detail: format!("the call to {server} cannot be made: {cause}"),
                    hint: None,
                })
            }
        }
    }

    /// The refusal of a service that gives credentials.
    pub(super) fn of_login(metadata: &ErrorMetadata) -> Self {
        Self {
            code: short(metadata.code().unwrap_or_default()),
            message: printable(metadata.message().unwrap_or_default()),
            request: None,
            status: 400,
            date: None,
        }
    }

    /// Whether other credentials may help.
    pub(super) fn is_about_credentials(&self) -> bool {
        matches!(
            self.code.as_str(),
            "ExpiredToken"
                | "ExpiredTokenException"
                | "IncompleteSignature"
                | "IncompleteSignatureException"
                | "InvalidClientTokenId"
                | "InvalidSignatureException"
                | "MissingAuthenticationToken"
                | "MissingAuthenticationTokenException"
                | "RequestExpired"
                | "RequestTimeTooSkewed"
                | "SignatureDoesNotMatch"
                | "UnrecognizedClientException"
        )
    }

    /// Whether it is for a signature from another time than the service's.
    pub(super) fn is_about_time(&self) -> bool {
        let says = |words| self.message.contains(words);
        matches!(
            self.code.as_str(),
            "RequestExpired" | "RequestTimeTooSkewed"
        ) || self.is_about_credentials()
            && (says("Signature expired") || says("Signature not yet current"))
    }

    fn is_throttling(&self) -> bool {
        self.status == 429
            || matches!(
                self.code.as_str(),
                "LimitExceededException"
                    | "RequestLimitExceeded"
                    | "RequestThrottled"
                    | "RequestThrottledException"
                    | "SlowDown"
                    | "ThrottledException"
                    | "Throttling"
                    | "ThrottlingException"
                    | "TooManyRequestsException"
            )
    }

    fn is_outage(&self) -> bool {
        self.status >= 500
            || matches!(
                self.code.as_str(),
                "DependencyTimeoutException"
                    | "InternalFailure"
                    | "KMSInternalException"
                    | "KeyUnavailableException"
                    | "RequestTimeout"
                    | "RequestTimeoutException"
                    | "ServiceUnavailable"
                    | "ServiceUnavailableException"
            )
    }

    /// The refusal as the provider of `key` reports it.
    pub(super) fn about(&self, key: &str) -> KeyError {
        let (key, detail) = (key.to_owned(), self.detail());
        match self.code.as_str() {
            _ if self.is_throttling() => KeyError::Throttled {
                key,
                detail,
                retry_after: None,
            },
            // Before what the status says: it is the key's own state.
            "DisabledException" | "KMSInvalidStateException" => KeyError::Disabled { key, detail },
            _ if self.is_outage() => KeyError::Unavailable { key, detail },
            "InvalidArnException" | "NotFoundException" => KeyError::NotFound { key, detail },
            "IncorrectKeyException" | "InvalidCiphertextException" => {
                KeyError::Rejected { key, detail }
            }
            "ValidationException" if self.message.contains("iphertextBlob") => {
                KeyError::Rejected { key, detail }
            }
            "InvalidGrantTokenException"
            | "InvalidKeyUsageException"
            | "OptInRequired"
            | "UnsupportedOperationException" => KeyError::Denied { key, detail },
            code if code.starts_with("AccessDenied") => KeyError::Denied { key, detail },
            _ if self.is_about_credentials() => KeyError::Denied { key, detail },
            _ if matches!(self.status, 401 | 403) => KeyError::Denied { key, detail },
            _ => KeyError::Malformed { key, detail },
        }
    }

    /// The same where credentials were asked for: whatever is refused there, it
    /// is the caller who is.
    pub(super) fn about_login(&self, key: &str) -> KeyError {
        match self.about(key) {
            error if error.is_transient() => error,
            _ => KeyError::Denied {
                key: key.to_owned(),
                detail: format!("login: {}", self.detail()),
            },
        }
    }

    fn detail(&self) -> String {
        let code = match self.code.as_str() {
            "" => format!("HTTP status {}", self.status),
            code => code.to_owned(),
        };
        let mut text = match self.message.as_str() {
            "" => code,
            message => format!("{code}: {message}"),
        };
        if let Some(request) = &self.request {
            text.push_str(&format!(", request {request}"));
        }
        text
    }
}

/// An error's name without its namespace.
fn short(code: &str) -> String {
    let name = code.rsplit('#').next().unwrap_or_default();
    printable(name.split(':').next().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fault(status: u16, code: &str, message: &str) -> Fault {
        Fault {
            code: short(code),
            message: message.to_owned(),
            request: Some("r-1".to_owned()),
            status,
            date: None,
        }
    }

    fn class(status: u16, code: &str) -> &'static str {
        fault(status, code, "").about("k").class()
    }

    #[test]
    fn the_name_decides() {
        assert_eq!(class(400, "ThrottlingException"), "throttled");
        assert_eq!(
            class(400, "com.amazonaws.kms#NotFoundException"),
            "not-found"
        );
        assert_eq!(class(400, "DisabledException"), "disabled");
        assert_eq!(class(409, "KMSInvalidStateException"), "disabled");
        assert_eq!(class(400, "InvalidCiphertextException"), "rejected");
        assert_eq!(class(400, "IncorrectKeyException"), "rejected");
        assert_eq!(class(400, "AccessDeniedException"), "denied");
        assert_eq!(class(400, "ExpiredTokenException"), "denied");
        assert_eq!(class(400, "InvalidKeyUsageException"), "denied");
        assert_eq!(class(400, "KMSInternalException"), "unavailable");
        assert_eq!(class(400, "DependencyTimeoutException"), "unavailable");
        assert_eq!(class(400, "SomethingNew"), "malformed");
    }

    #[test]
    fn without_a_name_the_status_does() {
        assert_eq!(class(429, ""), "throttled");
        assert_eq!(class(502, ""), "unavailable");
        assert_eq!(class(403, ""), "denied");
        assert_eq!(
            class(404, ""),
            "malformed",
            "a proxy's page, not the service's word"
        );
    }

    #[test]
    fn a_malformed_wrapped_key_is_rejected() {
        let invalid = |message| {
            fault(400, "ValidationException", message)
                .about("k")
                .class()
        };
        assert_eq!(invalid("Value at 'ciphertextBlob' is too long"), "rejected");
        assert_eq!(invalid("Value at 'keyId' is too long"), "malformed");
    }

    #[test]
    fn only_a_refused_login_is_a_denial() {
        let login = |code| fault(400, code, "").about_login("k").class();
        assert_eq!(login("ValidationError"), "denied");
        assert_eq!(login("Throttling"), "throttled");
    }

    #[test]
    fn a_message_has_the_request_s_id() {
        let fault = fault(400, "InvalidSignatureException", "Signature expired: old");
        assert_eq!(
            fault.detail(),
            "InvalidSignatureException: Signature expired: old, request r-1"
        );
        assert!(fault.is_about_time() && fault.is_about_credentials());
    }
}
