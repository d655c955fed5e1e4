//! What is peculiar to the service.

use std::time::Duration;

use kmsfs::keys::{KeyError, check};
use kmsfs::types::KeyLen;

use crate::conformance::{Service, context};
use crate::kms_servers::azure::{KEY, Kind};
use crate::kms_servers::trouble::Trouble;
use crate::peer::{Peer, generate};

#[test]
fn wrapped_keys_keep_version_and_algorithm() {
    let peer = Peer::new(Kind::Rsa);
    let provider = peer.provider();
    let (key, first) = provider.generate(&context(1), KeyLen::Bits128).unwrap();
    let version = peer.server.world().key.as_ref().unwrap().versions[0]
        .id
        .clone();
    assert_eq!(
        (first.key_version.as_str(), first.ciphertext.len()),
        (version.as_str(), 256)
    );
    assert_eq!(first.algorithm, "RSA-OAEP-256");
    assert!(!first.key_uri.contains('?'), "{}", first.key_uri);
    // A uri that pins a version wraps with it and opens the others.
    peer.server.change(|key| key.rotate());
    let pinned = peer.open(&peer.uri(&format!("{KEY}/{version}")));
    let second = provider.rewrap(&context(1), &first).unwrap();
    assert_ne!(second.key_version, version);
    let third = pinned.rewrap(&context(1), &second).unwrap();
    assert_eq!(third.key_version, version);
    let again = provider.unwrap(&context(1), &third).unwrap();
    assert_eq!(again.expose(), key.expose());
}

#[test]
fn only_the_disabled_version_is_disabled() {
    let peer = Peer::new(Kind::Rsa);
    let provider = peer.provider();
    let (_, old) = provider.generate(&context(1), KeyLen::Bits256).unwrap();
    peer.server.change(|key| key.rotate());
    let (_, new) = provider.generate(&context(1), KeyLen::Bits256).unwrap();
    peer.server.change(|key| key.versions[0].enabled = false);
    assert_kind!(provider.unwrap(&context(1), &old), Disabled, "disabled key");
    provider.unwrap(&context(1), &new).unwrap();
    generate(&*provider).unwrap();
}

#[test]
fn headers_cannot_choose_what_is_asked() {
    let peer = Peer::new(Kind::Rsa);
    let provider = peer.provider();
    let (_, wrapped) = provider.generate(&context(1), KeyLen::Bits256).unwrap();
    let calls = peer.server.calls();
    let mut bad = wrapped.clone();
    bad.key_version = "../../secrets/x".into();
    assert_kind!(provider.unwrap(&context(1), &bad), Rejected, "version");
    bad = wrapped.clone();
    bad.algorithm = "RSA1_5".into();
    assert_kind!(provider.unwrap(&context(1), &bad), Rejected, "algorithm");
    bad = wrapped;
    bad.key_uri = bad.key_uri.replace(KEY, "other");
    assert_kind!(provider.unwrap(&context(1), &bad), Rejected, "another key");
    assert_eq!(peer.server.calls(), calls, "nothing was sent");
}

#[test]
fn a_key_of_the_other_kind_is_explained() {
    let peer = Peer::new(Kind::Aes);
    let uri = peer.uri(KEY).replace("A256KW", "RSA-OAEP-256");
    let report = check::check(&*peer.open(&uri));
    let (error, advice) = report.failure().unwrap();
    assert!(matches!(error, KeyError::Malformed { .. }), "{error:?}");
    assert!(advice.unwrap().contains("algorithm="), "{advice:?}");
}

#[test]
fn permissions_that_lack_are_explained() {
    let peer = Peer::new(Kind::Rsa);
    peer.server.change(|key| key.denied = true);
    let report = check::check(&*peer.provider());
    let (error, advice) = report.failure().unwrap();
    assert!(matches!(error, KeyError::Denied { .. }), "{error:?}");
    assert!(advice.unwrap().contains("wrapKey and unwrapKey"));
    peer.server.change(|key| key.denied = false);
    let facts = peer.provider().describe().unwrap();
    let fact = |name| facts.iter().find(|(n, _)| *n == name).unwrap().1.as_str();
    assert_eq!((fact("type"), fact("enabled")), ("RSA", "yes"));
}

#[test]
fn throttling_says_how_long_to_wait() {
    let peer = Peer::new(Kind::Aes);
    let provider = peer.provider();
    generate(&*provider).unwrap();
    let calls = peer.server.calls();
    peer.server.world().trouble = Trouble {
        calls: usize::MAX,
        status: Some(429),
        retry_after: Some(60),
        ..Trouble::default()
    };
    match generate(&*provider) {
        Err(KeyError::Throttled { retry_after, .. }) => {
            assert_eq!(retry_after, Some(Duration::from_secs(60)));
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(
        peer.server.calls(),
        calls + 1,
        "waiting in vain makes no sense"
    );
}
