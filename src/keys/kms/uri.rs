//! What the URIs of all services have in common.

use std::fmt::Write;
use std::path::PathBuf;
use std::time::Duration;

use crate::keys::KeyError;

/// Parses a whole URI of `scheme`: what follows the colon is `parse_rest`'s, whose
/// error says which part is wrong. `hint` is how such URIs are written.
pub(super) fn parse_whole<T>(
    scheme: &str,
    text: &str,
    hint: &str,
    parse_rest: impl FnOnce(&str) -> Result<T, String>,
) -> Result<T, KeyError> {
    let rest = text.strip_prefix(scheme);
    let rest = rest.and_then(|rest| rest.strip_prefix(':'));
    let parsed = rest.ok_or_else(|| "its scheme is another".to_owned());
    parsed
        .and_then(parse_rest)
        .map_err(|problem| KeyError::Configuration {
            detail: format!("the key uri {text:?} cannot be used: {problem}"),
            hint: Some(hint.into()),
        })
}

/// `scheme://host[:port]/path[?name=value&…]`, taken apart but not judged.
pub(super) struct RawUri {
    /// What is between `//` and the path, as it was written.
    pub(super) authority: String,
    pub(super) path: String,
    parameters: Vec<(String, String)>,
}

/// A server's name and, if it is not the usual one, its port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// A DNS name or an IPv4 address.
    pub host: String,
    /// The port, if given.
    pub port: Option<u16>,
}

impl Endpoint {
    /// Parses `host[:port]`; `None` if it is neither a name nor an address.
    pub fn parse(text: &str) -> Option<Self> {
        let (host, port) = match text.split_once(':') {
            Some((host, port)) => (host, Some(port.parse().ok().filter(|port| *port != 0)?)),
            None => (text, None),
        };
        let label = |label: &str| {
            let mut bytes = label.bytes();
            !label.is_empty() && bytes.all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
        };
        host.split('.').all(label).then(|| Self {
            host: host.to_ascii_lowercase(),
            port,
        })
    }

    /// Whether it is this machine.
    pub fn is_loopback(&self) -> bool {
        let address = self.host.parse::<std::net::Ipv4Addr>();
        self.host == "localhost" || address.is_ok_and(|address| address.is_loopback())
    }
}

impl std::fmt::Display for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.port {
            Some(port) => write!(f, "{}:{port}", self.host),
            None => f.write_str(&self.host),
        }
    }
}

impl RawUri {
    /// Takes apart what follows `scheme:`; the error says which part is wrong.
    pub(super) fn parse(rest: &str) -> Result<Self, String> {
        let rest = rest
            .strip_prefix("//")
            .ok_or("'//' is missing after the scheme")?;
        if rest.contains('#') {
            return Err("'#' has no meaning in it".into());
        }
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        if authority.contains('@') {
            return Err("it must not contain a user or a password".into());
        }
        let path = percent_decode(path).ok_or("its path is malformed")?;
        let mut parameters: Vec<(String, String)> = Vec::new();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair
                .split_once('=')
                .ok_or_else(|| format!("parameter {pair:?} has no value"))?;
            let value = percent_decode(value)
                .filter(|value| !value.is_empty())
                .ok_or_else(|| format!("the value of parameter {name:?} is malformed"))?;
            if parameters.iter().any(|(other, _)| other == name) {
                return Err(format!("parameter {name:?} is given twice"));
            }
            parameters.push((name.to_owned(), value));
        }
        Ok(Self {
            authority: authority.to_owned(),
            path,
            parameters,
        })
    }

    /// The server, for the services whose URIs name one.
    pub(super) fn endpoint(&self) -> Result<Endpoint, String> {
        let authority = &self.authority;
        Endpoint::parse(authority).ok_or_else(|| format!("{authority:?} is not a server name"))
    }

    /// Takes the value of a parameter.
    pub(super) fn take(&mut self, name: &str) -> Option<String> {
        let index = self.parameters.iter().position(|(n, _)| n == name)?;
        Some(self.parameters.swap_remove(index).1)
    }

    /// Takes a parameter that names a file.
    pub(super) fn take_path(&mut self, name: &str) -> Result<Option<PathBuf>, String> {
        match self.take(name).map(PathBuf::from) {
            Some(path) if !path.is_absolute() => {
                Err(format!("the path in parameter {name:?} is not absolute"))
            }
            path => Ok(path),
        }
    }

    /// Takes a parameter that is a whole number of seconds within `range`.
    pub(super) fn take_seconds(
        &mut self,
        name: &str,
        range: std::ops::RangeInclusive<u64>,
    ) -> Result<Option<Duration>, String> {
        let Some(text) = self.take(name) else {
            return Ok(None);
        };
        let seconds = text.parse().ok().filter(|number| range.contains(number));
        let seconds = seconds.ok_or_else(|| {
            let (low, high) = (range.start(), range.end());
            format!("parameter {name:?} is not a number of seconds from {low} to {high}")
        })?;
        Ok(Some(Duration::from_secs(seconds)))
    }

    /// An error if a parameter was not taken.
    pub(super) fn finish(self) -> Result<(), String> {
        match self.parameters.first() {
            Some((name, _)) => Err(format!("parameter {name:?} is unknown")),
            None => Ok(()),
        }
    }
}

/// Writes a query, `?` first; nothing if there are no parameters.
pub(super) fn write_query(out: &mut String, parameters: &[(&str, String)]) {
    for (index, (name, value)) in parameters.iter().enumerate() {
        let separator = if index == 0 { '?' } else { '&' };
        let _ = write!(out, "{separator}{name}={}", percent_encode(value, b"/,:@"));
    }
}

/// Escapes all but letters, digits, `-_.~` and `also`.
pub(super) fn percent_encode(text: &str, also: &[u8]) -> String {
    let mut out = String::with_capacity(text.len() * 3);
    percent_encode_to(&mut out, text, also);
    out
}

/// As [`percent_encode`], onto the end of `out`.
pub(super) fn percent_encode_to(out: &mut String, text: &str, also: &[u8]) {
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte) || also.contains(&byte) {
            out.push(char::from(byte));
        } else {
            let _ = write!(out, "%{byte:02X}");
        }
    }
}

/// Reverses [`percent_encode`]; `None` if it is malformed or has control characters.
pub(super) fn percent_decode(text: &str) -> Option<String> {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        out.push(match byte {
            b'%' => {
                let digits = [bytes.next()?, bytes.next()?];
                let decoded = data_encoding::HEXLOWER_PERMISSIVE.decode(&digits).ok()?;
                decoded[0]
            }
            byte => byte,
        });
    }
    let text = String::from_utf8(out).ok()?;
    (!text.contains(char::is_control)).then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_come_apart() {
        let mut uri = RawUri::parse("//Host.example:81/a/b%2Fc?x=%2Fp%20q&n=5").unwrap();
        assert_eq!(uri.endpoint().unwrap().to_string(), "host.example:81");
        assert_eq!(uri.path, "a/b/c");
        assert_eq!(uri.take_path("x").unwrap(), Some(PathBuf::from("/p q")));
        let seconds = uri.take_seconds("n", 1..=10).unwrap();
        assert_eq!(seconds, Some(Duration::from_secs(5)));
        uri.finish().unwrap();
    }

    #[test]
    fn oddities_are_refused() {
        let bad = [
            "host/key",
            "//user:pw@host/key",
            "//ho st/key",
            "//host:0/key",
            "//host:99999/key",
            "///key",
            "//host/key#x",
            "//host/k%0",
            "//host/k%00",
            "//host/k?a",
            "//host/k?a=",
            "//host/k?a=1&a=2",
        ];
        for text in bad {
            let endpoint = RawUri::parse(text).and_then(|uri| uri.endpoint());
            assert!(endpoint.is_err(), "{text}");
        }
        let mut uri = RawUri::parse("//h/k?p=relative&n=11").unwrap();
        assert!(uri.take_path("p").is_err());
        assert!(uri.take_seconds("n", 1..=10).is_err());
        assert!(RawUri::parse("//h/k?z=1").unwrap().finish().is_err());
    }

    #[test]
    fn this_machine_is_told_from_others() {
        let loopback = |text| Endpoint::parse(text).unwrap().is_loopback();
        assert!(loopback("127.0.0.1:80") && loopback("localhost") && loopback("127.9.9.9"));
        assert!(!loopback("localhost.example") && !loopback("10.0.0.1"));
    }
}
