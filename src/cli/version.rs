//! `kmsfs version`.

use clap::Args;

use crate::cli::{Failure, print};
use crate::keys::uri::supported_schemes;

const EXAMPLES: &str = "example:\n  kmsfs version --json";

/// Show the version and what this build supports
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Arguments {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let version = env!("CARGO_PKG_VERSION");
    if arguments.json {
        let json = serde_json::json!({ "version": version, "keys": [supported_schemes()] });
        return print(&format!("{json}\n"));
    }
    print(&format!("kmsfs {version}\nkeys: {}\n", supported_schemes()))
}
