use std::io::{Read, Write};
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use super::*;
use crate::keys::KeyError;
use crate::keys::kms::environment::Environment;
use crate::keys::kms::retry::Deadline;
use crate::keys::kms::time::iso8601;
use crate::sys::clock;

fn deadline() -> Deadline {
    Deadline::after(Duration::from_secs(5))
}

fn get(env: &[(&str, &str)], profile: Option<&str>) -> Result<Arc<Credentials>, KeyError> {
    store(env, profile).get(deadline())
}

fn store(env: &[(&str, &str)], profile: Option<&str>) -> CredentialStore {
    let mut all = vec![("ALIBABA_CLOUD_ECS_METADATA_DISABLED", "true")];
    all.extend_from_slice(env);
    let env = Environment::of(&all);
    CredentialStore::new("key".into(), env, profile.map(str::to_owned))
}

/// A home directory with these files, and its path.
fn home(files: &[(&str, &str)]) -> (tempfile::TempDir, String) {
    let dir = tempfile::tempdir().unwrap();
    for (name, content) in files {
        let path = dir.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    }
    let path = dir.path().display().to_string();
    (dir, path)
}

/// A server whose answer to the n-th request is `answer(n, request)`.
fn server(
    answer: impl Fn(usize, &str) -> (u16, String) + Send + 'static,
) -> (String, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let origin = format!("http://{}", listener.local_addr().unwrap());
    let count = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&count);
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut request = vec![0; 16_384];
            let len = stream.read(&mut request).unwrap();
            let request = String::from_utf8_lossy(&request[..len]).into_owned();
            let (status, body) = answer(counter.fetch_add(1, Ordering::SeqCst), &request);
            let head = format!("HTTP/1.1 {status} X\r\ncontent-length: {}\r\n", body.len());
            let _ = write!(stream, "{head}connection: close\r\n\r\n{body}");
        }
    });
    (origin, count)
}

fn issued(id: &str, seconds: u64) -> String {
    let end = iso8601(clock::unix_seconds() + seconds);
    format!(
        r#"{{"Code":"Success","AccessKeyId":"{id}","AccessKeySecret":"s","SecurityToken":"t","Expiration":"{end}"}}"#
    )
}

const CONFIG: &str = r#"{"current": "a", "profiles": [
    {"name": "a", "mode": "AK", "access_key_id": "cli-id", "access_key_secret": "cli-secret"},
    {"name": "sts", "mode": "StsToken", "access_key_id": "i", "access_key_secret": "s", "sts_token": "tok"},
    {"name": "role", "mode": "RamRoleArn", "access_key_id": "base", "access_key_secret": "s",
     "ram_role_arn": "acs:ram::1:role/r", "ram_session_name": "me", "expired_seconds": 900},
    {"name": "chain", "mode": "ChainableRamRoleArn", "source_profile": "role", "ram_role_arn": "acs:ram::1:role/q"},
    {"name": "circle", "mode": "ChainableRamRoleArn", "source_profile": "circle", "ram_role_arn": "x"},
    {"name": "ext", "mode": "External", "process_command":
     "printf '{\"mode\":\"StsToken\",\"access_key_id\":\"%s\",\"access_key_secret\":\"s\",\"sts_token\":\"t\"}' ext-id"},
    {"name": "hang", "mode": "External", "process_command": "exec sleep 60"},
    {"name": "odd", "mode": "Odd"}]}"#;

#[test]
fn variables_come_first() {
    let (_dir, home) = home(&[(".aliyun/config.json", CONFIG)]);
    let env = [
        ("HOME", home.as_str()),
        ("ALIBABA_CLOUD_ACCESS_KEY_ID", "id"),
        ("ALIBABA_CLOUD_ACCESS_KEY_SECRET", "secret"),
        ("ALIBABA_CLOUD_SECURITY_TOKEN", "token"),
    ];
    let found = get(&env, None).unwrap();
    assert_eq!((found.id.as_str(), found.secret.as_str()), ("id", "secret"));
    assert_eq!(found.token.as_ref().unwrap().as_str(), "token");
    assert_eq!(get(&env[..2], None).unwrap().id, "cli-id", "half a pair");
    assert_eq!(
        get(&env, Some("a")).unwrap().id,
        "cli-id",
        "named in the uri"
    );
}

#[test]
fn profiles_of_the_command_line_tool() {
    let (_dir, home) = home(&[(".aliyun/config.json", CONFIG)]);
    let env = [("HOME", home.as_str())];
    let found = get(&env, Some("sts")).unwrap();
    assert_eq!(found.token.as_ref().unwrap().as_str(), "tok");
    assert_eq!(get(&env, Some("ext")).unwrap().id, "ext-id");
    let named = [env[0], ("ALIBABA_CLOUD_PROFILE", "sts")];
    assert_eq!(get(&named, None).unwrap().id, "i");
    for (profile, word) in [("circle", "itself"), ("odd", "mode"), ("none", "none")] {
        let error = get(&env, Some(profile)).err().unwrap().to_string();
        assert!(error.contains(word), "{error}");
    }
    let disabled = [env[0], ("ALIBABA_CLOUD_CLI_PROFILE_DISABLED", "true")];
    assert!(get(&disabled, None).is_err());
}

#[test]
fn a_command_that_hangs_is_killed_at_the_deadline() {
    let (_dir, home) = home(&[(".aliyun/config.json", CONFIG)]);
    let store = store(&[("HOME", &home)], Some("hang"));
    let start = std::time::Instant::now();
    assert!(
        store
            .get(Deadline::after(Duration::from_millis(300)))
            .is_err()
    );
    assert!(start.elapsed() < Duration::from_secs(2));
}

#[test]
fn sections_of_the_ini_file() {
    let ini = "[default]\ntype = access_key # comment\naccess_key_id = ini\n\
               access_key_secret = s=x\n[bad]\ntype = rsa_key_pair\n";
    let (_dir, home) = home(&[(".alibabacloud/credentials.ini", ini), ("other", ini)]);
    let found = get(&[("HOME", &home)], None).unwrap();
    assert_eq!((found.id.as_str(), found.secret.as_str()), ("ini", "s=x"));
    let other = format!("{home}/other");
    let found = get(&[("ALIBABA_CLOUD_CREDENTIALS_FILE", &other)], None).unwrap();
    assert_eq!(found.id, "ini");
    let error = get(&[("HOME", &home)], Some("bad")).err().unwrap();
    assert!(error.to_string().contains("rsa_key_pair"));
}

#[test]
fn nothing_at_all_is_explained() {
    let error = get(&[], None).err().unwrap();
    assert!(matches!(
        error,
        KeyError::Configuration { hint: Some(_), .. }
    ));
}

#[test]
fn damaged_files_are_errors_and_show_no_content() {
    let broken = r#"{"profiles": [{"access_key_secret": "topsecret" "#;
    let (_dir, home) = home(&[(".aliyun/config.json", broken)]);
    let error = get(&[("HOME", &home)], None).err().unwrap();
    assert!(!format!("{error:?}").contains("topsecret"), "{error:?}");
}

#[test]
fn roles_are_assumed_one_after_the_other() {
    let (_dir, home) = home(&[(".aliyun/config.json", CONFIG)]);
    let (sts, calls) = server(|n, request| {
        assert!(
            request.contains("x-acs-action: AssumeRole\r\n"),
            "{request}"
        );
        let base = if n == 0 { "base" } else { "STS.0" };
        assert!(
            request.contains(&format!("Credential={base},")),
            "{request}"
        );
        let arn = if n == 0 { "role%2Fr" } else { "role%2Fq" };
        assert!(request.contains(arn), "{request}");
        let inner = issued(&format!("STS.{n}"), 3600);
        (200, format!(r#"{{"RequestId":"r","Credentials":{inner}}}"#))
    });
    let env = [
        ("HOME", home.as_str()),
        ("KMSFS_ALIBABA_STS_ENDPOINT", &sts),
    ];
    assert_eq!(get(&env, Some("chain")).unwrap().id, "STS.1");
    assert_eq!(calls.load(Ordering::SeqCst), 2);
    let remote = [env[0], ("KMSFS_ALIBABA_STS_ENDPOINT", "http://192.0.2.1")];
    assert!(get(&remote, Some("role")).is_err(), "unencrypted");
}

#[test]
fn a_token_of_an_identity_provider_is_exchanged() {
    let (_dir, home) = home(&[("token", "jwt.a+b\n")]);
    let (sts, _) = server(|_, request| {
        assert!(request.contains("Action=AssumeRoleWithOIDC"), "{request}");
        assert!(request.contains("OIDCToken=jwt.a%2Bb&") || request.ends_with("jwt.a%2Bb"));
        (
            200,
            format!(r#"{{"Credentials":{}}}"#, issued("STS.oidc", 3600)),
        )
    });
    let token = format!("{home}/token");
    let env = [
        ("ALIBABA_CLOUD_OIDC_TOKEN_FILE", token.as_str()),
        (
            "ALIBABA_CLOUD_OIDC_PROVIDER_ARN",
            "acs:ram::1:oidc-provider/p",
        ),
        ("ALIBABA_CLOUD_ROLE_ARN", "acs:ram::1:role/r"),
        ("KMSFS_ALIBABA_STS_ENDPOINT", &sts),
    ];
    assert_eq!(get(&env, None).unwrap().id, "STS.oidc");
}

#[test]
fn the_metadata_service_is_asked_with_a_token() {
    let (origin, calls) = server(|_, request| {
        if request.starts_with("PUT /latest/api/token") {
            return (200, "imds-token".into());
        }
        let token = "x-aliyun-ecs-metadata-token: imds-token";
        assert!(request.to_lowercase().contains(token), "{request}");
        match request.split(' ').nth(1).unwrap() {
            "/latest/meta-data/ram/security-credentials/" => (200, "the-role".into()),
            "/latest/meta-data/ram/security-credentials/the-role" => (200, issued("ecs", 3600)),
            other => panic!("{other}"),
        }
    });
    let env = [
        ("KMSFS_ALIBABA_METADATA_ENDPOINT", origin.as_str()),
        ("ALIBABA_CLOUD_ECS_METADATA_DISABLED", "false"),
    ];
    assert_eq!(get(&env, None).unwrap().id, "ecs");
    assert_eq!(calls.load(Ordering::SeqCst), 3);
    let (uri, _) = server(|_, _| (200, issued("from-uri", 3600)));
    let closed = [
        ("KMSFS_ALIBABA_METADATA_ENDPOINT", "http://127.0.0.1:1"),
        ("ALIBABA_CLOUD_ECS_METADATA_DISABLED", "false"),
        ("ALIBABA_CLOUD_CREDENTIALS_URI", &uri),
    ];
    assert_eq!(get(&closed, None).unwrap().id, "from-uri");
}

#[test]
fn keys_that_end_soon_are_renewed_and_old_ones_serve_meanwhile() {
    let (uri, calls) = server(|n, _| match n {
        0 => (200, issued("first", 5)),
        1 => (200, issued("second", 3600)),
        _ => (500, String::new()),
    });
    let store = store(&[("ALIBABA_CLOUD_CREDENTIALS_URI", &uri)], None);
    let first = store.get(deadline()).unwrap();
    assert_eq!(first.id, "first");
    assert_eq!(store.get(deadline()).unwrap().id, "first", "just fetched");
    assert_eq!(calls.load(Ordering::SeqCst), 1);
    let second = store.replace(&first, deadline()).unwrap().unwrap();
    assert_eq!(second.id, "second");
    let again = store.replace(&first, deadline()).unwrap().unwrap();
    assert!(Arc::ptr_eq(&second, &again), "one thread renews for all");
    assert_eq!(calls.load(Ordering::SeqCst), 2);
    let error = store.replace(&second, deadline()).err().unwrap();
    assert!(matches!(error, KeyError::Unavailable { .. }), "{error:?}");
    assert_eq!(store.get(deadline()).unwrap().id, "second");
}

#[test]
fn fixed_keys_that_are_refused_have_no_replacement() {
    let env = [
        ("ALIBABA_CLOUD_ACCESS_KEY_ID", "id"),
        ("ALIBABA_CLOUD_ACCESS_KEY_SECRET", "secret"),
    ];
    let store = store(&env, None);
    let refused = store.get(deadline()).unwrap();
    assert!(store.replace(&refused, deadline()).unwrap().is_none());
}
