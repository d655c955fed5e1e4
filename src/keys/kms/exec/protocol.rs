//! The lines: requests to a plugin, and its answers.

use std::collections::BTreeMap;
use std::time::Duration;

use data_encoding::BASE64;
use serde::{Deserialize, Serialize, Serializer};
use zeroize::Zeroizing;

use crate::crypto::DataKey;
use crate::keys::kms::secret_text::SecretText;
use crate::keys::{KeyContext, KeyError, WrappedKey};

/// The version of the protocol.
pub(super) const PROTOCOL: u32 = 1;
/// The most bytes a line may have.
pub(super) const LONGEST_LINE: usize = 64 * 1024;

/// What a plugin is asked for.
#[derive(Default, Serialize)]
pub(super) struct Request<'a> {
    pub(super) id: u64,
    pub(super) op: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) protocol: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) key: Option<&'a str>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    context: BTreeMap<&'static str, String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) length: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "expose")]
    plaintext: Option<Zeroizing<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    wrapped: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<&'a str>,
}

fn expose<S: Serializer>(
    secret: &Option<Zeroizing<String>>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    secret
        .as_ref()
        .map(|text| text.as_str())
        .serialize(serializer)
}

impl<'a> Request<'a> {
    /// A request without a context.
    pub(super) fn new(op: &'static str) -> Self {
        Self {
            op,
            ..Self::default()
        }
    }

    /// A request about a data key.
    pub(super) fn about(op: &'static str, context: &KeyContext) -> Self {
        Self {
            context: context.pairs().into_iter().collect(),
            ..Self::new(op)
        }
    }

    /// The same with a data key.
    pub(super) fn with_key(mut self, key: &DataKey) -> Self {
        self.plaintext = Some(Zeroizing::new(BASE64.encode(key.expose())));
        self
    }

    /// The same with a wrapped key.
    pub(super) fn with_wrapped(mut self, wrapped: &'a WrappedKey) -> Self {
        self.wrapped = Some(BASE64.encode(&wrapped.ciphertext));
        self.version = Some(&wrapped.key_version);
        self
    }

    /// The line, with its end.
    pub(super) fn to_line(&self) -> Zeroizing<Vec<u8>> {
        // Enough, so that it never moves and leaves a copy.
        let mut line = Zeroizing::new(Vec::with_capacity(LONGEST_LINE));
        serde_json::to_writer(&mut *line, self).expect("text and numbers have a JSON form");
        line.push(b'\n');
        line
    }
}

/// A line from a plugin.
#[derive(Deserialize)]
pub(super) struct Response {
    pub(super) id: u64,
    ok: Option<Answer>,
    error: Option<Refusal>,
}

/// What a plugin gives; which parts depends on the request.
#[derive(Deserialize)]
pub(super) struct Answer {
    pub(super) protocol: Option<u32>,
    plaintext: Option<SecretText>,
    wrapped: Option<String>,
    #[serde(default)]
    version: String,
    #[serde(default)]
    pub(super) facts: BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct Refusal {
    class: String,
    #[serde(default)]
    detail: String,
    retry_after_ms: Option<u64>,
}

/// Why a request gave nothing.
#[derive(Debug)]
pub(super) enum Failure {
    /// As the plugin says, or because it says nothing sensible.
    Key(KeyError),
    /// The plugin does not have the operation.
    Unsupported,
}

impl Response {
    /// Reads a line.
    pub(super) fn parse(line: &[u8]) -> Option<Self> {
        serde_json::from_slice(line).ok()
    }

    /// The answer, or what is in its place, about `key`.
    pub(super) fn settle(self, key: &str) -> Result<Answer, Failure> {
        match (self.ok, self.error) {
            (Some(answer), None) => Ok(answer),
            (None, Some(refusal)) => Err(refusal.into_failure(key)),
            _ => Err(Failure::Key(malformed(
                key,
                "it is neither ok nor an error",
            ))),
        }
    }
}

impl Refusal {
    fn into_failure(self, key: &str) -> Failure {
        let key = key.to_owned();
        let detail = printable(self.detail.as_bytes());
        Failure::Key(match self.class.as_str() {
            "not-found" => KeyError::NotFound { key, detail },
            "disabled" => KeyError::Disabled { key, detail },
            "expired" => KeyError::Expired { key, detail },
            "denied" => KeyError::Denied { key, detail },
            "rejected" => KeyError::Rejected { key, detail },
            "throttled" => KeyError::Throttled {
                key,
                detail,
                retry_after: self.retry_after_ms.map(Duration::from_millis),
            },
            "unavailable" => KeyError::Unavailable { key, detail },
            "configuration" => KeyError::Configuration {
                detail: format!("the plugin of {key} is set up wrongly: {detail}"),
                hint: None,
            },
            "unsupported" => return Failure::Unsupported,
            _ => KeyError::Malformed { key, detail },
        })
    }
}

impl Answer {
    /// The wrapped key.
    pub(super) fn wrapped(&self, identity: &str) -> Result<WrappedKey, KeyError> {
        let text = self.wrapped.as_deref().unwrap_or_default();
        let ciphertext = BASE64
            .decode(text.as_bytes())
            .ok()
            .filter(|bytes| !bytes.is_empty());
        let ciphertext =
            ciphertext.ok_or_else(|| malformed(identity, "it has no wrapped key in base64"))?;
        Ok(WrappedKey {
            key_uri: identity.to_owned(),
            key_version: self.version.clone(),
            algorithm: String::new(),
            iv: Vec::new(),
            ciphertext,
        })
    }

    /// The data key.
    pub(super) fn data_key(&self, identity: &str) -> Result<DataKey, KeyError> {
        let problem = || malformed(identity, "it has no data key in base64");
        let text = self.plaintext.as_ref().ok_or_else(problem)?;
        let bytes = BASE64
            .decode(text.expose().as_bytes())
            .map_err(|_| problem())?;
        DataKey::from_bytes(&Zeroizing::new(bytes)).ok_or_else(problem)
    }
}

pub(super) fn malformed(key: &str, problem: &str) -> KeyError {
    KeyError::Malformed {
        key: key.to_owned(),
        detail: problem.to_owned(),
    }
}

/// A plugin's words, fit for a log: short, and without control characters.
pub(super) fn printable(bytes: &[u8]) -> String {
    const LONGEST: usize = 300;
    let text = String::from_utf8_lossy(bytes);
    let clean = text.chars().map(|c| if c.is_control() { ' ' } else { c });
    clean.take(LONGEST).collect::<String>().trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::testing::context;
    use crate::types::KeyLen;

    #[test]
    fn a_request_is_one_line() {
        let key = DataKey::random(KeyLen::Bits128);
        let line = Request::about("wrap", &context(2)).with_key(&key).to_line();
        let text = std::str::from_utf8(&line).unwrap();
        assert_eq!(text.matches('\n').count(), 1);
        let value: serde_json::Value = serde_json::from_str(text).unwrap();
        assert_eq!(value["op"], "wrap");
        assert_eq!(value["context"]["kmsfs:file"], "02".repeat(16));
        assert_eq!(value["plaintext"], BASE64.encode(key.expose()));
        assert!(value.get("wrapped").is_none());
    }

    #[test]
    fn refusals_have_their_class_and_clean_words() {
        let refuse = |text: &str| {
            let line = format!(r#"{{"id":1,"error":{text}}}"#);
            let response = Response::parse(line.as_bytes()).unwrap();
            match response.settle("k").map(drop).unwrap_err() {
                Failure::Key(error) => error,
                Failure::Unsupported => panic!(),
            }
        };
        let denied = refuse(r#"{"class":"denied","detail":"no\u001b[31m\n"}"#);
        let KeyError::Denied { detail, .. } = denied else {
            panic!("{denied:?}")
        };
        assert_eq!(detail, "no [31m");
        assert!(matches!(
            refuse(r#"{"class":"throttled","retry_after_ms":7}"#),
            KeyError::Throttled { retry_after: Some(wait), .. } if wait.as_millis() == 7
        ));
        assert!(matches!(
            refuse(r#"{"class":"?"}"#),
            KeyError::Malformed { .. }
        ));
        let both = br#"{"id":1,"ok":{},"error":{"class":"denied"}}"#;
        assert!(Response::parse(both).unwrap().settle("k").is_err());
        assert!(Response::parse(b"{}").is_none() && Response::parse(b"x").is_none());
    }

    #[test]
    fn answers_without_keys_are_malformed() {
        let answer = |text: &str| {
            let line = format!(r#"{{"id":1,"ok":{text}}}"#);
            Response::parse(line.as_bytes())
                .unwrap()
                .settle("k")
                .unwrap()
        };
        for bad in ["{}", r#"{"plaintext":"AA=="}"#, r#"{"plaintext":"?"}"#] {
            assert!(answer(bad).data_key("k").is_err(), "{bad}");
        }
        assert!(answer(r#"{"wrapped":""}"#).wrapped("k").is_err());
        assert!(answer(r#"{"wrapped":"AA=="}"#).wrapped("k").is_ok());
    }
}
