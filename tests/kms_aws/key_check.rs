//! `kmsfs key check`, with credentials from the environment.

use std::process::Command;
use std::sync::Arc;

use crate::conformance::Service;
use crate::emulator::Kind;
use crate::http::{Reply, Request, serve};
use crate::peer::Peer;

/// Runs `kmsfs key check`; the exit code, and all that it wrote.
fn key_check(uri: &str, environment: &[(&str, &str)]) -> (Option<i32>, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_kmsfs"))
        .args(["key", "check", uri])
        .env_clear()
        .env("HOME", "/nonexistent")
        // Off AWS nothing answers there, and where something does it is not for us.
        .env("AWS_EC2_METADATA_DISABLED", "true")
        .envs(environment.iter().copied())
        .output()
        .unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8(text).unwrap())
}

#[test]
fn a_good_key_passes_every_step() {
    let peer = Peer::new(Kind::Moto).with_time(30);
    let access = peer.access();
    let environment = [
        ("AWS_ACCESS_KEY_ID", access.id.as_str()),
        ("AWS_SECRET_ACCESS_KEY", access.secret.as_str()),
        ("AWS_SESSION_TOKEN", access.token.as_deref().unwrap()),
    ];
    let (code, out) = key_check(&peer.bare_uri(&peer.key), &environment);
    assert_eq!(code, Some(0), "{out}");
    assert_eq!(
        out.lines().filter(|line| line.starts_with("ok ")).count(),
        5,
        "{out}"
    );
    assert!(
        out.contains(&peer.key) && out.contains("SYMMETRIC_DEFAULT"),
        "{out}"
    );
    assert!(!out.contains(&access.secret));
    // The region may come from there too.
    let id = peer.key.rsplit_once('/').unwrap().1;
    let uri = peer.bare_uri(id).replace("&region=eu-west-1", "");
    let (code, out) = key_check(&uri, &environment);
    assert_eq!(code, Some(25), "{out}");
    assert!(out.contains("AWS_REGION"), "{out}");
    let environment = [environment.as_slice(), &[("AWS_REGION", "eu-west-1")]].concat();
    let (code, out) = key_check(&uri, &environment);
    assert_eq!(code, Some(0), "{out}");
}

#[test]
fn what_is_wrong_is_said_with_advice() {
    let peer = Peer::new(Kind::Ministack);
    let access = peer.access();
    let environment = [
        ("AWS_ACCESS_KEY_ID", access.id.as_str()),
        ("AWS_SECRET_ACCESS_KEY", access.secret.as_str()),
        ("AWS_SESSION_TOKEN", access.token.as_deref().unwrap()),
    ];
    let fails = |expected: i32, word: &str, uri: &str| {
        let (code, out) = key_check(uri, &environment);
        assert_eq!(code, Some(expected), "{out}");
        let hint = out.split("kmsfs: hint: ").nth(1).unwrap_or_default();
        assert!(hint.contains(word), "{out}");
    };
    let own = peer.bare_uri(&peer.key);
    let moved = own.replace("eu-west-1", "us-east-2");
    fails(20, "check the id, the account and the region", &moved);
    fails(
        23,
        "VPC endpoint",
        &own.replace(&peer.endpoint(), "https://127.0.0.1:1"),
    );
    fails(25, "docs/KMS.md", &format!("{own}&nosuch=1"));
    peer.set_enabled(false);
    fails(21, "enable-key", &own);
    peer.set_enabled(true);
    peer.set_allowed(false);
    fails(22, "kms:GenerateDataKey", &own);
    let (code, out) = key_check(&own, &[]);
    assert_eq!(code, Some(25), "{out}");
    assert!(out.contains("no AWS credentials"), "{out}");
}

/// As in a container of ECS or EKS.
#[test]
fn credentials_may_come_from_an_agent() {
    let peer = Peer::new(Kind::Moto).with_time(30);
    let access = peer.access();
    let body = serde_json::json!({
        "AccessKeyId": access.id,
        "SecretAccessKey": access.secret,
        "Token": access.token,
        "Expiration": "2099-01-01T00:00:00Z",
    });
    let agent = serve(
        None,
        Arc::new(move |request: &Request| {
            let allowed = request.header("authorization") == "word-of-the-tests";
            Reply {
                status: if allowed { 200 } else { 403 },
                body: body.to_string().into_bytes(),
                ..Reply::default()
            }
        }),
    );
    let place = format!("http://{agent}/credentials");
    let environment = [
        ("AWS_CONTAINER_CREDENTIALS_FULL_URI", place.as_str()),
        ("AWS_CONTAINER_AUTHORIZATION_TOKEN", "word-of-the-tests"),
    ];
    let (code, out) = key_check(&peer.bare_uri(&peer.key), &environment);
    assert_eq!(code, Some(0), "{out}");
}

#[test]
fn a_role_that_may_not_be_assumed_is_a_denial() {
    let peer = Peer::new(Kind::Ministack);
    let refusal = "<ErrorResponse><Error><Type>Sender</Type><Code>AccessDenied</Code>\
                   <Message>User is not authorized to perform: sts:AssumeRole</Message></Error>\
                   <RequestId>r-1</RequestId></ErrorResponse>";
    let sts = serve(
        None,
        Arc::new(move |_: &Request| Reply {
            status: 403,
            body: refusal.as_bytes().to_vec(),
            ..Reply::default()
        }),
    );
    let home = tempfile::tempdir().unwrap();
    let file = home.path().join("credentials");
    std::fs::write(
        &file,
        "[own]\naws_access_key_id = a\naws_secret_access_key = b\n\
         [role]\nrole_arn = arn:aws:iam::1:role/r\nsource_profile = own\n",
    )
    .unwrap();
    let uri = peer.bare_uri(&peer.key);
    let uri = format!("{uri}&profile=role&credentials-file={}", file.display());
    let place = format!("http://{sts}");
    let (code, out) = key_check(&uri, &[("AWS_ENDPOINT_URL_STS", &place)]);
    assert_eq!(code, Some(22), "{out}");
    assert!(
        out.contains("sts:AssumeRole") && out.contains("trusts this caller"),
        "{out}"
    );
}
