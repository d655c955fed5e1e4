//! A volume's recipients, used as one.

use std::sync::Arc;

use crate::crypto::DataKey;
use crate::keys::audit::{AuditLog, Audited};
use crate::keys::{KeyContext, KeyError, KeyProvider, WrappedKey};
use crate::types::KeyLen;

/// The key providers of a volume, in its recipients' order. Each wraps every
/// data key; any one of them can unwrap it.
pub struct KeyRing {
    providers: Vec<Arc<dyn KeyProvider>>,
}

impl KeyRing {
    /// A ring of at least one provider, each with another key.
    pub fn new(providers: Vec<Arc<dyn KeyProvider>>) -> Result<Self, KeyError> {
        let problem = if providers.is_empty() {
            Some("a volume needs at least one key".to_owned())
        } else {
            let repeated = providers.iter().enumerate().find(|(index, provider)| {
                let earlier = &providers[..*index];
                earlier.iter().any(|other| other.uri() == provider.uri())
            });
            repeated.map(|(_, provider)| format!("key {} is given twice", provider.uri()))
        };
        match problem {
            Some(detail) => Err(KeyError::Configuration { detail, hint: None }),
            None => Ok(Self { providers }),
        }
    }

    /// The ring of what `wrap` makes of each provider.
    pub(super) fn map(
        self,
        wrap: impl FnMut(Arc<dyn KeyProvider>) -> Arc<dyn KeyProvider>,
    ) -> Self {
        let providers = self.providers.into_iter().map(wrap).collect();
        Self { providers }
    }

    /// The same recipients, with every release of theirs in `log`.
    pub fn audited(self, log: &Arc<AuditLog>) -> Self {
        self.map(|provider| Arc::new(Audited::new(provider, Arc::clone(log))))
    }

    /// The providers' URIs, in order.
    pub fn uris(&self) -> impl Iterator<Item = &str> {
        self.providers.iter().map(|provider| provider.uri())
    }

    /// Whether every call is answered inside this process.
    pub fn is_local(&self) -> bool {
        self.providers.iter().all(|provider| provider.is_local())
    }

    /// Makes a data key, wrapped by every recipient, in order. The first that
    /// can makes it, the others wrap it. Fails if one of them cannot: a file
    /// that silently lacks a recipient would be lost with the others.
    pub fn generate(
        &self,
        context: &KeyContext,
        len: KeyLen,
    ) -> Result<(DataKey, Vec<WrappedKey>), KeyError> {
        let mut errors = Vec::new();
        for (maker, provider) in self.providers.iter().enumerate() {
            match provider.generate(context, len) {
                Ok((key, wrapped)) => {
                    let mut first = Some(wrapped);
                    let all = self.providers.iter().enumerate();
                    let wrapped = all
                        .map(
                            |(index, provider)| match first.take_if(|_| index == maker) {
                                Some(wrapped) => Ok(wrapped),
                                None => provider.wrap(context, &key),
                            },
                        )
                        .collect::<Result<_, _>>()?;
                    return Ok((key, wrapped));
                }
                Err(error) => errors.push(error),
            }
        }
        Err(most_informative(errors).expect("a ring is never empty"))
    }

    /// Wraps an existing data key for every recipient, in order.
    pub fn wrap(&self, context: &KeyContext, key: &DataKey) -> Result<Vec<WrappedKey>, KeyError> {
        let providers = self.providers.iter();
        providers.map(|p| p.wrap(context, key)).collect()
    }

    /// Gives the data key back through the first recipient that can. If none
    /// can, the error is the one that says most.
    pub fn unwrap(
        &self,
        context: &KeyContext,
        wrapped: &[WrappedKey],
    ) -> Result<DataKey, KeyError> {
        let mut errors = Vec::new();
        for provider in &self.providers {
            for wrapped in wrapped.iter().filter(|w| provider.recognises(w)) {
                match provider.unwrap(context, wrapped) {
                    Ok(key) => return Ok(key),
                    Err(error) => errors.push(error),
                }
            }
        }
        Err(most_informative(errors).unwrap_or_else(|| unknown_recipients(wrapped)))
    }
}

/// None of the wrapped keys is of a key that is known here.
pub(super) fn unknown_recipients(wrapped: &[WrappedKey]) -> KeyError {
    let uris: Vec<&str> = wrapped.iter().map(|w| w.key_uri.as_str()).collect();
    KeyError::NotFound {
        key: uris.join(", "),
        detail: "it is none of the keys the volume was opened with".into(),
    }
}

/// The error that tells a user most about why no recipient worked; the first
/// of them among equals.
pub(crate) fn most_informative(errors: Vec<KeyError>) -> Option<KeyError> {
    errors.into_iter().min_by_key(rank)
}

/// What may pass by itself comes first, as trying again is then right; then
/// what points at an attack; then what someone decided; last what only says
/// that one recipient is not set up here.
fn rank(error: &KeyError) -> u8 {
    match error {
        KeyError::Unavailable { .. } => 0,
        KeyError::Throttled { .. } => 1,
        KeyError::Rejected { .. } => 2,
        KeyError::Disabled { .. } => 3,
        KeyError::Expired { .. } => 4,
        KeyError::Denied { .. } => 5,
        KeyError::Malformed { .. } => 6,
        KeyError::NotFound { .. } => 7,
        KeyError::Configuration { .. } => 8,
        KeyError::Locked | KeyError::WouldWait => 9,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::testing::{CONTEXT, FakeProvider, wrong};

    fn ring(providers: &[&Arc<FakeProvider>]) -> KeyRing {
        let providers = providers
            .iter()
            .map(|p| Arc::clone(p) as Arc<dyn KeyProvider>);
        KeyRing::new(providers.collect()).unwrap()
    }

    #[test]
    fn every_recipient_wraps_the_same_key() {
        let (a, b) = (FakeProvider::new("a"), FakeProvider::new("b"));
        let both = ring(&[&a, &b]);
        let (key, wrapped) = both.generate(&CONTEXT, KeyLen::Bits256).unwrap();
        let uris: Vec<&str> = wrapped.iter().map(|w| w.key_uri.as_str()).collect();
        assert_eq!(uris, ["a", "b"]);
        assert_eq!(both.uris().collect::<Vec<_>>(), uris);
        for one in [ring(&[&a]), ring(&[&b])] {
            let again = one.unwrap(&CONTEXT, &wrapped).unwrap();
            assert_eq!(again.expose(), key.expose());
        }
        assert_eq!(both.wrap(&CONTEXT, &key).unwrap().len(), 2);
    }

    #[test]
    fn order_is_kept_when_the_first_cannot_generate() {
        let (a, b) = (FakeProvider::new("a"), FakeProvider::new("b"));
        a.fail_generate(Some(wrong::denied()));
        let (_, wrapped) = ring(&[&a, &b]).generate(&CONTEXT, KeyLen::Bits256).unwrap();
        assert_eq!(wrapped[0].key_uri, "a");
        assert_eq!(wrapped[1].key_uri, "b");
    }

    #[test]
    fn a_recipient_that_cannot_wrap_fails_the_whole() {
        let (a, b) = (FakeProvider::new("a"), FakeProvider::new("b"));
        b.fail(Some(wrong::unavailable()));
        let error = ring(&[&a, &b])
            .generate(&CONTEXT, KeyLen::Bits256)
            .unwrap_err();
        assert!(matches!(error, KeyError::Unavailable { .. }));
        let error = ring(&[&b, &a])
            .generate(&CONTEXT, KeyLen::Bits256)
            .unwrap_err();
        assert!(matches!(error, KeyError::Unavailable { .. }));
    }

    #[test]
    fn unwrapping_fails_over_and_says_why_it_failed() {
        let (a, b) = (FakeProvider::new("a"), FakeProvider::new("b"));
        let both = ring(&[&a, &b]);
        let (_, wrapped) = both.generate(&CONTEXT, KeyLen::Bits128).unwrap();
        a.fail(Some(wrong::disabled()));
        both.unwrap(&CONTEXT, &wrapped).unwrap();
        b.fail(Some(wrong::not_found()));
        let error = both.unwrap(&CONTEXT, &wrapped).unwrap_err();
        assert!(matches!(error, KeyError::Disabled { .. }));
        b.fail(Some(wrong::unavailable()));
        let error = both.unwrap(&CONTEXT, &wrapped).unwrap_err();
        assert!(matches!(error, KeyError::Unavailable { .. }));
    }

    #[test]
    fn only_matching_recipients_are_asked() {
        let (a, b) = (FakeProvider::new("a"), FakeProvider::new("b"));
        let (_, wrapped) = ring(&[&a]).generate(&CONTEXT, KeyLen::Bits256).unwrap();
        let error = ring(&[&b]).unwrap(&CONTEXT, &wrapped).unwrap_err();
        assert!(matches!(error, KeyError::NotFound { .. }));
        assert_eq!(b.calls(), 0);
        ring(&[&b, &a]).unwrap(&CONTEXT, &wrapped).unwrap();
        assert_eq!(b.calls(), 0);
    }

    #[test]
    fn a_ring_is_neither_empty_nor_repeats() {
        assert!(KeyRing::new(Vec::new()).is_err());
        let a = FakeProvider::new("a") as Arc<dyn KeyProvider>;
        assert!(KeyRing::new(vec![Arc::clone(&a), a]).is_err());
    }
}
