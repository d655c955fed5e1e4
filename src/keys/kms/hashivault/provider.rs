//! The provider of the transit engine.

use std::sync::OnceLock;
use std::time::Duration;

use data_encoding::BASE64;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::api::{Api, Call};
use super::auth::Login;
use super::fault::{Asked, Fault};
use super::uri::VaultUri;
use crate::crypto::DataKey;
use crate::keys::kms::environment::Environment;
use crate::keys::kms::http::{Http, Trust};
use crate::keys::kms::lease::LeaseHolder;
use crate::keys::kms::retry::{DEFAULT_DEADLINE, Deadline};
use crate::keys::kms::secret_text::SecretText;
use crate::keys::kms::server::Server;
use crate::keys::{KeyContext, KeyError, KeyProvider, WrappedKey};
use crate::types::KeyLen;

const DEFAULT_ADDRESS: &str = "https://127.0.0.1:8200";
/// Most wrapped keys in one call: the answer stays far below what is read.
const LARGEST_BATCH: usize = 128;
/// Has the form of a wrapped key and is none.
const NO_KEY: &str = "vault:v1:AAAA";

/// A key of Vault's or OpenBao's transit engine.
pub struct VaultProvider {
    uri: VaultUri,
    shown: String,
    api: Api,
    time: Duration,
    binding: OnceLock<Binding>,
}

/// How a wrapped key is bound to its file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Binding {
    /// As the context that the wrapping key proper is derived with, by a key
    /// that was made so.
    Context,
    /// As associated data. The server does not take it when it makes a data
    /// key (Vault ignores it there) or wraps one again (so does OpenBao), so
    /// both are done here.
    AssociatedData,
}

/// The arguments of every call.
#[derive(Serialize, Default)]
struct Input<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    bits: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ciphertext: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    plaintext: Option<SecretText>,
    #[serde(skip_serializing_if = "Option::is_none")]
    context: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    associated_data: Option<String>,
}

#[derive(Serialize)]
struct Batch<'a> {
    batch_input: Vec<Input<'a>>,
    /// Asked for, as one bad item otherwise makes all of it a refusal.
    partial_failure_response_code: u16,
}

#[derive(Deserialize)]
struct Answer<T> {
    data: T,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Output {
    ciphertext: String,
    plaintext: Option<SecretText>,
    key_version: u64,
    error: String,
}

#[derive(Deserialize)]
struct Outputs {
    batch_results: Vec<Output>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Described {
    #[serde(rename = "type")]
    kind: String,
    latest_version: u64,
    min_decryption_version: u64,
    deletion_allowed: bool,
    exportable: bool,
}

impl VaultProvider {
    /// Opens a key; what the URI does not say comes from `env`. Nothing is
    /// sent before the first call.
    pub fn open(uri: &VaultUri, env: &Environment) -> Result<Self, KeyError> {
        let key = uri.identity();
        let address = uri.address.as_deref();
        let address = address
            .or_else(|| env.first(&["BAO_ADDR", "VAULT_ADDR"]))
            .unwrap_or(DEFAULT_ADDRESS);
        let server = Server::parse(address).map_err(|problem| KeyError::Configuration {
            detail: format!("the vault's address {address:?} cannot be used: {problem}"),
            hint: Some("set VAULT_ADDR to https://HOST:PORT".into()),
        })?;
        let ca = uri.ca.clone().or_else(|| {
            let named = env.first(&["BAO_CACERT", "VAULT_CACERT"])?;
            Some(named.into())
        });
        let trust = match server.encrypted {
            true => Trust::of(ca.as_deref())?,
            false => Trust::Unencrypted,
        };
        let origin = server.origin();
        let namespace = uri.namespace.as_deref();
        let namespace = namespace.or_else(|| env.first(&["BAO_NAMESPACE", "VAULT_NAMESPACE"]));
        Ok(Self {
            shown: uri.to_string(),
            time: uri.deadline.unwrap_or(DEFAULT_DEADLINE),
            binding: OnceLock::new(),
            api: Api {
                http: Http::new(trust).map_err(|error| error.about(&key, &origin))?,
                origin,
                namespace: namespace.map(str::to_owned),
                login: Login::find(uri, env)?,
                tokens: LeaseHolder::new(key.clone()),
                key,
            },
            uri: uri.clone(),
        })
    }

    fn deadline(&self) -> Deadline {
        Deadline::after(self.time)
    }

    fn path(&self, operation: &str) -> String {
        format!("{}/{operation}/{}", self.uri.mount, self.uri.key)
    }

    fn post<T: serde::de::DeserializeOwned>(
        &self,
        operation: &str,
        input: &impl Serialize,
        asked: Asked,
        deadline: Deadline,
    ) -> Result<T, KeyError> {
        let call = Call::post(self.path(operation), input);
        let answer: Answer<T> = self.api.call(&call, asked, deadline)?;
        Ok(answer.data)
    }

    /// How this key binds, which it never changes; found out by unwrapping
    /// what is no wrapped key.
    fn binding(&self, deadline: Deadline) -> Result<Binding, KeyError> {
        if let Some(binding) = self.binding.get() {
            return Ok(*binding);
        }
        let binding = match self.probe(deadline)? {
            fault if fault.wants_context() => Binding::Context,
            fault if fault.is_about_ciphertext() => Binding::AssociatedData,
            fault => return Err(fault.about(&self.api.key, Asked::Other)),
        };
        Ok(*self.binding.get_or_init(|| binding))
    }

    fn probe(&self, deadline: Deadline) -> Result<Fault, KeyError> {
        let input = Input {
            ciphertext: Some(NO_KEY),
            ..Input::default()
        };
        let call = Call::post(self.path("decrypt"), &input);
        match self.api.try_call(&call, deadline, |_| false)? {
            Err(fault) => Ok(fault),
            Ok(_) => Err(self.api.malformed("it unwrapped what is no wrapped key")),
        }
    }

    fn input<'a>(&self, binding: Binding, context: &KeyContext) -> Input<'a> {
        let bound = Some(BASE64.encode(&context.aad()));
        match binding {
            Binding::Context => Input {
                context: bound,
                ..Input::default()
            },
            Binding::AssociatedData => Input {
                associated_data: bound,
                ..Input::default()
            },
        }
    }

    fn wrap_by(
        &self,
        context: &KeyContext,
        key: &DataKey,
        deadline: Deadline,
    ) -> Result<WrappedKey, KeyError> {
        let input = Input {
            plaintext: Some(Zeroizing::new(BASE64.encode(key.expose())).into()),
            ..self.input(self.binding(deadline)?, context)
        };
        match self.post("encrypt", &input, Asked::Other, deadline) {
            Ok(output) => self.wrapped(&output),
            // To wrap with a key that does not exist is to make one, which
            // callers should not be allowed to do.
            Err(error @ KeyError::Denied { .. }) => match self.probe(deadline)? {
                fault if fault.is_about_ciphertext() || fault.wants_context() => Err(error),
                fault => Err(fault.about(&self.api.key, Asked::Other)),
            },
            Err(error) => Err(error),
        }
    }

    fn unwrap_by(
        &self,
        context: &KeyContext,
        wrapped: &WrappedKey,
        deadline: Deadline,
    ) -> Result<DataKey, KeyError> {
        let input = Input {
            ciphertext: Some(self.text(wrapped)?),
            ..self.input(self.binding(deadline)?, context)
        };
        let output = self.post("decrypt", &input, Asked::Unwrap, deadline)?;
        self.data_key(&output)
    }

    /// What the server calls ciphertext is text.
    fn text<'a>(&self, wrapped: &'a WrappedKey) -> Result<&'a str, KeyError> {
        std::str::from_utf8(&wrapped.ciphertext).map_err(|_| KeyError::Rejected {
            key: self.api.key.clone(),
            detail: "it is not what a vault makes".into(),
        })
    }

    fn data_key(&self, output: &Output) -> Result<DataKey, KeyError> {
        let text = output.plaintext.as_ref().map_or("", SecretText::expose);
        let bytes = BASE64.decode(text.as_bytes()).map(Zeroizing::new);
        let key = bytes.ok().and_then(|bytes| DataKey::from_bytes(&bytes));
        key.ok_or_else(|| self.api.malformed("there is no data key in it"))
    }

    fn wrapped(&self, output: &Output) -> Result<WrappedKey, KeyError> {
        if output.ciphertext.is_empty() {
            return Err(self.api.malformed("the wrapped key is missing"));
        }
        Ok(WrappedKey {
            key_uri: self.api.key.clone(),
            key_version: match output.key_version {
                0 => String::new(),
                version => version.to_string(),
            },
            algorithm: String::new(),
            iv: Vec::new(),
            ciphertext: output.ciphertext.clone().into_bytes(),
        })
    }

    /// One call for all of them; the error is that of the call.
    fn unwrap_batch(
        &self,
        wrapped: &[(KeyContext, WrappedKey)],
    ) -> Result<Vec<Result<DataKey, KeyError>>, KeyError> {
        let deadline = self.deadline();
        let binding = self.binding(deadline)?;
        let inputs = wrapped.iter().map(|(context, wrapped)| Input {
            // What is not text is refused by the server like other nonsense.
            ciphertext: Some(self.text(wrapped).unwrap_or(NO_KEY)),
            ..self.input(binding, context)
        });
        let batch = Batch {
            batch_input: inputs.collect(),
            partial_failure_response_code: 207,
        };
        let call = Call::post(self.path("decrypt"), &batch);
        // Servers that do not know that parameter answer 400, with results.
        let has_results = |answer: &crate::keys::kms::http::Response| {
            answer.status == 400 && self.api.read::<Answer<Outputs>>(answer).is_ok()
        };
        let answer = self.api.try_call(&call, deadline, has_results)?;
        let answer = answer.map_err(|fault| fault.about(&self.api.key, Asked::Unwrap))?;
        let outputs = self
            .api
            .read::<Answer<Outputs>>(&answer)?
            .data
            .batch_results;
        if outputs.len() != wrapped.len() {
            return Err(self
                .api
                .malformed("it has not as many answers as questions"));
        }
        let each = outputs.iter().map(|output| match output.error.as_str() {
            "" => self.data_key(output),
            text => Err(Fault::of_item(text).about(&self.api.key, Asked::Unwrap)),
        });
        Ok(each.collect())
    }
}

impl KeyProvider for VaultProvider {
    fn uri(&self) -> &str {
        &self.shown
    }

    fn is_local(&self) -> bool {
        false
    }

    fn recognises(&self, wrapped: &WrappedKey) -> bool {
        VaultUri::parse(&wrapped.key_uri).is_ok_and(|theirs| self.uri.names_same_key(&theirs))
    }

    fn generate(
        &self,
        context: &KeyContext,
        len: KeyLen,
    ) -> Result<(DataKey, WrappedKey), KeyError> {
        let deadline = self.deadline();
        let binding = self.binding(deadline)?;
        if binding == Binding::AssociatedData || len == KeyLen::Bits192 {
            let key = DataKey::random(len);
            let wrapped = self.wrap_by(context, &key, deadline)?;
            return Ok((key, wrapped));
        }
        let input = Input {
            bits: Some(8 * len.bytes()),
            ..self.input(binding, context)
        };
        let output = self.post("datakey/plaintext", &input, Asked::Other, deadline)?;
        let key = self.data_key(&output)?;
        if key.len() != len {
            let problem = "the data key has another length than was asked for";
            return Err(self.api.malformed(problem));
        }
        Ok((key, self.wrapped(&output)?))
    }

    fn wrap(&self, context: &KeyContext, key: &DataKey) -> Result<WrappedKey, KeyError> {
        self.wrap_by(context, key, self.deadline())
    }

    fn unwrap(&self, context: &KeyContext, wrapped: &WrappedKey) -> Result<DataKey, KeyError> {
        self.unwrap_by(context, wrapped, self.deadline())
    }

    fn batch(&self) -> usize {
        LARGEST_BATCH
    }

    fn unwrap_many(&self, wrapped: &[(KeyContext, WrappedKey)]) -> Vec<Result<DataKey, KeyError>> {
        let batches = wrapped.chunks(LARGEST_BATCH);
        let unwrapped = batches.flat_map(|batch| match self.unwrap_batch(batch) {
            Ok(results) => results,
            Err(error) => batch.iter().map(|_| Err(error.clone())).collect(),
        });
        unwrapped.collect()
    }

    fn rewrap(&self, context: &KeyContext, wrapped: &WrappedKey) -> Result<WrappedKey, KeyError> {
        let deadline = self.deadline();
        if self.binding(deadline)? == Binding::AssociatedData {
            let key = self.unwrap_by(context, wrapped, deadline)?;
            return self.wrap_by(context, &key, deadline);
        }
        let input = Input {
            ciphertext: Some(self.text(wrapped)?),
            ..self.input(Binding::Context, context)
        };
        let output = self.post("rewrap", &input, Asked::Unwrap, deadline)?;
        self.wrapped(&output)
    }

    fn describe(&self) -> Result<Vec<(&'static str, String)>, KeyError> {
        let deadline = self.deadline();
        let binding = match self.binding(deadline)? {
            Binding::Context => "context of a derived key",
            Binding::AssociatedData => "associated data; a derived key could rewrap by itself",
        };
        let mut facts = vec![("binding", binding.to_owned())];
        let call = Call::get(self.path("keys"));
        let answer: Result<Answer<Described>, _> = self.api.call(&call, Asked::Other, deadline);
        let yes = |is: bool| if is { "yes" } else { "no" }.to_owned();
        match answer {
            Ok(Answer { data: key }) => facts.extend([
                ("type", key.kind),
                ("version", key.latest_version.to_string()),
                (
                    "oldest version that unwraps",
                    key.min_decryption_version.to_string(),
                ),
                ("can be deleted", yes(key.deletion_allowed)),
                ("can be exported", yes(key.exportable)),
            ]),
            Err(KeyError::Denied { .. }) => {
                let path = self.path("keys");
                facts.push(("details", format!("the token may not read {path}")));
            }
            Err(error) => return Err(error),
        }
        Ok(facts)
    }

    fn credentials_are_due(&self) -> bool {
        self.api.tokens.is_due()
    }

    fn renew_credentials(&self) -> Result<(), KeyError> {
        self.api.current_token(self.deadline()).map(drop)
    }

    fn advice(&self, error: &KeyError) -> Option<String> {
        let (mount, key) = (&self.uri.mount, &self.uri.key);
        Some(match error {
            KeyError::Denied { detail, .. } if detail.starts_with("login") => {
                "see that the role, its id and its secret are right, and that the login method \
                 is mounted where auth-mount says"
                    .into()
            }
            KeyError::Denied { .. } => format!(
                "the token's policy must allow update on {mount}/encrypt/{key}, \
                 {mount}/decrypt/{key} and, for a derived key, {mount}/datakey/plaintext/{key} \
                 and {mount}/rewrap/{key}; or the token has ended"
            ),
            KeyError::NotFound { .. } => format!(
                "make the key: vault write -f {mount}/keys/{key} derived=true; or name the place \
                 of the transit engine with mount=, the namespace with namespace="
            ),
            KeyError::Disabled { .. } => {
                format!("restore the key, or lower min_decryption_version of {mount}/keys/{key}")
            }
            KeyError::Unavailable { .. } => {
                format!("see that {} is up, unsealed and reachable", self.api.origin)
            }
            KeyError::Throttled { .. } => {
                "a rate-limit quota of the server is used up: raise it for this mount".into()
            }
            _ => return None,
        })
    }
}
