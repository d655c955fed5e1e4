//! `gcpkms://projects/P/locations/L/keyRings/R/cryptoKeys/K[?PARAMETERS]`.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use crate::keys::KeyError;
use crate::keys::kms::server::Server;
use crate::keys::kms::uri::{RawUri, parse_whole, write_query};

const HINT: &str = "write gcpkms://projects/PROJECT/locations/LOCATION/keyRings/RING/cryptoKeys/KEY; \
                    docs/KMS.md has the parameters";
/// Where access tokens may be sent: a volume's configuration, which names the
/// endpoint, is not protected.
const DOMAIN: &str = ".googleapis.com";

/// A key of Google Cloud KMS, and how to reach it from this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GcpUri {
    /// `projects/P/locations/L/keyRings/R/cryptoKeys/K`.
    pub resource: String,
    /// The server, if not the usual one.
    pub endpoint: Option<Server>,
    /// The authorities to believe instead of the system's: a PEM file.
    pub ca: Option<PathBuf>,
    /// How long a call may take in all.
    pub deadline: Option<Duration>,
}

impl GcpUri {
    /// The scheme, without a colon.
    pub const SCHEME: &str = "gcpkms";

    /// Parses a whole URI of this scheme.
    pub fn parse(text: &str) -> Result<Self, KeyError> {
        parse_whole(Self::SCHEME, text, HINT, Self::parse_rest)
    }

    fn parse_rest(rest: &str) -> Result<Self, String> {
        let mut raw = RawUri::parse(rest)?;
        let resource = format!("{}/{}", raw.authority, raw.path);
        check_resource(&resource)?;
        let endpoint = match raw.take("endpoint") {
            None => None,
            Some(text) => {
                let server = Server::parse(&text)
                    .map_err(|problem| format!("endpoint {text:?} cannot be used: {problem}"))?;
                let host = &server.endpoint.host;
                if !host.ends_with(DOMAIN) && !server.endpoint.is_loopback() {
                    return Err(format!("endpoint {text:?} is not one of Google's"));
                }
                Some(server)
            }
        };
        let uri = Self {
            resource,
            endpoint,
            ca: raw.take_path("ca")?,
            deadline: raw.take_seconds("deadline", 1..=300)?,
        };
        raw.finish()?;
        Ok(uri)
    }

    /// What wrapped keys carry: the key without what holds for one machine.
    pub fn identity(&self) -> String {
        format!("{}://{}", Self::SCHEME, self.resource)
    }

    /// Whether both name the same key.
    pub fn names_same_key(&self, other: &Self) -> bool {
        self.resource == other.resource
    }
}

/// Says what is wrong with the name of a key.
fn check_resource(resource: &str) -> Result<(), String> {
    let parts: Vec<&str> = resource.split('/').collect();
    let names = match parts[..] {
        [
            "projects",
            p,
            "locations",
            l,
            "keyRings",
            r,
            "cryptoKeys",
            k,
        ] => [p, l, r, k],
        [.., "cryptoKeyVersions" | "versions", _] => {
            return Err("it names a version; Cloud KMS wraps with the primary one".into());
        }
        _ => return Err(format!("{resource:?} is not the name of a key")),
    };
    // Projects of an organisation's domain are written example.com:project.
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | ':');
    let sound =
        |name: &str| name.chars().all(allowed) && name.chars().any(|c| c.is_ascii_alphanumeric());
    match names.into_iter().find(|name| !sound(name)) {
        Some(name) => Err(format!("{name:?} is not a name")),
        None => Ok(()),
    }
}

impl fmt::Display for GcpUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut parameters = Vec::new();
        let mut add = |name, value: Option<String>| {
            parameters.extend(value.map(|value| (name, value)));
        };
        add("endpoint", self.endpoint.as_ref().map(Server::origin));
        add("ca", self.ca.as_ref().map(|ca| ca.display().to_string()));
        add("deadline", self.deadline.map(|d| d.as_secs().to_string()));
        let mut text = self.identity();
        write_query(&mut text, &parameters);
        f.write_str(&text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str =
        "gcpkms://projects/example.com:p-1/locations/europe-west3/keyRings/r_1/cryptoKeys/K";

    fn parse(text: &str) -> GcpUri {
        GcpUri::parse(text).unwrap()
    }

    #[test]
    fn the_shortest_form_is_enough() {
        let uri = parse(KEY);
        assert_eq!(
            uri.resource,
            "projects/example.com:p-1/locations/europe-west3/keyRings/r_1/cryptoKeys/K"
        );
        assert_eq!((uri.identity(), uri.to_string()), (KEY.into(), KEY.into()));
    }

    #[test]
    fn every_parameter_round_trips_and_none_is_in_the_identity() {
        let text = format!(
            "{KEY}?endpoint=https://cloudkms-x.p.googleapis.com&ca=/a%20b/ca.pem&deadline=5"
        );
        let uri = parse(&text);
        assert_eq!(uri.to_string(), text);
        assert_eq!(uri.identity(), KEY);
        assert!(uri.names_same_key(&parse(KEY)));
        assert!(!uri.names_same_key(&parse(&format!("{KEY}2"))));
    }

    #[test]
    fn refuses_what_it_does_not_understand() {
        let more = |rest: &str| format!("{KEY}{rest}");
        let bad = [
            "gcpkms:projects/p".into(),
            "gcpkms://projects/p/locations/l/keyRings/r".into(),
            "gcpkms://projects/p/locations/l/keyRings/r/cryptoKeys/".into(),
            "gcpkms://projects/p/locations/../keyRings/r/cryptoKeys/k".into(),
            "gcpkms://projects/p/locations/l/keyRings/r%3F/cryptoKeys/k".into(),
            more("/cryptoKeyVersions/1"),
            more("?endpoint=https://evil.example"),
            more("?endpoint=https://evilgoogleapis.com"),
            more("?endpoint=http://cloudkms.googleapis.com"),
            more("?credentials=/key.json"),
            more("?ca=relative"),
            more("?deadline=0"),
        ];
        for text in bad {
            let error = GcpUri::parse(&text).expect_err(&text);
            assert!(matches!(
                error,
                KeyError::Configuration { hint: Some(_), .. }
            ));
        }
        let local = parse(&more("?endpoint=http://127.0.0.1:80"));
        assert!(!local.endpoint.unwrap().encrypted);
    }
}
