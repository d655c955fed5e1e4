//! The life of keys, and which of them a wrapped key may name.

use std::sync::atomic::Ordering;

use kmsfs::keys::{KeyError, KeyProvider};
use kmsfs::types::KeyLen;
use serde_json::json;

use crate::conformance::{Service, context};
use crate::peer::{Naming, Peer};
use crate::proxy::{Manner, Trouble};

fn generate(provider: &dyn KeyProvider) -> Result<(), KeyError> {
    provider.generate(&context(1), KeyLen::Bits256).map(drop)
}

#[test]
fn a_revoked_key_is_disabled_and_a_destroyed_one_gone() {
    for naming in [Naming::Id, Naming::Name] {
        for (reason, state) in [
            ("CESSATION_OF_OPERATION", "Deactivated"),
            ("KEY_COMPROMISE", "Compromised"),
        ] {
            let peer = Peer::direct(naming, "");
            let provider = peer.provider();
            let (_, wrapped) = provider.generate(&context(1), KeyLen::Bits256).unwrap();
            peer.revoke(reason);
            for error in [
                provider.unwrap(&context(1), &wrapped).unwrap_err(),
                generate(&*provider).unwrap_err(),
                generate(&*peer.provider()).unwrap_err(),
            ] {
                assert!(matches!(error, KeyError::Disabled { .. }), "{error:?}");
                assert!(error.to_string().contains(state), "{error}");
                assert!(provider.advice(&error).unwrap().contains("Active"));
            }
            peer.server
                .order(&json!({ "do": "destroy", "id": peer.id() }));
            let error = provider.unwrap(&context(1), &wrapped).unwrap_err();
            assert!(matches!(error, KeyError::NotFound { .. }), "{error:?}");
        }
    }
}

#[test]
fn a_key_that_is_not_activated_yet_says_so() {
    let peer = Peer::direct(Naming::Id, "");
    let id = peer.server.make("early", false);
    let provider = peer.open(&peer.uri_of(&id, "early"));
    let error = generate(&*provider).unwrap_err();
    assert!(matches!(error, KeyError::Disabled { .. }), "{error:?}");
    assert!(error.to_string().contains("activate it first"), "{error}");
    peer.server.order(&json!({ "do": "activate", "id": id }));
    generate(&*provider).unwrap();
}

#[test]
fn new_files_use_the_newest_active_key_of_a_name() {
    let peer = Peer::direct(Naming::Name, "");
    let provider = peer.provider();
    let first = peer.id();
    peer.rotate();
    let newest = peer.id();
    // Made later, but not activated.
    peer.server.make(&peer.name, false);
    let version = || {
        let (_, wrapped) = provider.generate(&context(1), KeyLen::Bits256).unwrap();
        wrapped.key_version
    };
    assert_eq!(version(), newest);
    peer.server.order(&json!({ "do": "revoke", "id": newest }));
    assert_eq!(version(), first);
}

#[test]
fn a_wrapped_key_chooses_among_versions_only() {
    let peer = Peer::direct(Naming::Name, "");
    let other = Peer::direct(Naming::Name, "");
    let (_, mut foreign) = other
        .provider()
        .generate(&context(1), KeyLen::Bits256)
        .unwrap();
    foreign.key_uri = format!("kmip://localhost:{}?name={}", peer.server.port, peer.name);
    foreign.key_uri = foreign.key_uri.replace(' ', "%20");
    let provider = peer.provider();
    assert!(provider.recognises(&foreign));
    let error = provider.unwrap(&context(1), &foreign).unwrap_err();
    assert!(matches!(error, KeyError::Rejected { .. }), "{error:?}");
    let both = provider.unwrap_many(&[(context(1), foreign.clone()), (context(1), foreign)]);
    assert!(
        both.iter()
            .all(|r| matches!(r, Err(KeyError::Rejected { .. })))
    );
}

#[test]
fn a_key_that_may_not_decrypt_wraps_nothing() {
    let peer = Peer::direct(Naming::Id, "");
    let task = json!({ "do": "make", "name": "one-way", "decrypts": false });
    let made = peer.server.order(&task);
    let provider = peer.open(&peer.uri_of(made.as_str().unwrap(), ""));
    let error = generate(&*provider).unwrap_err();
    assert!(matches!(error, KeyError::Denied { .. }), "{error:?}");
    let advice = provider.advice(&error).unwrap();
    assert!(advice.contains("Usage Mask"), "{advice}");
}

#[test]
fn a_server_that_ignores_associated_data_is_refused() {
    let peer = Peer::new(Naming::Id, "&version=1.4");
    *peer.proxy().trouble() = Trouble {
        calls: usize::MAX,
        manner: Manner::HideAssociatedData,
        ..Trouble::default()
    };
    let error = generate(&*peer.provider()).unwrap_err();
    let KeyError::Configuration { detail, hint } = error else {
        panic!("{error:?}")
    };
    assert!(detail.contains("associated data") && hint.is_some());
}

#[test]
fn a_server_without_encrypt_or_a_common_version_says_what_is_missing() {
    for (more, reason) in [("&version=1.4", 5), ("", 4)] {
        let peer = Peer::new(Naming::Id, more);
        *peer.proxy().trouble() = Trouble {
            calls: usize::MAX,
            manner: Manner::Refuse(reason),
            ..Trouble::default()
        };
        let error = generate(&*peer.provider()).unwrap_err();
        let KeyError::Configuration {
            hint: Some(hint), ..
        } = error
        else {
            panic!("{error:?}")
        };
        assert!(hint.contains("KMIP 1.4"), "{hint}");
    }
}

#[test]
fn opening_a_file_takes_one_call_and_making_one_by_name_two() {
    let peer = Peer::new(Naming::Name, "&version=1.4");
    let provider = peer.provider();
    let calls = |action: &dyn Fn()| {
        let before = peer.proxy().calls.load(Ordering::SeqCst);
        action();
        peer.proxy().calls.load(Ordering::SeqCst) - before
    };
    let (_, wrapped) = provider.generate(&context(1), KeyLen::Bits256).unwrap();
    let open = || drop(provider.unwrap(&context(1), &wrapped).unwrap());
    assert_eq!(calls(&open), 1);
    assert_eq!(calls(&|| generate(&*provider).unwrap()), 2);
    let later = peer.provider();
    let open = || drop(later.unwrap(&context(1), &wrapped).unwrap());
    assert_eq!(calls(&open), 2, "the first time, is it a version?");
    assert_eq!(calls(&open), 1);
}
