//! Plugins that are not as they should be, and what they get to know.

use std::process::Command;
use std::time::{Duration, Instant};

use kmsfs::keys::{KeyError, KeyProvider};
use kmsfs::types::KeyLen;

use crate::conformance::{DEADLINE, Mood, Service, context};
use crate::peer::{Peer, open, trusted};

const HELLO: &str = r#"read line; echo '{"id":1,"ok":{"protocol":1}}'"#;

fn generate(provider: &dyn KeyProvider) -> Result<(), KeyError> {
    provider.generate(&context(1), KeyLen::Bits256).map(drop)
}

#[test]
fn a_plugin_without_generate_and_rewrap_gets_data_keys_to_wrap() {
    let peer = Peer::new();
    let plugin = format!("{}/plugin.py", crate::peer::PLUGINS);
    let lean = peer.script(
        "lean",
        &format!(r#"sed -u 's/"op":"\(re\|gene\)/"op":"no-\1/' | python3 {plugin} "$1""#),
    );
    let provider = open(&peer.uri_of(&lean, "kek")).unwrap();
    let (key, wrapped) = provider.generate(&context(1), KeyLen::Bits192).unwrap();
    assert_eq!(key.len(), KeyLen::Bits192);
    let again = provider.rewrap(&context(1), &wrapped).unwrap();
    let unwrapped = provider.unwrap(&context(1), &again).unwrap();
    assert_eq!(unwrapped.expose(), key.expose());
    assert!(!provider.recognises(&kmsfs::keys::WrappedKey {
        key_uri: peer.uri("other"),
        ..wrapped
    }));
}

#[test]
fn another_version_of_the_protocol_is_refused() {
    let peer = Peer::new();
    for answer in [r#"{"id":1,"ok":{"protocol":2}}"#, r#"{"id":1,"ok":{}}"#] {
        let old = peer.script("old", &format!("read line; echo '{answer}'; cat"));
        let provider = open(&peer.uri_of(&old, "kek")).unwrap();
        let error = generate(&*provider).unwrap_err();
        assert!(matches!(error, KeyError::Configuration { .. }), "{error:?}");
    }
}

#[test]
fn a_plugin_that_reads_nothing_costs_no_more_than_the_deadline() {
    let peer = Peer::new();
    let deaf = peer.script("deaf", &format!("{HELLO}; sleep 20"));
    let provider = open(&peer.uri_of(&deaf, "kek")).unwrap();
    let start = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..64 {
            scope.spawn(|| {
                let error = generate(&*provider).unwrap_err();
                assert!(matches!(error, KeyError::Unavailable { .. }), "{error:?}");
            });
        }
    });
    assert!(
        start.elapsed() < DEADLINE + Duration::from_secs(2),
        "{:?}",
        start.elapsed()
    );
}

#[test]
fn a_plugin_gets_little_of_the_environment_and_ends_with_its_provider() {
    let peer = Peer::new();
    let file = peer.state().with_extension("env");
    let script = format!(
        "env > {0}; echo $$ >> {0}; {HELLO}; cat >/dev/null",
        file.display()
    );
    let curious = peer.script("curious", &script);
    let provider = open(&peer.uri_of(&curious, "kek")).unwrap();
    assert!(generate(&*provider).is_err());
    let seen = std::fs::read_to_string(&file).unwrap();
    assert!(
        seen.contains("PATH=") && seen.contains("KMSFS_PLUGIN_PATH="),
        "{seen}"
    );
    assert!(!seen.contains("SECRET"), "{seen}");
    let process = format!("/proc/{}", seen.lines().last().unwrap());
    drop(provider);
    assert!(!std::path::Path::new(&process).exists());
}

#[test]
fn key_check_works_through_a_plugin_and_logs_its_complaints() {
    let peer = Peer::new();
    let check = |uri: &str, path: &str| {
        let output = Command::new(env!("CARGO_BIN_EXE_kmsfs"))
            .args(["key", "check", uri])
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap())
            .env("SECRET", "a-secret-of-kmsfs")
            .env("KMSFS_PLUGIN_PATH", path)
            .output()
            .unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (
            output.status.code().unwrap(),
            text(output.stdout),
            text(output.stderr),
        )
    };
    let (code, out, err) = check(&peer.uri("kek"), &trusted());
    assert_eq!((code, err.as_str()), (0, ""), "{out}");
    assert!(out.contains("version: 9"), "{out}");
    let fails = |expected: i32, word: &str, uri: &str, path: &str| {
        let (code, _, err) = check(uri, path);
        assert_eq!(code, expected, "{err}");
        assert!(err.contains(word), "{err}");
        assert!(
            !err.contains("a-secret-of-kmsfs") && !err.contains('\x1b'),
            "{err}"
        );
    };
    fails(20, "no such key", &peer.uri("nosuch"), &trusted());
    fails(
        25,
        "a volume may not choose",
        &peer.uri("kek"),
        "/usr/libexec",
    );
    fails(25, "KMSFS_PLUGIN_PATH", "exec:nosuch", &trusted());
    peer.set_mood(Mood::CutOff(usize::MAX));
    fails(23, "PLUGIN_PROTOCOL.md", &peer.uri("kek"), &trusted());
    peer.set_mood(Mood::Garbage);
    fails(23, "not an answer", &peer.uri("kek"), &trusted());
}
