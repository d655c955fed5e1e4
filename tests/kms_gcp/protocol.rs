//! What is peculiar to the service.

use std::time::Duration;

use kmsfs::keys::{KeyError, check};
use kmsfs::types::KeyLen;

use crate::conformance::{Service, context};
use crate::kms_servers::gcp::State;
use crate::kms_servers::trouble::Trouble;
use crate::peer::{Peer, generate};

#[test]
fn what_was_damaged_on_the_way_is_asked_for_again() {
    let peer = Peer::new();
    let provider = peer.provider();
    let (key, wrapped) = provider.generate(&context(1), KeyLen::Bits256).unwrap();
    for damaged_once in [true, false] {
        let calls = peer.server.calls();
        peer.server.world().damaged = usize::from(damaged_once);
        let again = provider.unwrap(&context(1), &wrapped).unwrap();
        assert_eq!(again.expose(), key.expose());
        assert_eq!(peer.server.calls() - calls, 1 + usize::from(damaged_once));
    }
    peer.server.world().damaged = 1;
    let (key, wrapped) = provider.generate(&context(1), KeyLen::Bits256).unwrap();
    let again = provider.unwrap(&context(1), &wrapped).unwrap();
    assert_eq!(again.expose(), key.expose());
}

#[test]
fn wrapped_keys_keep_the_version_that_wrapped_them() {
    let peer = Peer::new();
    let provider = peer.provider();
    let (_, first) = provider.generate(&context(1), KeyLen::Bits256).unwrap();
    peer.server.change(|key| key.rotate());
    let second = provider.rewrap(&context(1), &first).unwrap();
    assert_eq!(
        (first.key_version.as_str(), second.key_version.as_str()),
        ("1", "2")
    );
    assert!(!first.key_uri.contains("endpoint"), "{}", first.key_uri);
    // Only the old version is gone.
    peer.server
        .change(|key| key.versions[0].state = State::Destroyed);
    assert_kind!(provider.unwrap(&context(1), &first), NotFound, "DESTROYED");
    provider.unwrap(&context(1), &second).unwrap();
}

#[test]
fn a_version_to_be_destroyed_is_disabled() {
    let peer = Peer::new();
    peer.server
        .change(|key| key.set_state(State::DestroyScheduled));
    assert_kind!(generate(&*peer.provider()), Disabled, "DESTROY_SCHEDULED");
}

#[test]
fn a_wrapped_key_of_another_key_is_not_even_sent() {
    let peer = Peer::new();
    let provider = peer.provider();
    let (_, mut wrapped) = provider.generate(&context(1), KeyLen::Bits256).unwrap();
    wrapped.key_uri.push('2');
    let calls = peer.server.calls();
    assert_kind!(
        provider.unwrap(&context(1), &wrapped),
        Rejected,
        "another key"
    );
    assert_eq!(peer.server.calls(), calls);
}

#[test]
fn permissions_that_lack_are_explained() {
    let peer = Peer::new();
    peer.server.change(|key| key.denied = true);
    let report = check::check(&*peer.provider());
    let (error, advice) = report.failure().unwrap();
    assert!(matches!(error, KeyError::Denied { .. }), "{error:?}");
    let advice = advice.unwrap();
    assert!(
        advice.contains("roles/cloudkms.cryptoKeyEncrypterDecrypter")
            && advice.contains("do not exist"),
        "{advice}"
    );
    let facts = report.description.unwrap();
    assert!(facts[0].1.contains("cloudkms.cryptoKeys.get"));
    peer.server.change(|key| key.denied = false);
    let facts = peer.provider().describe().unwrap();
    assert!(
        facts.contains(&("state", "ENABLED".to_owned())),
        "{facts:?}"
    );
}

#[test]
fn throttling_says_how_long_to_wait() {
    let peer = Peer::new();
    peer.server.world().trouble = Trouble {
        calls: usize::MAX,
        status: Some(429),
        retry_after: Some(60),
        ..Trouble::default()
    };
    match generate(&*peer.provider()) {
        Err(KeyError::Throttled { retry_after, .. }) => {
            assert_eq!(retry_after, Some(Duration::from_secs(60)));
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(peer.server.calls(), 1, "waiting in vain makes no sense");
}
