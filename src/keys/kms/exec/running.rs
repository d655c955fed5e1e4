//! One process of a plugin: a thread that writes to it, one that reads its
//! answers, one that logs what it complains about.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use zeroize::{Zeroize, Zeroizing};

use super::protocol::{LONGEST_LINE, Request, Response, printable};

/// Requests that may wait for a plugin to read them.
const QUEUE: usize = 128;
/// Lines of complaint that are logged in [`COMPLAINTS_TIME`].
const COMPLAINTS: u32 = 20;
const COMPLAINTS_TIME: Duration = Duration::from_secs(60);
/// What a plugin may know of kmsfs's environment, besides `LC_*` and
/// `KMSFS_PLUGIN_*`.
const ENVIRONMENT: [&str; 14] = [
    "PATH",
    "HOME",
    "USER",
    "LOGNAME",
    "LANG",
    "TZ",
    "TMPDIR",
    "XDG_RUNTIME_DIR",
    "CREDENTIALS_DIRECTORY",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "HTTPS_PROXY",
    "HTTP_PROXY",
    "NO_PROXY",
];

/// Why a request has no answer.
#[derive(Clone, Debug)]
pub(super) enum Broken {
    /// The plugin ended, or is slow.
    Gone(String),
    /// What it says is not the protocol.
    Nonsense(String),
}

/// A running plugin. Dropping it ends the process.
pub(super) struct Running {
    /// The process that started it: a child of that cannot use it.
    pub(super) owner: u32,
    shared: Arc<Shared>,
    requests: SyncSender<Zeroizing<Vec<u8>>>,
    next: AtomicU64,
}

struct Shared {
    name: String,
    child: Mutex<Child>,
    state: Mutex<State>,
}

struct State {
    /// Those that wait, by the id of their request.
    waiting: HashMap<u64, SyncSender<Response>>,
    /// Set once it is over.
    end: Option<Broken>,
    heard: Instant,
}

impl Running {
    /// Starts `program`, without a shell.
    pub(super) fn start(name: &str, program: &Path, arguments: &[String]) -> std::io::Result<Self> {
        let allowed = |name: &OsStr| {
            let name = name.to_string_lossy();
            ENVIRONMENT.contains(&&*name)
                || name.starts_with("LC_")
                || name.starts_with("KMSFS_PLUGIN_")
        };
        let mut child = Command::new(program)
            .args(arguments)
            .env_clear()
            .envs(std::env::vars_os().filter(|(name, _)| allowed(name)))
            .current_dir("/")
            // Not to be interrupted by the keyboard together with kmsfs.
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        let pipes = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let (Some(input), Some(output), Some(complaints)) = pipes else {
            return Err(std::io::ErrorKind::BrokenPipe.into());
        };
        let shared = Arc::new(Shared {
            name: name.to_owned(),
            child: Mutex::new(child),
            state: Mutex::new(State {
                waiting: HashMap::new(),
                end: None,
                heard: Instant::now(),
            }),
        });
        let (requests, queue) = sync_channel(QUEUE);
        let spawn = |role: &str, work: Box<dyn FnOnce() + Send>| {
            let thread = std::thread::Builder::new().name(format!("kmsfs-plugin-{role}"));
            thread.spawn(work).map(drop)
        };
        let reader = Arc::clone(&shared);
        let name = name.to_owned();
        let started = spawn("out", Box::new(move || write_all(input, &queue)))
            .and_then(|()| spawn("in", Box::new(move || reader.read_all(output))))
            .and_then(|()| spawn("log", Box::new(move || log_all(&name, complaints))));
        if let Err(error) = started {
            shared.end(Broken::Gone("no thread for it".into()));
            return Err(error);
        }
        Ok(Self {
            owner: std::process::id(),
            shared,
            requests,
            next: AtomicU64::new(1),
        })
    }

    /// Sends a request and waits for its answer. A plugin that says nothing at
    /// all meanwhile is ended.
    pub(super) fn call(
        &self,
        mut request: Request<'_>,
        time: Duration,
    ) -> Result<Response, Broken> {
        request.id = self.next.fetch_add(1, Ordering::Relaxed);
        let id = request.id;
        let line = request.to_line();
        if line.len() > LONGEST_LINE {
            return Err(Broken::Nonsense("the request is too long".into()));
        }
        let (sender, answer) = sync_channel(1);
        let since = Instant::now();
        {
            let mut state = self.shared.state.lock();
            if let Some(end) = &state.end {
                return Err(end.clone());
            }
            state.waiting.insert(id, sender);
        }
        if self.requests.try_send(line).is_err() {
            self.shared.state.lock().waiting.remove(&id);
            return Err(Broken::Gone("it does not read its requests".into()));
        }
        match answer.recv_timeout(time) {
            Ok(response) => Ok(response),
            Err(RecvTimeoutError::Disconnected) => Err(self.end().unwrap_or_else(gone)),
            Err(RecvTimeoutError::Timeout) => {
                let mut state = self.shared.state.lock();
                state.waiting.remove(&id);
                let silent = state.heard < since;
                drop(state);
                let late = Broken::Gone("it did not answer in time".into());
                if silent {
                    self.shared.end(late.clone());
                }
                Err(late)
            }
        }
    }

    /// Why it is over, if it is.
    pub(super) fn end(&self) -> Option<Broken> {
        self.shared.state.lock().end.clone()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.shared.end(gone());
    }
}

fn gone() -> Broken {
    Broken::Gone("it has ended".into())
}

impl Shared {
    /// Ends the process and tells those that wait; the first reason counts.
    fn end(&self, reason: Broken) {
        {
            let mut state = self.state.lock();
            if state.end.is_some() {
                return;
            }
            state.end = Some(reason);
            state.waiting.clear();
        }
        let mut child = self.child.lock();
        // Fails if it has ended, which is as good.
        let _ = child.kill();
        let _ = child.wait();
    }

    fn read_all(&self, output: ChildStdout) {
        // Never grows, so leaves no unwiped copy of a key behind.
        let mut buffer = Zeroizing::new(vec![0; LONGEST_LINE]);
        let mut filled = 0;
        let mut output = output;
        let reason = loop {
            match output.read(&mut buffer[filled..]) {
                Ok(0) => break gone(),
                Ok(count) => filled += count,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(error) => break Broken::Gone(error.to_string()),
            }
            let mut start = 0;
            let mut sensible = true;
            while let Some(length) = buffer[start..filled].iter().position(|&b| b == b'\n') {
                sensible = self.hear(&buffer[start..start + length]);
                if !sensible {
                    break;
                }
                start += length + 1;
            }
            if !sensible {
                break Broken::Nonsense("a line is not an answer".into());
            }
            buffer.copy_within(start..filled, 0);
            let left = filled - start;
            buffer[left..filled].zeroize();
            filled = left;
            if filled == LONGEST_LINE {
                break Broken::Nonsense(format!("a line is longer than {LONGEST_LINE} bytes"));
            }
        };
        if self.state.lock().end.is_none() {
            log::warn!("plugin {}: {}", self.name, words(&reason));
        }
        self.end(reason);
    }

    /// Takes up a line; whether it is one of the protocol.
    fn hear(&self, line: &[u8]) -> bool {
        let Some(response) = Response::parse(line) else {
            return false;
        };
        let mut state = self.state.lock();
        state.heard = Instant::now();
        // An answer that nobody waits for any more came late.
        if let Some(waiting) = state.waiting.remove(&response.id) {
            let _ = waiting.try_send(response);
        }
        true
    }
}

/// The reason, in words.
pub(super) fn words(reason: &Broken) -> &str {
    match reason {
        Broken::Gone(words) | Broken::Nonsense(words) => words,
    }
}

fn write_all(mut input: ChildStdin, queue: &Receiver<Zeroizing<Vec<u8>>>) {
    while let Ok(line) = queue.recv() {
        // Its end is noticed by who reads from it.
        if input.write_all(&line).is_err() {
            return;
        }
    }
}

fn log_all(name: &str, complaints: ChildStderr) {
    let mut input = BufReader::new(complaints);
    let (mut since, mut count) = (Instant::now(), 0);
    let mut line = Vec::new();
    loop {
        line.clear();
        let limited = (&mut input).take(4096).read_until(b'\n', &mut line);
        if !matches!(limited, Ok(length) if length > 0) {
            return;
        }
        if since.elapsed() > COMPLAINTS_TIME {
            (since, count) = (Instant::now(), 0);
        }
        count += 1;
        if count <= COMPLAINTS {
            log::warn!("plugin {name}: {}", printable(&line));
        } else if count == COMPLAINTS + 1 {
            log::warn!("plugin {name} says more than is logged");
        }
    }
}
