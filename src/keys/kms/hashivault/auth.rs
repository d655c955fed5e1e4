//! Tokens: where they come from and how long they last.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::uri::{Method, VaultUri};
use crate::keys::KeyError;
use crate::keys::kms::environment::Environment;
use crate::keys::kms::lease::Lease;
use crate::keys::kms::secret_text::SecretText;
use crate::sys::clock;

const SERVICE_ACCOUNT_TOKEN: &str = "/var/run/secrets/kubernetes.io/serviceaccount/token";

/// A token in use.
pub(super) struct Token {
    pub(super) text: Zeroizing<String>,
    /// Whether its time can be prolonged.
    pub(super) renewable: bool,
    since: u64,
    /// Seconds it lasts from then on; 0 if it does not end.
    seconds: u64,
}

impl Token {
    pub(super) fn new(text: Zeroizing<String>, seconds: u64, renewable: bool) -> Self {
        Self {
            text,
            renewable,
            since: clock::unix_seconds(),
            seconds,
        }
    }

    /// How long it lasts from now on; 0 if it does not end.
    pub(super) fn seconds_left(&self) -> u64 {
        (self.since + self.seconds).saturating_sub(clock::unix_seconds())
    }
}

impl Lease for Token {
    fn renewal(&self) -> Option<u64> {
        (self.seconds > 0).then(|| self.since + self.seconds * 2 / 3)
    }

    fn end(&self) -> Option<u64> {
        (self.seconds > 0).then(|| self.since + self.seconds)
    }

    fn is_same_as(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

/// How this process logs in.
pub(super) enum Login {
    /// With a token that someone else looks after.
    Token(TokenSource),
    /// At the method mounted there, with what these say.
    Method {
        mount: String,
        credentials: Credentials,
    },
}

/// Where a token is kept.
pub(super) enum TokenSource {
    Known(Zeroizing<String>),
    File(PathBuf),
}

/// What a login takes. Files are read at each login, as they change.
pub(super) enum Credentials {
    AppRole {
        role: Secret,
        secret: Option<Secret>,
    },
    Kubernetes {
        role: String,
        token: PathBuf,
    },
}

/// A value, or the file that has it.
pub(super) enum Secret {
    Known(Zeroizing<String>),
    File(PathBuf),
}

/// The body of a login.
#[derive(Serialize)]
#[serde(untagged)]
pub(super) enum LoginBody {
    AppRole {
        role_id: SecretText,
        #[serde(skip_serializing_if = "Option::is_none")]
        secret_id: Option<SecretText>,
    },
    Kubernetes {
        role: String,
        jwt: SecretText,
    },
}

/// What a login and a renewal give.
#[derive(Deserialize)]
pub(super) struct Granted {
    pub(super) auth: GrantedToken,
}

#[derive(Deserialize)]
pub(super) struct GrantedToken {
    pub(super) client_token: SecretText,
    #[serde(default)]
    pub(super) lease_duration: u64,
    #[serde(default)]
    pub(super) renewable: bool,
}

impl From<Granted> for Token {
    fn from(granted: Granted) -> Self {
        let auth = granted.auth;
        Self::new(
            auth.client_token.into_inner(),
            auth.lease_duration,
            auth.renewable,
        )
    }
}

/// What is known about a token that was made elsewhere.
#[derive(Deserialize)]
pub(super) struct LookedUp {
    pub(super) data: LookedUpToken,
}

#[derive(Deserialize)]
pub(super) struct LookedUpToken {
    #[serde(default)]
    ttl: u64,
    /// When it ends; nothing if it does not.
    #[serde(default)]
    expire_time: Option<String>,
    #[serde(default)]
    pub(super) renewable: bool,
}

impl LookedUpToken {
    /// How long it lasts; 0 if it does not end.
    pub(super) fn seconds(&self) -> u64 {
        match self.expire_time {
            // The last second is rounded down to none.
            Some(_) => self.ttl.max(1),
            None => self.ttl,
        }
    }
}

impl Login {
    /// What the URI and the environment say; the URI is asked first.
    ///
    /// # Errors
    /// `Configuration` if something is missing.
    pub(super) fn find(uri: &VaultUri, env: &Environment) -> Result<Self, KeyError> {
        let secret = |file: &Option<PathBuf>, variable: &str| match file {
            Some(path) => Some(Secret::File(path.clone())),
            None => env
                .get(variable)
                .map(|value| Secret::Known(Zeroizing::new(value.to_owned()))),
        };
        let role_id = secret(&uri.role_id_file, "VAULT_ROLE_ID");
        let method = uri.method.unwrap_or(match (&uri.role, &role_id) {
            (Some(_), _) => Method::Kubernetes,
            (None, Some(_)) if uri.token_file.is_none() => Method::AppRole,
            _ => Method::Token,
        });
        let mount = uri
            .method_mount
            .as_deref()
            .unwrap_or(method.name())
            .to_owned();
        let credentials = match method {
            Method::Token => return Self::token(uri, env),
            Method::AppRole => Credentials::AppRole {
                role: role_id
                    .ok_or_else(|| missing("a role id", "role-id-file", "VAULT_ROLE_ID"))?,
                secret: secret(&uri.secret_id_file, "VAULT_SECRET_ID"),
            },
            Method::Kubernetes => {
                let role = uri.role.clone();
                let token = uri.jwt_file.clone();
                Credentials::Kubernetes {
                    role: role.ok_or_else(|| KeyError::Configuration {
                        detail: "a login with a service account needs a role".into(),
                        hint: Some("add role=NAME to the key uri".into()),
                    })?,
                    token: token.unwrap_or_else(|| SERVICE_ACCOUNT_TOKEN.into()),
                }
            }
        };
        Ok(Self::Method { mount, credentials })
    }

    fn token(uri: &VaultUri, env: &Environment) -> Result<Self, KeyError> {
        let source = if let Some(path) = &uri.token_file {
            TokenSource::File(path.clone())
        } else if let Some(token) = env.first(&["BAO_TOKEN", "VAULT_TOKEN"]) {
            TokenSource::Known(Zeroizing::new(token.to_owned()))
        } else {
            let file = env.in_home(".vault-token").filter(|path| path.exists());
            TokenSource::File(file.ok_or_else(|| missing("a token", "token-file", "VAULT_TOKEN"))?)
        };
        Ok(Self::Token(source))
    }
}

impl TokenSource {
    pub(super) fn get(&self) -> Result<Zeroizing<String>, KeyError> {
        match self {
            Self::Known(token) => Ok(token.clone()),
            Self::File(path) => read(path),
        }
    }
}

impl Credentials {
    pub(super) fn body(&self) -> Result<LoginBody, KeyError> {
        Ok(match self {
            Self::AppRole { role, secret } => LoginBody::AppRole {
                role_id: role.get()?,
                secret_id: secret.as_ref().map(Secret::get).transpose()?,
            },
            Self::Kubernetes { role, token } => LoginBody::Kubernetes {
                role: role.clone(),
                jwt: SecretText::from(read(token)?),
            },
        })
    }
}

impl Secret {
    fn get(&self) -> Result<SecretText, KeyError> {
        match self {
            Self::Known(value) => Ok(SecretText::from(value.clone())),
            Self::File(path) => Ok(SecretText::from(read(path)?)),
        }
    }
}

fn missing(what: &str, parameter: &str, variable: &str) -> KeyError {
    KeyError::Configuration {
        detail: format!("the vault wants {what}, and there is none"),
        hint: Some(format!(
            "set {variable}, or add {parameter}=/path to the key uri; docs/KMS.md has the other ways"
        )),
    }
}

/// A file's only line.
fn read(path: &Path) -> Result<Zeroizing<String>, KeyError> {
    let problem = |problem: &str| KeyError::Configuration {
        detail: format!("{}: {problem}", path.display()),
        hint: None,
    };
    let text = std::fs::read_to_string(path).map(Zeroizing::new);
    let text = text.map_err(|error| problem(&error.to_string()))?;
    match text.trim() {
        "" => Err(problem("the file is empty")),
        line => Ok(Zeroizing::new(line.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::LookedUpToken;

    #[test]
    fn a_token_in_its_last_second_is_none_that_lasts() {
        let seconds = |text: &str| {
            let token: LookedUpToken = serde_json::from_str(text).unwrap();
            token.seconds()
        };
        let end = "2026-01-02T03:04:05.678Z";
        let ending = |ttl| format!(r#"{{"ttl":{ttl},"expire_time":"{end}"}}"#);
        assert_eq!(seconds(&ending(0)), 1);
        assert_eq!(seconds(&ending(7)), 7);
        assert_eq!(seconds(r#"{"ttl":0,"expire_time":null}"#), 0);
        assert_eq!(seconds("{}"), 0);
    }
}
