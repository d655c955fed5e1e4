//! Who calls: signatures, credentials that are wrong or have ended, clocks.

use std::time::Duration;

use kmsfs::keys::{KeyError, KeyProvider};
use kmsfs::types::KeyLen;

use crate::conformance::{Service, context};
use crate::emulator::{AccessKey, Kind, Verifier, emulator};
use crate::peer::{FIXTURES, Peer, new_access_key};

fn generate(provider: &dyn KeyProvider) -> Result<(), KeyError> {
    provider.generate(&context(1), KeyLen::Bits256).map(drop)
}

fn denied(provider: &dyn KeyProvider, code: &str, advice: &str) {
    let error = generate(provider).unwrap_err();
    assert!(
        matches!(&error, KeyError::Denied { detail, .. } if detail.starts_with(code)),
        "{error:?}"
    );
    let words = provider.advice(&error).unwrap();
    assert!(words.contains(advice), "{words}");
}

#[test]
fn a_right_signature_is_let_in_and_a_wrong_one_is_not() {
    let peer = Peer::new(Kind::Ministack);
    generate(&*peer.provider()).unwrap();
    // A key that does not end has no token.
    let fixed = AccessKey {
        token: None,
        ..new_access_key()
    };
    peer.emulator.verifier.know(&fixed, false);
    peer.write_credentials(&fixed);
    generate(&*peer.provider()).unwrap();
    let wrong = AccessKey {
        secret: "hunter2-wrong-secret".to_owned(),
        ..fixed.clone()
    };
    peer.write_credentials(&wrong);
    let provider = peer.provider();
    denied(&*provider, "InvalidSignatureException", "secret access key");
    let shown = format!("{:?}", generate(&*provider));
    assert!(!shown.contains("hunter2"), "{shown}");
    let unknown = AccessKey {
        id: "AKIANOBODY".to_owned(),
        ..fixed
    };
    peer.write_credentials(&unknown);
    denied(&*peer.provider(), "UnrecognizedClient", "does not exist");
}

#[test]
fn credentials_that_have_ended_are_asked_for_once_more() {
    let peer = Peer::new(Kind::Ministack);
    let provider = peer.provider();
    generate(&*provider).unwrap();
    peer.emulator.verifier.know(&peer.access(), true);
    let calls = || peer.proxy.calls.load(std::sync::atomic::Ordering::SeqCst);
    let before = calls();
    denied(&*provider, "ExpiredToken", "get new ones");
    assert_eq!(calls() - before, 1, "there were no others to try");
    let new = new_access_key();
    peer.emulator.verifier.know(&new, false);
    peer.write_credentials(&new);
    generate(&*provider).unwrap();
    assert_eq!(calls() - before, 3);
}

#[test]
fn a_clock_that_differs_is_corrected() {
    let emulator = emulator(Kind::Ministack);
    let verifier = Verifier::start(emulator.address, Duration::from_secs(3600));
    let peer = Peer::at(emulator, verifier.address);
    verifier.know(&peer.access(), false);
    let provider = peer.provider();
    generate(&*provider).unwrap();
    generate(&*provider).unwrap();
    let calls = peer.proxy.calls.load(std::sync::atomic::Ordering::SeqCst);
    assert_eq!(calls, 3, "only the first is repeated");
}

#[test]
fn without_credentials_it_is_set_up_wrongly() {
    let peer = Peer::new(Kind::Ministack);
    let uri = peer.uri().replace("profile=default", "profile=nosuch");
    let error = generate(&*peer.open(&uri)).unwrap_err();
    let KeyError::Configuration { detail, hint } = &error else {
        panic!("{error:?}");
    };
    assert!(detail.contains("nosuch"), "{detail}");
    assert!(hint.as_deref().unwrap().contains("profile="));
}

#[test]
fn a_server_that_nobody_vouches_for_is_not_trusted() {
    let peer = Peer::new(Kind::Ministack);
    let uri = peer.uri().replace(&format!("&ca={FIXTURES}/ca.pem"), "");
    let error = generate(&*peer.open(&uri)).unwrap_err();
    let KeyError::Configuration { hint, .. } = &error else {
        panic!("{error:?}");
    };
    assert!(hint.as_deref().unwrap().contains("ca="));
}
