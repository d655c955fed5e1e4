//! Text in a JSON answer that is wiped when it is no longer needed.

use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, Visitor};
use zeroize::Zeroizing;

/// A secret string. The JSON reader keeps no copy of one without escapes.
pub(super) struct SecretText(Zeroizing<String>);

impl SecretText {
    pub(super) fn expose(&self) -> &str {
        &self.0
    }

    pub(super) fn into_inner(self) -> Zeroizing<String> {
        self.0
    }
}

impl<'de> Deserialize<'de> for SecretText {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;
        impl Visitor<'_> for Text {
            type Value = SecretText;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string")
            }

            fn visit_str<E>(self, text: &str) -> Result<SecretText, E> {
                Ok(SecretText(Zeroizing::new(text.to_owned())))
            }

            fn visit_string<E>(self, text: String) -> Result<SecretText, E> {
                Ok(SecretText(Zeroizing::new(text)))
            }
        }
        deserializer.deserialize_str(Text)
    }
}
