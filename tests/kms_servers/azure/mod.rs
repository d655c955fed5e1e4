//! A server that speaks as Azure Key Vault and Managed HSM do, with TLS, and one
//! without that gives tokens for it as Microsoft Entra and the metadata service do.
//! As Azure's, it lets a disabled key wrap.

mod keys;
mod login;

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use data_encoding::BASE64URL_NOPAD;
use serde_json::{Value, json};

use super::alibaba::FIXTURES;
use super::http::{Reply, Request, serve, tls_config};
use super::tokens::Tokens;
use super::trouble::Trouble;
pub use keys::{Key, Kind};
pub use login::{ASSERTION, CLIENT, IDENTITY_HEADER, SECRET, TENANT};

pub const KEY: &str = "files";
/// What tokens are for.
const RESOURCE: &str = "https://localhost";

/// A running server. Cloning gives another handle to it.
#[derive(Clone)]
pub struct Server {
    /// The vault.
    pub vault: SocketAddr,
    /// What gives tokens.
    pub login: SocketAddr,
    inner: Arc<Inner>,
}

struct Inner {
    world: Mutex<World>,
    calls: AtomicUsize,
}

/// All that calls read and change.
pub struct World {
    /// The only key; `None` if it was deleted.
    pub key: Option<Key>,
    pub tokens: Tokens,
    pub trouble: Trouble,
    /// How long tokens last.
    pub lifetime: u64,
    /// What challenges say tokens are for.
    pub challenge: String,
    /// The ways in which tokens were asked for.
    pub logins: Vec<&'static str>,
    /// The operations on the key that were let in.
    pub operations: Vec<String>,
    origin: String,
}

/// HTTP status, code and inner code.
pub struct Refusal(pub u16, pub &'static str, pub &'static str, pub String);

impl Server {
    /// Starts one with the key [`KEY`].
    pub fn start(kind: Kind) -> Self {
        let world = World {
            key: Some(Key::new(kind)),
            tokens: Tokens::default(),
            trouble: Trouble::default(),
            lifetime: 3600,
            challenge: RESOURCE.into(),
            logins: Vec::new(),
            operations: Vec::new(),
            origin: String::new(),
        };
        let inner = Arc::new(Inner {
            world: Mutex::new(world),
            calls: AtomicUsize::new(0),
        });
        let fixture = |name: &str| std::fs::read(format!("{FIXTURES}/{name}")).unwrap();
        let tls = tls_config(&fixture("server.pem"), &fixture("server-key.pem"));
        let (vault, login) = (Arc::clone(&inner), Arc::clone(&inner));
        let server = Self {
            vault: serve(Some(tls), Arc::new(move |request| vault.handle(request))),
            login: serve(None, Arc::new(move |request| login.login(request))),
            inner,
        };
        server.world().origin = format!("https://localhost:{}", server.vault.port());
        server
    }

    /// The key and everything else, to be looked at and changed.
    pub fn world(&self) -> MutexGuard<'_, World> {
        self.inner.world()
    }

    /// Changes the key.
    pub fn change(&self, change: impl FnOnce(&mut Key)) {
        change(self.world().key.as_mut().unwrap());
    }

    /// How many calls of the vault there were, refused ones included.
    pub fn calls(&self) -> usize {
        self.inner.calls.load(Ordering::SeqCst)
    }
}

impl Inner {
    fn world(&self) -> MutexGuard<'_, World> {
        self.world
            .lock()
            .unwrap_or_else(|poison| poison.into_inner())
    }

    fn login(&self, request: &Request) -> Reply {
        match request.path.strip_prefix("/_test/") {
            Some(command) => self.command(command),
            None => login::handle(&mut self.world(), request),
        }
    }

    fn handle(&self, request: &Request) -> Reply {
        self.calls.fetch_add(1, Ordering::SeqCst);
        let mut world = self.world();
        let trouble = world.trouble.take();
        let refused = trouble.and_then(|trouble| trouble.status);
        let mut reply = match refused {
            Some(429) => refusal(429, "Throttled", "").reply(),
            Some(status) => refusal(status, "ServiceUnavailable", "").reply(),
            None => world.serve(request),
        };
        let id = ("x-ms-request-id", "11111111-test".to_owned());
        reply.headers.push(id);
        if let Some(trouble) = trouble {
            trouble.spoil(&mut reply);
        }
        reply
    }

    /// What scripts in other languages change.
    fn command(&self, command: &str) -> Reply {
        let mut world = self.world();
        let key = world.key.as_mut().unwrap();
        match command {
            "enable" => key.set_enabled(true),
            "disable" => key.set_enabled(false),
            "rotate" => key.rotate(),
            "deny" => key.denied = true,
            "allow" => key.denied = false,
            "hide" => key.hidden = true,
            "show" => key.hidden = false,
            "rsa" => *key = Key::new(Kind::Rsa),
            "aes" => *key = Key::new(Kind::Aes),
            "end-tokens" => world.tokens.end(),
            "throttle" => {
                world.trouble = Trouble {
                    calls: 2,
                    status: Some(429),
                    ..Trouble::default()
                };
            }
            _ => return reply(404, &json!({})),
        }
        reply(200, &json!({}))
    }
}

impl World {
    fn serve(&mut self, request: &Request) -> Reply {
        let header = request.header("authorization");
        if !self.tokens.accept(header, RESOURCE) {
            let mut reply = refusal(401, "Unauthorized", "").reply();
            let error = match header {
                "" => "",
                _ => ", error=\"invalid_token\"",
            };
            let challenge = format!(
                "Bearer authorization=\"https://login.microsoftonline.com/{TENANT}\", \
                 resource=\"{}\"{error}",
                self.challenge
            );
            reply.headers.push(("www-authenticate", challenge));
            return reply;
        }
        match self.operate(request) {
            Ok(body) => reply(200, &body),
            Err(refusal) => refusal.reply(),
        }
    }

    fn operate(&mut self, request: &Request) -> Result<Value, Refusal> {
        if !request.query.starts_with("api-version=") {
            return Err(refusal(400, "BadParameter", ""));
        }
        let parts: Vec<&str> = request.path.split('/').skip(1).collect();
        let (name, version, operation) = match (request.method.as_str(), &parts[..]) {
            ("GET", ["keys", name]) => (*name, "", "get"),
            ("GET", ["keys", name, version]) => (*name, *version, "get"),
            ("POST", ["keys", name, operation]) => (*name, "", *operation),
            ("POST", ["keys", name, version, operation]) => (*name, *version, *operation),
            _ => return Err(refusal(404, "NotFound", "")),
        };
        self.operations.push(operation.to_owned());
        let key = self.key.as_ref().filter(|_| name == KEY);
        let key = key.ok_or_else(|| refusal(404, "KeyNotFound", ""))?;
        if key.denied || (key.hidden && operation == "get") {
            return Err(refusal(403, "Forbidden", "ForbiddenByPolicy"));
        }
        let version = match version {
            "" => key.versions.last(),
            id => key.versions.iter().find(|version| version.id == id),
        };
        let version = version.ok_or_else(|| refusal(404, "KeyNotFound", ""))?;
        let kid = format!("{}/keys/{name}/{}", self.origin, version.id);
        if operation == "get" {
            let mut jwk = version.public();
            jwk["kid"] = kid.into();
            jwk["key_ops"] = json!(["wrapKey", "unwrapKey"]);
            let attributes = json!({ "enabled": version.enabled, "created": 1, "updated": 1,
                "recoveryLevel": "Recoverable+Purgeable" });
            return Ok(json!({ "key": jwk, "attributes": attributes }));
        }
        let body: Value = serde_json::from_slice(&request.body).unwrap_or_default();
        let value = body["value"].as_str().unwrap_or_default();
        let bad = || refusal(400, "BadParameter", "");
        let value = BASE64URL_NOPAD
            .decode(value.as_bytes())
            .map_err(|_| bad())?;
        if body["alg"] != version.algorithm() {
            return Err(bad());
        }
        let result = match operation {
            // As Azure does, whether the key is enabled or not.
            "wrapkey" => version.wrap(&value),
            "unwrapkey" if !version.enabled => {
                let text = "Operation unwrapKey is not allowed on a disabled key.";
                return Err(Refusal(403, "Forbidden", "KeyDisabled", text.into()));
            }
            "unwrapkey" => version.unwrap(&value),
            _ => return Err(refusal(404, "NotFound", "")),
        };
        let result = result.ok_or_else(bad)?;
        Ok(json!({ "kid": kid, "value": BASE64URL_NOPAD.encode(&result) }))
    }
}

fn refusal(status: u16, code: &'static str, inner: &'static str) -> Refusal {
    Refusal(status, code, inner, format!("It is {code} {inner}."))
}

impl Refusal {
    fn reply(self) -> Reply {
        let Self(status, code, inner, message) = self;
        let mut error = json!({ "code": code, "message": message });
        if !inner.is_empty() {
            error["innererror"] = json!({ "code": inner });
        }
        reply(status, &json!({ "error": error }))
    }
}

fn reply(status: u16, body: &Value) -> Reply {
    Reply {
        status,
        headers: vec![("content-type", "application/json; charset=utf-8".into())],
        body: body.to_string().into_bytes(),
        ..Reply::default()
    }
}
