//! `pkcs11:token=…;object=…[?module-path=…]`, RFC 7512.

use std::fmt::{self, Write};
use std::path::PathBuf;
use std::time::Duration;

use crate::keys::KeyError;

const HINT: &str = "write pkcs11:token=TOKEN;object=KEY?module-path=/path/to/module.so, \
                    with %20 for a space; docs/KMS.md has the attributes";

/// How data keys are wrapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wrapping {
    /// `CKM_AES_GCM`, with the context as associated data.
    Gcm,
    /// `CKM_AES_KEY_WRAP` of the data key and a digest of the context.
    KeyWrap,
    /// As `KeyWrap`, with `CKM_AES_KEY_WRAP_PAD`.
    KeyWrapPad,
}

impl Wrapping {
    /// All of them, the best first.
    pub const ALL: [Self; 3] = [Self::Gcm, Self::KeyWrap, Self::KeyWrapPad];

    /// Its name in URIs and wrapped keys.
    pub fn name(self) -> &'static str {
        match self {
            Self::Gcm => "aes-gcm",
            Self::KeyWrap => "aes-key-wrap",
            Self::KeyWrapPad => "aes-key-wrap-pad",
        }
    }

    /// The one of that name.
    pub fn of_name(name: &str) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|wrapping| wrapping.name() == name)
    }
}

/// A key in a token, and how this machine gets at it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pkcs11Uri {
    /// The token's label.
    pub token: Option<String>,
    /// The token's serial number.
    pub serial: Option<String>,
    /// The key's label (`CKA_LABEL`).
    pub object: Option<String>,
    /// The key's id (`CKA_ID`); all keys of the label are versions of one key if
    /// it is not given.
    pub id: Option<Vec<u8>>,
    /// The module to load.
    pub module_path: Option<PathBuf>,
    /// The module's name, as in `softhsm2` for `libsofthsm2.so`.
    pub module_name: Option<String>,
    /// A file whose first line is the PIN.
    pub pin_source: Option<PathBuf>,
    /// How to wrap, if not with the best that the token has.
    pub wrapping: Option<Wrapping>,
    /// How long a call may take in all.
    pub deadline: Option<Duration>,
}

impl Pkcs11Uri {
    /// The scheme, without a colon.
    pub const SCHEME: &str = "pkcs11";

    /// Parses a whole URI of this scheme.
    pub fn parse(text: &str) -> Result<Self, KeyError> {
        let rest = text.strip_prefix("pkcs11:").unwrap_or_default();
        Self::parse_rest(rest).map_err(|(problem, hint)| KeyError::Configuration {
            // Not the whole text: it may hold a PIN.
            detail: format!("the pkcs11 key uri cannot be used: {problem}"),
            hint: Some(hint.unwrap_or(HINT).into()),
        })
    }

    fn parse_rest(rest: &str) -> Result<Self, (String, Option<&'static str>)> {
        let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
        let mut uri = Self::default();
        let attributes = path.split(';').chain(query.split('&'));
        let mut seen = Vec::new();
        for attribute in attributes.filter(|attribute| !attribute.is_empty()) {
            let (name, value) = attribute
                .split_once('=')
                .ok_or_else(|| (format!("{attribute:?} has no value"), None))?;
            if name == "pin-value" {
                return Err((
                    "a PIN has no place in it: it is stored and shown in the clear".into(),
                    Some(
                        "put the PIN into a file that only you can read, and add pin-source=/path",
                    ),
                ));
            }
            if seen.contains(&name) {
                return Err((format!("attribute {name:?} is given twice"), None));
            }
            seen.push(name);
            uri.set(name, value).map_err(|problem| (problem, None))?;
        }
        if uri.object.is_none() && uri.id.is_none() {
            return Err(("it names no key".into(), None));
        }
        if uri.token.is_none() && uri.serial.is_none() {
            return Err(("it names no token".into(), None));
        }
        Ok(uri)
    }

    fn set(&mut self, name: &str, value: &str) -> Result<(), String> {
        let bytes = decode(value).filter(|bytes| !bytes.is_empty());
        let bytes = bytes.ok_or_else(|| format!("the value of {name:?} is malformed"))?;
        if name == "id" {
            self.id = Some(bytes);
            return Ok(());
        }
        let text = String::from_utf8(bytes).ok();
        let text = text.filter(|text| !text.contains(char::is_control));
        let text = text.ok_or_else(|| format!("the value of {name:?} is not text"))?;
        let absolute = |text: String| {
            let path = PathBuf::from(text.strip_prefix("file:").unwrap_or(&text));
            let usable = path.is_absolute().then_some(path);
            usable.ok_or_else(|| format!("the path in {name:?} is not absolute"))
        };
        match name {
            "token" => self.token = Some(text),
            "serial" => self.serial = Some(text),
            "object" => self.object = Some(text),
            "type" if text == "secret-key" => {}
            "type" => return Err(format!("a wrapping key is a secret-key, not a {text}")),
            "module-path" => self.module_path = Some(absolute(text)?),
            "module-name" if text.contains('/') => {
                return Err("a module's name has no '/'; use module-path".into());
            }
            "module-name" => self.module_name = Some(text),
            "pin-source" => self.pin_source = Some(absolute(text)?),
            "mechanism" => {
                let known = Wrapping::of_name(&text);
                self.wrapping = Some(known.ok_or_else(|| format!("no mechanism {text:?}"))?);
            }
            "deadline" => {
                let seconds = text.parse().ok().filter(|n| (1..=300).contains(n));
                let seconds = seconds.ok_or("deadline is not a number of seconds from 1 to 300")?;
                self.deadline = Some(Duration::from_secs(seconds));
            }
            _ => return Err(format!("attribute {name:?} is unknown")),
        }
        Ok(())
    }

    /// What wrapped keys carry: the key without what holds for one machine.
    pub fn identity(&self) -> Self {
        Self {
            token: self.token.clone(),
            serial: self.serial.clone(),
            object: self.object.clone(),
            id: self.id.clone(),
            ..Self::default()
        }
    }

    /// Whether both name the same key, as far as both say.
    pub fn names_same_key(&self, other: &Self) -> bool {
        fn agree<T: PartialEq>(mine: &Option<T>, theirs: &Option<T>) -> bool {
            mine.is_none() || theirs.is_none() || mine == theirs
        }
        let same_token = match (&self.serial, &other.serial) {
            (Some(mine), Some(theirs)) => mine == theirs,
            _ => self.token == other.token,
        };
        same_token && self.id == other.id && agree(&self.object, &other.object)
    }
}

impl fmt::Display for Pkcs11Uri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let texts = [
            ("token", &self.token),
            ("serial", &self.serial),
            ("object", &self.object),
        ];
        let present = texts.into_iter().filter_map(|(name, value)| {
            let value = value.as_ref()?;
            Some(format!("{name}={}", encode(value.as_bytes())))
        });
        let mut path: Vec<String> = present.collect();
        path.extend(self.id.as_ref().map(|id| {
            let octets = id.iter().fold(String::new(), |mut text, byte| {
                let _ = write!(text, "%{byte:02X}");
                text
            });
            format!("id={octets}")
        }));
        write!(f, "pkcs11:{}", path.join(";"))?;
        let path = |path: &Option<PathBuf>| path.as_ref().map(|path| path.display().to_string());
        let query = [
            ("module-path", path(&self.module_path)),
            ("module-name", self.module_name.clone()),
            ("pin-source", path(&self.pin_source)),
            ("mechanism", self.wrapping.map(|w| w.name().to_owned())),
            ("deadline", self.deadline.map(|d| d.as_secs().to_string())),
        ];
        let mut separator = '?';
        for (name, value) in query {
            if let Some(value) = value {
                write!(f, "{separator}{name}={}", encode(value.as_bytes()))?;
                separator = '&';
            }
        }
        Ok(())
    }
}

fn decode(text: &str) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        out.push(match byte {
            b'%' => {
                let digits = [bytes.next()?, bytes.next()?];
                data_encoding::HEXLOWER_PERMISSIVE.decode(&digits).ok()?[0]
            }
            byte => byte,
        });
    }
    Some(out)
}

fn encode(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len());
    for &byte in bytes {
        if byte.is_ascii_alphanumeric() || b"-_.~/:,@".contains(&byte) {
            out.push(char::from(byte));
        } else {
            let _ = write!(out, "%{byte:02X}");
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Pkcs11Uri {
        Pkcs11Uri::parse(text).unwrap()
    }

    #[test]
    fn every_attribute_round_trips_and_few_are_in_the_identity() {
        let text = "pkcs11:token=My%20HSM;serial=1%3B2;object=kek;id=%01%FF\
                    ?module-path=/usr/lib/m.so&pin-source=/run/pin&mechanism=aes-key-wrap&deadline=3";
        let uri = parse(text);
        assert_eq!(uri.to_string(), text);
        assert_eq!(uri.id.as_deref(), Some(&[1, 255][..]));
        assert_eq!(
            uri.identity().to_string(),
            "pkcs11:token=My%20HSM;serial=1%3B2;object=kek;id=%01%FF"
        );
        assert!(uri.names_same_key(&uri.identity()));
        let with_type = parse("pkcs11:object=k;type=secret-key;token=t?pin-source=file:/p");
        assert_eq!(with_type.pin_source, Some("/p".into()));
        assert!(!with_type.names_same_key(&parse("pkcs11:token=t;object=other")));
        assert!(!with_type.names_same_key(&parse("pkcs11:token=u;object=k")));
        assert!(!with_type.names_same_key(&parse("pkcs11:token=t;object=k;id=1")));
    }

    #[test]
    fn refuses_what_it_does_not_understand() {
        let bad = [
            "pkcs11:",
            "pkcs11:token=t",
            "pkcs11:object=k",
            "pkcs11:token=t;object=",
            "pkcs11:token=t;object=k;object=l",
            "pkcs11:token=t;object=k;type=private",
            "pkcs11:token=t;object=k?module-path=m.so",
            "pkcs11:token=t;object=k?module-name=../m",
            "pkcs11:token=t;object=k?pin-source=|cmd",
            "pkcs11:token=t;object=k?mechanism=des",
            "pkcs11:token=t;object=k?deadline=0",
            "pkcs11:token=t;object=k;nosuch=1",
            "pkcs11:token=t;object=%zz",
            "pkcs11:token=t;object=%00",
        ];
        for text in bad {
            let error = Pkcs11Uri::parse(text).expect_err(text);
            assert!(matches!(
                error,
                KeyError::Configuration { hint: Some(_), .. }
            ));
        }
    }

    #[test]
    fn a_pin_is_refused_and_not_repeated() {
        let error = Pkcs11Uri::parse("pkcs11:token=t;object=k?pin-value=73519").unwrap_err();
        assert!(!format!("{error:?}").contains("73519"));
        assert!(format!("{error:?}").contains("pin-source"));
    }
}
