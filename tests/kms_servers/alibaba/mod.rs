//! A server that speaks as Alibaba Cloud KMS does, as far as its documentation
//! and its official SDKs tell: the OpenAPI with verified ACS3 signatures, the
//! protocol of KMS instances with verified RSA signatures, temporary
//! credentials, and keys with states and versions.

mod acs3;
mod conditions;
mod instance;
mod keys;
mod openapi;

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::http::{Manner, Reply, Request, serve, tls_config};
pub use conditions::Conditions;
use conditions::Way;
pub use keys::{Key, Kind, State};

pub const FIXTURES: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/tests/kms_servers/alibaba/fixtures"
);
pub const ACCESS_KEY: (&str, &str) = ("LTAI-test-id", "test-secret");
pub const KEY: &str = "key-test-0001";
pub const ALIAS: &str = "alias/test";
const CLIENT_KEY: &str = "KAAP.test-client-key";
/// How far a caller's clock may be off.
const TOLERANCE: u64 = 15 * 60;

/// A running server. Cloning gives another handle to it.
#[derive(Clone)]
pub struct Server {
    pub plain: SocketAddr,
    pub encrypted: SocketAddr,
    inner: Arc<Inner>,
}

struct Inner {
    state: Mutex<World>,
    clock_offset: AtomicI64,
    calls: AtomicUsize,
    way: Way,
}

/// All that calls read and change.
pub struct World {
    pub keys: HashMap<String, Key>,
    pub aliases: HashMap<String, String>,
    /// Secret and, for temporary ones, token and whether it has ended.
    pub access_keys: HashMap<String, AccessKey>,
    pub trouble: Trouble,
    /// Operations that the gateway does not know.
    pub lacking: HashSet<&'static str>,
    /// The last call that was let in: its operation and its query and body.
    pub last_call: (String, String),
    /// The data keys that the OpenAPI gave out, each with its context.
    pub released: Mutex<Vec<Released>>,
    nonces: HashSet<String>,
    issued: usize,
}

/// A data key that was given out.
pub struct Released {
    /// `EncryptionContext`, as it came.
    pub context: String,
    pub key: Vec<u8>,
}

pub struct AccessKey {
    pub secret: String,
    pub token: Option<String>,
    pub ended: bool,
}

/// How the next calls go wrong.
#[derive(Clone, Copy, Default)]
pub struct Trouble {
    /// How many calls are affected.
    pub calls: usize,
    pub delay: Duration,
    pub manner: Manner,
    /// A refusal instead of an answer: status and code.
    pub refusal: Option<(u16, &'static str)>,
    /// How long the refusal asks to wait.
    pub retry_after_ms: Option<u64>,
}

impl Server {
    /// Starts one with the key [`KEY`] of a software instance.
    pub fn start() -> Self {
        let mut world = World {
            keys: HashMap::new(),
            aliases: HashMap::from([(ALIAS.into(), KEY.into())]),
            access_keys: HashMap::new(),
            trouble: Trouble::default(),
            lacking: HashSet::new(),
            last_call: Default::default(),
            released: Mutex::default(),
            nonces: HashSet::new(),
            issued: 0,
        };
        world.keys.insert(KEY.into(), Key::new(Kind::Software));
        let (id, secret) = ACCESS_KEY;
        let fixed = AccessKey {
            secret: secret.into(),
            token: None,
            ended: false,
        };
        world.access_keys.insert(id.into(), fixed);
        let inner = Arc::new(Inner {
            state: Mutex::new(world),
            clock_offset: AtomicI64::new(0),
            calls: AtomicUsize::new(0),
            way: Way::default(),
        });
        let fixture = |name: &str| std::fs::read(format!("{FIXTURES}/{name}")).unwrap();
        let tls = tls_config(&fixture("server.pem"), &fixture("server-key.pem"));
        let handler = |inner: &Arc<Inner>| {
            let inner = Arc::clone(inner);
            Arc::new(move |request: &Request| inner.handle(request))
        };
        Self {
            plain: serve(None, handler(&inner)),
            encrypted: serve(Some(tls), handler(&inner)),
            inner,
        }
    }

    /// The keys and everything else, to be looked at and changed.
    pub fn world(&self) -> MutexGuard<'_, World> {
        self.inner.world()
    }

    /// Changes the key [`KEY`].
    pub fn change(&self, change: impl FnOnce(&mut Key)) {
        change(self.world().keys.get_mut(KEY).unwrap());
    }

    /// Makes the next calls go wrong.
    pub fn trouble(&self, trouble: Trouble) {
        self.world().trouble = trouble;
    }

    /// Makes all calls from now on meet these conditions.
    pub fn set_conditions(&self, conditions: Conditions) {
        self.inner.way.set(conditions);
    }

    /// How many calls were refused for being too many.
    pub fn throttled(&self) -> usize {
        self.inner.way.throttled()
    }

    /// Lets the server's clock run fast by that many seconds.
    pub fn set_clock(&self, offset: i64) {
        self.inner.clock_offset.store(offset, Ordering::SeqCst);
    }

    /// How many calls there were, refused ones included.
    pub fn calls(&self) -> usize {
        self.inner.calls.load(Ordering::SeqCst)
    }

    /// Ends all temporary access keys.
    pub fn end_temporary_keys(&self) {
        for key in self.world().access_keys.values_mut() {
            key.ended |= key.token.is_some();
        }
    }
}

impl Inner {
    fn world(&self) -> MutexGuard<'_, World> {
        self.state
            .lock()
            .unwrap_or_else(|poison| poison.into_inner())
    }

    fn now(&self) -> u64 {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        let offset = self.clock_offset.load(Ordering::SeqCst);
        now.as_secs().saturating_add_signed(offset)
    }

    fn handle(&self, request: &Request) -> Reply {
        let date = ("date", http_date(self.now()));
        if request.path == "/credentials" {
            let issued = self.world().issue(self.now());
            return Reply {
                status: 200,
                headers: vec![date],
                body: issued.to_string().into_bytes(),
                ..Reply::default()
            };
        }
        if let Some(command) = request.path.strip_prefix("/_test/") {
            return self.command(command);
        }
        self.calls.fetch_add(1, Ordering::SeqCst);
        let trouble = {
            let mut world = self.world();
            let trouble = &mut world.trouble;
            let affected = trouble.calls > 0;
            trouble.calls = trouble.calls.saturating_sub(1);
            affected.then_some(*trouble)
        };
        let is_instance = !request.header("x-kms-apiname").is_empty();
        let verdict = self.way.judge();
        let refusal = trouble.and_then(|trouble| trouble.refusal);
        let refusal = refusal.or(verdict.refusal);
        let mut reply = match (is_instance, refusal) {
            (true, Some(refusal)) => instance::refuse(refusal.into()),
            (false, Some(refusal)) => openapi::refuse(refusal.into()),
            (true, None) => instance::handle(&mut self.world(), request, self.now()),
            (false, None) => openapi::handle(&mut self.world(), request, self.now()),
        };
        reply.headers.push(date);
        (reply.after, reply.manner) = (verdict.latency, verdict.manner);
        if let Some(trouble) = trouble {
            reply.after = trouble.delay;
            reply.manner = trouble.manner;
            let wait = trouble.retry_after_ms;
            reply
                .headers
                .extend(wait.map(|ms| ("x-acs-retry-after", ms.to_string())));
        }
        reply
    }

    /// What scripts in other languages change: `/_test/disable` and so on.
    fn command(&self, command: &str) -> Reply {
        if let Some(offset) = command.strip_prefix("clock/") {
            let offset = offset.parse().unwrap_or(0);
            self.clock_offset.store(offset, Ordering::SeqCst);
        }
        let mut world = self.world();
        let key = world.keys.get_mut(KEY).unwrap();
        match command {
            "enable" => key.state = State::Enabled,
            "disable" => key.state = State::Disabled,
            "rotate" => key.rotate(),
            "deny" => key.denied = true,
            "allow" => key.denied = false,
            "throttle" => {
                world.trouble = Trouble {
                    calls: 2,
                    refusal: Some((429, "Rejected.Throttling")),
                    ..Trouble::default()
                };
            }
            _ if command.starts_with("clock/") => {}
            "software" => *key = Key::new(Kind::Software),
            "hardware" => *key = Key::new(Kind::Hardware),
            _ => {
                return Reply {
                    status: 404,
                    ..Reply::default()
                };
            }
        }
        Reply {
            status: 200,
            ..Reply::default()
        }
    }
}

impl World {
    /// A temporary access key.
    fn issue(&mut self, now: u64) -> serde_json::Value {
        self.issued += 1;
        let id = format!("STS.test-{}", self.issued);
        let (secret, token) = (format!("secret of {id}"), format!("token of {id}"));
        let issued = serde_json::json!({
            "Code": "Success",
            "AccessKeyId": id,
            "AccessKeySecret": secret,
            "SecurityToken": token,
            "Expiration": iso8601(now + 3600),
        });
        let key = AccessKey {
            secret,
            token: Some(token),
            ended: false,
        };
        self.access_keys.insert(id, key);
        issued
    }

    /// The id of the key that `name` names.
    fn key_id(&self, name: &str) -> Result<String, Refusal> {
        let name = name.rsplit_once(":key/").map_or(name, |(_, id)| id);
        if !name.starts_with("alias/") {
            return Ok(name.to_owned());
        }
        let id = self.aliases.get(name);
        id.cloned().ok_or(Refusal(404, "Forbidden.AliasNotFound"))
    }

    /// The key of that id, if the caller may use it now.
    fn usable(&self, id: &str) -> Result<&Key, Refusal> {
        let key = self
            .keys
            .get(id)
            .ok_or(Refusal(404, "Forbidden.KeyNotFound"))?;
        if key.denied {
            return Err(Refusal(403, "Forbidden.NoPermission"));
        }
        match key.state {
            State::Enabled if key.kind == Kind::Service => {
                Err(Refusal(400, "Rejected.UnsupportedOperation"))
            }
            State::Enabled => Ok(key),
            State::Disabled => Err(Refusal(409, "Rejected.Disabled")),
            State::PendingDeletion => Err(Refusal(409, "Rejected.PendingDeletion")),
        }
    }

    /// The key with that version, and the version.
    fn find_version(&self, version: &[u8]) -> Option<(&str, usize)> {
        self.keys.iter().find_map(|(id, key)| {
            let index = key
                .versions
                .iter()
                .position(|v| v.id.as_bytes() == version)?;
            Some((id.as_str(), index))
        })
    }

    /// Remembers a data key that is given out.
    fn release(&self, context: Option<&String>, key: &[u8]) {
        self.released.lock().unwrap().push(Released {
            context: context.cloned().unwrap_or_default(),
            key: key.to_vec(),
        });
    }

    /// Whether a nonce was not seen before.
    fn is_fresh(&mut self, nonce: &str) -> bool {
        !nonce.is_empty() && self.nonces.insert(nonce.to_owned())
    }
}

/// Status and code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Refusal(u16, &'static str);

impl From<(u16, &'static str)> for Refusal {
    fn from((status, code): (u16, &'static str)) -> Self {
        Self(status, code)
    }
}

fn request_id() -> String {
    let mut bytes = [0; 8];
    aws_lc_rs::rand::fill(&mut bytes).unwrap();
    data_encoding::HEXUPPER.encode(&bytes)
}

/// Year, month, day, hour, minute, second; by counting, unlike the code under test.
fn civil(seconds: u64) -> [u64; 6] {
    let leap = |y: u64| (y.is_multiple_of(4) && !y.is_multiple_of(100)) || y.is_multiple_of(400);
    let (mut days, mut year) = (seconds / 86_400, 1970);
    while days >= 365 + u64::from(leap(year)) {
        days -= 365 + u64::from(leap(year));
        year += 1;
    }
    let mut month = 0;
    let lengths = [
        31,
        28 + u64::from(leap(year)),
        31,
        30,
        31,
        30,
        31,
        31,
        30,
        31,
        30,
        31,
    ];
    while days >= lengths[month] {
        days -= lengths[month];
        month += 1;
    }
    let second = seconds % 86_400;
    [
        year,
        month as u64 + 1,
        days + 1,
        second / 3600,
        second / 60 % 60,
        second % 60,
    ]
}

fn iso8601(seconds: u64) -> String {
    let [y, mo, d, h, mi, s] = civil(seconds);
    format!("{y:04}-{mo:02}-{d:02}T{h:02}:{mi:02}:{s:02}Z")
}

pub fn http_date(seconds: u64) -> String {
    let [y, mo, d, h, mi, s] = civil(seconds);
    let weekday =
        ["Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"][(seconds / 86_400 % 7) as usize];
    let month = &"JanFebMarAprMayJunJulAugSepOctNovDec"[mo as usize * 3 - 3..mo as usize * 3];
    format!("{weekday}, {d:02} {month} {y} {h:02}:{mi:02}:{s:02} GMT")
}

/// Whether a date lies within the tolerance of now, by writing down every date
/// that does, the nearest ones first.
fn is_recent(date: &str, now: u64, write: fn(u64) -> String) -> bool {
    (0..=TOLERANCE).any(|apart| write(now - apart) == date || write(now + apart) == date)
}
