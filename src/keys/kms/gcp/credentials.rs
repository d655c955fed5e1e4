//! Who calls: the credential files of Google Cloud, and where they are.

use std::io::Read;
use std::path::{Path, PathBuf};

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{RSA_PKCS1_SHA256, RsaKeyPair};
use data_encoding::{BASE64, BASE64URL_NOPAD};
use serde::Deserialize;
use zeroize::Zeroizing;

use crate::keys::KeyError;
use crate::keys::kms::environment::Environment;
use crate::keys::kms::secret_text::SecretText;
use crate::keys::kms::server::Server;

const TOKEN_URL: &str = "https://oauth2.googleapis.com/token";
const LARGEST_FILE: u64 = 64 * 1024;
const LONGEST_ASSERTION: u64 = 3600;

/// What tokens are asked for with.
pub(super) enum Source {
    /// A service account's key.
    ServiceAccount(ServiceAccount),
    /// A person who has logged in.
    User {
        client_id: String,
        client_secret: SecretText,
        refresh_token: SecretText,
        token_url: String,
    },
    /// Someone whom another identity provider knows: workload identity
    /// federation.
    Federated(Federated),
    /// A service account that these credentials may act as.
    Impersonated { base: Box<Source>, url: String },
    /// The service account of the machine.
    Metadata,
}

pub(super) struct ServiceAccount {
    pub(super) email: String,
    pub(super) token_url: String,
    key_id: String,
    pair: RsaKeyPair,
}

pub(super) struct Federated {
    pub(super) audience: String,
    pub(super) token_type: String,
    pub(super) token_url: String,
    file: PathBuf,
    /// The field with the token, if the file is JSON.
    field: Option<String>,
}

#[derive(Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum File {
    ServiceAccount {
        client_email: String,
        private_key: SecretText,
        private_key_id: Option<String>,
        token_uri: Option<String>,
    },
    AuthorizedUser {
        client_id: String,
        client_secret: SecretText,
        refresh_token: SecretText,
        token_uri: Option<String>,
    },
    ExternalAccount {
        audience: String,
        subject_token_type: String,
        token_url: String,
        service_account_impersonation_url: Option<String>,
        credential_source: CredentialSource,
    },
    ImpersonatedServiceAccount {
        service_account_impersonation_url: String,
        source_credentials: Box<File>,
    },
    #[serde(other)]
    Unknown,
}

#[derive(Deserialize)]
struct CredentialSource {
    file: Option<PathBuf>,
    #[serde(default)]
    format: Format,
}

#[derive(Deserialize, Default)]
struct Format {
    subject_token_field_name: Option<String>,
}

impl Source {
    /// What the environment says: the first that is set up.
    ///
    /// # Errors
    /// `Configuration` if a file cannot be used; going on might find another
    /// identity.
    pub(super) fn find(env: &Environment) -> Result<Self, KeyError> {
        let path = match env.get("GOOGLE_APPLICATION_CREDENTIALS") {
            Some(path) => Some(PathBuf::from(path)),
            None => {
                let folder = env.get("CLOUDSDK_CONFIG").map(PathBuf::from);
                folder
                    .or_else(|| env.in_home(".config/gcloud"))
                    .map(|folder| folder.join("application_default_credentials.json"))
                    .filter(|path| path.exists())
            }
        };
        let Some(path) = path else {
            return Ok(Self::Metadata);
        };
        let text = read(&path)?;
        let parsed = serde_json::from_slice(&text)
            .map_err(|error| format!("line {} is not as expected", error.line()))
            .and_then(Self::of_file);
        parsed.map_err(|problem| KeyError::Configuration {
            detail: format!(
                "the credential file {} cannot be used: {problem}",
                path.display()
            ),
            hint: Some("docs/KMS.md has the kinds of credentials".into()),
        })
    }

    fn of_file(file: File) -> Result<Self, String> {
        Ok(match file {
            File::ServiceAccount {
                client_email,
                private_key,
                private_key_id,
                token_uri,
            } => Self::ServiceAccount(ServiceAccount {
                email: client_email,
                token_url: token_url(token_uri)?,
                key_id: private_key_id.unwrap_or_default(),
                pair: key_pair(private_key.expose())?,
            }),
            File::AuthorizedUser {
                client_id,
                client_secret,
                refresh_token,
                token_uri,
            } => Self::User {
                client_id,
                client_secret,
                refresh_token,
                token_url: token_url(token_uri)?,
            },
            File::ExternalAccount {
                audience,
                subject_token_type,
                token_url: url,
                service_account_impersonation_url,
                credential_source,
            } => {
                let file = credential_source.file;
                let base = Self::Federated(Federated {
                    audience,
                    token_type: subject_token_type,
                    token_url: token_url(Some(url))?,
                    file: file.ok_or("its credential_source is not a file")?,
                    field: credential_source.format.subject_token_field_name,
                });
                match service_account_impersonation_url {
                    Some(url) => Self::impersonated(base, url)?,
                    None => base,
                }
            }
            File::ImpersonatedServiceAccount {
                service_account_impersonation_url,
                source_credentials,
            } => Self::impersonated(
                Self::of_file(*source_credentials)?,
                service_account_impersonation_url,
            )?,
            File::Unknown => {
                return Err("its type is none of service_account, authorized_user, \
                            external_account and impersonated_service_account"
                    .into());
            }
        })
    }

    fn impersonated(base: Self, url: String) -> Result<Self, String> {
        Ok(Self::Impersonated {
            base: Box::new(base),
            url: token_url(Some(url))?,
        })
    }
}

impl ServiceAccount {
    /// Says, signed, that this account wants a token for `scope` at the time
    /// `now`: a JWT.
    pub(super) fn assertion(&self, now: u64, scope: &str) -> Zeroizing<String> {
        let header = serde_json::json!({ "alg": "RS256", "typ": "JWT", "kid": self.key_id });
        let claims = serde_json::json!({
            "iss": self.email,
            "scope": scope,
            "aud": self.token_url,
            "iat": now,
            "exp": now + LONGEST_ASSERTION,
        });
        let encode = |part: &serde_json::Value| BASE64URL_NOPAD.encode(part.to_string().as_bytes());
        let mut jwt = Zeroizing::new(format!("{}.{}", encode(&header), encode(&claims)));
        let mut signature = vec![0; self.pair.public_modulus_len()];
        self.pair
            .sign(
                &RSA_PKCS1_SHA256,
                &SystemRandom::new(),
                jwt.as_bytes(),
                &mut signature,
            )
            .expect("an RSA key of at least 2048 bits signs any message");
        jwt.push('.');
        BASE64URL_NOPAD.encode_append(&signature, &mut jwt);
        jwt
    }
}

impl Federated {
    /// The other provider's token, read anew each time, as it changes.
    pub(super) fn subject_token(&self) -> Result<Zeroizing<String>, KeyError> {
        let text = read(&self.file)?;
        let token = match &self.field {
            None => std::str::from_utf8(&text)
                .ok()
                .map(|text| text.trim().to_owned()),
            Some(field) => {
                let fields: Option<std::collections::HashMap<String, serde_json::Value>> =
                    serde_json::from_slice(&text).ok();
                fields.and_then(|fields| Some(fields.get(field)?.as_str()?.to_owned()))
            }
        };
        let token = token.filter(|token| !token.is_empty());
        token
            .map(Zeroizing::new)
            .ok_or_else(|| KeyError::Configuration {
                detail: format!("there is no token in {}", self.file.display()),
                hint: None,
            })
    }
}

/// The URL, if secrets may be sent there.
fn token_url(given: Option<String>) -> Result<String, String> {
    let url = given.unwrap_or_else(|| TOKEN_URL.to_owned());
    match Server::of_url(&url) {
        Ok(_) => Ok(url),
        Err(problem) => Err(format!("its url {url:?} cannot be used: {problem}")),
    }
}

/// The key pair in PEM (PKCS#8).
fn key_pair(pem: &str) -> Result<RsaKeyPair, String> {
    let mut text = Zeroizing::new(String::with_capacity(pem.len()));
    let lines = pem.lines().map(str::trim);
    lines
        .filter(|line| !line.starts_with("-----"))
        .for_each(|line| text.push_str(line));
    let der = BASE64.decode(text.as_bytes()).map(Zeroizing::new);
    let der = der.map_err(|_| "its private_key is not PEM".to_owned())?;
    RsaKeyPair::from_pkcs8(&der)
        .map_err(|_| "its private_key is not an RSA key of at least 2048 bits".to_owned())
}

fn read(path: &Path) -> Result<Zeroizing<Vec<u8>>, KeyError> {
    let mut content = Zeroizing::new(Vec::with_capacity(LARGEST_FILE as usize));
    std::fs::File::open(path)
        .and_then(|file| file.take(LARGEST_FILE).read_to_end(&mut content))
        .map_err(|error| KeyError::Configuration {
            detail: format!("cannot read {}: {error}", path.display()),
            hint: None,
        })?;
    Ok(content)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(json: &str) -> Result<Source, String> {
        serde_json::from_str(json)
            .map_err(|error| error.to_string())
            .and_then(Source::of_file)
    }

    #[test]
    fn every_kind_of_file_is_understood() {
        let user = r#"{"type":"authorized_user","client_id":"c","client_secret":"s",
                       "refresh_token":"r","account":""}"#;
        match parse(user).ok().unwrap() {
            Source::User { token_url, .. } => assert_eq!(token_url, TOKEN_URL),
            _ => panic!("not a user"),
        }
        let external = r#"{"type":"external_account","audience":"//iam/x",
            "subject_token_type":"urn:ietf:params:oauth:token-type:jwt",
            "token_url":"https://sts.googleapis.com/v1/token",
            "credential_source":{"file":"/t","format":{"type":"json",
            "subject_token_field_name":"f"}},
            "service_account_impersonation_url":"https://iamcredentials.googleapis.com/x"}"#;
        match parse(external).ok().unwrap() {
            Source::Impersonated { base, .. } => assert!(matches!(*base, Source::Federated(_))),
            _ => panic!("not impersonated"),
        }
        let nested = format!(
            r#"{{"type":"impersonated_service_account","source_credentials":{user},
            "service_account_impersonation_url":"https://iamcredentials.googleapis.com/x"}}"#
        );
        assert!(matches!(parse(&nested), Ok(Source::Impersonated { .. })));
    }

    #[test]
    fn what_cannot_be_used_is_told() {
        let cases = [
            (r#"{"type":"gdch_service_account"}"#, "none of"),
            (
                r#"{"type":"external_account","audience":"a","subject_token_type":"t",
                "token_url":"https://h","credential_source":{"url":"http://x"}}"#,
                "not a file",
            ),
            (
                r#"{"type":"authorized_user","client_id":"c","client_secret":"s",
                "refresh_token":"r","token_uri":"http://h.example/token"}"#,
                "this machine only",
            ),
            (
                r#"{"type":"service_account","client_email":"e","private_key":"????"}"#,
                "not PEM",
            ),
            (
                r#"{"type":"service_account","client_email":"e","private_key":"AAAA"}"#,
                "not an RSA key",
            ),
        ];
        for (json, expected) in cases {
            let problem = parse(json).err().unwrap();
            assert!(problem.contains(expected), "{problem}");
        }
    }
}
