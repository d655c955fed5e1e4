//! The test server as the conformance suite and the other tests see it.

use std::sync::Arc;

use kmsfs::keys::kms::azure::{AzureProvider, AzureUri, Environment};
use kmsfs::keys::{KeyError, KeyProvider};
use kmsfs::types::KeyLen;

use crate::conformance::{DEADLINE, Mood, Service, context};
use crate::kms_servers::alibaba::FIXTURES;
use crate::kms_servers::azure::{CLIENT, KEY, Kind, SECRET, Server, TENANT};
use crate::moods::trouble;

/// A server and how to reach it.
pub(crate) struct Peer {
    pub(crate) server: Server,
    kind: Kind,
}

impl Peer {
    pub(crate) fn new(kind: Kind) -> Self {
        let server = Server::start(kind);
        Self { server, kind }
    }

    pub(crate) fn uri(&self, key: &str) -> String {
        self.uri_at(self.server.vault.port(), key)
    }

    fn uri_at(&self, port: u16, key: &str) -> String {
        let seconds = DEADLINE.as_secs();
        let algorithm = match self.kind {
            Kind::Rsa => "",
            Kind::Aes => "&algorithm=A256KW",
        };
        format!(
            "azurekms://localhost:{port}/{key}?deadline={seconds}&ca={FIXTURES}/ca.pem{algorithm}"
        )
    }

    pub(crate) fn authority(&self) -> String {
        format!("http://{}", self.server.login)
    }

    /// A provider with exactly these variables and the authority.
    pub(crate) fn with(&self, variables: &[(&str, &str)]) -> AzureProvider {
        let authority = self.authority();
        let fixed = [("AZURE_AUTHORITY_HOST", authority.as_str())];
        let env = Environment::of(&[&fixed[..], variables].concat());
        AzureProvider::open(&AzureUri::parse(&self.uri(KEY)).unwrap(), &env).unwrap()
    }

    pub(crate) fn open(&self, uri: &str) -> Arc<dyn KeyProvider> {
        let env = Environment::of(&[
            ("AZURE_AUTHORITY_HOST", &self.authority()),
            ("AZURE_TENANT_ID", TENANT),
            ("AZURE_CLIENT_ID", CLIENT),
            ("AZURE_CLIENT_SECRET", SECRET),
        ]);
        Arc::new(AzureProvider::open(&AzureUri::parse(uri).unwrap(), &env).unwrap())
    }
}

pub(crate) fn generate(provider: &dyn KeyProvider) -> Result<(), KeyError> {
    provider.generate(&context(1), KeyLen::Bits256).map(drop)
}

impl Service for Peer {
    fn provider(&self) -> Arc<dyn KeyProvider> {
        self.open(&self.uri(KEY))
    }

    fn provider_of_missing_key(&self) -> Arc<dyn KeyProvider> {
        self.open(&self.uri("never-was"))
    }

    fn unreachable_provider(&self) -> Option<Arc<dyn KeyProvider>> {
        Some(self.open(&self.uri_at(1, KEY)))
    }

    fn set_enabled(&self, enabled: bool) -> bool {
        self.server.change(|key| key.set_enabled(enabled));
        true
    }

    fn delete(&self) -> bool {
        self.server.world().key = None;
        true
    }

    fn rotate(&self) -> bool {
        self.server.change(|key| key.rotate());
        true
    }

    fn set_allowed(&self, allowed: bool) -> bool {
        self.server.change(|key| key.denied = !allowed);
        true
    }

    fn set_mood(&self, mood: Mood) -> bool {
        self.server.world().trouble = trouble(mood);
        true
    }

    fn end_credentials(&self) -> bool {
        self.server.world().tokens.end();
        true
    }
}
