//! `kmsfs audit`.

use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use data_encoding::HEXLOWER_PERMISSIVE;

use crate::cli::{ExitCode, Failure, print};
use crate::keys::audit::{self, Broken};

const EXAMPLES: &str = "examples:
  kmsfs audit verify /var/log/kmsfs-audit.log
  kmsfs audit verify --contains 5f2c…e1 /var/log/kmsfs-audit.log
  journalctl -t kmsfs-audit -o cat | kmsfs audit verify --runs -";

/// Logs of released keys
#[derive(Args)]
pub(super) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Verify(Verify),
}

/// Check that nothing was cut out of a log or changed in it
#[derive(Args)]
#[command(after_help = EXAMPLES)]
struct Verify {
    /// The log, - for standard input
    file: PathBuf,
    /// Let chains begin anew, as each mount does in the journal
    #[arg(long)]
    runs: bool,
    /// The hash of a line that has to be there, as `kmsfs status` or an earlier
    /// check printed it: shows that nothing was cut off after it was noted
    #[arg(long, value_name = "SHA256")]
    contains: Option<String>,
}

pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    match &arguments.command {
        Command::Verify(verify) => verify.run(),
    }
}

impl Verify {
    fn run(&self) -> Result<(), Failure> {
        let shown = self.file.display();
        let wanted = self.contains.as_ref().map(|hex| {
            let hash = HEXLOWER_PERMISSIVE.decode(hex.as_bytes()).ok();
            hash.filter(|hash| hash.len() == 32).ok_or_else(|| {
                Failure::new(
                    ExitCode::Usage,
                    format!("{hex} is no SHA-256 in hexadecimal"),
                )
            })
        });
        let wanted = wanted.transpose()?;
        let verified = audit::verify(self.open()?, self.runs).map_err(|broken| {
            let code = match broken {
                Broken::Read(_) => ExitCode::Io,
                _ => ExitCode::Corrupt,
            };
            Failure::new(code, format!("{shown}: {broken}"))
        })?;
        if let Some(wanted) = wanted
            && !verified.hashes.iter().any(|hash| hash[..] == wanted[..])
        {
            let message = format!("{shown}: the line is not there: lines were cut off at the end");
            return Err(Failure::new(ExitCode::Corrupt, message));
        }
        print(&format!(
            "{} lines, last {}\n",
            verified.lines, verified.last
        ))
    }

    fn open(&self) -> Result<Box<dyn BufRead>, Failure> {
        if self.file == Path::new("-") {
            return Ok(Box::new(io::stdin().lock()));
        }
        let file = File::open(&self.file).map_err(|error| {
            Failure::new(ExitCode::Io, format!("{}: {error}", self.file.display()))
        })?;
        Ok(Box::new(BufReader::new(file)))
    }
}
