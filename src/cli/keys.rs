//! `kmsfs keys`: the data keys that a mount has in memory.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use crate::cli::Failure;
use crate::cli::control;

const DROP_EXAMPLES: &str = "examples:
  kmsfs keys drop /mnt/plain";

/// The data keys that a mount has in memory
#[derive(Args)]
pub(super) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Drop(Drop),
}

/// Wipe all data keys; what needs one asks the key provider for it again
#[derive(Args)]
#[command(after_help = DROP_EXAMPLES)]
struct Drop {
    /// The mountpoint, or something below it
    path: Option<PathBuf>,
}

pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    match &arguments.command {
        Command::Drop(drop) => control::ask(drop.path.as_deref(), control::Command::DropKeys),
    }
}
