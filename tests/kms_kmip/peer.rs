//! The server as the conformance suite sees it: one key of it.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use kmsfs::keys::kms::kmip::{KmipProvider, KmipUri};
use kmsfs::keys::{KeyError, KeyProvider};
use parking_lot::{ReentrantMutex, ReentrantMutexGuard};
use serde_json::json;

use crate::conformance::{DEADLINE, Mood, Service};
use crate::proxy::{Manner, Proxy, Trouble};
use crate::pykmip::{PyKmip, pykmip};

/// How the URI names the key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Naming {
    Id,
    Name,
}

/// One test at a time: the server does one thing at a time, and the tests have
/// deadlines.
static TURN: ReentrantMutex<()> = ReentrantMutex::new(());

/// A key of its own at the shared server.
pub(crate) struct Peer {
    pub(crate) server: &'static PyKmip,
    pub(crate) proxy: Option<Arc<Proxy>>,
    pub(crate) name: String,
    naming: Naming,
    more: &'static str,
    ids: Mutex<Vec<String>>,
    _turn: ReentrantMutexGuard<'static, ()>,
}

impl Peer {
    /// One behind a proxy; `more` goes to the end of the URI.
    pub(crate) fn new(naming: Naming, more: &'static str) -> Self {
        let proxy = Some(Proxy::start(pykmip()));
        Self {
            proxy,
            ..Self::direct(naming, more)
        }
    }

    /// One without a proxy.
    pub(crate) fn direct(naming: Naming, more: &'static str) -> Self {
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        let turn = TURN.lock();
        let server = pykmip();
        let name = format!("key {}", NUMBER.fetch_add(1, Ordering::SeqCst));
        let id = server.make(&name, true);
        Self {
            server,
            proxy: None,
            name,
            naming,
            more,
            ids: Mutex::new(vec![id]),
            _turn: turn,
        }
    }

    pub(crate) fn proxy(&self) -> &Proxy {
        self.proxy.as_ref().unwrap()
    }

    /// The id of the newest version.
    pub(crate) fn id(&self) -> String {
        self.ids.lock().unwrap().last().unwrap().clone()
    }

    fn port(&self) -> u16 {
        self.proxy
            .as_ref()
            .map_or(self.server.port, |proxy| proxy.port)
    }

    pub(crate) fn uri(&self) -> String {
        self.uri_of(&self.id(), &self.name)
    }

    pub(crate) fn uri_of(&self, id: &str, name: &str) -> String {
        let key = match self.naming {
            Naming::Id => format!("/{id}?"),
            Naming::Name => format!("?name={}&", name.replace(' ', "%20")),
        };
        format!(
            "kmip://localhost:{}{key}ca={}&cert={}&key={}&deadline={}{}",
            self.port(),
            self.server.file("ca").display(),
            self.server.file("kmsfs").display(),
            self.server.file("kmsfs-key").display(),
            DEADLINE.as_secs(),
            self.more,
        )
    }

    pub(crate) fn open(&self, uri: &str) -> Arc<dyn KeyProvider> {
        self.try_open(uri).unwrap()
    }

    pub(crate) fn try_open(&self, uri: &str) -> Result<Arc<dyn KeyProvider>, KeyError> {
        Ok(Arc::new(KmipProvider::open(&KmipUri::parse(uri)?)?))
    }

    fn each_version(&self, task: impl Fn(&str) -> serde_json::Value) {
        for id in self.ids.lock().unwrap().iter() {
            self.server.order(&task(id));
        }
    }

    pub(crate) fn revoke(&self, reason: &str) {
        self.each_version(|id| json!({ "do": "revoke", "id": id, "reason": reason }));
    }
}

impl Service for Peer {
    fn provider(&self) -> Arc<dyn KeyProvider> {
        self.open(&self.uri())
    }

    fn provider_of_missing_key(&self) -> Arc<dyn KeyProvider> {
        self.open(&self.uri_of("987654", "never made"))
    }

    fn unreachable_provider(&self) -> Option<Arc<dyn KeyProvider>> {
        let uri = self.uri().replace(&format!(":{}", self.port()), ":1");
        Some(self.open(&uri))
    }

    /// What was revoked stays so in KMIP; tests of their own do that.
    fn set_enabled(&self, enabled: bool) -> bool {
        let state = if enabled { "ACTIVE" } else { "DEACTIVATED" };
        self.each_version(|id| json!({ "do": "set_state", "id": id, "state": state }));
        true
    }

    fn delete(&self) -> bool {
        self.revoke("CESSATION_OF_OPERATION");
        self.each_version(|id| json!({ "do": "destroy", "id": id }));
        true
    }

    fn rotate(&self) -> bool {
        if self.naming == Naming::Id {
            return false;
        }
        self.each_version(|id| json!({ "do": "age", "id": id, "seconds": 10 }));
        let id = self.server.make(&self.name, true);
        self.ids.lock().unwrap().push(id);
        true
    }

    fn set_allowed(&self, allowed: bool) -> bool {
        self.each_version(|id| json!({ "do": "set_allowed", "id": id, "allowed": allowed }));
        true
    }

    fn set_mood(&self, mood: Mood) -> bool {
        let Some(proxy) = &self.proxy else {
            return mood == Mood::Well;
        };
        let mut trouble = Trouble {
            calls: usize::MAX,
            ..Trouble::default()
        };
        match mood {
            Mood::Well => trouble.calls = 0,
            Mood::Throttling(calls) => {
                trouble.calls = calls;
                trouble.manner = Manner::Refuse(0x3a);
            }
            Mood::Failing(calls) => {
                trouble.calls = calls;
                trouble.manner = Manner::Refuse(0x2a);
            }
            Mood::Slow(delay) => trouble.delay = delay,
            Mood::Garbage => trouble.manner = Manner::Garbage,
            Mood::Oversized => trouble.manner = Manner::Oversized,
            Mood::CutOff(calls) => {
                trouble.calls = calls;
                trouble.manner = Manner::CutOff;
            }
        }
        *proxy.trouble() = trouble;
        true
    }

    /// Certificates do not end with a session: the sessions do.
    fn end_credentials(&self) -> bool {
        let Some(proxy) = &self.proxy else {
            return false;
        };
        proxy.hang_up();
        true
    }
}
