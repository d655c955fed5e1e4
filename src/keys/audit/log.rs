//! Where audit lines go, and the chain that they form.

use std::io;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::time::Duration;

use data_encoding::HEXLOWER;
use parking_lot::Mutex;
use serde::Serialize;

use crate::crypto::sha256;
use crate::keys::local::Timestamp;
use crate::keys::{KeyContext, KeyError, WrappedKey};
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
    Journal(Journal),
}

/// The way to systemd's journal.
struct Journal {
    path: PathBuf,
    socket: UnixDatagram,
}

impl Journal {
    fn open(path: &Path) -> io::Result<Self> {
        let socket = UnixDatagram::unbound()?;
        socket.connect(path)?;
        socket.set_write_timeout(Some(PATIENCE))?;
        let path = path.to_owned();
        Ok(Self { path, socket })
    }

    /// Sends an entry; once more if the journal was started anew since the last.
    fn send(&mut self, entry: &[u8]) -> io::Result<()> {
        match self.socket.send(entry) {
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::ConnectionRefused
                        | io::ErrorKind::ConnectionReset
                        | io::ErrorKind::NotConnected
                ) =>
            {
                *self = Self::open(&self.path)?;
                self.socket.send(entry).map(drop)
            }
            sent => sent.map(drop),
        }
    }
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
        if name == "journal" {
            let journal = Journal::open(Path::new(JOURNAL))?;
            return Ok(Self::to(name, Target::Journal(journal), BEGINNING));
        }
        let (file, last) = AppendLog::open(Path::new(name))?;
        let last = last.map_or(BEGINNING, |line| sha256(&line));
        Ok(Self::to(name, Target::File(file), last))
    }

    fn to(name: &str, target: Target, last: [u8; 32]) -> Self {
        Self {
            name: name.to_owned(),
            state: Mutex::new(State {
                target,
                last,
                lines: 0,
            }),
        }
    }

    /// Where the chain has got to.
    pub fn head(&self) -> Head {
        let state = self.state.lock();
        Head {
            lines: state.lines,
            last: HEXLOWER.encode(&state.last),
        }
    }

    /// Writes down which file gets a key that was made ahead, and whose doing
    /// that is.
    ///
    /// # Errors
    /// `Configuration` if it cannot be written: the key is not to be used then.
    pub fn assigned(&self, context: &KeyContext, wrapped: &[WrappedKey]) -> Result<(), KeyError> {
        self.record(&Release {
            event: "assign",
            context,
            key: wrapped.first().map_or("", |wrapped| &wrapped.key_uri),
            request: None,
            error: None,
        })
    }

    /// Writes a line.
    ///
    /// # Errors
    /// `Configuration` if that fails: what cannot be logged is not released.
    pub(super) fn record(&self, release: &Release<'_>) -> Result<(), KeyError> {
        self.write(release).map_err(|error| {
            let detail = format!("the audit log {} cannot be written: {error}", self.name);
            log::error!("{detail}");
            KeyError::Configuration {
                detail,
                hint: Some("no key is released that the audit log does not show".into()),
            }
        })
    }

    fn write(&self, release: &Release<'_>) -> io::Result<()> {
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
        match &mut state.target {
            Target::File(file) => {
                text.push(b'\n');
                file.append(&text)
            }
            Target::Journal(journal) => {
                let mut entry = b"SYSLOG_IDENTIFIER=kmsfs-audit\nPRIORITY=5\nMESSAGE=".to_vec();
                entry.extend_from_slice(&text);
                entry.push(b'\n');
                journal.send(&entry)
            }
        }?;
        state.last = hash;
        state.lines += 1;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::audit::verify;
    use crate::keys::testing::CONTEXT;

    /// The message of the next entry, as `journalctl -o cat` prints it.
    fn next(journal: &UnixDatagram) -> String {
        let mut entry = [0; 4096];
        let len = journal.recv(&mut entry).unwrap();
        let text = std::str::from_utf8(&entry[..len]).unwrap();
        let fields: Vec<_> = text.lines().map(|l| l.split_once('=').unwrap()).collect();
        assert_eq!(fields[0], ("SYSLOG_IDENTIFIER", "kmsfs-audit"));
        assert_eq!(fields[1].0, "PRIORITY");
        assert_eq!((fields[2].0, fields.len()), ("MESSAGE", 3));
        fields[2].1.to_owned() + "\n"
    }

    #[test]
    fn the_journal_gets_a_chain_also_if_it_is_started_anew() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let journal = UnixDatagram::bind(&path).unwrap();
        let open = || {
            let target = Target::Journal(Journal::open(&path).unwrap());
            AuditLog::to("journal", target, BEGINNING)
        };
        let log = open();
        log.assigned(&CONTEXT, &[]).unwrap();
        let mut all = next(&journal);
        drop(journal);
        std::fs::remove_file(&path).unwrap();
        let lost = log.assigned(&CONTEXT, &[]);
        assert!(matches!(lost, Err(KeyError::Configuration { .. })));
        let journal = UnixDatagram::bind(&path).unwrap();
        log.assigned(&CONTEXT, &[]).unwrap();
        all += &next(&journal);
        let verified = verify(all.as_bytes(), false).unwrap();
        assert_eq!((verified.lines, verified.last), (2, log.head().last));
        // Another mount's chain follows.
        open().assigned(&CONTEXT, &[]).unwrap();
        all += &next(&journal);
        assert!(verify(all.as_bytes(), false).is_err());
        assert_eq!(verify(all.as_bytes(), true).unwrap().lines, 3);
    }
}
