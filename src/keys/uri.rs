//! Key URIs: what a user writes to name a wrapping key, and what headers keep.
//!
//! ```text
//! local:NAME[?keystore=/absolute/path][#UUID]
//! alibabakms://ENDPOINT/KEY[?PARAMETERS]
//! exec:PLUGIN[?PARAMETERS]
//! pkcs11:token=TOKEN;object=KEY[?PARAMETERS]
//! ```

use std::fmt;
use std::path::{Path, PathBuf};

use data_encoding::HEXLOWER;
use serde::{Deserialize, Serialize};

use crate::crypto::random;
use crate::keys::KeyError;
use crate::keys::kms::alibaba::AlibabaUri;
use crate::keys::kms::exec::ExecUri;
use crate::keys::kms::pkcs11::Pkcs11Uri;

/// The key schemes this build can open, for hints.
pub fn supported_schemes() -> String {
    let all = [
        (true, "local:NAME"),
        (cfg!(feature = "alibaba"), "alibabakms://ENDPOINT/KEY"),
        (cfg!(feature = "pkcs11"), "pkcs11:token=TOKEN;object=KEY"),
        (true, "exec:PLUGIN"),
    ];
    let built = all.into_iter().filter(|(built, _)| *built);
    built.map(|(_, form)| form).collect::<Vec<_>>().join(", ")
}

const MAX_NAME: usize = 64;

/// A parsed key URI, one variant for each kind of provider.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeyUri {
    /// A key of the embedded provider.
    Local(LocalUri),
    /// A key of Alibaba Cloud KMS.
    Alibaba(AlibabaUri),
    /// A key in a token or HSM.
    Pkcs11(Pkcs11Uri),
    /// A key behind a plugin.
    Exec(ExecUri),
}

impl KeyUri {
    /// Parses `text`; the error names the schemes that this build supports.
    pub fn parse(text: &str) -> Result<Self, KeyError> {
        match text.split_once(':') {
            Some(("local", rest)) => LocalUri::parse_rest(text, rest).map(Self::Local),
            Some((AlibabaUri::SCHEME, _)) => AlibabaUri::parse(text).map(Self::Alibaba),
            Some((Pkcs11Uri::SCHEME, _)) => Pkcs11Uri::parse(text).map(Self::Pkcs11),
            Some((ExecUri::SCHEME, _)) => ExecUri::parse(text).map(Self::Exec),
            Some((scheme, _)) => Err(configuration(
                format!("unknown key scheme {scheme:?} in {text:?}"),
                format!("this build supports {}", supported_schemes()),
            )),
            None => Err(configuration(
                format!("{text:?} is not a key uri"),
                format!(
                    "write a scheme and a key, as in local:default; this build supports {}",
                    supported_schemes()
                ),
            )),
        }
    }

    /// Whether a wrapped key that carries `wrapped_uri` was wrapped by the key
    /// that this URI names.
    pub fn names_same_key(&self, wrapped_uri: &str) -> bool {
        match (self, Self::parse(wrapped_uri)) {
            (Self::Local(mine), Ok(Self::Local(theirs))) => match (mine.uuid, theirs.uuid) {
                (Some(mine), Some(theirs)) => mine == theirs,
                _ => mine.name == theirs.name,
            },
            (Self::Alibaba(mine), Ok(Self::Alibaba(theirs))) => mine.names_same_key(&theirs),
            (Self::Pkcs11(mine), Ok(Self::Pkcs11(theirs))) => mine.names_same_key(&theirs),
            (Self::Exec(mine), Ok(Self::Exec(theirs))) => mine.names_same_key(&theirs),
            _ => false,
        }
    }
}

impl fmt::Display for KeyUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Local(uri) => uri.fmt(f),
            Self::Alibaba(uri) => uri.fmt(f),
            Self::Pkcs11(uri) => uri.fmt(f),
            Self::Exec(uri) => uri.fmt(f),
        }
    }
}

/// Tells a local key from a later one of the same name.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct KeyUuid([u8; 16]);

impl KeyUuid {
    /// A new random one.
    pub fn random() -> Self {
        Self(random::bytes())
    }

    /// Parses thirty-two lowercase hexadecimal digits.
    pub fn from_hex(text: &str) -> Option<Self> {
        let bytes = HEXLOWER.decode(text.as_bytes()).ok()?;
        Some(Self(bytes.try_into().ok()?))
    }
}

impl fmt::Display for KeyUuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&HEXLOWER.encode(&self.0))
    }
}

impl fmt::Debug for KeyUuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeyUuid({self})")
    }
}

impl TryFrom<String> for KeyUuid {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        Self::from_hex(&text).ok_or("a key uuid is 32 lowercase hexadecimal digits")
    }
}

impl From<KeyUuid> for String {
    fn from(uuid: KeyUuid) -> Self {
        uuid.to_string()
    }
}

/// `local:NAME[?keystore=PATH][#UUID]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalUri {
    /// The key's name in its keystore.
    pub name: String,
    /// The keystore, if it is not the default one.
    pub keystore: Option<PathBuf>,
    /// The very key, once resolved.
    pub uuid: Option<KeyUuid>,
}

impl LocalUri {
    /// The name that `local:` alone stands for.
    pub const DEFAULT_NAME: &str = "default";

    /// A key by its name alone; an error unless [`is_key_name`] accepts it.
    pub fn named(name: &str) -> Result<Self, KeyError> {
        if !is_key_name(name) {
            return Err(configuration(
                format!("{name:?} cannot be the name of a local key"),
                format!(
                    "use up to {MAX_NAME} letters, digits, '.', '_' and '-', \
                     starting with a letter or digit"
                ),
            ));
        }
        Ok(Self {
            name: name.to_owned(),
            keystore: None,
            uuid: None,
        })
    }

    fn parse_rest(text: &str, rest: &str) -> Result<Self, KeyError> {
        let (rest, uuid) = match rest.split_once('#') {
            Some((rest, hex)) => (rest, Some(hex)),
            None => (rest, None),
        };
        let (name, query) = match rest.split_once('?') {
            Some((name, query)) => (name, Some(query)),
            None => (rest, None),
        };
        let mut uri = Self::named(if name.is_empty() {
            Self::DEFAULT_NAME
        } else {
            name
        })?;
        if let Some(hex) = uuid {
            let parsed = KeyUuid::from_hex(hex);
            uri.uuid = Some(parsed.ok_or_else(|| malformed(text, "the part after '#'"))?);
        }
        if let Some(query) = query {
            let path = query
                .strip_prefix("keystore=")
                .filter(|path| !path.contains('&'))
                .and_then(percent_decode)
                .filter(|path| path.is_absolute())
                .ok_or_else(|| malformed(text, "the part after '?'"))?;
            uri.keystore = Some(path);
        }
        Ok(uri)
    }

    /// The form that wrapped keys carry: name and uuid, without the place where
    /// one machine keeps the key.
    pub fn identity(&self) -> Self {
        Self {
            keystore: None,
            ..self.clone()
        }
    }
}

impl fmt::Display for LocalUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "local:{}", self.name)?;
        if let Some(path) = &self.keystore {
            write!(f, "?keystore={}", percent_encode(path))?;
        }
        match self.uuid {
            Some(uuid) => write!(f, "#{uuid}"),
            None => Ok(()),
        }
    }
}

/// Whether `name` can name a local key: it is also a file name.
pub fn is_key_name(name: &str) -> bool {
    name.len() <= MAX_NAME
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-'))
}

fn malformed(text: &str, part: &str) -> KeyError {
    configuration(
        format!("{part} of the key uri {text:?} is malformed"),
        "write local:NAME?keystore=/absolute/path, with %23 for # and %26 for & in the path".into(),
    )
}

fn configuration(detail: String, hint: String) -> KeyError {
    KeyError::Configuration {
        detail,
        hint: Some(hint),
    }
}

fn percent_decode(text: &str) -> Option<PathBuf> {
    use std::os::unix::ffi::OsStringExt;
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        if byte == b'%' {
            let digits = [bytes.next()?, bytes.next()?];
            let value = data_encoding::HEXLOWER_PERMISSIVE.decode(&digits).ok()?;
            out.push(value[0]);
        } else {
            out.push(byte);
        }
    }
    (!out.contains(&0)).then(|| std::ffi::OsString::from_vec(out).into())
}

fn percent_encode(path: &Path) -> String {
    use std::os::unix::ffi::OsStrExt;
    let mut out = String::new();
    for &byte in path.as_os_str().as_bytes() {
        if byte.is_ascii_alphanumeric() || b"/._-~+,:@=".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const UUID: &str = "000102030405060708090a0b0c0d0e0f";

    fn local(text: &str) -> LocalUri {
        match KeyUri::parse(text).unwrap() {
            KeyUri::Local(uri) => uri,
            other => panic!("{other}"),
        }
    }

    #[test]
    fn the_empty_name_is_default() {
        assert_eq!(local("local:").name, "default");
        assert_eq!(local("local:"), local("local:default"));
        assert_eq!(local("local:").to_string(), "local:default");
    }

    #[test]
    fn every_part_round_trips() {
        let text = format!("local:a-b.c_1?keystore=/k%20s/%23%3Fx#{UUID}");
        let uri = local(&text);
        assert_eq!(uri.keystore.as_deref(), Some(Path::new("/k s/#?x")));
        assert_eq!(uri.uuid.unwrap().to_string(), UUID);
        assert_eq!(uri.to_string(), text);
        assert_eq!(uri.identity().to_string(), format!("local:a-b.c_1#{UUID}"));
    }

    #[test]
    fn refuses_what_it_does_not_understand() {
        let bad = [
            "local:../x",
            "local:.x",
            "local:a/b",
            "local:a b",
            "local:a#12",
            "local:a?keystore=rel",
            "local:a?other=/x",
            "local:a?keystore=/x&y=1",
            "local:a?keystore=/%zz",
            "local:a?keystore=/%00",
            "default",
            "",
            "nosuch:key",
        ];
        for text in bad {
            let error = KeyUri::parse(text).expect_err(text);
            let KeyError::Configuration { hint, .. } = error else {
                panic!("{text}: {error:?}");
            };
            assert!(hint.is_some(), "{text} has no hint");
        }
        assert!(KeyUri::parse(&format!("local:{}", "x".repeat(65))).is_err());
        let error = KeyUri::parse("aws-kms:x").unwrap_err();
        let KeyError::Configuration { hint, .. } = error else {
            panic!()
        };
        assert!(hint.unwrap().contains(&supported_schemes()));
    }

    #[test]
    fn a_resolved_uri_names_one_key_only() {
        let other = UUID.replace("0f", "ff");
        let mine = KeyUri::parse(&format!("local:a?keystore=/x#{UUID}")).unwrap();
        assert!(mine.names_same_key(&format!("local:a#{UUID}")));
        assert!(!mine.names_same_key(&format!("local:a#{other}")));
        assert!(!mine.names_same_key("kms:a"));
        let unresolved = KeyUri::parse("local:a").unwrap();
        assert!(unresolved.names_same_key(&format!("local:a#{UUID}")));
        assert!(!unresolved.names_same_key(&format!("local:b#{UUID}")));
    }
}
