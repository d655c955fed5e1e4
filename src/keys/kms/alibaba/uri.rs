//! `alibabakms://ENDPOINT/KEY[?PARAMETERS]`.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use crate::keys::KeyError;
use crate::keys::kms::uri::{Endpoint, RawUri, parse_whole, write_query};

const HINT: &str = "write alibabakms://kms.REGION.aliyuncs.com/KEY-ID, \
                    or alibabakms://ENDPOINT/alias/NAME; docs/KMS.md has the parameters";
const DEDICATED: &str = ".cryptoservice.kms.aliyuncs.com";

/// Which protocol to speak.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wire {
    /// The OpenAPI, with an access key.
    OpenApi,
    /// The protocol of KMS instances, with a client key.
    Instance,
}

/// A key of Alibaba Cloud KMS, and how to reach it from this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AlibabaUri {
    /// The gateway.
    pub endpoint: Endpoint,
    /// The key's id, or `alias/NAME`.
    pub key: String,
    /// The protocol.
    pub wire: Wire,
    /// The region, where the endpoint does not say.
    pub region: Option<String>,
    /// The authorities to believe instead of the system's: a PEM file.
    pub ca: Option<PathBuf>,
    /// Whether to do without TLS, which only tests on this machine may.
    pub unencrypted: bool,
    /// The client key file.
    pub client_key: Option<PathBuf>,
    /// The file with the client key's password.
    pub client_key_password: Option<PathBuf>,
    /// The profile of the credential files to use, before any other source.
    pub profile: Option<String>,
    /// How long a call may take in all.
    pub deadline: Option<Duration>,
}

impl AlibabaUri {
    /// The scheme, without a colon.
    pub const SCHEME: &str = "alibabakms";

    /// Parses a whole URI of this scheme.
    pub fn parse(text: &str) -> Result<Self, KeyError> {
        parse_whole(Self::SCHEME, text, HINT, Self::parse_rest)
    }

    fn parse_rest(rest: &str) -> Result<Self, String> {
        let mut raw = RawUri::parse(rest)?;
        let client_key = raw.take_path("client-key")?;
        let endpoint = raw.endpoint()?;
        let wire = match raw.take("wire").as_deref() {
            Some("openapi") => Wire::OpenApi,
            Some("instance") => Wire::Instance,
            Some(other) => return Err(format!("wire {other:?} is neither openapi nor instance")),
            None if client_key.is_some() => Wire::Instance,
            None => Wire::OpenApi,
        };
        if wire == Wire::OpenApi && client_key.is_some() {
            return Err("a client key is of no use to the openapi wire".into());
        }
        let unencrypted = match raw.take("http").as_deref() {
            None | Some("0") => false,
            Some("1") if endpoint.is_loopback() => true,
            Some("1") => return Err("http=1 is for servers on this machine only".into()),
            Some(_) => return Err("http is neither 0 nor 1".into()),
        };
        let uri = Self {
            key: key_id(&raw.path).ok_or_else(|| format!("{:?} is not a key id", raw.path))?,
            wire,
            region: raw.take("region"),
            ca: raw.take_path("ca")?,
            unencrypted,
            client_key,
            client_key_password: raw.take_path("client-key-password-file")?,
            profile: raw.take("profile"),
            deadline: raw.take_seconds("deadline", 1..=300)?,
            endpoint,
        };
        raw.finish()?;
        Ok(uri)
    }

    /// Whether the key is named by an alias, which can be pointed elsewhere.
    pub fn is_alias(&self) -> bool {
        self.key.starts_with("alias/")
    }

    /// Whether the gateway is that of one KMS instance.
    pub fn is_dedicated(&self) -> bool {
        self.endpoint.host.ends_with(DEDICATED)
    }

    /// The region: the one given, else the one in the endpoint's name.
    pub fn region(&self) -> Option<&str> {
        let named = || {
            let rest = self.endpoint.host.strip_suffix(".aliyuncs.com")?;
            let (service, region) = rest.split_once('.')?;
            (matches!(service, "kms" | "kms-vpc") && !region.contains('.')).then_some(region)
        };
        self.region.as_deref().or_else(named)
    }

    /// What wrapped keys carry: the key without what holds for one machine.
    pub fn identity(&self) -> String {
        let mut text = format!("{}://{}/{}", Self::SCHEME, self.endpoint, self.key);
        if self.wire == Wire::Instance {
            text.push_str("?wire=instance");
        }
        text
    }

    /// Whether both name the same key. Gateways do not matter, as key ids are
    /// unique; protocols do, as one cannot unwrap what the other wrapped.
    pub fn names_same_key(&self, other: &Self) -> bool {
        self.key == other.key && self.wire == other.wire
    }
}

impl fmt::Display for AlibabaUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut parameters = Vec::new();
        let mut add = |name, value: Option<String>| {
            parameters.extend(value.map(|value| (name, value)));
        };
        let path = |path: &Option<PathBuf>| path.as_ref().map(|path| path.display().to_string());
        add(
            "wire",
            (self.wire == Wire::Instance).then(|| "instance".to_owned()),
        );
        add("region", self.region.clone());
        add("ca", path(&self.ca));
        add("http", self.unencrypted.then(|| "1".to_owned()));
        add("client-key", path(&self.client_key));
        add("client-key-password-file", path(&self.client_key_password));
        add("profile", self.profile.clone());
        add("deadline", self.deadline.map(|d| d.as_secs().to_string()));
        let mut text = format!("{}://{}/{}", Self::SCHEME, self.endpoint, self.key);
        write_query(&mut text, &parameters);
        f.write_str(&text)
    }
}

/// A key's id, freed of the `acs:kms:REGION:ACCOUNT:key/` that may be in front.
pub(super) fn key_id(text: &str) -> Option<String> {
    let text = match text.strip_prefix("acs:kms:") {
        Some(rest) => {
            let resource = rest.splitn(3, ':').nth(2)?;
            resource.strip_prefix("key/").unwrap_or(resource)
        }
        None => text,
    };
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '/' | '.');
    let plain = !text.contains('/') || text.strip_prefix("alias/").is_some_and(|n| !n.is_empty());
    let fits = (1..=255).contains(&text.len());
    (fits && plain && text.chars().all(allowed)).then(|| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> AlibabaUri {
        AlibabaUri::parse(text).unwrap()
    }

    #[test]
    fn the_shortest_form_is_enough() {
        let uri = parse("alibabakms://kms.cn-hangzhou.aliyuncs.com/key-hzz1234");
        assert_eq!(uri.wire, Wire::OpenApi);
        assert_eq!(uri.region(), Some("cn-hangzhou"));
        assert!(!uri.is_alias() && !uri.is_dedicated());
        assert_eq!(uri.identity(), uri.to_string());
        let vpc = parse("alibabakms://kms-vpc.eu-central-1.aliyuncs.com/alias/files/own");
        assert_eq!(vpc.region(), Some("eu-central-1"));
        assert!(vpc.is_alias());
    }

    #[test]
    fn every_parameter_round_trips_and_none_is_in_the_identity() {
        let text = "alibabakms://kst-1.cryptoservice.kms.aliyuncs.com:8443/key-1\
                    ?wire=instance&region=cn-beijing&ca=/a%20b/ca.pem&client-key=/k.json\
                    &client-key-password-file=/p&profile=prod&deadline=5";
        let uri = parse(text);
        assert_eq!(uri.to_string(), text);
        assert!(uri.is_dedicated());
        assert_eq!(uri.region(), Some("cn-beijing"));
        assert_eq!(
            uri.identity(),
            "alibabakms://kst-1.cryptoservice.kms.aliyuncs.com:8443/key-1?wire=instance"
        );
        assert!(uri.names_same_key(&parse(&uri.identity())));
        assert!(!uri.names_same_key(&parse("alibabakms://x/key-1")));
        assert!(uri.names_same_key(&parse("alibabakms://vpc.example/key-1?wire=instance")));
    }

    #[test]
    fn resource_names_are_reduced_to_ids() {
        let uri = parse("alibabakms://h/acs:kms:cn-hangzhou:123456:key/key-1");
        assert_eq!(uri.key, "key-1");
        let uri = parse("alibabakms://h/acs:kms:cn-hangzhou:123456:alias/a");
        assert_eq!(uri.key, "alias/a");
    }

    #[test]
    fn refuses_what_it_does_not_understand() {
        let bad = [
            "alibabakms:key",
            "alibabakms://h/",
            "alibabakms://h/a/b",
            "alibabakms://h/alias/",
            "alibabakms://h/k?nosuch=1",
            "alibabakms://h/k?wire=soap",
            "alibabakms://h/k?http=1",
            "alibabakms://kms.example/k?ca=rel",
            "alibabakms://h/k?deadline=0",
            "alibabakms://h/k?wire=openapi&client-key=/k",
            "alibabakms://id:secret@h/k",
            "alibabakms://h/k%0Ax",
        ];
        for text in bad {
            let error = AlibabaUri::parse(text).expect_err(text);
            assert!(matches!(
                error,
                KeyError::Configuration { hint: Some(_), .. }
            ));
        }
        assert!(parse("alibabakms://127.0.0.1:80/k?http=1").unencrypted);
    }
}
