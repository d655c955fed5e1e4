//! A provider for tests: counts its calls, is slow or fails on demand.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

use crate::crypto::DataKey;
use crate::keys::{KeyContext, KeyError, KeyProvider, WrappedKey};
use crate::sys::clock::Clock;
use crate::types::{FileId, KeyLen, VolumeId};

pub(crate) const CONTEXT: KeyContext = context(2);

/// The context of file number `file` of one volume.
pub(crate) const fn context(file: u8) -> KeyContext {
    KeyContext {
        volume: VolumeId([1; 16]),
        file: FileId([file; 16]),
    }
}

/// A clock that goes when told to.
#[derive(Default)]
pub(crate) struct FakeClock(Mutex<Duration>);

impl FakeClock {
    pub(crate) fn advance(&self, seconds: u64) {
        *self.0.lock() += Duration::from_secs(seconds);
    }
}

impl Clock for FakeClock {
    fn now(&self) -> Duration {
        *self.0.lock()
    }
}

#[derive(Default)]
pub(crate) struct FakeProvider {
    uri: String,
    remote: bool,
    /// Keys that one call unwraps; 0 as 1.
    batch: usize,
    calls: AtomicUsize,
    /// So many calls more fail, each with this.
    failing: Mutex<Option<(usize, KeyError)>>,
    delay: Mutex<Duration>,
    failure: Mutex<Option<KeyError>>,
    generate_failure: Mutex<Option<KeyError>>,
}

impl FakeProvider {
    pub(crate) fn new(uri: &str) -> Arc<Self> {
        Arc::new(Self {
            uri: uri.into(),
            ..Self::default()
        })
    }

    /// One that says that its calls have to be waited for.
    pub(crate) fn remote(uri: &str) -> Arc<Self> {
        Arc::new(Self {
            uri: uri.into(),
            remote: true,
            ..Self::default()
        })
    }

    /// One that unwraps several keys in a call.
    pub(crate) fn with_batches(uri: &str, batch: usize) -> Arc<Self> {
        Arc::new(Self {
            uri: uri.into(),
            remote: true,
            batch,
            ..Self::default()
        })
    }

    pub(crate) fn calls(&self) -> usize {
        self.calls.load(Ordering::SeqCst)
    }

    pub(crate) fn fail(&self, error: Option<KeyError>) {
        *self.failing.lock() = None;
        *self.failure.lock() = error;
    }

    /// Fails the next `times` calls and no more.
    pub(crate) fn fail_times(&self, times: usize, error: KeyError) {
        *self.failure.lock() = None;
        *self.failing.lock() = Some((times, error));
    }

    pub(crate) fn fail_generate(&self, error: Option<KeyError>) {
        *self.generate_failure.lock() = error;
    }

    pub(crate) fn delay(&self, delay: Duration) {
        *self.delay.lock() = delay;
    }

    fn answer(&self) -> Result<(), KeyError> {
        self.calls.fetch_add(1, Ordering::SeqCst);
        let delay = *self.delay.lock();
        std::thread::sleep(delay);
        if let Some((left, error)) = &mut *self.failing.lock()
            && *left > 0
        {
            *left -= 1;
            return Err(error.clone());
        }
        self.failure.lock().clone().map_or(Ok(()), Err)
    }
}

impl KeyProvider for FakeProvider {
    fn uri(&self) -> &str {
        &self.uri
    }

    fn is_local(&self) -> bool {
        !self.remote
    }

    fn generate(
        &self,
        context: &KeyContext,
        len: KeyLen,
    ) -> Result<(DataKey, WrappedKey), KeyError> {
        if let Some(error) = self.generate_failure.lock().clone() {
            return Err(error);
        }
        let key = DataKey::random(len);
        Ok((self.wrap(context, &key)?, key)).map(|(wrapped, key)| (key, wrapped))
    }

    fn wrap(&self, context: &KeyContext, key: &DataKey) -> Result<WrappedKey, KeyError> {
        self.answer()?;
        Ok(WrappedKey {
            key_uri: self.uri.clone(),
            key_version: String::new(),
            algorithm: String::new(),
            iv: context.aad(),
            ciphertext: key.expose().iter().map(|byte| byte ^ 0x55).collect(),
        })
    }

    fn unwrap(&self, context: &KeyContext, wrapped: &WrappedKey) -> Result<DataKey, KeyError> {
        self.answer()?;
        Self::opened(context, wrapped)
    }

    fn batch(&self) -> usize {
        self.batch.max(1)
    }

    fn unwrap_many(&self, wrapped: &[(KeyContext, WrappedKey)]) -> Vec<Result<DataKey, KeyError>> {
        if self.batch == 0 {
            let each = wrapped.iter();
            return each.map(|(c, w)| self.unwrap(c, w)).collect();
        }
        assert!(wrapped.len() <= self.batch);
        let answer = self.answer();
        let each = wrapped.iter();
        each.map(|(context, wrapped)| {
            answer.clone()?;
            Self::opened(context, wrapped)
        })
        .collect()
    }
}

impl FakeProvider {
    fn opened(context: &KeyContext, wrapped: &WrappedKey) -> Result<DataKey, KeyError> {
        if wrapped.iv != context.aad() {
            return Err(wrong::rejected());
        }
        let plain: Vec<u8> = wrapped.ciphertext.iter().map(|byte| byte ^ 0x55).collect();
        Ok(DataKey::from_bytes(&plain).unwrap())
    }
}

/// One error of each kind that tests inject.
pub(crate) mod wrong {
    use super::KeyError;

    macro_rules! error {
        ($name:ident, $variant:ident) => {
            pub(crate) fn $name() -> KeyError {
                KeyError::$variant {
                    key: "test".into(),
                    detail: "injected".into(),
                }
            }
        };
    }
    error!(denied, Denied);
    error!(disabled, Disabled);
    error!(not_found, NotFound);
    error!(rejected, Rejected);
    error!(unavailable, Unavailable);

    pub(crate) fn throttled() -> KeyError {
        KeyError::Throttled {
            key: "test".into(),
            detail: "injected".into(),
            retry_after: None,
        }
    }
}
