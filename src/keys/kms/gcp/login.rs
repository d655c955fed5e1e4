//! Getting access tokens from Google.

use std::time::Duration;

use reqwest::Method;
use serde::Deserialize;
use zeroize::Zeroizing;

use super::credentials::{Federated, ServiceAccount, Source};
use crate::keys::KeyError;
use crate::keys::kms::bearer::{
    AccessToken, TokenServices, TokenSource, accepted, granted, no_token,
};
use crate::keys::kms::environment::Environment;
use crate::keys::kms::http::{HttpError, Request};
use crate::keys::kms::retry::Deadline;
use crate::keys::kms::secret_text::SecretText;
use crate::keys::kms::time::{self, ClockOffset};
use crate::sys::clock;

const METADATA_HOST: &str = "metadata.google.internal";
const METADATA: &str = "the metadata server";
/// It is one hop away.
const METADATA_TIMEOUT: Duration = Duration::from_secs(2);
const GRANT: &str = "urn:ietf:params:oauth:grant-type:jwt-bearer";
const EXCHANGE: &str = "urn:ietf:params:oauth:grant-type:token-exchange";
const SCOPE: &str = "https://www.googleapis.com/auth/cloudkms";
/// To act as someone else.
const BROAD_SCOPE: &str = "https://www.googleapis.com/auth/cloud-platform";
const ACCESS_TOKEN: &str = "urn:ietf:params:oauth:token-type:access_token";

/// Logs in as whoever the environment says.
pub(super) struct Login {
    env: Environment,
    services: TokenServices,
    clock: ClockOffset,
}

/// What impersonation answers.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Impersonated {
    access_token: SecretText,
    expire_time: String,
}

impl Login {
    /// Nothing is searched before the first use.
    pub(super) fn new(env: Environment) -> Self {
        Self {
            env,
            services: TokenServices::default(),
            clock: ClockOffset::default(),
        }
    }

    fn ask(
        &self,
        source: &Source,
        scope: &str,
        deadline: Deadline,
    ) -> Result<AccessToken, KeyError> {
        match source {
            Source::ServiceAccount(account) => self.service_account(account, scope, deadline),
            Source::User {
                client_id,
                client_secret,
                refresh_token,
                token_url,
            } => {
                let form = form([
                    ("grant_type", "refresh_token"),
                    ("client_id", client_id),
                    ("client_secret", client_secret.expose()),
                    ("refresh_token", refresh_token.expose()),
                ]);
                let answer = self.services.post_form(token_url, &form, deadline)?;
                granted(&answer, token_url)
            }
            Source::Federated(federated) => self.exchange(federated, scope, deadline),
            Source::Impersonated { base, url } => {
                let base = self.ask(base, BROAD_SCOPE, deadline)?;
                self.impersonate(&base, url, deadline)
            }
            Source::Metadata => self.metadata(deadline),
        }
    }

    fn service_account(
        &self,
        account: &ServiceAccount,
        scope: &str,
        deadline: Deadline,
    ) -> Result<AccessToken, KeyError> {
        let url = &account.token_url;
        let attempt = || {
            let assertion = account.assertion(self.clock.now(), scope);
            let form = form([("grant_type", GRANT), ("assertion", &assertion)]);
            self.services.post_form(url, &form, deadline)
        };
        let mut answer = attempt()?;
        // An assertion is good for an hour, by the server's clock.
        if matches!(answer.status, 400 | 401)
            && let Some(date) = answer.date()
            && date.abs_diff(self.clock.now()) > 30
            && self.clock.correct(date)
        {
            answer = attempt()?;
        }
        granted(&answer, url)
    }

    fn exchange(
        &self,
        federated: &Federated,
        scope: &str,
        deadline: Deadline,
    ) -> Result<AccessToken, KeyError> {
        let token = federated.subject_token()?;
        let form = form([
            ("grant_type", EXCHANGE),
            ("audience", &federated.audience),
            ("scope", scope),
            ("requested_token_type", ACCESS_TOKEN),
            ("subject_token_type", &federated.token_type),
            ("subject_token", &token),
        ]);
        let url = &federated.token_url;
        let answer = self.services.post_form(url, &form, deadline)?;
        granted(&answer, url)
    }

    fn impersonate(
        &self,
        base: &AccessToken,
        url: &str,
        deadline: Deadline,
    ) -> Result<AccessToken, KeyError> {
        let mut request = Request::new(Method::POST, url.to_owned())
            .header("content-type", "application/json")
            .header("accept", "application/json");
        request
            .headers
            .push(("authorization".into(), base.header()));
        let body = serde_json::json!({ "scope": [SCOPE], "lifetime": "3600s" });
        request.body = Zeroizing::new(body.to_string().into_bytes());
        let answer = self.services.send(request, url, deadline.one_try())?;
        accepted(&answer, url)?;
        let made: Option<Impersonated> = serde_json::from_slice(&answer.body).ok();
        let token = made.and_then(|made| {
            let end = time::parse_iso8601(&made.expire_time)?;
            let seconds = end.saturating_sub(clock::unix_seconds());
            Some(AccessToken::new(made.access_token.into_inner(), seconds))
        });
        token.ok_or_else(|| no_token(url))
    }

    fn metadata(&self, deadline: Deadline) -> Result<AccessToken, KeyError> {
        let host = self.env.get("GCE_METADATA_HOST").unwrap_or(METADATA_HOST);
        let path = "computeMetadata/v1/instance/service-accounts/default/token";
        let request = Request::new(Method::GET, format!("http://{host}/{path}"))
            .header("metadata-flavor", "Google");
        let time = deadline.within(METADATA_TIMEOUT).left();
        let answer = self.services.try_send(request, time)?;
        let answer = answer.map_err(|error| match error {
            // Where there is none its name is not known.
            HttpError::Unreachable(_) => nobody(&format!("{METADATA}: {error}")),
            error => error.about("", METADATA),
        })?;
        if answer.header("metadata-flavor") != Some("Google") || answer.status == 404 {
            return Err(nobody("what answers there has no service account"));
        }
        granted(&answer, METADATA)
    }
}

impl TokenSource for Login {
    fn token(&self, deadline: Deadline) -> Result<AccessToken, KeyError> {
        // Searched again each time, as files change.
        self.ask(&Source::find(&self.env)?, SCOPE, deadline)
    }
}

/// There is no one to call as.
fn nobody(detail: &str) -> KeyError {
    KeyError::Configuration {
        detail: format!("there are no credentials for Google Cloud ({detail})"),
        hint: Some(
            "set GOOGLE_APPLICATION_CREDENTIALS to a credential file, run gcloud auth \
             application-default login, or give the machine a service account"
                .into(),
        ),
    }
}

fn form<const N: usize>(
    fields: [(&'static str, &str); N],
) -> [(&'static str, Zeroizing<String>); N] {
    fields.map(|(name, value)| (name, Zeroizing::new(value.to_owned())))
}
