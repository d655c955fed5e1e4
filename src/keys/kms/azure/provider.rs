//! The provider of Azure Key Vault and Managed HSM.

use std::time::{Duration, Instant};

use data_encoding::BASE64URL_NOPAD;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::fault::{Asked, Fault, note_id};
use super::login::Login;
use super::uri::{Algorithm, AzureUri, is_name};
use super::verified::{DEFAULT_VALIDITY, Verified};
use crate::crypto::DataKey;
use crate::keys::kms::bearer::{Api, Call};
use crate::keys::kms::bound;
use crate::keys::kms::environment::Environment;
use crate::keys::kms::http::{Http, HttpError, Response, Trust};
use crate::keys::kms::retry::{DEFAULT_DEADLINE, Deadline};
use crate::keys::kms::secret_text::{SecretText, to_json};
use crate::keys::{KeyContext, KeyError, KeyProvider, WrappedKey};
use crate::types::KeyLen;

const VERSION: &str = "7.4";

/// A key of Azure Key Vault or of a Managed HSM.
pub struct AzureProvider {
    uri: AzureUri,
    shown: String,
    api: Api<Login>,
    time: Duration,
    verified: Verified,
}

#[derive(Serialize)]
struct Operation<'a> {
    alg: &'a str,
    value: SecretText,
}

#[derive(Deserialize)]
struct Outcome {
    kid: String,
    value: SecretText,
}

#[derive(Deserialize)]
struct Described {
    key: JsonWebKey,
    #[serde(default)]
    attributes: Attributes,
}

#[derive(Deserialize)]
struct JsonWebKey {
    kid: String,
    kty: String,
    #[serde(default)]
    key_ops: Vec<String>,
}

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "camelCase")]
struct Attributes {
    enabled: bool,
    recovery_level: String,
}

impl AzureProvider {
    /// Opens a key, with credentials from `env`. Nothing is sent before the
    /// first call.
    pub fn open(uri: &AzureUri, env: &Environment) -> Result<Self, KeyError> {
        let key = uri.identity();
        let origin = format!("https://{}", uri.endpoint);
        let unusable = |error: HttpError| error.about(&key, &origin);
        let trust = || Trust::of(uri.ca.as_deref());
        let host = uri.endpoint.host.clone();
        let path = path(uri, None, "/wrapkey");
        let login = Login::new(env.clone(), trust()?, origin.clone(), host, path);
        let http = Http::new(trust()?).map_err(unusable)?;
        let login = login.map_err(unusable)?;
        Ok(Self {
            shown: uri.to_string(),
            time: uri.deadline.unwrap_or(DEFAULT_DEADLINE),
            verified: Verified::new(uri.verify.unwrap_or(DEFAULT_VALIDITY)),
            api: Api::new(http, origin, key, login),
            uri: uri.clone(),
        })
    }

    fn deadline(&self) -> Deadline {
        Deadline::after(self.time)
    }

    /// The body of an answer.
    fn read<T: serde::de::DeserializeOwned>(
        &self,
        answer: &Response,
        asked: Asked,
    ) -> Result<T, KeyError> {
        note_id(answer);
        if answer.status != 200 {
            return Err(Fault::of(answer).about(&self.api.key, asked));
        }
        serde_json::from_slice(&answer.body)
            .map_err(|_| self.api.malformed("it is not what was asked for"))
    }

    /// Wraps or unwraps `value`; gives the version that did and what came out.
    fn operate(
        &self,
        version: Option<&str>,
        operation: &str,
        algorithm: Algorithm,
        value: &[u8],
        deadline: Deadline,
    ) -> Result<(String, Zeroizing<Vec<u8>>), KeyError> {
        let asked = match operation {
            "unwrapkey" => Asked::Unwrap,
            _ => Asked::Other,
        };
        let request = Operation {
            alg: algorithm.name(),
            value: Zeroizing::new(BASE64URL_NOPAD.encode(value)).into(),
        };
        let path = path(&self.uri, version, &format!("/{operation}"));
        let call = Call::post(path, to_json(&request));
        self.api.call(&call, deadline, |answer| {
            let outcome: Outcome = self.read(answer, asked)?;
            let value = BASE64URL_NOPAD.decode(outcome.value.expose().as_bytes());
            let value = value.map(Zeroizing::new);
            let value = value.map_err(|_| self.api.malformed("the value is not base64url"))?;
            let used = self.version(&outcome.kid)?;
            if version.is_some_and(|wanted| wanted != used) {
                return Err(self.api.malformed("another key version answered"));
            }
            Ok((used, value))
        })
    }

    /// The version in `https://VAULT/keys/KEY/VERSION`.
    fn version(&self, kid: &str) -> Result<String, KeyError> {
        let mut parts = kid.rsplit('/');
        let (version, key, keys) = (parts.next(), parts.next(), parts.next());
        let version = version.filter(|version| is_name(version));
        match (version, key, keys) {
            // Names of keys do not depend on case.
            (Some(version), Some(key), Some("keys")) if key.eq_ignore_ascii_case(&self.uri.key) => {
                Ok(version.to_owned())
            }
            _ => Err(self.api.malformed("another key answered")),
        }
    }

    fn wrap_by(
        &self,
        context: &KeyContext,
        key: &DataKey,
        deadline: Deadline,
    ) -> Result<WrappedKey, KeyError> {
        let algorithm = self.uri.algorithm();
        let payload = bound::bind(key, context);
        let pinned = self.uri.version.as_deref();
        let (version, value) = self.operate(pinned, "wrapkey", algorithm, &payload, deadline)?;
        let wrapped = WrappedKey {
            key_uri: self.api.key.clone(),
            key_version: version,
            algorithm: algorithm.name().to_owned(),
            iv: Vec::new(),
            ciphertext: value.to_vec(),
        };
        if !self.verified.covers(&wrapped.key_version) {
            self.verify(context, key, &wrapped, deadline)?;
        }
        Ok(wrapped)
    }

    /// Sees that what was just wrapped can be unwrapped.
    fn verify(
        &self,
        context: &KeyContext,
        key: &DataKey,
        wrapped: &WrappedKey,
        deadline: Deadline,
    ) -> Result<(), KeyError> {
        match self.unwrap_by(context, wrapped, deadline) {
            Ok(again) if again.expose() == key.expose() => Ok(()),
            Ok(_) | Err(KeyError::Rejected { .. }) => Err(self
                .api
                .malformed("what it wrapped does not unwrap to the same data key")),
            Err(error) => Err(error),
        }
    }

    fn unwrap_by(
        &self,
        context: &KeyContext,
        wrapped: &WrappedKey,
        deadline: Deadline,
    ) -> Result<DataKey, KeyError> {
        let rejected = |detail: String| KeyError::Rejected {
            key: self.api.key.clone(),
            detail,
        };
        if !self.recognises(wrapped) {
            let other = &wrapped.key_uri;
            return Err(rejected(format!("another key wrapped it: {other}")));
        }
        let algorithm = Algorithm::named(&wrapped.algorithm)
            .ok_or_else(|| rejected("its algorithm is unknown".into()))?;
        let version = wrapped.key_version.as_str();
        if !is_name(version) {
            return Err(rejected("it names no key version".into()));
        }
        let start = Instant::now();
        let cipher = &wrapped.ciphertext;
        match self.operate(Some(version), "unwrapkey", algorithm, cipher, deadline) {
            Ok((_, payload)) => {
                self.verified.worked(version, start);
                bound::unbind(&payload, context)
                    .ok_or_else(|| rejected("it was wrapped for another file".into()))
            }
            Err(error) => {
                self.verified.failed(version, &error);
                Err(error)
            }
        }
    }
}

/// The path of an operation on the key, `version` or the current one of it.
fn path(uri: &AzureUri, version: Option<&str>, operation: &str) -> String {
    let key = &uri.key;
    let version = version.or(uri.version.as_deref());
    let version = version.map(|version| format!("/{version}"));
    let version = version.unwrap_or_default();
    format!("/keys/{key}{version}{operation}?api-version={VERSION}")
}

impl KeyProvider for AzureProvider {
    fn uri(&self) -> &str {
        &self.shown
    }

    fn is_local(&self) -> bool {
        false
    }

    fn recognises(&self, wrapped: &WrappedKey) -> bool {
        AzureUri::parse(&wrapped.key_uri).is_ok_and(|theirs| self.uri.names_same_key(&theirs))
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
        let call = Call::get(path(&self.uri, None, ""));
        let described = self.api.call(&call, self.deadline(), |answer| {
            self.read::<Described>(answer, Asked::Other)
        });
        let mut facts = vec![("algorithm", self.uri.algorithm().name().to_owned())];
        match described {
            Err(KeyError::Denied { .. }) => {
                let text = "the caller may not get the key, which only this needs";
                facts.push(("details", text.into()));
            }
            Err(error) => return Err(error),
            Ok(Described { key, attributes }) => facts.extend([
                ("type", key.kty),
                ("version", self.version(&key.kid)?),
                ("may", key.key_ops.join(" ")),
                (
                    "enabled",
                    if attributes.enabled { "yes" } else { "no" }.to_owned(),
                ),
                ("recovery", attributes.recovery_level),
            ]),
        }
        facts.retain(|(_, value)| !value.is_empty());
        Ok(facts)
    }

    fn advice(&self, error: &KeyError) -> Option<String> {
        let (key, host) = (&self.uri.key, &self.uri.endpoint.host);
        Some(match error {
            KeyError::Denied { detail, .. } if detail.starts_with("login") => {
                "see that AZURE_TENANT_ID, AZURE_CLIENT_ID and the secret or token are right \
                 and the secret has not expired"
                    .into()
            }
            KeyError::Denied { detail, .. } if detail.contains("Firewall") => {
                format!("let this machine's address through the firewall of {host}")
            }
            KeyError::Denied { .. } => format!(
                "give the caller wrap and unwrap on the key {key}: the role Key Vault Crypto \
                 Service Encryption User or Managed HSM Crypto Service Encryption User, or an \
                 access policy with wrapKey and unwrapKey"
            ),
            KeyError::NotFound { .. } => {
                format!("make the key {key} in {host}, or recover it if it was deleted")
            }
            KeyError::Disabled { .. } => format!(
                "enable the key version, or recover the key {key} if it was deleted; Azure lets \
                 disabled keys wrap, which kmsfs does not"
            ),
            KeyError::Expired { .. } => {
                format!("rotate the key {key}, or give it a later expiry date")
            }
            KeyError::Malformed { detail, .. } if detail.contains("BadParameter") => format!(
                "the key must be able to wrap with {}: RSA keys with RSA-OAEP-256, AES keys of \
                 a Managed HSM with A256KW; algorithm= in the key uri chooses",
                self.uri.algorithm().name()
            ),
            KeyError::Throttled { .. } => {
                "the vault's limit of operations is used up; smaller RSA keys and Managed HSMs \
                 have higher ones"
                    .into()
            }
            KeyError::Unavailable { .. } => format!("see that {host} is reachable"),
            _ => return None,
        })
    }
}
