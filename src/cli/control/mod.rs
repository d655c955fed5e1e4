//! Talking to a running mount: a request and an answer, each one line of JSON,
//! over a socket for the mount's owner and root.

mod client;
mod server;
mod snapshot;

pub(super) use client::{ask, ask_as};
pub(super) use server::{Control, ControlTarget};
pub(super) use snapshot::Snapshot;

use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use data_encoding::HEXLOWER;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::Value;

use crate::cli::{ExitCode, Failure};
use crate::crypto::sha256;

/// What can be asked of a mount.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Command {
    Lock,
    Unlock,
    DropKeys,
    Status,
}

#[derive(Serialize, Deserialize)]
struct Request {
    command: Command,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Answer {
    Done(Value),
    Failed {
        code: u8,
        message: String,
        hint: Option<String>,
    },
}

impl From<Result<Value, Failure>> for Answer {
    fn from(result: Result<Value, Failure>) -> Self {
        match result {
            Ok(value) => Self::Done(value),
            Err(failure) => Self::Failed {
                code: failure.code as u8,
                message: failure.message,
                hint: failure.hint,
            },
        }
    }
}

impl Answer {
    fn read<T: DeserializeOwned>(self) -> Result<T, Failure> {
        match self {
            Self::Done(value) => serde_json::from_value(value).map_err(|error| {
                let message = format!("the mount answers what this version does not know: {error}");
                Failure::new(ExitCode::Internal, message)
                    .hint("it may run another version of kmsfs: mount it again")
            }),
            Self::Failed {
                code,
                message,
                hint,
            } => {
                let known = ExitCode::ALL.iter().find(|known| **known as u8 == code);
                Err(Failure {
                    code: known.copied().unwrap_or(ExitCode::Internal),
                    message,
                    hint,
                })
            }
        }
    }
}

/// The name of the socket of what is mounted there.
fn socket_name(mountpoint: &Path) -> String {
    let hash = sha256(mountpoint.as_os_str().as_bytes());
    format!("{}.sock", HEXLOWER.encode(&hash[..8]))
}
