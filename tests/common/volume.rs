//! Volumes that need not be mounted, and the commands run on them.

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::Duration;

use rustix::mount::UnmountFlags;
use tempfile::TempDir;

use super::{PATIENCE, eventually, mount_line, processes_naming, sys, temp_dir};

/// Temporary files of one volume: its backing directory, a mount point and a
/// keystore of its own.
pub struct Volume {
    root: TempDir,
    backing: PathBuf,
    point: PathBuf,
    user: Option<u32>,
    environment: Vec<(String, String)>,
}

impl Volume {
    /// Directories without a volume in them yet.
    pub fn bare(backing: Option<PathBuf>) -> Volume {
        let root = temp_dir();
        let backing = backing.unwrap_or_else(|| root.path().join("backing"));
        let point = root.path().join("mnt");
        for dir in [&backing, &point, &root.path().join("home")] {
            fs::create_dir_all(dir).expect("mkdir");
        }
        Volume {
            root,
            backing,
            point,
            user: None,
            environment: Vec::new(),
        }
    }

    /// An initialised volume.
    pub fn new() -> Volume {
        let volume = Volume::bare(None);
        volume.init(&[]);
        volume
    }

    /// Sets variables for all commands from now on.
    pub fn set_environment(&mut self, environment: Vec<(String, String)>) {
        self.environment = environment;
    }

    /// Gives everything to a user, who then runs the commands.
    pub fn owned_by(mut self, uid: u32) -> Volume {
        self.user = Some(uid);
        for path in [
            &self.backing,
            &self.point,
            self.root.path(),
            &self.root.path().join("home"),
        ] {
            std::os::unix::fs::chown(path, Some(uid), Some(uid)).expect("chown");
        }
        self
    }

    /// `kmsfs init`, which must succeed.
    pub fn init(&self, arguments: &[String]) {
        let output = self
            .kmsfs()
            .arg("init")
            .args(arguments)
            .arg(&self.backing)
            .output();
        let output = output.expect("kmsfs runs");
        assert!(output.status.success(), "init failed: {}", said(&output));
    }

    /// The backing directory.
    pub fn backing(&self) -> &Path {
        &self.backing
    }

    /// The mount point.
    pub fn point(&self) -> &Path {
        &self.point
    }

    /// The user who runs the commands, if not root.
    pub fn user(&self) -> Option<u32> {
        self.user
    }

    /// The directory around both, removed in the end.
    pub fn root(&self) -> &Path {
        self.root.path()
    }

    /// A command that runs kmsfs with this volume's keystore.
    pub fn kmsfs(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_kmsfs"));
        command
            .env("KMSFS_KEYSTORE", self.root.path().join("keystore"))
            .env("HOME", self.root.path().join("home"))
            .env("XDG_DATA_HOME", self.root.path().join("home"))
            .env("KMSFS_RUNTIME_DIR", self.root.path().join("run"))
            .env("RUST_BACKTRACE", "1")
            .envs(self.environment.iter().cloned())
            .stdin(Stdio::null());
        if let Some(uid) = self.user {
            command.uid(uid).gid(uid);
        }
        command
    }

    /// Runs kmsfs to its end and returns what it said.
    pub fn run(&self, arguments: &[&str]) -> Output {
        let output = self.kmsfs().args(arguments).output().expect("kmsfs runs");
        assert!(
            !said(&output).contains("panicked at"),
            "kmsfs {arguments:?} panicked: {}",
            said(&output)
        );
        output
    }

    /// Whether something is mounted on the mount point.
    pub fn is_mounted(&self) -> bool {
        mount_line(&self.point).is_some()
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        let mut left = Vec::new();
        while self.is_mounted() {
            left.push(mount_line(&self.point).expect("mounted"));
            if rustix::mount::unmount(&self.point, UnmountFlags::DETACH).is_err() {
                break;
            }
        }
        // A daemon that was told to end may need a moment for it.
        if !eventually(PATIENCE, || processes_naming(&self.point).is_empty()) {
            for pid in processes_naming(&self.point) {
                left.push(format!("process {pid}"));
                sys::kill(pid, libc::SIGKILL);
            }
        }
        if !std::thread::panicking() {
            assert!(left.is_empty(), "left behind: {left:?}");
        }
    }
}

/// Everything that a finished command printed, for messages.
pub fn said(output: &Output) -> String {
    format!(
        "{}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

/// Waits for a child, but not for ever.
pub fn wait_for(child: &mut Child, limit: Duration) -> Option<ExitStatus> {
    let mut status = None;
    eventually(limit, || {
        status = child.try_wait().expect("wait");
        status.is_some()
    });
    status
}
