//! The provider of AWS KMS.

use std::collections::HashMap;
use std::time::Duration;

use aws_sdk_kms::Client;
use aws_sdk_kms::config::http::HttpResponse;
use aws_sdk_kms::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_kms::primitives::Blob;
use aws_sdk_kms::types::{KeyManagerType, KeyMetadata, KeySpec, KeyUsageType};
use zeroize::Zeroizing;

use super::arn::Key;
use super::fault::Fault;
use super::session::{Login, ServiceClock, Session};
use super::transport::Transport;
use super::uri::{AwsUri, identity};
use crate::crypto::DataKey;
use crate::keys::kms::http;
use crate::keys::kms::lease::LeaseHolder;
use crate::keys::kms::retry::{self, DEFAULT_DEADLINE, Deadline};
use crate::keys::{KeyContext, KeyError, KeyProvider, WrappedKey};
use crate::types::KeyLen;

/// A key of AWS KMS.
pub struct AwsProvider {
    uri: AwsUri,
    shown: String,
    identity: String,
    server: String,
    time: Duration,
    login: Login,
    sessions: LeaseHolder<Session>,
}

impl AwsProvider {
    /// Opens a key, with credentials from wherever the SDK finds some. Only a
    /// key named by an alias makes this ask the service: for its ARN, which is
    /// used from then on.
    pub fn open(uri: &AwsUri) -> Result<Self, KeyError> {
        let named = Self::connect(uri.clone())?;
        if !uri.key.is_alias() {
            return Ok(named);
        }
        let metadata = named.metadata(named.deadline())?;
        let key = metadata.arn.as_deref().and_then(Key::parse);
        let key = key
            .filter(Key::is_resolved)
            .ok_or_else(|| named.malformed("the alias was not resolved to a key's ARN"))?;
        Self::connect(AwsUri { key, ..uri.clone() })
    }

    fn connect(uri: AwsUri) -> Result<Self, KeyError> {
        let identity = uri.identity();
        let clock = ServiceClock::default();
        let server = match (&uri.endpoint, uri.region()) {
            (Some(endpoint), _) => endpoint.clone(),
            (None, Some(region)) => format!("KMS in {region}"),
            (None, None) => "KMS".to_owned(),
        };
        Ok(Self {
            shown: uri.to_string(),
            server,
            time: uri.deadline.unwrap_or(DEFAULT_DEADLINE),
            login: Login {
                uri: uri.clone(),
                transport: Transport::new(uri.ca.as_deref(), &identity)?,
                clock,
                key: identity.clone(),
            },
            sessions: LeaseHolder::new(identity.clone()),
            identity,
            uri,
        })
    }

    fn deadline(&self) -> Deadline {
        Deadline::after(self.time)
    }

    fn malformed(&self, problem: &str) -> KeyError {
        KeyError::Malformed {
            key: self.identity.clone(),
            detail: problem.to_owned(),
        }
    }

    /// Makes a call; tries again what may succeed then, until the deadline.
    /// Credentials that are refused are replaced once, and a clock that differs
    /// is corrected once.
    fn call<T, E, F>(
        &self,
        deadline: Deadline,
        operation: impl Fn(Client) -> F,
    ) -> Result<T, KeyError>
    where
        E: ProvideErrorMetadata + std::error::Error + 'static,
        F: Future<Output = Result<T, SdkError<E, HttpResponse>>>,
    {
        let (mut replaced, mut corrected) = (false, false);
        retry::until(deadline, || {
            loop {
                let log_in = || self.login.log_in(deadline.left());
                let session = self.sessions.get(deadline, |_| log_in())?;
                let answer = http::wait(deadline.one_try(), operation(session.client.clone()));
                let error = match answer {
                    Ok(Ok(answer)) => return Ok(answer),
                    Ok(Err(error)) => error,
                    Err(error) => return Err(error.about(&self.identity, &self.server)),
                };
                let fault = Fault::of(&error, &self.identity, &self.server)?;
                if fault.is_about_time() && !corrected {
                    corrected = true;
                    let correct = |date| self.login.clock.correct(date);
                    if fault.date.is_some_and(correct) {
                        continue;
                    }
                }
                if fault.is_about_credentials() && !replaced {
                    replaced = true;
                    if self.sessions.replace(&session, deadline, log_in)?.is_some() {
                        continue;
                    }
                }
                return Err(fault.about(&self.identity));
            }
        })
    }

    fn metadata(&self, deadline: Deadline) -> Result<KeyMetadata, KeyError> {
        let answer = self.call(deadline, |client| {
            client.describe_key().key_id(self.key_id()).send()
        })?;
        let metadata = answer.key_metadata;
        metadata.ok_or_else(|| self.malformed("it says nothing about the key"))
    }

    /// The key as the service is told it.
    fn key_id(&self) -> String {
        self.uri.key.to_string()
    }

    /// What an answer has for a header. `version` names the key material, where
    /// the answer says which it was.
    fn wrapped(
        &self,
        key: Option<&str>,
        version: Option<String>,
        ciphertext: Option<Blob>,
    ) -> Result<WrappedKey, KeyError> {
        let key = key.and_then(Key::parse).filter(Key::is_resolved);
        let key = key.filter(|key| key.is_same_as(&self.uri.key));
        let key = key.ok_or_else(|| self.malformed("the answer is about another key"))?;
        let ciphertext = ciphertext.map(Blob::into_inner).unwrap_or_default();
        if ciphertext.is_empty() {
            return Err(self.malformed("it has no wrapped key"));
        }
        Ok(WrappedKey {
            key_uri: identity(&key),
            key_version: version.unwrap_or_default(),
            algorithm: String::new(),
            iv: Vec::new(),
            ciphertext,
        })
    }

    fn data_key(&self, plaintext: Option<Blob>) -> Result<DataKey, KeyError> {
        let bytes = Zeroizing::new(plaintext.map(Blob::into_inner).unwrap_or_default());
        DataKey::from_bytes(&bytes)
            .ok_or_else(|| self.malformed("its data key has an impossible length"))
    }
}

/// The context as the SDK takes it.
fn encryption_context(context: &KeyContext) -> HashMap<String, String> {
    let pairs = context.pairs().into_iter();
    pairs
        .map(|(name, value)| (name.to_owned(), value))
        .collect()
}

impl KeyProvider for AwsProvider {
    fn uri(&self) -> &str {
        &self.shown
    }

    fn is_local(&self) -> bool {
        false
    }

    fn recognises(&self, wrapped: &WrappedKey) -> bool {
        let theirs = AwsUri::parse(&wrapped.key_uri);
        theirs.is_ok_and(|theirs| self.uri.key.is_same_as(&theirs.key))
    }

    fn generate(
        &self,
        context: &KeyContext,
        len: KeyLen,
    ) -> Result<(DataKey, WrappedKey), KeyError> {
        let answer = self.call(self.deadline(), |client| {
            client
                .generate_data_key()
                .key_id(self.key_id())
                .number_of_bytes(len.bytes() as i32)
                .set_encryption_context(Some(encryption_context(context)))
                .send()
        })?;
        // First of all, as it is to be wiped whatever is wrong with the rest.
        let key = self.data_key(answer.plaintext)?;
        if key.len() != len {
            let problem = "the data key has another length than was asked for";
            return Err(self.malformed(problem));
        }
        let wrapped = self.wrapped(
            answer.key_id.as_deref(),
            answer.key_material_id,
            answer.ciphertext_blob,
        )?;
        Ok((key, wrapped))
    }

    fn wrap(&self, context: &KeyContext, key: &DataKey) -> Result<WrappedKey, KeyError> {
        let answer = self.call(self.deadline(), |client| {
            client
                .encrypt()
                .key_id(self.key_id())
                .plaintext(Blob::new(key.expose()))
                .set_encryption_context(Some(encryption_context(context)))
                .send()
        })?;
        self.wrapped(answer.key_id.as_deref(), None, answer.ciphertext_blob)
    }

    fn unwrap(&self, context: &KeyContext, wrapped: &WrappedKey) -> Result<DataKey, KeyError> {
        let answer = self.call(self.deadline(), |client| {
            client
                .decrypt()
                // This key and no other, in this region, wherever it was wrapped.
                .key_id(self.key_id())
                .ciphertext_blob(Blob::new(wrapped.ciphertext.as_slice()))
                .set_encryption_context(Some(encryption_context(context)))
                .send()
        })?;
        let key = self.data_key(answer.plaintext)?;
        let by = answer.key_id.as_deref().and_then(Key::parse);
        if !by.is_some_and(|by| by.is_same_as(&self.uri.key)) {
            return Err(KeyError::Rejected {
                key: self.identity.clone(),
                detail: "it was wrapped by another key".into(),
            });
        }
        Ok(key)
    }

    fn rewrap(&self, context: &KeyContext, wrapped: &WrappedKey) -> Result<WrappedKey, KeyError> {
        let answer = self.call(self.deadline(), |client| {
            let context = encryption_context(context);
            client
                .re_encrypt()
                .source_key_id(self.key_id())
                .destination_key_id(self.key_id())
                .ciphertext_blob(Blob::new(wrapped.ciphertext.as_slice()))
                .set_source_encryption_context(Some(context.clone()))
                .set_destination_encryption_context(Some(context))
                .send()
        })?;
        self.wrapped(
            answer.key_id.as_deref(),
            answer.destination_key_material_id,
            answer.ciphertext_blob,
        )
    }

    fn describe(&self) -> Result<Vec<(&'static str, String)>, KeyError> {
        let key = match self.metadata(self.deadline()) {
            Ok(key) => key,
            Err(KeyError::Denied { .. }) => {
                let problem = "the caller has no kms:DescribeKey".to_owned();
                return Ok(vec![("details", problem)]);
            }
            Err(error) => return Err(error),
        };
        let mut facts = Vec::new();
        let mut add = |name, value: Option<String>| {
            facts.extend(value.map(|value| (name, value)));
        };
        add("arn", key.arn);
        add("state", key.key_state.map(|state| state.to_string()));
        add("spec", key.key_spec.as_ref().map(ToString::to_string));
        add("origin", key.origin.map(|origin| origin.to_string()));
        let multi_region = match key.multi_region {
            Some(true) => "yes: replicas in other regions open the same files",
            _ => "no",
        };
        add("multi-Region", Some(multi_region.to_owned()));
        let problem = if key.key_manager == Some(KeyManagerType::Aws) {
            Some("an AWS managed key, which only the service it belongs to may use")
        } else if key
            .key_usage
            .is_some_and(|usage| usage != KeyUsageType::EncryptDecrypt)
            || key
                .key_spec
                .is_some_and(|spec| spec != KeySpec::SymmetricDefault)
        {
            Some("not a symmetric key for encryption")
        } else {
            None
        };
        add("not usable", problem.map(str::to_owned));
        Ok(facts)
    }

    fn advice(&self, error: &KeyError) -> Option<String> {
        let key = &self.uri.key;
        let starts = |detail: &str, codes: &[&str]| codes.iter().any(|c| detail.starts_with(c));
        Some(match error {
            KeyError::Denied { detail, .. } if detail.starts_with("login") => {
                "see that the role exists, trusts this caller, and that what it logs in with has \
                 not ended"
                    .into()
            }
            KeyError::Denied { detail, .. } if detail.starts_with("AccessDenied") => format!(
                "both the caller's IAM policy and the key policy (or the account's IAM policies \
                 through it) must allow kms:GenerateDataKey and kms:Decrypt on {key}; also \
                 kms:Encrypt where a volume has several keys, kms:ReEncrypt* for rewrapping, \
                 and kms:DescribeKey where the key is named by an alias"
            ),
            KeyError::Denied { detail, .. } if starts(detail, &["ExpiredToken"]) => {
                "the temporary credentials have ended: get new ones (aws sso login, or whatever \
                 made them)"
                    .into()
            }
            KeyError::Denied { detail, .. }
                if starts(detail, &["InvalidSignature", "SignatureDoesNotMatch"]) =>
            {
                "the secret access key is not the one that belongs to the access key id".into()
            }
            KeyError::Denied { detail, .. }
                if starts(detail, &["UnrecognizedClient", "InvalidClientTokenId"]) =>
            {
                "the access key id does not exist, is not active, or is of another partition; \
                 temporary credentials need their session token too"
                    .into()
            }
            KeyError::Denied { detail, .. }
                if starts(detail, &["InvalidKeyUsage", "UnsupportedOperation"]) =>
            {
                "make a symmetric key for encryption (SYMMETRIC_DEFAULT, ENCRYPT_DECRYPT)".into()
            }
            KeyError::NotFound { .. } => format!(
                "no such key in {}: check the id, the account and the region (region= in the key \
                 uri); a key is in one region unless it is a multi-Region key with a replica there",
                self.uri.region().unwrap_or("this region")
            ),
            KeyError::Disabled { .. } => format!(
                "aws kms enable-key --key-id {key}, or cancel-key-deletion first, or import its \
                 key material again; files cannot be opened meanwhile"
            ),
            KeyError::Unavailable { .. } => {
                "see that the endpoint can be reached from here (a private network needs a VPC \
                 endpoint, endpoint= in the key uri) and that the region is right"
                    .into()
            }
            KeyError::Throttled { .. } => {
                "the account's request quota for this region is used up: other applications share \
                 it; have it raised in Service Quotas"
                    .into()
            }
            _ => return None,
        })
    }
}
