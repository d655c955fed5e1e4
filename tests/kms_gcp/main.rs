//! Google Cloud KMS, against the test server.

#[path = "../conformance/mod.rs"]
mod conformance;
#[path = "../kms_servers/mod.rs"]
mod kms_servers;
#[path = "../kms_servers/moods.rs"]
mod moods;

macro_rules! assert_kind {
    ($result:expr, $kind:ident, $word:expr) => {
        match $result.map(drop) {
            Err(error @ KeyError::$kind { .. }) => {
                assert!(error.to_string().contains($word), "{error}");
            }
            other => panic!("{other:?}"),
        }
    };
}

mod logins;
mod peer;
mod protocol;

use peer::Peer;

conformance!(Peer::new());
