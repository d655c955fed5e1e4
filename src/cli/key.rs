//! `kmsfs key`: the keys of the embedded provider, and a test for any key.

mod check;
mod output;

use std::os::fd::RawFd;
use std::path::PathBuf;

use clap::{Args, Subcommand};

use crate::cli::passphrase::{PassphraseArguments, source};
use crate::cli::{ExitCode, Failure, print};
use crate::keys::local::{Argon2Cost, Keystore, NewProtection, State};
use crate::keys::uri::{KeyUri, LocalUri};

/// Manage the keys of the embedded provider, and test any key
#[derive(Args)]
#[command(arg_required_else_help = true)]
pub(super) struct Arguments {
    /// The keystore [default: $KMSFS_KEYSTORE, else kmsfs/keys in the user's data directory]
    #[arg(long, global = true, value_name = "DIR")]
    keystore: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Make a key
    #[command(after_help = "examples:
  kmsfs key create work
  kmsfs key create private --passphrase
  kmsfs key create stick --key-file /media/stick/kmsfs.key")]
    Create(Create),
    /// List the keys
    #[command(after_help = "examples:\n  kmsfs key list\n  kmsfs key list --json")]
    List(Json),
    /// Show a key and its versions
    #[command(after_help = "example:\n  kmsfs key show work --json")]
    Show {
        #[command(flatten)]
        name: Name,
        #[command(flatten)]
        json: Json,
    },
    /// Add a version, which new files use from then on
    #[command(after_help = "example:\n  kmsfs key rotate work")]
    Rotate {
        #[command(flatten)]
        name: Name,
        #[command(flatten)]
        passphrase: PassphraseArguments,
    },
    /// Make a key, or one version of it, unusable until it is enabled again
    #[command(after_help = "examples:
  kmsfs key disable work
  kmsfs key disable work --version 1

A mounted volume notices within a second, but keeps the data keys it holds in
memory until their time is over.")]
    Disable(Versioned),
    /// Make a disabled key, or one version of it, usable again
    #[command(after_help = "example:\n  kmsfs key enable work")]
    Enable(Versioned),
    /// Make a key unusable now and deletable later
    #[command(after_help = "example:\n  kmsfs key schedule-deletion work --days 30")]
    ScheduleDeletion {
        #[command(flatten)]
        name: Name,
        /// After how many days it may be deleted
        #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..=366))]
        days: u32,
    },
    /// Take a scheduled deletion back
    #[command(after_help = "example:\n  kmsfs key cancel-deletion work")]
    CancelDeletion(Name),
    /// Delete a key whose deletion date has come; its files are lost for good
    #[command(after_help = "example:\n  kmsfs key delete work")]
    Delete {
        #[command(flatten)]
        name: Name,
        /// Delete it even if its date has not come or none was set
        #[arg(long)]
        force: bool,
    },
    /// Change what protects a key: its passphrase, or a key file instead
    #[command(after_help = "examples:
  kmsfs key passwd private
  kmsfs key passwd private --keyfile
  kmsfs key passwd private --passphrase-fd 3 --new-passphrase-fd 3 3<two-lines")]
    Passwd(Passwd),
    Check(check::Arguments),
}

#[derive(Args)]
struct Name {
    /// The key: NAME or local:NAME
    name: String,
}

#[derive(Args)]
struct Json {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
struct Versioned {
    #[command(flatten)]
    name: Name,
    /// Only this version
    #[arg(long, value_name = "N")]
    version: Option<u32>,
}

#[derive(Args)]
struct Cost {
    /// Argon2id's memory in MiB
    #[arg(long, value_name = "MIB", value_parser = clap::value_parser!(u32).range(19..=4096))]
    argon2_memory: Option<u32>,
    /// Argon2id's passes
    #[arg(long, value_name = "N")]
    argon2_iterations: Option<u32>,
    /// Argon2id's lanes
    #[arg(long, value_name = "N")]
    argon2_parallelism: Option<u32>,
}

impl Cost {
    fn get(&self) -> Result<Argon2Cost, Failure> {
        let default = Argon2Cost::default();
        let memory_kib = self.argon2_memory.map(|mib| mib * 1024);
        let cost = Argon2Cost {
            memory_kib: memory_kib.unwrap_or(default.memory_kib),
            iterations: self.argon2_iterations.unwrap_or(default.iterations),
            parallelism: self.argon2_parallelism.unwrap_or(default.parallelism),
        };
        cost.check()
            .map_err(|problem| Failure::new(ExitCode::Usage, problem))?;
        Ok(cost)
    }
}

#[derive(Args)]
struct Create {
    /// The key's name
    #[arg(default_value = LocalUri::DEFAULT_NAME)]
    name: String,
    /// Protect the key by a passphrase, asked on the terminal; without it, by a key file
    #[arg(long)]
    passphrase: bool,
    #[command(flatten)]
    from: PassphraseArguments,
    /// Protect the key by this key file, made if missing, instead of one in the keystore
    #[arg(long, value_name = "FILE")]
    #[arg(conflicts_with_all = ["passphrase", "passphrase_file", "passphrase_fd"])]
    key_file: Option<PathBuf>,
    #[command(flatten)]
    cost: Cost,
}

impl Create {
    fn protection(self) -> Result<NewProtection, Failure> {
        if let Some(path) = self.key_file {
            return Ok(NewProtection::KeyfileAt(path));
        }
        if !self.passphrase && !self.from.given() {
            return Ok(NewProtection::Keyfile);
        }
        let cost = self.cost.get()?;
        let passphrase = self.from.source().read_new("new passphrase")?;
        Ok(NewProtection::Passphrase(passphrase, cost))
    }
}

#[derive(Args)]
struct Passwd {
    #[command(flatten)]
    name: Name,
    #[command(flatten)]
    old: PassphraseArguments,
    /// Read the new passphrase from the first line of this file
    #[arg(long, value_name = "FILE", conflicts_with = "new_passphrase_fd")]
    new_passphrase_file: Option<PathBuf>,
    /// Read the new passphrase from the next line of this open descriptor
    #[arg(long, value_name = "N")]
    new_passphrase_fd: Option<RawFd>,
    /// Protect the key by a key file in the keystore instead of a passphrase
    #[arg(long, conflicts_with_all = ["new_passphrase_file", "new_passphrase_fd"])]
    keyfile: bool,
    #[command(flatten)]
    cost: Cost,
}

pub(super) fn run(arguments: Arguments) -> Result<(), Failure> {
    let place = Place(arguments.keystore);
    match arguments.command {
        Command::Create(create) => make(&place, create),
        Command::List(json) => list(&place, json.json),
        Command::Show { name, json } => {
            let (keystore, name) = place.find(&name)?;
            print(&output::show(&keystore.load(&name)?, json.json))
        }
        Command::Rotate { name, passphrase } => {
            let (keystore, name) = place.find(&name)?;
            let number = keystore.rotate(&name, &passphrase.source())?;
            print(&format!("key local:{name} has version {number} now\n"))
        }
        Command::Disable(key) => set_state(&place, &key, State::Disabled),
        Command::Enable(key) => set_state(&place, &key, State::Enabled),
        Command::ScheduleDeletion { name, days } => {
            let (keystore, name) = place.find(&name)?;
            let date = keystore.schedule_deletion(&name, days)?;
            print(&format!("key local:{name} may be deleted from {date} on\n"))
        }
        Command::CancelDeletion(name) => {
            let (keystore, name) = place.find(&name)?;
            let status = keystore.cancel_deletion(&name)?;
            print(&format!("key local:{name} is {} again\n", status.keyword()))
        }
        Command::Delete { name, force } => {
            let (keystore, name) = place.find(&name)?;
            keystore.delete(&name, force)?;
            print(&format!("key local:{name} is deleted\n"))
        }
        Command::Passwd(passwd) => change_protection(&place, &passwd),
        Command::Check(arguments) => check::run(&arguments),
    }
}

/// Where the user said the keys are.
struct Place(Option<PathBuf>);

impl Place {
    fn find(&self, name: &Name) -> Result<(Keystore, String), Failure> {
        self.resolve(&name.name)
    }

    /// The keystore and the key's name in it, from `NAME` or `local:NAME…`.
    fn resolve(&self, text: &str) -> Result<(Keystore, String), Failure> {
        let mut uri = if text.contains(':') {
            match KeyUri::parse(text)? {
                KeyUri::Local(uri) => uri,
                uri => {
                    let problem = format!("{uri} is not a key of the embedded provider");
                    return Err(Failure::new(ExitCode::KeyConfiguration, problem)
                        .hint("its own service manages it; kmsfs key check tests it"));
                }
            }
        } else {
            LocalUri::named(text)?
        };
        if self.0.is_some() {
            uri.keystore.clone_from(&self.0);
        }
        Ok((Keystore::of(&uri)?, uri.name))
    }
}

fn make(place: &Place, create: Create) -> Result<(), Failure> {
    let (keystore, name) = place.resolve(&create.name)?;
    let document = keystore.create(&name, create.protection()?)?;
    print(&format!(
        "made key {}, protected by a {}\n",
        document.uri(),
        document.protection.kind()
    ))
}

fn list(place: &Place, json: bool) -> Result<(), Failure> {
    let (keystore, _) = place.resolve(LocalUri::DEFAULT_NAME)?;
    let keys = keystore.list()?;
    print(&output::list(&keys, json))?;
    // A damaged file hides no other key, but is told of.
    match keys.into_iter().find_map(|(_, key)| key.err()) {
        Some(error) => Err(error.into()),
        None => Ok(()),
    }
}

fn set_state(place: &Place, key: &Versioned, state: State) -> Result<(), Failure> {
    let (keystore, name) = place.find(&key.name)?;
    keystore.set_state(&name, key.version, state)?;
    let keyword = output::keyword(state);
    print(&match key.version {
        Some(number) => format!("version {number} of key local:{name} is {keyword}\n"),
        None => format!("key local:{name} is {keyword}\n"),
    })
}

fn change_protection(place: &Place, passwd: &Passwd) -> Result<(), Failure> {
    let (keystore, name) = place.find(&passwd.name)?;
    let cost = passwd.cost.get()?;
    let new = source(
        passwd.new_passphrase_file.as_ref(),
        passwd.new_passphrase_fd,
    );
    keystore.protect_anew(&name, &passwd.old.source(), || {
        if passwd.keyfile {
            return Ok(NewProtection::Keyfile);
        }
        let passphrase = new.read_new(&format!("new passphrase of key local:{name}"))?;
        Ok(NewProtection::Passphrase(passphrase, cost))
    })?;
    let kind = if passwd.keyfile {
        "keyfile"
    } else {
        "passphrase"
    };
    print(&format!("key local:{name} is protected by a new {kind}\n"))
}
