//! A provider whose every release is written down.

use std::sync::Arc;

use crate::crypto::DataKey;
use crate::keys::{KeyContext, KeyError, KeyProvider, WrappedKey};
use crate::types::KeyLen;

use super::log::{AuditLog, Release};
use super::request;

/// A provider and the log. What cannot be logged is not released.
pub struct Audited {
    inner: Arc<dyn KeyProvider>,
    log: Arc<AuditLog>,
}

impl Audited {
    /// `inner`, with its releases in `log`.
    pub fn new(inner: Arc<dyn KeyProvider>, log: Arc<AuditLog>) -> Self {
        Self { inner, log }
    }

    fn logged<T>(
        &self,
        event: &'static str,
        context: &KeyContext,
        key: &str,
        call: impl FnOnce() -> Result<T, KeyError>,
    ) -> Result<T, KeyError> {
        let _ = request::take();
        let result = call();
        let error = result.as_ref().err();
        self.record(event, context, key, request::take(), error)?;
        result
    }

    fn record(
        &self,
        event: &'static str,
        context: &KeyContext,
        key: &str,
        request: Option<String>,
        error: Option<&KeyError>,
    ) -> Result<(), KeyError> {
        self.log.record(&Release {
            event,
            context,
            key,
            request,
            error,
        })
    }
}

impl KeyProvider for Audited {
    fn uri(&self) -> &str {
        self.inner.uri()
    }

    fn is_local(&self) -> bool {
        self.inner.is_local()
    }

    fn recognises(&self, wrapped: &WrappedKey) -> bool {
        self.inner.recognises(wrapped)
    }

    fn generate(
        &self,
        context: &KeyContext,
        len: KeyLen,
    ) -> Result<(DataKey, WrappedKey), KeyError> {
        let call = || self.inner.generate(context, len);
        self.logged("generate", context, self.inner.uri(), call)
    }

    /// Not a release: whoever asks has the key already.
    fn wrap(&self, context: &KeyContext, key: &DataKey) -> Result<WrappedKey, KeyError> {
        self.inner.wrap(context, key)
    }

    fn unwrap(&self, context: &KeyContext, wrapped: &WrappedKey) -> Result<DataKey, KeyError> {
        let call = || self.inner.unwrap(context, wrapped);
        self.logged("unwrap", context, &wrapped.key_uri, call)
    }

    fn batch(&self) -> usize {
        self.inner.batch()
    }

    /// A line for each, all with the one call's id.
    fn unwrap_many(&self, wrapped: &[(KeyContext, WrappedKey)]) -> Vec<Result<DataKey, KeyError>> {
        let _ = request::take();
        let results = self.inner.unwrap_many(wrapped);
        let request = request::take();
        let each = wrapped.iter().zip(results);
        each.map(|((context, wrapped), result)| {
            let (key, error) = (&wrapped.key_uri, result.as_ref().err());
            self.record("unwrap", context, key, request.clone(), error)?;
            result
        })
        .collect()
    }

    fn rewrap(&self, context: &KeyContext, wrapped: &WrappedKey) -> Result<WrappedKey, KeyError> {
        let call = || self.inner.rewrap(context, wrapped);
        self.logged("rewrap", context, &wrapped.key_uri, call)
    }

    fn describe(&self) -> Result<Vec<(&'static str, String)>, KeyError> {
        self.inner.describe()
    }

    fn credentials_are_due(&self) -> bool {
        self.inner.credentials_are_due()
    }

    fn renew_credentials(&self) -> Result<(), KeyError> {
        self.inner.renew_credentials()
    }

    fn advice(&self, error: &KeyError) -> Option<String> {
        self.inner.advice(error)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::keys::audit::{caller, verify};
    use crate::keys::testing::{CONTEXT, FakeProvider, context, wrong};

    #[test]
    fn releases_and_refusals_are_logged_with_who_caused_them() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("audit");
        let log = Arc::new(AuditLog::open(path.to_str().unwrap()).unwrap());
        let fake = FakeProvider::new("fake:k");
        let audited = Audited::new(fake.clone(), log.clone());
        caller::set(u32::MAX, 1000);
        let (_, wrapped) = audited.generate(&CONTEXT, KeyLen::Bits256).unwrap();
        assert!(audited.unwrap(&context(9), &wrapped).is_err());
        fake.fail(Some(wrong::disabled()));
        assert!(audited.unwrap(&CONTEXT, &wrapped).is_err());
        let text = fs::read_to_string(&path).unwrap();
        let lines: Vec<serde_json::Value> = text
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        let outcomes: Vec<_> = lines.iter().map(|l| l["outcome"].clone()).collect();
        assert_eq!(outcomes, ["released", "rejected", "disabled"]);
        assert_eq!(
            (&lines[0]["event"], &lines[2]["event"]),
            (&"generate".into(), &"unwrap".into())
        );
        assert!(
            lines
                .iter()
                .all(|l| l["pid"] == u32::MAX && l["uid"] == 1000)
        );
        assert_eq!(lines[1]["file"], context(9).file.to_hex());
        assert_eq!(lines[0]["key"], "fake:k");
        let verified = verify(text.as_bytes(), false).unwrap();
        assert_eq!((verified.lines, verified.last), (3, log.head().last));
    }

    #[test]
    fn a_batch_is_one_call_with_a_line_for_each_key() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("audit");
        let log = Arc::new(AuditLog::open(path.to_str().unwrap()).unwrap());
        let fake = FakeProvider::with_batches("fake:k", 4);
        let audited = Audited::new(fake.clone(), log);
        let (_, wrapped) = audited.generate(&CONTEXT, KeyLen::Bits256).unwrap();
        assert_eq!(audited.batch(), 4);
        let batch = [CONTEXT, context(9), CONTEXT].map(|c| (c, wrapped.clone()));
        let results = audited.unwrap_many(&batch);
        let worked: Vec<bool> = results.iter().map(Result::is_ok).collect();
        assert_eq!((worked, fake.calls()), (vec![true, false, true], 2));
        let text = fs::read_to_string(&path).unwrap();
        let lines = text.lines().skip(1);
        let outcomes: Vec<_> = lines
            .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()["outcome"].clone())
            .collect();
        assert_eq!(outcomes, ["released", "rejected", "released"]);
    }

    #[test]
    fn nothing_is_released_that_cannot_be_logged() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("audit");
        let log = Arc::new(AuditLog::open(path.to_str().unwrap()).unwrap());
        let audited = Audited::new(FakeProvider::new("fake:k"), log);
        audited.generate(&CONTEXT, KeyLen::Bits256).unwrap();
        // Someone cuts the log.
        fs::OpenOptions::new()
            .write(true)
            .open(&path)
            .unwrap()
            .set_len(0)
            .unwrap();
        let refused = audited.generate(&CONTEXT, KeyLen::Bits256);
        assert!(matches!(refused, Err(KeyError::Configuration { .. })));
    }
}
