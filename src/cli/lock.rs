//! `kmsfs lock` and `kmsfs unlock`.

use std::path::PathBuf;

use clap::Args;

use crate::cli::Failure;
use crate::cli::control::{self, Command};

const LOCK_EXAMPLES: &str = "examples:
  kmsfs lock /mnt/plain
  kmsfs lock                           the only kmsfs mount there is";

const UNLOCK_EXAMPLES: &str = "examples:
  kmsfs unlock /mnt/plain";

/// Write everything back, wipe all data keys, and keep contents from everyone
#[derive(Args)]
#[command(after_help = LOCK_EXAMPLES)]
pub(super) struct Lock {
    /// The mountpoint, or something below it
    path: Option<PathBuf>,
}

/// Make the contents of a locked mount accessible again
#[derive(Args)]
#[command(after_help = UNLOCK_EXAMPLES)]
pub(super) struct Unlock {
    /// The mountpoint, or something below it
    path: Option<PathBuf>,
}

pub(super) fn lock(arguments: &Lock) -> Result<(), Failure> {
    control::ask(arguments.path.as_deref(), Command::Lock)
}

pub(super) fn unlock(arguments: &Unlock) -> Result<(), Failure> {
    control::ask(arguments.path.as_deref(), Command::Unlock)
}
