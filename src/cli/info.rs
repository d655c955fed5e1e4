//! `kmsfs info`: what a volume or a file says of itself, without any key.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use clap::Args;
use data_encoding::{BASE64, HEXLOWER};
use serde_json::{Value, json};

use crate::cli::{ExitCode, Failure, print};
use crate::crypto::{Suite, sha256};
use crate::format::FormatError;
use crate::format::config::{CONFIG_NAME, Volume};
use crate::format::header::{Header, Recipient};
use crate::format::layout::HEAD_SIZES;
use crate::fs::volume;

const EXAMPLES: &str = "examples:
  kmsfs info /srv/backing                  a volume
  kmsfs info --json /srv/backing/Xy…       a file of it, in the backing directory";

/// Show what a volume or an encrypted file says of itself; needs no key
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Arguments {
    /// A volume's backing directory, or a file in one
    path: PathBuf,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let path = &arguments.path;
    let value = if path.is_dir() {
        describe_volume(&volume::find(path)?.volume)
    } else if path.file_name().is_some_and(|name| name == CONFIG_NAME) {
        let parent = path.parent().filter(|p| !p.as_os_str().is_empty());
        describe_volume(&volume::find(parent.unwrap_or(Path::new(".")))?.volume)
    } else {
        describe_file(path)?
    };
    if arguments.json {
        return print(&format!("{value:#}\n"));
    }
    let mut text = String::new();
    render(&value, "", &mut text);
    print(&text)
}

fn describe_volume(volume: &Volume) -> Value {
    json!({
        "volume": volume.id.to_hex(),
        "suite": suite(volume.suite),
        "format": volume.layout.format(),
        "block_size": volume.layout.block_size(),
        "head_size": volume.layout.head_size(),
        "names": volume.names,
        "keys": volume.keys,
        "writable_by_this_version": volume.writable,
        "recipients": volume.recipients.iter().map(recipient).collect::<Vec<_>>(),
    })
}

fn describe_file(path: &Path) -> Result<Value, Failure> {
    let io = |e: std::io::Error| Failure::new(ExitCode::Io, format!("{}: {e}", path.display()));
    let file = File::open(path).map_err(io)?;
    let len = file.metadata().map_err(io)?.len();
    let largest = *HEAD_SIZES.last().expect("not empty");
    let mut head = Vec::new();
    file.take(largest.into())
        .read_to_end(&mut head)
        .map_err(io)?;
    let found = Header::sniff(&head, sha256).map_err(|error| {
        let message = format!("{}: {error}", path.display());
        match error {
            FormatError::TooNew { .. } => Failure::new(ExitCode::VolumeTooNew, message),
            _ => Failure::new(ExitCode::Corrupt, message)
                .hint("give a file of the backing directory, not of the mount"),
        }
    })?;
    let Some((slot, header)) = found else {
        return Ok(json!({ "header": null, "backing_size": len }));
    };
    Ok(json!({
        "file": header.file.to_hex(),
        "volume": header.volume.to_hex(),
        "suite": suite(header.suite),
        "format": header.layout.format(),
        "block_size": header.layout.block_size(),
        "head_size": header.layout.head_size(),
        "slot": slot,
        "sequence": header.sequence,
        "commitment": HEXLOWER.encode(&header.commitment),
        "size": header.layout.plain_len(len),
        "backing_size": len,
        "recipients": header.recipients.iter().map(recipient).collect::<Vec<_>>(),
    }))
}

fn suite(number: u16) -> String {
    match Suite::from_number(number) {
        Some(suite) => format!("{suite:?}"),
        None => format!("unknown ({number})"),
    }
}

fn recipient(r: &Recipient) -> Value {
    json!({
        "key_uri": r.key_uri,
        "key_version": r.key_version,
        "algorithm": r.algorithm,
        "iv": BASE64.encode(&r.iv),
        "wrapped_key": BASE64.encode(&r.ciphertext),
    })
}

/// `name: value` lines, lists indented.
fn render(value: &Value, indent: &str, out: &mut String) {
    let Value::Object(fields) = value else {
        return;
    };
    for (name, value) in fields {
        match value {
            Value::Array(items) if items.iter().all(Value::is_object) => {
                for (i, item) in items.iter().enumerate() {
                    out.push_str(&format!("{indent}{name} {}:\n", i + 1));
                    render(item, &format!("{indent}  "), out);
                }
            }
            Value::Array(items) => {
                let items: Vec<_> = items.iter().map(plain).collect();
                out.push_str(&format!("{indent}{name}: {}\n", items.join(" ")));
            }
            Value::String(text) if text.is_empty() => {}
            other => out.push_str(&format!("{indent}{name}: {}\n", plain(other))),
        }
    }
}

fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => "none".into(),
        other => other.to_string(),
    }
}
