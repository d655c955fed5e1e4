//! A server that speaks as Google Cloud KMS does, and as what gives tokens for it:
//! `encrypt` and `decrypt` with associated data and CRC-32C, versions with states;
//! service account assertions with verified signatures, refresh tokens, token
//! exchange, impersonation and the metadata server.

mod keys;
mod login;

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use data_encoding::BASE64;
use serde_json::{Value, json};

use super::http::{Reply, Request, serve};
use super::tokens::Tokens;
use super::trouble::Trouble;
pub use keys::{Key, State, crc32c};
pub use login::{Identity, SUBJECT_TOKEN};

pub const RESOURCE: &str = "projects/test/locations/europe-west3/keyRings/ring/cryptoKeys/key";
/// What tokens are for.
const AUDIENCE: &str = "kms";

/// A running server. Cloning gives another handle to it.
#[derive(Clone)]
pub struct Server {
    pub address: SocketAddr,
    inner: Arc<Inner>,
}

struct Inner {
    world: Mutex<World>,
    calls: AtomicUsize,
}

/// All that calls read and change.
pub struct World {
    /// The only key; `None` if it never was.
    pub key: Option<Key>,
    pub tokens: Tokens,
    pub identity: Identity,
    pub trouble: Trouble,
    /// Makes answers arrive damaged: how many.
    pub damaged: usize,
    /// How far the server's clock is ahead.
    pub clock: i64,
    /// How long tokens last.
    pub lifetime: u64,
    /// The ways in which tokens were asked for.
    pub logins: Vec<&'static str>,
}

/// HTTP status, status, message, and the type of a violated precondition.
pub struct Refusal(pub u16, pub &'static str, pub String, pub &'static str);

impl Server {
    /// Starts one with the key [`RESOURCE`].
    pub fn start() -> Self {
        let world = World {
            key: Some(Key::new()),
            tokens: Tokens::default(),
            identity: Identity::new(),
            trouble: Trouble::default(),
            damaged: 0,
            clock: 0,
            lifetime: 3600,
            logins: Vec::new(),
        };
        let inner = Arc::new(Inner {
            world: Mutex::new(world),
            calls: AtomicUsize::new(0),
        });
        let handler = Arc::clone(&inner);
        let address = serve(None, Arc::new(move |request| handler.handle(request)));
        inner.world().identity.origin = format!("http://{address}");
        Self { address, inner }
    }

    /// The key and everything else, to be looked at and changed.
    pub fn world(&self) -> MutexGuard<'_, World> {
        self.inner.world()
    }

    /// Changes the key.
    pub fn change(&self, change: impl FnOnce(&mut Key)) {
        change(self.world().key.as_mut().unwrap());
    }

    /// How many calls about keys there were, refused ones included.
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

    fn handle(&self, request: &Request) -> Reply {
        if let Some(command) = request.path.strip_prefix("/_test/") {
            return self.command(command);
        }
        let mut world = self.world();
        if let Some(reply) = login::handle(&mut world, request) {
            return reply;
        }
        self.calls.fetch_add(1, Ordering::SeqCst);
        let trouble = world.trouble.take();
        let refused = trouble.and_then(|trouble| trouble.status);
        let result = match refused {
            Some(429) => Err(refusal(429, "RESOURCE_EXHAUSTED", "Quota exceeded")),
            Some(status) => Err(refusal(status, "UNAVAILABLE", "try again")),
            None => world.serve(request),
        };
        let mut reply = match result {
            Ok(body) => reply(200, &body),
            Err(refusal) => refusal.reply(),
        };
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
            "enable" => key.set_state(State::Enabled),
            "disable" => key.set_state(State::Disabled),
            "destroy" => key.set_state(State::Destroyed),
            "rotate" => key.rotate(),
            "deny" => key.denied = true,
            "allow" => key.denied = false,
            "end-tokens" => world.tokens.end(),
            "damage" => world.damaged = 1,
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
    fn serve(&mut self, request: &Request) -> Result<Value, Refusal> {
        if !self
            .tokens
            .accept(request.header("authorization"), AUDIENCE)
        {
            let text = "Request had invalid authentication credentials.";
            return Err(refusal(401, "UNAUTHENTICATED", text));
        }
        let (resource, operation) = request
            .path
            .split_once(':')
            .unwrap_or((&request.path, "get"));
        let resource = resource.strip_prefix("/v1/").unwrap_or_default();
        let missing = || {
            refusal(
                404,
                "NOT_FOUND",
                &format!("CryptoKey {resource} not found."),
            )
        };
        let damaged = std::mem::take(&mut self.damaged);
        let key = self.key.as_mut().filter(|_| resource == RESOURCE);
        let key = key.ok_or_else(missing)?;
        if key.denied {
            let text = format!(
                "Permission 'cloudkms.cryptoKeyVersions.useToEncrypt' denied on resource \
                 '{resource}' (or it may not exist)."
            );
            return Err(refusal(403, "PERMISSION_DENIED", &text));
        }
        let body: Value = serde_json::from_slice(&request.body).unwrap_or_default();
        match (request.method.as_str(), operation) {
            ("GET", "get") => Ok(json!({
                "name": resource,
                "purpose": "ENCRYPT_DECRYPT",
                "primary": {
                    "name": format!("{resource}/cryptoKeyVersions/{}", key.versions.len()),
                    "state": key.versions.last().unwrap().state.name(),
                    "protectionLevel": "SOFTWARE",
                },
            })),
            ("POST", "encrypt") => encrypt(key, &body, damaged > 0),
            ("POST", "decrypt") => decrypt(key, &body, damaged > 0),
            _ => Err(refusal(404, "NOT_FOUND", "no such method")),
        }
    }
}

fn encrypt(key: &Key, body: &Value, damaged: bool) -> Result<Value, Refusal> {
    let (plaintext, plain_verified) = field(body, "plaintext")?;
    let (aad, aad_verified) = field(body, "additionalAuthenticatedData")?;
    let (version, mut ciphertext) = key.encrypt(&plaintext, &aad)?;
    let sum = crc32c(&ciphertext);
    if damaged {
        ciphertext[9] ^= 4;
    }
    Ok(json!({
        "name": format!("{RESOURCE}/cryptoKeyVersions/{version}"),
        "ciphertext": BASE64.encode(&ciphertext),
        "ciphertextCrc32c": sum.to_string(),
        "verifiedPlaintextCrc32c": plain_verified,
        "verifiedAdditionalAuthenticatedDataCrc32c": aad_verified,
        "protectionLevel": "SOFTWARE",
    }))
}

fn decrypt(key: &Key, body: &Value, damaged: bool) -> Result<Value, Refusal> {
    let (ciphertext, _) = field(body, "ciphertext")?;
    let (aad, _) = field(body, "additionalAuthenticatedData")?;
    let (version, mut plaintext) = key.decrypt(&ciphertext, &aad)?;
    let sum = crc32c(&plaintext);
    if damaged {
        plaintext[0] ^= 4;
    }
    Ok(json!({
        "plaintext": BASE64.encode(&plaintext),
        "plaintextCrc32c": sum.to_string(),
        "usedPrimary": version == key.versions.len(),
        "protectionLevel": "SOFTWARE",
    }))
}

/// Bytes of a request, and whether they came with a checksum, which is then
/// right.
fn field(body: &Value, name: &'static str) -> Result<(Vec<u8>, bool), Refusal> {
    let text = body[name].as_str().unwrap_or_default();
    let bytes = BASE64.decode(text.as_bytes());
    let bytes =
        bytes.map_err(|_| refusal(400, "INVALID_ARGUMENT", &format!("bad base64 in {name}")))?;
    match &body[format!("{name}Crc32c")] {
        Value::Null => Ok((bytes, false)),
        Value::String(sum) if *sum == crc32c(&bytes).to_string() => Ok((bytes, true)),
        _ => {
            let text = format!(
                "The checksum in field {name}_crc32c did not match the data in field {name}."
            );
            Err(refusal(400, "INVALID_ARGUMENT", &text))
        }
    }
}

fn refusal(http: u16, status: &'static str, message: &str) -> Refusal {
    Refusal(http, status, message.to_owned(), "")
}

impl Refusal {
    fn reply(self) -> Reply {
        let Self(http, status, message, violation) = self;
        let mut error = json!({ "code": http, "message": message, "status": status });
        if !violation.is_empty() {
            error["details"] = json!([{
                "@type": "type.googleapis.com/google.rpc.PreconditionFailure",
                "violations": [{ "type": violation, "subject": RESOURCE, "description": "" }],
            }]);
        }
        reply(http, &json!({ "error": error }))
    }
}

fn reply(status: u16, body: &Value) -> Reply {
    Reply {
        status,
        headers: vec![("content-type", "application/json; charset=UTF-8".into())],
        body: body.to_string().into_bytes(),
        ..Reply::default()
    }
}
