//! An ext4 filesystem of the test's own, on a loop device, whose power can be
//! cut.

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::mount::UnmountFlags;
use tempfile::TempDir;

use super::{eventually, sys, temp_dir};

/// `_IOR('X', 125, __u32)`.
const EXT4_IOC_SHUTDOWN: u64 = 0x8004_587d;

/// How the power goes.
#[derive(Clone, Copy, Debug)]
pub enum Cut {
    /// What was in the journal's memory still reaches the disk
    /// (EXT4_GOING_FLAGS_LOGFLUSH).
    LogFlushed,
    /// It does not (EXT4_GOING_FLAGS_NOLOGFLUSH).
    LogLost,
}

/// A mounted ext4 image; unmounted and removed on drop.
pub struct LoopFs {
    dir: TempDir,
    options: String,
}

impl LoopFs {
    /// Makes and mounts one; `None` where loop devices are out of reach.
    pub fn new(bytes: u64, mkfs: &[&str], options: &str) -> Option<LoopFs> {
        let fs = LoopFs {
            dir: temp_dir(),
            options: format!("loop{options}"),
        };
        File::create(fs.image())
            .and_then(|file| file.set_len(bytes))
            .expect("image");
        fs::create_dir(fs.path()).expect("mkdir");
        let made = Command::new("mkfs.ext4")
            .args(["-q", "-F"])
            .args(mkfs)
            .arg(fs.image())
            .output();
        let made = made.ok()?;
        assert!(made.status.success(), "mkfs.ext4: {}", super::said(&made));
        if let Err(why) = fs.try_mount() {
            eprintln!("loop mount: {why}");
            return None;
        }
        fs::set_permissions(fs.path(), fs::Permissions::from_mode(0o755)).expect("chmod");
        Some(fs)
    }

    fn image(&self) -> PathBuf {
        self.dir.path().join("image")
    }

    /// Where it is mounted.
    pub fn path(&self) -> PathBuf {
        self.dir.path().join("ext4")
    }

    fn try_mount(&self) -> Result<(), String> {
        let output = Command::new("mount")
            .args(["-t", "ext4", "-o", &self.options])
            .args([self.image(), self.path()])
            .output()
            .map_err(|error| error.to_string())?;
        if output.status.success() {
            Ok(())
        } else {
            Err(super::said(&output))
        }
    }

    /// `mount -o remount,OPTION`.
    pub fn remount(&self, option: &str) -> Result<(), String> {
        let output = Command::new("mount")
            .args(["-o", &format!("remount,{option}")])
            .arg(self.path())
            .output()
            .map_err(|error| error.to_string())?;
        if output.status.success() {
            Ok(())
        } else {
            Err(super::said(&output))
        }
    }

    /// Cuts the power: from now on nothing reaches the disk, everything fails.
    pub fn cut(&self, how: Cut) {
        let root = File::open(self.path()).expect("open the root");
        let flags = match how {
            Cut::LogFlushed => 1,
            Cut::LogLost => 2,
        };
        sys::ioctl_u32(&root, EXT4_IOC_SHUTDOWN, flags).expect("EXT4_IOC_SHUTDOWN");
    }

    /// Unmounts, as a machine does by losing power, and mounts what is there,
    /// which replays the journal. Everyone must have closed their files.
    pub fn power_on(&self) {
        self.unmount();
        self.try_mount().expect("mount again");
    }

    fn unmount(&self) {
        let gone = eventually(std::time::Duration::from_secs(30), || {
            rustix::mount::unmount(self.path(), UnmountFlags::empty()).is_ok()
        });
        assert!(gone, "{} stays busy", self.path().display());
    }

    /// The device it is mounted from.
    pub fn device(&self) -> PathBuf {
        let line = super::mount_line(&self.path()).expect("mounted");
        let after = line.split(" - ").nth(1).expect("a separator");
        after.split(' ').nth(1).expect("a source").into()
    }
}

impl Drop for LoopFs {
    fn drop(&mut self) {
        let path: &Path = &self.path();
        while super::mount_line(path).is_some() {
            if rustix::mount::unmount(path, UnmountFlags::empty()).is_err() {
                let _ = rustix::mount::unmount(path, UnmountFlags::DETACH);
            }
        }
    }
}
