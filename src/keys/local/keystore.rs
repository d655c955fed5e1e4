//! The directory of named keys, and what `kmsfs key` does to them.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::document::{Document, State, Status};
use super::files::{self, Signature};
use super::protection::{Kdf, NewProtection, Protection, Salt};
use super::timestamp::Timestamp;
use super::wrap::KEY_LEN;
use crate::crypto::random;
use crate::keys::KeyError;
use crate::keys::passphrase::PassphraseSource;
use crate::keys::uri::{KeyUuid, LocalUri, is_key_name};
use crate::sys::durable::{self, DirectoryLock};
use crate::sys::secret::Secret;

const MODE: u32 = 0o600;

/// A key's name, and the key unless its file cannot be read.
pub type ListedKey = (String, Result<Document, KeyError>);

/// A keystore: one JSON file for each named key, and their key files.
///
/// Every change is made under the directory's lock and replaces the key's file
/// whole, so concurrent commands lose nothing and a crash leaves the old key or
/// the new one.
#[derive(Clone, Debug)]
pub struct Keystore {
    directory: PathBuf,
}

impl Keystore {
    /// The keystore at `directory`, made absolute.
    pub fn at(directory: &Path) -> Result<Self, KeyError> {
        let absolute = std::path::absolute(directory);
        let directory = absolute.map_err(|error| files::unreadable(directory, &error))?;
        Ok(Self { directory })
    }

    /// The keystore a URI names, or the default one: `$KMSFS_KEYSTORE`, else
    /// `$XDG_DATA_HOME/kmsfs/keys`, else `~/.local/share/kmsfs/keys`.
    pub fn of(uri: &LocalUri) -> Result<Self, KeyError> {
        if let Some(directory) = &uri.keystore {
            return Self::at(directory);
        }
        let directory = default_directory(|name| {
            std::env::var_os(name)
                .filter(|value| !value.is_empty())
                .map(PathBuf::from)
        });
        let directory = directory.ok_or_else(|| KeyError::Configuration {
            detail: "there is no default keystore, as HOME is not set".into(),
            hint: Some("set KMSFS_KEYSTORE or give --keystore".into()),
        })?;
        Self::at(&directory)
    }

    /// Where the keystore is; it need not exist yet.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    pub(crate) fn path_of(&self, name: &str) -> PathBuf {
        self.directory.join(format!("{name}.json"))
    }

    /// Every key by name; one whose file cannot be read gives its error.
    pub fn list(&self) -> Result<Vec<ListedKey>, KeyError> {
        let entries = match std::fs::read_dir(&self.directory) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(files::unreadable(&self.directory, &error)),
        };
        let mut names = Vec::new();
        for entry in entries {
            let entry = entry.map_err(|error| files::unreadable(&self.directory, &error))?;
            let file_name = entry.file_name();
            let name = file_name
                .to_str()
                .and_then(|name| name.strip_suffix(".json"));
            names.extend(name.filter(|name| is_key_name(name)).map(str::to_owned));
        }
        names.sort_unstable();
        Ok(names
            .into_iter()
            .map(|name| {
                let document = self.load(&name);
                (name, document)
            })
            .collect())
    }

    /// The key called `name`.
    pub fn load(&self, name: &str) -> Result<Document, KeyError> {
        self.load_signed(name).map(|(document, _)| document)
    }

    pub(crate) fn load_signed(&self, name: &str) -> Result<(Document, Signature), KeyError> {
        LocalUri::named(name)?;
        self.check_directory()?;
        let path = self.path_of(name);
        let Some((bytes, signature)) = files::read_private(&path)? else {
            return Err(KeyError::NotFound {
                key: format!("local:{name}"),
                detail: format!("{} has none", self.directory.display()),
            });
        };
        Ok((Document::parse(name, &path, &bytes)?, signature))
    }

    /// Makes a key. Its file and key file are on the disk when this returns.
    pub fn create(&self, name: &str, how: NewProtection) -> Result<Document, KeyError> {
        LocalUri::named(name)?;
        durable::create_private_directories(&self.directory)
            .map_err(|error| files::unreadable(&self.directory, &error))?;
        self.check_directory()?;
        if self.path_of(name).symlink_metadata().is_ok() {
            return Err(already_exists(name));
        }
        // Stretching takes long and needs no lock.
        let (protection, protector) = self.prepare(name, how)?;
        let document = Document::new(name, KeyUuid::random(), protection, &protector);
        self.store_new(&document)
            .or_else(|error| self.give_up(&document.protection, error))?;
        Ok(document)
    }

    fn store_new(&self, document: &Document) -> Result<(), KeyError> {
        let _lock = self.lock()?;
        if self.path_of(&document.name).symlink_metadata().is_ok() {
            return Err(already_exists(&document.name));
        }
        self.store(document)
    }

    /// Takes back a protection that was made in vain.
    fn give_up<T>(&self, protection: &Protection, error: KeyError) -> Result<T, KeyError> {
        self.remove_key_file(protection)?;
        Err(error)
    }

    /// Loads the key called `name`, or makes it with a key file.
    pub fn load_or_create(&self, name: &str) -> Result<Document, KeyError> {
        match self.load(name) {
            Err(KeyError::NotFound { .. }) => match self.create(name, NewProtection::Keyfile) {
                // Someone else made it in between.
                Err(KeyError::Configuration { .. }) => self.load(name),
                made => made,
            },
            loaded => loaded,
        }
    }

    /// Adds a version, which new data keys use from now on; returns its number.
    pub fn rotate(&self, name: &str, source: &PassphraseSource) -> Result<u32, KeyError> {
        let before = self.load(name)?;
        let protector = self.unlock(&before, source)?;
        self.update(name, |document| {
            require_unchanged(&before, document)?;
            document.require_enabled()?;
            Ok(document.add_version(&protector))
        })
    }

    /// Protects the key anew: another passphrase, or a key file instead of one.
    /// The versions stay what they are.
    pub fn protect_anew(
        &self,
        name: &str,
        source: &PassphraseSource,
        how: impl FnOnce() -> Result<NewProtection, KeyError>,
    ) -> Result<(), KeyError> {
        let before = self.load(name)?;
        let old = self.unlock(&before, source)?;
        let (protection, new) = self.prepare(name, how()?)?;
        self.update(name, |document| {
            require_unchanged(&before, document)?;
            document.protect_anew(&old, protection.clone(), &new)
        })
        .or_else(|error| self.give_up(&protection, error))?;
        self.remove_key_file(&before.protection)
    }

    /// Enables or disables a key, or one version of it.
    pub fn set_state(
        &self,
        name: &str,
        version: Option<u32>,
        state: State,
    ) -> Result<(), KeyError> {
        self.update(name, |document| match version {
            None if document.delete_after.is_some() && state == State::Enabled => {
                Err(KeyError::Configuration {
                    detail: format!("key local:{name} is scheduled for deletion"),
                    hint: Some(format!("kmsfs key cancel-deletion {name}")),
                })
            }
            None => {
                document.state = state;
                Ok(())
            }
            Some(number) => {
                let index = (number as usize).wrapping_sub(1);
                let found = document.versions.get_mut(index);
                let version = found.ok_or_else(|| KeyError::NotFound {
                    key: format!("local:{name}"),
                    detail: format!("it has no version {number}"),
                })?;
                version.state = state;
                Ok(())
            }
        })
    }

    /// Makes the key unusable now and deletable in `days` days; returns when.
    pub fn schedule_deletion(&self, name: &str, days: u32) -> Result<Timestamp, KeyError> {
        self.update(name, |document| {
            let date = Timestamp::now().plus_days(days);
            document.delete_after = Some(date);
            Ok(date)
        })
    }

    /// Takes a scheduled deletion back: the key is again what it was before.
    pub fn cancel_deletion(&self, name: &str) -> Result<Status, KeyError> {
        self.update(name, |document| match document.delete_after.take() {
            Some(_) => Ok(document.status()),
            None => Err(KeyError::Configuration {
                detail: format!("key local:{name} is not scheduled for deletion"),
                hint: None,
            }),
        })
    }

    /// Deletes the key and its key file; only once its date has come, unless
    /// `force`d. What it wrapped can never be read again.
    pub fn delete(&self, name: &str, force: bool) -> Result<(), KeyError> {
        self.check_directory()?;
        let _lock = self.lock_existing(name)?;
        let document = self.load(name)?;
        let due = document
            .delete_after
            .is_some_and(|date| date <= Timestamp::now());
        if !due && !force {
            return Err(KeyError::Configuration {
                detail: match document.delete_after {
                    Some(date) => format!("key local:{name} may be deleted from {date} on"),
                    None => format!("key local:{name} is not scheduled for deletion"),
                },
                hint: Some(match document.delete_after {
                    Some(_) => "--force deletes it now, and all it protects for good".into(),
                    None => format!("kmsfs key schedule-deletion {name}"),
                }),
            });
        }
        let path = self.path_of(name);
        durable::remove(&path).map_err(|error| files::unreadable(&path, &error))?;
        self.remove_key_file(&document.protection)
    }

    /// The wrapping key of the document's versions, proven to be the right one.
    pub(crate) fn unlock(
        &self,
        document: &Document,
        source: &PassphraseSource,
    ) -> Result<Secret, KeyError> {
        let protection = &document.protection;
        let protector = protection.unlock(&self.directory, &document.name, source)?;
        document.require_protector(&protector)?;
        Ok(protector)
    }

    /// Makes the protection of a key and what it wraps under.
    fn prepare(&self, name: &str, how: NewProtection) -> Result<(Protection, Secret), KeyError> {
        let file = match how {
            NewProtection::Passphrase(passphrase, cost) => {
                let salt = Salt::random();
                let protector = cost.stretch(&passphrase, &salt)?;
                let kdf = Kdf::Argon2id;
                return Ok((Protection::Passphrase { kdf, cost, salt }, protector));
            }
            // Never the name alone: a key file left from an earlier key of the
            // same name may be needed with a backup of that key.
            NewProtection::Keyfile => format!("{name}.{}.keyfile", KeyUuid::random()).into(),
            NewProtection::KeyfileAt(path) => {
                std::path::absolute(&path).map_err(|error| files::unreadable(&path, &error))?
            }
        };
        let path = self.directory.join(&file);
        let mut fresh = Secret::zeroed(KEY_LEN);
        random::fill(&mut fresh);
        let protector = match durable::write_new(&path, &fresh, MODE) {
            Ok(()) => fresh,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                files::read_key_bytes(&path)?
            }
            Err(error) => return Err(files::unreadable(&path, &error)),
        };
        Ok((Protection::Keyfile { file }, protector))
    }

    /// Removes a key file that kmsfs made; one elsewhere is its owner's.
    fn remove_key_file(&self, protection: &Protection) -> Result<(), KeyError> {
        match protection {
            Protection::Keyfile { file } if file.is_relative() => {
                let path = self.directory.join(file);
                match durable::remove(&path) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => {
                        Err(files::unreadable(&path, &error))
                    }
                    _ => Ok(()),
                }
            }
            _ => Ok(()),
        }
    }

    fn update<T>(
        &self,
        name: &str,
        change: impl FnOnce(&mut Document) -> Result<T, KeyError>,
    ) -> Result<T, KeyError> {
        let _lock = self.lock_existing(name)?;
        let mut document = self.load(name)?;
        let result = change(&mut document)?;
        self.store(&document)?;
        Ok(result)
    }

    fn store(&self, document: &Document) -> Result<(), KeyError> {
        let path = self.path_of(&document.name);
        durable::replace(&path, &document.to_json(), MODE)
            .map_err(|error| files::unreadable(&path, &error))
    }

    fn lock(&self) -> Result<DirectoryLock, KeyError> {
        durable::lock_directory(&self.directory)
            .map_err(|error| files::unreadable(&self.directory, &error))
    }

    /// The lock, or the error that tells what is missing without a keystore.
    fn lock_existing(&self, name: &str) -> Result<DirectoryLock, KeyError> {
        self.load(name)?;
        self.lock()
    }

    /// Refuses a keystore in which others could replace keys.
    fn check_directory(&self) -> Result<(), KeyError> {
        let metadata = match self.directory.metadata() {
            Ok(metadata) => metadata,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(files::unreadable(&self.directory, &error)),
        };
        let shown = self.directory.display();
        let problem = if !metadata.is_dir() {
            "is not a directory"
        } else if metadata.mode() & 0o022 != 0 {
            "may be written by others"
        } else {
            return Ok(());
        };
        Err(KeyError::Configuration {
            detail: format!("the keystore {shown} {problem}"),
            hint: metadata.is_dir().then(|| format!("chmod 700 {shown}")),
        })
    }
}

fn default_directory(variable: impl Fn(&str) -> Option<PathBuf>) -> Option<PathBuf> {
    if let Some(directory) = variable("KMSFS_KEYSTORE") {
        return Some(directory);
    }
    let data = variable("XDG_DATA_HOME")
        // The specification says to ignore a relative one.
        .filter(|path| path.is_absolute())
        .or_else(|| variable("HOME").map(|home| home.join(".local/share")))?;
    Some(data.join("kmsfs/keys"))
}

fn already_exists(name: &str) -> KeyError {
    KeyError::Configuration {
        detail: format!("key local:{name} already exists"),
        hint: Some(format!(
            "kmsfs key rotate {name} gives it a new version; or choose another name"
        )),
    }
}

fn require_unchanged(before: &Document, now: &Document) -> Result<(), KeyError> {
    if before.uuid == now.uuid && before.protection == now.protection {
        return Ok(());
    }
    Err(KeyError::Configuration {
        detail: format!("key local:{} was changed by another command", now.name),
        hint: Some("try again".into()),
    })
}

#[cfg(test)]
#[path = "keystore_tests.rs"]
mod tests;
