//! Who calls: access keys, roles and client keys.

use kmsfs::keys::KeyError;
use kmsfs::keys::kms::alibaba::{AlibabaProvider, AlibabaUri, Environment};

use crate::kms_servers::alibaba::{ACCESS_KEY, KEY, Kind};
use crate::peer::{Access, Peer, fixed, generate};

#[test]
fn a_wrong_secret_is_denied_and_never_shown() {
    let peer = Peer::new(Kind::Software, Access::Fixed);
    let uri = AlibabaUri::parse(&peer.uri(KEY)).unwrap();
    let wrong = fixed((ACCESS_KEY.0, "hunter2-wrong-secret"));
    let provider = AlibabaProvider::open(&uri, &wrong).unwrap();
    let error = generate(&provider).unwrap_err();
    assert!(!format!("{error:?}").contains("hunter2"), "{error:?}");
    assert_kind!(Err::<(), _>(error), Denied, "SignatureDoesNotMatch");
    let unknown = AlibabaProvider::open(&uri, &fixed(("nobody", "x"))).unwrap();
    assert_kind!(generate(&unknown), Denied, "InvalidAccessKeyId");
    let none = Environment::of(&[("ALIBABA_CLOUD_ECS_METADATA_DISABLED", "true")]);
    let provider = AlibabaProvider::open(&uri, &none).unwrap();
    assert!(matches!(
        generate(&provider),
        Err(KeyError::Configuration { .. })
    ));
}

#[test]
fn an_assumed_role_is_assumed_again_when_its_session_ends() {
    let peer = Peer::new(Kind::Software, Access::Fixed);
    let home = tempfile::tempdir().unwrap();
    let profile = |name: &str, mode: &str, rest: &str| {
        let (id, secret) = ACCESS_KEY;
        format!(
            r#"{{"name":"{name}","mode":"{mode}","access_key_id":"{id}",
            "access_key_secret":"{secret}","ram_role_arn":"acs:ram::1:role/r"{rest}}}"#
        )
    };
    let role = profile("role", "RamRoleArn", "");
    let chained = profile(
        "chained",
        "ChainableRamRoleArn",
        r#","source_profile":"role""#,
    );
    let config = format!(r#"{{"current":"role","profiles":[{role},{chained}]}}"#);
    std::fs::create_dir(home.path().join(".aliyun")).unwrap();
    std::fs::write(home.path().join(".aliyun/config.json"), config).unwrap();
    let sts = format!("http://{}", peer.server.plain);
    let environment = Environment::of(&[
        ("HOME", home.path().to_str().unwrap()),
        ("KMSFS_ALIBABA_STS_ENDPOINT", &sts),
    ]);
    // The clock of STS is corrected like that of the KMS.
    peer.server.set_clock(30_000);
    for (name, sessions) in [("role", 1), ("chained", 2)] {
        let uri = format!("{}&profile={name}", peer.uri(KEY));
        let uri = AlibabaUri::parse(&uri).unwrap();
        let provider = AlibabaProvider::open(&uri, &environment).unwrap();
        generate(&provider).unwrap();
        let before = peer.server.world().access_keys.len();
        peer.server.end_temporary_keys();
        generate(&provider).unwrap();
        generate(&provider).unwrap();
        let after = peer.server.world().access_keys.len();
        assert_eq!(after - before, sessions, "no more than it takes");
    }
}
