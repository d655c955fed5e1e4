use parking_lot::Mutex;
use zeroize::Zeroizing;

use super::*;
use crate::keys::local::{Argon2Cost, NewProtection, Status};
use crate::keys::passphrase::Passphrase;
use crate::types::{FileId, KeyLen, VolumeId};

const UNATTENDED: PassphraseSource = PassphraseSource::Unattended;
const CONTEXT: KeyContext = KeyContext {
    volume: VolumeId([1; 16]),
    file: FileId([2; 16]),
};

#[derive(Default)]
struct FakeClock(Mutex<Duration>);

impl Clock for FakeClock {
    fn now(&self) -> Duration {
        *self.0.lock()
    }
}

struct World {
    _dir: tempfile::TempDir,
    keystore: Keystore,
    uri: LocalUri,
    clock: Arc<FakeClock>,
}

impl World {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let keystore = Keystore::at(&dir.path().join("keys")).unwrap();
        keystore.create("k", NewProtection::Keyfile).unwrap();
        let uri = LocalUri {
            keystore: Some(keystore.directory().to_owned()),
            ..LocalUri::named("k").unwrap()
        };
        Self {
            _dir: dir,
            keystore,
            uri,
            clock: Arc::default(),
        }
    }

    fn open(&self) -> LocalProvider {
        let clock = Arc::clone(&self.clock) as Arc<dyn Clock>;
        LocalProvider::open_with_clock(&self.uri, &UNATTENDED, clock).unwrap()
    }

    fn a_second_passes(&self) {
        *self.clock.0.lock() += BELIEVED;
    }
}

fn resolved(provider: &LocalProvider) -> LocalUri {
    match KeyUri::parse(provider.uri()).unwrap() {
        KeyUri::Local(uri) => uri,
        KeyUri::Service(uri) => panic!("{uri}"),
    }
}

fn generate(provider: &LocalProvider) -> (DataKey, WrappedKey) {
    provider.generate(&CONTEXT, KeyLen::Bits256).unwrap()
}

#[test]
fn data_keys_of_every_length_come_back() {
    let world = World::new();
    let provider = world.open();
    for len in [KeyLen::Bits128, KeyLen::Bits192, KeyLen::Bits256] {
        let (key, wrapped) = provider.generate(&CONTEXT, len).unwrap();
        assert_eq!(key.len(), len);
        assert_eq!(wrapped.ciphertext.len(), len.bytes() + wrap::OVERHEAD);
        assert_eq!(wrapped.key_version, "1");
        let again = world.open().unwrap(&CONTEXT, &wrapped).unwrap();
        assert_eq!(again.expose(), key.expose());
    }
    let (one, other) = (generate(&provider), generate(&provider));
    assert_ne!(one.0.expose(), other.0.expose());
    assert!(provider.is_local());
}

#[test]
fn the_resolved_uri_names_the_very_key_and_not_its_place() {
    let world = World::new();
    let provider = world.open();
    let uuid = world.keystore.load("k").unwrap().uuid;
    let (_, wrapped) = generate(&provider);
    assert_eq!(wrapped.key_uri, format!("local:k#{uuid}"));
    assert!(provider.uri().contains("?keystore=/"));
    let resolved = resolved(&provider);
    assert_eq!(resolved.uuid, Some(uuid));
    LocalProvider::open(&resolved, &UNATTENDED).unwrap();
}

#[test]
fn any_other_context_is_rejected() {
    let world = World::new();
    let provider = world.open();
    let (_, wrapped) = generate(&provider);
    let others = [
        KeyContext {
            file: FileId([3; 16]),
            ..CONTEXT
        },
        KeyContext {
            volume: VolumeId([3; 16]),
            ..CONTEXT
        },
    ];
    for context in others {
        let error = provider.unwrap(&context, &wrapped).unwrap_err();
        assert!(matches!(error, KeyError::Rejected { .. }), "{error:?}");
    }
}

#[test]
fn any_change_of_the_wrapped_key_is_rejected() {
    let world = World::new();
    world.keystore.rotate("k", &UNATTENDED).unwrap();
    let provider = world.open();
    let (_, wrapped) = generate(&provider);
    let rejected = |bad: &WrappedKey| {
        matches!(
            provider.unwrap(&CONTEXT, bad),
            Err(KeyError::Rejected { .. })
        )
    };
    for index in 0..wrapped.ciphertext.len() {
        let mut bad = wrapped.clone();
        bad.ciphertext[index] ^= 1;
        assert!(rejected(&bad), "byte {index}");
        bad.ciphertext.truncate(index);
        assert!(rejected(&bad), "cut to {index}");
    }
    let mut bad = wrapped.clone();
    bad.key_version = "1".into();
    assert!(rejected(&bad), "another version's key");
    for version in ["0", "3", "", "x", "-1", "99999999999"] {
        bad.key_version = version.into();
        let error = provider.unwrap(&CONTEXT, &bad).unwrap_err();
        assert!(matches!(error, KeyError::NotFound { .. }), "{version:?}");
    }
}

#[test]
fn old_versions_still_unwrap_after_rotation() {
    let world = World::new();
    let provider = world.open();
    let (key, old) = generate(&provider);
    world.keystore.rotate("k", &UNATTENDED).unwrap();
    assert_eq!(generate(&provider).1.key_version, "1", "still believed");
    world.a_second_passes();
    assert_eq!(generate(&provider).1.key_version, "2");
    assert_eq!(
        provider.unwrap(&CONTEXT, &old).unwrap().expose(),
        key.expose()
    );
    let new = provider.rewrap(&CONTEXT, &old).unwrap();
    assert_eq!(new.key_version, "2");
    assert_eq!(
        provider.unwrap(&CONTEXT, &new).unwrap().expose(),
        key.expose()
    );
}

#[test]
fn a_live_provider_follows_the_key_state() {
    let world = World::new();
    let provider = world.open();
    let (_, wrapped) = generate(&provider);
    let refused = || {
        world.a_second_passes();
        let unwrap = provider.unwrap(&CONTEXT, &wrapped).map(drop);
        let generate = provider.generate(&CONTEXT, KeyLen::Bits256).map(drop);
        match (unwrap, generate) {
            (Ok(()), Ok(())) => false,
            (Err(KeyError::Disabled { .. }), Err(KeyError::Disabled { .. })) => true,
            other => panic!("{other:?}"),
        }
    };
    let keystore = &world.keystore;
    assert!(!refused());
    keystore.set_state("k", None, State::Disabled).unwrap();
    assert!(refused());
    keystore.set_state("k", None, State::Enabled).unwrap();
    assert!(!refused());
    keystore.schedule_deletion("k", 7).unwrap();
    assert!(refused());
    assert_eq!(keystore.cancel_deletion("k").unwrap(), Status::Enabled);
    assert!(!refused());
    keystore.set_state("k", Some(1), State::Disabled).unwrap();
    assert!(refused());
    keystore.rotate("k", &UNATTENDED).unwrap();
    world.a_second_passes();
    assert_eq!(generate(&provider).1.key_version, "2");
    assert!(provider.unwrap(&CONTEXT, &wrapped).is_err());
}

#[test]
fn a_deleted_or_recreated_key_is_not_found() {
    let world = World::new();
    let provider = world.open();
    let (_, wrapped) = generate(&provider);
    let resolved = resolved(&provider);
    let not_found = |result: Result<DataKey, KeyError>| {
        assert!(
            matches!(result, Err(KeyError::NotFound { .. })),
            "{result:?}"
        );
    };
    world.keystore.delete("k", true).unwrap();
    world.a_second_passes();
    not_found(provider.unwrap(&CONTEXT, &wrapped));
    world.keystore.create("k", NewProtection::Keyfile).unwrap();
    world.a_second_passes();
    not_found(provider.unwrap(&CONTEXT, &wrapped));
    not_found(world.open().unwrap(&CONTEXT, &wrapped));
    let error = LocalProvider::open(&resolved, &UNATTENDED).err().unwrap();
    assert!(matches!(error, KeyError::NotFound { .. }));
}

#[test]
fn a_file_that_comes_back_works_again() {
    let world = World::new();
    let provider = world.open();
    let (_, wrapped) = generate(&provider);
    let path = world.keystore.path_of("k");
    let away = path.with_extension("away");
    std::fs::rename(&path, &away).unwrap();
    world.a_second_passes();
    assert!(provider.unwrap(&CONTEXT, &wrapped).is_err());
    std::fs::rename(&away, &path).unwrap();
    world.a_second_passes();
    provider.unwrap(&CONTEXT, &wrapped).unwrap();
}

#[test]
fn a_live_provider_survives_a_change_of_protection() {
    let world = World::new();
    let provider = world.open();
    let (_, wrapped) = generate(&provider);
    let text = Zeroizing::new(b"secret".to_vec());
    let typed = world.keystore.directory().join("typed");
    std::fs::write(&typed, "secret").unwrap();
    let source = PassphraseSource::File(typed);
    let keystore = &world.keystore;
    let how = NewProtection::Passphrase(Passphrase::new(text).unwrap(), Argon2Cost::MIN);
    keystore.protect_anew("k", &UNATTENDED, || Ok(how)).unwrap();
    keystore.rotate("k", &source).unwrap();
    world.a_second_passes();
    provider.unwrap(&CONTEXT, &wrapped).unwrap();
    assert_eq!(
        generate(&provider).1.key_version,
        "1",
        "2 needs the passphrase"
    );
    keystore
        .protect_anew("k", &source, || Ok(NewProtection::Keyfile))
        .unwrap();
    world.a_second_passes();
    assert_eq!(generate(&provider).1.key_version, "2");
}
