//! An emulator as the conformance suite sees it: one key of it, behind the proxy
//! that checks signatures, behind one that can be told to misbehave and has a
//! certificate of a private authority.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use kmsfs::keys::kms::aws::{AwsProvider, AwsUri};
use kmsfs::keys::{KeyError, KeyProvider};
use serde_json::json;

use crate::conformance::{DEADLINE, Mood, Service};
use crate::emulator::{AccessKey, Emulator, Kind, REGION, emulator, exchange};
use crate::http::{Manner, Reply, Request, serve, tls_config};

pub(crate) const FIXTURES: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/tests/kms_servers/alibaba/fixtures"
);
/// Headers of an answer that mean something to its reader.
const PASSED: [&str; 3] = ["content-type", "date", "x-amzn-requestid"];

/// A key of its own at a shared emulator, and an access key that may use it.
pub(crate) struct Peer {
    pub(crate) emulator: &'static Emulator,
    /// The key's ARN.
    pub(crate) key: String,
    pub(crate) proxy: Arc<Proxy>,
    address: SocketAddr,
    home: tempfile::TempDir,
    access: Mutex<AccessKey>,
    seconds: u64,
}

/// Stands between kmsfs and the emulator.
#[derive(Default)]
pub(crate) struct Proxy {
    trouble: Mutex<Trouble>,
    denying: Mutex<bool>,
    /// How many calls came, refused ones included.
    pub(crate) calls: AtomicUsize,
}

#[derive(Clone, Copy, Default)]
struct Trouble {
    calls: usize,
    delay: Duration,
    manner: Manner,
    refusal: Option<(u16, &'static str)>,
}

impl Proxy {
    fn trouble(&self) -> MutexGuard<'_, Trouble> {
        self.trouble
            .lock()
            .unwrap_or_else(|poison| poison.into_inner())
    }

    fn handle(&self, request: &Request, server: SocketAddr) -> Reply {
        self.calls.fetch_add(1, Ordering::SeqCst);
        let trouble = {
            let mut trouble = self.trouble();
            let affected = trouble.calls > 0;
            trouble.calls = trouble.calls.saturating_sub(1);
            affected.then_some(*trouble)
        };
        let denied = self
            .denying
            .lock()
            .unwrap()
            .then_some((400, "AccessDeniedException"));
        let refusal = trouble.and_then(|trouble| trouble.refusal).or(denied);
        let mut reply = match refusal {
            Some((status, code)) => refuse(status, code),
            None => pass(request, server),
        };
        if let Some(trouble) = trouble {
            (reply.after, reply.manner) = (trouble.delay, trouble.manner);
        }
        reply
    }
}

/// A refusal as KMS has them.
fn refuse(status: u16, code: &str) -> Reply {
    let body = json!({ "__type": code, "message": "out of order" });
    Reply {
        status,
        headers: vec![("x-amzn-requestid", "request-of-the-tests".to_owned())],
        body: body.to_string().into_bytes(),
        ..Reply::default()
    }
}

/// What the server says to the same request.
fn pass(request: &Request, server: SocketAddr) -> Reply {
    let headers: Vec<(&str, &str)> = request
        .headers
        .iter()
        .filter(|(name, _)| !matches!(name.as_str(), "content-length" | "connection"))
        .map(|(name, value)| (name.as_str(), value.as_str()))
        .collect();
    let Some(answer) = exchange(server, &request.path, &headers, &request.body) else {
        return Reply {
            status: 502,
            ..Reply::default()
        };
    };
    let find = |name: &'static str| {
        let found = answer.headers.iter().find(|(other, _)| other == name);
        found.map(|(_, value)| (name, value.clone()))
    };
    Reply {
        status: answer.status,
        headers: PASSED.into_iter().filter_map(find).collect(),
        body: answer.body,
        ..Reply::default()
    }
}

impl Peer {
    pub(crate) fn new(kind: Kind) -> Self {
        let emulator = emulator(kind);
        Self::at(emulator, emulator.verifier.address)
    }

    /// A key of an emulator behind another proxy than its own.
    pub(crate) fn at(emulator: &'static Emulator, verifier: SocketAddr) -> Self {
        let proxy = Arc::new(Proxy::default());
        let fixture = |name: &str| std::fs::read(format!("{FIXTURES}/{name}")).unwrap();
        let tls = tls_config(&fixture("server.pem"), &fixture("server-key.pem"));
        let handler = Arc::clone(&proxy);
        let handle = move |request: &Request| handler.handle(request, verifier);
        let peer = Self {
            emulator,
            key: emulator.create_key(&json!({})),
            proxy,
            address: serve(Some(tls), Arc::new(handle)),
            home: tempfile::tempdir().unwrap(),
            access: Mutex::new(new_access_key()),
            seconds: DEADLINE.as_secs(),
        };
        let access = peer.access();
        peer.emulator.verifier.know(&access, false);
        peer.write_credentials(&access);
        peer
    }

    /// With another deadline for the calls of its providers.
    pub(crate) fn with_time(self, seconds: u64) -> Self {
        Self { seconds, ..self }
    }

    pub(crate) fn access(&self) -> AccessKey {
        self.access.lock().unwrap().clone()
    }

    pub(crate) fn endpoint(&self) -> String {
        format!("https://localhost:{}", self.address.port())
    }

    /// The URI of a key with everything but credentials.
    pub(crate) fn bare_uri(&self, key: &str) -> String {
        let (endpoint, seconds) = (self.endpoint(), self.seconds);
        let region = match key.starts_with("arn:") {
            true => String::new(),
            false => format!("&region={REGION}"),
        };
        format!(
            "awskms:///{key}?endpoint={endpoint}&ca={FIXTURES}/ca.pem&deadline={seconds}{region}"
        )
    }

    pub(crate) fn uri_of(&self, key: &str) -> String {
        let file = self.home.path().join("credentials");
        let file = file.display();
        format!(
            "{}&credentials-file={file}&profile=default",
            self.bare_uri(key)
        )
    }

    pub(crate) fn uri(&self) -> String {
        self.uri_of(&self.key)
    }

    /// What the providers find, from now on.
    pub(crate) fn write_credentials(&self, key: &AccessKey) {
        let token = key.token.as_ref();
        let token = token.map_or(String::new(), |t| format!("aws_session_token = {t}\n"));
        let text = format!(
            "[default]\naws_access_key_id = {}\naws_secret_access_key = {}\n{token}",
            key.id, key.secret
        );
        std::fs::write(self.home.path().join("credentials"), text).unwrap();
    }

    pub(crate) fn open(&self, uri: &str) -> Arc<dyn KeyProvider> {
        self.try_open(uri).unwrap()
    }

    pub(crate) fn try_open(&self, uri: &str) -> Result<Arc<dyn KeyProvider>, KeyError> {
        Ok(Arc::new(AwsProvider::open(&AwsUri::parse(uri)?)?))
    }

    /// Makes a call about the key, past the proxies.
    pub(crate) fn manage(&self, operation: &str) {
        let body = json!({ "KeyId": self.key });
        self.emulator.call(REGION, operation, &body);
    }
}

/// An access key that was never used before, with a session token.
pub(crate) fn new_access_key() -> AccessKey {
    static NUMBER: AtomicUsize = AtomicUsize::new(0);
    let number = NUMBER.fetch_add(1, Ordering::SeqCst);
    AccessKey {
        id: format!("ASIATESTS{number}"),
        secret: format!("secret/of+the/tests{number}"),
        token: Some(format!("token/of+the=tests{number}")),
    }
}

impl Service for Peer {
    fn provider(&self) -> Arc<dyn KeyProvider> {
        self.open(&self.uri())
    }

    fn provider_of_missing_key(&self) -> Arc<dyn KeyProvider> {
        let (place, _) = self.key.rsplit_once('/').unwrap();
        self.open(&self.uri_of(&format!("{place}/01234567-0123-0123-0123-0123456789ab")))
    }

    fn unreachable_provider(&self) -> Option<Arc<dyn KeyProvider>> {
        let elsewhere = self.uri().replace(&self.endpoint(), "https://127.0.0.1:1");
        Some(self.open(&elsewhere))
    }

    fn set_enabled(&self, enabled: bool) -> bool {
        self.manage(if enabled { "EnableKey" } else { "DisableKey" });
        true
    }

    /// KMS deletes a key after a week at the earliest; until then it is disabled,
    /// which is a test of its own.
    fn delete(&self) -> bool {
        false
    }

    /// Neither emulator has `RotateKeyOnDemand`. In KMS a wrapped key says by
    /// itself which key material it needs.
    fn rotate(&self) -> bool {
        false
    }

    /// The emulators have no policies, so it is the proxy that denies.
    fn set_allowed(&self, allowed: bool) -> bool {
        *self.proxy.denying.lock().unwrap() = !allowed;
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
                trouble.refusal = Some((400, "ThrottlingException"));
            }
            Mood::Failing(calls) => {
                trouble.calls = calls;
                trouble.refusal = Some((500, "KMSInternalException"));
            }
            Mood::Slow(delay) => trouble.delay = delay,
            Mood::Garbage => trouble.manner = Manner::Garbage,
            Mood::Oversized => trouble.manner = Manner::Endless,
            Mood::CutOff(calls) => {
                trouble.calls = calls;
                trouble.manner = Manner::CutOff;
            }
        }
        *self.proxy.trouble() = trouble;
        true
    }

    fn end_credentials(&self) -> bool {
        let (old, new) = (self.access(), new_access_key());
        self.emulator.verifier.know(&new, false);
        self.write_credentials(&new);
        self.emulator.verifier.know(&old, true);
        *self.access.lock().unwrap() = new;
        true
    }
}
