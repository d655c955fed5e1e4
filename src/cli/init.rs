//! `kmsfs init`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use crate::cli::{ExitCode, Failure, PassphraseArguments, print};
use crate::format::Layout;
use crate::format::config::NameMode;
use crate::fs::{InitOptions, volume};
use crate::keys::registry;
use crate::types::KeyLen;

const EXAMPLES: &str = "examples:
  kmsfs init /srv/backing                       the embedded provider's default key
  kmsfs init --key local:work /srv/backing      a named key (kmsfs key create work)
  kmsfs init --names plain /srv/backing         encrypt contents only";

/// Make an encrypted volume in an empty directory
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Arguments {
    /// The directory that will hold the ciphertext; made if it does not exist
    backing: PathBuf,
    /// Key to wrap data keys with; several make several recipients
    #[arg(long = "key", value_name = "URI", default_value = "local:")]
    keys: Vec<String>,
    /// How file names are stored
    #[arg(long, value_enum, default_value = "encrypted")]
    names: Names,
    /// Length of data keys in bits
    #[arg(long, value_enum, default_value = "256")]
    key_bits: KeyBits,
    /// Bytes of plaintext encrypted as one block
    #[arg(long, default_value_t = 4096, value_name = "BYTES")]
    block_size: u32,
    /// Bytes of header a file; more room for more recipients
    #[arg(long, default_value_t = 4096, value_name = "BYTES")]
    head_size: u32,
    #[command(flatten)]
    passphrase: PassphraseArguments,
}

#[derive(Clone, Copy, ValueEnum)]
enum Names {
    Encrypted,
    Deterministic,
    Plain,
}

#[derive(Clone, Copy, ValueEnum)]
enum KeyBits {
    #[value(name = "128")]
    Bits128,
    #[value(name = "192")]
    Bits192,
    #[value(name = "256")]
    Bits256,
}

pub(super) fn run(arguments: Arguments) -> Result<(), Failure> {
    let Some(layout) = Layout::new(arguments.block_size, arguments.head_size) else {
        return Err(Failure::new(ExitCode::Usage, "no such block or head size")
            .hint("block sizes: 4096 8192 16384 32768 65536; head sizes: 4096 8192 16384"));
    };
    let options = InitOptions {
        names: match arguments.names {
            Names::Encrypted => NameMode::Encrypted,
            Names::Deterministic => NameMode::Deterministic,
            Names::Plain => NameMode::Plain,
        },
        key_len: match arguments.key_bits {
            KeyBits::Bits128 => KeyLen::Bits128,
            KeyBits::Bits192 => KeyLen::Bits192,
            KeyBits::Bits256 => KeyLen::Bits256,
        },
        layout,
    };
    let backing = &arguments.backing;
    std::fs::create_dir_all(backing)
        .map_err(|error| Failure::new(ExitCode::Io, format!("{}: {error}", backing.display())))?;
    super::mount::refuse_keystore_inside(&arguments.keys, backing)?;
    let source = arguments.passphrase.source();
    let ring = registry::open_ring_for_init(&arguments.keys, &source)?;
    let volume = volume::init(backing, &ring, options)?;
    print(&format!(
        "made volume {} in {}\nmount it with: kmsfs mount {} MOUNTPOINT\n",
        volume.id,
        backing.display(),
        backing.display()
    ))
}
