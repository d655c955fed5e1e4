//! `~/.aliyun/config.json`, the file of Alibaba Cloud's command line.

use serde::Deserialize;
use zeroize::Zeroizing;

use super::search::secret;
use super::{Credentials, Role, Source};
use crate::keys::kms::secret_text::SecretText;
use crate::sys::clock;

/// A chain of profiles longer than this is a circle.
const LONGEST_CHAIN: usize = 8;

#[derive(Deserialize)]
struct File {
    #[serde(default)]
    current: String,
    #[serde(default)]
    profiles: Vec<Profile>,
}

#[derive(Deserialize)]
#[serde(default)]
#[derive(Default)]
struct Profile {
    name: String,
    mode: String,
    access_key_id: String,
    access_key_secret: Option<SecretText>,
    sts_token: Option<SecretText>,
    sts_expiration: Option<u64>,
    ram_role_arn: String,
    ram_session_name: Option<String>,
    role_session_name: Option<String>,
    expired_seconds: Option<u64>,
    policy: Option<String>,
    external_id: Option<String>,
    sts_region: Option<String>,
    enable_vpc: Option<bool>,
    ram_role_name: Option<String>,
    source_profile: String,
    process_command: String,
    oidc_provider_arn: String,
    oidc_token_file: String,
    cloud_sso_sign_in_url: String,
    cloud_sso_account_id: String,
    cloud_sso_access_config: String,
    access_token: Option<SecretText>,
    oauth_site_type: String,
    oauth_access_token: Option<SecretText>,
}

/// The source that profile `name` describes, or the current one; `None` if the
/// file has no such profile.
pub(super) fn profile(text: &str, name: Option<&str>) -> Result<Option<Source>, String> {
    let file: File = serde_json::from_str(text)
        .map_err(|error| format!("line {} is not as expected", error.line()))?;
    let name = name.unwrap_or(&file.current);
    match file.profiles.iter().find(|profile| profile.name == name) {
        Some(profile) => source(&file, profile, LONGEST_CHAIN).map(Some),
        None => Ok(None),
    }
}

fn source(file: &File, profile: &Profile, depth: usize) -> Result<Source, String> {
    let name = &profile.name;
    let needed = |value: &str, field: &str| match value {
        "" => Err(format!("profile {name:?} has no {field}")),
        value => Ok(value.to_owned()),
    };
    let token = |value: &Option<SecretText>, field: &str| {
        let text = value.as_ref().map_or("", SecretText::expose);
        needed(text, field).map(Zeroizing::new)
    };
    let known = |sts: Option<String>| {
        let id = needed(&profile.access_key_id, "access_key_id")?;
        let secret = token(&profile.access_key_secret, "access_key_secret")?;
        Ok::<_, String>(Credentials::new(&id, &secret, sts))
    };
    let sts_token = || token(&profile.sts_token, "sts_token").map(|token| token.to_string());
    match profile.mode.as_str() {
        "AK" => Ok(Source::Known(known(None)?)),
        "StsToken" => Ok(Source::Known(known(Some(sts_token()?))?)),
        "RamRoleArn" => {
            let base = known(sts_token().ok())?;
            Ok(Source::Role(Box::new(Source::Known(base)), role(profile)?))
        }
        "ChainableRamRoleArn" => {
            let base_name = needed(&profile.source_profile, "source_profile")?;
            let base = file.profiles.iter().find(|other| other.name == base_name);
            let base = base.ok_or_else(|| format!("there is no profile {base_name:?}"))?;
            let left = depth
                .checked_sub(1)
                .ok_or_else(|| format!("profile {name:?} leads back to itself"))?;
            Ok(Source::Role(
                Box::new(source(file, base, left)?),
                role(profile)?,
            ))
        }
        "EcsRamRole" => Ok(Source::Metadata {
            role: profile
                .ram_role_name
                .clone()
                .filter(|role| !role.is_empty()),
            otherwise: None,
        }),
        "OIDC" => Ok(Source::Oidc {
            provider_arn: needed(&profile.oidc_provider_arn, "oidc_provider_arn")?,
            token_file: needed(&profile.oidc_token_file, "oidc_token_file")?.into(),
            role: role(profile)?,
        }),
        "External" => needed(&profile.process_command, "process_command").map(Source::Command),
        "CloudSSO" => Ok(Source::CloudSso {
            url: needed(&profile.cloud_sso_sign_in_url, "cloud_sso_sign_in_url")?,
            account: needed(&profile.cloud_sso_account_id, "cloud_sso_account_id")?,
            access: needed(&profile.cloud_sso_access_config, "cloud_sso_access_config")?,
            token: token(&profile.access_token, "access_token")?,
        }),
        "OAuth" => {
            // What the command line got with its last call serves until it ends.
            let now = clock::unix_seconds();
            if let Some(expires) = profile.sts_expiration.filter(|end| *end > now + 60) {
                let mut known = known(Some(sts_token()?))?;
                known.expires = Some(expires);
                return Ok(Source::Known(known));
            }
            let url = match profile.oauth_site_type.to_ascii_uppercase().as_str() {
                "" | "CN" => "https://oauth.aliyun.com",
                "INTL" => "https://oauth.alibabacloud.com",
                other => return Err(format!("oauth_site_type {other:?} is neither CN nor INTL")),
            };
            Ok(Source::OAuth {
                url: url.to_owned(),
                token: secret(&token(&profile.oauth_access_token, "oauth_access_token")?),
            })
        }
        other => Err(format!("profile {name:?} has the unknown mode {other:?}")),
    }
}

fn role(profile: &Profile) -> Result<Role, String> {
    if profile.ram_role_arn.is_empty() {
        return Err(format!("profile {:?} has no ram_role_arn", profile.name));
    }
    let text = |value: &Option<String>| value.clone().filter(|text| !text.is_empty());
    Ok(Role {
        arn: profile.ram_role_arn.clone(),
        session: text(&profile.ram_session_name).or_else(|| text(&profile.role_session_name)),
        seconds: profile.expired_seconds.filter(|seconds| *seconds > 0),
        policy: text(&profile.policy),
        external_id: text(&profile.external_id),
        region: text(&profile.sts_region),
        vpc: profile.enable_vpc,
    })
}
