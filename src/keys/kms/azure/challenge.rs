//! What a vault says of the tokens it takes: `WWW-Authenticate`.

use crate::keys::kms::server::Server;

/// The token that a vault asks for.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Challenge {
    /// `https://login…`, without a path.
    pub(super) authority: String,
    pub(super) tenant: String,
    /// What the token is for, as `https://vault.azure.net`.
    pub(super) resource: String,
}

impl Challenge {
    /// Parses a challenge of the vault `host`; the error says what is wrong.
    ///
    /// A token for one vault is good for all others of the tenant, so it may
    /// only be sent to servers of the domain that it is for.
    pub(super) fn parse(header: &str, host: &str) -> Result<Self, String> {
        let parameters = header.trim();
        let parameters = parameters
            .get(..7)
            .filter(|scheme| scheme.eq_ignore_ascii_case("bearer "))
            .map(|_| &parameters[7..])
            .ok_or("it asks for no bearer token")?;
        let find = |names: [&str; 2]| {
            let pairs = parameters.split([',', ' ']);
            let mut pairs = pairs.filter_map(|pair| pair.trim().split_once('='));
            let found = pairs.find(|(name, _)| names.contains(name))?;
            Some(found.1.trim_matches('"'))
        };
        let authorization = find(["authorization", "authorization_uri"])
            .ok_or("it does not say who gives tokens")?;
        let scope = find(["resource", "scope"]).ok_or("it does not say for what")?;
        let scope = scope.strip_suffix("/.default").unwrap_or(scope);
        let resource = Server::of_url(scope)?;
        let domain = &resource.endpoint.host;
        let below = host.strip_suffix(domain.as_str());
        if !below.is_some_and(|name| name.is_empty() || name.ends_with('.')) {
            return Err(format!("it asks for a token for {domain}"));
        }
        let authority = Server::of_url(authorization)?.origin();
        let path = authorization.splitn(4, '/').nth(3).unwrap_or_default();
        let tenant = path.split(['/', '?']).next().unwrap_or_default();
        let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.');
        if tenant.is_empty() || !tenant.chars().all(allowed) {
            return Err("it names no tenant".into());
        }
        Ok(Self {
            authority,
            tenant: tenant.to_owned(),
            resource: scope.trim_end_matches('/').to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADER: &str = "Bearer authorization=\"https://login.microsoftonline.com/7-2\", \
                          resource=\"https://vault.azure.net\"";

    #[test]
    fn both_spellings_are_understood() {
        let challenge = Challenge::parse(HEADER, "v.vault.azure.net").unwrap();
        assert_eq!(challenge.authority, "https://login.microsoftonline.com");
        assert_eq!(challenge.tenant, "7-2");
        assert_eq!(challenge.resource, "https://vault.azure.net");
        let other = "bearer authorization_uri=\"https://login.microsoftonline.com/7-2\" \
                     scope=\"https://vault.azure.net/.default\"";
        assert_eq!(Challenge::parse(other, "v.vault.azure.net"), Ok(challenge));
    }

    #[test]
    fn tokens_for_others_are_not_asked_for() {
        for host in [
            "v.vault.azure.net.evil.example",
            "evilvault.azure.net",
            "localhost",
            "azure.net",
        ] {
            assert!(Challenge::parse(HEADER, host).is_err(), "{host}");
        }
        let replaced = |from: &str, to: &str| HEADER.replace(from, to);
        for header in [
            String::new(),
            "Bearer".into(),
            replaced("Bearer", "Basic"),
            replaced("resource", "other"),
            replaced("authorization", "other"),
            replaced("https://login", "http://login"),
            replaced("/7-2", "/"),
            replaced("/7-2", "/a%2Fb"),
            replaced("\"https://vault.azure.net\"", "\"vault.azure.net\""),
        ] {
            let result = Challenge::parse(&header, "v.vault.azure.net");
            assert!(result.is_err(), "{header}");
        }
    }
}
