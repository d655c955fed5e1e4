//! The OpenAPI, version 2016-01-20, of shared and dedicated gateways.

use data_encoding::BASE64;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use zeroize::Zeroizing;

use super::credentials::CredentialStore;
use super::fault::{Asked, Fault, Remedy};
use super::rpc::{Call, Failure, Service};
use super::target::Target;
use crate::crypto::DataKey;
use crate::keys::audit::request;
use crate::keys::kms::http::{Http, Response};
use crate::keys::kms::retry::{self, Deadline};
use crate::keys::kms::secret_text::SecretText;
use crate::keys::kms::time::ClockOffset;
use crate::keys::{KeyContext, KeyError, WrappedKey};
use crate::types::KeyLen;

pub(super) const VERSION: &str = "2016-01-20";

/// A key reached through the OpenAPI.
pub(super) struct OpenApi {
    pub(super) http: Http,
    pub(super) service: Service,
    pub(super) credentials: CredentialStore,
    pub(super) clock: ClockOffset,
    pub(super) target: Target,
    /// Whether the gateway lacks `ReEncrypt`.
    pub(super) dedicated: bool,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Generated {
    key_id: String,
    #[serde(default)]
    key_version_id: String,
    ciphertext_blob: String,
    plaintext: SecretText,
    #[serde(default)]
    request_id: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Encrypted {
    key_id: String,
    #[serde(default)]
    key_version_id: String,
    ciphertext_blob: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Decrypted {
    key_id: String,
    plaintext: SecretText,
    #[serde(default)]
    request_id: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Described {
    key_metadata: Metadata,
}

/// What `DescribeKey` says.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase", default)]
#[derive(Default)]
pub(super) struct Metadata {
    pub(super) key_id: String,
    pub(super) key_state: String,
    pub(super) key_spec: String,
    pub(super) key_usage: String,
    pub(super) protection_level: String,
    pub(super) primary_key_version: String,
    pub(super) creator: String,
    #[serde(rename = "DKMSInstanceId")]
    pub(super) instance: String,
}

impl OpenApi {
    pub(super) fn generate(
        &self,
        context: &KeyContext,
        len: KeyLen,
    ) -> Result<(DataKey, WrappedKey), KeyError> {
        let call = Call {
            action: "GenerateDataKey",
            query: vec![
                ("KeyId", self.target.key.clone()),
                ("NumberOfBytes", len.bytes().to_string()),
                ("EncryptionContext", context_json(context)),
            ],
            form: Vec::new(),
        };
        let answer: Generated = self.answer(&call, Asked::Other, self.target.deadline())?;
        request::note(&answer.request_id);
        self.target.check_answer(Some(&answer.key_id))?;
        let key = self.data_key(&answer.plaintext)?;
        if key.len() != len {
            return Err(self
                .target
                .malformed("the data key has another length than was asked for"));
        }
        let wrapped = self.wrapped(answer.key_version_id, &answer.ciphertext_blob)?;
        Ok((key, wrapped))
    }

    pub(super) fn wrap(&self, context: &KeyContext, key: &DataKey) -> Result<WrappedKey, KeyError> {
        self.wrap_by(context, key, self.target.deadline())
    }

    fn wrap_by(
        &self,
        context: &KeyContext,
        key: &DataKey,
        deadline: Deadline,
    ) -> Result<WrappedKey, KeyError> {
        let call = Call {
            action: "Encrypt",
            query: vec![
                ("KeyId", self.target.key.clone()),
                ("EncryptionContext", context_json(context)),
            ],
            // In the form, as queries end up in logs.
            form: vec![("Plaintext", Zeroizing::new(BASE64.encode(key.expose())))],
        };
        let answer: Encrypted = self.answer(&call, Asked::Wrap, deadline)?;
        self.target.check_answer(Some(&answer.key_id))?;
        self.wrapped(answer.key_version_id, &answer.ciphertext_blob)
    }

    pub(super) fn unwrap(
        &self,
        context: &KeyContext,
        wrapped: &WrappedKey,
    ) -> Result<DataKey, KeyError> {
        self.unwrap_by(context, wrapped, self.target.deadline())
    }

    fn unwrap_by(
        &self,
        context: &KeyContext,
        wrapped: &WrappedKey,
        deadline: Deadline,
    ) -> Result<DataKey, KeyError> {
        let call = Call {
            action: "Decrypt",
            query: vec![
                ("CiphertextBlob", BASE64.encode(&wrapped.ciphertext)),
                ("EncryptionContext", context_json(context)),
            ],
            form: Vec::new(),
        };
        let answer: Decrypted = self.answer(&call, Asked::Unwrap, deadline)?;
        request::note(&answer.request_id);
        // The call names no key: the service takes the one that the wrapped key
        // names, which whoever can write to the volume may have changed to
        // another one that these credentials can use.
        self.target.check_unwrapped(Some(&answer.key_id))?;
        self.data_key(&answer.plaintext)
    }

    pub(super) fn rewrap(
        &self,
        context: &KeyContext,
        wrapped: &WrappedKey,
    ) -> Result<WrappedKey, KeyError> {
        let deadline = self.target.deadline();
        if !self.dedicated {
            let call = Call {
                action: "ReEncrypt",
                query: vec![
                    ("CiphertextBlob", BASE64.encode(&wrapped.ciphertext)),
                    ("DestinationKeyId", self.target.key.clone()),
                    ("SourceEncryptionContext", context_json(context)),
                    ("DestinationEncryptionContext", context_json(context)),
                ],
                form: Vec::new(),
            };
            if let Some(answer) = self.try_call(&call, Asked::Unwrap, deadline)? {
                let answer: Encrypted = self.read(&answer)?;
                self.target.check_answer(Some(&answer.key_id))?;
                return self.wrapped(answer.key_version_id, &answer.ciphertext_blob);
            }
        }
        let key = self.unwrap_by(context, wrapped, deadline)?;
        self.wrap_by(context, &key, deadline)
    }

    pub(super) fn describe(&self) -> Result<Metadata, KeyError> {
        let call = Call {
            action: "DescribeKey",
            query: vec![("KeyId", self.target.key.clone())],
            form: Vec::new(),
        };
        let described: Described = self.answer(&call, Asked::Other, self.target.deadline())?;
        Ok(described.key_metadata)
    }

    /// Whether the caller may use the key for `action`, as the service says
    /// without doing it.
    pub(super) fn may(&self, action: &'static str) -> Result<(), KeyError> {
        let mut call = Call {
            action,
            query: vec![
                ("KeyId", self.target.key.clone()),
                ("DryRun", "true".to_owned()),
            ],
            form: Vec::new(),
        };
        if action == "Encrypt" {
            let nothing = Zeroizing::new(BASE64.encode(&[0; 16]));
            call.form.push(("Plaintext", nothing));
        }
        let deadline = self.target.deadline();
        let mut would = false;
        let result = self.exchange(&call, Asked::Wrap, deadline, |fault| {
            would = fault.code == "DryRunOperationError";
            would
        });
        if would { Ok(()) } else { result.map(drop) }
    }

    fn answer<T: DeserializeOwned>(
        &self,
        call: &Call<'_>,
        asked: Asked,
        deadline: Deadline,
    ) -> Result<T, KeyError> {
        let answer = self.exchange(call, asked, deadline, |_| false)?;
        self.read(&answer)
    }

    /// As [`Self::exchange`], but `None` if the gateway lacks the operation.
    fn try_call(
        &self,
        call: &Call<'_>,
        asked: Asked,
        deadline: Deadline,
    ) -> Result<Option<Response>, KeyError> {
        let mut lacking = false;
        let result = self.exchange(call, asked, deadline, |fault| {
            lacking = fault.remedy() == Remedy::Alternative;
            lacking
        });
        if lacking { Ok(None) } else { result.map(Some) }
    }

    /// Calls until there is an answer, the deadline has come, or `accept`s the
    /// refusal, which is then the error whatever it is. Wrong clocks and stale
    /// credentials are each seen to once.
    fn exchange(
        &self,
        call: &Call<'_>,
        asked: Asked,
        deadline: Deadline,
        mut accept: impl FnMut(&Fault) -> bool,
    ) -> Result<Response, KeyError> {
        let (mut clock_was_set, mut credentials_were_renewed) = (false, false);
        retry::until(deadline, || {
            loop {
                let credentials = self.credentials.get(deadline)?;
                let now = self.clock.now();
                let fault = match self
                    .service
                    .call(&self.http, call, &credentials, now, deadline)
                {
                    Ok(answer) => return Ok(answer),
                    Err(Failure::Http(error)) => {
                        return Err(error.about(&self.target.identity, self.service.host()));
                    }
                    Err(Failure::Fault(fault)) => fault,
                };
                let cured = !accept(&fault)
                    && match fault.remedy() {
                        Remedy::Clock if !clock_was_set => {
                            clock_was_set = true;
                            fault
                                .server_time
                                .is_some_and(|time| self.clock.correct(time))
                        }
                        Remedy::Credentials if !credentials_were_renewed => {
                            credentials_were_renewed = true;
                            self.credentials.replace(&credentials, deadline)?.is_some()
                        }
                        _ => false,
                    };
                if !cured {
                    return Err(fault.about(&self.target.identity, asked));
                }
            }
        })
    }

    fn read<T: DeserializeOwned>(&self, answer: &Response) -> Result<T, KeyError> {
        serde_json::from_slice(&answer.body).map_err(|_| {
            self.target
                .malformed("it is not the JSON that was expected")
        })
    }

    fn data_key(&self, plaintext: &SecretText) -> Result<DataKey, KeyError> {
        let bytes = BASE64.decode(plaintext.expose().as_bytes());
        let bytes = bytes.map(Zeroizing::new).ok();
        bytes
            .and_then(|bytes| DataKey::from_bytes(&bytes))
            .ok_or_else(|| {
                self.target
                    .malformed("the data key has a length that no data key has")
            })
    }

    fn wrapped(&self, key_version: String, blob: &str) -> Result<WrappedKey, KeyError> {
        let ciphertext = BASE64.decode(blob.as_bytes()).unwrap_or_default();
        if ciphertext.is_empty() {
            return Err(self.target.malformed("the wrapped key is missing"));
        }
        Ok(WrappedKey {
            key_uri: self.target.identity.clone(),
            key_version,
            algorithm: String::new(),
            iv: Vec::new(),
            ciphertext,
        })
    }
}

fn context_json(context: &KeyContext) -> String {
    let [(a, x), (b, y)] = context.pairs();
    serde_json::json!({ a: x, b: y }).to_string()
}
