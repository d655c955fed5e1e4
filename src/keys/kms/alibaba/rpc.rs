//! One signed call of an OpenAPI service: the KMS, or STS for credentials.

use zeroize::Zeroizing;

use super::acs3::Unsigned;
use super::credentials::Credentials;
use super::fault::Fault;
use crate::keys::kms::form::encode_form;
use crate::keys::kms::http::{Http, HttpError, Request, Response};
use crate::keys::kms::retry::Deadline;
use reqwest::Method;

/// A service's address.
pub(super) struct Service {
    /// `http://host[:port]` or `https://host[:port]`.
    pub(super) origin: String,
    /// The version of the API.
    pub(super) version: &'static str,
}

/// What to call, and with what. Secrets go into the form: queries are logged.
pub(super) struct Call<'a> {
    pub(super) action: &'a str,
    pub(super) query: Vec<(&'static str, String)>,
    pub(super) form: Vec<(&'static str, Zeroizing<String>)>,
}

/// Why a call gave nothing.
pub(super) enum Failure {
    /// There is no answer.
    Http(HttpError),
    /// The answer is a refusal.
    Fault(Fault),
}

impl Service {
    /// The server's name and port, as it is signed.
    pub(super) fn host(&self) -> &str {
        let origin = self.origin.as_str();
        origin.split_once("://").map_or(origin, |(_, host)| host)
    }

    /// Makes one call, signed by `credentials`, at the server's time `now`.
    pub(super) fn call(
        &self,
        http: &Http,
        call: &Call<'_>,
        credentials: &Credentials,
        now: u64,
        deadline: Deadline,
    ) -> Result<Response, Failure> {
        let body = encode_form(&call.form);
        let unsigned = Unsigned {
            host: self.host(),
            action: call.action,
            version: self.version,
            query: &call.query,
            body: &body,
            now,
        };
        let signed = unsigned.sign(credentials);
        let headers = signed.headers.into_iter();
        let named = headers.map(|(name, value)| (name.into(), value));
        let request = Request {
            method: Method::POST,
            url: format!("{}/?{}", self.origin, signed.query),
            headers: named.collect(),
            body,
        };
        settle(http.send(request, deadline.one_try()))
    }
}

/// Tells answers from refusals.
pub(super) fn settle(answer: Result<Response, HttpError>) -> Result<Response, Failure> {
    let answer = answer.map_err(Failure::Http)?;
    match answer.status {
        200 => Ok(answer),
        _ => Err(Failure::Fault(Fault::from_json(&answer))),
    }
}
