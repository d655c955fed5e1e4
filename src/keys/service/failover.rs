//! Unwrapping through whichever recipient answers first. The first is asked
//! first; the next one when the one before has failed, or is slower than it
//! usually is.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use crate::crypto::DataKey;
use crate::keys::audit::caller;
use crate::keys::patience::{self, Priority};
use crate::keys::ring::{most_informative, unknown_recipients};
use crate::keys::{KeyContext, KeyError, KeyProvider, WrappedKey};
use crate::sys::workers::Workers;

use super::guard::Guarded;

/// How many times a recipient's usual time to wait before the next is asked.
const USUAL: u32 = 2;
const SHORTEST_WAIT: Duration = Duration::from_millis(20);
const LONGEST_WAIT: Duration = Duration::from_secs(2);
/// The same while it is not known how long a recipient usually takes.
const UNKNOWN: Duration = Duration::from_millis(500);
/// What a provider may take to notice that its time is over.
const OVERTIME: Duration = Duration::from_millis(500);

/// Gives the data key back through the first recipient that can.
pub(super) fn unwrap(
    recipients: &[Arc<Guarded>],
    workers: &Workers,
    context: &KeyContext,
    wrapped: &[WrappedKey],
    (deadline, priority): (Instant, Priority),
) -> Result<DataKey, KeyError> {
    let mut candidates = Vec::new();
    for recipient in recipients {
        let own = wrapped.iter().filter(|w| recipient.recognises(w));
        candidates.extend(own.map(|wrapped| (Arc::clone(recipient), wrapped)));
    }
    match candidates.as_slice() {
        [] => return Err(unknown_recipients(wrapped)),
        [(only, wrapped)] => {
            return patience::until(deadline, priority, || only.unwrap(context, wrapped));
        }
        _ => {}
    }
    let (sender, answers) = channel();
    let mut candidates = candidates.into_iter();
    let (mut running, mut asked) = (0, 0);
    let mut errors: Vec<KeyError> = Vec::new();
    let end = deadline + OVERTIME;
    let mut next = Instant::now();
    loop {
        let now = Instant::now();
        if running == 0 || now >= next {
            let in_time = running == 0 || now < deadline;
            match candidates.next().filter(|_| in_time) {
                Some((recipient, wrapped)) => {
                    next = now + usual_time(&recipient);
                    // Not if all before have failed: then it is the only one.
                    if running > 0 {
                        recipient.counters.hedges.fetch_add(1, Ordering::Relaxed);
                    }
                    (running, asked) = (running + 1, asked + 1);
                    let (context, wrapped, sender) = (*context, wrapped.clone(), sender.clone());
                    let whose = caller::get();
                    workers.run(move || {
                        let call = || recipient.unwrap(&context, &wrapped);
                        let call = || caller::on_behalf(whose, call);
                        // Another one may have answered first.
                        let _ = sender.send((asked, patience::until(deadline, priority, call)));
                    });
                }
                None if running == 0 => {
                    return Err(most_informative(errors).expect("someone was asked"));
                }
                None => next = end,
            }
        }
        let wait = next.min(end).saturating_duration_since(Instant::now());
        match answers.recv_timeout(wait) {
            Ok((_, Ok(key))) => return Ok(key),
            Ok((who, Err(error))) => {
                running -= 1;
                errors.push(error);
                if who == asked {
                    next = Instant::now();
                }
            }
            Err(RecvTimeoutError::Timeout) if Instant::now() >= end => {
                errors.push(out_of_time(wrapped));
                return Err(most_informative(errors).expect("just added"));
            }
            Err(_) => {}
        }
    }
}

fn usual_time(recipient: &Guarded) -> Duration {
    let usual = recipient.counters.latency.quantile(0.95);
    usual.map_or(UNKNOWN, |time| {
        (time * USUAL).clamp(SHORTEST_WAIT, LONGEST_WAIT)
    })
}

fn out_of_time(wrapped: &[WrappedKey]) -> KeyError {
    let uris: Vec<&str> = wrapped.iter().map(|w| w.key_uri.as_str()).collect();
    KeyError::Unavailable {
        key: uris.join(", "),
        detail: "no answer in time".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::KeyRing;
    use crate::keys::testing::{CONTEXT, FakeProvider, wrong};
    use crate::types::KeyLen;

    struct World {
        a: Arc<FakeProvider>,
        b: Arc<FakeProvider>,
        recipients: Vec<Arc<Guarded>>,
        wrapped: Vec<WrappedKey>,
        workers: Workers,
    }

    impl World {
        fn new() -> Self {
            let (a, b) = (FakeProvider::remote("a"), FakeProvider::remote("b"));
            let providers = || [a.clone(), b.clone()].map(|p| p as Arc<dyn KeyProvider>);
            let ring = KeyRing::new(providers().to_vec()).unwrap();
            let (_, wrapped) = ring.generate(&CONTEXT, KeyLen::Bits256).unwrap();
            let time = Duration::from_secs(5);
            let guarded = providers().map(|p| Arc::new(Guarded::new(p, time)));
            Self {
                recipients: guarded.to_vec(),
                wrapped,
                workers: Workers::new("test", 8),
                a,
                b,
            }
        }

        fn unwrap(&self, time: Duration) -> Result<DataKey, KeyError> {
            let end = (Instant::now() + time, Priority::Interactive);
            unwrap(
                &self.recipients,
                &self.workers,
                &CONTEXT,
                &self.wrapped,
                end,
            )
        }
    }

    #[test]
    fn the_second_is_left_alone_while_the_first_answers() {
        let world = World::new();
        let before = world.b.calls();
        for _ in 0..10 {
            world.unwrap(Duration::from_secs(5)).unwrap();
        }
        assert_eq!(world.b.calls(), before);
    }

    #[test]
    fn a_slow_first_is_overtaken() {
        let world = World::new();
        for _ in 0..10 {
            world.unwrap(Duration::from_secs(5)).unwrap();
        }
        world.a.delay(Duration::from_secs(2));
        let start = Instant::now();
        world.unwrap(Duration::from_secs(5)).unwrap();
        assert!(start.elapsed() < Duration::from_secs(1));
        let stats = world.recipients[1].stats();
        assert_eq!((stats.hedges, stats.calls), (1, 1));
    }

    #[test]
    fn a_refusal_leads_to_the_next_at_once_and_the_best_error_is_told() {
        let world = World::new();
        world.a.fail(Some(wrong::disabled()));
        let start = Instant::now();
        world.unwrap(Duration::from_secs(5)).unwrap();
        assert!(start.elapsed() < Duration::from_millis(400));
        world.b.fail(Some(wrong::not_found()));
        assert!(matches!(
            world.unwrap(Duration::from_secs(5)),
            Err(KeyError::Disabled { .. })
        ));
    }

    #[test]
    fn all_recipients_share_one_deadline() {
        let world = World::new();
        world.a.delay(Duration::from_secs(3));
        world.b.delay(Duration::from_secs(3));
        let start = Instant::now();
        let error = world.unwrap(Duration::from_millis(200)).err();
        assert!(matches!(error, Some(KeyError::Unavailable { .. })));
        assert!(start.elapsed() < Duration::from_secs(1));
    }

    #[test]
    fn a_key_of_nobody_here_is_not_asked_for() {
        let world = World::new();
        let mut wrapped = world.wrapped.clone();
        wrapped.iter_mut().for_each(|w| w.key_uri = "c".into());
        let end = (Instant::now(), Priority::Interactive);
        let found = unwrap(&world.recipients, &world.workers, &CONTEXT, &wrapped, end);
        assert!(matches!(found.err(), Some(KeyError::NotFound { .. })));
    }
}
