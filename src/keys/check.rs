//! Whether a key can do all that a volume needs of it.

use crate::crypto::random;
use crate::keys::{KeyContext, KeyError, KeyProvider, WrappedKey};
use crate::types::{FileId, KeyLen, VolumeId};

/// What was found out about a key.
pub struct Report {
    /// What the provider says about it, or why it says nothing.
    pub description: Result<Vec<(&'static str, String)>, KeyError>,
    /// What was tried, in order. Nothing is tried after a failure of what a
    /// mount cannot do without.
    pub steps: Vec<Step>,
}

/// One thing that was tried.
pub struct Step {
    /// What, in words.
    pub what: &'static str,
    /// Whether a volume with this key alone needs it.
    pub needed: bool,
    /// How it went.
    pub result: Result<(), KeyError>,
    /// What to do about its failure.
    pub advice: Option<String>,
}

impl Report {
    /// The first failure of what a volume needs.
    pub fn failure(&self) -> Option<(&KeyError, Option<&str>)> {
        let mut failures = self.steps.iter().filter(|step| step.needed);
        failures.find_map(|step| {
            let error = step.result.as_ref().err()?;
            Some((error, step.advice.as_deref()))
        })
    }
}

/// Tries every operation that mounts need, with contexts of no real file.
pub fn check(provider: &dyn KeyProvider) -> Report {
    let context = KeyContext {
        volume: VolumeId(random::bytes()),
        file: FileId(random::bytes()),
    };
    let mut steps = Vec::new();
    // Stops at the first thing without which the rest makes no sense.
    let _ = try_all(provider, &context, &mut steps);
    Report {
        // Last, as a provider may have learned something meanwhile.
        description: provider.describe(),
        steps,
    }
}

struct Stop;

fn try_all(
    provider: &dyn KeyProvider,
    context: &KeyContext,
    steps: &mut Vec<Step>,
) -> Result<(), Stop> {
    let mut record = |what, needed, result: Result<(), KeyError>| {
        let advice = result.as_ref().err().and_then(|e| provider.advice(e));
        let failed = result.is_err();
        steps.push(Step {
            what,
            needed,
            result,
            advice,
        });
        if failed { Err(Stop) } else { Ok(()) }
    };
    let (key, wrapped) = match provider.generate(context, KeyLen::Bits256) {
        Ok(made) => {
            record("make a data key", true, Ok(()))?;
            made
        }
        Err(error) => return record("make a data key", true, Err(error)),
    };
    let same = |wrapped: &WrappedKey| match provider.unwrap(context, wrapped)?.expose() {
        bytes if bytes == key.expose() => Ok(()),
        _ => Err(wrong(provider, "it unwrapped to another data key")),
    };
    record("unwrap the data key", true, same(&wrapped))?;
    record(
        "reject it for another file",
        true,
        rejects(provider, context, &wrapped),
    )?;
    let rewrapped = provider.rewrap(context, &wrapped).and_then(|w| same(&w));
    let _ = record("wrap it under the current key version", false, rewrapped);
    let wrapped = provider.wrap(context, &key).and_then(|w| same(&w));
    let _ = record("wrap a data key that another key made", false, wrapped);
    Ok(())
}

fn rejects(
    provider: &dyn KeyProvider,
    context: &KeyContext,
    wrapped: &WrappedKey,
) -> Result<(), KeyError> {
    let other = KeyContext {
        file: FileId(random::bytes()),
        ..*context
    };
    match provider.unwrap(&other, wrapped) {
        Err(KeyError::Rejected { .. }) => Ok(()),
        Err(error) => Err(error),
        Ok(_) => Err(wrong(
            provider,
            "it unwrapped for a file it was not made for",
        )),
    }
}

fn wrong(provider: &dyn KeyProvider, problem: &str) -> KeyError {
    KeyError::Malformed {
        key: provider.uri().to_owned(),
        detail: problem.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::testing::{FakeProvider, wrong};

    #[test]
    fn a_good_key_passes_every_step() {
        let report = check(&*FakeProvider::new("a"));
        assert_eq!(report.steps.len(), 5);
        assert!(report.steps.iter().all(|step| step.result.is_ok()));
        assert!(report.failure().is_none());
    }

    #[test]
    fn a_refusal_is_the_last_step() {
        let provider = FakeProvider::new("a");
        provider.fail(Some(wrong::denied()));
        let report = check(&*provider);
        assert_eq!(report.steps.len(), 1);
        assert!(matches!(
            report.failure(),
            Some((KeyError::Denied { .. }, None))
        ));
    }
}
