//! `kmsfs key check`.

use crate::kms_servers::alibaba::{ACCESS_KEY, ALIAS, KEY, Key, Kind, State};
use crate::peer::{Access, ELSEWHERE, Peer};

/// Runs `kmsfs key check` with an access key.
fn key_check(peer: &Peer, secret: &str, uri: &str, more: &[&str]) -> (Option<i32>, String, String) {
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_kmsfs"))
        .args(["key", "check", uri])
        .args(more)
        .env_clear()
        .env("ALIBABA_CLOUD_ACCESS_KEY_ID", ACCESS_KEY.0)
        .env("ALIBABA_CLOUD_ACCESS_KEY_SECRET", secret)
        .output()
        .unwrap();
    assert!(peer.server.plain.ip().is_loopback());
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (
        output.status.code(),
        text(output.stdout),
        text(output.stderr),
    )
}

#[test]
fn key_check_says_what_a_key_can_do() {
    let peer = Peer::new(Kind::Software, Access::Fixed);
    let (code, out, err) = key_check(&peer, ACCESS_KEY.1, &peer.uri(ALIAS), &[]);
    assert_eq!((code, err.as_str()), (Some(0), ""));
    assert_eq!(
        out.lines().filter(|line| line.starts_with("ok ")).count(),
        5,
        "{out}"
    );
    assert!(
        out.contains("spec: Aliyun_AES_256") && out.contains(KEY),
        "{out}"
    );
    let (_, out, _) = key_check(&peer, ACCESS_KEY.1, &peer.uri(KEY), &["--json"]);
    let report: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!(report["usable"], true);
    assert_eq!(report["description"]["state"], "Enabled");
}

#[test]
fn key_check_says_what_is_missing() {
    let peer = Peer::new(Kind::Software, Access::Fixed);
    let check = |secret: &str, uri: &str| {
        let (code, _, err) = key_check(&peer, secret, uri, &[]);
        assert!(!err.contains(secret), "{err}");
        (code.unwrap(), err)
    };
    let fails = |expected: i32, word: &str, uri: &str| {
        let (code, err) = check(ACCESS_KEY.1, uri);
        assert_eq!(code, expected, "{err}");
        let hint = err.split("kmsfs: hint: ").nth(1).unwrap_or_default();
        assert!(hint.contains(word), "{err}");
    };
    let own = peer.uri(KEY);
    fails(20, "check the id", &peer.uri("key-none"));
    fails(23, "dedicated gateways", &peer.uri_at(ELSEWHERE, KEY));
    fails(25, "docs/KMS.md", "alibabakms://x/y?nosuch=1");
    peer.server.change(|key| key.state = State::Disabled);
    fails(21, "enable the key", &own);
    peer.server.change(|key| *key = Key::new(Kind::Service));
    fails(22, "service keys and default keys", &own);
    peer.server.change(|key| *key = Key::new(Kind::Software));
    peer.server.change(|key| key.denied = true);
    fails(22, "kms:GenerateDataKey", &own);
    peer.server.change(|key| key.denied = false);
    let (code, err) = check("a-wrong-secret", &own);
    assert_eq!(code, 22);
    assert!(
        err.contains("does not") || err.contains("not the one"),
        "{err}"
    );
    let show = std::process::Command::new(env!("CARGO_BIN_EXE_kmsfs"))
        .args(["key", "show", &own])
        .output()
        .unwrap();
    assert_eq!(show.status.code(), Some(25), "not of the embedded provider");
}
