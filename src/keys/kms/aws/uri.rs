//! `awskms:///KEY[?PARAMETERS]`.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use super::arn::Key;
use crate::keys::KeyError;
use crate::keys::kms::server::Server;
use crate::keys::kms::uri::{RawUri, parse_whole, write_query};

const HINT: &str = "write awskms:///KEY-ARN, awskms:///KEY-ID?region=REGION or \
                    awskms:///alias/NAME?region=REGION; docs/KMS.md has the parameters";

/// A key of AWS KMS, and how to reach it from this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AwsUri {
    /// The key.
    pub key: Key,
    /// The region, where the key's ARN does not say.
    pub region: Option<String>,
    /// The server to ask instead of the region's own, as `https://host[:port]`.
    pub endpoint: Option<String>,
    /// Whether to ask the region's FIPS 140 endpoint.
    pub fips: bool,
    /// The authorities to believe instead of the system's: a PEM file.
    pub ca: Option<PathBuf>,
    /// The profile to take credentials from, before any other source.
    pub profile: Option<String>,
    /// The credentials file to look for the profile in, instead of the usual
    /// ones.
    pub credentials_file: Option<PathBuf>,
    /// How long a call may take in all.
    pub deadline: Option<Duration>,
}

impl AwsUri {
    /// The scheme, without a colon.
    pub const SCHEME: &str = "awskms";

    /// Parses a whole URI of this scheme.
    pub fn parse(text: &str) -> Result<Self, KeyError> {
        parse_whole(Self::SCHEME, text, HINT, Self::parse_rest)
    }

    fn parse_rest(rest: &str) -> Result<Self, String> {
        let mut raw = RawUri::parse(rest)?;
        let (server, name) = split(&raw);
        let mut key = Key::parse(&name).ok_or_else(|| format!("{name:?} is not a key"))?;
        let endpoint = match (server, raw.take("endpoint")) {
            (Some(_), Some(_)) => return Err("it names two endpoints".into()),
            (server, given) => server.or(given),
        };
        let endpoint = endpoint.map(|text| origin(&text)).transpose()?;
        let region = raw.take("region");
        if let Some(region) = &region {
            let mut bytes = region.bytes();
            if !bytes.all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
            {
                return Err(format!("{region:?} is not a region"));
            }
            key = key.in_region(region).ok_or_else(|| {
                format!("the key is in another region than {region}, and not a multi-Region key")
            })?;
        }
        let fips = match raw.take("fips").as_deref() {
            None | Some("0") => false,
            Some("1") if endpoint.is_some() => {
                return Err("fips=1 chooses an endpoint, and another one is named".into());
            }
            Some("1") => true,
            Some(_) => return Err("fips is neither 0 nor 1".into()),
        };
        let uri = Self {
            key,
            region,
            endpoint,
            fips,
            ca: raw.take_path("ca")?,
            profile: raw.take("profile"),
            credentials_file: raw.take_path("credentials-file")?,
            deadline: raw.take_seconds("deadline", 1..=300)?,
        };
        raw.finish()?;
        Ok(uri)
    }

    /// The region: the one given, the key's own, or that in the endpoint's name.
    pub fn region(&self) -> Option<&str> {
        let named = || region_in_name(self.endpoint.as_deref()?);
        let region = self.region.as_deref().or_else(|| self.key.region());
        region.or_else(named)
    }

    /// What wrapped keys carry: the key without what holds for one machine.
    pub fn identity(&self) -> String {
        identity(&self.key)
    }
}

/// The URI of a key, without what holds for one machine.
pub(super) fn identity(key: &Key) -> String {
    format!("{}:///{key}", AwsUri::SCHEME)
}

impl fmt::Display for AwsUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut parameters = Vec::new();
        let mut add = |name, value: Option<String>| {
            parameters.extend(value.map(|value| (name, value)));
        };
        let path = |path: &Option<PathBuf>| path.as_ref().map(|path| path.display().to_string());
        // An ARN says its region.
        let region = self.region.clone();
        add("region", region.filter(|_| self.key.region().is_none()));
        add("endpoint", self.endpoint.clone());
        add("fips", self.fips.then(|| "1".to_owned()));
        add("ca", path(&self.ca));
        add("profile", self.profile.clone());
        add("credentials-file", path(&self.credentials_file));
        add("deadline", self.deadline.map(|d| d.as_secs().to_string()));
        let mut text = self.identity();
        write_query(&mut text, &parameters);
        f.write_str(&text)
    }
}

/// The endpoint, if there is one, and the key. Some write the key where others
/// have the endpoint, with two slashes instead of three.
fn split(raw: &RawUri) -> (Option<String>, String) {
    let (authority, path) = (&raw.authority, &raw.path);
    match (authority.as_str(), path.is_empty()) {
        ("", _) => (None, path.clone()),
        (_, true) => (None, authority.clone()),
        ("alias", _) => (None, format!("alias/{path}")),
        (arn, _) if arn.starts_with("arn:") => (None, format!("{arn}/{path}")),
        _ => (Some(authority.clone()), path.clone()),
    }
}

/// An endpoint as `https://host[:port]`, which may be left out.
fn origin(text: &str) -> Result<String, String> {
    let server = match text.contains("://") {
        true => Server::parse(text),
        false => Server::parse(&format!("https://{text}")),
    };
    let server = server.map_err(|problem| format!("endpoint {text:?}: {problem}"))?;
    Ok(server.origin())
}

/// The region in the name of one of AWS's endpoints, public or of a VPC.
fn region_in_name(origin: &str) -> Option<&str> {
    let (_, host) = origin.split_once("://")?;
    if ![".amazonaws.com", ".amazonaws.com.cn", ".api.aws"]
        .iter()
        .any(|end| host.ends_with(end))
    {
        return None;
    }
    let mut labels = host.split('.');
    labels.find(|label| matches!(*label, "kms" | "kms-fips"))?;
    labels.next()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ARN: &str = "arn:aws:kms:eu-west-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab";

    fn parse(text: &str) -> AwsUri {
        AwsUri::parse(text).unwrap()
    }

    #[test]
    fn every_usual_way_to_write_a_key_is_understood() {
        let uri = parse(&format!("awskms:///{ARN}"));
        assert_eq!(uri.region(), Some("eu-west-1"));
        assert_eq!(uri.identity(), uri.to_string());
        assert_eq!(parse(&format!("awskms://{ARN}")), uri);
        let alias = parse("awskms:///alias/files/own?region=us-east-2");
        assert!(alias.key.is_alias());
        assert_eq!(parse("awskms://alias/files/own?region=us-east-2"), alias);
        let id = parse("awskms:///1234abcd-12ab-34cd-56ef-1234567890ab?region=us-east-2");
        assert!(!id.key.is_alias() && id.region() == Some("us-east-2"));
        assert_eq!(parse(&id.to_string().replace("///", "//")), id);
        let local = parse("awskms://localhost:4566/alias/x");
        assert_eq!(local.endpoint.as_deref(), Some("https://localhost:4566"));
        assert_eq!(local.region(), None);
    }

    #[test]
    fn every_parameter_round_trips_and_none_is_in_the_identity() {
        let text = "awskms:///alias/x?region=eu-west-1\
                    &endpoint=https://vpce-0a.kms.eu-west-1.vpce.amazonaws.com&ca=/a%20b/ca.pem\
                    &profile=prod&credentials-file=/c&deadline=5";
        let uri = parse(text);
        assert_eq!(uri.to_string(), text);
        assert_eq!(uri.identity(), "awskms:///alias/x");
        assert!(parse("awskms:///alias/x?fips=1").fips);
    }

    #[test]
    fn the_region_may_be_in_the_endpoint_s_name() {
        let region = |endpoint: &str| {
            let uri = parse(&format!("awskms:///alias/x?endpoint={endpoint}"));
            uri.region().map(str::to_owned)
        };
        let found = |endpoint| region(endpoint).unwrap();
        assert_eq!(found("kms.eu-west-1.amazonaws.com"), "eu-west-1");
        assert_eq!(found("kms-fips.us-east-1.amazonaws.com"), "us-east-1");
        assert_eq!(found("kms.cn-north-1.amazonaws.com.cn"), "cn-north-1");
        let vpc = "https://vpce-0a-b.kms.ap-south-1.vpce.amazonaws.com";
        assert_eq!(found(vpc), "ap-south-1");
        assert_eq!(region("kms.example.com"), None);
    }

    #[test]
    fn a_replica_is_named_by_its_region() {
        let key = "key/mrk-1234abcd12ab34cd56ef1234567890ab";
        let uri = parse(&format!(
            "awskms:///arn:aws:kms:us-east-1:111122223333:{key}?region=eu-west-1"
        ));
        let here = format!("awskms:///arn:aws:kms:eu-west-1:111122223333:{key}");
        assert_eq!(uri.identity(), here);
        assert_eq!(uri.to_string(), here);
    }

    #[test]
    fn refuses_what_it_does_not_understand() {
        let bad = [
            "awskms:key",
            "awskms:///",
            "awskms:///a/b",
            "awskms:///alias/",
            "awskms:///k?nosuch=1",
            "awskms:///k?region=Eu west",
            "awskms:///k?fips=2",
            "awskms:///k?fips=1&endpoint=h",
            "awskms://h/k?endpoint=h",
            "awskms:///k?endpoint=http://kms.example",
            "awskms:///k?ca=rel",
            "awskms:///k?credentials-file=rel",
            "awskms:///k?deadline=0",
            "awskms://id:secret@h/k",
            "awskms:///k%0Ax",
            "awskms:///arn:aws:s3:::bucket/key",
            "awskms:///arn:aws:kms:us-east-1:111122223333:key/abc?region=us-east-2",
        ];
        for text in bad {
            let error = AwsUri::parse(text).expect_err(text);
            assert!(matches!(
                error,
                KeyError::Configuration { hint: Some(_), .. }
            ));
        }
        let local = parse("awskms:///k?endpoint=http://127.0.0.1:80");
        assert_eq!(local.endpoint.as_deref(), Some("http://127.0.0.1:80"));
    }
}
