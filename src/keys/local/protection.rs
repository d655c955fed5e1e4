//! What a local key's versions are wrapped under: a key file's random bytes, or
//! a passphrase stretched with Argon2id.

use std::path::{Path, PathBuf};

use argon2::{Algorithm, Argon2, Block, Params, Version};
use serde::{Deserialize, Serialize};
use zeroize::Zeroize;

use super::files;
use super::wrap::KEY_LEN;
use crate::crypto::random;
use crate::keys::KeyError;
use crate::keys::passphrase::{Passphrase, PassphraseSource};
use crate::sys::secret::Secret;

const SALT_LEN: usize = 16;

/// How a key file on disk says its versions are protected.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Protection {
    /// Thirty-two random bytes in a file of their own.
    Keyfile {
        /// The file; relative to the keystore, or absolute.
        file: PathBuf,
    },
    /// Argon2id of a passphrase.
    Passphrase {
        /// The stretching function.
        kdf: Kdf,
        /// The stretching's cost.
        #[serde(flatten)]
        cost: Argon2Cost,
        /// The salt.
        salt: Salt,
    },
}

impl Protection {
    /// The keyword that files and listings show.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Keyfile { .. } => "keyfile",
            Self::Passphrase { .. } => "passphrase",
        }
    }

    /// Refuses costs that are a weakness or a denial of service.
    pub(crate) fn check(&self) -> Result<(), String> {
        match self {
            Self::Keyfile { .. } => Ok(()),
            Self::Passphrase { cost, .. } => cost.check(),
        }
    }

    /// The wrapping key of the versions of the key called `name`.
    pub(crate) fn unlock(
        &self,
        keystore: &Path,
        name: &str,
        source: &PassphraseSource,
    ) -> Result<Secret, KeyError> {
        match self {
            Self::Keyfile { file } => files::read_key_bytes(&keystore.join(file)),
            Self::Passphrase { cost, salt, .. } => {
                // Checked first: no one should type a passphrase into a file
                // whose parameters were weakened.
                cost.check().map_err(unusable)?;
                let passphrase = source.read(&format!("passphrase of key local:{name}"))?;
                cost.stretch(&passphrase, salt)
            }
        }
    }
}

/// The function that stretches passphrases, named in files for their readers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kdf {
    /// Argon2id, version 0x13.
    Argon2id,
}

/// How to protect a key that is made or protected anew.
#[derive(Debug)]
pub enum NewProtection {
    /// A random key file made inside the keystore.
    Keyfile,
    /// A key file at this absolute path, made if it is missing.
    KeyfileAt(PathBuf),
    /// A passphrase, stretched at this cost.
    Passphrase(Passphrase, Argon2Cost),
}

/// A random salt, in hexadecimal in files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Salt([u8; SALT_LEN]);

impl Salt {
    pub(crate) fn random() -> Self {
        Self(random::bytes())
    }
}

impl TryFrom<String> for Salt {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        let bytes = data_encoding::HEXLOWER.decode(text.as_bytes());
        let salt = bytes.ok().and_then(|bytes| bytes.try_into().ok());
        salt.map(Self)
            .ok_or("a salt is 32 lowercase hexadecimal digits")
    }
}

impl From<Salt> for String {
    fn from(salt: Salt) -> Self {
        data_encoding::HEXLOWER.encode(&salt.0)
    }
}

/// Argon2id's cost parameters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Argon2Cost {
    /// Memory in KiB.
    pub memory_kib: u32,
    /// Passes over the memory.
    pub iterations: u32,
    /// Lanes.
    pub parallelism: u32,
}

impl Default for Argon2Cost {
    /// RFC 9106's second recommendation with one lane: 64 MiB, three passes.
    fn default() -> Self {
        Self {
            memory_kib: 64 * 1024,
            iterations: 3,
            parallelism: 1,
        }
    }
}

impl Argon2Cost {
    /// The least that is accepted: OWASP's minimum of 19 MiB and two passes.
    pub const MIN: Self = Self {
        memory_kib: 19 * 1024,
        iterations: 2,
        parallelism: 1,
    };
    /// The most that is accepted, so that a key file cannot exhaust the host.
    pub const MAX: Self = Self {
        memory_kib: 4 * 1024 * 1024,
        iterations: 64,
        parallelism: 16,
    };

    /// Says what is wrong with the cost, if it is out of bounds.
    pub fn check(&self) -> Result<(), String> {
        let bounds = [
            (
                "memory in KiB",
                self.memory_kib,
                Self::MIN.memory_kib,
                Self::MAX.memory_kib,
            ),
            (
                "passes",
                self.iterations,
                Self::MIN.iterations,
                Self::MAX.iterations,
            ),
            (
                "lanes",
                self.parallelism,
                Self::MIN.parallelism,
                Self::MAX.parallelism,
            ),
        ];
        for (what, value, least, most) in bounds {
            if !(least..=most).contains(&value) {
                return Err(format!(
                    "argon2id {what} is {value}, allowed are {least} to {most}"
                ));
            }
        }
        Ok(())
    }

    /// Argon2id, version 0x13, of `passphrase`.
    pub(crate) fn stretch(&self, passphrase: &Passphrase, salt: &Salt) -> Result<Secret, KeyError> {
        self.check().map_err(unusable)?;
        let params = Params::new(
            self.memory_kib,
            self.iterations,
            self.parallelism,
            Some(KEY_LEN),
        )
        .map_err(|error| unusable(error.to_string()))?;
        let count = params.block_count();
        let mut blocks: Vec<Block> = Vec::new();
        blocks.try_reserve_exact(count).map_err(|_| {
            unusable(format!(
                "there is no memory for {} KiB of argon2id",
                self.memory_kib
            ))
        })?;
        blocks.resize(count, Block::default());
        let mut key = Secret::zeroed(KEY_LEN);
        let done = Argon2::new(Algorithm::Argon2id, Version::V0x13, params)
            .hash_password_into_with_memory(passphrase.expose(), &salt.0, &mut key, &mut blocks);
        blocks.iter_mut().for_each(Zeroize::zeroize);
        done.map_err(|error| unusable(error.to_string()))?;
        Ok(key)
    }
}

fn unusable(detail: String) -> KeyError {
    KeyError::Configuration { detail, hint: None }
}

#[cfg(test)]
mod tests {
    use super::*;
    use zeroize::Zeroizing;

    fn passphrase(text: &str) -> Passphrase {
        Passphrase::new(Zeroizing::new(text.as_bytes().to_vec())).unwrap()
    }

    #[test]
    fn costs_are_bounded_on_both_sides() {
        let good = Argon2Cost::default();
        assert!(good.check().is_ok() && Argon2Cost::MIN.check().is_ok());
        assert!(Argon2Cost::MAX.check().is_ok());
        let bad = [
            Argon2Cost {
                memory_kib: 4 * 1024 * 1024 + 1,
                ..good
            },
            Argon2Cost {
                memory_kib: 8 * 1024,
                ..good
            },
            Argon2Cost {
                iterations: 65,
                ..good
            },
            Argon2Cost {
                iterations: 1,
                ..good
            },
            Argon2Cost {
                parallelism: 17,
                ..good
            },
            Argon2Cost {
                parallelism: 0,
                ..good
            },
        ];
        for cost in bad {
            assert!(cost.check().is_err(), "{cost:?}");
            assert!(
                cost.stretch(&passphrase("x"), &Salt([0; SALT_LEN]))
                    .is_err()
            );
        }
    }

    #[test]
    fn the_same_passphrase_and_salt_give_the_same_key() {
        let stretch = |text: &str, salt: u8| {
            let key = Argon2Cost::MIN.stretch(&passphrase(text), &Salt([salt; SALT_LEN]));
            key.unwrap().to_vec()
        };
        let key = stretch("correct horse", 1);
        assert_eq!(key.len(), KEY_LEN);
        assert_eq!(key, stretch("correct horse", 1));
        assert_ne!(key, stretch("correct horse", 2));
        assert_ne!(key, stretch("correct hors", 1));
    }

    #[test]
    fn weak_parameters_are_refused_before_the_passphrase_is_read() {
        let weak = Protection::Passphrase {
            kdf: Kdf::Argon2id,
            cost: Argon2Cost {
                memory_kib: 64,
                ..Argon2Cost::MIN
            },
            salt: Salt::random(),
        };
        let error = weak
            .unlock(Path::new("/"), "k", &PassphraseSource::Unattended)
            .unwrap_err();
        assert!(error.to_string().contains("argon2id memory"), "{error}");
    }

    #[test]
    fn json_shows_the_parameters() {
        let protection = Protection::Passphrase {
            kdf: Kdf::Argon2id,
            cost: Argon2Cost::MIN,
            salt: Salt([0xab; SALT_LEN]),
        };
        let json = serde_json::to_string(&protection).unwrap();
        for part in [
            "\"type\":\"passphrase\"",
            "\"kdf\":\"argon2id\"",
            "\"memory_kib\":19456",
            "\"salt\":\"abab",
        ] {
            assert!(json.contains(part), "{json}");
        }
        assert_eq!(
            serde_json::from_str::<Protection>(&json).unwrap(),
            protection
        );
    }
}
