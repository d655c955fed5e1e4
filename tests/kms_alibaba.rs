//! Alibaba Cloud KMS, over both of its protocols, against the test server.

mod conformance;
mod kms_servers;

use std::sync::Arc;
use std::time::Duration;

use conformance::{DEADLINE, Mood, Service, context};
use kms_servers::alibaba::{ACCESS_KEY, ALIAS, FIXTURES, KEY, Key, Kind, Server, State, Trouble};
use kms_servers::http::Manner;
use kmsfs::keys::kms::alibaba::{AlibabaProvider, AlibabaUri, Environment};
use kmsfs::keys::{KeyError, KeyProvider, check};
use kmsfs::types::KeyLen;

const ELSEWHERE: &str = "127.0.0.1:1";

/// A server and how to reach it.
struct Peer {
    server: Server,
    kind: Kind,
    access: Access,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Access {
    /// OpenAPI, a fixed access key, no TLS.
    Fixed,
    /// OpenAPI, temporary access keys, TLS.
    Temporary,
    /// The instance protocol, TLS, this client key.
    ClientKey(&'static str),
}

impl Peer {
    fn new(kind: Kind, access: Access) -> Self {
        let server = Server::start();
        server.change(|key| *key = Key::new(kind));
        Self {
            server,
            kind,
            access,
        }
    }

    fn uri(&self, key: &str) -> String {
        let address = match self.access {
            Access::Fixed => self.server.plain.to_string(),
            _ => format!("localhost:{}", self.server.encrypted.port()),
        };
        self.uri_at(&address, key)
    }

    fn uri_at(&self, address: &str, key: &str) -> String {
        let seconds = DEADLINE.as_secs();
        let base = format!("alibabakms://{address}/{key}?deadline={seconds}");
        match self.access {
            Access::Fixed => format!("{base}&http=1"),
            Access::Temporary => format!("{base}&ca={FIXTURES}/ca.pem"),
            Access::ClientKey(file) => format!(
                "{base}&ca={FIXTURES}/ca.pem&client-key={FIXTURES}/{file}\
                 &client-key-password-file={FIXTURES}/client-key-password"
            ),
        }
    }

    fn environment(&self) -> Environment {
        let uri = format!("http://{}/credentials", self.server.plain);
        match self.access {
            Access::Temporary => Environment::of(&[
                ("ALIBABA_CLOUD_ECS_METADATA_DISABLED", "true"),
                ("ALIBABA_CLOUD_CREDENTIALS_URI", &uri),
            ]),
            _ => fixed(ACCESS_KEY),
        }
    }

    fn try_open(&self, uri: &str) -> Result<AlibabaProvider, KeyError> {
        AlibabaProvider::open(&AlibabaUri::parse(uri)?, &self.environment())
    }

    fn open(&self, uri: &str) -> Arc<dyn KeyProvider> {
        Arc::new(self.try_open(uri).unwrap())
    }
}

fn fixed((id, secret): (&str, &str)) -> Environment {
    Environment::of(&[
        ("ALIBABA_CLOUD_ACCESS_KEY_ID", id),
        ("ALIBABA_CLOUD_ACCESS_KEY_SECRET", secret),
    ])
}

impl Service for Peer {
    fn provider(&self) -> Arc<dyn KeyProvider> {
        self.open(&self.uri(KEY))
    }

    fn provider_of_missing_key(&self) -> Arc<dyn KeyProvider> {
        self.open(&self.uri("key-that-never-was"))
    }

    fn unreachable_provider(&self) -> Option<Arc<dyn KeyProvider>> {
        Some(self.open(&self.uri_at(ELSEWHERE, KEY)))
    }

    fn set_enabled(&self, enabled: bool) -> bool {
        let state = if enabled {
            State::Enabled
        } else {
            State::Disabled
        };
        self.server.change(|key| key.state = state);
        true
    }

    fn delete(&self) -> bool {
        self.server.world().keys.remove(KEY);
        true
    }

    fn rotate(&self) -> bool {
        // A hardware instance goes on with the first version.
        self.server.change(Key::rotate);
        self.kind == Kind::Software
    }

    fn set_allowed(&self, allowed: bool) -> bool {
        self.server.change(|key| key.denied = !allowed);
        true
    }

    fn set_mood(&self, mood: Mood) -> bool {
        let mut trouble = Trouble {
            calls: usize::MAX,
            ..Trouble::default()
        };
        match mood {
            Mood::Well => trouble.calls = 0,
            Mood::Throttling(calls) => {
                trouble.calls = calls;
                trouble.refusal = Some((429, "Rejected.Throttling"));
                trouble.retry_after_ms = Some(20);
            }
            Mood::Failing(calls) => {
                trouble.calls = calls;
                trouble.refusal = Some((500, "InternalFailure"));
            }
            Mood::Slow(delay) => trouble.delay = delay,
            Mood::Garbage => trouble.manner = Manner::Garbage,
            Mood::Oversized => trouble.manner = Manner::Endless,
            Mood::CutOff(calls) => {
                trouble.calls = calls;
                trouble.manner = Manner::CutOff;
            }
        }
        self.server.trouble(trouble);
        true
    }

    fn end_credentials(&self) -> bool {
        self.server.end_temporary_keys();
        self.access == Access::Temporary
    }
}

const LEGACY: Access = Access::ClientKey("client-key-legacy.json");
const PBES2: Access = Access::ClientKey("client-key-pbes2.json");

mod openapi {
    use super::*;
    conformance!(Peer::new(Kind::Software, Access::Fixed));
}

mod openapi_with_temporary_credentials {
    use super::*;
    conformance!(Peer::new(Kind::Hardware, Access::Temporary));
}

mod software_instance {
    use super::*;
    conformance!(Peer::new(Kind::Software, LEGACY));
}

mod hardware_instance {
    use super::*;
    conformance!(Peer::new(Kind::Hardware, PBES2));
}

macro_rules! assert_kind {
    ($result:expr, $kind:ident, $word:expr) => {
        match $result.map(drop) {
            Err(error @ KeyError::$kind { .. }) => {
                assert!(error.to_string().contains($word), "{error}");
            }
            other => panic!("{other:?}"),
        }
    };
}

fn generate(provider: &dyn KeyProvider) -> Result<(), KeyError> {
    provider.generate(&context(1), KeyLen::Bits256).map(drop)
}

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

/// Runs `kmsfs key check` with an access key.
fn key_check(peer: &Peer, secret: &str, uri: &str, more: &[&str]) -> (Option<i32>, String, String) {
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_kmsfs"))
        .args(["key", "check", uri])
        .args(more)
        .env_clear()
        .env("ALIBABA_CLOUD_ACCESS_KEY_ID", ACCESS_KEY.0)
        .env("ALIBABA_CLOUD_ACCESS_KEY_SECRET", secret)
        .output()
        .unwrap();
    assert!(peer.server.plain.ip().is_loopback());
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (
        output.status.code(),
        text(output.stdout),
        text(output.stderr),
    )
}

#[test]
fn key_check_says_what_a_key_can_do() {
    let peer = Peer::new(Kind::Software, Access::Fixed);
    let (code, out, err) = key_check(&peer, ACCESS_KEY.1, &peer.uri(ALIAS), &[]);
    assert_eq!((code, err.as_str()), (Some(0), ""));
    assert_eq!(
        out.lines().filter(|line| line.starts_with("ok ")).count(),
        5,
        "{out}"
    );
    assert!(
        out.contains("spec: Aliyun_AES_256") && out.contains(KEY),
        "{out}"
    );
    let (_, out, _) = key_check(&peer, ACCESS_KEY.1, &peer.uri(KEY), &["--json"]);
    let report: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!(report["usable"], true);
    assert_eq!(report["description"]["state"], "Enabled");
}

#[test]
fn key_check_says_what_is_missing() {
    let peer = Peer::new(Kind::Software, Access::Fixed);
    let check = |secret: &str, uri: &str| {
        let (code, _, err) = key_check(&peer, secret, uri, &[]);
        assert!(!err.contains(secret), "{err}");
        (code.unwrap(), err)
    };
    let fails = |expected: i32, word: &str, uri: &str| {
        let (code, err) = check(ACCESS_KEY.1, uri);
        assert_eq!(code, expected, "{err}");
        let hint = err.split("kmsfs: hint: ").nth(1).unwrap_or_default();
        assert!(hint.contains(word), "{err}");
    };
    let own = peer.uri(KEY);
    fails(20, "check the id", &peer.uri("key-none"));
    fails(23, "dedicated gateways", &peer.uri_at(ELSEWHERE, KEY));
    fails(25, "docs/KMS.md", "alibabakms://x/y?nosuch=1");
    peer.server.change(|key| key.state = State::Disabled);
    fails(21, "enable the key", &own);
    peer.server.change(|key| *key = Key::new(Kind::Service));
    fails(22, "service keys and default keys", &own);
    peer.server.change(|key| *key = Key::new(Kind::Software));
    peer.server.change(|key| key.denied = true);
    fails(22, "kms:GenerateDataKey", &own);
    peer.server.change(|key| key.denied = false);
    let (code, err) = check("a-wrong-secret", &own);
    assert_eq!(code, 22);
    assert!(
        err.contains("does not") || err.contains("not the one"),
        "{err}"
    );
    let show = std::process::Command::new(env!("CARGO_BIN_EXE_kmsfs"))
        .args(["key", "show", &own])
        .output()
        .unwrap();
    assert_eq!(show.status.code(), Some(25), "not of the embedded provider");
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
