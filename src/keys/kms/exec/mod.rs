//! Keys behind a program of the user's: `exec:`.
//!
//! The program speaks `docs/PLUGIN_PROTOCOL.md`: JSON lines on its standard input
//! and output. `plugin` keeps it running, `protocol` has the lines.

mod plugin;
mod protocol;
mod provider;
mod running;
mod uri;

use std::sync::Arc;

use crate::keys::kms::service::Service;

pub use provider::ExecProvider;
pub use uri::ExecUri;

pub(super) const SERVICE: Service = Service {
    scheme: ExecUri::SCHEME,
    form: "exec:PLUGIN",
    feature: "default",
    check: |uri| ExecUri::parse(uri).map(drop),
    same_key: |mine, wrapped| {
        let both = ExecUri::parse(mine).ok().zip(ExecUri::parse(wrapped).ok());
        both.is_some_and(|(mine, theirs)| mine.names_same_key(&theirs))
    },
    open: Some(|uri, _| Ok(Arc::new(ExecProvider::open(&ExecUri::parse(uri)?)?))),
};
