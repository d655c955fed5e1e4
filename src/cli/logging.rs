//! Where log lines go: standard error, or the system's log.

use std::io::Write;
use std::os::unix::net::UnixDatagram;
use std::sync::RwLock;

use log::{Level, LevelFilter, Log, Metadata, Record};

static LOGGER: Logger = Logger(RwLock::new(Target::Stderr));

/// Where the system's log listens (`syslog(3)`; journald listens there too).
const SYSLOG: &str = "/dev/log";
/// Facility "daemon" (RFC 5424), shifted.
const DAEMON: u8 = 3 << 3;

enum Target {
    Stderr,
    Syslog(UnixDatagram),
    Nowhere,
}

struct Logger(RwLock<Target>);

/// Logs to standard error from `level` up.
pub(super) fn to_stderr(level: LevelFilter) {
    set(Target::Stderr, level);
}

/// Logs to the system's log from `level` up; nowhere if there is none.
pub(super) fn to_syslog(level: LevelFilter) {
    let socket = UnixDatagram::unbound().and_then(|socket| {
        socket.connect(SYSLOG)?;
        socket.set_nonblocking(true)?;
        Ok(socket)
    });
    set(socket.map_or(Target::Nowhere, Target::Syslog), level);
}

fn set(target: Target, level: LevelFilter) {
    *LOGGER.0.write().unwrap_or_else(|e| e.into_inner()) = target;
    // An error means that it is set already.
    let _ = log::set_logger(&LOGGER);
    log::set_max_level(level);
}

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        // Other libraries' chatter is for their developers.
        metadata.target().starts_with("kmsfs") || metadata.level() <= Level::Warn
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let (level, text) = (record.level(), record.args());
        // A log that cannot be written to is no reason to fail.
        match &*self.0.read().unwrap_or_else(|e| e.into_inner()) {
            Target::Stderr => {
                let level = level.as_str().to_ascii_lowercase();
                let _ = writeln!(std::io::stderr(), "kmsfs: {level}: {text}");
            }
            Target::Syslog(socket) => {
                let priority = DAEMON | severity(level);
                let pid = std::process::id();
                let line = format!("<{priority}>kmsfs[{pid}]: {text}");
                let _ = socket.send(line.as_bytes());
            }
            Target::Nowhere => {}
        }
    }

    fn flush(&self) {}
}

fn severity(level: Level) -> u8 {
    match level {
        Level::Error => 3,
        Level::Warn => 4,
        Level::Info => 6,
        Level::Debug | Level::Trace => 7,
    }
}
