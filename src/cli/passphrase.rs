//! Where commands take passphrases from.

use std::os::fd::RawFd;
use std::path::PathBuf;

use clap::Args;

use crate::keys::PassphraseSource;

/// Options of every command that may need a key's passphrase.
#[derive(Args, Clone, Debug, Default)]
pub struct PassphraseArguments {
    /// Read the passphrase from the first line of this file
    #[arg(long, value_name = "FILE", conflicts_with = "passphrase_fd")]
    passphrase_file: Option<PathBuf>,
    /// Read the passphrase from the next line of this open descriptor
    #[arg(long, value_name = "N")]
    passphrase_fd: Option<RawFd>,
}

impl PassphraseArguments {
    /// The source chosen; without an option, the terminal.
    pub fn source(&self) -> PassphraseSource {
        source(self.passphrase_file.as_ref(), self.passphrase_fd)
    }

    /// Whether an option was given.
    pub fn given(&self) -> bool {
        self.passphrase_file.is_some() || self.passphrase_fd.is_some()
    }
}

pub(super) fn source(file: Option<&PathBuf>, fd: Option<RawFd>) -> PassphraseSource {
    match (file, fd) {
        (Some(path), _) => PassphraseSource::File(path.clone()),
        (None, Some(number)) => PassphraseSource::Fd(number),
        (None, None) => PassphraseSource::Terminal,
    }
}
