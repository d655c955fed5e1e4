//! `azurekms://VAULT.vault.azure.net/KEY[/VERSION][?PARAMETERS]`.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use crate::keys::KeyError;
use crate::keys::kms::uri::{Endpoint, RawUri, parse_whole, write_query};

const HINT: &str = "write azurekms://VAULT.vault.azure.net/KEY or \
                    azurekms://HSM.managedhsm.azure.net/KEY; docs/KMS.md has the parameters";
/// Where vaults and HSMs are, in each of Azure's clouds.
const DOMAINS: [&str; 6] = [
    ".vault.azure.net",
    ".vault.azure.cn",
    ".vault.usgovcloudapi.net",
    ".managedhsm.azure.net",
    ".managedhsm.azure.cn",
    ".managedhsm.usgovcloudapi.net",
];

/// How a key wraps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Algorithm {
    /// An RSA key, with OAEP and SHA-256.
    RsaOaep256,
    /// An AES key of a Managed HSM, with AES key wrap.
    A256Kw,
}

impl Algorithm {
    const ALL: [(Self, &str); 2] = [(Self::RsaOaep256, "RSA-OAEP-256"), (Self::A256Kw, "A256KW")];

    /// The service's name for it.
    pub fn name(self) -> &'static str {
        let found = Self::ALL.into_iter().find(|(own, _)| *own == self);
        found.map_or("", |(_, name)| name)
    }

    /// The algorithm of that name.
    pub fn named(name: &str) -> Option<Self> {
        let found = Self::ALL.into_iter().find(|(_, own)| *own == name);
        found.map(|(own, _)| own)
    }
}

/// A key of a vault or Managed HSM, and how to reach it from this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AzureUri {
    /// The vault or HSM.
    pub endpoint: Endpoint,
    /// The key's name.
    pub key: String,
    /// The version to wrap with, if not the current one.
    pub version: Option<String>,
    /// How to wrap, if not as keys there mostly do.
    pub algorithm: Option<Algorithm>,
    /// The authorities to believe instead of the system's: a PEM file.
    pub ca: Option<PathBuf>,
    /// For how long a key that was seen to unwrap is believed to do so.
    pub verify: Option<Duration>,
    /// How long a call may take in all.
    pub deadline: Option<Duration>,
}

impl AzureUri {
    /// The scheme, without a colon.
    pub const SCHEME: &str = "azurekms";

    /// Parses a whole URI of this scheme.
    pub fn parse(text: &str) -> Result<Self, KeyError> {
        parse_whole(Self::SCHEME, text, HINT, Self::parse_rest)
    }

    fn parse_rest(rest: &str) -> Result<Self, String> {
        let mut raw = RawUri::parse(rest)?;
        let endpoint = raw.endpoint()?;
        let known = DOMAINS.iter().any(|domain| endpoint.host.ends_with(domain));
        if !endpoint.is_loopback() && !known {
            let host = &endpoint.host;
            return Err(format!("{host} is not a vault or Managed HSM of Azure"));
        }
        let (key, version) = match raw.path.split_once('/') {
            Some((key, version)) => (key, Some(version)),
            None => (raw.path.as_str(), None),
        };
        let parts = [Some(key), version].into_iter().flatten();
        for part in parts {
            if !is_name(part) {
                return Err(format!("{part:?} is not the name or version of a key"));
            }
        }
        let (key, version) = (key.to_owned(), version.map(str::to_owned));
        let algorithm =
            match raw.take("algorithm") {
                None => None,
                Some(name) => Some(Algorithm::named(&name).ok_or_else(|| {
                    format!("algorithm {name:?} is neither RSA-OAEP-256 nor A256KW")
                })?),
            };
        let uri = Self {
            key,
            version,
            algorithm,
            ca: raw.take_path("ca")?,
            verify: raw.take_seconds("verify", 0..=3600)?,
            deadline: raw.take_seconds("deadline", 1..=300)?,
            endpoint,
        };
        raw.finish()?;
        Ok(uri)
    }

    /// How the key wraps.
    pub fn algorithm(&self) -> Algorithm {
        let hsm = self.endpoint.host.contains(".managedhsm.");
        self.algorithm.unwrap_or(match hsm {
            true => Algorithm::A256Kw,
            false => Algorithm::RsaOaep256,
        })
    }

    /// What wrapped keys carry: the key without what holds for one machine, and
    /// without the version, which they carry beside it.
    pub fn identity(&self) -> String {
        format!("{}://{}/{}", Self::SCHEME, self.endpoint, self.key)
    }

    /// Whether both name the same key, whatever version.
    pub fn names_same_key(&self, other: &Self) -> bool {
        self.endpoint == other.endpoint && self.key == other.key
    }
}

impl fmt::Display for AzureUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut parameters = Vec::new();
        let mut add = |name, value: Option<String>| {
            parameters.extend(value.map(|value| (name, value)));
        };
        let seconds = |time: Option<Duration>| time.map(|time| time.as_secs().to_string());
        add("algorithm", self.algorithm.map(|a| a.name().to_owned()));
        add("ca", self.ca.as_ref().map(|ca| ca.display().to_string()));
        add("verify", seconds(self.verify));
        add("deadline", seconds(self.deadline));
        let mut text = self.identity();
        if let Some(version) = &self.version {
            text.push('/');
            text.push_str(version);
        }
        write_query(&mut text, &parameters);
        f.write_str(&text)
    }
}

/// Whether it is what Azure allows as a key's name or version.
pub(super) fn is_name(text: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || c == '-';
    (1..=127).contains(&text.len()) && text.chars().all(allowed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> AzureUri {
        AzureUri::parse(text).unwrap()
    }

    #[test]
    fn the_shortest_form_is_enough() {
        let uri = parse("azurekms://My-vault.vault.azure.net/Files");
        assert_eq!(uri.identity(), "azurekms://my-vault.vault.azure.net/Files");
        assert_eq!(uri.identity(), uri.to_string());
        assert_eq!(uri.algorithm(), Algorithm::RsaOaep256);
        let hsm = parse("azurekms://h.managedhsm.azure.net/k");
        assert_eq!(hsm.algorithm(), Algorithm::A256Kw);
    }

    #[test]
    fn every_parameter_round_trips_and_none_is_in_the_identity() {
        let text = "azurekms://h.managedhsm.azure.cn/k/0123abc?algorithm=RSA-OAEP-256\
                    &ca=/a%20b/ca.pem&verify=0&deadline=5";
        let uri = parse(text);
        assert_eq!(uri.to_string(), text);
        assert_eq!(uri.version.as_deref(), Some("0123abc"));
        assert_eq!(uri.algorithm(), Algorithm::RsaOaep256);
        assert_eq!(uri.identity(), "azurekms://h.managedhsm.azure.cn/k");
        assert!(uri.names_same_key(&parse(&uri.identity())));
        assert!(!uri.names_same_key(&parse("azurekms://h.managedhsm.azure.net/k")));
    }

    #[test]
    fn refuses_what_it_does_not_understand() {
        let bad = [
            "azurekms:k",
            "azurekms://v.vault.azure.net/",
            "azurekms://v.vault.azure.net/k/v/x",
            "azurekms://v.vault.azure.net/k_1",
            "azurekms://v.vault.azure.net/k/",
            "azurekms://v.vault.azure.net/k%2F..%2Fx",
            "azurekms://vault.azure.net/k",
            "azurekms://v.vault.azure.net.evil.example/k",
            "azurekms://v.vault.azure.net/k?algorithm=RSA1_5",
            "azurekms://v.vault.azure.net/k?secret=x",
            "azurekms://v.vault.azure.net/k?ca=relative",
            "azurekms://v.vault.azure.net/k?verify=3601",
            "azurekms://id:secret@v.vault.azure.net/k",
        ];
        for text in bad {
            let error = AzureUri::parse(text).expect_err(text);
            assert!(matches!(
                error,
                KeyError::Configuration { hint: Some(_), .. }
            ));
        }
        assert!(parse("azurekms://localhost:8443/k").endpoint.is_loopback());
    }
}
