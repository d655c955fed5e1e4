//! The socket through which a running mount is asked and told things.

use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use rustix::net::sockopt::socket_peercred;

/// A socket that listens, and is removed in the end.
pub struct ControlSocket {
    listener: UnixListener,
    path: PathBuf,
}

/// Where the sockets of mounts of user `uid` may be, the best place first.
pub fn directories(uid: u32) -> Vec<PathBuf> {
    if let Some(directory) = std::env::var_os("KMSFS_RUNTIME_DIR") {
        return vec![directory.into()];
    }
    if uid == 0 {
        return vec!["/run/kmsfs".into()];
    }
    let mut found = Vec::new();
    if uid == rustix::process::geteuid().as_raw()
        && let Some(directory) = std::env::var_os("XDG_RUNTIME_DIR")
    {
        found.push(PathBuf::from(directory).join("kmsfs"));
    }
    found.push(format!("/run/user/{uid}/kmsfs").into());
    found.push(format!("/tmp/kmsfs-{uid}").into());
    found
}

impl ControlSocket {
    /// Listens on the socket `name` in the first of this user's directories
    /// that can be used.
    ///
    /// # Errors
    /// `AddrInUse` if someone listens there, those of the last directory.
    pub fn listen(name: &str) -> io::Result<Self> {
        let uid = rustix::process::geteuid().as_raw();
        let mut failure = io::ErrorKind::NotFound.into();
        for directory in directories(uid) {
            match private_directory(&directory, uid) {
                Ok(()) => return Self::listen_at(directory.join(name)),
                Err(error) => failure = with_path(&directory, &error),
            }
        }
        Err(failure)
    }

    fn listen_at(path: PathBuf) -> io::Result<Self> {
        if fs::symlink_metadata(&path).is_ok_and(|m| m.file_type().is_socket()) {
            if UnixStream::connect(&path).is_ok() {
                return Err(io::ErrorKind::AddrInUse.into());
            }
            // Left by a process that was killed.
            fs::remove_file(&path)?;
        }
        // The directory keeps others out until the mode is set.
        let listener = UnixListener::bind(&path)?;
        fs::set_permissions(&path, Permissions::from_mode(0o600))?;
        Ok(Self { listener, path })
    }

    /// Waits for the next connection.
    ///
    /// # Errors
    /// Those of `accept(2)`.
    pub fn accept(&self) -> io::Result<UnixStream> {
        Ok(self.listener.accept()?.0)
    }

    /// Removes the socket's name; nobody can connect any more.
    pub fn remove(&self) {
        let _ = fs::remove_file(&self.path);
    }
}

impl Drop for ControlSocket {
    fn drop(&mut self) {
        self.remove();
    }
}

/// The user of the process at the other end, as the kernel says.
///
/// # Errors
/// Those of `getsockopt(2)`.
pub fn peer_user(stream: &UnixStream) -> io::Result<u32> {
    Ok(socket_peercred(stream)?.uid.as_raw())
}

/// Connects to the socket `name` of a mount of user `uid`.
///
/// # Errors
/// `NotFound` if there is none, `PermissionDenied` for other users.
pub fn connect(uid: u32, name: &str) -> io::Result<UnixStream> {
    let mut failure = io::ErrorKind::NotFound.into();
    for directory in directories(uid) {
        match UnixStream::connect(directory.join(name)) {
            Ok(stream) => return Ok(stream),
            // A directory further down may just not be there.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => failure = error,
        }
    }
    Err(failure)
}

/// Makes a directory that only `uid` may use, or checks that it is one.
fn private_directory(directory: &Path, uid: u32) -> io::Result<()> {
    match DirBuilder::new().mode(0o700).create(directory) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        other => other?,
    }
    let metadata = fs::symlink_metadata(directory)?;
    if !metadata.is_dir() || metadata.uid() != uid || metadata.mode() & 0o077 != 0 {
        let message = "not a directory of this user's alone (chmod 700)";
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, message));
    }
    Ok(())
}

fn with_path(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stale_socket_is_replaced_and_a_live_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let first = ControlSocket::listen_at(path.clone()).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        let busy = ControlSocket::listen_at(path.clone()).err().unwrap();
        assert_eq!(busy.kind(), io::ErrorKind::AddrInUse);
        drop(first);
        assert!(!path.exists());
        // As a killed process leaves it.
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        ControlSocket::listen_at(path).unwrap();
    }

    #[test]
    fn directories_that_others_may_use_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let uid = rustix::process::geteuid().as_raw();
        private_directory(&dir.path().join("new"), uid).unwrap();
        fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).unwrap();
        assert!(private_directory(dir.path(), uid).is_err());
    }

    #[test]
    fn the_other_end_is_known() {
        let (one, _other) = UnixStream::pair().unwrap();
        let uid = rustix::process::geteuid().as_raw();
        assert_eq!(peer_user(&one).unwrap(), uid);
    }
}
