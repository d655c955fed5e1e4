//! `kmsfs.json`: what a volume is, and its wrapped key. Readable by people.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::types::{FileId, VolumeId};

use super::header::Recipient;
use super::{FORMAT_VERSION, FormatError, Layout};

/// The config's name in the backing root.
pub const CONFIG_NAME: &str = "kmsfs.json";

/// How file names look in the backing directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NameMode {
    /// Encrypted under the directory's id: equal names in two directories differ.
    Encrypted,
    /// Encrypted, but equal names are equal everywhere in the volume.
    Deterministic,
    /// As they are. Only contents, symlink targets and xattrs are encrypted.
    Plain,
}

/// A volume's parameters.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeConfig {
    /// Always `kmsfs`.
    magic: String,
    /// Format version that wrote the file.
    format: u16,
    /// Lowest format version that may read the volume.
    format_read_min: u16,
    /// Lowest format version that may write to the volume.
    format_write_min: u16,
    volume_id: String,
    suite: u16,
    block_size: u32,
    head_size: u32,
    /// Groups of a cluster; format 1 does not have the field.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    cluster_size: u32,
    /// How names are encrypted.
    pub names: NameMode,
    /// URIs of the keys that new files are wrapped for, in order of preference.
    keys: Vec<String>,
    recipients: Vec<RecipientConfig>,
    commitment: String,
    /// Names of fields that a reader must know.
    #[serde(default)]
    critical: Vec<String>,
    /// Fields of later versions, kept as they are.
    #[serde(flatten)]
    extra: BTreeMap<String, serde_json::Value>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct RecipientConfig {
    key_uri: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    key_version: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    algorithm: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    iv: String,
    wrapped_key: String,
}

/// Why a config is no use.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// Not JSON, or not of this shape.
    #[error("not a kmsfs configuration: {0}")]
    Malformed(String),
    /// It is understood, but not for this build.
    #[error(transparent)]
    Format(#[from] FormatError),
    /// A field marked critical is unknown.
    #[error("the field {0:?} is marked critical and unknown to this version")]
    Critical(String),
}

/// What a config says, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Volume {
    /// The volume's id.
    pub id: VolumeId,
    /// Its algorithm suite's number.
    pub suite: u16,
    /// The layout of its files.
    pub layout: Layout,
    /// How names are encrypted.
    pub names: NameMode,
    /// Proves the volume key and the immutable fields.
    pub commitment: [u8; 32],
    /// URIs of the keys that new files are wrapped for.
    pub keys: Vec<String>,
    /// The volume key, wrapped.
    pub recipients: Vec<Recipient>,
    /// Whether this build may write to it.
    pub writable: bool,
}

impl Volume {
    /// The id under which the volume key is wrapped: there is no file.
    pub fn key_file_id(&self) -> FileId {
        FileId(self.id.0)
    }

    /// The fields that the commitment covers: those that never change, and the
    /// keys that new files are wrapped for, which nobody may add to but who has
    /// the volume key.
    pub fn committed_fields(&self) -> Vec<u8> {
        let mut out = self.id.0.to_vec();
        out.extend_from_slice(&self.suite.to_le_bytes());
        out.extend_from_slice(&(self.layout.block_size() as u32).to_le_bytes());
        out.extend_from_slice(&(self.layout.head_size() as u32).to_le_bytes());
        out.push(match self.names {
            NameMode::Encrypted => 0,
            NameMode::Deterministic => 1,
            NameMode::Plain => 2,
        });
        out.extend_from_slice(&(self.keys.len() as u32).to_le_bytes());
        for uri in &self.keys {
            out.extend_from_slice(&(uri.len() as u32).to_le_bytes());
            out.extend_from_slice(uri.as_bytes());
        }
        out.extend(self.layout.committed_cluster());
        out
    }
}

impl VolumeConfig {
    /// The config of a new volume.
    pub fn new(volume: &Volume) -> Self {
        Self {
            magic: "kmsfs".into(),
            format: volume.layout.format(),
            format_read_min: volume.layout.format(),
            format_write_min: volume.layout.format(),
            volume_id: volume.id.to_hex(),
            suite: volume.suite,
            block_size: volume.layout.block_size() as u32,
            head_size: volume.layout.head_size() as u32,
            cluster_size: volume.layout.cluster_size(),
            names: volume.names,
            keys: volume.keys.clone(),
            recipients: volume.recipients.iter().map(to_config).collect(),
            commitment: data_encoding::HEXLOWER.encode(&volume.commitment),
            critical: Vec::new(),
            extra: BTreeMap::new(),
        }
    }

    /// The file's bytes.
    pub fn to_json(&self) -> Vec<u8> {
        let mut text = serde_json::to_vec_pretty(self).expect("plain data always serializes");
        text.push(b'\n');
        text
    }

    /// Parses the file's bytes and checks everything but the key.
    ///
    /// # Errors
    /// Says which part is unknown, malformed or too new.
    pub fn parse(json: &[u8]) -> Result<(Self, Volume), ConfigError> {
        let malformed = |what: &str| ConfigError::Malformed(what.into());
        // First of all: a later format may look different in everything else.
        let value: serde_json::Value =
            serde_json::from_slice(json).map_err(|e| ConfigError::Malformed(e.to_string()))?;
        if let Some(needs) = value["format_read_min"].as_u64()
            && needs > u64::from(FORMAT_VERSION)
        {
            let needs = needs.try_into().unwrap_or(u16::MAX);
            return Err(FormatError::TooNew { needs }.into());
        }
        let config: Self =
            serde_json::from_value(value).map_err(|e| ConfigError::Malformed(e.to_string()))?;
        if config.magic != "kmsfs" {
            return Err(malformed("the magic is missing"));
        }
        if let Some(unknown) = config
            .critical
            .iter()
            .find(|f| config.extra.contains_key(*f))
        {
            return Err(ConfigError::Critical(unknown.clone()));
        }
        let volume = Volume {
            id: VolumeId::from_hex(&config.volume_id).ok_or(malformed("bad volume_id"))?,
            suite: config.suite,
            layout: Layout::with_clusters(config.block_size, config.head_size, config.cluster_size)
                .ok_or(malformed("bad block_size, head_size or cluster_size"))?,
            names: config.names,
            commitment: data_encoding::HEXLOWER
                .decode(config.commitment.as_bytes())
                .ok()
                .and_then(|bytes| bytes.try_into().ok())
                .ok_or(malformed("bad commitment"))?,
            keys: config.keys.clone(),
            recipients: config
                .recipients
                .iter()
                .map(from_config)
                .collect::<Option<_>>()
                .ok_or(malformed("bad recipient"))?,
            writable: config.format_write_min <= FORMAT_VERSION,
        };
        if volume.recipients.is_empty() || volume.keys.is_empty() {
            return Err(malformed("no recipients"));
        }
        Ok((config, volume))
    }
}

/// Groups of a cluster in format 1.
fn one() -> u32 {
    1
}

fn is_one(cluster_size: &u32) -> bool {
    *cluster_size == one()
}

fn to_config(r: &Recipient) -> RecipientConfig {
    RecipientConfig {
        key_uri: r.key_uri.clone(),
        key_version: r.key_version.clone(),
        algorithm: r.algorithm.clone(),
        iv: data_encoding::BASE64.encode(&r.iv),
        wrapped_key: data_encoding::BASE64.encode(&r.ciphertext),
    }
}

fn from_config(r: &RecipientConfig) -> Option<Recipient> {
    Some(Recipient {
        key_uri: r.key_uri.clone(),
        key_version: r.key_version.clone(),
        algorithm: r.algorithm.clone(),
        iv: data_encoding::BASE64.decode(r.iv.as_bytes()).ok()?,
        ciphertext: data_encoding::BASE64
            .decode(r.wrapped_key.as_bytes())
            .ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn volume() -> Volume {
        Volume {
            id: VolumeId([1; 16]),
            suite: 1,
            layout: Layout::new(4096, 4096).unwrap(),
            names: NameMode::Encrypted,
            commitment: [2; 32],
            keys: vec!["local:default".into()],
            recipients: vec![Recipient {
                key_uri: "local:default".into(),
                key_version: "1".into(),
                algorithm: String::new(),
                iv: vec![],
                ciphertext: vec![3; 60],
            }],
            writable: true,
        }
    }

    fn edited(edit: impl FnOnce(&mut serde_json::Value)) -> Result<Volume, ConfigError> {
        let json = VolumeConfig::new(&volume()).to_json();
        let mut value = serde_json::from_slice(&json).unwrap();
        edit(&mut value);
        VolumeConfig::parse(value.to_string().as_bytes()).map(|(_, volume)| volume)
    }

    #[test]
    fn round_trips() {
        assert_eq!(edited(|_| ()).unwrap(), volume());
    }

    #[test]
    fn unknown_fields_are_kept_unless_critical() {
        let json = VolumeConfig::new(&volume()).to_json();
        let mut value: serde_json::Value = serde_json::from_slice(&json).unwrap();
        value["later"] = 5.into();
        let (config, _) = VolumeConfig::parse(value.to_string().as_bytes()).unwrap();
        let again = String::from_utf8(config.to_json()).unwrap();
        assert!(again.contains("\"later\": 5"));
        let critical = edited(|v| {
            v["later"] = 5.into();
            v["critical"] = serde_json::json!(["later"]);
        });
        assert!(matches!(critical, Err(ConfigError::Critical(f)) if f == "later"));
    }

    #[test]
    fn a_newer_format_is_refused_for_reading_or_for_writing() {
        let too_new = edited(|v| v["format_read_min"] = 9.into());
        assert!(matches!(
            too_new,
            Err(ConfigError::Format(FormatError::TooNew { needs: 9 }))
        ));
        assert!(
            !edited(|v| v["format_write_min"] = 9.into())
                .unwrap()
                .writable
        );
    }

    #[test]
    fn malformed_values_are_errors() {
        for (field, value) in [
            ("magic", "other".into()),
            ("volume_id", "12".into()),
            ("block_size", 5000.into()),
            ("head_size", 1.into()),
            ("cluster_size", 2.into()),
            ("recipients", serde_json::json!([])),
            ("commitment", "zz".into()),
        ] {
            let result = edited(|v| v[field] = value);
            assert!(matches!(result, Err(ConfigError::Malformed(_))), "{field}");
        }
        assert!(VolumeConfig::parse(b"not json").is_err());
    }
}
