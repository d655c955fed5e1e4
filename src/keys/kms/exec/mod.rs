//! Keys behind a program of the user's: `exec:`.
//!
//! The program speaks `docs/PLUGIN_PROTOCOL.md`: JSON lines on its standard input
//! and output. `plugin` keeps it running, `protocol` has the lines.

mod plugin;
mod protocol;
mod provider;
mod running;
mod uri;

pub use provider::ExecProvider;
pub use uri::ExecUri;
