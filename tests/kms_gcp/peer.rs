//! The test server as the conformance suite and the other tests see it.

use std::sync::Arc;

use kmsfs::keys::kms::gcp::{Environment, GcpProvider, GcpUri};
use kmsfs::keys::{KeyError, KeyProvider};
use kmsfs::types::KeyLen;
use serde_json::Value;

use crate::conformance::{DEADLINE, Mood, Service, context};
use crate::kms_servers::gcp::{RESOURCE, Server, State};
use crate::moods::trouble;

/// A server and a service account's key file.
pub(crate) struct Peer {
    pub(crate) server: Server,
    folder: tempfile::TempDir,
}

impl Peer {
    pub(crate) fn new() -> Self {
        let server = Server::start();
        let folder = tempfile::tempdir().unwrap();
        let peer = Self { server, folder };
        let file = peer.server.world().identity.service_account();
        peer.write("credentials.json", &file);
        peer
    }

    /// Writes a file; gives its path.
    pub(crate) fn write(&self, name: &str, content: &Value) -> String {
        let path = self.folder.path().join(name);
        let text = match content {
            Value::String(text) => text.clone(),
            json => json.to_string(),
        };
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    }

    pub(crate) fn uri(&self, resource: &str) -> String {
        self.uri_at(&self.server.address.to_string(), resource)
    }

    fn uri_at(&self, address: &str, resource: &str) -> String {
        let seconds = DEADLINE.as_secs();
        format!("gcpkms://{resource}?endpoint=http://{address}&deadline={seconds}")
    }

    /// A provider that calls as the file says.
    pub(crate) fn with_file(&self, file: &str) -> GcpProvider {
        self.with(&[("GOOGLE_APPLICATION_CREDENTIALS", file)])
    }

    pub(crate) fn with(&self, variables: &[(&str, &str)]) -> GcpProvider {
        open(&self.uri(RESOURCE), &Environment::of(variables))
    }

    fn open(&self, uri: &str) -> Arc<dyn KeyProvider> {
        let file = self.folder.path().join("credentials.json");
        let variables = [("GOOGLE_APPLICATION_CREDENTIALS", file.to_str().unwrap())];
        Arc::new(open(uri, &Environment::of(&variables)))
    }
}

fn open(uri: &str, env: &Environment) -> GcpProvider {
    GcpProvider::open(&GcpUri::parse(uri).unwrap(), env).unwrap()
}

pub(crate) fn generate(provider: &dyn KeyProvider) -> Result<(), KeyError> {
    provider.generate(&context(1), KeyLen::Bits256).map(drop)
}

impl Service for Peer {
    fn provider(&self) -> Arc<dyn KeyProvider> {
        self.open(&self.uri(RESOURCE))
    }

    fn provider_of_missing_key(&self) -> Arc<dyn KeyProvider> {
        self.open(&self.uri(&format!("{RESOURCE}-that-never-was")))
    }

    fn unreachable_provider(&self) -> Option<Arc<dyn KeyProvider>> {
        Some(self.open(&self.uri_at("127.0.0.1:1", RESOURCE)))
    }

    fn set_enabled(&self, enabled: bool) -> bool {
        let state = match enabled {
            true => State::Enabled,
            false => State::Disabled,
        };
        self.server.change(|key| key.set_state(state));
        true
    }

    fn delete(&self) -> bool {
        self.server.change(|key| key.set_state(State::Destroyed));
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
