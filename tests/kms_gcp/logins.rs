//! Who calls: every kind of credentials, and what is wrong with some.

use std::time::Duration;

use kmsfs::keys::KeyError;
use serde_json::Value;

use crate::conformance::Service;
use crate::kms_servers::gcp::SUBJECT_TOKEN;
use crate::peer::{Peer, generate};

#[test]
fn every_kind_of_credentials_logs_in() {
    let peer = Peer::new();
    let token = peer.write("token", &format!("{SUBJECT_TOKEN}\n").into());
    let cases: [(Value, &[&str]); 5] = {
        let world = peer.server.world();
        let identity = &world.identity;
        [
            (identity.service_account(), &["assertion"]),
            (identity.authorized_user(), &["refresh"]),
            (identity.external_account(&token, false), &["exchange"]),
            (
                identity.external_account(&token, true),
                &["exchange", "impersonate"],
            ),
            (
                identity.impersonated_service_account(),
                &["refresh", "impersonate"],
            ),
        ]
    };
    for (file, logins) in cases {
        let path = peer.write("file.json", &file);
        peer.server.world().logins.clear();
        let provider = peer.with_file(&path);
        generate(&provider).unwrap();
        generate(&provider).unwrap();
        assert_eq!(peer.server.world().logins, logins, "once: {file}");
    }
}

#[test]
fn a_token_in_json_is_found_by_its_field() {
    let peer = Peer::new();
    let json = serde_json::json!({ "other": 1, "id_token": SUBJECT_TOKEN });
    let token = peer.write("token.json", &json);
    let mut file = peer.server.world().identity.external_account(&token, false);
    let format = serde_json::json!({ "type": "json", "subject_token_field_name": "id_token" });
    file["credential_source"]["format"] = format;
    generate(&peer.with_file(&peer.write("file.json", &file))).unwrap();
    file["credential_source"]["format"]["subject_token_field_name"] = "other".into();
    let provider = peer.with_file(&peer.write("file.json", &file));
    assert_kind!(generate(&provider), Configuration, "no token in");
}

#[test]
fn the_file_of_gcloud_and_the_machines_own_account_are_found() {
    let peer = Peer::new();
    let user = peer.server.world().identity.authorized_user();
    let file = peer.write("application_default_credentials.json", &user);
    let folder = file.rsplit_once('/').unwrap().0;
    generate(&peer.with(&[("CLOUDSDK_CONFIG", folder)])).unwrap();
    let address = peer.server.address.to_string();
    generate(&peer.with(&[("GCE_METADATA_HOST", &address)])).unwrap();
    assert_eq!(peer.server.world().logins, ["refresh", "metadata"]);
    let nowhere = peer.with(&[("GCE_METADATA_HOST", "127.0.0.1:1")]);
    assert_kind!(generate(&nowhere), Configuration, "no credentials");
}

#[test]
fn refused_logins_say_why_and_show_no_secret() {
    let peer = Peer::new();
    let mut user = peer.server.world().identity.authorized_user();
    user["refresh_token"] = "hunter2-revoked".into();
    let provider = peer.with_file(&peer.write("file.json", &user));
    let error = generate(&provider).unwrap_err();
    assert!(!format!("{error:?}").contains("hunter2"), "{error:?}");
    assert_kind!(Err::<(), _>(error), Denied, "expired or revoked");
    let mut account = peer.server.world().identity.service_account();
    account["client_email"] = "someone@else".into();
    let provider = peer.with_file(&peer.write("file.json", &account));
    assert_kind!(generate(&provider), Denied, "account not found");
    let other = Peer::new().server.world().identity.service_account();
    account["private_key"] = other["private_key"].clone();
    let provider = peer.with_file(&peer.write("file.json", &account));
    assert_kind!(generate(&provider), Denied, "Invalid JWT Signature");
    let missing = peer.with_file("/nowhere/file.json");
    assert_kind!(generate(&missing), Configuration, "cannot read");
}

#[test]
fn a_clock_that_is_off_is_corrected_once() {
    for offset in [-40_000, 40_000] {
        let peer = Peer::new();
        peer.server.world().clock = offset;
        let provider = peer.provider();
        generate(&*provider).unwrap();
        assert_eq!(peer.server.world().logins.len(), 2, "one to learn the time");
        peer.server.world().tokens.end();
        generate(&*provider).unwrap();
        assert_eq!(peer.server.world().logins.len(), 3);
    }
}

#[test]
fn tokens_are_replaced_before_they_end() {
    let peer = Peer::new();
    peer.server.world().lifetime = 4;
    let provider = peer.provider();
    generate(&*provider).unwrap();
    std::thread::sleep(Duration::from_secs(3));
    let calls = peer.server.calls();
    generate(&*provider).unwrap();
    let world = peer.server.world();
    assert_eq!(world.logins.len(), 2);
    drop(world);
    assert_eq!(peer.server.calls(), calls + 1, "no call was refused");
}
