use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;

use zeroize::Zeroizing;

use super::*;
use crate::keys::local::Argon2Cost;
use crate::keys::passphrase::Passphrase;

const UNATTENDED: PassphraseSource = PassphraseSource::Unattended;

fn keystore() -> (tempfile::TempDir, Keystore) {
    let dir = tempfile::tempdir().unwrap();
    let keystore = Keystore::at(&dir.path().join("a/keys")).unwrap();
    (dir, keystore)
}

fn passphrase(text: &str) -> NewProtection {
    let text = Zeroizing::new(text.as_bytes().to_vec());
    NewProtection::Passphrase(Passphrase::new(text).unwrap(), Argon2Cost::MIN)
}

fn typed(dir: &tempfile::TempDir, text: &str) -> PassphraseSource {
    let path = dir.path().join("typed");
    std::fs::write(&path, text).unwrap();
    PassphraseSource::File(path)
}

fn mode(path: &Path) -> u32 {
    path.metadata().unwrap().permissions().mode() & 0o7777
}

#[test]
fn the_default_directory_follows_the_environment() {
    let with = |pairs: &[(&str, &str)]| {
        default_directory(|name| {
            let found = pairs.iter().find(|(key, _)| *key == name);
            found.map(|(_, value)| PathBuf::from(value))
        })
    };
    let all = [
        ("KMSFS_KEYSTORE", "/k"),
        ("XDG_DATA_HOME", "/d"),
        ("HOME", "/h"),
    ];
    assert_eq!(with(&all), Some("/k".into()));
    assert_eq!(with(&all[1..]), Some("/d/kmsfs/keys".into()));
    assert_eq!(with(&all[2..]), Some("/h/.local/share/kmsfs/keys".into()));
    let relative = [("XDG_DATA_HOME", "d"), ("HOME", "/h")];
    assert_eq!(with(&relative), Some("/h/.local/share/kmsfs/keys".into()));
    assert_eq!(with(&[]), None);
}

#[test]
fn a_new_key_is_private_to_its_owner() {
    let (_dir, keystore) = keystore();
    assert!(keystore.list().unwrap().is_empty());
    let document = keystore.create("k", NewProtection::Keyfile).unwrap();
    assert_eq!(mode(keystore.directory()), 0o700);
    assert_eq!(mode(&keystore.path_of("k")), 0o600);
    let Protection::Keyfile { file } = &document.protection else {
        panic!()
    };
    assert_eq!(mode(&keystore.directory().join(file)), 0o600);
    assert_eq!(keystore.load("k").unwrap(), document);
    keystore.unlock(&document, &UNATTENDED).unwrap();
    assert!(matches!(
        keystore.create("k", NewProtection::Keyfile),
        Err(KeyError::Configuration { .. })
    ));
    assert_eq!(keystore.load_or_create("k").unwrap(), document);
    assert_eq!(keystore.list().unwrap().len(), 1);
    let files = std::fs::read_dir(keystore.directory()).unwrap().count();
    assert_eq!(files, 2, "a refused command leaves no key file behind");
}

#[test]
fn loose_permissions_are_refused() {
    let (_dir, keystore) = keystore();
    let document = keystore.create("k", NewProtection::Keyfile).unwrap();
    let loosen = |path: &Path, mode: u32| {
        std::fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    };
    loosen(&keystore.path_of("k"), 0o640);
    assert!(keystore.load("k").is_err());
    assert!(keystore.list().unwrap()[0].1.is_err());
    loosen(&keystore.path_of("k"), 0o600);
    loosen(keystore.directory(), 0o770);
    assert!(keystore.load("k").is_err());
    assert!(keystore.create("other", NewProtection::Keyfile).is_err());
    loosen(keystore.directory(), 0o700);
    let Protection::Keyfile { file } = &document.protection else {
        panic!()
    };
    loosen(&keystore.directory().join(file), 0o604);
    assert!(keystore.unlock(&document, &UNATTENDED).is_err());
}

#[test]
fn states_follow_the_commands() {
    let (_dir, keystore) = keystore();
    keystore.create("k", NewProtection::Keyfile).unwrap();
    let status = || keystore.load("k").unwrap().status();
    assert_eq!(status(), Status::Enabled);
    keystore.set_state("k", None, State::Disabled).unwrap();
    assert_eq!(status(), Status::Disabled);
    assert!(keystore.rotate("k", &UNATTENDED).is_err());
    let date = keystore.schedule_deletion("k", 30).unwrap();
    assert_eq!(status(), Status::ScheduledForDeletion(date));
    assert!(keystore.set_state("k", None, State::Enabled).is_err());
    assert!(keystore.delete("k", false).is_err(), "before its date");
    assert_eq!(keystore.cancel_deletion("k").unwrap(), Status::Disabled);
    assert!(keystore.cancel_deletion("k").is_err());
    keystore.set_state("k", None, State::Enabled).unwrap();
    assert_eq!(status(), Status::Enabled);
    keystore.set_state("k", Some(1), State::Disabled).unwrap();
    assert_eq!(
        keystore.load("k").unwrap().versions[0].state,
        State::Disabled
    );
    for missing in [0, 2, u32::MAX] {
        let error = keystore.set_state("k", Some(missing), State::Enabled);
        assert!(matches!(error, Err(KeyError::NotFound { .. })));
    }
}

#[test]
fn deleting_waits_for_the_date_and_takes_the_key_file_along() {
    let (_dir, keystore) = keystore();
    keystore.create("k", NewProtection::Keyfile).unwrap();
    assert!(keystore.delete("k", false).is_err(), "not scheduled");
    keystore.schedule_deletion("k", 0).unwrap();
    keystore.delete("k", false).unwrap();
    assert!(matches!(keystore.load("k"), Err(KeyError::NotFound { .. })));
    keystore.create("k", NewProtection::Keyfile).unwrap();
    keystore.delete("k", true).unwrap();
    let left = std::fs::read_dir(keystore.directory()).unwrap().count();
    assert_eq!(left, 0);
    assert!(keystore.delete("k", true).is_err());
}

#[test]
fn a_key_file_elsewhere_is_used_and_kept() {
    let (dir, keystore) = keystore();
    let stick = dir.path().join("stick.key");
    let how = || NewProtection::KeyfileAt(stick.clone());
    let first = keystore.create("a", how()).unwrap();
    let second = keystore.create("b", how()).unwrap();
    keystore.unlock(&first, &UNATTENDED).unwrap();
    keystore.unlock(&second, &UNATTENDED).unwrap();
    keystore.delete("a", true).unwrap();
    assert!(stick.exists());
    std::fs::remove_file(&stick).unwrap();
    assert!(keystore.unlock(&second, &UNATTENDED).is_err());
}

#[test]
fn passphrases_protect_and_change() {
    let (dir, keystore) = keystore();
    keystore.create("k", passphrase("one")).unwrap();
    let wrong = keystore.rotate("k", &typed(&dir, "two"));
    assert!(matches!(wrong, Err(KeyError::Denied { .. })));
    assert_eq!(keystore.load("k").unwrap().versions.len(), 1);
    assert_eq!(keystore.rotate("k", &typed(&dir, "one")).unwrap(), 2);
    let change =
        |from: &str, to: NewProtection| keystore.protect_anew("k", &typed(&dir, from), || Ok(to));
    assert!(change("two", passphrase("three")).is_err());
    change("one", passphrase("two")).unwrap();
    assert_eq!(keystore.rotate("k", &typed(&dir, "two")).unwrap(), 3);
    change("two", NewProtection::Keyfile).unwrap();
    assert_eq!(keystore.rotate("k", &UNATTENDED).unwrap(), 4);
    change("", passphrase("four")).unwrap();
    let files = std::fs::read_dir(keystore.directory()).unwrap().count();
    assert_eq!(files, 1, "the key file is gone");
    assert_eq!(keystore.rotate("k", &typed(&dir, "four")).unwrap(), 5);
}

#[test]
fn concurrent_commands_lose_no_update() {
    let (_dir, keystore) = keystore();
    keystore.create("k", NewProtection::Keyfile).unwrap();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..5 {
                    keystore.rotate("k", &UNATTENDED).unwrap();
                }
            });
        }
    });
    assert_eq!(keystore.load("k").unwrap().versions.len(), 21);
}

#[test]
fn names_cannot_leave_the_keystore() {
    let (_dir, keystore) = keystore();
    for name in ["../k", "", ".k", "a/b"] {
        assert!(keystore.create(name, NewProtection::Keyfile).is_err());
        assert!(keystore.load(name).is_err());
        assert!(keystore.delete(name, true).is_err());
    }
}
