//! The command's end of the socket.

use std::io::ErrorKind::{BrokenPipe, ConnectionReset};
use std::io::{self, BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::de::DeserializeOwned;

use crate::cli::umount::absolute;
use crate::cli::{ExitCode, Failure};
use crate::sys::control_socket;
use crate::sys::mount::{self as host, MountedAt};

use super::{Answer, Command, Request, socket_name};

/// How long a mount may take: it may have much to write back, and unlocking
/// waits for a key provider.
const PATIENCE: Duration = Duration::from_secs(300);

/// Has the mount at or above `path` do something; without a path the only one
/// there is.
pub(in crate::cli) fn ask(path: Option<&Path>, command: Command) -> Result<(), Failure> {
    exchange(path, command)?.read::<()>()
}

/// The same, with an answer.
pub(in crate::cli) fn ask_as<T: DeserializeOwned>(
    path: Option<&Path>,
    command: Command,
) -> Result<T, Failure> {
    exchange(path, command)?.read()
}

fn exchange(path: Option<&Path>, command: Command) -> Result<Answer, Failure> {
    let mount = find(path)?;
    let shown = mount.mountpoint.display();
    let failed = |error: io::Error| match error.kind() {
        io::ErrorKind::PermissionDenied => {
            let message = format!("{shown} is mounted by another user");
            Failure::new(ExitCode::NotPermitted, message)
                .hint("only the mount's owner and root may do this")
        }
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
            let message = format!("the mount on {shown} does not answer");
            Failure::new(ExitCode::NotMounted, message)
                .hint("its log says why it has no control socket, if it runs")
        }
        _ => Failure::new(ExitCode::Io, format!("the mount on {shown}: {error}")),
    };
    let name = socket_name(&mount.mountpoint);
    let mut stream = control_socket::connect(mount.owner, &name).map_err(failed)?;
    stream.set_read_timeout(Some(PATIENCE)).map_err(failed)?;
    let request = serde_json::to_string(&Request { command });
    let request = request.map_err(|e| Failure::new(ExitCode::Internal, e.to_string()))? + "\n";
    match stream.write_all(request.as_bytes()) {
        // Whom it refuses it does not hear; its answer says so.
        Err(error) if matches!(error.kind(), BrokenPipe | ConnectionReset) => {}
        other => other.map_err(failed)?,
    }
    let mut line = String::new();
    BufReader::new(stream)
        .read_line(&mut line)
        .map_err(failed)?;
    serde_json::from_str(&line).map_err(|_| {
        Failure::new(
            ExitCode::Internal,
            format!("the mount on {shown} ended without an answer"),
        )
    })
}

fn find(path: Option<&Path>) -> Result<MountedAt, Failure> {
    let mounts = host::mounts().map_err(|e| Failure::new(ExitCode::Io, e.to_string()))?;
    let Some(path) = path else {
        let mut mounts = mounts;
        return match (mounts.pop(), mounts.is_empty()) {
            (Some(only), true) => Ok(only),
            (None, _) => Err(Failure::new(
                ExitCode::NotMounted,
                "no kmsfs volume is mounted",
            )),
            (Some(_), false) => Err(Failure::new(
                ExitCode::Usage,
                "several kmsfs volumes are mounted",
            )
            .hint("name one of them; findmnt -t fuse.kmsfs lists them")),
        };
    };
    let path = absolute(path);
    covering(mounts, &path).ok_or_else(|| {
        let message = format!("no kmsfs volume is mounted on {}", path.display());
        Failure::new(ExitCode::NotMounted, message).hint("findmnt -t fuse.kmsfs lists them")
    })
}

/// The mount that a path lies in: the innermost, of several the topmost.
fn covering(mounts: Vec<MountedAt>, path: &Path) -> Option<MountedAt> {
    let depth = |m: &MountedAt| PathBuf::from(&m.mountpoint).components().count();
    let above = mounts
        .into_iter()
        .filter(|m| path.starts_with(&m.mountpoint));
    above.max_by_key(depth)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_innermost_mount_is_meant() {
        let mount = |path: &str, source: &str| MountedAt {
            mountpoint: path.into(),
            source: source.into(),
            device: "0:1".into(),
            owner: 0,
        };
        let mounts = || {
            vec![
                mount("/a", "1"),
                mount("/a/b", "2"),
                mount("/a/b", "3"),
                mount("/ab", "4"),
            ]
        };
        let found = |path: &str| covering(mounts(), Path::new(path)).map(|m| m.source);
        assert_eq!(found("/a/b/c").as_deref(), Some("3"));
        assert_eq!(found("/a/c").as_deref(), Some("1"));
        assert_eq!(found("/abc"), None);
    }
}
