//! The provider of keys behind plugins.

use std::time::Duration;

use super::plugin::Plugin;
use super::protocol::{Answer, Failure, Request, malformed};
use super::uri::ExecUri;
use crate::crypto::DataKey;
use crate::keys::kms::retry::{self, DEFAULT_DEADLINE, Deadline};
use crate::keys::{KeyContext, KeyError, KeyProvider, WrappedKey};
use crate::types::KeyLen;

/// What plugins may say about a key, by its name in the protocol.
const FACTS: [&str; 7] = [
    "name",
    "state",
    "spec",
    "usage",
    "protection",
    "version",
    "place",
];

/// A key that a plugin wraps with.
pub struct ExecProvider {
    parsed: ExecUri,
    uri: String,
    identity: String,
    time: Duration,
    plugin: Plugin,
}

impl ExecProvider {
    /// Finds the plugin; it is started with the first call.
    ///
    /// # Errors
    /// `Configuration` if it is not there, or in no directory of plugins.
    pub fn open(uri: &ExecUri) -> Result<Self, KeyError> {
        Ok(Self {
            parsed: uri.clone(),
            uri: uri.to_string(),
            identity: uri.identity(),
            time: uri.deadline.unwrap_or(DEFAULT_DEADLINE),
            plugin: Plugin::new(uri)?,
        })
    }

    /// Asks the plugin, again and again if that may help. `None` if it does not
    /// have the operation.
    fn ask<'a>(&self, request: impl Fn() -> Request<'a>) -> Result<Option<Answer>, KeyError> {
        let deadline = Deadline::after(self.time);
        retry::until(deadline, || match self.plugin.ask(request(), deadline) {
            Ok(answer) => Ok(Some(answer)),
            Err(Failure::Unsupported) => Ok(None),
            Err(Failure::Key(error)) => Err(error),
        })
    }

    fn need(&self, answer: Option<Answer>) -> Result<Answer, KeyError> {
        answer.ok_or_else(|| malformed(&self.identity, "the plugin lacks an operation"))
    }
}

impl KeyProvider for ExecProvider {
    fn uri(&self) -> &str {
        &self.uri
    }

    fn is_local(&self) -> bool {
        false
    }

    fn recognises(&self, wrapped: &WrappedKey) -> bool {
        ExecUri::parse(&wrapped.key_uri).is_ok_and(|uri| self.parsed.names_same_key(&uri))
    }

    fn generate(
        &self,
        context: &KeyContext,
        len: KeyLen,
    ) -> Result<(DataKey, WrappedKey), KeyError> {
        let answer = self.ask(|| {
            let mut request = Request::about("generate", context);
            request.length = Some(len.bytes());
            request
        })?;
        let Some(answer) = answer else {
            let key = DataKey::random(len);
            let wrapped = self.wrap(context, &key)?;
            return Ok((key, wrapped));
        };
        let key = answer.data_key(&self.identity)?;
        if key.len() != len {
            return Err(malformed(&self.identity, "the data key has another length"));
        }
        Ok((key, answer.wrapped(&self.identity)?))
    }

    fn wrap(&self, context: &KeyContext, key: &DataKey) -> Result<WrappedKey, KeyError> {
        let answer = self.ask(|| Request::about("wrap", context).with_key(key))?;
        self.need(answer)?.wrapped(&self.identity)
    }

    fn unwrap(&self, context: &KeyContext, wrapped: &WrappedKey) -> Result<DataKey, KeyError> {
        if !self.recognises(wrapped) {
            return Err(KeyError::NotFound {
                key: wrapped.key_uri.clone(),
                detail: format!("this is key {}", self.identity),
            });
        }
        let answer = self.ask(|| Request::about("unwrap", context).with_wrapped(wrapped))?;
        self.need(answer)?.data_key(&self.identity)
    }

    fn rewrap(&self, context: &KeyContext, wrapped: &WrappedKey) -> Result<WrappedKey, KeyError> {
        match self.ask(|| Request::about("rewrap", context).with_wrapped(wrapped))? {
            Some(answer) => answer.wrapped(&self.identity),
            None => {
                let key = self.unwrap(context, wrapped)?;
                self.wrap(context, &key)
            }
        }
    }

    fn describe(&self) -> Result<Vec<(&'static str, String)>, KeyError> {
        let answer = self.ask(|| Request::new("describe"))?;
        let facts = answer.map(|answer| answer.facts).unwrap_or_default();
        let known = FACTS.into_iter().filter_map(|name| {
            let value = facts.get(name)?;
            Some((name, super::protocol::printable(value.as_bytes())))
        });
        Ok(known.collect())
    }

    fn advice(&self, error: &KeyError) -> Option<String> {
        match error {
            KeyError::Unavailable { .. } | KeyError::Malformed { .. } => Some(format!(
                "run {} by hand and give it the lines in docs/PLUGIN_PROTOCOL.md; what it \
                 says on standard error is in the log",
                self.parsed.name()
            )),
            _ => None,
        }
    }
}
