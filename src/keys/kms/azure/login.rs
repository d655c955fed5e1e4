//! Getting access tokens from Microsoft Entra, as whoever the environment says.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

use reqwest::Method;
use zeroize::Zeroizing;

use super::challenge::Challenge;
use crate::keys::KeyError;
use crate::keys::kms::bearer::{AccessToken, TokenServices, TokenSource, granted};
use crate::keys::kms::environment::Environment;
use crate::keys::kms::http::{Http, HttpError, Request, Trust};
use crate::keys::kms::retry::Deadline;
use crate::keys::kms::server::Server;
use crate::keys::kms::uri::percent_encode;

/// Who gives tokens in Azure's clouds. A client secret goes nowhere else, unless
/// the environment says so.
const AUTHORITIES: [&str; 6] = [
    "https://login.microsoftonline.com",
    "https://login.microsoft.com",
    "https://login.windows.net",
    "https://login.microsoftonline.us",
    "https://login.chinacloudapi.cn",
    "https://login.partner.microsoftonline.cn",
];
const METADATA: &str = "http://169.254.169.254";
/// It is one hop away; on a machine outside of Azure, no one answers.
const METADATA_TIMEOUT: Duration = Duration::from_secs(2);
const ASSERTION_TYPE: &str = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer";
const LARGEST_FILE: u64 = 64 * 1024;

/// Logs in for one vault.
pub(super) struct Login {
    env: Environment,
    services: TokenServices,
    /// Asks the vault what tokens it takes.
    vault: Http,
    origin: String,
    host: String,
    /// A path that wants a token.
    path: String,
}

/// What tokens are asked for with.
enum Source {
    /// An application's secret.
    Secret {
        client: String,
        secret: Zeroizing<String>,
    },
    /// Someone whom another identity provider knows: the token file of a
    /// Kubernetes service account, mostly.
    Federated { client: String, file: PathBuf },
    /// The identity of an App Service or container app.
    AppService { endpoint: String, header: String },
    /// The identity of the machine.
    Metadata,
}

impl Login {
    /// For the vault at `origin`, whose name is `host`. Nothing is sent before
    /// the first use.
    pub(super) fn new(
        env: Environment,
        trust: Trust,
        origin: String,
        host: String,
        path: String,
    ) -> Result<Self, HttpError> {
        Ok(Self {
            env,
            services: TokenServices::default(),
            vault: Http::new(trust)?,
            origin,
            host,
            path,
        })
    }

    /// Asked each time: tokens last for an hour, and a vault can move to
    /// another tenant.
    fn challenge(&self, deadline: Deadline) -> Result<Challenge, KeyError> {
        let url = format!("{}{}", self.origin, self.path);
        let request = Request::new(Method::POST, url).header("content-type", "application/json");
        let answer = self.vault.send(request, deadline.one_try());
        let answer = answer.map_err(|error| error.about("", &self.origin))?;
        let key = String::new();
        match (answer.status, answer.header("www-authenticate")) {
            (401, Some(header)) => {
                Challenge::parse(header, &self.host).map_err(|problem| KeyError::Malformed {
                    key,
                    detail: format!("the vault's challenge cannot be answered: {problem}"),
                })
            }
            (429 | 500..=599, _) => Err(KeyError::Unavailable {
                key,
                detail: format!("{}: HTTP status {}", self.origin, answer.status),
            }),
            (status, _) => Err(KeyError::Malformed {
                key,
                detail: format!("the vault asked for no token, with HTTP status {status}"),
            }),
        }
    }

    fn source(&self) -> Result<Source, KeyError> {
        let env = &self.env;
        let client = env.get("AZURE_CLIENT_ID").map(str::to_owned);
        let secret = match env.get("AZURE_CLIENT_SECRET") {
            Some(secret) => Some(Zeroizing::new(secret.to_owned())),
            None => {
                let file = env.get("KMSFS_AZURE_CLIENT_SECRET_FILE");
                file.map(|path| read(Path::new(path))).transpose()?
            }
        };
        let file = env.get("AZURE_FEDERATED_TOKEN_FILE").map(PathBuf::from);
        let app = env.get("IDENTITY_ENDPOINT").zip(env.get("IDENTITY_HEADER"));
        Ok(match (client, secret, file, app) {
            (Some(client), Some(secret), ..) => Source::Secret { client, secret },
            (Some(client), None, Some(file), _) => Source::Federated { client, file },
            (None, Some(_), ..) | (None, _, Some(_), _) => {
                return Err(KeyError::Configuration {
                    detail: "AZURE_CLIENT_ID is not set, but a secret or token for it is".into(),
                    hint: None,
                });
            }
            (_, _, _, Some((endpoint, header))) => Source::AppService {
                endpoint: endpoint.to_owned(),
                header: header.to_owned(),
            },
            _ => Source::Metadata,
        })
    }

    fn ask(
        &self,
        source: &Source,
        challenge: &Challenge,
        deadline: Deadline,
    ) -> Result<AccessToken, KeyError> {
        match source {
            Source::Secret { client, secret } => {
                let proof = [("client_secret", secret.clone())];
                self.grant(client, &proof, challenge, deadline)
            }
            Source::Federated { client, file } => {
                let assertion_type = Zeroizing::new(ASSERTION_TYPE.to_owned());
                let proof = [
                    ("client_assertion_type", assertion_type),
                    ("client_assertion", read(file)?),
                ];
                self.grant(client, &proof, challenge, deadline)
            }
            Source::AppService { endpoint, header } => {
                let query = self.query("2019-08-01", challenge);
                let request = Request::new(Method::GET, format!("{endpoint}?{query}"))
                    .header("x-identity-header", header.as_str());
                let name = "the identity endpoint";
                let answer = self.services.send(request, name, deadline.one_try())?;
                granted(&answer, name)
            }
            Source::Metadata => self.metadata(challenge, deadline),
        }
    }

    /// The grant of client credentials.
    fn grant(
        &self,
        client: &str,
        proof: &[(&'static str, Zeroizing<String>)],
        challenge: &Challenge,
        deadline: Deadline,
    ) -> Result<AccessToken, KeyError> {
        let authority = match self.env.get("AZURE_AUTHORITY_HOST") {
            Some(host) => {
                let url = match host.contains("://") {
                    true => host.to_owned(),
                    false => format!("https://{host}"),
                };
                let server = Server::of_url(&url).map_err(|problem| KeyError::Configuration {
                    detail: format!("AZURE_AUTHORITY_HOST cannot be used: {problem}"),
                    hint: None,
                })?;
                server.origin()
            }
            None if AUTHORITIES.contains(&challenge.authority.as_str()) => {
                challenge.authority.clone()
            }
            None => {
                let named = &challenge.authority;
                return Err(KeyError::Configuration {
                    detail: format!("the vault wants tokens of {named}, which is unknown"),
                    hint: Some("set AZURE_AUTHORITY_HOST if that is right".into()),
                });
            }
        };
        let tenant = self.env.get("AZURE_TENANT_ID").unwrap_or(&challenge.tenant);
        let plain = |text: &str| Zeroizing::new(text.to_owned());
        let mut form = vec![
            ("grant_type", plain("client_credentials")),
            ("client_id", plain(client)),
            ("scope", plain(&format!("{}/.default", challenge.resource))),
        ];
        form.extend_from_slice(proof);
        let tenant = percent_encode(tenant, b"");
        let url = format!("{authority}/{tenant}/oauth2/v2.0/token");
        let answer = self.services.post_form(&url, &form, deadline)?;
        granted(&answer, &authority)
    }

    fn metadata(&self, challenge: &Challenge, deadline: Deadline) -> Result<AccessToken, KeyError> {
        let name = "the metadata service";
        let host = self.env.get("AZURE_POD_IDENTITY_AUTHORITY_HOST");
        let origin = host.unwrap_or(METADATA).trim_end_matches('/');
        let query = self.query("2018-02-01", challenge);
        let url = format!("{origin}/metadata/identity/oauth2/token?{query}");
        let request = Request::new(Method::GET, url).header("metadata", "true");
        let time = deadline.within(METADATA_TIMEOUT).left();
        let answer = self.services.try_send(request, time)?;
        let answer = answer.map_err(|error| match error {
            HttpError::Unreachable(_) => nobody(&format!("{name}: {error}")),
            error => error.about("", name),
        })?;
        match answer.status {
            // It says so while an identity is being given to the machine.
            404 | 410 => Err(KeyError::Unavailable {
                key: String::new(),
                detail: format!("{name} is not ready"),
            }),
            400 if answer.body.windows(18).any(|w| w == b"Identity not found") => {
                Err(nobody("the machine has no such identity"))
            }
            _ => granted(&answer, name),
        }
    }

    fn query(&self, version: &str, challenge: &Challenge) -> String {
        let resource = percent_encode(&challenge.resource, b"");
        let client = self.env.get("AZURE_CLIENT_ID");
        let client = client.map(|id| format!("&client_id={}", percent_encode(id, b"")));
        let client = client.unwrap_or_default();
        format!("api-version={version}&resource={resource}{client}")
    }
}

impl TokenSource for Login {
    fn token(&self, deadline: Deadline) -> Result<AccessToken, KeyError> {
        // Searched again each time, as files change.
        let source = self.source()?;
        let challenge = self.challenge(deadline)?;
        self.ask(&source, &challenge, deadline)
    }
}

/// There is no one to call as.
fn nobody(detail: &str) -> KeyError {
    KeyError::Configuration {
        detail: format!("there are no credentials for Azure ({detail})"),
        hint: Some(
            "set AZURE_TENANT_ID, AZURE_CLIENT_ID and AZURE_CLIENT_SECRET, or give the machine \
             a managed identity; docs/KMS.md has the other ways"
                .into(),
        ),
    }
}

/// A file's only line.
fn read(path: &Path) -> Result<Zeroizing<String>, KeyError> {
    let problem = |problem: &str| KeyError::Configuration {
        detail: format!("{}: {problem}", path.display()),
        hint: None,
    };
    let mut text = Zeroizing::new(String::with_capacity(LARGEST_FILE as usize));
    std::fs::File::open(path)
        .and_then(|file| file.take(LARGEST_FILE).read_to_string(&mut text))
        .map_err(|error| problem(&error.to_string()))?;
    match text.trim() {
        "" => Err(problem("the file is empty")),
        line => Ok(Zeroizing::new(line.to_owned())),
    }
}
