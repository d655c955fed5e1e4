//! `hashivault://KEY[?PARAMETERS]`.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use crate::keys::KeyError;
use crate::keys::kms::uri::{RawUri, parse_whole, write_query};

const HINT: &str = "write hashivault://KEY or hashivault://KEY?mount=MOUNT and set VAULT_ADDR; \
                    docs/KMS.md has the parameters";
const DEFAULT_MOUNT: &str = "transit";

/// How to log in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// With a token that was made elsewhere.
    Token,
    /// With a role id and a secret id.
    AppRole,
    /// With the token of a Kubernetes service account.
    Kubernetes,
}

impl Method {
    const ALL: [(Self, &str); 3] = [
        (Self::Token, "token"),
        (Self::AppRole, "approle"),
        (Self::Kubernetes, "kubernetes"),
    ];

    /// Its name, which is also where it is mounted unless someone chose
    /// another place.
    pub(super) fn name(self) -> &'static str {
        let found = Self::ALL.into_iter().find(|(method, _)| *method == self);
        found.map_or("", |(_, name)| name)
    }
}

/// A key of the transit engine, and how to reach it from this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VaultUri {
    /// The key's name.
    pub key: String,
    /// Where the transit engine is mounted.
    pub mount: String,
    /// The namespace, where the environment does not say.
    pub namespace: Option<String>,
    /// The server, where the environment does not say.
    pub address: Option<String>,
    /// The authorities to believe instead of the system's: a PEM file.
    pub ca: Option<PathBuf>,
    /// How to log in; else whatever the environment has enough for.
    pub method: Option<Method>,
    /// Where that method is mounted.
    pub method_mount: Option<String>,
    /// The role to log in as, for Kubernetes.
    pub role: Option<String>,
    /// The file with the token.
    pub token_file: Option<PathBuf>,
    /// The file with AppRole's role id.
    pub role_id_file: Option<PathBuf>,
    /// The file with AppRole's secret id.
    pub secret_id_file: Option<PathBuf>,
    /// The file with the service account's token.
    pub jwt_file: Option<PathBuf>,
    /// How long a call may take in all.
    pub deadline: Option<Duration>,
}

impl VaultUri {
    /// The scheme, without a colon.
    pub const SCHEME: &str = "hashivault";

    /// Parses a whole URI of this scheme.
    pub fn parse(text: &str) -> Result<Self, KeyError> {
        parse_whole(Self::SCHEME, text, HINT, Self::parse_rest)
    }

    fn parse_rest(rest: &str) -> Result<Self, String> {
        let mut raw = RawUri::parse(rest)?;
        if !raw.path.is_empty() {
            return Err("a key's name has no '/'; name the engine's place with mount=".into());
        }
        let key = raw.authority.clone();
        if !is_path(&key) {
            return Err(format!("{key:?} is not a key's name"));
        }
        let mut take_mount = |name: &str| match raw.take(name) {
            Some(mount) if !is_path(&mount) => Err(format!("{name} {mount:?} is not a path")),
            mount => Ok(mount),
        };
        let mount = take_mount("mount")?.unwrap_or_else(|| DEFAULT_MOUNT.to_owned());
        let method_mount = take_mount("auth-mount")?;
        let namespace = take_mount("namespace")?;
        let method = match raw.take("auth") {
            None => None,
            Some(name) => {
                let known = Method::ALL.into_iter().find(|(_, known)| *known == name);
                let known = known.ok_or_else(|| {
                    format!("auth {name:?} is none of token, approle and kubernetes")
                })?;
                Some(known.0)
            }
        };
        let uri = Self {
            key,
            mount,
            namespace,
            address: raw.take("address"),
            ca: raw.take_path("ca")?,
            method,
            method_mount,
            role: raw.take("role"),
            token_file: raw.take_path("token-file")?,
            role_id_file: raw.take_path("role-id-file")?,
            secret_id_file: raw.take_path("secret-id-file")?,
            jwt_file: raw.take_path("jwt-file")?,
            deadline: raw.take_seconds("deadline", 1..=300)?,
        };
        raw.finish()?;
        Ok(uri)
    }

    /// What wrapped keys carry: the key without what holds for one machine.
    /// Servers come and go, so the address is none of it.
    pub fn identity(&self) -> String {
        let mut text = format!("{}://{}", Self::SCHEME, self.key);
        write_query(&mut text, &self.place());
        text
    }

    fn place(&self) -> Vec<(&'static str, String)> {
        let mut parameters = Vec::new();
        if self.mount != DEFAULT_MOUNT {
            parameters.push(("mount", self.mount.clone()));
        }
        parameters.extend(self.namespace.clone().map(|name| ("namespace", name)));
        parameters
    }

    /// Whether both name the same key.
    pub fn names_same_key(&self, other: &Self) -> bool {
        let place = |uri: &Self| (uri.key.clone(), uri.mount.clone(), uri.namespace.clone());
        place(self) == place(other)
    }
}

impl fmt::Display for VaultUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut parameters = self.place();
        let mut add = |name, value: Option<String>| {
            parameters.extend(value.map(|value| (name, value)));
        };
        let path = |path: &Option<PathBuf>| path.as_ref().map(|path| path.display().to_string());
        add("address", self.address.clone());
        add("ca", path(&self.ca));
        add("auth", self.method.map(|method| method.name().to_owned()));
        add("auth-mount", self.method_mount.clone());
        add("role", self.role.clone());
        add("token-file", path(&self.token_file));
        add("role-id-file", path(&self.role_id_file));
        add("secret-id-file", path(&self.secret_id_file));
        add("jwt-file", path(&self.jwt_file));
        add("deadline", self.deadline.map(|d| d.as_secs().to_string()));
        let mut text = format!("{}://{}", Self::SCHEME, self.key);
        write_query(&mut text, &parameters);
        f.write_str(&text)
    }
}

/// Whether it is a path that means the same in every URL.
fn is_path(text: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let segment = |part: &str| {
        !part.is_empty() && part.chars().all(allowed) && !part.chars().all(|c| c == '.')
    };
    text.len() <= 255 && text.split('/').all(segment)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> VaultUri {
        VaultUri::parse(text).unwrap()
    }

    #[test]
    fn the_shortest_form_is_enough() {
        let uri = parse("hashivault://My_key.1");
        assert_eq!(
            (uri.key.as_str(), uri.mount.as_str()),
            ("My_key.1", "transit")
        );
        assert_eq!(uri.identity(), uri.to_string());
        assert_eq!(
            parse("hashivault://k?mount=transit"),
            parse("hashivault://k")
        );
    }

    #[test]
    fn every_parameter_round_trips_and_the_place_is_the_identity() {
        let text = "hashivault://k?mount=teams/a&namespace=ns1/ns2&address=https://v.example:8200\
                    &ca=/ca.pem&auth=approle&auth-mount=own&role=r&token-file=/t&role-id-file=/r\
                    &secret-id-file=/s&jwt-file=/j&deadline=5";
        let uri = parse(text);
        assert_eq!(uri.to_string(), text);
        assert_eq!(
            uri.identity(),
            "hashivault://k?mount=teams/a&namespace=ns1/ns2"
        );
        assert!(uri.names_same_key(&parse(&uri.identity())));
        assert!(!uri.names_same_key(&parse("hashivault://k")));
        assert!(!parse("hashivault://k").names_same_key(&parse("hashivault://K")));
    }

    #[test]
    fn refuses_what_it_does_not_understand() {
        let bad = [
            "hashivault:k",
            "hashivault://",
            "hashivault://k/x",
            "hashivault://..",
            "hashivault://k?mount=../sys",
            "hashivault://k?mount=a//b",
            "hashivault://k?mount=a%3Fb",
            "hashivault://k?auth=ldap",
            "hashivault://k?token=secret",
            "hashivault://k?ca=relative",
            "hashivault://root@k",
        ];
        for text in bad {
            let error = VaultUri::parse(text).expect_err(text);
            assert!(matches!(
                error,
                KeyError::Configuration { hint: Some(_), .. }
            ));
        }
    }
}
