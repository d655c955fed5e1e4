use super::*;
use crate::keys::KeyProvider;
use crate::keys::audit::caller;
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
    // Not so long that the provider counts as down.
    let soon = Instant::now() + SECOND / 10;
    patience::until(soon, Priority::Maintenance, || {
        service.refresh(&context, &wrapped).unwrap_err();
    });
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
    // Some keys for new files may have been on their way.
    let made = provider.calls() - calls;
    assert!((64..100).contains(&made), "{made} calls");
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

#[test]
fn a_locked_service_gives_and_keeps_nothing_also_not_what_was_on_its_way() {
    let provider = FakeProvider::remote("a");
    let service = service(&provider);
    let files: Vec<_> = (0..64).map(|_| create(&service)).collect();
    let (context, wrapped) = &files[0];
    service.drop_all();
    provider.delay(Duration::from_millis(200));
    let calls = provider.calls();
    service.prefetch(files[1..].to_vec());
    std::thread::scope(|scope| {
        let asking = scope.spawn(|| service.get(context, wrapped).err());
        eventually(|| provider.calls() > calls + 8);
        service.set_locked(true);
        assert!(matches!(asking.join().unwrap(), Some(KeyError::Locked)));
    });
    eventually(|| service.stats().providers[0].in_flight == 0);
    std::thread::sleep(Duration::from_millis(50));
    let stats = service.stats();
    assert_eq!((stats.cache.entries, stats.pool.ready), (0, 0));
    let new = service.generate(CONTEXT.volume, LEN);
    assert!(matches!(new.err(), Some(KeyError::Locked)));
    service.set_locked(false);
    assert!(service.get(context, wrapped).is_ok());
}

#[test]
fn who_insists_is_answered_once_a_provider_is_back() {
    let provider = FakeProvider::remote("a");
    let service = service(&provider);
    let (context, wrapped) = create(&service);
    provider.fail(Some(wrong::unavailable()));
    while service.stats().providers[0].breaker == BreakerState::Closed {
        assert!(service.unwrap(&context, &wrapped).is_err());
    }
    provider.fail(None);
    assert!(
        service.unwrap(&context, &wrapped).is_err(),
        "it is not asked"
    );
    service.is_given(&context, &wrapped).unwrap();
    provider.fail(Some(wrong::denied()));
    let start = Instant::now();
    let refused = service.is_given(&context, &wrapped);
    assert!(matches!(refused, Err(KeyError::Denied { .. })));
    assert!(start.elapsed() < SECOND);
}

#[test]
fn the_audit_log_says_whose_doing_every_key_was() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("audit");
    let log = Arc::new(AuditLog::open(path.to_str().unwrap()).unwrap());
    let fakes = [FakeProvider::remote("a"), FakeProvider::remote("b")];
    let providers = fakes.iter().map(|f| Arc::clone(f) as Arc<dyn KeyProvider>);
    let ring = KeyRing::new(providers.collect()).unwrap().audited(&log);
    let clock = Arc::new(BootClock);
    let service = KeyService::with(ring, CacheLimits::default(), 2 * SECOND, clock).audited(log);
    let as_user = |uid, work: &dyn Fn()| {
        caller::on_behalf(Some(caller::Caller { thread: 0, uid }), work);
    };
    let lines = || -> Vec<serde_json::Value> {
        let text = std::fs::read_to_string(&path).unwrap();
        let lines = text.lines().map(|line| serde_json::from_str(line).unwrap());
        lines.collect()
    };
    // More than the pool leaves to those who ask.
    let made = parking_lot::Mutex::new(Vec::new());
    as_user(7, &|| {
        for _ in 0..40 {
            made.lock().push(create(&service));
            std::thread::sleep(Duration::from_millis(5));
        }
    });
    let made = made.into_inner();
    for (context, _) in &made {
        let file = context.file.to_hex();
        let of_file = lines().into_iter().filter(|l| l["file"] == file.as_str());
        let by: Vec<_> = of_file
            .map(|l| (l["event"].as_str().unwrap().to_owned(), l["uid"].as_u64()))
            .collect();
        let direct = [("generate".to_owned(), Some(7))];
        let ahead = [
            ("generate".to_owned(), None),
            ("assign".to_owned(), Some(7)),
        ];
        assert!(by == direct || by == ahead, "{by:?}");
    }
    assert!(lines().iter().any(|l| l["event"] == "assign"));
    service.drop_all();
    let before = lines().len();
    let (context, wrapped) = &made[0];
    as_user(8, &|| drop(service.get(context, wrapped).unwrap()));
    as_user(9, &|| service.prefetch(made[1..5].to_vec()));
    eventually(|| service.stats().prefetched == 4);
    let opened = lines().split_off(before);
    let opened = opened.iter().filter(|l| l["event"] == "unwrap");
    let mut by: Vec<_> = opened.map(|l| l["uid"].as_u64()).collect();
    by.sort_unstable();
    assert_eq!(by, [Some(8), Some(9), Some(9), Some(9), Some(9)]);
}

#[test]
fn what_is_wanted_ahead_goes_to_a_recipient_that_is_not_down_in_batches() {
    let (a, b) = (
        FakeProvider::remote("a"),
        FakeProvider::with_batches("b", 16),
    );
    let providers = [a.clone(), b.clone()].map(|p| p as Arc<dyn KeyProvider>);
    let ring = KeyRing::new(providers.to_vec()).unwrap();
    let clock = Arc::new(BootClock);
    let service = KeyService::with(ring, CacheLimits::default(), 2 * SECOND, clock);
    let files: Vec<_> = (0..64).map(|_| create(&service)).collect();
    service.drop_all();
    a.fail(Some(wrong::unavailable()));
    let (context, wrapped) = &files[0];
    while service.stats().providers[0].breaker == BreakerState::Closed {
        // Over to the second.
        service.unwrap(context, wrapped).unwrap();
    }
    let calls = b.calls();
    service.prefetch(files.clone());
    eventually(|| files.iter().all(|(c, w)| service.cached(c, w).is_some()));
    assert!(b.calls() - calls < 40, "{} calls", b.calls() - calls);
}
