//! What is peculiar to the protocols.

use std::time::Duration;

use kmsfs::keys::{KeyError, check};
use kmsfs::types::KeyLen;

use crate::conformance::{DEADLINE, Service, context};
use crate::kms_servers::alibaba::{ALIAS, FIXTURES, KEY, Key, Kind, State, Trouble};
use crate::peer::{Access, LEGACY, PBES2, Peer, generate};

#[test]
fn a_clock_that_is_off_by_hours_is_corrected_once() {
    for access in [Access::Fixed, LEGACY] {
        for offset in [-40_000, 40_000] {
            let peer = Peer::new(Kind::Software, access);
            peer.server.set_clock(offset);
            let provider = peer.provider();
            generate(&*provider).unwrap();
            assert_eq!(peer.server.calls(), 2, "one to learn the time");
            generate(&*provider).unwrap();
            assert_eq!(peer.server.calls(), 3);
        }
    }
}

#[test]
fn aliases_are_resolved_before_they_are_kept() {
    for access in [Access::Fixed, LEGACY] {
        let peer = Peer::new(Kind::Software, access);
        let provider = peer.open(&peer.uri(ALIAS));
        assert!(
            provider.uri().contains(&format!("/{KEY}?")),
            "{}",
            provider.uri()
        );
        let (_, wrapped) = provider.generate(&context(1), KeyLen::Bits256).unwrap();
        assert!(wrapped.key_uri.contains(KEY) && !wrapped.key_uri.contains("alias"));
        // Pointed elsewhere later, it changes nothing for who has resolved it.
        {
            let mut world = peer.server.world();
            world
                .keys
                .insert("key-other".into(), Key::new(Kind::Software));
            world.aliases.insert(ALIAS.into(), "key-other".into());
        }
        provider.unwrap(&context(1), &wrapped).unwrap();
        assert!(!peer.open(&peer.uri(ALIAS)).recognises(&wrapped));
        assert_kind!(
            peer.try_open(&peer.uri("alias/none")),
            NotFound,
            "AliasNotFound"
        );
    }
}

#[test]
fn a_wrapped_key_of_another_key_is_rejected_though_the_service_would_open_it() {
    for access in [Access::Fixed, LEGACY] {
        let peer = Peer::new(Kind::Software, access);
        let own = peer.provider();
        let mut world = peer.server.world();
        world
            .keys
            .insert("key-other".into(), Key::new(Kind::Software));
        drop(world);
        let other = peer.open(&peer.uri("key-other"));
        let (_, wrapped) = other.generate(&context(1), KeyLen::Bits256).unwrap();
        assert!(!own.recognises(&wrapped));
        assert_kind!(own.unwrap(&context(1), &wrapped), Rejected, "another key");
    }
}

#[test]
fn the_data_key_to_wrap_is_in_the_body_and_not_in_the_url() {
    let peer = Peer::new(Kind::Software, Access::Fixed);
    let key = kmsfs::crypto::DataKey::random(KeyLen::Bits256);
    peer.provider().wrap(&context(1), &key).unwrap();
    let (action, query) = peer.server.world().last_call.clone();
    assert_eq!(action, "Encrypt");
    assert!(query.contains("EncryptionContext=") && !query.contains("Plaintext"));
}

#[test]
fn a_gateway_without_re_encrypt_decrypts_and_encrypts() {
    let peer = Peer::new(Kind::Software, Access::Fixed);
    let provider = peer.provider();
    let (key, old) = provider.generate(&context(1), KeyLen::Bits256).unwrap();
    provider.rewrap(&context(1), &old).unwrap();
    assert_eq!(peer.server.world().last_call.0, "ReEncrypt");
    peer.server.world().lacking.insert("ReEncrypt");
    peer.server.change(Key::rotate);
    let new = provider.rewrap(&context(1), &old).unwrap();
    assert_eq!(peer.server.world().last_call.0, "Encrypt");
    assert_ne!(new.key_version, old.key_version);
    let again = provider.unwrap(&context(1), &new).unwrap();
    assert_eq!(again.expose(), key.expose());
}

#[test]
fn instances_use_the_operations_that_they_have() {
    let software = Peer::new(Kind::Software, LEGACY);
    let (_, wrapped) = software
        .provider()
        .generate(&context(1), KeyLen::Bits256)
        .unwrap();
    assert_eq!(
        software.server.world().last_call.0,
        "AdvanceGenerateDataKey"
    );
    assert!(wrapped.iv.is_empty() && !wrapped.key_version.is_empty());
    let hardware = Peer::new(Kind::Hardware, LEGACY);
    let provider = hardware.provider();
    for calls in [2, 3] {
        let (_, wrapped) = provider.generate(&context(1), KeyLen::Bits256).unwrap();
        assert_eq!(wrapped.iv.len(), 12);
        assert_eq!(wrapped.algorithm, "AES_GCM");
        assert_eq!(hardware.server.calls(), calls, "it asks for Advance once");
    }
}

#[test]
fn servers_that_the_authority_does_not_vouch_for_are_refused_at_once() {
    let peer = Peer::new(Kind::Software, Access::Temporary);
    for authority in [format!("&ca={FIXTURES}/other-ca.pem"), String::new()] {
        let uri = peer
            .uri(KEY)
            .replace(&format!("&ca={FIXTURES}/ca.pem"), &authority);
        let start = std::time::Instant::now();
        assert_kind!(generate(&*peer.open(&uri)), Configuration, "certificate");
        assert!(start.elapsed() < DEADLINE / 2);
    }
    let by_address = peer.uri(KEY).replace("localhost", "127.0.0.1");
    generate(&*peer.open(&by_address)).unwrap();
    assert_eq!(peer.server.world().last_call.0, "GenerateDataKey");
}

#[test]
fn client_key_mistakes_are_told() {
    let peer = Peer::new(Kind::Software, LEGACY);
    let dir = tempfile::tempdir().unwrap();
    let wrong = dir.path().join("wrong");
    std::fs::write(&wrong, "not the password\n").unwrap();
    let good = format!("{FIXTURES}/client-key-password");
    let uri = peer.uri(KEY);
    let bad = uri.replace(&good, wrong.to_str().unwrap());
    assert_kind!(peer.try_open(&bad), Configuration, "password");
    let bad = uri.replace("client-key-legacy.json", "ca.pem");
    assert_kind!(peer.try_open(&bad), Configuration, "not JSON");
    let bad = uri.replace("client-key-legacy.json", "missing");
    assert_kind!(peer.try_open(&bad), Configuration, "cannot read");
    let none = uri.split("&client-key").next().unwrap().to_owned() + "&wire=instance";
    assert_kind!(peer.try_open(&none), Configuration, "needs client-key");
}

#[test]
fn throttling_says_how_long_to_wait() {
    let peer = Peer::new(Kind::Software, Access::Fixed);
    peer.server.trouble(Trouble {
        calls: usize::MAX,
        refusal: Some((429, "Rejected.Throttling")),
        retry_after_ms: Some(60_000),
        ..Trouble::default()
    });
    let start = std::time::Instant::now();
    match generate(&*peer.provider()) {
        Err(KeyError::Throttled { retry_after, .. }) => {
            assert_eq!(retry_after, Some(Duration::from_secs(60)));
        }
        other => panic!("{other:?}"),
    }
    assert!(start.elapsed() < DEADLINE, "waiting in vain makes no sense");
    assert_eq!(peer.server.calls(), 1);
}

#[test]
fn pending_deletion_is_disabled_and_service_keys_are_explained() {
    let peer = Peer::new(Kind::Software, Access::Fixed);
    peer.server.change(|key| key.state = State::PendingDeletion);
    assert_kind!(generate(&*peer.provider()), Disabled, "PendingDeletion");
    for access in [Access::Fixed, PBES2] {
        let peer = Peer::new(Kind::Service, access);
        let report = check::check(&*peer.provider());
        let (error, advice) = report.failure().unwrap();
        assert!(matches!(error, KeyError::Denied { .. }), "{error:?}");
        assert!(
            advice
                .unwrap()
                .contains("software or hardware KMS instance")
        );
    }
}

#[test]
fn permissions_that_lack_are_named() {
    let peer = Peer::new(Kind::Software, Access::Fixed);
    peer.server.change(|key| key.denied = true);
    let report = check::check(&*peer.provider());
    let (_, advice) = report.failure().unwrap();
    let advice = advice.unwrap();
    assert!(
        advice.contains("kms:GenerateDataKey") && advice.contains(KEY),
        "{advice}"
    );
    assert!(report.description.is_err());
    peer.server.change(|key| key.denied = false);
    let facts = peer.provider().describe().unwrap();
    let fact = |name| facts.iter().find(|(n, _)| *n == name).unwrap().1.as_str();
    assert_eq!((fact("state"), fact("may encrypt")), ("Enabled", "yes"));
    assert_eq!(fact("place"), "in KMS instance kst-test");
}

#[test]
fn a_child_process_calls_with_threads_of_its_own() {
    let peer = Peer::new(Kind::Software, Access::Fixed);
    let provider = peer.provider();
    generate(&*provider).unwrap();
    assert!(in_child(|| generate(&*provider).is_ok()));
    generate(&*provider).unwrap();
}

/// Whether `action` succeeds in a child made by `fork`, as a mount that goes
/// into the background does.
#[allow(unsafe_code)]
fn in_child(action: impl FnOnce() -> bool) -> bool {
    // SAFETY: the child only calls `action` and ends without unwinding or
    // running anything of the test harness; glibc keeps malloc usable in it.
    let child = unsafe { libc::fork() };
    assert!(child >= 0);
    if child == 0 {
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(action));
        // SAFETY: ends the child at once.
        unsafe { libc::_exit(i32::from(!matches!(result, Ok(true)))) };
    }
    let mut status = 0;
    // SAFETY: waits for the child made above.
    unsafe { libc::waitpid(child, &mut status, 0) };
    libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 0
}
