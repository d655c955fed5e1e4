use std::sync::Barrier;
use std::sync::atomic::AtomicUsize;

use super::*;
use crate::keys::testing::{CONTEXT, FakeClock, context, wrong};
use crate::types::KeyLen;

fn cache(entries: usize) -> (KeyCache, Arc<FakeClock>) {
    let clock = Arc::new(FakeClock::default());
    let limits = CacheLimits {
        entries,
        ..CacheLimits::default()
    };
    (
        KeyCache::new(limits, Arc::clone(&clock) as Arc<dyn Clock>),
        clock,
    )
}

fn wrapped(byte: u8) -> Vec<WrappedKey> {
    vec![WrappedKey {
        key_uri: "test".into(),
        key_version: String::new(),
        algorithm: String::new(),
        iv: Vec::new(),
        ciphertext: vec![byte; 8],
    }]
}

fn key() -> Result<DataKey, KeyError> {
    Ok(DataKey::random(KeyLen::Bits256))
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(20)
}

fn fetch(cache: &KeyCache, file: u8) -> Arc<DataKey> {
    cache
        .get_or_fetch(&context(file), &wrapped(file), soon(), key)
        .unwrap()
}

fn holds(cache: &KeyCache, file: u8) -> bool {
    cache.get(&context(file), &wrapped(file)).is_some()
}

/// Runs `threads` fetches of one file at once; gives how many were real and
/// what each thread got.
fn stampede(cache: &KeyCache, threads: usize, answer: &Fetched) -> (usize, Vec<Fetched>) {
    let calls = AtomicUsize::new(0);
    let start = Barrier::new(threads);
    let ask = || {
        start.wait();
        cache.get_or_fetch(&CONTEXT, &wrapped(0), soon(), || {
            calls.fetch_add(1, Ordering::SeqCst);
            // Long enough for every thread to arrive.
            std::thread::sleep(Duration::from_millis(300));
            match answer {
                Ok(_) => key(),
                Err(error) => Err(error.clone()),
            }
        })
    };
    let got = std::thread::scope(|scope| {
        let handles: Vec<_> = (0..threads).map(|_| scope.spawn(ask)).collect();
        handles.into_iter().map(|h| h.join().unwrap()).collect()
    });
    (calls.load(Ordering::SeqCst), got)
}

#[test]
fn sixty_four_threads_are_one_call() {
    let (cache, _) = cache(1000);
    let (calls, got) = stampede(&cache, 64, &key().map(Arc::new));
    assert_eq!(calls, 1);
    let first = got[0].as_ref().unwrap();
    for key in &got {
        assert!(Arc::ptr_eq(first, key.as_ref().unwrap()));
    }
    let counters = cache.counters();
    assert_eq!((counters.hits, counters.misses, counters.calls), (0, 64, 1));
}

#[test]
fn a_failure_reaches_every_waiter_and_is_not_kept() {
    let (cache, _) = cache(1000);
    let (calls, got) = stampede(&cache, 64, &Err(wrong::denied()));
    assert_eq!(calls, 1);
    for result in got {
        assert!(matches!(result, Err(KeyError::Denied { .. })));
    }
    assert!(
        cache
            .get_or_fetch(&CONTEXT, &wrapped(0), soon(), key)
            .is_ok()
    );
}

#[test]
fn a_panic_in_the_provider_does_not_strand_waiters() {
    let (cache, _) = cache(1000);
    let in_flight = Barrier::new(2);
    std::thread::scope(|scope| {
        let leader = scope.spawn(|| {
            cache.get_or_fetch(&CONTEXT, &wrapped(0), soon(), || {
                in_flight.wait();
                std::thread::sleep(Duration::from_millis(200));
                panic!("injected")
            })
        });
        in_flight.wait();
        let waiter = cache.get_or_fetch(&CONTEXT, &wrapped(0), soon(), || panic!("not called"));
        assert!(matches!(waiter, Err(KeyError::Unavailable { .. })));
        assert!(leader.join().is_err());
    });
    assert!(
        cache
            .get_or_fetch(&CONTEXT, &wrapped(0), soon(), key)
            .is_ok()
    );
}

#[test]
fn a_key_lives_ten_minutes_however_busy() {
    let (cache, clock) = cache(1000);
    fetch(&cache, 1);
    for _ in 0..5 {
        clock.advance(119);
        assert!(holds(&cache, 1));
    }
    clock.advance(5);
    assert!(!holds(&cache, 1), "600 s after it was fetched");
    assert!(cache.is_empty());
}

#[test]
fn an_idle_key_lives_five_minutes() {
    let (cache, clock) = cache(1000);
    fetch(&cache, 1);
    clock.advance(299);
    assert!(holds(&cache, 1));
    clock.advance(300);
    assert!(!holds(&cache, 1));
}

#[test]
fn sweeping_takes_what_no_one_asks_for() {
    let (cache, clock) = cache(1000);
    let old = Arc::downgrade(&fetch(&cache, 1));
    clock.advance(200);
    fetch(&cache, 2);
    assert_eq!(cache.sweep(), 0);
    clock.advance(100);
    assert_eq!(cache.sweep(), 1);
    assert!(old.upgrade().is_none(), "the key itself is gone");
    assert!(holds(&cache, 2));
    assert_eq!(cache.counters().evictions, 1);
}

#[test]
fn the_least_recently_used_goes_first() {
    let (cache, _) = cache(3);
    for file in 1..=3 {
        fetch(&cache, file);
    }
    assert!(holds(&cache, 1));
    fetch(&cache, 4);
    assert!(!holds(&cache, 2));
    for file in [1, 3, 4] {
        assert!(holds(&cache, file), "{file}");
    }
    assert_eq!(cache.len(), 3);
}

#[test]
fn the_bound_holds_over_all_shards() {
    let (cache, _) = cache(1024);
    assert!(cache.shards.len() > 1);
    for number in 0..5000u32 {
        let mut context = CONTEXT;
        context.file = FileId(crate::crypto::random::bytes());
        cache.insert(&context, &wrapped(number as u8), Arc::new(key().unwrap()));
    }
    assert!((900..=1024).contains(&cache.len()), "{}", cache.len());
}

#[test]
fn no_entries_means_no_cache() {
    let (cache, _) = cache(0);
    fetch(&cache, 1);
    cache.insert(&context(2), &wrapped(2), Arc::new(key().unwrap()));
    assert!(cache.is_empty());
}

#[test]
fn another_header_is_another_key() {
    let (cache, _) = cache(1000);
    let old = fetch(&cache, 1);
    let new = cache
        .get_or_fetch(&context(1), &wrapped(99), soon(), key)
        .unwrap();
    assert_ne!(old.expose(), new.expose());
    let mut moved = context(1);
    moved.volume.0[0] ^= 1;
    assert!(cache.get(&moved, &wrapped(99)).is_none());
}

#[test]
fn a_key_removed_while_it_is_fetched_is_not_kept() {
    let forget: [fn(&KeyCache); 2] = [|cache| cache.remove(CONTEXT.file), KeyCache::drop_all];
    for forget in forget {
        let (cache, _) = cache(1000);
        let fetched = cache.get_or_fetch(&CONTEXT, &wrapped(0), soon(), || {
            forget(&cache);
            key()
        });
        assert!(fetched.is_ok());
        assert!(cache.is_empty());
        assert!(
            cache
                .get_or_fetch(&CONTEXT, &wrapped(0), soon(), key)
                .is_ok()
        );
        assert_eq!(cache.len(), 1);
    }
}

#[test]
fn no_lock_is_held_during_a_fetch() {
    let (cache, _) = cache(16);
    assert_eq!(cache.shards.len(), 1);
    cache
        .get_or_fetch(&context(1), &wrapped(1), soon(), || {
            fetch(&cache, 2);
            key()
        })
        .unwrap();
    assert_eq!(cache.len(), 2);
}

#[test]
fn who_waits_does_so_until_its_own_deadline() {
    let (cache, _) = cache(16);
    let claim = cache.claim(&CONTEXT, &wrapped(0)).unwrap();
    assert!(cache.claim(&CONTEXT, &wrapped(0)).is_none());
    let start = Instant::now();
    let end = start + Duration::from_millis(100);
    let waited = cache.get_or_fetch(&CONTEXT, &wrapped(0), end, || panic!("not called"));
    assert!(matches!(waited, Err(KeyError::Unavailable { .. })));
    assert!((100..1000).contains(&start.elapsed().as_millis()));
    claim.land(key().map(Arc::new)).unwrap();
    assert!(cache.holds(&CONTEXT, &wrapped(0)));
    assert!(cache.claim(&CONTEXT, &wrapped(0)).is_none());
}

#[test]
fn a_claim_that_is_abandoned_is_taken_over_by_who_waits() {
    let (cache, _) = cache(16);
    let claim = cache.claim(&CONTEXT, &wrapped(0)).unwrap();
    std::thread::scope(|scope| {
        let waiter = scope.spawn(|| cache.get_or_fetch(&CONTEXT, &wrapped(0), soon(), key));
        std::thread::sleep(Duration::from_millis(50));
        claim.abandon();
        assert!(waiter.join().unwrap().is_ok());
    });
    assert!(cache.holds(&CONTEXT, &wrapped(0)));
}

#[test]
fn age_counts_from_when_the_provider_gave_the_key() {
    let (cache, clock) = cache(16);
    clock.advance(300);
    let key = Arc::new(key().unwrap());
    cache.insert_older(&context(1), &wrapped(1), key, Duration::ZERO);
    assert!(holds(&cache, 1));
    clock.advance(299);
    assert!(cache.holds(&context(1), &wrapped(1)));
    clock.advance(1);
    assert!(!holds(&cache, 1));
}

fn with_grace(seconds: u64) -> (KeyCache, Arc<FakeClock>) {
    let clock = Arc::new(FakeClock::default());
    let limits = CacheLimits {
        grace: Duration::from_secs(seconds),
        idle: Duration::MAX,
        ..CacheLimits::default()
    };
    (KeyCache::new(limits, clock.clone()), clock)
}

#[test]
fn a_key_in_its_grace_is_for_outages_only() {
    let (cache, clock) = with_grace(100);
    let first = fetch(&cache, 1);
    let ask = |answer| cache.get_or_fetch(&context(1), &wrapped(1), soon(), || answer);
    clock.advance(600);
    assert!(!holds(&cache, 1), "someone has to be asked");
    assert!(!cache.holds(&context(1), &wrapped(1)));
    for error in [wrong::unavailable(), wrong::throttled()] {
        assert!(Arc::ptr_eq(&ask(Err(error)).unwrap(), &first));
    }
    assert!(!holds(&cache, 1), "using it makes it no younger");
    let other = cache.get_or_fetch(&context(1), &wrapped(2), soon(), || {
        Err(wrong::unavailable())
    });
    assert!(other.is_err(), "another wrapped key");
    let renewed = ask(key()).unwrap();
    assert!(!Arc::ptr_eq(&renewed, &first) && holds(&cache, 1));
    clock.advance(699);
    assert!(ask(Err(wrong::unavailable())).is_ok());
    clock.advance(1);
    assert!(ask(Err(wrong::unavailable())).is_err(), "it is over");
    assert!(cache.is_empty());
}

#[test]
fn a_refusal_ends_the_grace() {
    let (cache, clock) = with_grace(100);
    fetch(&cache, 1);
    let ask = |error| cache.get_or_fetch(&context(1), &wrapped(1), soon(), || Err(error));
    clock.advance(650);
    assert!(ask(wrong::unavailable()).is_ok());
    assert!(matches!(
        ask(wrong::disabled()),
        Err(KeyError::Disabled { .. })
    ));
    assert!(cache.is_empty(), "wiped at once");
    assert!(ask(wrong::unavailable()).is_err());
}

#[test]
fn a_sealed_cache_keeps_nothing_that_comes_in_late() {
    let (cache, _) = cache(100);
    fetch(&cache, 1);
    let claimed = cache.claim(&context(2), &wrapped(2)).unwrap();
    // Sealed in the middle of a fetch.
    let got = cache.get_or_fetch(&context(3), &wrapped(3), soon(), || {
        cache.seal(true);
        key()
    });
    assert!(got.is_ok(), "who asked is told");
    claimed.land(key().map(Arc::new)).unwrap();
    assert!(cache.claim(&context(4), &wrapped(4)).is_none());
    cache.insert(&context(5), &wrapped(5), Arc::new(key().unwrap()));
    fetch(&cache, 6);
    assert!(cache.is_empty());
    cache.seal(false);
    fetch(&cache, 6);
    assert!(holds(&cache, 6));
}
