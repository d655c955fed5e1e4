//! Who calls: every kind of credentials, what is wrong with some, and to whom
//! they are not shown.

use std::time::Duration;

use kmsfs::keys::KeyError;
use kmsfs::keys::kms::azure::{AzureProvider, AzureUri, Environment};

use crate::conformance::Service;
use crate::kms_servers::azure::{ASSERTION, CLIENT, IDENTITY_HEADER, KEY, Kind, SECRET, TENANT};
use crate::peer::{Peer, generate};

#[test]
fn every_kind_of_credentials_logs_in() {
    let peer = Peer::new(Kind::Aes);
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, format!("{text}\n")).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let (secret, token) = (write("secret", SECRET), write("token", ASSERTION));
    let authority = peer.authority();
    let endpoint = format!("{authority}/msi/token");
    let client = ("AZURE_CLIENT_ID", CLIENT);
    let cases: [(&[(&str, &str)], &str); 5] = [
        (
            &[
                client,
                ("AZURE_TENANT_ID", TENANT),
                ("AZURE_CLIENT_SECRET", SECRET),
            ],
            "secret",
        ),
        // The tenant is the vault's, unless another is named.
        (
            &[client, ("KMSFS_AZURE_CLIENT_SECRET_FILE", &secret)],
            "secret",
        ),
        (
            &[client, ("AZURE_FEDERATED_TOKEN_FILE", &token)],
            "assertion",
        ),
        (
            &[
                ("IDENTITY_ENDPOINT", &endpoint),
                ("IDENTITY_HEADER", IDENTITY_HEADER),
            ],
            "app-service",
        ),
        (
            &[client, ("AZURE_POD_IDENTITY_AUTHORITY_HOST", &authority)],
            "metadata",
        ),
    ];
    for (variables, login) in cases {
        peer.server.world().logins.clear();
        let provider = peer.with(variables);
        generate(&provider).unwrap();
        generate(&provider).unwrap();
        assert_eq!(peer.server.world().logins, [login], "once");
    }
}

#[test]
fn refused_logins_say_why_and_show_no_secret() {
    let peer = Peer::new(Kind::Aes);
    let client = ("AZURE_CLIENT_ID", CLIENT);
    let wrong = peer.with(&[client, ("AZURE_CLIENT_SECRET", "hunter2-wrong")]);
    let error = generate(&wrong).unwrap_err();
    assert!(!format!("{error:?}").contains("hunter2"), "{error:?}");
    assert_kind!(Err::<(), _>(error), Denied, "AADSTS7000215");
    let tenant = ("AZURE_TENANT_ID", "elsewhere");
    let wrong = peer.with(&[client, tenant, ("AZURE_CLIENT_SECRET", SECRET)]);
    assert_kind!(generate(&wrong), Denied, "AADSTS90002");
    let nobody = peer.with(&[("AZURE_CLIENT_SECRET", SECRET)]);
    assert_kind!(generate(&nobody), Configuration, "AZURE_CLIENT_ID");
    let host = ("AZURE_POD_IDENTITY_AUTHORITY_HOST", "http://127.0.0.1:1");
    assert_kind!(
        generate(&peer.with(&[host])),
        Configuration,
        "no credentials"
    );
    let authority = peer.authority();
    let host = ("AZURE_POD_IDENTITY_AUTHORITY_HOST", authority.as_str());
    let unknown = peer.with(&[host, ("AZURE_CLIENT_ID", "unknown")]);
    assert_kind!(generate(&unknown), Configuration, "no such identity");
}

#[test]
fn credentials_go_to_no_one_else() {
    let peer = Peer::new(Kind::Aes);
    let variables = [("AZURE_CLIENT_ID", CLIENT), ("AZURE_CLIENT_SECRET", SECRET)];
    // A vault that asks for a token for another domain gets none.
    for resource in ["https://vault.azure.net", "https://graph.microsoft.com"] {
        peer.server.world().challenge = resource.into();
        assert_kind!(generate(&peer.with(&variables)), Malformed, "challenge");
    }
    assert!(peer.server.world().logins.is_empty());
    // Neither does an authority on the other side of an unencrypted network.
    peer.server.world().challenge = "https://localhost".into();
    let uri = AzureUri::parse(&peer.uri(KEY)).unwrap();
    let far = ("AZURE_AUTHORITY_HOST", "http://login.example");
    let env = Environment::of(&[variables[0], variables[1], far]);
    let provider = AzureProvider::open(&uri, &env).unwrap();
    assert_kind!(generate(&provider), Configuration, "this machine only");
}

#[test]
fn tokens_are_replaced_before_they_end() {
    let peer = Peer::new(Kind::Aes);
    peer.server.world().lifetime = 4;
    let provider = peer.provider();
    generate(&*provider).unwrap();
    std::thread::sleep(Duration::from_secs(3));
    let calls = peer.server.calls();
    generate(&*provider).unwrap();
    assert_eq!(peer.server.world().logins.len(), 2);
    assert_eq!(peer.server.calls() - calls, 2, "a challenge, and wrapping");
}
