//! A server's address as `https://host[:port]`.

use crate::keys::kms::uri::Endpoint;

/// A server that can be asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Server {
    /// Whether it speaks TLS.
    pub encrypted: bool,
    /// Its name and port.
    pub endpoint: Endpoint,
}

impl Server {
    /// Parses an address; the error says what is wrong with it. Without TLS,
    /// it must be on this machine.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let (scheme, rest) = text
            .split_once("://")
            .ok_or("it does not begin with https://")?;
        let encrypted = match scheme {
            "https" => true,
            "http" => false,
            _ => return Err(format!("{scheme} is not https")),
        };
        let endpoint = Endpoint::parse(rest.trim_end_matches('/'))
            .ok_or("what follows https:// is not a server name")?;
        if !encrypted && !endpoint.is_loopback() {
            return Err("http is for servers on this machine only".into());
        }
        Ok(Self {
            encrypted,
            endpoint,
        })
    }

    /// The server of a whole URL, to which the same applies.
    #[cfg(any(feature = "azure", feature = "gcp"))]
    pub(super) fn of_url(url: &str) -> Result<Self, String> {
        let (scheme, rest) = url.split_once("://").unwrap_or(("", url));
        let host = rest.split(['/', '?', '#']).next().unwrap_or_default();
        Self::parse(&format!("{scheme}://{host}"))
    }

    /// What the URLs of all requests begin with.
    pub(super) fn origin(&self) -> String {
        let scheme = if self.encrypted { "https" } else { "http" };
        format!("{scheme}://{}", self.endpoint)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_this_machine_does_without_tls() {
        let server = Server::parse("https://Vault.example:8200/").unwrap();
        assert_eq!(server.origin(), "https://vault.example:8200");
        assert!(!Server::parse("http://127.0.0.1:8200").unwrap().encrypted);
        for bad in [
            "vault.example",
            "http://vault.example",
            "ftp://h",
            "https://h/x",
            "https://",
        ] {
            assert!(Server::parse(bad).is_err(), "{bad}");
        }
    }

    #[cfg(any(feature = "azure", feature = "gcp"))]
    #[test]
    fn urls_are_of_servers() {
        let server = Server::of_url("https://h.example:1/a/b?c=d").unwrap();
        assert_eq!(server.origin(), "https://h.example:1");
        for bad in [
            "h.example/a",
            "http://h.example/a",
            "https://u@h.example/",
            "https:///",
        ] {
            assert!(Server::of_url(bad).is_err(), "{bad}");
        }
    }
}
