//! Certificates, and what `kmsfs key check` says.

use std::path::Path;
use std::process::Command;

use kmsfs::keys::{KeyError, KeyProvider};
use kmsfs::types::KeyLen;
use serde_json::json;

use crate::conformance::{Service, context};
use crate::peer::{Naming, Peer};

fn generate(provider: &dyn KeyProvider) -> Result<(), KeyError> {
    provider.generate(&context(1), KeyLen::Bits256).map(drop)
}

/// The URI with other certificates.
fn with(peer: &Peer, certificate: &str) -> String {
    let file = |name: &str| peer.server.file(name).display().to_string();
    peer.uri()
        .replace(&file("kmsfs"), &file(certificate))
        .replace(&file("kmsfs-key"), &file(&format!("{certificate}-key")))
}

#[test]
fn a_client_without_a_fitting_certificate_is_denied() {
    let proxied = Peer::new(Naming::Id, "");
    let direct = Peer::direct(Naming::Id, "");
    for (peer, certificate) in [
        (&proxied, "stranger"),
        (&direct, "stranger"),
        (&direct, "no-client"),
    ] {
        let provider = peer.open(&with(peer, certificate));
        let error = generate(&*provider).unwrap_err();
        assert!(
            matches!(error, KeyError::Denied { .. }),
            "{certificate}: {error:?}"
        );
        let advice = provider.advice(&error).unwrap();
        assert!(advice.contains("certificate"), "{advice}");
    }
}

#[test]
fn a_server_of_another_authority_is_not_trusted() {
    for peer in [Peer::new(Naming::Id, ""), Peer::direct(Naming::Id, "")] {
        let file = |name: &str| peer.server.file(name).display().to_string();
        let uri = peer.uri().replace(&file("ca"), &file("other-ca"));
        let error = generate(&*peer.open(&uri)).unwrap_err();
        let KeyError::Configuration {
            hint: Some(hint), ..
        } = error
        else {
            panic!("{error:?}")
        };
        assert!(hint.contains("ca="), "{hint}");
    }
}

#[test]
fn certificates_are_renewed_under_a_provider() {
    let peer = Peer::direct(Naming::Id, "");
    let dir = tempfile::tempdir().unwrap();
    let copy = |certificate: &str| {
        for (from, to) in [("", "cert.pem"), ("-key", "key.pem")] {
            let from = peer.server.file(&format!("{certificate}{from}"));
            std::fs::copy(from, dir.path().join(to)).unwrap();
        }
    };
    let file = |name: &str| peer.server.file(name).display().to_string();
    let own = |name: &str| dir.path().join(name).display().to_string();
    copy("stranger");
    let uri = peer
        .uri()
        .replace(&file("kmsfs"), &own("cert.pem"))
        .replace(&file("kmsfs-key"), &own("key.pem"));
    let provider = peer.open(&uri);
    assert!(matches!(generate(&*provider), Err(KeyError::Denied { .. })));
    copy("kmsfs");
    generate(&*provider).unwrap();
}

#[test]
fn key_check_says_what_a_server_is_and_what_is_wrong() {
    let peer = Peer::direct(Naming::Name, "");
    let check_as = |uri: &str, variables: &[(&str, &Path)]| {
        let output = Command::new(env!("CARGO_BIN_EXE_kmsfs"))
            .args(["key", "check", uri])
            .env_clear()
            .envs(variables.iter().copied())
            .output()
            .unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (
            output.status.code().unwrap(),
            text(output.stdout),
            text(output.stderr),
        )
    };
    let check = |uri: &str| check_as(uri, &[]);
    let (code, out, err) = check(&peer.uri());
    assert_eq!((code, err.as_str()), (0, ""), "{out}");
    for fact in ["server: PyKMIP", "protocol: KMIP 1.4", "state: Active"] {
        assert!(out.contains(fact), "{out}");
    }
    let uri = peer.uri();
    let short = uri.split("&ca=").next().unwrap();
    let files = ["ca", "kmsfs", "kmsfs-key"].map(|name| peer.server.file(name));
    let names = ["KMSFS_KMIP_CA", "KMSFS_KMIP_CERT", "KMSFS_KMIP_KEY"];
    let variables: Vec<_> = names
        .into_iter()
        .zip(files.iter().map(|file| file.as_path()))
        .collect();
    let (code, out, err) = check_as(short, &variables);
    assert_eq!((code, err.as_str()), (0, ""), "{out}");

    let fails = |uri: &str, expected: i32, word: &str| {
        let (code, _, err) = check(uri);
        assert_eq!(code, expected, "{err}");
        let hint = err.split("kmsfs: hint: ").nth(1).unwrap_or_default();
        assert!(hint.contains(word), "{err}");
    };
    fails(short, 25, "KMSFS_KMIP_CA");
    fails(&peer.uri_of("", "never made"), 20, "name=NAME");
    fails(&with(&peer, "no-client"), 22, "certificate");
    let port = format!(":{}", peer.server.port);
    fails(&peer.uri().replace(&port, ":1"), 23, "reachable");
    peer.set_enabled(false);
    fails(&peer.uri(), 21, "Active");
    peer.server
        .order(&json!({ "do": "set_state", "id": peer.id(), "state": "ACTIVE" }));
}
