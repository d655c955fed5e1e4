//! Where audit lines go, and the chain that they form.

use std::io;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::time::Duration;

use data_encoding::HEXLOWER;
use parking_lot::Mutex;
use serde::Serialize;

use crate::crypto::sha256;
use crate::keys::local::Timestamp;
use crate::keys::{KeyContext, KeyError};
use crate::sys::append_log::AppendLog;
use crate::sys::process::process_of_thread;

use super::{BEGINNING, caller};

/// Where systemd's journal takes entries (`systemd.journal-fields(7)`).
const JOURNAL: &str = "/run/systemd/journal/socket";
/// How long the journal may take for one.
const PATIENCE: Duration = Duration::from_secs(5);

/// The audit log of a mount.
pub struct AuditLog {
    name: String,
    state: Mutex<State>,
}

struct State {
    target: Target,
    /// SHA-256 of the last line.
    last: [u8; 32],
    lines: u64,
}

enum Target {
    File(AppendLog),
    Journal(UnixDatagram),
}

/// Where the chain has got to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    /// Lines written by this process.
    pub lines: u64,
    /// SHA-256 of the last line, in hexadecimal.
    pub last: String,
}

/// A call that may release a key.
pub(super) struct Release<'a> {
    pub(super) event: &'static str,
    pub(super) context: &'a KeyContext,
    pub(super) key: &'a str,
    pub(super) request: Option<String>,
    pub(super) error: Option<&'a KeyError>,
}

/// A line, in the order in which it is written.
#[derive(Serialize)]
struct Line<'a> {
    time: String,
    event: &'static str,
    outcome: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    volume: String,
    file: String,
    key: &'a str,
    /// `null` for what kmsfs does by itself, such as renewing a lease.
    pid: Option<u32>,
    uid: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    request: Option<String>,
    previous: String,
}

impl AuditLog {
    /// Opens the log: a file, which is made if it is missing, or `journal` for
    /// systemd's. A chain in a file is continued.
    ///
    /// # Errors
    /// Those of opening it; `WouldBlock` if another mount writes to the file.
    pub fn open(name: &str) -> io::Result<Self> {
        let (target, last) = if name == "journal" {
            let socket = UnixDatagram::unbound()?;
            socket.connect(JOURNAL)?;
            socket.set_write_timeout(Some(PATIENCE))?;
            (Target::Journal(socket), BEGINNING)
        } else {
            let (file, last) = AppendLog::open(Path::new(name))?;
            (
                Target::File(file),
                last.map_or(BEGINNING, |line| sha256(&line)),
            )
        };
        let lines = 0;
        Ok(Self {
            name: name.to_owned(),
            state: Mutex::new(State {
                target,
                last,
                lines,
            }),
        })
    }

    /// Where the chain has got to.
    pub fn head(&self) -> Head {
        let state = self.state.lock();
        Head {
            lines: state.lines,
            last: HEXLOWER.encode(&state.last),
        }
    }

    pub(super) fn record(&self, release: &Release<'_>) -> io::Result<()> {
        let caller = caller::get();
        let mut state = self.state.lock();
        let line = Line {
            time: Timestamp::now().to_string(),
            event: release.event,
            outcome: release.error.map_or("released", KeyError::class),
            error: release.error.map(ToString::to_string),
            volume: release.context.volume.to_hex(),
            file: release.context.file.to_hex(),
            key: release.key,
            // It may have been killed meanwhile.
            pid: caller.map(|c| process_of_thread(c.thread).unwrap_or(c.thread)),
            uid: caller.map(|c| c.uid),
            request: release.request.clone(),
            previous: HEXLOWER.encode(&state.last),
        };
        let mut text = serde_json::to_vec(&line)?;
        let hash = sha256(&text);
        let written = match &mut state.target {
            Target::File(file) => {
                text.push(b'\n');
                file.append(&text)
            }
            Target::Journal(socket) => {
                let mut entry = b"SYSLOG_IDENTIFIER=kmsfs-audit\nPRIORITY=5\nMESSAGE=".to_vec();
                entry.extend_from_slice(&text);
                entry.push(b'\n');
                socket.send(&entry).map(drop)
            }
        };
        written.map_err(|error| {
            let message = format!("the audit log {} cannot be written: {error}", self.name);
            io::Error::new(error.kind(), message)
        })?;
        state.last = hash;
        state.lines += 1;
        Ok(())
    }
}
