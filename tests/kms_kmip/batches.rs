//! Several wrapped keys in one request.

use std::sync::atomic::Ordering;

use kmsfs::keys::{KeyContext, KeyError, WrappedKey};
use kmsfs::types::KeyLen;

use crate::conformance::{Service, context};
use crate::peer::{Naming, Peer};
use crate::proxy::{Manner, Trouble};

const MANY: u8 = 100;

fn wrapped(peer: &Peer) -> (Vec<Vec<u8>>, Vec<(KeyContext, WrappedKey)>) {
    let provider = peer.provider();
    let made = (0..4).map(|file| provider.generate(&context(file), KeyLen::Bits256).unwrap());
    let made: Vec<_> = made.collect();
    let keys = made.iter().map(|(key, _)| key.expose().to_vec()).collect();
    let asked = (0..MANY).map(|n| (context(n % 4), made[usize::from(n % 4)].1.clone()));
    (keys, asked.collect())
}

#[test]
fn many_keys_are_unwrapped_in_few_requests_each_with_its_own_result() {
    for more in ["&version=1.4", "&version=2.0"] {
        let peer = Peer::new(Naming::Id, more);
        let provider = peer.provider();
        let (keys, mut asked) = wrapped(&peer);
        let before = peer.proxy().calls.load(Ordering::SeqCst);
        for (index, result) in provider.unwrap_many(&asked).into_iter().enumerate() {
            assert_eq!(result.unwrap().expose(), keys[index % 4]);
        }
        assert_eq!(peer.proxy().calls.load(Ordering::SeqCst) - before, 2);

        // One is refused by the server, one is not worth asking about.
        asked[7].0 = context(9);
        asked[70].1.ciphertext.truncate(5);
        let results = provider.unwrap_many(&asked);
        assert_eq!(results.len(), asked.len());
        for (index, result) in results.into_iter().enumerate() {
            match result {
                Ok(key) => assert_eq!(key.expose(), keys[index % 4]),
                Err(KeyError::Rejected { .. }) => assert!([7, 70].contains(&index), "{index}"),
                Err(error) => panic!("{index}: {error:?}"),
            }
        }
        assert!(provider.unwrap_many(&[]).is_empty());
        peer.set_allowed(false);
        let denied = provider.unwrap_many(&asked[..3]);
        let all = denied
            .iter()
            .all(|r| matches!(r, Err(KeyError::Denied { .. })));
        assert!(all && denied.len() == 3, "{denied:?}");
    }
}

#[test]
fn a_server_without_batches_is_asked_one_by_one() {
    let peer = Peer::new(Naming::Id, "&version=1.4");
    let (keys, asked) = wrapped(&peer);
    let asked = &asked[..10];
    *peer.proxy().trouble() = Trouble {
        calls: usize::MAX,
        manner: Manner::RefuseBatch,
        ..Trouble::default()
    };
    let provider = peer.provider();
    for expected in [1 + asked.len(), asked.len()] {
        let before = peer.proxy().calls.load(Ordering::SeqCst);
        for (index, result) in provider.unwrap_many(asked).into_iter().enumerate() {
            assert_eq!(result.unwrap().expose(), keys[index % 4]);
        }
        let calls = peer.proxy().calls.load(Ordering::SeqCst) - before;
        assert_eq!(calls, expected, "the server is asked for a batch once");
    }
}
