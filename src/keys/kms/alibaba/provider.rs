//! The provider of Alibaba Cloud KMS, over either protocol.

use std::sync::atomic::AtomicBool;

use super::client_key::ClientKey;
use super::credentials::CredentialStore;
use super::instance::Instance;
use super::openapi::{self, OpenApi};
use super::rpc::Service;
use super::target::Target;
use super::uri::{AlibabaUri, Wire, key_id};
use crate::crypto::DataKey;
use crate::keys::kms::environment::Environment;
use crate::keys::kms::http::{Http, Trust};
use crate::keys::kms::retry::DEFAULT_DEADLINE;
use crate::keys::kms::time::ClockOffset;
use crate::keys::{KeyContext, KeyError, KeyProvider, WrappedKey};
use crate::types::KeyLen;

/// A key of Alibaba Cloud KMS.
pub struct AlibabaProvider {
    uri: AlibabaUri,
    shown: String,
    protocol: Protocol,
}

enum Protocol {
    OpenApi(Box<OpenApi>),
    Instance(Instance),
}

impl AlibabaProvider {
    /// Opens a key, with credentials from `env`. Only a key named by an alias
    /// makes this ask the service: for its id, which is used from then on.
    pub fn open(uri: &AlibabaUri, env: &Environment) -> Result<Self, KeyError> {
        let named = Self::connect(uri.clone(), env)?;
        if !uri.is_alias() {
            return Ok(named);
        }
        let id = match &named.protocol {
            Protocol::OpenApi(protocol) => key_id(&protocol.describe()?.key_id),
            Protocol::Instance(protocol) => Some(protocol.resolve()?),
        };
        let id = id.filter(|id| !id.starts_with("alias/"));
        let key = id.ok_or_else(|| KeyError::Malformed {
            key: uri.identity(),
            detail: "the alias was not resolved to a key id".into(),
        })?;
        Self::connect(AlibabaUri { key, ..uri.clone() }, env)
    }

    fn connect(uri: AlibabaUri, env: &Environment) -> Result<Self, KeyError> {
        let trust = match uri.unencrypted {
            true => Trust::Unencrypted,
            false => Trust::of(uri.ca.as_deref())?,
        };
        let scheme = if uri.unencrypted { "http" } else { "https" };
        let origin = format!("{scheme}://{}", uri.endpoint);
        let identity = uri.identity();
        let http = Http::new(trust).map_err(|error| error.about(&identity, &origin))?;
        let target = Target {
            key: uri.key.clone(),
            identity,
            time: uri.deadline.unwrap_or(DEFAULT_DEADLINE),
        };
        let protocol = match uri.wire {
            Wire::OpenApi => Protocol::OpenApi(Box::new(OpenApi {
                http,
                service: Service {
                    origin,
                    version: openapi::VERSION,
                },
                credentials: CredentialStore::new(
                    target.identity.clone(),
                    env.clone(),
                    uri.profile.clone(),
                ),
                clock: ClockOffset::default(),
                target,
                dedicated: uri.is_dedicated(),
            })),
            Wire::Instance => Protocol::Instance(Instance {
                http,
                origin,
                client_key: open_client_key(&uri, env)?,
                clock: ClockOffset::default(),
                target,
                plain: AtomicBool::new(false),
            }),
        };
        Ok(Self {
            shown: uri.to_string(),
            uri,
            protocol,
        })
    }
}

impl KeyProvider for AlibabaProvider {
    fn uri(&self) -> &str {
        &self.shown
    }

    fn is_local(&self) -> bool {
        false
    }

    fn recognises(&self, wrapped: &WrappedKey) -> bool {
        AlibabaUri::parse(&wrapped.key_uri).is_ok_and(|theirs| self.uri.names_same_key(&theirs))
    }

    fn generate(
        &self,
        context: &KeyContext,
        len: KeyLen,
    ) -> Result<(DataKey, WrappedKey), KeyError> {
        match &self.protocol {
            Protocol::OpenApi(protocol) => protocol.generate(context, len),
            Protocol::Instance(protocol) => protocol.generate(context, len),
        }
    }

    fn wrap(&self, context: &KeyContext, key: &DataKey) -> Result<WrappedKey, KeyError> {
        match &self.protocol {
            Protocol::OpenApi(protocol) => protocol.wrap(context, key),
            Protocol::Instance(protocol) => protocol.wrap(context, key),
        }
    }

    fn unwrap(&self, context: &KeyContext, wrapped: &WrappedKey) -> Result<DataKey, KeyError> {
        match &self.protocol {
            Protocol::OpenApi(protocol) => protocol.unwrap(context, wrapped),
            Protocol::Instance(protocol) => protocol.unwrap(context, wrapped),
        }
    }

    fn rewrap(&self, context: &KeyContext, wrapped: &WrappedKey) -> Result<WrappedKey, KeyError> {
        match &self.protocol {
            Protocol::OpenApi(protocol) => protocol.rewrap(context, wrapped),
            Protocol::Instance(protocol) => protocol.rewrap(context, wrapped),
        }
    }

    fn describe(&self) -> Result<Vec<(&'static str, String)>, KeyError> {
        let protocol = match &self.protocol {
            Protocol::OpenApi(protocol) => protocol,
            Protocol::Instance(instance) => {
                let versions = match instance.is_plain() {
                    true => "the first one only: rotating the key has no effect on files",
                    false => "the current one",
                };
                return Ok(vec![("version used", versions.to_owned())]);
            }
        };
        let key = protocol.describe()?;
        let place = match (&key.instance, key.creator.parse::<u64>()) {
            (_, Err(_)) if !key.creator.is_empty() => {
                format!("service key of {}, not for other applications", key.creator)
            }
            (instance, _) if instance.is_empty() => {
                "in no KMS instance: a default key or one of the old KMS".to_owned()
            }
            (instance, _) => format!("in KMS instance {instance}"),
        };
        let may = |action| match protocol.may(action) {
            Ok(()) => "yes".to_owned(),
            Err(error) => format!("no: {error}"),
        };
        Ok(vec![
            ("state", key.key_state),
            ("spec", key.key_spec),
            ("usage", key.key_usage),
            ("protection", key.protection_level),
            ("version", key.primary_key_version),
            ("place", place),
            ("may generate", may("GenerateDataKey")),
            ("may encrypt", may("Encrypt")),
        ])
    }

    fn advice(&self, error: &KeyError) -> Option<String> {
        advice(error, &self.uri)
    }
}

fn open_client_key(uri: &AlibabaUri, env: &Environment) -> Result<ClientKey, KeyError> {
    let find = |given: &Option<std::path::PathBuf>, variable: &str, parameter: &str| {
        let named = given.clone().or_else(|| env.get(variable).map(Into::into));
        named.ok_or_else(|| KeyError::Configuration {
            detail: format!("the instance wire needs {parameter}"),
            hint: Some(format!(
                "add {parameter}=/path to the key uri or set {variable}"
            )),
        })
    };
    let file = find(
        &uri.client_key,
        "KMSFS_ALIBABA_CLIENT_KEY_FILE",
        "client-key",
    )?;
    let password = find(
        &uri.client_key_password,
        "KMSFS_ALIBABA_CLIENT_KEY_PASSWORD_FILE",
        "client-key-password-file",
    )?;
    ClientKey::open(&file, &password)
}

/// What to do about an error, in words.
fn advice(error: &KeyError, uri: &AlibabaUri) -> Option<String> {
    let text = match error {
        KeyError::Denied { detail, .. } => {
            let starts = |prefix: &str| detail.starts_with(prefix);
            if detail.contains("UnsupportedOperation") {
                "KMS refuses its service keys and default keys to applications of one's own, \
                 and keys that cannot encrypt: make a symmetric key (Aliyun_AES_256) in a \
                 software or hardware KMS instance and use that"
            } else if starts("Forbidden.NoPermission") {
                return Some(format!(
                    "the RAM policy and the key's own policy must allow kms:GenerateDataKey and \
                     kms:Decrypt on acs:kms:{}:ACCOUNT:key/{}, also kms:Encrypt where a volume \
                     has several keys, and kms:DescribeKey where it is named by an alias",
                    uri.region().unwrap_or("REGION"),
                    uri.key
                ));
            } else if starts("Forbidden.KmsServiceNotEnabled") {
                "switch KMS on for this account in the console"
            } else if starts("Forbidden.InDebt") {
                "the account has bills to pay before KMS serves it again"
            } else if starts("Signature") || starts("IncompleteSignature") {
                "the access key secret (or the client key) is not the one that belongs to the id"
            } else if starts("InvalidAccessKeyId") || starts("Forbidden.AccessKey") {
                "the access key id does not exist, or is disabled"
            } else if starts("InvalidSecurityToken") {
                "the temporary credentials have ended: get new ones"
            } else {
                "see what the KMS's code means in its documentation, and whether its network \
                 rules let this machine in: keys of an instance are refused on the public \
                 gateway unless its public access is switched on"
            }
        }
        KeyError::NotFound { .. } => {
            "no such key at this gateway: check the id, the region, and for a dedicated gateway \
             that the key is in that instance"
        }
        KeyError::Disabled { .. } => {
            "enable the key or cancel its deletion in the console; files cannot be opened \
             meanwhile"
        }
        KeyError::Unavailable { .. } => {
            "dedicated gateways can be reached from their own network only; outside Alibaba \
             Cloud's network use kms.REGION.aliyuncs.com"
        }
        KeyError::Throttled { .. } => {
            "the quota of calls a second is used up: 1,000 for an account and region on the \
             shared gateway, as purchased on a dedicated one"
        }
        _ => return None,
    };
    Some(text.to_owned())
}
