//! What every key provider must do, whatever service it speaks to: one function
//! a property, and a macro that makes each a test for a service that is under
//! the test's control.
//!
//! A service that cannot do something (a PKCS#11 token does not throttle) says
//! so by returning `false` from the hook, and the test ends there.
#![allow(unreachable_pub)]

use std::collections::HashSet;
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

use kmsfs::keys::check;
use kmsfs::keys::{KeyContext, KeyError, KeyProvider, WrappedKey};
use kmsfs::types::{FileId, KeyLen, VolumeId};

/// The longest a call to a provider made by [`Service::provider`] may take.
pub const DEADLINE: Duration = Duration::from_secs(2);
/// What scheduling on a busy machine may add.
const SLACK: Duration = Duration::from_millis(1500);
const CONCURRENT: usize = 64;

/// How a service misbehaves, from the next call on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mood {
    /// It does as it should.
    Well,
    /// It asks for fewer requests, that many times.
    Throttling(usize),
    /// It fails on its side, that many times.
    Failing(usize),
    /// It answers late.
    Slow(Duration),
    /// It sends what makes no sense.
    Garbage,
    /// It sends far too much.
    Oversized,
    /// It hangs up in the middle of its answer, that many times.
    CutOff(usize),
}

/// A service with one key, and the means to change both.
pub trait Service {
    /// A new provider of the key, with [`DEADLINE`] as its deadline.
    fn provider(&self) -> Arc<dyn KeyProvider>;
    /// A provider of a key that never existed.
    fn provider_of_missing_key(&self) -> Arc<dyn KeyProvider>;
    /// A provider of a service at an address where none is.
    fn unreachable_provider(&self) -> Option<Arc<dyn KeyProvider>>;
    /// Enables or disables the key.
    fn set_enabled(&self, enabled: bool) -> bool;
    /// Deletes the key, at once.
    fn delete(&self) -> bool;
    /// Gives the key a new version.
    fn rotate(&self) -> bool;
    /// Takes the caller's right to use the key, or gives it back.
    fn set_allowed(&self, allowed: bool) -> bool;
    /// Changes how it behaves.
    fn set_mood(&self, mood: Mood) -> bool;
    /// Ends the credentials that providers hold; they can get new ones.
    fn end_credentials(&self) -> bool;
}

/// Makes a test of every property for the service that `$make` starts.
#[macro_export]
macro_rules! conformance {
    ($make:expr) => {
        $crate::conformance!($make;
            round_trip, wrong_context, tampered_wrapped_key, second_recipient, rewrap,
            disabled_key, deleted_key, missing_key, rotated_key, denied, throttled_for_a_moment,
            throttled_for_good, failing_for_a_moment, slow, too_slow, unreachable, garbage,
            oversized, cut_off, credentials_ending, concurrent_calls, checked
        );
    };
    ($make:expr; $($name:ident),+) => {
        $(#[test]
        fn $name() {
            $crate::conformance::$name(&$make);
        })+
    };
}

pub fn context(file: u8) -> KeyContext {
    KeyContext {
        volume: VolumeId([7; 16]),
        file: FileId([file; 16]),
    }
}

/// Ends the test if the service cannot do this.
macro_rules! needs {
    ($hook:expr) => {
        if !$hook {
            eprintln!("not applicable: {}", stringify!($hook));
            return;
        }
    };
}

macro_rules! assert_error {
    ($result:expr, $($kind:ident)|+) => {
        match $result {
            Err($(KeyError::$kind { .. })|+) => {}
            Err(error) => panic!("not {}: {error:?}", stringify!($($kind)|+)),
            Ok(_) => panic!("no error, should be {}", stringify!($($kind)|+)),
        }
    };
}

fn make(provider: &dyn KeyProvider) -> (Vec<u8>, WrappedKey) {
    let (key, wrapped) = provider.generate(&context(1), KeyLen::Bits256).unwrap();
    (key.expose().to_vec(), wrapped)
}

fn open(provider: &dyn KeyProvider, wrapped: &WrappedKey) -> Result<Vec<u8>, KeyError> {
    let key = provider.unwrap(&context(1), wrapped)?;
    Ok(key.expose().to_vec())
}

pub fn round_trip(service: &dyn Service) {
    let provider = service.provider();
    let mut seen = HashSet::new();
    for len in [KeyLen::Bits128, KeyLen::Bits192, KeyLen::Bits256] {
        for _ in 0..2 {
            let (key, wrapped) = provider.generate(&context(1), len).unwrap();
            assert_eq!(key.len(), len);
            assert!(seen.insert(key.expose().to_vec()), "a data key came twice");
            assert!(provider.recognises(&wrapped));
            let another = service.provider();
            assert!(another.recognises(&wrapped), "a later mount");
            assert_eq!(open(&*another, &wrapped).unwrap(), key.expose());
        }
    }
    assert!(!provider.is_local() || service.unreachable_provider().is_none());
}

pub fn wrong_context(service: &dyn Service) {
    let provider = service.provider();
    let (_, wrapped) = make(&*provider);
    let other_volume = KeyContext {
        volume: VolumeId([8; 16]),
        ..context(1)
    };
    for wrong in [context(2), other_volume] {
        assert_error!(provider.unwrap(&wrong, &wrapped), Rejected);
    }
}

pub fn tampered_wrapped_key(service: &dyn Service) {
    let provider = service.provider();
    let (_, wrapped) = make(&*provider);
    let len = wrapped.ciphertext.len();
    // The last bytes are always authenticated content; earlier ones may name a
    // key, which then does not exist.
    let mut last = wrapped.clone();
    last.ciphertext[len - 1] ^= 1;
    assert_error!(open(&*provider, &last), Rejected);
    for index in (0..len).step_by(7) {
        let mut bad = wrapped.clone();
        bad.ciphertext[index] ^= 0x20;
        assert_error!(open(&*provider, &bad), Rejected | NotFound);
        bad.ciphertext.truncate(index.max(1));
        assert_error!(open(&*provider, &bad), Rejected | NotFound);
    }
    if let Some(byte) = wrapped.iv.first() {
        let mut bad = wrapped.clone();
        bad.iv[0] = byte ^ 1;
        assert_error!(open(&*provider, &bad), Rejected);
    }
}

pub fn second_recipient(service: &dyn Service) {
    let provider = service.provider();
    for len in [KeyLen::Bits128, KeyLen::Bits192, KeyLen::Bits256] {
        let key = kmsfs::crypto::DataKey::random(len);
        let wrapped = provider.wrap(&context(1), &key).unwrap();
        assert_eq!(open(&*provider, &wrapped).unwrap(), key.expose());
        assert_error!(provider.unwrap(&context(2), &wrapped), Rejected);
    }
}

pub fn rewrap(service: &dyn Service) {
    let provider = service.provider();
    let (key, wrapped) = make(&*provider);
    let again = provider.rewrap(&context(1), &wrapped).unwrap();
    assert_ne!(again.ciphertext, wrapped.ciphertext);
    assert_eq!(open(&*provider, &again).unwrap(), key);
    assert_error!(provider.rewrap(&context(2), &wrapped), Rejected);
}

pub fn disabled_key(service: &dyn Service) {
    let provider = service.provider();
    let (key, wrapped) = make(&*provider);
    needs!(service.set_enabled(false));
    assert_error!(open(&*provider, &wrapped), Disabled);
    assert_error!(provider.generate(&context(1), KeyLen::Bits256), Disabled);
    assert!(service.set_enabled(true));
    assert_eq!(open(&*provider, &wrapped).unwrap(), key);
}

pub fn deleted_key(service: &dyn Service) {
    let provider = service.provider();
    let (_, wrapped) = make(&*provider);
    needs!(service.delete());
    assert_error!(open(&*provider, &wrapped), NotFound);
    assert_error!(provider.generate(&context(1), KeyLen::Bits256), NotFound);
}

pub fn missing_key(service: &dyn Service) {
    let provider = service.provider_of_missing_key();
    assert_error!(provider.generate(&context(1), KeyLen::Bits256), NotFound);
}

pub fn rotated_key(service: &dyn Service) {
    let provider = service.provider();
    let (key, old) = make(&*provider);
    needs!(service.rotate());
    assert_eq!(open(&*provider, &old).unwrap(), key, "old headers open");
    let (_, new) = make(&*provider);
    assert_ne!(new.key_version, old.key_version);
    let rewrapped = provider.rewrap(&context(1), &old).unwrap();
    assert_eq!(rewrapped.key_version, new.key_version);
    assert_eq!(open(&*provider, &rewrapped).unwrap(), key);
}

pub fn denied(service: &dyn Service) {
    let provider = service.provider();
    let (key, wrapped) = make(&*provider);
    needs!(service.set_allowed(false));
    assert_error!(open(&*provider, &wrapped), Denied);
    assert_error!(provider.generate(&context(1), KeyLen::Bits256), Denied);
    assert!(service.set_allowed(true));
    assert_eq!(open(&*provider, &wrapped).unwrap(), key);
}

pub fn throttled_for_a_moment(service: &dyn Service) {
    let provider = service.provider();
    let (key, wrapped) = make(&*provider);
    needs!(service.set_mood(Mood::Throttling(2)));
    assert_eq!(open(&*provider, &wrapped).unwrap(), key);
}

pub fn throttled_for_good(service: &dyn Service) {
    let provider = service.provider();
    let (_, wrapped) = make(&*provider);
    needs!(service.set_mood(Mood::Throttling(usize::MAX)));
    within_deadline(|| assert_error!(open(&*provider, &wrapped), Throttled));
}

pub fn failing_for_a_moment(service: &dyn Service) {
    let provider = service.provider();
    let (key, wrapped) = make(&*provider);
    needs!(service.set_mood(Mood::Failing(2)));
    assert_eq!(open(&*provider, &wrapped).unwrap(), key);
}

pub fn slow(service: &dyn Service) {
    let provider = service.provider();
    let (key, wrapped) = make(&*provider);
    needs!(service.set_mood(Mood::Slow(Duration::from_millis(300))));
    assert_eq!(open(&*provider, &wrapped).unwrap(), key);
}

pub fn too_slow(service: &dyn Service) {
    let provider = service.provider();
    let (key, wrapped) = make(&*provider);
    needs!(service.set_mood(Mood::Slow(DEADLINE * 3)));
    within_deadline(|| assert_error!(open(&*provider, &wrapped), Unavailable));
    assert!(service.set_mood(Mood::Well));
    assert_eq!(open(&*provider, &wrapped).unwrap(), key);
}

pub fn unreachable(service: &dyn Service) {
    let Some(provider) = service.unreachable_provider() else {
        return;
    };
    within_deadline(|| {
        assert_error!(provider.generate(&context(1), KeyLen::Bits256), Unavailable);
    });
}

pub fn garbage(service: &dyn Service) {
    let provider = service.provider();
    let (key, wrapped) = make(&*provider);
    needs!(service.set_mood(Mood::Garbage));
    within_deadline(|| assert_error!(open(&*provider, &wrapped), Malformed | Unavailable));
    assert!(service.set_mood(Mood::Well));
    assert_eq!(open(&*provider, &wrapped).unwrap(), key);
}

pub fn oversized(service: &dyn Service) {
    let provider = service.provider();
    let (key, wrapped) = make(&*provider);
    needs!(service.set_mood(Mood::Oversized));
    within_deadline(|| assert_error!(open(&*provider, &wrapped), Malformed | Unavailable));
    assert!(service.set_mood(Mood::Well));
    assert_eq!(open(&*provider, &wrapped).unwrap(), key);
}

pub fn cut_off(service: &dyn Service) {
    let provider = service.provider();
    let (key, wrapped) = make(&*provider);
    needs!(service.set_mood(Mood::CutOff(2)));
    assert_eq!(open(&*provider, &wrapped).unwrap(), key, "tried again");
    assert!(service.set_mood(Mood::CutOff(usize::MAX)));
    within_deadline(|| assert_error!(open(&*provider, &wrapped), Malformed | Unavailable));
}

pub fn credentials_ending(service: &dyn Service) {
    let provider = service.provider();
    let (key, wrapped) = make(&*provider);
    needs!(service.end_credentials());
    assert_eq!(open(&*provider, &wrapped).unwrap(), key);
    assert!(service.end_credentials());
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| make(&*provider));
        }
    });
}

pub fn concurrent_calls(service: &dyn Service) {
    let provider = service.provider();
    let start = Barrier::new(CONCURRENT);
    let keys: HashSet<Vec<u8>> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..CONCURRENT)
            .map(|_| {
                scope.spawn(|| {
                    start.wait();
                    let (key, wrapped) = make(&*provider);
                    assert_eq!(open(&*provider, &wrapped).unwrap(), key);
                    key
                })
            })
            .collect();
        threads.into_iter().map(|t| t.join().unwrap()).collect()
    });
    assert_eq!(keys.len(), CONCURRENT);
}

pub fn checked(service: &dyn Service) {
    let report = check::check(&*service.provider());
    for step in &report.steps {
        assert!(step.result.is_ok(), "{}: {:?}", step.what, step.result);
    }
    assert!(report.failure().is_none() && report.steps.len() == 5);
    assert!(report.description.is_ok(), "{:?}", report.description);
    let report = check::check(&*service.provider_of_missing_key());
    assert!(report.failure().is_some());
}

fn within_deadline(action: impl FnOnce()) {
    let start = Instant::now();
    action();
    let took = start.elapsed();
    assert!(took < DEADLINE + SLACK, "it took {took:?}");
}
