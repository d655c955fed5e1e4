//! The operations that kmsfs asks for, and what is in their answers.

use super::message::{tag, write_version};
use super::ttlv::{Item, Nonsense, Reader, Writer};
use super::uri::Version;

const GCM: u32 = 9;
const AES: u32 = 3;
const SYMMETRIC_KEY: u32 = 2;
const UNINTERPRETED_TEXT: u32 = 1;
const SERVER_INFORMATION: u32 = 3;
const REPLACEMENT_OBJECT: u32 = 0x106;
/// The bytes of the authentication tag.
pub(super) const TAG: usize = 16;

/// Something to do, with borrowed arguments.
#[derive(Clone, Copy)]
pub(super) enum Operation<'a> {
    /// Which of our versions the server speaks.
    DiscoverVersions,
    /// What the server is.
    Query,
    /// The ids of the symmetric keys of a name.
    Locate { name: &'a str, active: bool },
    /// The attributes in [`Attributes`].
    GetAttributes { id: &'a str },
    /// AES-GCM with associated data.
    Encrypt {
        id: &'a str,
        plaintext: &'a [u8],
        iv: &'a [u8],
        aad: &'a [u8],
    },
    /// The reverse.
    Decrypt {
        id: &'a str,
        ciphertext: &'a [u8],
        iv: &'a [u8],
        aad: &'a [u8],
        tag: &'a [u8],
    },
}

/// Where a key is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    PreActive,
    Active,
    Deactivated,
    Compromised,
    Destroyed,
    DestroyedCompromised,
}

impl State {
    fn of(code: u32) -> Option<Self> {
        Some(match code {
            1 => Self::PreActive,
            2 => Self::Active,
            3 => Self::Deactivated,
            4 => Self::Compromised,
            5 => Self::Destroyed,
            6 => Self::DestroyedCompromised,
            _ => return None,
        })
    }
}

/// What is asked about a key.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Attributes {
    pub(super) state: Option<State>,
    /// In seconds since 1970.
    pub(super) made: i64,
    pub(super) names: Vec<String>,
    /// The id of the key that came after it by Re-key.
    pub(super) replacement: Option<String>,
}

/// The attributes' names, which are their tags in KMIP 2.0.
const ATTRIBUTES: [(&str, u32); 4] = [
    ("State", tag::STATE),
    ("Initial Date", tag::INITIAL_DATE),
    ("Name", tag::NAME),
    ("Link", tag::LINK),
];

/// An encrypted data key.
pub(super) struct Encrypted<'a> {
    pub(super) ciphertext: &'a [u8],
    /// The IV, if it is not the one that was proposed.
    pub(super) iv: Option<&'a [u8]>,
    pub(super) tag: &'a [u8],
}

impl Operation<'_> {
    pub(super) fn code(&self) -> u32 {
        match self {
            Self::DiscoverVersions => 0x1e,
            Self::Query => 0x18,
            Self::Locate { .. } => 0x08,
            Self::GetAttributes { .. } => 0x0b,
            Self::Encrypt { .. } => 0x1f,
            Self::Decrypt { .. } => 0x20,
        }
    }

    /// Writes the request's payload.
    pub(super) fn write(&self, payload: &mut Writer, version: Version) {
        match *self {
            Self::DiscoverVersions => {
                for version in Version::ALL {
                    write_version(payload, version);
                }
            }
            Self::Query => payload.enumeration(tag::QUERY_FUNCTION, SERVER_INFORMATION),
            Self::Locate { name, active } => write_locate(payload, version, name, active),
            Self::GetAttributes { id } => {
                payload.text(tag::UNIQUE_IDENTIFIER, id);
                for (name, tag) in ATTRIBUTES {
                    match version {
                        Version::V1_4 => payload.text(tag::ATTRIBUTE_NAME, name),
                        Version::V2_0 => payload.enumeration(tag::ATTRIBUTE_REFERENCE, tag),
                    }
                }
            }
            Self::Encrypt {
                id,
                plaintext,
                iv,
                aad,
            } => {
                write_parameters(payload, id);
                payload.bytes(tag::DATA, plaintext);
                payload.bytes(tag::IV, iv);
                payload.bytes(tag::ASSOCIATED_DATA, aad);
            }
            Self::Decrypt {
                id,
                ciphertext,
                iv,
                aad,
                tag,
            } => {
                write_parameters(payload, id);
                payload.bytes(tag::DATA, ciphertext);
                payload.bytes(tag::IV, iv);
                payload.bytes(tag::ASSOCIATED_DATA, aad);
                payload.bytes(tag::AUTHENTICATION_TAG, tag);
            }
        }
    }
}

fn write_parameters(payload: &mut Writer, id: &str) {
    payload.text(tag::UNIQUE_IDENTIFIER, id);
    payload.structure(tag::CRYPTOGRAPHIC_PARAMETERS, |parameters| {
        parameters.enumeration(tag::BLOCK_CIPHER_MODE, GCM);
        parameters.enumeration(tag::CRYPTOGRAPHIC_ALGORITHM, AES);
        parameters.integer(tag::TAG_LENGTH, TAG as i32);
    });
}

/// Before 2.0 an attribute is a structure of a name and a value; since then it
/// has a tag of its own.
fn write_locate(payload: &mut Writer, version: Version, name: &str, active: bool) {
    let write_name = |writer: &mut Writer, tag| {
        writer.structure(tag, |value| {
            value.text(tag::NAME_VALUE, name);
            value.enumeration(tag::NAME_TYPE, UNINTERPRETED_TEXT);
        });
    };
    let state = active.then_some(2);
    match version {
        Version::V1_4 => {
            let mut attribute = |name, write: &dyn Fn(&mut Writer)| {
                payload.structure(tag::ATTRIBUTE, |attribute| {
                    attribute.text(tag::ATTRIBUTE_NAME, name);
                    write(attribute);
                });
            };
            let value = tag::ATTRIBUTE_VALUE;
            attribute("Object Type", &|a| a.enumeration(value, SYMMETRIC_KEY));
            attribute("Name", &|a| write_name(a, value));
            if let Some(state) = state {
                attribute("State", &|a| a.enumeration(value, state));
            }
        }
        Version::V2_0 => payload.structure(tag::ATTRIBUTES, |attributes| {
            attributes.enumeration(tag::OBJECT_TYPE, SYMMETRIC_KEY);
            write_name(attributes, tag::NAME);
            if let Some(state) = state {
                attributes.enumeration(tag::STATE, state);
            }
        }),
    }
}

/// The versions that the server speaks, of those in [`Version::ALL`].
pub(super) fn versions(payload: Reader<'_>) -> Result<Vec<Version>, Nonsense> {
    let mut spoken = Vec::new();
    for version in payload.all(tag::PROTOCOL_VERSION)? {
        let numbers = version.structure()?;
        let major = numbers.need(tag::PROTOCOL_VERSION_MAJOR)?.integer()?;
        let minor = numbers.need(tag::PROTOCOL_VERSION_MINOR)?.integer()?;
        let mut all = Version::ALL.into_iter();
        spoken.extend(all.find(|version| version.numbers() == (major, minor)));
    }
    Ok(spoken)
}

/// What the server calls itself.
pub(super) fn vendor(payload: Reader<'_>) -> Result<Option<String>, Nonsense> {
    let vendor = payload.find(tag::VENDOR)?;
    vendor
        .map(|item| item.text().map(str::to_owned))
        .transpose()
}

/// The ids that were found.
pub(super) fn ids(payload: Reader<'_>) -> Result<Vec<String>, Nonsense> {
    let ids = payload.all(tag::UNIQUE_IDENTIFIER)?;
    ids.into_iter()
        .map(|id| id.text().map(str::to_owned))
        .collect()
}

/// The attributes of a key; what the server does not have stays empty.
pub(super) fn attributes(payload: Reader<'_>) -> Result<Attributes, Nonsense> {
    let mut found = Attributes::default();
    for attribute in payload.all(tag::ATTRIBUTE)? {
        let attribute = attribute.structure()?;
        let name = attribute.need(tag::ATTRIBUTE_NAME)?.text()?;
        let value = attribute.need(tag::ATTRIBUTE_VALUE)?;
        if let Some((_, tag)) = ATTRIBUTES.into_iter().find(|(known, _)| *known == name) {
            found.take(tag, value)?;
        }
    }
    if let Some(attributes) = payload.find(tag::ATTRIBUTES)? {
        let mut attributes = attributes.structure()?;
        while let Some(item) = attributes.next()? {
            found.take(item.tag, item)?;
        }
    }
    Ok(found)
}

impl Attributes {
    fn take(&mut self, tag: u32, value: Item<'_>) -> Result<(), Nonsense> {
        match tag {
            tag::STATE => self.state = State::of(value.enumeration()?),
            tag::INITIAL_DATE => self.made = value.date_time()?,
            tag::NAME => {
                let name = value.structure()?.need(tag::NAME_VALUE)?.text()?;
                self.names.push(name.to_owned());
            }
            tag::LINK => {
                let link = value.structure()?;
                if link.need(tag::LINK_TYPE)?.enumeration()? == REPLACEMENT_OBJECT {
                    let id = link.need(tag::LINKED_OBJECT)?.text()?;
                    self.replacement = Some(id.to_owned());
                }
            }
            _ => {}
        }
        Ok(())
    }
}

/// What Encrypt gave.
pub(super) fn encrypted(payload: Reader<'_>) -> Result<Encrypted<'_>, Nonsense> {
    let iv = payload.find(tag::IV)?;
    Ok(Encrypted {
        ciphertext: payload.need(tag::DATA)?.bytes()?,
        iv: iv.map(|item| item.bytes()).transpose()?,
        tag: payload
            .find(tag::AUTHENTICATION_TAG)?
            .ok_or(Nonsense("the authentication tag is missing"))?
            .bytes()?,
    })
}

/// What Decrypt gave.
pub(super) fn decrypted(payload: Reader<'_>) -> Result<&[u8], Nonsense> {
    payload.need(tag::DATA)?.bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a server says about a key that Re-key has replaced, which has a link
    /// and no name any more.
    fn replaced(version: Version) -> Vec<u8> {
        let mut writer = Writer::with_capacity(512);
        writer.text(tag::UNIQUE_IDENTIFIER, "old");
        let link = |writer: &mut Writer, tag, kind, id: &str| {
            writer.structure(tag, |link| {
                link.enumeration(tag::LINK_TYPE, kind);
                link.text(tag::LINKED_OBJECT, id);
            });
        };
        match version {
            Version::V1_4 => {
                writer.structure(tag::ATTRIBUTE, |attribute| {
                    attribute.text(tag::ATTRIBUTE_NAME, "State");
                    attribute.enumeration(tag::ATTRIBUTE_VALUE, 3);
                });
                for (kind, id) in [(0x107, "older"), (0x106, "new")] {
                    writer.structure(tag::ATTRIBUTE, |attribute| {
                        attribute.text(tag::ATTRIBUTE_NAME, "Link");
                        attribute.integer(0x42_0009, 0);
                        link(attribute, tag::ATTRIBUTE_VALUE, kind, id);
                    });
                }
                writer.structure(tag::ATTRIBUTE, |attribute| {
                    attribute.text(tag::ATTRIBUTE_NAME, "x-own");
                    attribute.text(tag::ATTRIBUTE_VALUE, "whatever");
                });
            }
            Version::V2_0 => writer.structure(tag::ATTRIBUTES, |attributes| {
                attributes.enumeration(tag::STATE, 3);
                link(attributes, tag::LINK, 0x107, "older");
                link(attributes, tag::LINK, 0x106, "new");
                attributes.text(0x42_0099, "whatever");
            }),
        }
        writer.finish().to_vec()
    }

    #[test]
    fn attributes_are_the_same_in_both_versions() {
        for version in Version::ALL {
            let bytes = replaced(version);
            let found = attributes(Reader::new(&bytes)).unwrap();
            let expected = Attributes {
                state: Some(State::Deactivated),
                replacement: Some("new".into()),
                ..Attributes::default()
            };
            assert_eq!(found, expected, "{version}");
            for length in (0..bytes.len()).step_by(3) {
                let _ = attributes(Reader::new(&bytes[..length]));
            }
        }
    }

    #[test]
    fn an_answer_without_an_authentication_tag_is_no_use() {
        let mut writer = Writer::with_capacity(512);
        writer.bytes(tag::DATA, &[1; 32]);
        let bytes = writer.finish();
        assert!(encrypted(Reader::new(&bytes)).is_err());
    }
}
