//! The provider of Google Cloud KMS.

use std::time::Duration;

use data_encoding::BASE64;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::crc32c::crc32c;
use super::fault::{Asked, Fault};
use super::login::Login;
use super::uri::GcpUri;
use crate::crypto::DataKey;
use crate::keys::kms::bearer::{Api, Call};
use crate::keys::kms::environment::Environment;
use crate::keys::kms::http::{Http, Response, Trust};
use crate::keys::kms::retry::{DEFAULT_DEADLINE, Deadline};
use crate::keys::kms::secret_text::{SecretText, to_json};
use crate::keys::kms::server::Server;
use crate::keys::{KeyContext, KeyError, KeyProvider, WrappedKey};
use crate::types::KeyLen;

const DEFAULT_ORIGIN: &str = "https://cloudkms.googleapis.com";

/// A symmetric key of Google Cloud KMS.
pub struct GcpProvider {
    uri: GcpUri,
    shown: String,
    api: Api<Login>,
    time: Duration,
}

/// Checksums are 64-bit numbers, which in JSON are strings.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Encrypt {
    plaintext: SecretText,
    plaintext_crc32c: String,
    #[serde(flatten)]
    context: Bound,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Decrypt {
    ciphertext: String,
    ciphertext_crc32c: String,
    #[serde(flatten)]
    context: Bound,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Bound {
    additional_authenticated_data: String,
    additional_authenticated_data_crc32c: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Encrypted {
    name: String,
    ciphertext: String,
    ciphertext_crc32c: String,
    #[serde(default)]
    verified_plaintext_crc32c: bool,
    #[serde(default)]
    verified_additional_authenticated_data_crc32c: bool,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Decrypted {
    plaintext: SecretText,
    plaintext_crc32c: String,
}

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "camelCase")]
struct Described {
    purpose: String,
    primary: Version,
    rotation_period: String,
}

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "camelCase")]
struct Version {
    name: String,
    state: String,
    protection_level: String,
}

impl GcpProvider {
    /// Opens a key, with credentials from `env`. Nothing is sent before the
    /// first call.
    pub fn open(uri: &GcpUri, env: &Environment) -> Result<Self, KeyError> {
        let key = uri.identity();
        let server = uri.endpoint.as_ref();
        let origin = server.map_or_else(|| DEFAULT_ORIGIN.to_owned(), Server::origin);
        let trust = match server {
            Some(server) if !server.encrypted => Trust::Unencrypted,
            _ => Trust::of(uri.ca.as_deref())?,
        };
        let http = Http::new(trust).map_err(|error| error.about(&key, &origin))?;
        Ok(Self {
            shown: uri.to_string(),
            time: uri.deadline.unwrap_or(DEFAULT_DEADLINE),
            api: Api::new(http, origin, key, Login::new(env.clone())),
            uri: uri.clone(),
        })
    }

    fn deadline(&self) -> Deadline {
        Deadline::after(self.time)
    }

    fn path(&self, operation: &str) -> String {
        format!("/v1/{}{operation}", self.uri.resource)
    }

    /// The body of an answer.
    fn read<T: serde::de::DeserializeOwned>(
        &self,
        answer: &Response,
        asked: Asked,
    ) -> Result<T, KeyError> {
        if answer.status != 200 {
            return Err(Fault::of(answer).about(&self.api.key, asked));
        }
        serde_json::from_slice(&answer.body)
            .map_err(|_| self.api.malformed("it is not what was asked for"))
    }

    fn wrap_by(
        &self,
        context: &KeyContext,
        key: &DataKey,
        deadline: Deadline,
    ) -> Result<WrappedKey, KeyError> {
        let request = Encrypt {
            plaintext: Zeroizing::new(BASE64.encode(key.expose())).into(),
            plaintext_crc32c: crc32c(key.expose()).to_string(),
            context: bound(context),
        };
        let call = Call::post(self.path(":encrypt"), to_json(&request));
        self.api.call(&call, deadline, |answer| {
            let made: Encrypted = self.read(answer, Asked::Other)?;
            if !made.verified_plaintext_crc32c
                || !made.verified_additional_authenticated_data_crc32c
            {
                return Err(self.damaged("the service did not verify what it was sent"));
            }
            let ciphertext = BASE64
                .decode(made.ciphertext.as_bytes())
                .map_err(|_| self.api.malformed("the wrapped key is not base64"))?;
            self.verify(&ciphertext, &made.ciphertext_crc32c)?;
            let version = made.name.strip_prefix(&self.uri.resource);
            let version = version.and_then(|rest| rest.strip_prefix("/cryptoKeyVersions/"));
            let version = version.filter(|version| !version.is_empty());
            let version =
                version.ok_or_else(|| self.api.malformed("another key wrapped the data key"))?;
            Ok(WrappedKey {
                key_uri: self.api.key.clone(),
                key_version: version.to_owned(),
                algorithm: String::new(),
                iv: Vec::new(),
                ciphertext,
            })
        })
    }

    fn unwrap_by(
        &self,
        context: &KeyContext,
        wrapped: &WrappedKey,
        deadline: Deadline,
    ) -> Result<DataKey, KeyError> {
        if !self.recognises(wrapped) {
            return Err(KeyError::Rejected {
                key: self.api.key.clone(),
                detail: format!("another key wrapped it: {}", wrapped.key_uri),
            });
        }
        let request = Decrypt {
            ciphertext: BASE64.encode(&wrapped.ciphertext),
            ciphertext_crc32c: crc32c(&wrapped.ciphertext).to_string(),
            context: bound(context),
        };
        let call = Call::post(self.path(":decrypt"), to_json(&request));
        self.api.call(&call, deadline, |answer| {
            let opened: Decrypted = self.read(answer, Asked::Unwrap)?;
            let plaintext = BASE64
                .decode(opened.plaintext.expose().as_bytes())
                .map(Zeroizing::new)
                .map_err(|_| self.api.malformed("the data key is not base64"))?;
            self.verify(&plaintext, &opened.plaintext_crc32c)?;
            DataKey::from_bytes(&plaintext)
                .ok_or_else(|| self.api.malformed("the data key has an impossible length"))
        })
    }

    fn verify(&self, bytes: &[u8], checksum: &str) -> Result<(), KeyError> {
        match checksum.parse::<u32>() {
            Ok(sum) if crc32c(bytes) == sum => Ok(()),
            _ => Err(self.damaged("the checksum of the answer does not fit")),
        }
    }

    /// Tried again, as the documentation of the checksums says.
    fn damaged(&self, problem: &str) -> KeyError {
        KeyError::Unavailable {
            key: self.api.key.clone(),
            detail: problem.to_owned(),
        }
    }
}

fn bound(context: &KeyContext) -> Bound {
    let aad = context.aad();
    Bound {
        additional_authenticated_data: BASE64.encode(&aad),
        additional_authenticated_data_crc32c: crc32c(&aad).to_string(),
    }
}

impl KeyProvider for GcpProvider {
    fn uri(&self) -> &str {
        &self.shown
    }

    fn is_local(&self) -> bool {
        false
    }

    fn recognises(&self, wrapped: &WrappedKey) -> bool {
        GcpUri::parse(&wrapped.key_uri).is_ok_and(|theirs| self.uri.names_same_key(&theirs))
    }

    fn generate(
        &self,
        context: &KeyContext,
        len: KeyLen,
    ) -> Result<(DataKey, WrappedKey), KeyError> {
        let key = DataKey::random(len);
        let wrapped = self.wrap_by(context, &key, self.deadline())?;
        Ok((key, wrapped))
    }

    fn wrap(&self, context: &KeyContext, key: &DataKey) -> Result<WrappedKey, KeyError> {
        self.wrap_by(context, key, self.deadline())
    }

    fn unwrap(&self, context: &KeyContext, wrapped: &WrappedKey) -> Result<DataKey, KeyError> {
        self.unwrap_by(context, wrapped, self.deadline())
    }

    fn rewrap(&self, context: &KeyContext, wrapped: &WrappedKey) -> Result<WrappedKey, KeyError> {
        let deadline = self.deadline();
        let key = self.unwrap_by(context, wrapped, deadline)?;
        self.wrap_by(context, &key, deadline)
    }

    fn describe(&self) -> Result<Vec<(&'static str, String)>, KeyError> {
        let call = Call::get(self.path(""));
        let described = self.api.call(&call, self.deadline(), |answer| {
            self.read::<Described>(answer, Asked::Other)
        });
        let key = match described {
            Err(KeyError::Denied { .. }) => {
                let text = "the caller lacks cloudkms.cryptoKeys.get, which only this needs";
                return Ok(vec![("details", text.into())]);
            }
            result => result?,
        };
        let version = key.primary.name.rsplit('/').next().unwrap_or_default();
        let mut facts = vec![
            ("purpose", key.purpose),
            ("primary version", version.to_owned()),
            ("state", key.primary.state),
            ("protection", key.primary.protection_level),
            ("rotated every", key.rotation_period),
        ];
        facts.retain(|(_, value)| !value.is_empty());
        Ok(facts)
    }

    fn advice(&self, error: &KeyError) -> Option<String> {
        let key = &self.uri.resource;
        Some(match error {
            KeyError::Denied { detail, .. } if detail.starts_with("login") => {
                "see that the credential file is the right one and the key or login in it \
                 has not been revoked"
                    .into()
            }
            KeyError::Denied { .. } => format!(
                "grant roles/cloudkms.cryptoKeyEncrypterDecrypter on {key} to the caller, and \
                 enable the Cloud KMS API; Google also says so of keys that do not exist, so \
                 check the name"
            ),
            KeyError::NotFound { .. } => {
                format!("make the key, with the purpose encryption, or restore it: {key}")
            }
            KeyError::Disabled { .. } => format!(
                "enable the key version, or choose another primary version of {key}; enabling \
                 takes effect at once, disabling and choosing within three hours"
            ),
            KeyError::Malformed { detail, .. } if detail.contains("INVALID_ARGUMENT") => {
                "the key must have the purpose encryption (ENCRYPT_DECRYPT)".into()
            }
            KeyError::Throttled { .. } => {
                "the project's quota of cryptographic requests a minute is used up: raise it".into()
            }
            KeyError::Unavailable { .. } => format!("see that {} is reachable", self.api.origin),
            _ => return None,
        })
    }
}
