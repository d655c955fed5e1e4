//! Services that are called with an access token of OAuth 2.0, and what gives
//! such tokens.

use std::time::Duration;

use reqwest::Method;
use serde::Deserialize;
use zeroize::Zeroizing;

use crate::keys::KeyError;
use crate::keys::kms::form::encode_form;
use crate::keys::kms::http::{Clients, Http, HttpError, Request, Response};
use crate::keys::kms::lease::{Lease, LeaseHolder};
use crate::keys::kms::printable::printable;
use crate::keys::kms::retry::{self, Deadline};
use crate::keys::kms::secret_text::SecretText;
use crate::sys::clock;

/// How long before its end a token is replaced. Metadata services give the same
/// token again until five minutes before.
const MARGIN: u64 = 240;

/// A token in use.
pub(super) struct AccessToken {
    text: Zeroizing<String>,
    renewal: u64,
    end: u64,
}

impl AccessToken {
    /// A token that lasts that many seconds from now on.
    pub(super) fn new(text: Zeroizing<String>, seconds: u64) -> Self {
        let end = clock::unix_seconds().saturating_add(seconds);
        Self {
            text,
            renewal: end - MARGIN.min(seconds / 2),
            end,
        }
    }

    /// The header that shows it.
    pub(super) fn header(&self) -> Zeroizing<String> {
        Zeroizing::new(format!("Bearer {}", self.text.as_str()))
    }
}

impl Lease for AccessToken {
    fn renewal(&self) -> Option<u64> {
        Some(self.renewal)
    }

    fn end(&self) -> Option<u64> {
        Some(self.end)
    }

    fn is_same_as(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

/// Who gets the tokens for a service.
pub(super) trait TokenSource {
    /// Another token. Errors need not name the key.
    fn token(&self, deadline: Deadline) -> Result<AccessToken, KeyError>;
}

/// A service, and who calls it.
pub(super) struct Api<S> {
    pub(super) http: Http,
    /// `https://host[:port]`.
    pub(super) origin: String,
    /// The key that all calls are about, for errors.
    pub(super) key: String,
    pub(super) source: S,
    tokens: LeaseHolder<AccessToken>,
}

/// What to call: a path, and JSON unless it only asks.
pub(super) struct Call {
    path: String,
    body: Option<Zeroizing<Vec<u8>>>,
}

impl Call {
    pub(super) fn post(path: String, body: Zeroizing<Vec<u8>>) -> Self {
        Self {
            path,
            body: Some(body),
        }
    }

    pub(super) fn get(path: String) -> Self {
        Self { path, body: None }
    }
}

impl<S: TokenSource> Api<S> {
    pub(super) fn new(http: Http, origin: String, key: String, source: S) -> Self {
        Self {
            http,
            origin,
            source,
            tokens: LeaseHolder::new(key.clone()),
            key,
        }
    }

    /// Makes a call, and tries again what may succeed then, until the deadline.
    /// `read` makes sense of the answer, whatever its status. A token that is
    /// refused is replaced once.
    pub(super) fn call<T>(
        &self,
        call: &Call,
        deadline: Deadline,
        read: impl Fn(&Response) -> Result<T, KeyError>,
    ) -> Result<T, KeyError> {
        let mut token_was_replaced = false;
        let fetch = || self.source.token(deadline);
        retry::until(deadline, || {
            loop {
                let token = self.tokens.get(deadline, |_| fetch())?;
                let answer = self.send(call, &token, deadline)?;
                if answer.status == 401 && !token_was_replaced {
                    let another = self.tokens.replace(&token, deadline, fetch)?;
                    token_was_replaced = true;
                    if another.is_some() {
                        continue;
                    }
                }
                return read(&answer);
            }
        })
    }

    fn send(
        &self,
        call: &Call,
        token: &AccessToken,
        deadline: Deadline,
    ) -> Result<Response, KeyError> {
        let method = match call.body {
            Some(_) => Method::POST,
            None => Method::GET,
        };
        let mut request = Request::new(method, format!("{}{}", self.origin, call.path))
            .header("accept", "application/json");
        request
            .headers
            .push(("authorization".into(), token.header()));
        if let Some(body) = &call.body {
            request = request.header("content-type", "application/json");
            request.body = body.clone();
        }
        let answer = self.http.send(request, deadline.one_try());
        answer.map_err(|error| error.about(&self.key, &self.origin))
    }

    pub(super) fn malformed(&self, problem: &str) -> KeyError {
        KeyError::Malformed {
            key: self.key.clone(),
            detail: problem.to_owned(),
        }
    }
}

/// How long an answer asks to wait.
pub(super) fn retry_after(answer: &Response) -> Option<Duration> {
    let seconds = answer.header("retry-after")?.parse().ok()?;
    Some(Duration::from_secs(seconds))
}

/// Calls what gives tokens.
#[derive(Default)]
pub(super) struct TokenServices {
    clients: Clients,
}

impl TokenServices {
    /// Sends a request, for at most `time`; `name` is the service's, for errors.
    pub(super) fn send(
        &self,
        request: Request,
        name: &str,
        time: Duration,
    ) -> Result<Response, KeyError> {
        let answer = self.try_send(request, time)?;
        answer.map_err(|error| error.about("", name))
    }

    /// The same, where the kind of failure matters.
    pub(super) fn try_send(
        &self,
        request: Request,
        time: Duration,
    ) -> Result<Result<Response, HttpError>, KeyError> {
        let http = self.clients.of(&request.url)?;
        Ok(http.send(request, time))
    }

    /// Sends a form to `url`.
    pub(super) fn post_form(
        &self,
        url: &str,
        form: &[(&'static str, Zeroizing<String>)],
        deadline: Deadline,
    ) -> Result<Response, KeyError> {
        let mut request = Request::new(Method::POST, url.to_owned())
            .header("content-type", "application/x-www-form-urlencoded")
            .header("accept", "application/json");
        request.body = encode_form(form);
        self.send(request, url, deadline.one_try())
    }
}

#[derive(Deserialize)]
struct Granted {
    access_token: SecretText,
    #[serde(default)]
    expires_in: Option<Number>,
    #[serde(default)]
    expires_on: Option<Number>,
}

/// Some services put numbers into strings.
#[derive(Deserialize)]
#[serde(untagged)]
enum Number {
    Plain(u64),
    Text(String),
}

impl Number {
    fn get(&self) -> Option<u64> {
        match self {
            Self::Plain(number) => Some(*number),
            Self::Text(text) => text.parse().ok(),
        }
    }
}

/// Why a token was refused: `error` is a word, or an object as in other answers.
#[derive(Deserialize, Default)]
#[serde(default)]
struct Refused {
    error: Option<Reason>,
    error_description: String,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Reason {
    Word(String),
    Object { message: String },
}

/// The token in an answer of the service `name`.
pub(super) fn granted(answer: &Response, name: &str) -> Result<AccessToken, KeyError> {
    accepted(answer, name)?;
    let granted = serde_json::from_slice::<Granted>(&answer.body).ok();
    let token = granted.and_then(|granted| {
        let left = |end: u64| end.saturating_sub(clock::unix_seconds());
        let lasts = granted.expires_in.as_ref().and_then(Number::get);
        let ends = granted.expires_on.as_ref().and_then(Number::get);
        let seconds = lasts.or(ends.map(left)).filter(|seconds| *seconds > 0)?;
        Some(AccessToken::new(granted.access_token.into_inner(), seconds))
    });
    token.ok_or_else(|| no_token(name))
}

/// The error for an answer of the service `name` that has no token.
pub(super) fn no_token(name: &str) -> KeyError {
    KeyError::Malformed {
        key: String::new(),
        detail: format!("{name} answered without a token"),
    }
}

/// The refusal in an answer of the service `name`, if it is one.
pub(super) fn accepted(answer: &Response, name: &str) -> Result<(), KeyError> {
    if answer.status == 200 {
        return Ok(());
    }
    let refused: Refused = serde_json::from_slice(&answer.body).unwrap_or_default();
    let word = match refused.error {
        Some(Reason::Word(word)) => word,
        Some(Reason::Object { message }) => message,
        None => format!("HTTP status {}", answer.status),
    };
    let words = match refused.error_description.as_str() {
        "" => word,
        description => format!("{word}: {description}"),
    };
    let detail = format!("login at {name}: {}", printable(&words));
    let key = String::new();
    Err(match answer.status {
        429 => KeyError::Throttled {
            key,
            detail,
            retry_after: retry_after(answer),
        },
        408 | 500..=599 => KeyError::Unavailable { key, detail },
        _ => KeyError::Denied { key, detail },
    })
}
