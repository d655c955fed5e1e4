//! Access keys that a service gives out.

use std::time::Duration;

use reqwest::Method;
use serde::Deserialize;
use zeroize::Zeroizing;

use super::search::missing;
use super::{Credentials, Role, Source, external, files};
use crate::keys::KeyError;
use crate::keys::kms::alibaba::fault::{Asked, Remedy};
use crate::keys::kms::alibaba::rpc::{self, Call, Failure, Service};
use crate::keys::kms::environment::Environment;
use crate::keys::kms::form::encode_form;
use crate::keys::kms::http::{Clients, HttpError, Request, Response};
use crate::keys::kms::retry::Deadline;
use crate::keys::kms::secret_text::SecretText;
use crate::keys::kms::time::{self, ClockOffset};
use crate::keys::kms::uri::Endpoint;
use crate::sys::clock;

const METADATA: &str = "http://100.100.100.200";
/// It is one hop away; on a machine that is no ECS instance, no one answers.
const METADATA_TIMEOUT: Duration = Duration::from_secs(1);
const SESSION_SECONDS: u64 = 3600;

/// Talks to the services that give out access keys.
#[derive(Default)]
pub(super) struct Remote {
    clients: Clients,
    sts_clock: ClockOffset,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Issued {
    access_key_id: String,
    access_key_secret: SecretText,
    security_token: Option<SecretText>,
    expiration: Option<String>,
}

#[derive(Deserialize)]
struct Envelope {
    #[serde(alias = "Credentials", alias = "CloudCredential")]
    issued: Issued,
}

impl From<Issued> for Credentials {
    fn from(issued: Issued) -> Self {
        Self {
            id: issued.access_key_id,
            secret: issued.access_key_secret.into_inner(),
            token: issued.security_token.map(SecretText::into_inner),
            expires: issued
                .expiration
                .and_then(|text| time::parse_iso8601(&text)),
        }
    }
}

impl Remote {
    /// Gets an access key from `source`.
    pub(super) fn fetch(
        &self,
        source: &Source,
        env: &Environment,
        deadline: Deadline,
    ) -> Result<Credentials, KeyError> {
        match source {
            Source::Known(credentials) => Ok(credentials.clone()),
            Source::Role(base, role) => {
                let base = self.fetch(base, env, deadline)?;
                self.assume(&base, role, env, deadline)
            }
            Source::Oidc {
                provider_arn,
                token_file,
                role,
            } => self.assume_with_oidc(provider_arn, token_file, role, env, deadline),
            Source::Metadata { role, otherwise } => {
                match (self.metadata(role.as_deref(), env, deadline), otherwise) {
                    (Err(_), Some(uri)) => self.uri(uri, deadline),
                    (result, _) => result,
                }
            }
            Source::Uri(uri) => self.uri(uri, deadline),
            Source::Command(command) => external::run(command, deadline),
            Source::CloudSso {
                url,
                account,
                access,
                token,
            } => {
                let origin = url.split_once("://").and_then(|(scheme, rest)| {
                    Some(format!("{scheme}://{}", rest.split('/').next()?))
                });
                let origin = origin.unwrap_or_default();
                let body = serde_json::json!({
                    "AccountId": account,
                    "AccessConfigurationId": access,
                });
                let request = bearer(
                    format!("{origin}/cloud-credentials"),
                    token,
                    body.to_string(),
                );
                self.login_service("CloudSSO", request, deadline)
            }
            Source::OAuth { url, token } => {
                let request = bearer(format!("{url}/v1/exchange"), token, String::new());
                self.login_service("the OAuth server", request, deadline)
            }
        }
    }

    fn assume(
        &self,
        base: &Credentials,
        role: &Role,
        env: &Environment,
        deadline: Deadline,
    ) -> Result<Credentials, KeyError> {
        let mut query = role_query(role);
        query.extend(role.external_id.clone().map(|id| ("ExternalId", id)));
        let call = Call {
            action: "AssumeRole",
            query,
            form: Vec::new(),
        };
        let sts = sts(role, env)?;
        let http = self.clients.of(&sts.origin)?;
        let attempt = || sts.call(http, &call, base, self.sts_clock.now(), deadline);
        let answer = match attempt() {
            Err(Failure::Fault(fault)) if fault.remedy() == Remedy::Clock => {
                fault.server_time.map(|time| self.sts_clock.correct(time));
                attempt()
            }
            result => result,
        };
        issued(answer, &format!("STS (role {})", role.arn))
    }

    fn assume_with_oidc(
        &self,
        provider_arn: &str,
        token_file: &std::path::Path,
        role: &Role,
        env: &Environment,
        deadline: Deadline,
    ) -> Result<Credentials, KeyError> {
        let token = files::read(token_file)?.ok_or_else(|| KeyError::Configuration {
            detail: format!("the token file {} does not exist", token_file.display()),
            hint: None,
        })?;
        let mut form: Vec<_> = role_query(role)
            .into_iter()
            .map(|(name, value)| (name, Zeroizing::new(value)))
            .collect();
        let fixed = [
            ("Action", "AssumeRoleWithOIDC".to_owned()),
            ("Format", "JSON".to_owned()),
            ("Version", STS_VERSION.to_owned()),
            ("Timestamp", time::iso8601(self.sts_clock.now())),
            ("OIDCProviderArn", provider_arn.to_owned()),
            ("OIDCToken", token.trim().to_owned()),
        ];
        form.extend(fixed.map(|(name, value)| (name, Zeroizing::new(value))));
        let sts = sts(role, env)?;
        let mut request = Request::new(Method::POST, format!("{}/", sts.origin))
            .header("content-type", "application/x-www-form-urlencoded")
            .header("accept", "application/json");
        request.body = encode_form(&form);
        let http = self.clients.of(&sts.origin)?;
        let answer = rpc::settle(http.send(request, deadline.one_try()));
        issued(answer, &format!("STS (role {})", role.arn))
    }

    fn metadata(
        &self,
        role: Option<&str>,
        env: &Environment,
        deadline: Deadline,
    ) -> Result<Credentials, KeyError> {
        let origin = env
            .get("KMSFS_ALIBABA_METADATA_ENDPOINT")
            .unwrap_or(METADATA);
        let http = self.clients.of(origin)?;
        let ask = |request: Request| {
            let time = deadline.within(METADATA_TIMEOUT).left();
            http.send(request, time).ok().filter(|a| a.status == 200)
        };
        let url = format!("{origin}/latest/api/token");
        let request = Request::new(Method::PUT, url)
            .header("x-aliyun-ecs-metadata-token-ttl-seconds", "21600");
        let token = ask(request).and_then(text);
        if token.is_none() && env.is_true("ALIBABA_CLOUD_IMDSV1_DISABLED") {
            return Err(missing());
        }
        let get = |path: &str| {
            let url = format!("{origin}/latest/meta-data/ram/security-credentials/{path}");
            let request = Request::new(Method::GET, url);
            ask(match &token {
                Some(token) => request.header("x-aliyun-ecs-metadata-token", token.as_str()),
                None => request,
            })
        };
        let named = match role {
            Some(role) => Some(Zeroizing::new(role.to_owned())),
            None => get("").and_then(text),
        };
        let answer = named.and_then(|role| get(role.trim()));
        let answer = answer.ok_or_else(missing)?;
        issued(Ok(answer), "the ECS metadata service")
    }

    fn uri(&self, uri: &str, deadline: Deadline) -> Result<Credentials, KeyError> {
        let http = self.clients.of(uri)?;
        let request = Request::new(Method::GET, uri.to_owned());
        let answer = rpc::settle(http.send(request, deadline.one_try()));
        issued(answer, "ALIBABA_CLOUD_CREDENTIALS_URI")
    }

    fn login_service(
        &self,
        name: &str,
        request: Request,
        deadline: Deadline,
    ) -> Result<Credentials, KeyError> {
        let http = self.clients.of(&request.url)?;
        let answer = rpc::settle(http.send(request, deadline.one_try()));
        issued(answer, name).map_err(|error| match error {
            KeyError::Denied { detail, .. } => KeyError::Configuration {
                detail: format!("{name} wants a new login ({detail})"),
                hint: Some("log in again with aliyun configure".into()),
            },
            error => error,
        })
    }
}

const STS_VERSION: &str = "2015-04-01";

fn sts(role: &Role, env: &Environment) -> Result<Service, KeyError> {
    let origin = match env.get("KMSFS_ALIBABA_STS_ENDPOINT") {
        Some(origin) => {
            let plain = origin.strip_prefix("http://").map(Endpoint::parse);
            if plain.is_some_and(|end| end.is_none_or(|end| !end.is_loopback())) {
                return Err(KeyError::Configuration {
                    detail: "KMSFS_ALIBABA_STS_ENDPOINT is unencrypted and not on this machine"
                        .into(),
                    hint: None,
                });
            }
            origin.trim_end_matches('/').to_owned()
        }
        None => {
            let vpc = role.vpc;
            let vpc = vpc.unwrap_or_else(|| env.is_true("ALIBABA_CLOUD_VPC_ENDPOINT_ENABLED"));
            let service = if vpc { "sts-vpc" } else { "sts" };
            let region = role.region.as_deref();
            match region.or_else(|| env.get("ALIBABA_CLOUD_STS_REGION")) {
                Some(region) => format!("https://{service}.{region}.aliyuncs.com"),
                None => "https://sts.aliyuncs.com".to_owned(),
            }
        }
    };
    Ok(Service {
        origin,
        version: STS_VERSION,
    })
}

fn role_query(role: &Role) -> Vec<(&'static str, String)> {
    let session = || format!("kmsfs-{}", clock::unix_seconds());
    let seconds = role.seconds.unwrap_or(SESSION_SECONDS);
    let mut query = vec![
        ("RoleArn", role.arn.clone()),
        (
            "RoleSessionName",
            role.session.clone().unwrap_or_else(session),
        ),
        ("DurationSeconds", seconds.to_string()),
    ];
    query.extend(role.policy.clone().map(|policy| ("Policy", policy)));
    query
}

fn bearer(url: String, token: &str, body: String) -> Request {
    let mut request = Request::new(Method::POST, url)
        .header("accept", "application/json")
        .header("content-type", "application/json")
        .header("authorization", format!("Bearer {token}"));
    request.body = Zeroizing::new(body.into_bytes());
    request
}

fn text(answer: Response) -> Option<Zeroizing<String>> {
    let text = std::str::from_utf8(&answer.body).ok()?;
    Some(Zeroizing::new(text.to_owned()))
}

/// The access key in an answer of `name`.
fn issued(answer: Result<Response, Failure>, name: &str) -> Result<Credentials, KeyError> {
    let about = |error: HttpError| error.about("", name);
    let answer = answer.map_err(|failure| match failure {
        Failure::Http(error) => about(error),
        Failure::Fault(fault) => match fault.about("", Asked::Wrap) {
            KeyError::NotFound { detail, key } | KeyError::Malformed { detail, key } => {
                KeyError::Denied { detail, key }
            }
            error => error,
        },
    })?;
    let bare = serde_json::from_slice::<Issued>(&answer.body);
    let issued =
        bare.or_else(|_| serde_json::from_slice::<Envelope>(&answer.body).map(|e| e.issued));
    issued.map(Into::into).map_err(|_| KeyError::Malformed {
        key: String::new(),
        detail: format!("{name} answered without an access key"),
    })
}
