//! The test server as the conformance suite and the other tests see it.

use std::sync::Arc;

use kmsfs::keys::kms::alibaba::{AlibabaProvider, AlibabaUri, Environment};
use kmsfs::keys::{KeyError, KeyProvider};
use kmsfs::types::KeyLen;

use crate::conformance::{DEADLINE, Mood, Service, context};
use crate::kms_servers::alibaba::{ACCESS_KEY, FIXTURES, KEY, Key, Kind, Server, State, Trouble};
use crate::kms_servers::http::Manner;

pub(crate) const ELSEWHERE: &str = "127.0.0.1:1";

/// A server and how to reach it.
pub(crate) struct Peer {
    pub(crate) server: Server,
    kind: Kind,
    access: Access,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    /// OpenAPI, a fixed access key, no TLS.
    Fixed,
    /// OpenAPI, temporary access keys, TLS.
    Temporary,
    /// The instance protocol, TLS, this client key.
    ClientKey(&'static str),
}

impl Peer {
    pub(crate) fn new(kind: Kind, access: Access) -> Self {
        let server = Server::start();
        server.change(|key| *key = Key::new(kind));
        Self {
            server,
            kind,
            access,
        }
    }

    pub(crate) fn uri(&self, key: &str) -> String {
        let address = match self.access {
            Access::Fixed => self.server.plain.to_string(),
            _ => format!("localhost:{}", self.server.encrypted.port()),
        };
        self.uri_at(&address, key)
    }

    pub(crate) fn uri_at(&self, address: &str, key: &str) -> String {
        let seconds = DEADLINE.as_secs();
        let base = format!("alibabakms://{address}/{key}?deadline={seconds}");
        match self.access {
            Access::Fixed => format!("{base}&http=1"),
            Access::Temporary => format!("{base}&ca={FIXTURES}/ca.pem"),
            Access::ClientKey(file) => format!(
                "{base}&ca={FIXTURES}/ca.pem&client-key={FIXTURES}/{file}\
                 &client-key-password-file={FIXTURES}/client-key-password"
            ),
        }
    }

    pub(crate) fn environment(&self) -> Environment {
        let uri = format!("http://{}/credentials", self.server.plain);
        match self.access {
            Access::Temporary => Environment::of(&[
                ("ALIBABA_CLOUD_ECS_METADATA_DISABLED", "true"),
                ("ALIBABA_CLOUD_CREDENTIALS_URI", &uri),
            ]),
            _ => fixed(ACCESS_KEY),
        }
    }

    pub(crate) fn try_open(&self, uri: &str) -> Result<AlibabaProvider, KeyError> {
        AlibabaProvider::open(&AlibabaUri::parse(uri)?, &self.environment())
    }

    pub(crate) fn open(&self, uri: &str) -> Arc<dyn KeyProvider> {
        Arc::new(self.try_open(uri).unwrap())
    }
}

pub(crate) fn fixed((id, secret): (&str, &str)) -> Environment {
    Environment::of(&[
        ("ALIBABA_CLOUD_ACCESS_KEY_ID", id),
        ("ALIBABA_CLOUD_ACCESS_KEY_SECRET", secret),
    ])
}

impl Service for Peer {
    fn provider(&self) -> Arc<dyn KeyProvider> {
        self.open(&self.uri(KEY))
    }

    fn provider_of_missing_key(&self) -> Arc<dyn KeyProvider> {
        self.open(&self.uri("key-that-never-was"))
    }

    fn unreachable_provider(&self) -> Option<Arc<dyn KeyProvider>> {
        Some(self.open(&self.uri_at(ELSEWHERE, KEY)))
    }

    fn set_enabled(&self, enabled: bool) -> bool {
        let state = if enabled {
            State::Enabled
        } else {
            State::Disabled
        };
        self.server.change(|key| key.state = state);
        true
    }

    fn delete(&self) -> bool {
        self.server.world().keys.remove(KEY);
        true
    }

    fn rotate(&self) -> bool {
        // A hardware instance goes on with the first version.
        self.server.change(Key::rotate);
        self.kind == Kind::Software
    }

    fn set_allowed(&self, allowed: bool) -> bool {
        self.server.change(|key| key.denied = !allowed);
        true
    }

    fn set_mood(&self, mood: Mood) -> bool {
        let mut trouble = Trouble {
            calls: usize::MAX,
            ..Trouble::default()
        };
        match mood {
            Mood::Well => trouble.calls = 0,
            Mood::Throttling(calls) => {
                trouble.calls = calls;
                trouble.refusal = Some((429, "Rejected.Throttling"));
                trouble.retry_after_ms = Some(20);
            }
            Mood::Failing(calls) => {
                trouble.calls = calls;
                trouble.refusal = Some((500, "InternalFailure"));
            }
            Mood::Slow(delay) => trouble.delay = delay,
            Mood::Garbage => trouble.manner = Manner::Garbage,
            Mood::Oversized => trouble.manner = Manner::Endless,
            Mood::CutOff(calls) => {
                trouble.calls = calls;
                trouble.manner = Manner::CutOff;
            }
        }
        self.server.trouble(trouble);
        true
    }

    fn end_credentials(&self) -> bool {
        self.server.end_temporary_keys();
        self.access == Access::Temporary
    }
}

pub(crate) const LEGACY: Access = Access::ClientKey("client-key-legacy.json");
pub(crate) const PBES2: Access = Access::ClientKey("client-key-pbes2.json");

pub(crate) fn generate(provider: &dyn KeyProvider) -> Result<(), KeyError> {
    provider.generate(&context(1), KeyLen::Bits256).map(drop)
}
