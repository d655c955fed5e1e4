//! `exec:` with the sample plugin, `plugin.py`.

#[path = "../conformance/mod.rs"]
mod conformance;
mod peer;
mod plugins;

use peer::Peer;

conformance!(Peer::new());
