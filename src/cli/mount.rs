//! `kmsfs mount`.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use clap::Args;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGXFSZ};
use signal_hook::flag;
use signal_hook::iterator::Signals;

use crate::cli::control::{Control, ControlTarget};
use crate::cli::{ExitCode, Failure, PassphraseArguments, logging};
use crate::fs::{LeaseTerms, Mounted, OpenError, volume};
use crate::fuse::{MountOptions, Session};
use crate::keys::audit::AuditLog;
use crate::keys::cache::CacheLimits;
use crate::keys::service::DEFAULT_DEADLINE;
use crate::keys::{KeyService, registry};
use crate::sys::clock::BootClock;
use crate::sys::daemon::{self, Readiness, Side};
use crate::sys::{mount as host, process, secret};

const EXAMPLES: &str = "examples:
  kmsfs mount /srv/backing /mnt/plain
  kmsfs mount -o ro,allow_other /srv/backing /mnt/plain
  kmsfs mount --foreground --log debug /srv/backing /mnt/plain";

/// How long to wait for an earlier mount of the volume that is just ending.
const ENDING: Duration = Duration::from_secs(20);

/// How long programs that use the mount may go on after a signal to end it.
const GRACE: Duration = Duration::from_secs(3);

/// Show an encrypted volume as a plain directory
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Arguments {
    /// The directory that holds the ciphertext
    backing: PathBuf,
    /// The directory to mount on
    mountpoint: PathBuf,
    /// Stay in the foreground and log to standard error
    #[arg(short, long)]
    foreground: bool,
    /// Mount options, comma-separated, as for mount(8): ro, allow_other, suid,
    /// dev, noexec, noatime, sync, dirsync, no_io_uring, fsname=NAME
    #[arg(short = 'o', value_name = "OPTIONS")]
    options: Vec<String>,
    /// Mount over a directory that is not empty
    #[arg(long)]
    nonempty: bool,
    /// Least important messages to log
    #[arg(long, value_name = "LEVEL", default_value = "info")]
    log: log::LevelFilter,
    /// Most data keys kept in memory
    #[arg(long, default_value_t = CacheLimits::default().entries, value_name = "N")]
    key_cache: usize,
    /// Seconds a data key is kept
    #[arg(long, default_value_t = CacheLimits::default().time_to_live.as_secs(), value_name = "SECONDS")]
    key_ttl: u64,
    /// Seconds an unused data key is kept
    #[arg(long, default_value_t = CacheLimits::default().idle.as_secs(), value_name = "SECONDS")]
    key_idle: u64,
    /// Seconds an operation waits for a key management service at the longest
    #[arg(
        long,
        default_value_t = DEFAULT_DEADLINE.as_secs(),
        value_name = "SECONDS",
        value_parser = clap::value_parser!(u64).range(1..=300)
    )]
    kms_deadline: u64,
    /// Seconds for which keys in memory stay usable after their time while no
    /// key provider can be reached
    #[arg(long, default_value_t = 0, value_name = "SECONDS")]
    outage_grace: u64,
    /// Write a line for each key that is released, or refused, to FILE, or with
    /// `journal` to systemd's journal
    #[arg(long, value_name = "FILE")]
    audit_log: Option<String>,
    #[command(flatten)]
    passphrase: PassphraseArguments,
}

impl Arguments {
    fn lease_terms(&self) -> LeaseTerms {
        LeaseTerms {
            time_to_live: Duration::from_secs(self.key_ttl),
            grace: Duration::from_secs(self.outage_grace),
        }
    }
}

pub(super) fn run(arguments: Arguments) -> Result<(), Failure> {
    let mut options = MountOptions::default();
    for list in &arguments.options {
        options.parse(list).map_err(|unknown| {
            Failure::new(ExitCode::Usage, format!("unknown mount option {unknown:?}"))
                .hint("kmsfs mount --help lists the options")
        })?;
    }
    let backing = existing(&arguments.backing, ExitCode::NotAVolume)?;
    let mountpoint = existing(&arguments.mountpoint, ExitCode::MountpointInvalid)?;
    check_mountpoint(&backing, &mountpoint, arguments.nonempty)?;
    // Whatever can be said without the background process is said before it.
    drop(volume::find(&backing)?);
    let audit = arguments.audit_log.as_deref();
    let audit = audit.map(|name| open_audit_log(name, [&backing, &mountpoint]));
    let place = Place {
        backing,
        mountpoint,
        audit: audit.transpose()?,
    };
    if arguments.foreground {
        logging::to_stderr(arguments.log);
        let ready = &mut Readiness::none();
        return serve(&arguments, &options, &place, ready);
    }
    match daemon::split().map_err(|e| Failure::new(ExitCode::Internal, e.to_string()))? {
        Side::Foreground(0) => Ok(()),
        Side::Foreground(code) => std::process::exit(code.into()),
        Side::Background(mut ready) => {
            logging::to_stderr(arguments.log);
            let served = serve(&arguments, &options, &place, &mut ready);
            if let Err(failure) = &served {
                log::error!("{}", failure.message);
                ready.failed(failure.code as u8);
            }
            served
        }
    }
}

/// What is mounted where, and what was opened before anything else.
struct Place {
    backing: PathBuf,
    mountpoint: PathBuf,
    audit: Option<Arc<AuditLog>>,
}

fn open_audit_log(name: &str, elsewhere: [&PathBuf; 2]) -> Result<Arc<AuditLog>, Failure> {
    if name != "journal" {
        let path = Path::new(name);
        let parent = path.parent().filter(|p| !p.as_os_str().is_empty());
        let parent = parent.unwrap_or(Path::new(".")).canonicalize();
        if parent.is_ok_and(|parent| elsewhere.iter().any(|dir| parent.starts_with(dir))) {
            let message = format!("the audit log {name} lies in the volume");
            return Err(Failure::new(ExitCode::Overlap, message)
                .hint("keep it apart from what it watches over"));
        }
    }
    let log = AuditLog::open(name)
        .map_err(|error| Failure::new(ExitCode::Io, format!("the audit log {name}: {error}")))?;
    Ok(Arc::new(log))
}

fn serve(
    arguments: &Arguments,
    options: &MountOptions,
    place: &Place,
    ready: &mut Readiness,
) -> Result<(), Failure> {
    let (backing, mountpoint) = (place.backing.as_path(), place.mountpoint.as_path());
    secret::lock_again();
    process::lock_memory();
    process::raise_descriptor_limit();
    process::serve_under_others_limits();
    // Past a file size limit that could not be lifted a write is an error, and not
    // the end of the mount.
    flag::register(SIGXFSZ, Arc::default())
        .map_err(|e| Failure::new(ExitCode::Internal, e.to_string()))?;
    let mounted = open(arguments, options, place)?;
    let source = backing.display().to_string();
    let terms = arguments.lease_terms();
    let session = Session::mount(mounted, mountpoint, &source, options, terms)?;
    let control = Control::start(ControlTarget {
        keeper: session.keeper(),
        volume: session.mounted().fs.volume().volume.id,
        mountpoint: mountpoint.to_owned(),
        backing: backing.to_owned(),
        audit: place.audit.clone(),
        started: Instant::now(),
    });
    unmount_on_signals(mountpoint.to_owned(), session.mounted())
        .map_err(|e| Failure::new(ExitCode::Internal, e.to_string()))?;
    if !arguments.foreground {
        ready
            .ready()
            .map_err(|e| Failure::new(ExitCode::Internal, e.to_string()))?;
        logging::to_syslog(arguments.log);
    }
    log::info!("{} is mounted on {}", source, mountpoint.display());
    let ended = session.run();
    control.stop();
    Ok(ended?)
}

fn open(arguments: &Arguments, options: &MountOptions, place: &Place) -> Result<Mounted, Failure> {
    let backing = place.backing.as_path();
    let limits = CacheLimits {
        entries: arguments.key_cache,
        time_to_live: Duration::from_secs(arguments.key_ttl),
        grace: Duration::from_secs(arguments.outage_grace),
        idle: Duration::from_secs(arguments.key_idle),
    };
    let found = volume::find(backing)?;
    refuse_keystore_inside(&found.volume.keys, backing)?;
    let ring = registry::open_ring(&found.volume.keys, &arguments.passphrase.source())?;
    let ring = match &place.audit {
        Some(log) => ring.audited(log),
        None => ring,
    };
    let deadline = Duration::from_secs(arguments.kms_deadline);
    let keys = KeyService::with(ring, limits, deadline, Arc::new(BootClock));
    let keys = Arc::new(match &place.audit {
        Some(log) => keys.audited(Arc::clone(log)),
        None => keys,
    });
    let patience = Instant::now() + ENDING;
    let mut found = found;
    loop {
        match found.open(keys.clone(), options.read_only) {
            // Unmounted, but its daemon is still making things durable.
            Err(OpenError::InUse(_)) if !is_mounted(backing) && Instant::now() < patience => {
                thread::sleep(Duration::from_millis(50));
                found = volume::find(backing)?;
            }
            other => return Ok(other?),
        }
    }
}

fn is_mounted(backing: &Path) -> bool {
    let source = backing.display().to_string();
    host::mounts().is_ok_and(|mounts| mounts.iter().any(|m| m.source == source))
}

fn existing(path: &Path, code: ExitCode) -> Result<PathBuf, Failure> {
    let failed = |why: &str| Failure::new(code, format!("{}: {why}", path.display()));
    let real = path.canonicalize().map_err(|e| failed(&e.to_string()))?;
    if !real.is_dir() {
        return Err(failed("not a directory"));
    }
    Ok(real)
}

fn check_mountpoint(backing: &Path, mountpoint: &Path, nonempty: bool) -> Result<(), Failure> {
    if backing.starts_with(mountpoint) || mountpoint.starts_with(backing) {
        return Err(Failure::new(
            ExitCode::Overlap,
            format!(
                "{} and {} lie inside each other",
                backing.display(),
                mountpoint.display()
            ),
        )
        .hint("use two separate directories"));
    }
    let entries = mountpoint.read_dir().map_err(|e| {
        let message = format!("{}: {e}", mountpoint.display());
        Failure::new(ExitCode::MountpointInvalid, message)
    })?;
    if !nonempty && entries.count() > 0 {
        return Err(Failure::new(
            ExitCode::MountpointInvalid,
            format!("{} is not empty", mountpoint.display()),
        )
        .hint("mount on an empty directory, or add --nonempty to hide what is there"));
    }
    Ok(())
}

/// A keystore in the directory it unlocks would be copied along with it.
pub(super) fn refuse_keystore_inside(keys: &[String], backing: &Path) -> Result<(), Failure> {
    let backing = backing
        .canonicalize()
        .unwrap_or_else(|_| backing.to_owned());
    for uri in keys {
        let Some(keystore) = registry::keystore_directory(uri)? else {
            continue;
        };
        let keystore = keystore.canonicalize().unwrap_or(keystore);
        if keystore.starts_with(&backing) {
            return Err(Failure::new(
                ExitCode::Overlap,
                format!(
                    "the keystore {} lies in the backing directory",
                    keystore.display()
                ),
            )
            .hint("keep keys apart from what they encrypt: set KMSFS_KEYSTORE"));
        }
    }
    Ok(())
}

/// SIGTERM, SIGINT and SIGHUP unmount; the session then ends by itself. If the
/// mount is in use it is detached, and its users get a moment to finish.
fn unmount_on_signals(mountpoint: PathBuf, mounted: Arc<Mounted>) -> std::io::Result<()> {
    let mut signals = Signals::new([SIGTERM, SIGINT, SIGHUP])?;
    thread::spawn(move || {
        for signal in signals.forever() {
            log::info!("signal {signal}: unmounting {}", mountpoint.display());
            // What the kernel holds has to come here before anything ends.
            if let Err(error) = host::sync(&mountpoint) {
                log::warn!("{}: {error}", mountpoint.display());
            }
            let Err(error) = host::unmount(&mountpoint, false) else {
                continue;
            };
            log::warn!("{}: {error}; detaching it", mountpoint.display());
            if let Err(error) = host::unmount(&mountpoint, true) {
                log::error!("{}: {error}", mountpoint.display());
                continue;
            }
            thread::sleep(GRACE);
            log::warn!("{}: still in use; ending", mountpoint.display());
            let code = match mounted.make_durable() {
                Ok(()) => 0,
                Err(error) => {
                    log::error!("{error}");
                    ExitCode::Io as i32
                }
            };
            std::process::exit(code);
        }
    });
    Ok(())
}
