//! `kmip://HOST[:PORT]/KEY-ID[?PARAMETERS]` and `kmip://HOST[:PORT]?name=NAME`.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use crate::keys::KeyError;
use crate::keys::kms::uri::{Endpoint, RawUri, parse_whole, percent_encode, write_query};

const HINT: &str = "write kmip://HOST/KEY-ID?ca=/PATH&cert=/PATH&key=/PATH, or \
                    kmip://HOST?name=NAME&…; docs/KMS.md has the parameters";
const DEFAULT_PORT: u16 = 5696;
/// The longest id or name of a key.
const LONGEST: usize = 255;

/// A version of the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// KMIP 1.4, the first with associated data.
    V1_4,
    /// KMIP 2.0.
    V2_0,
}

impl Version {
    /// Those that are spoken, the most common first.
    pub const ALL: [Self; 2] = [Self::V1_4, Self::V2_0];

    /// Its major and minor number.
    pub fn numbers(self) -> (i32, i32) {
        match self {
            Self::V1_4 => (1, 4),
            Self::V2_0 => (2, 0),
        }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (major, minor) = self.numbers();
        write!(f, "{major}.{minor}")
    }
}

/// What a key is named by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeyName {
    /// Its unique identifier: this very key.
    Id(String),
    /// Its name: the newest active key of that name, and those before it.
    Name(String),
}

/// A key at a KMIP server, and how this machine reaches it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KmipUri {
    /// The server.
    pub server: Endpoint,
    /// The key.
    pub key: KeyName,
    /// The server's name in wrapped keys, if it is not where it was.
    pub domain: Option<Endpoint>,
    /// The authorities that vouch for the server: a PEM file.
    pub ca: Option<PathBuf>,
    /// The client's certificate, and those up to its authority: a PEM file.
    pub certificate: Option<PathBuf>,
    /// The client's private key: a PEM file.
    pub private_key: Option<PathBuf>,
    /// The version of the protocol; else the server is asked.
    pub version: Option<Version>,
    /// How long a call may take in all.
    pub deadline: Option<Duration>,
}

impl KmipUri {
    /// The scheme, without a colon.
    pub const SCHEME: &str = "kmip";

    /// Parses a whole URI of this scheme.
    pub fn parse(text: &str) -> Result<Self, KeyError> {
        parse_whole(Self::SCHEME, text, HINT, Self::parse_rest)
    }

    fn parse_rest(rest: &str) -> Result<Self, String> {
        let mut raw = RawUri::parse(rest)?;
        let server = raw.endpoint()?;
        let id = Some(raw.path.clone()).filter(|path| !path.is_empty());
        let key = match (id, raw.take("name")) {
            (Some(id), None) => KeyName::Id(id),
            (None, Some(name)) => KeyName::Name(name),
            (Some(_), Some(_)) => return Err("it names a key twice, by id and by name".into()),
            (None, None) => return Err("it names no key".into()),
        };
        let (KeyName::Id(text) | KeyName::Name(text)) = &key;
        if text.len() > LONGEST {
            return Err(format!("a key's id or name has at most {LONGEST} bytes"));
        }
        let domain = match raw.take("domain") {
            Some(text) => Some(
                Endpoint::parse(&text)
                    .ok_or_else(|| format!("the domain {text:?} is not a server name"))?,
            ),
            None => None,
        };
        let version = match raw.take("version") {
            Some(text) => {
                let mut all = Version::ALL.into_iter();
                let known = all.find(|version| version.to_string() == text);
                Some(known.ok_or_else(|| format!("version {text:?} is neither 1.4 nor 2.0"))?)
            }
            None => None,
        };
        let uri = Self {
            server,
            key,
            domain,
            ca: raw.take_path("ca")?,
            certificate: raw.take_path("cert")?,
            private_key: raw.take_path("key")?,
            version,
            deadline: raw.take_seconds("deadline", 1..=300)?,
        };
        raw.finish()?;
        Ok(uri)
    }

    /// The server's port.
    pub fn port(&self) -> u16 {
        self.server.port.unwrap_or(DEFAULT_PORT)
    }

    /// What wrapped keys carry: the key without what holds for one machine.
    /// The server is part of it, as ids may be numbers counted from one.
    pub fn identity(&self) -> Self {
        Self {
            server: self.domain().clone(),
            key: self.key.clone(),
            domain: None,
            ca: None,
            certificate: None,
            private_key: None,
            version: None,
            deadline: None,
        }
    }

    fn domain(&self) -> &Endpoint {
        self.domain.as_ref().unwrap_or(&self.server)
    }

    /// Whether both name the same key.
    pub fn names_same_key(&self, other: &Self) -> bool {
        let place = |uri: &Self| {
            let domain = uri.domain();
            (domain.host.clone(), domain.port.unwrap_or(DEFAULT_PORT))
        };
        self.key == other.key && place(self) == place(other)
    }
}

impl fmt::Display for KmipUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = format!("{}://{}", Self::SCHEME, self.server);
        let mut parameters = Vec::new();
        match &self.key {
            KeyName::Id(id) => {
                text.push('/');
                text.push_str(&percent_encode(id, b"/,:@"));
            }
            KeyName::Name(name) => parameters.push(("name", name.clone())),
        }
        let mut add = |name, value: Option<String>| {
            parameters.extend(value.map(|value| (name, value)));
        };
        let path = |path: &Option<PathBuf>| path.as_ref().map(|path| path.display().to_string());
        add("domain", self.domain.as_ref().map(Endpoint::to_string));
        add("ca", path(&self.ca));
        add("cert", path(&self.certificate));
        add("key", path(&self.private_key));
        add("version", self.version.map(|version| version.to_string()));
        add("deadline", self.deadline.map(|d| d.as_secs().to_string()));
        write_query(&mut text, &parameters);
        f.write_str(&text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> KmipUri {
        KmipUri::parse(text).unwrap()
    }

    #[test]
    fn every_parameter_round_trips_and_server_and_key_are_the_identity() {
        let text = "kmip://hsm.example:5697/49a1ca88-6bea?domain=old.example&ca=/ca.pem\
                    &cert=/c.pem&key=/k.pem&version=2.0&deadline=5";
        let uri = parse(text);
        assert_eq!(uri.to_string(), text);
        assert_eq!((uri.port(), uri.version), (5697, Some(Version::V2_0)));
        let identity = "kmip://old.example/49a1ca88-6bea";
        assert_eq!(uri.identity().to_string(), identity);
        assert!(uri.names_same_key(&parse(identity)));
        let named = "kmip://h?name=disk%20keys%2F1&version=1.4";
        assert_eq!(parse(named).key, KeyName::Name("disk keys/1".into()));
        assert_eq!(
            parse(named).identity().to_string(),
            "kmip://h?name=disk%20keys/1"
        );
    }

    #[test]
    fn a_key_is_its_server_and_its_id_or_name() {
        let same = |a, b| parse(a).names_same_key(&parse(b));
        assert!(same("kmip://H/1", "kmip://h:5696/1"));
        assert!(!same("kmip://h/1", "kmip://other/1"));
        assert!(!same("kmip://h/1", "kmip://h:1/1"));
        assert!(!same("kmip://h/1", "kmip://h/2"));
        assert!(!same("kmip://h/1", "kmip://h?name=1"));
    }

    #[test]
    fn refuses_what_it_does_not_understand() {
        let long = format!("kmip://h/{}", "x".repeat(256));
        let bad = [
            "kmip:h/1",
            "kmip://h",
            "kmip:///1",
            "kmip://h/1?name=n",
            "kmip://h/1?ca=relative",
            "kmip://h/1?version=1.2",
            "kmip://h/1?deadline=0",
            "kmip://h/1?domain=a/b",
            "kmip://h/1?password=x",
            "kmip://user@h/1",
            "kmip://h/%00",
            &long,
        ];
        for text in bad {
            let error = KmipUri::parse(text).expect_err(text);
            assert!(matches!(
                error,
                KeyError::Configuration { hint: Some(_), .. }
            ));
        }
    }
}
