//! Vault's transit engine, against a real OpenBao server.

#[path = "../conformance/mod.rs"]
mod conformance;
#[path = "../kms_servers/http.rs"]
#[allow(unreachable_pub, dead_code)]
mod http;

mod bao;
mod batches;
mod logins;
mod peer;

use peer::Peer;

mod plain_key {
    use super::*;
    conformance!(Peer::new(false));
}

mod derived_key {
    use super::*;
    conformance!(Peer::new(true));
}
