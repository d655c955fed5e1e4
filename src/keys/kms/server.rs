//! A server's address as `https://host[:port]`.

use crate::keys::kms::uri::Endpoint;

/// A server that can be asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Server {
    pub(super) encrypted: bool,
    pub(super) endpoint: Endpoint,
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
}
