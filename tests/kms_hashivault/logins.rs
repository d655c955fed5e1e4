//! Who calls, where, and what `kmsfs key check` says about it.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use kmsfs::keys::kms::hashivault::Environment;
use kmsfs::keys::{CacheLimits, KeyError, KeyProvider, KeyRing, KeyService, check};
use kmsfs::types::KeyLen;
use serde_json::{Value, json};

use crate::conformance::context;
use crate::http::{Reply, Request, serve};
use crate::peer::{FIXTURES, Peer};

/// How long a token lasts if nobody prolongs it.
const PERIOD: &str = "9s";
const LONGER_THAN_PERIOD: Duration = Duration::from_secs(11);

fn with_token(peer: &Peer, token: &str) -> Environment {
    let variables = peer.variables(token);
    let variables: Vec<_> = variables.iter().map(|(n, v)| (*n, v.as_str())).collect();
    Environment::of(&variables)
}

/// The peer's key, by a token that ends after [`PERIOD`].
fn with_short_token(peer: &Peer) -> Arc<dyn KeyProvider> {
    let token = peer.token(json!({ "period": PERIOD }));
    let env = with_token(peer, &token);
    peer.try_open(&peer.uri(), &env).unwrap()
}

fn generate(provider: &dyn KeyProvider) -> Result<(), KeyError> {
    provider.generate(&context(1), KeyLen::Bits256).map(drop)
}

#[test]
fn a_token_is_prolonged_while_it_can_be() {
    let peer = Peer::new(false);
    let provider = with_short_token(&peer);
    let start = Instant::now();
    while start.elapsed() < LONGER_THAN_PERIOD {
        generate(&*provider).unwrap();
        std::thread::sleep(Duration::from_secs(1));
    }
    generate(&*provider).unwrap();
}

#[test]
fn a_token_that_nobody_uses_is_prolonged() {
    let peer = Peer::new(false);
    let provider = with_short_token(&peer);
    let ring = KeyRing::new(vec![provider]).unwrap();
    let keys = KeyService::new(ring, CacheLimits::default());
    let volume = context(1).volume;
    keys.generate(volume, KeyLen::Bits256).unwrap();
    let start = Instant::now();
    while start.elapsed() < LONGER_THAN_PERIOD {
        keys.sweep();
        std::thread::sleep(Duration::from_millis(500));
    }
    // Those made ahead are not asked for: this is a call of the provider.
    keys.drop_all();
    keys.generate(volume, KeyLen::Bits256).unwrap();
}

#[test]
fn a_token_that_ends_is_read_again_from_its_file() {
    let peer = Peer::new(false);
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("token");
    let first = peer.token(json!({}));
    std::fs::write(&file, format!("{first}\n")).unwrap();
    let uri = format!("{}&token-file={}", peer.uri(), file.display());
    let provider = peer.try_open(&uri, &peer.environment()).unwrap();
    generate(&*provider).unwrap();
    peer.bao
        .post("auth/token/revoke", &json!({ "token": first }));
    let error = generate(&*provider).unwrap_err();
    assert!(matches!(error, KeyError::Denied { .. }), "{error:?}");
    assert!(!format!("{error:?}").contains(&first));
    std::fs::write(&file, peer.token(json!({}))).unwrap();
    generate(&*provider).unwrap();
}

#[test]
fn a_wrong_secret_id_is_denied_with_advice() {
    let peer = Peer::new(false);
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("secret-id");
    std::fs::write(&file, "hunter2-wrong").unwrap();
    let uri = format!("{}&secret-id-file={}", peer.uri(), file.display());
    let provider = peer.open(&uri);
    let error = generate(&*provider).unwrap_err();
    assert!(!format!("{error:?}").contains("hunter2"), "{error:?}");
    assert!(matches!(error, KeyError::Denied { .. }), "{error:?}");
    assert!(provider.advice(&error).unwrap().contains("role"));
}

#[test]
fn nothing_is_sent_to_a_server_of_another_authority_or_without_tls() {
    let peer = Peer::new(false);
    let origin = peer.origin();
    let env = Environment::of(&[("VAULT_ADDR", &origin), ("VAULT_TOKEN", "t")]);
    let error = generate(&*peer.try_open(&peer.uri(), &env).unwrap()).unwrap_err();
    assert!(matches!(error, KeyError::Configuration { .. }), "{error:?}");
    assert_eq!(peer.proxy.calls.load(Ordering::SeqCst), 0);
    let env = Environment::of(&[("VAULT_ADDR", "http://vault.example"), ("VAULT_TOKEN", "t")]);
    assert!(peer.try_open(&peer.uri(), &env).is_err());
    let env = Environment::of(&[("VAULT_ADDR", &origin)]);
    assert!(peer.try_open(&peer.uri(), &env).is_err(), "no token");
}

/// What OpenBao asks about service accounts: it believes one of them.
fn kubernetes(request: &Request) -> Reply {
    let body: Value = serde_json::from_slice(&request.body).unwrap_or_default();
    let token = body["spec"]["token"].as_str().unwrap_or_default();
    let good = token.ends_with(".good");
    let status = json!({
        "authenticated": good,
        "user": {
            "username": "system:serviceaccount:files:kmsfs",
            "uid": "u-1",
            "groups": ["system:serviceaccounts"],
        },
    });
    Reply {
        status: 201,
        headers: vec![("content-type", "application/json".into())],
        body: json!({
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenReview",
            "status": status,
        })
        .to_string()
        .into_bytes(),
        ..Reply::default()
    }
}

#[test]
fn a_kubernetes_service_account_logs_in() {
    let peer = Peer::new(true);
    let host = serve(None, Arc::new(kubernetes));
    peer.bao.post(
        "auth/kubernetes/config",
        &json!({
            "kubernetes_host": format!("http://{host}"),
            "token_reviewer_jwt": "reviewer",
            "kubernetes_ca_cert": std::fs::read_to_string(format!("{FIXTURES}/ca.pem")).unwrap(),
            "disable_local_ca_jwt": true,
            "disable_iss_validation": true,
        }),
    );
    peer.bao.post(
        &format!("auth/kubernetes/role/{}", peer.key),
        &json!({
            "bound_service_account_names": ["kmsfs"],
            "bound_service_account_namespaces": ["files"],
            "token_policies": [peer.key],
        }),
    );
    let encode = |value: Value| data_encoding::BASE64URL_NOPAD.encode(value.to_string().as_bytes());
    let claims = encode(json!({
        "iss": "kubernetes/serviceaccount",
        "sub": "system:serviceaccount:files:kmsfs",
        "iat": 1,
        "nbf": 1,
        "exp": 4_000_000_000_u64,
        "kubernetes.io": { "namespace": "files", "serviceaccount": { "name": "kmsfs", "uid": "u-1" } },
    }));
    let header = encode(json!({ "alg": "RS256", "typ": "JWT" }));
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("jwt");
    let uri = format!(
        "{}&role={}&jwt-file={}",
        peer.uri(),
        peer.key,
        file.display()
    );
    let env = with_token(&peer, "");
    std::fs::write(&file, format!("{header}.{claims}.good")).unwrap();
    generate(&*peer.try_open(&uri, &env).unwrap()).unwrap();
    std::fs::write(&file, format!("{header}.{claims}.evil")).unwrap();
    let error = generate(&*peer.try_open(&uri, &env).unwrap()).unwrap_err();
    assert!(matches!(error, KeyError::Denied { .. }), "{error:?}");
}

#[test]
fn a_key_in_a_namespace_and_another_mount_is_another_key() {
    let peer = Peer::new(false);
    let namespace = format!("ns-{}", peer.key);
    peer.bao
        .post(&format!("sys/namespaces/{namespace}"), &json!({}));
    let post = |path: &str, body: Value| peer.bao.call_in(&namespace, "POST", path, &body);
    post("sys/mounts/own/transit", json!({ "type": "transit" }));
    post(&format!("own/transit/keys/{}", peer.key), json!({}));
    let policy = "path \"own/transit/*\" {\n  capabilities = [\"update\", \"read\"]\n}\n";
    post("sys/policies/acl/all", json!({ "policy": policy }));
    let made = post("auth/token/create", json!({ "policies": ["all"] }));
    let token = made["auth"]["client_token"].as_str().unwrap();
    let uri = format!("{}&mount=own/transit&namespace={namespace}", peer.uri());
    let provider = peer.try_open(&uri, &with_token(&peer, token)).unwrap();
    let report = check::check(&*provider);
    assert!(report.failure().is_none(), "{:?}", report.failure());
    let facts = report.description.unwrap();
    assert!(
        facts.contains(&("type", "aes256-gcm96".into())),
        "{facts:?}"
    );
    let (_, wrapped) = provider.generate(&context(1), KeyLen::Bits256).unwrap();
    assert!(!peer.open(&peer.uri()).recognises(&wrapped));
}

#[test]
fn key_check_says_what_a_key_can_do_and_what_is_missing() {
    let peer = Peer::new(true);
    let run = |token: &str, uri: &str| {
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_kmsfs"))
            .args(["key", "check", uri])
            .env_clear()
            .envs(peer.variables(token))
            .output()
            .unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        (
            output.status.code(),
            text(output.stdout),
            text(output.stderr),
        )
    };
    let token = peer.token(json!({}));
    let (code, out, err) = run(&token, &peer.uri());
    assert_eq!((code, err.as_str()), (Some(0), ""), "{out}");
    assert_eq!(
        out.lines().filter(|line| line.starts_with("ok ")).count(),
        5,
        "{out}"
    );
    assert!(out.contains("binding: context"), "{out}");
    let (code, _, err) = run("no-such-token", &peer.uri());
    assert_eq!(code, Some(22), "{err}");
    assert!(
        err.contains("policy") && !err.contains("no-such-token"),
        "{err}"
    );
    let (code, _, err) = run(&token, &format!("hashivault://{}-none", peer.key));
    assert_eq!(code, Some(20), "{err}");
    assert!(err.contains("vault write"), "{err}");
}
