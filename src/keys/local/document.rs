//! One named key as its file in the keystore describes it.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::protection::Protection;
use super::timestamp::Timestamp;
use super::wrap;
use crate::crypto::random;
use crate::keys::KeyError;
use crate::keys::uri::{KeyUuid, LocalUri};
use crate::sys::secret::Secret;

const FORMAT: u32 = 1;

/// Whether a key or one version of it may be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// It may.
    Enabled,
    /// It may not, until it is enabled again.
    Disabled,
}

/// A key's state with its deletion date, as listings show it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// Usable.
    Enabled,
    /// Unusable until it is enabled again.
    Disabled,
    /// Unusable, and may be deleted from this date on.
    ScheduledForDeletion(Timestamp),
}

impl Status {
    /// The keyword that listings show.
    pub fn keyword(self) -> &'static str {
        match self {
            Self::Enabled => "enabled",
            Self::Disabled => "disabled",
            Self::ScheduledForDeletion(_) => "scheduled-for-deletion",
        }
    }
}

/// One version of a key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeyVersion {
    /// From 1, never reused.
    pub number: u32,
    /// When it was made.
    pub created: Timestamp,
    /// Whether it may be used.
    pub state: State,
    /// The version's 32 bytes, wrapped under the key's protection.
    wrapped: Wrapped,
}

impl KeyVersion {
    fn new(number: u32, uuid: KeyUuid, protector: &Secret, key: &[u8]) -> Self {
        Self {
            number,
            created: Timestamp::now(),
            state: State::Enabled,
            wrapped: Wrapped(wrap::seal(protector, &version_aad(uuid, number), key)),
        }
    }

    /// The version's key, if `protector` is the right one.
    pub(crate) fn open(&self, uuid: KeyUuid, protector: &Secret) -> Option<Secret> {
        let plain = wrap::open(protector, &version_aad(uuid, self.number), &self.wrapped.0)?;
        (plain.len() == wrap::KEY_LEN).then(|| Secret::copy_of(&plain))
    }
}

fn version_aad(uuid: KeyUuid, number: u32) -> Vec<u8> {
    format!("kmsfs:local-key={uuid}&kmsfs:version={number}").into_bytes()
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
struct Wrapped(Vec<u8>);

impl TryFrom<String> for Wrapped {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        let bytes = data_encoding::BASE64.decode(text.as_bytes()).ok();
        bytes
            .filter(|bytes| bytes.len() == wrap::KEY_LEN + wrap::OVERHEAD)
            .map(Self)
            .ok_or("a wrapped key is 60 bytes in base64")
    }
}

impl From<Wrapped> for String {
    fn from(wrapped: Wrapped) -> Self {
        data_encoding::BASE64.encode(&wrapped.0)
    }
}

/// A key file's content.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Document {
    format: u32,
    /// The key's name, as the file is called.
    pub name: String,
    /// Tells it from an earlier or later key of the same name.
    pub uuid: KeyUuid,
    /// When it was made.
    pub created: Timestamp,
    pub(crate) state: State,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) delete_after: Option<Timestamp>,
    /// What wraps the versions.
    pub protection: Protection,
    /// The versions, oldest first.
    pub versions: Vec<KeyVersion>,
}

impl Document {
    /// A new key with one version.
    pub(crate) fn new(
        name: &str,
        uuid: KeyUuid,
        protection: Protection,
        protector: &Secret,
    ) -> Self {
        let mut document = Self {
            format: FORMAT,
            name: name.to_owned(),
            uuid,
            created: Timestamp::now(),
            state: State::Enabled,
            delete_after: None,
            protection,
            versions: Vec::new(),
        };
        document.add_version(protector);
        document
    }

    /// Parses and checks a key file. Nothing is accepted that this version of
    /// kmsfs would not write back as it was.
    pub(crate) fn parse(name: &str, path: &Path, bytes: &[u8]) -> Result<Self, KeyError> {
        let malformed = |detail: String| KeyError::Configuration {
            detail: format!("the key file {} is malformed: {detail}", path.display()),
            hint: None,
        };
        #[derive(Deserialize)]
        struct Probe {
            format: u32,
        }
        let probe: Probe = serde_json::from_slice(bytes).map_err(|e| malformed(e.to_string()))?;
        if probe.format > FORMAT {
            return Err(KeyError::Configuration {
                detail: format!(
                    "the key file {} has format {}",
                    path.display(),
                    probe.format
                ),
                hint: Some(format!(
                    "this build reads up to {FORMAT}; use a newer kmsfs"
                )),
            });
        }
        let document: Self =
            serde_json::from_slice(bytes).map_err(|error| malformed(error.to_string()))?;
        document.check(name).map_err(malformed)?;
        Ok(document)
    }

    fn check(&self, name: &str) -> Result<(), String> {
        if self.format != FORMAT {
            return Err(format!("format {} never existed", self.format));
        }
        if self.name != name {
            return Err(format!("it describes a key called {:?}", self.name));
        }
        let numbers = self.versions.iter().map(|version| version.number);
        if self.versions.is_empty() || !numbers.eq(1..=self.versions.len() as u32) {
            return Err("its versions are not numbered from 1".into());
        }
        self.protection.check()
    }

    /// The file's content, for people to read.
    pub(crate) fn to_json(&self) -> Vec<u8> {
        let mut json = serde_json::to_vec_pretty(self).expect("plain data always serializes");
        json.push(b'\n');
        json
    }

    /// The key's state.
    pub fn status(&self) -> Status {
        match (self.delete_after, self.state) {
            (Some(date), _) => Status::ScheduledForDeletion(date),
            (None, State::Enabled) => Status::Enabled,
            (None, State::Disabled) => Status::Disabled,
        }
    }

    /// The URI that wrapped keys carry.
    pub fn uri(&self) -> LocalUri {
        LocalUri {
            name: self.name.clone(),
            keystore: None,
            uuid: Some(self.uuid),
        }
    }

    /// Version `number`.
    pub fn version(&self, number: u32) -> Option<&KeyVersion> {
        let index = usize::try_from(number).ok()?.checked_sub(1)?;
        self.versions.get(index)
    }

    /// Fails unless the key may be used.
    pub(crate) fn require_enabled(&self) -> Result<(), KeyError> {
        let detail = match self.status() {
            Status::Enabled => return Ok(()),
            Status::Disabled => "it was disabled by its owner".to_owned(),
            Status::ScheduledForDeletion(date) => format!("it is scheduled for deletion on {date}"),
        };
        Err(KeyError::Disabled {
            key: self.uri().to_string(),
            detail,
        })
    }

    /// Adds a version with a new random key and returns its number.
    pub(crate) fn add_version(&mut self, protector: &Secret) -> u32 {
        let number = self.versions.len() as u32 + 1;
        let mut key = Secret::zeroed(wrap::KEY_LEN);
        random::fill(&mut key);
        self.versions
            .push(KeyVersion::new(number, self.uuid, protector, &key));
        number
    }

    /// Proves that `protector` opens the newest version.
    pub(crate) fn require_protector(&self, protector: &Secret) -> Result<(), KeyError> {
        let newest = self
            .versions
            .last()
            .and_then(|v| v.open(self.uuid, protector));
        newest.map(drop).ok_or_else(|| self.wrong_protector())
    }

    /// The error for versions that do not open.
    pub(crate) fn wrong_protector(&self) -> KeyError {
        let detail = match self.protection {
            Protection::Keyfile { .. } => "the key file is not the one that protects it",
            Protection::Passphrase { .. } => "wrong passphrase",
        };
        KeyError::Denied {
            key: self.uri().to_string(),
            detail: detail.into(),
        }
    }

    /// Wraps every version under another protector.
    pub(crate) fn protect_anew(
        &mut self,
        old: &Secret,
        protection: Protection,
        new: &Secret,
    ) -> Result<(), KeyError> {
        let mut versions = Vec::with_capacity(self.versions.len());
        for version in &self.versions {
            let key = version
                .open(self.uuid, old)
                .ok_or_else(|| self.wrong_protector())?;
            let again = KeyVersion::new(version.number, self.uuid, new, &key);
            versions.push(KeyVersion {
                wrapped: again.wrapped,
                ..version.clone()
            });
        }
        self.versions = versions;
        self.protection = protection;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use zeroize::Zeroizing;

    fn sample() -> (Document, Secret) {
        let protector = Secret::copy_of(&[3; wrap::KEY_LEN]);
        let protection = Protection::Keyfile { file: "k".into() };
        (
            Document::new("sample", KeyUuid::random(), protection, &protector),
            protector,
        )
    }

    fn parse(bytes: &[u8]) -> Result<Document, KeyError> {
        Document::parse("sample", Path::new("sample.json"), bytes)
    }

    #[test]
    fn json_round_trips_and_hides_the_key() {
        let (mut document, protector) = sample();
        document.add_version(&protector);
        document.delete_after = Some(Timestamp::now().plus_days(7));
        let json = document.to_json();
        assert_eq!(parse(&json).unwrap(), document);
        let text = String::from_utf8(json).unwrap();
        assert!(text.contains("\"state\": \"enabled\"") && text.contains("\"number\": 2"));
    }

    #[test]
    fn a_version_opens_under_its_own_number_and_protector_only() {
        let (mut document, protector) = sample();
        document.add_version(&protector);
        let [first, second] = document.versions.as_mut_slice() else {
            panic!()
        };
        assert!(first.open(document.uuid, &protector).is_some());
        assert!(first.open(KeyUuid::random(), &protector).is_none());
        std::mem::swap(&mut first.wrapped, &mut second.wrapped);
        assert!(first.open(document.uuid, &protector).is_none());
        assert!(
            document
                .require_protector(&Secret::zeroed(wrap::KEY_LEN))
                .is_err()
        );
    }

    #[test]
    fn refuses_files_it_would_not_write() {
        let (document, _) = sample();
        let text = String::from_utf8(document.to_json()).unwrap();
        let changes = [
            ("\"format\": 1", "\"format\": 0"),
            ("\"format\": 1", "\"format\": 2"),
            ("\"name\": \"sample\"", "\"name\": \"other\""),
            ("\"number\": 1", "\"number\": 2"),
            ("\"state\"", "\"surprise\": 1, \"state\""),
            ("\"enabled\"", "\"perhaps\""),
            ("\"wrapped\": \"", "\"wrapped\": \"AAAA"),
        ];
        for (from, to) in changes {
            let bad = text.replacen(from, to, 1);
            assert_ne!(bad, text, "{from}");
            assert!(parse(bad.as_bytes()).is_err(), "{to}");
        }
        let mut empty = document;
        empty.versions.clear();
        assert!(parse(&empty.to_json()).is_err());
    }

    #[test]
    fn protecting_anew_keeps_the_keys() {
        let (mut document, old) = sample();
        document.add_version(&old);
        let before: Vec<Zeroizing<Vec<u8>>> = keys(&document, &old);
        let new = Secret::copy_of(&[4; wrap::KEY_LEN]);
        let protection = Protection::Keyfile { file: "n".into() };
        assert!(
            document
                .protect_anew(&new, protection.clone(), &new)
                .is_err()
        );
        document.protect_anew(&old, protection, &new).unwrap();
        assert_eq!(keys(&document, &new), before);
        assert!(document.require_protector(&old).is_err());
    }

    fn keys(document: &Document, protector: &Secret) -> Vec<Zeroizing<Vec<u8>>> {
        let open = |version: &KeyVersion| version.open(document.uuid, protector).unwrap();
        let versions = document.versions.iter();
        versions.map(|v| Zeroizing::new(open(v).to_vec())).collect()
    }
}
