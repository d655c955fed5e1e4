//! The mount's end of the socket.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::cli::{ExitCode, Failure};
use crate::fs::KeyKeeper;
use crate::keys::audit::AuditLog;
use crate::sys::control_socket::{ControlSocket, peer_user};
use crate::sys::process;
use crate::types::VolumeId;

use super::{Answer, Command, Request, Snapshot, socket_name};

/// How long whoever connects may take to say what it wants, and to listen.
const PATIENCE: Duration = Duration::from_secs(5);
/// No request is longer.
const LONGEST: u64 = 4096;

/// What requests are about.
pub(in crate::cli) struct ControlTarget {
    pub(in crate::cli) keeper: Arc<KeyKeeper>,
    pub(in crate::cli) volume: VolumeId,
    pub(in crate::cli) mountpoint: PathBuf,
    pub(in crate::cli) backing: PathBuf,
    pub(in crate::cli) audit: Option<Arc<AuditLog>>,
    pub(in crate::cli) started: Instant,
}

/// The running server.
pub(in crate::cli) struct Control {
    socket: Option<Arc<ControlSocket>>,
    ended: Arc<AtomicBool>,
}

impl Control {
    /// Answers requests from now on. Without a place for its socket the mount
    /// goes on, and says so.
    pub(in crate::cli) fn start(target: ControlTarget) -> Self {
        let ended = Arc::new(AtomicBool::new(false));
        let socket = match ControlSocket::listen(&socket_name(&target.mountpoint)) {
            Ok(socket) => Arc::new(socket),
            Err(error) => {
                log::warn!("no control socket, so no kmsfs lock and status: {error}");
                let socket = None;
                return Self { socket, ended };
            }
        };
        let control = Self {
            socket: Some(socket.clone()),
            ended: ended.clone(),
        };
        let target = Arc::new(target);
        thread::spawn(move || {
            while let Ok(stream) = socket.accept() {
                if ended.load(Ordering::Acquire) {
                    break;
                }
                let target = target.clone();
                thread::spawn(move || target.serve(&stream));
            }
        });
        control
    }

    /// Takes no more requests, and removes the socket.
    pub(in crate::cli) fn stop(self) {
        self.ended.store(true, Ordering::Release);
        if let Some(socket) = self.socket {
            socket.remove();
        }
    }
}

impl ControlTarget {
    fn serve(&self, stream: &UnixStream) {
        let answer = Answer::from(self.answer(stream));
        let mut text = serde_json::to_vec(&answer).unwrap_or_default();
        text.push(b'\n');
        let mut stream = stream;
        if let Err(error) = stream.write_all(&text) {
            log::debug!("control: {error}");
        }
    }

    fn answer(&self, stream: &UnixStream) -> Result<Value, Failure> {
        let failed = |error: std::io::Error| Failure::new(ExitCode::Io, error.to_string());
        stream.set_read_timeout(Some(PATIENCE)).map_err(failed)?;
        stream.set_write_timeout(Some(PATIENCE)).map_err(failed)?;
        let user = peer_user(stream).map_err(failed)?;
        if user != 0 && user != process::effective_user() {
            log::warn!("control: user {user} was refused");
            let message = "only the mount's owner and root may do this";
            return Err(Failure::new(ExitCode::NotPermitted, message));
        }
        let mut line = String::new();
        let mut reader = BufReader::new(stream.take(LONGEST));
        reader.read_line(&mut line).map_err(failed)?;
        let request: Request = serde_json::from_str(&line)
            .map_err(|error| Failure::new(ExitCode::Usage, format!("not a request: {error}")))?;
        log::info!("control: user {user} asks for {:?}", request.command);
        self.run(request.command)
    }

    fn run(&self, command: Command) -> Result<Value, Failure> {
        let unwritten = |error: crate::fs::FsError| {
            Failure::new(
                ExitCode::Io,
                format!("not everything was made durable: {error}"),
            )
        };
        match command {
            Command::Lock => self.keeper.lock().map_err(unwritten)?,
            Command::Unlock => self.keeper.unlock()?,
            Command::DropKeys => self.keeper.drop_keys().map_err(unwritten)?,
            Command::Status => {
                let snapshot = Snapshot::of(self);
                return serde_json::to_value(snapshot)
                    .map_err(|error| Failure::new(ExitCode::Internal, error.to_string()));
            }
        }
        Ok(Value::Null)
    }
}
