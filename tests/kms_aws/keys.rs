//! How keys are named, and what becomes of them.

use kmsfs::keys::kms::aws::AwsUri;
use kmsfs::keys::{KeyError, KeyProvider, WrappedKey};
use kmsfs::types::KeyLen;
use serde_json::json;

use crate::conformance::context;
use crate::emulator::{Kind, REGION};
use crate::peer::Peer;

const ELSEWHERE: &str = "us-east-2";

fn generate(provider: &dyn KeyProvider) -> Result<(Vec<u8>, WrappedKey), KeyError> {
    let (key, wrapped) = provider.generate(&context(1), KeyLen::Bits256)?;
    Ok((key.expose().to_vec(), wrapped))
}

fn open(provider: &dyn KeyProvider, wrapped: &WrappedKey) -> Result<Vec<u8>, KeyError> {
    let key = provider.unwrap(&context(1), wrapped)?;
    Ok(key.expose().to_vec())
}

#[test]
fn an_alias_is_resolved_once_and_for_all() {
    let peer = Peer::new(Kind::Ministack);
    let alias = "alias/kmsfs/tests_of-aliases";
    let point = |operation: &str, key: &str| {
        let body = json!({ "AliasName": alias, "TargetKeyId": key });
        peer.emulator.call(REGION, operation, &body);
    };
    point("CreateAlias", &peer.key);
    let provider = peer.open(&peer.uri_of(alias));
    assert!(provider.uri().contains(&peer.key), "{}", provider.uri());
    let (key, wrapped) = generate(&*provider).unwrap();
    assert_eq!(wrapped.key_uri, format!("awskms:///{}", peer.key));
    let other = peer.emulator.create_key(&json!({}));
    point("UpdateAlias", &other);
    assert_eq!(open(&*provider, &wrapped).unwrap(), key);
    // As a later mount opens it: by what the volume's configuration keeps.
    let later = peer.open(provider.uri());
    assert!(later.recognises(&wrapped));
    assert_eq!(open(&*later, &wrapped).unwrap(), key);
    let moved = peer.open(&peer.uri_of(alias));
    assert!(!moved.recognises(&wrapped));
    let missing = peer.try_open(&peer.uri_of("alias/kmsfs/never-made"));
    assert!(matches!(missing, Err(KeyError::NotFound { .. })));
}

#[test]
fn a_key_id_becomes_an_arn_in_headers() {
    let peer = Peer::new(Kind::Ministack);
    let (_, id) = peer.key.rsplit_once('/').unwrap();
    let by_id = peer.open(&peer.uri_of(id));
    let (key, wrapped) = generate(&*by_id).unwrap();
    assert_eq!(wrapped.key_uri, format!("awskms:///{}", peer.key));
    for uri in [peer.uri(), peer.uri_of(id)] {
        let provider = peer.open(&uri);
        assert!(provider.recognises(&wrapped));
        assert_eq!(open(&*provider, &wrapped).unwrap(), key);
    }
}

#[test]
fn a_replica_opens_what_another_region_wrapped() {
    let peer = Peer::new(Kind::Ministack);
    let arn = peer.emulator.create_key(&json!({ "MultiRegion": true }));
    let replica = json!({ "KeyId": arn, "ReplicaRegion": ELSEWHERE });
    peer.emulator.call(REGION, "ReplicateKey", &replica);
    let primary = peer.open(&peer.uri_of(&arn));
    let (key, wrapped) = generate(&*primary).unwrap();
    assert!(wrapped.key_uri.contains(REGION), "{}", wrapped.key_uri);
    let there = arn.replace(REGION, ELSEWHERE);
    let by_arn = peer.open(&peer.uri_of(&there));
    let by_region = peer.open(&format!("{}&region={ELSEWHERE}", peer.uri_of(&arn)));
    for replica in [by_arn, by_region] {
        assert!(replica.recognises(&wrapped));
        assert_eq!(open(&*replica, &wrapped).unwrap(), key);
        let (key, wrapped) = generate(&*replica).unwrap();
        assert!(wrapped.key_uri.contains(ELSEWHERE), "{}", wrapped.key_uri);
        assert!(primary.recognises(&wrapped));
        assert_eq!(open(&*primary, &wrapped).unwrap(), key);
    }
    // A key of one region is no other region's.
    let moved = peer.key.replace(REGION, ELSEWHERE);
    let provider = peer.open(&peer.uri_of(&moved));
    assert!(!provider.recognises(&generate(&*peer.open(&peer.uri())).unwrap().1));
    assert!(matches!(
        generate(&*provider),
        Err(KeyError::NotFound { .. })
    ));
}

#[test]
fn a_key_that_waits_for_its_deletion_is_disabled() {
    let peer = Peer::new(Kind::Ministack);
    let provider = peer.open(&peer.uri());
    let (key, wrapped) = generate(&*provider).unwrap();
    peer.manage("ScheduleKeyDeletion");
    let error = open(&*provider, &wrapped).unwrap_err();
    assert!(matches!(error, KeyError::Disabled { .. }), "{error:?}");
    let advice = provider.advice(&error).unwrap();
    assert!(advice.contains("cancel-key-deletion"), "{advice}");
    peer.manage("CancelKeyDeletion");
    // Which leaves it disabled.
    let error = open(&*provider, &wrapped).unwrap_err();
    assert!(matches!(error, KeyError::Disabled { .. }), "{error:?}");
    peer.manage("EnableKey");
    assert_eq!(open(&*provider, &wrapped).unwrap(), key);
}

#[test]
fn what_another_key_wrapped_is_refused() {
    let peer = Peer::new(Kind::Moto);
    let provider = peer.open(&peer.uri());
    let other = peer.emulator.create_key(&json!({}));
    let (_, wrapped) = generate(&*peer.open(&peer.uri_of(&other))).unwrap();
    assert!(!provider.recognises(&wrapped));
    // moto denies it, where KMS has a name for it.
    let error = open(&*provider, &wrapped).unwrap_err();
    assert!(error.is_refusal(), "{error:?}");
}

#[test]
fn a_wrapped_key_that_was_changed_is_rejected() {
    let peer = Peer::new(Kind::Moto);
    let provider = peer.open(&peer.uri());
    let (key, wrapped) = generate(&*provider).unwrap();
    assert_eq!(open(&*provider, &wrapped).unwrap(), key);
    // moto's ciphertexts begin with the key's id, unauthenticated.
    let id = peer.key.rsplit_once('/').unwrap().1.len();
    let len = wrapped.ciphertext.len();
    assert!(len > id + 12 + 16 + 32 - 1);
    for index in (id..len).step_by(5).chain([len - 1]) {
        let mut bad = wrapped.clone();
        bad.ciphertext[index] ^= 1;
        let error = open(&*provider, &bad).unwrap_err();
        assert!(matches!(error, KeyError::Rejected { .. }), "{error:?}");
        let error = provider.rewrap(&context(1), &bad).unwrap_err();
        assert!(matches!(error, KeyError::Rejected { .. }), "{error:?}");
    }
}

#[test]
fn rewrapping_shows_no_data_key() {
    let peer = Peer::new(Kind::Moto);
    let provider = peer.open(&peer.uri());
    let (key, wrapped) = generate(&*provider).unwrap();
    let before = peer.proxy.calls.load(std::sync::atomic::Ordering::SeqCst);
    let again = provider.rewrap(&context(1), &wrapped).unwrap();
    let after = peer.proxy.calls.load(std::sync::atomic::Ordering::SeqCst);
    assert_eq!(after - before, 1, "ReEncrypt, not Decrypt and Encrypt");
    assert_eq!(again.key_uri, wrapped.key_uri);
    assert_eq!(open(&*provider, &again).unwrap(), key);
}

#[test]
fn the_uri_that_is_kept_is_understood_again() {
    let peer = Peer::new(Kind::Ministack);
    let provider = peer.open(&peer.uri());
    let again = AwsUri::parse(provider.uri()).unwrap();
    assert_eq!(again.to_string(), provider.uri());
    assert!(!provider.uri().contains(&peer.access().secret));
}
