//! A disabled key still wraps: kmsfs must not make files that nobody can open.

use std::time::Duration;

use kmsfs::keys::KeyError;
use kmsfs::types::KeyLen;

use crate::conformance::{Service, context};
use crate::kms_servers::azure::{KEY, Kind};
use crate::peer::{Peer, generate};

fn operations(peer: &Peer) -> Vec<String> {
    std::mem::take(&mut peer.server.world().operations)
}

#[test]
fn a_data_key_that_cannot_be_unwrapped_is_not_given_out() {
    for kind in [Kind::Rsa, Kind::Aes] {
        let peer = Peer::new(kind);
        peer.server.change(|key| key.set_enabled(false));
        let provider = peer.provider();
        assert_kind!(generate(&*provider), Disabled, "disabled key");
        assert_eq!(operations(&peer), ["wrapkey", "unwrapkey"], "it did wrap");
        let key = kmsfs::crypto::DataKey::random(KeyLen::Bits256);
        assert_kind!(provider.wrap(&context(1), &key), Disabled, "disabled key");
        peer.server.change(|key| key.set_enabled(true));
        generate(&*provider).unwrap();
    }
}

#[test]
fn a_version_is_tried_once_in_a_while() {
    let peer = Peer::new(Kind::Aes);
    let provider = peer.provider();
    generate(&*provider).unwrap();
    assert_eq!(operations(&peer), ["wrapkey", "unwrapkey"]);
    let (_, wrapped) = provider.generate(&context(1), KeyLen::Bits256).unwrap();
    assert_eq!(operations(&peer), ["wrapkey"]);
    // A new version was not seen to unwrap yet, even if the old one was just now.
    peer.server.change(|key| key.rotate());
    provider.unwrap(&context(1), &wrapped).unwrap();
    operations(&peer);
    generate(&*provider).unwrap();
    assert_eq!(operations(&peer), ["wrapkey", "unwrapkey"]);
}

#[test]
fn reading_files_counts_as_trying() {
    let peer = Peer::new(Kind::Aes);
    let (_, wrapped) = peer
        .provider()
        .generate(&context(1), KeyLen::Bits256)
        .unwrap();
    operations(&peer);
    let provider = peer.provider();
    provider.unwrap(&context(1), &wrapped).unwrap();
    generate(&*provider).unwrap();
    assert_eq!(operations(&peer), ["unwrapkey", "wrapkey"]);
    // And a refusal ends it at once.
    peer.server.change(|key| key.set_enabled(false));
    assert_kind!(
        provider.unwrap(&context(1), &wrapped),
        Disabled,
        "disabled key"
    );
    assert_kind!(generate(&*provider), Disabled, "disabled key");
}

#[test]
fn how_long_it_is_believed_can_be_chosen() {
    let peer = Peer::new(Kind::Aes);
    let uri = peer.uri(KEY);
    let always = peer.open(&format!("{uri}&verify=0"));
    let short = peer.open(&format!("{uri}&verify=1"));
    let long = peer.open(&format!("{uri}&verify=3600"));
    for provider in [&always, &short, &long] {
        generate(&**provider).unwrap();
    }
    peer.server.change(|key| key.set_enabled(false));
    assert_kind!(generate(&*always), Disabled, "disabled key");
    std::thread::sleep(Duration::from_millis(1100));
    assert_kind!(generate(&*short), Disabled, "disabled key");
    generate(&*long).expect("the price of asking rarely");
}
