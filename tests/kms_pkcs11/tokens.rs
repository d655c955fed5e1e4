//! What tokens have and services do not: PINs, modules, another program.

use std::process::Command;

use kmsfs::keys::{KeyError, PassphraseSource, open_provider};
use kmsfs::types::KeyLen;

use crate::conformance::{Service, context};
use crate::softhsm::{MODULE, PIN, Token, configuration};

fn generate(provider: &dyn kmsfs::keys::KeyProvider) -> Result<(), KeyError> {
    provider.generate(&context(1), KeyLen::Bits256).map(drop)
}

#[test]
fn a_wrong_pin_is_tried_once_and_another_one_is_taken_up() {
    let token = Token::new("aes-gcm");
    token.write_pin("00000");
    let provider = token.provider();
    for _ in 0..20 {
        let error = generate(&*provider).unwrap_err();
        assert!(matches!(error, KeyError::Denied { .. }), "{error:?}");
        assert!(!error.to_string().contains("00000"));
    }
    token.write_pin(PIN);
    generate(&*provider).expect("the token is not locked");
    token.set_pin(PIN, "86420");
    assert!(matches!(generate(&*provider), Err(KeyError::Denied { .. })));
    token.write_pin("86420");
    generate(&*provider).unwrap();
}

#[test]
fn a_second_key_of_one_id_is_refused() {
    let token = Token::new("aes-gcm");
    token.make_key(&[9]);
    let error = generate(&*token.provider()).unwrap_err();
    assert!(
        matches!(error, KeyError::Configuration { hint: Some(_), .. }),
        "{error:?}"
    );
}

#[test]
fn the_token_is_asked_for_the_best_mechanism() {
    let token = Token::new("aes-gcm");
    let provider = token
        .try_open(&token.uri("kek").replace("&mechanism=aes-gcm", ""))
        .unwrap();
    let (_, wrapped) = provider.generate(&context(1), KeyLen::Bits256).unwrap();
    assert_eq!(
        (wrapped.algorithm.as_str(), wrapped.iv.len()),
        ("aes-gcm", 12)
    );
    let text = format!("{wrapped:?}");
    assert!(!text.contains(MODULE) && !text.contains("pin"), "{text}");
    // What one mechanism wrapped, a provider that prefers another unwraps.
    let other = token
        .try_open(&token.uri("kek").replace("aes-gcm", "aes-key-wrap"))
        .unwrap();
    other.unwrap(&context(1), &wrapped).unwrap();
}

#[test]
fn a_volume_chooses_no_module_outside_of_the_system() {
    let dir = tempfile::tempdir().unwrap();
    let planted = dir.path().join("evil.so");
    std::fs::copy(MODULE, &planted).unwrap();
    let link = dir.path().join("link.so");
    std::os::unix::fs::symlink(MODULE, &link).unwrap();
    let token = Token::new("aes-gcm");
    let open = |module: &str| token.try_open(&token.uri("kek").replace(MODULE, module));
    let error = open(planted.to_str().unwrap()).err().unwrap();
    let KeyError::Configuration {
        hint: Some(hint), ..
    } = error
    else {
        panic!("{error:?}")
    };
    assert!(hint.contains("KMSFS_PKCS11_PATH"), "{hint}");
    open(link.to_str().unwrap()).expect("the file itself is what counts");
    open("/usr/lib/softhsm/../../bin/true")
        .err()
        .expect("not below /usr/lib");
    let named = token
        .uri("kek")
        .replace(&format!("module-path={MODULE}"), "module-name=softhsm2");
    generate(&*token.try_open(&named).unwrap()).unwrap();
}

#[test]
fn a_token_that_needs_a_pin_says_so() {
    let token = Token::new("aes-gcm");
    let uri = token.uri("kek");
    let pin_source = format!("&pin-source={}", token.pin_file().display());
    let uri = uri.replace(&pin_source, "");
    let error = open_provider(&uri, &PassphraseSource::Unattended)
        .err()
        .unwrap();
    assert!(error.to_string().contains("PIN of token"), "{error}");
    let from_file = PassphraseSource::File(token.pin_file());
    generate(&*open_provider(&uri, &from_file).unwrap()).unwrap();
}

#[test]
fn key_check_says_what_a_token_can_do_and_what_is_wrong() {
    let token = Token::new("aes-gcm");
    let check = |uri: &str| {
        let output = Command::new(env!("CARGO_BIN_EXE_kmsfs"))
            .args(["key", "check", uri])
            .env_clear()
            .env("SOFTHSM2_CONF", configuration())
            .output()
            .unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (
            output.status.code().unwrap(),
            text(output.stdout),
            text(output.stderr),
        )
    };
    let (code, out, err) = check(&token.uri("kek"));
    assert_eq!((code, err.as_str()), (0, ""), "{out}");
    assert!(
        out.contains("mechanism: aes-gcm") && out.contains("versions: 09"),
        "{out}"
    );
    let fails = |uri: &str, expected: i32, word: &str| {
        let (code, _, err) = check(uri);
        assert_eq!(code, expected, "{err}");
        let hint = err.split("kmsfs: hint: ").nth(1).unwrap_or_default();
        assert!(hint.contains(word), "{err}");
    };
    fails(&token.uri("nosuch"), 20, "pkcs11-tool");
    token.set_enabled(false);
    fails(&token.uri("kek"), 21, "CKA_ENCRYPT");
    token.set_enabled(true);
    token.write_pin("00000");
    fails(&token.uri("kek"), 22, "locks itself");
    fails(
        &token.uri("kek").replace("token%20", "no%20"),
        23,
        "label must match",
    );
    fails(
        &token.uri("kek").replace("libsofthsm2", "nosuch"),
        25,
        "module-path",
    );
    fails("pkcs11:token=t;object=k?pin-value=73519", 25, "pin-source");
}
