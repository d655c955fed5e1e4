//! The server as the conformance suite sees it: one key of it, behind a proxy
//! that can be told to misbehave and has a certificate of a private authority.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use kmsfs::keys::kms::hashivault::{Environment, VaultProvider, VaultUri};
use kmsfs::keys::{KeyError, KeyProvider};
use serde_json::{Value, json};

use crate::bao::{Bao, bao, exchange};
use crate::conformance::{DEADLINE, Mood, Service};
use crate::http::{Manner, Reply, Request, serve, tls_config};

pub(crate) const FIXTURES: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/tests/kms_servers/alibaba/fixtures"
);

/// A key of its own at the shared server, and a role that may use it.
pub(crate) struct Peer {
    pub(crate) bao: &'static Bao,
    pub(crate) key: String,
    pub(crate) proxy: Arc<Proxy>,
    pub(crate) address: SocketAddr,
    role_id: String,
    secret_id: String,
}

/// Stands between kmsfs and the server.
#[derive(Default)]
pub(crate) struct Proxy {
    trouble: Mutex<Trouble>,
    tokens: Mutex<Vec<String>>,
    /// How many calls came, refused ones included.
    pub(crate) calls: AtomicUsize,
}

#[derive(Clone, Copy, Default)]
struct Trouble {
    calls: usize,
    delay: Duration,
    manner: Manner,
    refusal: Option<u16>,
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
        let token = request.header("x-vault-token").to_owned();
        let mut tokens = self.tokens.lock().unwrap();
        if !token.is_empty() && !tokens.contains(&token) {
            tokens.push(token);
        }
        drop(tokens);
        let (status, body) = match trouble.and_then(|trouble| trouble.refusal) {
            Some(status) => (status, br#"{"errors":["out of order"]}"#.to_vec()),
            None => {
                let headers: Vec<_> = request.headers.iter().collect();
                let headers: Vec<(&str, &str)> = headers
                    .iter()
                    .filter(|(name, _)| name.starts_with("x-vault") || name == "content-type")
                    .map(|(name, value)| (name.as_str(), value.as_str()))
                    .collect();
                exchange(
                    server,
                    &request.method,
                    &request.path,
                    &headers,
                    &request.body,
                )
                .unwrap_or((502, Vec::new()))
            }
        };
        Reply {
            status,
            body,
            after: trouble.map_or(Duration::ZERO, |trouble| trouble.delay),
            manner: trouble.map_or(Manner::Proper, |trouble| trouble.manner),
            ..Reply::default()
        }
    }
}

impl Peer {
    pub(crate) fn new(derived: bool) -> Self {
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        let key = format!("key-{}", NUMBER.fetch_add(1, Ordering::SeqCst));
        let bao = bao();
        let proxy = Arc::new(Proxy::default());
        let fixture = |name: &str| std::fs::read(format!("{FIXTURES}/{name}")).unwrap();
        let tls = tls_config(&fixture("server.pem"), &fixture("server-key.pem"));
        let handler = Arc::clone(&proxy);
        let server = bao.address;
        let handle = move |request: &Request| handler.handle(request, server);
        let address = serve(Some(tls), Arc::new(handle));
        bao.post(
            &format!("transit/keys/{key}"),
            &json!({ "derived": derived }),
        );
        let role = format!("auth/approle/role/{key}");
        bao.post(
            &role,
            &json!({ "token_policies": [key], "token_ttl": "1h" }),
        );
        let text = |value: Value, name: &str| value["data"][name].as_str().unwrap().to_owned();
        let role_id = bao.call("GET", &format!("{role}/role-id"), &Value::Null);
        let secret_id = bao.post(&format!("{role}/secret-id"), &json!({}));
        let peer = Self {
            bao,
            key,
            proxy,
            address,
            role_id: text(role_id, "role_id"),
            secret_id: text(secret_id, "secret_id"),
        };
        peer.set_allowed(true);
        peer
    }

    pub(crate) fn environment(&self) -> Environment {
        self.environment_at(&self.origin())
    }

    pub(crate) fn origin(&self) -> String {
        format!("https://localhost:{}", self.address.port())
    }

    fn environment_at(&self, address: &str) -> Environment {
        Environment::of(&[
            ("VAULT_ADDR", address),
            ("VAULT_CACERT", &format!("{FIXTURES}/ca.pem")),
            ("VAULT_ROLE_ID", &self.role_id),
            ("VAULT_SECRET_ID", &self.secret_id),
        ])
    }

    pub(crate) fn uri(&self) -> String {
        let seconds = DEADLINE.as_secs();
        format!("hashivault://{}?deadline={seconds}", self.key)
    }

    pub(crate) fn open(&self, uri: &str) -> Arc<dyn KeyProvider> {
        self.try_open(uri, &self.environment()).unwrap()
    }

    pub(crate) fn try_open(
        &self,
        uri: &str,
        env: &Environment,
    ) -> Result<Arc<dyn KeyProvider>, KeyError> {
        Ok(Arc::new(VaultProvider::open(&VaultUri::parse(uri)?, env)?))
    }

    /// A token with the key's policy, as someone else would make it.
    pub(crate) fn token(&self, more: Value) -> String {
        let mut body = json!({ "policies": [self.key] });
        for (name, value) in more.as_object().unwrap() {
            body[name] = value.clone();
        }
        let made = self.bao.post("auth/token/create", &body);
        made["auth"]["client_token"].as_str().unwrap().to_owned()
    }

    /// Environment variables for a program that logs in with `token`.
    pub(crate) fn variables(&self, token: &str) -> [(&'static str, String); 3] {
        [
            ("VAULT_ADDR", self.origin()),
            ("VAULT_CACERT", format!("{FIXTURES}/ca.pem")),
            ("VAULT_TOKEN", token.to_owned()),
        ]
    }
}

impl Service for Peer {
    fn provider(&self) -> Arc<dyn KeyProvider> {
        self.open(&self.uri())
    }

    fn provider_of_missing_key(&self) -> Arc<dyn KeyProvider> {
        self.open(&format!("hashivault://{}-never-made", self.key))
    }

    fn unreachable_provider(&self) -> Option<Arc<dyn KeyProvider>> {
        let env = self.environment_at("https://127.0.0.1:1");
        Some(self.try_open(&self.uri(), &env).unwrap())
    }

    fn set_enabled(&self, enabled: bool) -> bool {
        let key = format!("transit/keys/{}", self.key);
        match enabled {
            true => self
                .bao
                .post(&format!("{key}/soft-delete-restore"), &json!({})),
            false => self
                .bao
                .call("DELETE", &format!("{key}/soft-delete"), &Value::Null),
        };
        true
    }

    fn delete(&self) -> bool {
        let key = format!("transit/keys/{}", self.key);
        self.bao.post(
            &format!("{key}/config"),
            &json!({ "deletion_allowed": true }),
        );
        self.bao.call("DELETE", &key, &Value::Null);
        true
    }

    fn rotate(&self) -> bool {
        self.bao
            .post(&format!("transit/keys/{}/rotate", self.key), &json!({}));
        true
    }

    /// The policy is the one in docs/KMS.md, for the key and the missing one.
    fn set_allowed(&self, allowed: bool) -> bool {
        let policy: String = ["encrypt", "decrypt", "datakey/plaintext", "rewrap"]
            .iter()
            .map(|operation| {
                let path = format!("transit/{operation}/{}*", self.key);
                format!("path \"{path}\" {{\n  capabilities = [\"update\"]\n}}\n")
            })
            .collect();
        let policy = if allowed {
            policy
        } else {
            String::from("# nothing\n")
        };
        let path = format!("sys/policies/acl/{}", self.key);
        self.bao.call("PUT", &path, &json!({ "policy": policy }));
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
                trouble.refusal = Some(429);
            }
            Mood::Failing(calls) => {
                trouble.calls = calls;
                trouble.refusal = Some(500);
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
        for token in self.proxy.tokens.lock().unwrap().drain(..) {
            self.bao
                .post("auth/token/revoke", &json!({ "token": token }));
        }
        true
    }
}
