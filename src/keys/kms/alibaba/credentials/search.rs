//! The order in which the places are searched.

use zeroize::Zeroizing;

use super::{Credentials, Role, Source, files, json};
use crate::keys::KeyError;
use crate::keys::kms::environment::Environment;

const NONE: &str = "no credentials for Alibaba Cloud were found";
const HINT: &str = "set ALIBABA_CLOUD_ACCESS_KEY_ID and ALIBABA_CLOUD_ACCESS_KEY_SECRET, \
                    run aliyun configure, or see docs/KMS.md for the other ways";

/// Where to get an access key. With a `profile`, only the credential files are
/// searched, and only for it.
pub(super) fn search(env: &Environment, profile: Option<&str>) -> Result<Source, KeyError> {
    if let Some(profile) = profile {
        let from_cli = from_cli_file(env, Some(profile))?;
        let found = match from_cli {
            Some(source) => Some(source),
            None => from_ini_file(env, Some(profile))?,
        };
        return found.ok_or_else(|| KeyError::Configuration {
            detail: format!("no credential file has a profile {profile:?}"),
            hint: Some(
                "the files are ~/.aliyun/config.json and ~/.alibabacloud/credentials.ini".into(),
            ),
        });
    }
    if let Some(source) = from_variables(env) {
        return Ok(source);
    }
    if let Some(source) = from_oidc_variables(env) {
        return Ok(source);
    }
    let named = env.get("ALIBABA_CLOUD_PROFILE");
    if let Some(source) = from_cli_file(env, named)? {
        return Ok(source);
    }
    if let Some(source) = from_ini_file(env, named)? {
        return Ok(source);
    }
    let uri = env.get("ALIBABA_CLOUD_CREDENTIALS_URI").map(str::to_owned);
    if !env.is_true("ALIBABA_CLOUD_ECS_METADATA_DISABLED") {
        return Ok(Source::Metadata {
            role: env.get("ALIBABA_CLOUD_ECS_METADATA").map(str::to_owned),
            otherwise: uri,
        });
    }
    uri.map(Source::Uri).ok_or_else(missing)
}

/// The error of having found nothing.
pub(super) fn missing() -> KeyError {
    KeyError::Configuration {
        detail: NONE.into(),
        hint: Some(HINT.into()),
    }
}

fn from_variables(env: &Environment) -> Option<Source> {
    let id = env.get("ALIBABA_CLOUD_ACCESS_KEY_ID")?;
    let secret = env.get("ALIBABA_CLOUD_ACCESS_KEY_SECRET")?;
    let token = env.get("ALIBABA_CLOUD_SECURITY_TOKEN").map(str::to_owned);
    Some(Source::Known(Credentials::new(id, secret, token)))
}

fn from_oidc_variables(env: &Environment) -> Option<Source> {
    Some(Source::Oidc {
        token_file: env.get("ALIBABA_CLOUD_OIDC_TOKEN_FILE")?.into(),
        provider_arn: env.get("ALIBABA_CLOUD_OIDC_PROVIDER_ARN")?.to_owned(),
        role: Role {
            arn: env.get("ALIBABA_CLOUD_ROLE_ARN")?.to_owned(),
            session: env
                .get("ALIBABA_CLOUD_ROLE_SESSION_NAME")
                .map(str::to_owned),
            ..Role::default()
        },
    })
}

fn from_cli_file(env: &Environment, profile: Option<&str>) -> Result<Option<Source>, KeyError> {
    if env.is_true("ALIBABA_CLOUD_CLI_PROFILE_DISABLED") {
        return Ok(None);
    }
    let Some(path) = env.in_home(".aliyun/config.json") else {
        return Ok(None);
    };
    match files::read(&path)? {
        Some(text) => json::profile(&text, profile).map_err(|problem| unusable(&path, &problem)),
        None => Ok(None),
    }
}

fn from_ini_file(env: &Environment, profile: Option<&str>) -> Result<Option<Source>, KeyError> {
    let named = env.get("ALIBABA_CLOUD_CREDENTIALS_FILE").map(Into::into);
    let Some(path) = named.or_else(|| env.in_home(".alibabacloud/credentials.ini")) else {
        return Ok(None);
    };
    let Some(text) = files::read(&path)? else {
        return Ok(None);
    };
    let section = files::ini_section(&text, profile.unwrap_or("default"));
    section
        .map(|section| ini_source(&section))
        .transpose()
        .map_err(|problem| unusable(&path, &problem))
}

fn ini_source(section: &files::Section<'_>) -> Result<Source, String> {
    let field = |name: &str| {
        let value = section.get(name).filter(|value| !value.is_empty());
        value.copied().ok_or_else(|| format!("{name} is missing"))
    };
    let optional = |name: &str| field(name).ok().map(str::to_owned);
    let known = || {
        let (id, secret) = (field("access_key_id")?, field("access_key_secret")?);
        Ok::<_, String>(Source::Known(Credentials::new(id, secret, None)))
    };
    let role = || {
        Ok::<_, String>(Role {
            arn: field("role_arn")?.to_owned(),
            session: optional("role_session_name"),
            policy: optional("policy"),
            ..Role::default()
        })
    };
    match field("type")? {
        "access_key" => known(),
        "sts" => {
            let (id, secret) = (field("access_key_id")?, field("access_key_secret")?);
            let token = Some(field("security_token")?.to_owned());
            Ok(Source::Known(Credentials::new(id, secret, token)))
        }
        "ram_role_arn" => Ok(Source::Role(Box::new(known()?), role()?)),
        "oidc_role_arn" => Ok(Source::Oidc {
            provider_arn: field("oidc_provider_arn")?.to_owned(),
            token_file: field("oidc_token_file_path")?.into(),
            role: role()?,
        }),
        "ecs_ram_role" => Ok(Source::Metadata {
            role: optional("role_name"),
            otherwise: None,
        }),
        other => Err(format!("credentials of type {other:?} are not supported")),
    }
}

fn unusable(path: &std::path::Path, problem: &str) -> KeyError {
    KeyError::Configuration {
        detail: format!(
            "the credential file {} cannot be used: {problem}",
            path.display()
        ),
        hint: None,
    }
}

/// A token to be sent along, wiped after use.
pub(super) fn secret(text: &str) -> Zeroizing<String> {
    Zeroizing::new(text.to_owned())
}
