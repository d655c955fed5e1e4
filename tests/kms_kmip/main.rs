//! `kmip://` against a real PyKMIP server, directly and through a proxy that
//! misbehaves.

#[path = "../conformance/mod.rs"]
mod conformance;

mod batches;
mod keys;
mod logins;
mod peer;
mod proxy;
mod pykmip;

use peer::{Naming, Peer};

mod by_id {
    use super::*;
    conformance!(Peer::new(Naming::Id, "&version=1.4"));
}

mod by_name {
    use super::*;
    conformance!(Peer::new(Naming::Name, "&version=2.0"));
}

/// Without the proxy: the server's own TLS, and the version it is asked for.
mod direct {
    use super::*;
    conformance!(Peer::direct(Naming::Name, "");
        round_trip, wrong_context, tampered_wrapped_key, second_recipient, rewrap, disabled_key,
        deleted_key, missing_key, rotated_key, denied, unreachable, concurrent_calls, checked);
}
