//! Several wrapped keys in one call, and keys that the API made.

use std::sync::atomic::Ordering;

use data_encoding::BASE64;
use kmsfs::keys::{KeyError, WrappedKey};
use kmsfs::types::KeyLen;
use serde_json::json;

use crate::conformance::{Service, context};
use crate::peer::Peer;

#[test]
fn many_keys_are_unwrapped_in_few_calls_each_with_its_own_result() {
    for derived in [false, true] {
        let peer = Peer::new(derived);
        let provider = peer.provider();
        let made: Vec<_> = (0..4)
            .map(|file| provider.generate(&context(file), KeyLen::Bits256).unwrap())
            .collect();
        let mut asked: Vec<_> = (0..200)
            .map(|n| (context(n % 4), made[usize::from(n % 4)].1.clone()))
            .collect();
        asked[7].0 = context(9);
        asked[8].1.ciphertext = b"\xff\xfe".to_vec();
        let before = peer.proxy.calls.load(Ordering::SeqCst);
        let results = provider.unwrap_many(&asked);
        assert_eq!(peer.proxy.calls.load(Ordering::SeqCst) - before, 2);
        assert_eq!(results.len(), asked.len());
        for (index, result) in results.into_iter().enumerate() {
            match result {
                Ok(key) => assert_eq!(key.expose(), made[index % 4].0.expose()),
                Err(KeyError::Rejected { .. }) => assert!([7, 8].contains(&index), "{index}"),
                Err(error) => panic!("{index}: {error:?}"),
            }
        }
        let all_bad = provider.unwrap_many(&asked[7..9]);
        assert!(
            all_bad
                .iter()
                .all(|r| matches!(r, Err(KeyError::Rejected { .. })))
        );
        assert!(provider.unwrap_many(&[]).is_empty());
        peer.set_allowed(false);
        let denied = provider.unwrap_many(&asked[..3]);
        assert!(
            denied
                .iter()
                .all(|r| matches!(r, Err(KeyError::Denied { .. })))
        );
        assert_eq!(denied.len(), 3);
    }
}

#[test]
fn what_the_api_wraps_opens_and_the_reverse() {
    let peer = Peer::new(true);
    let provider = peer.provider();
    let bound = BASE64.encode(&context(1).aad());
    let path = format!("transit/datakey/plaintext/{}", peer.key);
    let made = &peer.bao.post(&path, &json!({ "context": bound }))["data"];
    let wrapped = WrappedKey {
        key_uri: format!("hashivault://{}", peer.key),
        key_version: String::new(),
        algorithm: String::new(),
        iv: Vec::new(),
        ciphertext: made["ciphertext"].as_str().unwrap().into(),
    };
    let key = provider.unwrap(&context(1), &wrapped).unwrap();
    assert_eq!(
        BASE64.encode(key.expose()),
        made["plaintext"].as_str().unwrap()
    );
    let (key, wrapped) = provider.generate(&context(1), KeyLen::Bits128).unwrap();
    let text = std::str::from_utf8(&wrapped.ciphertext).unwrap();
    let path = format!("transit/decrypt/{}", peer.key);
    let opened = peer
        .bao
        .post(&path, &json!({ "ciphertext": text, "context": bound }));
    assert_eq!(opened["data"]["plaintext"], BASE64.encode(key.expose()));
}

#[test]
fn a_derived_key_wraps_again_without_showing_the_data_key() {
    let peer = Peer::new(true);
    let provider = peer.provider();
    let (key, old) = provider.generate(&context(1), KeyLen::Bits256).unwrap();
    let policy = format!(
        "path \"transit/rewrap/{}\" {{\n  capabilities = [\"update\"]\n}}\n",
        peer.key
    );
    let name = format!("sys/policies/acl/{}", peer.key);
    peer.bao.call("PUT", &name, &json!({ "policy": policy }));
    let new = provider.rewrap(&context(1), &old).unwrap();
    peer.set_allowed(true);
    let again = provider.unwrap(&context(1), &new).unwrap();
    assert_eq!(again.expose(), key.expose());
}

#[test]
fn versions_that_the_key_no_longer_serves_are_disabled() {
    let peer = Peer::new(false);
    let provider = peer.provider();
    let (_, old) = provider.generate(&context(1), KeyLen::Bits256).unwrap();
    peer.rotate();
    let config = format!("transit/keys/{}/config", peer.key);
    peer.bao
        .post(&config, &json!({ "min_decryption_version": 2 }));
    let error = provider.unwrap(&context(1), &old).unwrap_err();
    assert!(matches!(error, KeyError::Disabled { .. }), "{error:?}");
}

#[test]
fn a_key_that_was_deleted_is_not_made_again_even_by_who_may() {
    let peer = Peer::new(false);
    let policy = "path \"transit/*\" {\n  capabilities = [\"create\", \"update\"]\n}\n";
    let name = format!("sys/policies/acl/{}", peer.key);
    peer.bao.call("PUT", &name, &json!({ "policy": policy }));
    peer.delete();
    let error = peer
        .provider()
        .generate(&context(1), KeyLen::Bits256)
        .unwrap_err();
    assert!(matches!(error, KeyError::NotFound { .. }), "{error:?}");
}
