//! The command line: arguments, output, exit codes.

mod audit;
mod control;
pub mod error;
pub mod exit;
mod info;
mod init;
mod key;
mod keys;
mod lock;
mod logging;
mod mount;
mod passphrase;
mod status;
mod umount;
mod version;
mod volume_error;

use std::io::{self, Write};

use clap::error::ErrorKind;
use clap::{Parser, Subcommand};

pub use error::Failure;
pub use exit::ExitCode;
pub use passphrase::PassphraseArguments;

/// A transparent encrypted filesystem: every file under its own data key
#[derive(Parser)]
#[command(name = "kmsfs", version, disable_help_subcommand = true)]
#[command(arg_required_else_help = true)]
#[command(after_help = "exit codes: see docs/EXIT_CODES.md")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Init(init::Arguments),
    Mount(Box<mount::Arguments>),
    Umount(umount::Arguments),
    Info(info::Arguments),
    Key(key::Arguments),
    Keys(keys::Arguments),
    Lock(lock::Lock),
    Unlock(lock::Unlock),
    Status(status::Arguments),
    Audit(audit::Arguments),
    Version(version::Arguments),
}

impl Command {
    fn run(self) -> Result<(), Failure> {
        match self {
            Self::Init(arguments) => init::run(arguments),
            Self::Mount(arguments) => mount::run(*arguments),
            Self::Umount(arguments) => umount::run(&arguments),
            Self::Info(arguments) => info::run(&arguments),
            Self::Key(arguments) => key::run(arguments),
            Self::Keys(arguments) => keys::run(&arguments),
            Self::Lock(arguments) => lock::lock(&arguments),
            Self::Unlock(arguments) => lock::unlock(&arguments),
            Self::Status(arguments) => status::run(&arguments),
            Self::Audit(arguments) => audit::run(&arguments),
            Self::Version(arguments) => version::run(&arguments),
        }
    }
}

/// Runs the command that the process was started with.
pub fn run() -> std::process::ExitCode {
    // Before anything that may hold a key.
    crate::sys::process::forbid_dumps();
    let result = match Arguments::try_parse() {
        Ok(arguments) => arguments.command.run(),
        Err(error) => explain(&error),
    };
    match result {
        Ok(()) => ExitCode::Ok.into(),
        Err(failure) => {
            failure.report();
            failure.code.into()
        }
    }
}

/// Prints the help that was asked for, or says what is wrong with the arguments.
fn explain(error: &clap::Error) -> Result<(), Failure> {
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            // A reader that closed the pipe has seen what it wanted.
            let _ = error.print();
            Ok(())
        }
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            let _ = error.print();
            Err(Failure::new(ExitCode::Usage, "a command is missing"))
        }
        _ => Err(usage(&error.render().to_string())),
    }
}

/// Brings the argument parser's prose into the form of all other errors.
fn usage(prose: &str) -> Failure {
    let first = prose.split("\n\n").next().unwrap_or(prose);
    let words: Vec<&str> = first.split_whitespace().collect();
    let message = words.join(" ");
    let message = message.strip_prefix("error: ").unwrap_or(&message);
    let usage = prose.lines().find_map(|line| line.strip_prefix("Usage: "));
    Failure::new(ExitCode::Usage, message).hint(match usage {
        Some(usage) => format!("usage: {usage}"),
        None => "kmsfs --help lists the commands".to_owned(),
    })
}

/// Writes to standard output. A reader that went away is no error.
fn print(text: &str) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(Failure::new(
            ExitCode::Io,
            format!("cannot write to standard output: {error}"),
        )),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_arguments_are_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn every_command_has_examples() {
        fn check(command: &clap::Command) {
            let mut children = command.get_subcommands().peekable();
            if children.peek().is_none() {
                let help = command.clone().render_long_help().to_string();
                assert!(help.contains("example"), "{}", command.get_name());
            }
            children.for_each(check);
        }
        check(&Arguments::command());
    }

    #[test]
    fn argument_errors_read_like_all_others() {
        let error = Arguments::try_parse_from(["kmsfs", "key", "show"])
            .err()
            .unwrap();
        let failure = explain(&error).unwrap_err();
        assert_eq!(failure.code, ExitCode::Usage);
        assert!(failure.message.contains("<NAME>"), "{}", failure.message);
        assert!(!failure.message.contains("error:") && !failure.message.contains('\n'));
        assert!(failure.hint.unwrap().starts_with("usage: kmsfs key show"));
    }
}
