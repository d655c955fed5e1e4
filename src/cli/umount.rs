//! `kmsfs umount`.

use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use clap::Args;

use crate::backing::dir;
use crate::cli::{ExitCode, Failure};
use crate::sys::mount::{self as host, MountedAt};

const EXAMPLES: &str = "examples:
  kmsfs umount /mnt/plain
  kmsfs umount --lazy /mnt/plain       now, and for programs that use it once they end";

/// How long to wait for the daemon to make everything durable.
const PATIENCE: Duration = Duration::from_secs(120);

/// Unmount a volume and wait until everything is durable
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub(super) struct Arguments {
    /// Where the volume is mounted
    mountpoint: PathBuf,
    /// Detach it even while it is in use
    #[arg(short = 'z', long)]
    lazy: bool,
}

pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let path = absolute(&arguments.mountpoint);
    let mount = find(&path)?;
    host::unmount(&path, arguments.lazy).map_err(|error| {
        let message = format!("cannot unmount {}: {error}", path.display());
        if error.raw_os_error() == Some(crate::backing::Errno::BUSY.raw_os_error()) {
            Failure::new(ExitCode::Busy, message)
                .hint("end the programs that use it, or add --lazy")
        } else {
            Failure::new(ExitCode::Io, message)
        }
    })?;
    if !arguments.lazy {
        wait_for_daemon(&mount);
    }
    Ok(())
}

fn find(path: &Path) -> Result<MountedAt, Failure> {
    let mounts = host::mounts().map_err(|e| Failure::new(ExitCode::Io, e.to_string()))?;
    mounts
        .into_iter()
        .rfind(|m| m.mountpoint == path)
        .ok_or_else(|| {
            let message = format!("no kmsfs volume is mounted on {}", path.display());
            Failure::new(ExitCode::NotMounted, message).hint("findmnt -t fuse.kmsfs lists them")
        })
}

/// The path without `.`, `..` and symbolic links, but without asking the mount
/// itself, whose daemon may be dead.
pub(super) fn absolute(path: &Path) -> PathBuf {
    let parent = path.parent().filter(|p| !p.as_os_str().is_empty());
    let parent = parent.unwrap_or(Path::new("."));
    match (parent.canonicalize(), path.file_name()) {
        (Ok(parent), Some(name)) => parent.join(name),
        _ => path.canonicalize().unwrap_or_else(|_| path.to_owned()),
    }
}

/// The daemon holds the volume's lock until all is durable.
fn wait_for_daemon(mount: &MountedAt) {
    let patience = Instant::now() + PATIENCE;
    while Instant::now() < patience {
        match std::fs::File::open(&mount.source) {
            Ok(file) if dir::lock(&file).is_err() => thread::sleep(Duration::from_millis(10)),
            _ => return,
        }
    }
}
