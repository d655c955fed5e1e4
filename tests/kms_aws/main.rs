//! AWS KMS, against emulators that hold the keys, behind a proxy that checks
//! signatures with AWS's own signer and one that can be told to misbehave.
//!
//! Each emulator does what the other does not: ministack knows the states of
//! keys and multi-Region keys, moto has authenticated ciphertexts and ReEncrypt.

#[path = "../conformance/mod.rs"]
#[allow(dead_code)]
mod conformance;
#[path = "../kms_servers/http.rs"]
#[allow(unreachable_pub, dead_code)]
mod http;

mod credentials;
mod emulator;
mod key_check;
mod keys;
mod peer;

use emulator::Kind;
use peer::Peer;

mod ministack {
    use super::*;
    conformance!(Peer::new(Kind::Ministack);
        round_trip, wrong_context, second_recipient, disabled_key, deleted_key, missing_key,
        rotated_key, denied, throttled_for_a_moment, throttled_for_good, failing_for_a_moment,
        slow, too_slow, unreachable, garbage, oversized, cut_off, credentials_ending
    );
    // An emulator in Python does some 60 calls a second.
    conformance!(Peer::new(Kind::Ministack).with_time(30); concurrent_calls);
}

mod moto {
    use super::*;
    conformance!(Peer::new(Kind::Moto);
        round_trip, wrong_context, second_recipient, rewrap, missing_key, checked
    );
}
