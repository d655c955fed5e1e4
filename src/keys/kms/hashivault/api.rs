//! Calls of the server: JSON over HTTP, with a token.

use std::sync::Arc;

use reqwest::Method;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::auth::{Granted, Login, LookedUp, Token};
use super::fault::{Asked, Fault};
use crate::keys::KeyError;
use crate::keys::kms::http::{Http, Request, Response};
use crate::keys::kms::lease::LeaseHolder;
use crate::keys::kms::retry::{self, Deadline};
use crate::keys::kms::secret_text::to_json;

/// A server, and who calls it.
pub(super) struct Api {
    pub(super) http: Http,
    /// `https://host[:port]`.
    pub(super) origin: String,
    pub(super) namespace: Option<String>,
    pub(super) login: Login,
    pub(super) tokens: LeaseHolder<Token>,
    /// The key that all calls are about, for errors.
    pub(super) key: String,
}

/// What to call: a path below `/v1/`, and a body unless it only asks.
pub(super) struct Call {
    path: String,
    body: Option<zeroize::Zeroizing<Vec<u8>>>,
}

impl Call {
    pub(super) fn post(path: String, body: &impl Serialize) -> Self {
        Self {
            path,
            body: Some(to_json(body)),
        }
    }

    pub(super) fn get(path: String) -> Self {
        Self { path, body: None }
    }
}

/// Nothing to send.
#[derive(Serialize)]
struct Nothing {}

impl Api {
    /// Makes a call; tries again what may succeed then, until the deadline.
    pub(super) fn call<T: DeserializeOwned>(
        &self,
        call: &Call,
        asked: Asked,
        deadline: Deadline,
    ) -> Result<T, KeyError> {
        let answer = self.try_call(call, deadline, |_| false)?;
        let answer = answer.map_err(|fault| fault.about(&self.key, asked))?;
        self.read(&answer)
    }

    /// As [`Self::call`], but a refusal is an answer too; one that may be
    /// another the next time only if it is `accept`ed. A token that is refused
    /// is replaced once.
    pub(super) fn try_call(
        &self,
        call: &Call,
        deadline: Deadline,
        accept: impl Fn(&Response) -> bool,
    ) -> Result<Result<Response, Fault>, KeyError> {
        let mut token_was_replaced = false;
        retry::until(deadline, || {
            loop {
                let token = self.current_token(deadline)?;
                let answer = self.send(call, Some(&token), deadline)?;
                if matches!(answer.status, 200 | 204 | 207) || accept(&answer) {
                    return Ok(Ok(answer));
                }
                let fault = Fault::of(&answer);
                if fault.is_denial() && !token_was_replaced {
                    token_was_replaced = true;
                    let another = || self.token(None, deadline);
                    if self.tokens.replace(&token, deadline, another)?.is_some() {
                        continue;
                    }
                }
                if fault.is_transient() {
                    return Err(fault.about(&self.key, Asked::Other));
                }
                return Ok(Err(fault));
            }
        })
    }

    pub(super) fn read<T: DeserializeOwned>(&self, answer: &Response) -> Result<T, KeyError> {
        serde_json::from_slice(&answer.body)
            .map_err(|_| self.malformed("it is not what was asked for"))
    }

    pub(super) fn malformed(&self, problem: &str) -> KeyError {
        KeyError::Malformed {
            key: self.key.clone(),
            detail: problem.to_owned(),
        }
    }

    fn send(
        &self,
        call: &Call,
        token: Option<&Token>,
        deadline: Deadline,
    ) -> Result<Response, KeyError> {
        let method = match call.body {
            Some(_) => Method::POST,
            None => Method::GET,
        };
        let url = format!("{}/v1/{}", self.origin, call.path);
        let mut request = Request::new(method, url).header("x-vault-request", "true");
        if let Some(namespace) = &self.namespace {
            request = request.header("x-vault-namespace", namespace.as_str());
        }
        if let Some(token) = token {
            request = request.header("x-vault-token", token.text.as_str());
        }
        if let Some(body) = &call.body {
            request = request.header("content-type", "application/json");
            request.body = body.clone();
        }
        let answer = self.http.send(request, deadline.one_try());
        answer.map_err(|error| error.about(&self.key, &self.origin))
    }

    /// The token to use now, renewed if that is due.
    pub(super) fn current_token(&self, deadline: Deadline) -> Result<Arc<Token>, KeyError> {
        self.tokens.get(deadline, |old| self.token(old, deadline))
    }

    /// Another token: the old one for longer if that can be had.
    fn token(&self, old: Option<&Token>, deadline: Deadline) -> Result<Token, KeyError> {
        if let Some(old) = old.filter(|token| token.renewable)
            && let Some(token) = self.renew(old, deadline)?
        {
            return Ok(token);
        }
        match &self.login {
            Login::Token(source) => {
                let token = Token::new(source.get()?, 0, false);
                Ok(self.look_up(token, deadline))
            }
            Login::Method { mount, credentials } => {
                let body = credentials.body()?;
                let call = Call::post(format!("auth/{mount}/login"), &body);
                let answer = self.send(&call, None, deadline)?;
                match answer.status {
                    200 => Ok(self.read::<Granted>(&answer)?.into()),
                    _ => Err(login_refused(Fault::of(&answer), &self.key)),
                }
            }
        }
    }

    /// The same token with more time; `None` if it gets no more.
    fn renew(&self, old: &Token, deadline: Deadline) -> Result<Option<Token>, KeyError> {
        let call = Call::post("auth/token/renew-self".to_owned(), &Nothing {});
        let answer = self.send(&call, Some(old), deadline)?;
        if answer.status != 200 {
            return Ok(None);
        }
        let token = Token::from(self.read::<Granted>(&answer)?);
        // Near the end of all its time it is renewed by less and less.
        Ok((token.seconds_left() > old.seconds_left()).then_some(token))
    }

    /// The token, with what the server knows of its time; without, if the
    /// server does not say.
    fn look_up(&self, token: Token, deadline: Deadline) -> Token {
        let call = Call::get("auth/token/lookup-self".to_owned());
        let answer = self.send(&call, Some(&token), deadline).ok();
        let known = answer
            .filter(|answer| answer.status == 200)
            .and_then(|answer| self.read::<LookedUp>(&answer).ok());
        match known {
            Some(LookedUp { data }) => Token::new(token.text, data.seconds(), data.renewable),
            None => token,
        }
    }
}

/// A login is refused as 400 with some methods, and it is always the caller
/// who is.
fn login_refused(fault: Fault, key: &str) -> KeyError {
    match fault.about(key, Asked::Other) {
        KeyError::Malformed { key, detail }
        | KeyError::NotFound { key, detail }
        | KeyError::Denied { key, detail } => KeyError::Denied {
            key,
            detail: format!("login: {detail}"),
        },
        error => error,
    }
}
