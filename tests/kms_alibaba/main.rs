//! Alibaba Cloud KMS, over both of its protocols, against the test server.

#[path = "../conformance/mod.rs"]
mod conformance;
#[path = "../kms_servers/mod.rs"]
mod kms_servers;

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

mod credentials;
mod key_check;
mod peer;
mod protocols;

use kms_servers::alibaba::Kind;
use peer::{Access, LEGACY, PBES2, Peer};

mod openapi {
    use super::*;
    conformance!(Peer::new(Kind::Software, Access::Fixed));
}

mod openapi_with_temporary_credentials {
    use super::*;
    conformance!(Peer::new(Kind::Hardware, Access::Temporary));
}

mod software_instance {
    use super::*;
    conformance!(Peer::new(Kind::Software, LEGACY));
}

mod hardware_instance {
    use super::*;
    conformance!(Peer::new(Kind::Hardware, PBES2));
}
