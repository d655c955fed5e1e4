use super::*;
use crate::keys::KeyProvider;
use crate::keys::stats::BreakerState;
use crate::keys::testing::{CONTEXT, FakeClock, FakeProvider, context, wrong};

const LEN: KeyLen = KeyLen::Bits256;
const SECOND: Duration = Duration::from_secs(1);

fn service(provider: &Arc<FakeProvider>) -> KeyService {
    service_by(provider, Arc::new(BootClock))
}

fn service_by(provider: &Arc<FakeProvider>, clock: Arc<dyn Clock>) -> KeyService {
    let provider = Arc::clone(provider) as Arc<dyn KeyProvider>;
    let ring = KeyRing::new(vec![provider]).unwrap();
    KeyService::with(ring, CacheLimits::default(), 2 * SECOND, clock)
}

/// Makes a file's key; gives what its header would keep.
fn create(service: &KeyService) -> Wanted {
    let new = service.generate(CONTEXT.volume, LEN).unwrap();
    let context = KeyContext {
        file: new.file,
        ..CONTEXT
    };
    (context, new.wrapped)
}

/// Until `done`, but not for ever.
fn eventually(done: impl Fn() -> bool) {
    for _ in 0..2500 {
        if done() {
            return;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    panic!("it never came");
}

#[test]
fn creating_and_reopening_a_file_is_one_call() {
    for provider in [FakeProvider::new("a"), FakeProvider::remote("a")] {
        let service = service(&provider);
        let new = service.generate(CONTEXT.volume, LEN).unwrap();
        let context = KeyContext {
            file: new.file,
            ..CONTEXT
        };
        for _ in 0..1000 {
            let again = service.get(&context, &new.wrapped).unwrap();
            assert!(Arc::ptr_eq(&new.key, &again));
        }
        assert_eq!(provider.calls(), 1);
        service.remove(context.file);
        assert!(service.cached(&context, &new.wrapped).is_none());
        let again = service.get(&context, &new.wrapped).unwrap();
        assert_eq!(again.expose(), new.key.expose());
        assert_eq!(provider.calls(), 2);
        service.drop_all();
        assert!(service.cached(&context, &new.wrapped).is_none());
    }
}

#[test]
fn sixty_four_threads_are_one_provider_call() {
    for provider in [FakeProvider::new("a"), FakeProvider::remote("a")] {
        let service = service(&provider);
        let (context, wrapped) = create(&service);
        service.drop_all();
        provider.delay(Duration::from_millis(300));
        let start = std::sync::Barrier::new(64);
        std::thread::scope(|scope| {
            for _ in 0..64 {
                scope.spawn(|| {
                    start.wait();
                    service.get(&context, &wrapped).unwrap();
                });
            }
        });
        assert_eq!(provider.calls(), 2, "one to make the key, one for all");
    }
}

#[test]
fn a_wrapped_key_moved_to_another_file_is_rejected() {
    let provider = FakeProvider::new("a");
    let service = service(&provider);
    let (own, wrapped) = create(&service);
    let error = service.get(&context(9), &wrapped).unwrap_err();
    assert!(matches!(error, KeyError::Rejected { .. }));
    provider.fail(Some(wrong::disabled()));
    assert!(service.get(&own, &wrapped).is_ok(), "it is in memory");
}

#[test]
fn a_thread_that_may_not_wait_makes_no_call() {
    let provider = FakeProvider::remote("a");
    let service = service(&provider);
    let new = patience::none(|| service.generate(CONTEXT.volume, LEN));
    assert!(matches!(new, Err(KeyError::WouldWait)));
    assert_eq!(provider.calls(), 0);
    let (context, wrapped) = create(&service);
    assert!(patience::none(|| service.get(&context, &wrapped)).is_ok());
    service.drop_all();
    let got = patience::none(|| service.get(&context, &wrapped));
    assert!(matches!(got, Err(KeyError::WouldWait)));
    assert_eq!(provider.calls(), 1);
    let local = FakeProvider::new("a");
    let service = self::service(&local);
    assert!(patience::none(|| service.generate(CONTEXT.volume, LEN)).is_ok());
}

#[test]
fn refusals_are_remembered_for_seconds_and_then_asked_again() {
    let (provider, clock) = (FakeProvider::remote("a"), Arc::new(FakeClock::default()));
    let service = service_by(&provider, clock.clone());
    let (context, wrapped) = create(&service);
    service.drop_all();
    provider.fail(Some(wrong::disabled()));
    for _ in 0..100 {
        let error = service.get(&context, &wrapped).unwrap_err();
        assert!(matches!(error, KeyError::Disabled { .. }));
        // Also where there is no waiting.
        let error = patience::none(|| service.get(&context, &wrapped)).unwrap_err();
        assert!(matches!(error, KeyError::Disabled { .. }));
    }
    assert_eq!(provider.calls(), 2);
    provider.fail(None);
    clock.advance(5);
    service.get(&context, &wrapped).unwrap();
    assert_eq!(service.stats().remembered_refusals, 199);
}

#[test]
fn a_refused_creation_is_remembered_too() {
    let provider = FakeProvider::remote("a");
    let service = service(&provider);
    provider.fail(Some(wrong::denied()));
    for _ in 0..10 {
        assert!(service.generate(CONTEXT.volume, LEN).is_err());
    }
    assert_eq!(provider.calls(), 1);
    provider.fail(None);
    service.drop_all();
    create(&service);
}

#[test]
fn refreshing_begins_a_keys_time_anew() {
    let (provider, clock) = (FakeProvider::remote("a"), Arc::new(FakeClock::default()));
    let service = service_by(&provider, clock.clone());
    let (context, wrapped) = create(&service);
    let used = |seconds| {
        clock.advance(seconds);
        service.cached(&context, &wrapped).is_some()
    };
    assert!(used(200) && used(200) && used(190));
    service.refresh(&context, &wrapped).unwrap();
    assert!(used(200) && used(200) && used(190));
    provider.fail(Some(wrong::unavailable()));
    service.refresh(&context, &wrapped).unwrap_err();
    assert!(used(5), "an outage takes no key");
    assert!(!used(5), "and gives none");
    provider.fail(None);
    service.get(&context, &wrapped).unwrap();
    provider.fail(Some(wrong::denied()));
    service.refresh(&context, &wrapped).unwrap_err();
    assert!(!used(0), "a refusal does");
}

#[test]
fn keys_wanted_ahead_are_unwrapped_once_and_at_the_same_time() {
    let provider = FakeProvider::remote("a");
    let service = service(&provider);
    let wanted: Vec<_> = (0..64).map(|_| create(&service)).collect();
    service.drop_all();
    let calls = provider.calls();
    provider.delay(Duration::from_millis(100));
    let start = Instant::now();
    service.prefetch(wanted.clone());
    service.prefetch(wanted.clone());
    let (context, wrapped) = &wanted[5];
    service.get(context, wrapped).unwrap();
    eventually(|| wanted.iter().all(|(c, w)| service.cached(c, w).is_some()));
    assert!(start.elapsed() < 2 * SECOND, "{:?}", start.elapsed());
    assert_eq!(provider.calls(), calls + 64);
    assert!(service.stats().prefetched >= 63);
}

#[test]
fn a_failed_prefetch_is_no_failed_open() {
    let provider = FakeProvider::remote("a");
    let service = service(&provider);
    let (context, wrapped) = create(&service);
    service.drop_all();
    provider.delay(Duration::from_millis(100));
    provider.fail_times(1, wrong::denied());
    service.prefetch(vec![(context, wrapped.clone())]);
    eventually(|| provider.calls() == 2);
    service.get(&context, &wrapped).unwrap();
}

#[test]
fn an_outage_ends_by_itself() {
    let provider = FakeProvider::remote("a");
    let service = service(&provider);
    let (context, wrapped) = create(&service);
    service.drop_all();
    provider.fail(Some(wrong::unavailable()));
    let start = Instant::now();
    while service.stats().providers[0].breaker != BreakerState::Open {
        assert!(service.get(&context, &wrapped).is_err());
        assert!(start.elapsed() < 10 * SECOND);
    }
    let start = Instant::now();
    assert!(service.get(&context, &wrapped).is_err());
    assert!(start.elapsed() < SECOND / 2, "it fails at once");
    provider.fail(None);
    eventually(|| service.get(&context, &wrapped).is_ok());
    let stats = service.stats();
    assert_eq!(stats.providers[0].breaker, BreakerState::Closed);
    assert_eq!(stats.providers[0].in_flight, 0);
    assert_eq!(stats.providers[0].calls as usize, provider.calls());
}

#[test]
fn the_deadline_of_the_thread_counts() {
    let provider = FakeProvider::remote("a");
    let service = service(&provider);
    let (context, wrapped) = create(&service);
    service.drop_all();
    provider.fail(Some(wrong::throttled()));
    let start = Instant::now();
    let soon = start + Duration::from_millis(200);
    let got = patience::until(soon, Priority::Interactive, || {
        service.get(&context, &wrapped)
    });
    assert!(matches!(got, Err(KeyError::Throttled { .. })));
    assert!(start.elapsed() < Duration::from_millis(700));
}
