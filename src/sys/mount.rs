//! Mounting and unmounting FUSE filesystems: `mount(2)` as root, else through
//! `fusermount3`.

use std::ffi::CString;
use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::fs::{Mode, OFlags};
use rustix::mount::{MountFlags, UnmountFlags};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

use super::fuse_device::FuseDevice;

/// What to mount.
#[derive(Clone, Debug)]
pub struct FuseMount {
    /// Where.
    pub mountpoint: PathBuf,
    /// What `mount` shows as the source.
    pub source: String,
    /// `mount(2)` flags by their option names (`ro`, `nosuid`, …).
    pub flags: Vec<&'static str>,
    /// Users other than the one who mounts may use it.
    pub allow_other: bool,
}

const TYPE: &str = "kmsfs";

impl FuseMount {
    /// Mounts, and gives the connection to the kernel.
    ///
    /// # Errors
    /// Those of the system calls; what `fusermount3` says.
    pub fn mount(&self) -> io::Result<OwnedFd> {
        if rustix::process::geteuid().is_root() {
            self.mount_as_root()
        } else {
            self.mount_by_helper()
        }
    }

    fn mount_as_root(&self) -> io::Result<OwnedFd> {
        let fuse = FuseDevice::open()?;
        let mut data = format!(
            "fd={},rootmode=40000,user_id=0,group_id=0,default_permissions",
            fuse.as_raw_fd()
        );
        if self.allow_other {
            data.push_str(",allow_other");
        }
        let mut bits = MountFlags::empty();
        for flag in &self.flags {
            bits |= match *flag {
                "ro" => MountFlags::RDONLY,
                "nosuid" => MountFlags::NOSUID,
                "nodev" => MountFlags::NODEV,
                "noexec" => MountFlags::NOEXEC,
                "noatime" => MountFlags::NOATIME,
                "nodiratime" => MountFlags::NODIRATIME,
                "sync" => MountFlags::SYNCHRONOUS,
                "dirsync" => MountFlags::DIRSYNC,
                _ => MountFlags::empty(),
            };
        }
        let data = CString::new(data)?;
        rustix::mount::mount(
            self.source.as_str(),
            &self.mountpoint,
            format!("fuse.{TYPE}"),
            bits,
            data.as_c_str(),
        )?;
        Ok(fuse)
    }

    fn mount_by_helper(&self) -> io::Result<OwnedFd> {
        let (ours, theirs) = UnixStream::pair()?;
        rustix::io::fcntl_setfd(&theirs, rustix::io::FdFlags::empty())?;
        // A comma or backslash in the source would end the option.
        let source = self.source.replace('\\', "\\\\").replace(',', "\\,");
        let mut options = format!("fsname={source},subtype={TYPE},default_permissions");
        if self.allow_other {
            options.push_str(",allow_other");
        }
        for flag in &self.flags {
            options.push(',');
            options.push_str(flag);
        }
        let output = Command::new("fusermount3")
            .env("_FUSE_COMMFD", theirs.as_raw_fd().to_string())
            .args(["-o", &options, "--"])
            .arg(&self.mountpoint)
            .output()
            .map_err(|e| io::Error::new(e.kind(), format!("cannot run fusermount3: {e}")))?;
        drop(theirs);
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            return Err(io::Error::other(said.trim().to_owned()));
        }
        receive_descriptor(&ours)
    }
}

fn receive_descriptor(socket: &UnixStream) -> io::Result<OwnedFd> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    recvmsg(
        socket,
        &mut [IoSliceMut::new(&mut byte)],
        &mut control,
        RecvFlags::CMSG_CLOEXEC,
    )?;
    control
        .drain()
        .find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
            _ => None,
        })
        .ok_or_else(|| io::Error::other("fusermount3 sent no descriptor"))
}

/// Has the kernel write everything back that it holds of a mounted filesystem.
///
/// # Errors
/// Those of `syncfs(2)`.
pub fn sync(mountpoint: &Path) -> io::Result<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let fd = rustix::fs::open(mountpoint, flags, Mode::empty())?;
    Ok(rustix::fs::syncfs(fd)?)
}

/// Unmounts; with `lazy` even while in use, once that ends.
///
/// # Errors
/// Those of `umount(2)`, or what `fusermount3` says.
pub fn unmount(mountpoint: &Path, lazy: bool) -> io::Result<()> {
    if rustix::process::geteuid().is_root() {
        let flags = if lazy {
            UnmountFlags::DETACH
        } else {
            UnmountFlags::empty()
        };
        return Ok(rustix::mount::unmount(mountpoint, flags)?);
    }
    let mut command = Command::new("fusermount3");
    command.arg("-u");
    if lazy {
        command.arg("-z");
    }
    let output = command.arg("--").arg(mountpoint).output()?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    if said.contains("busy") {
        return Err(io::Error::from_raw_os_error(libc::EBUSY));
    }
    Err(io::Error::other(said))
}

/// A mounted kmsfs volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountedAt {
    /// Where.
    pub mountpoint: PathBuf,
    /// The source, by default the backing directory.
    pub source: String,
    /// Device number, as `major:minor`.
    pub device: String,
    /// The user who mounted it.
    pub owner: u32,
}

/// The kmsfs mounts that this process sees, the topmost last.
///
/// # Errors
/// Those of reading `/proc/self/mountinfo`.
pub fn mounts() -> io::Result<Vec<MountedAt>> {
    let table = std::fs::read("/proc/self/mountinfo")?;
    Ok(table
        .split(|&b| b == b'\n')
        .filter_map(parse_mountinfo)
        .collect())
}

/// One line: id parent major:minor root mountpoint options… - type source …
/// (`proc_pid_mountinfo(5)`).
fn parse_mountinfo(line: &[u8]) -> Option<MountedAt> {
    let fields: Vec<&[u8]> = line.split(|&b| b == b' ').collect();
    let dash = fields.iter().position(|f| *f == b"-")?;
    let (kind, source) = (fields.get(dash + 1)?, fields.get(dash + 2)?);
    if *kind != format!("fuse.{TYPE}").as_bytes() {
        return None;
    }
    let options = String::from_utf8_lossy(fields.last()?);
    let owner = options.split(',').find_map(|o| o.strip_prefix("user_id="));
    let mountpoint = unescape(fields.get(4)?);
    Some(MountedAt {
        mountpoint: PathBuf::from(
            <std::ffi::OsString as std::os::unix::ffi::OsStringExt>::from_vec(mountpoint),
        ),
        source: String::from_utf8_lossy(&unescape(source)).into_owned(),
        device: String::from_utf8_lossy(fields.get(2)?).into_owned(),
        owner: owner.and_then(|uid| uid.parse().ok()).unwrap_or(0),
    })
}

/// Undoes the octal escapes of `/proc` tables.
fn unescape(text: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((&byte, tail)) = rest.split_first() {
        let octal = tail.get(..3).and_then(|digits| {
            let digits = std::str::from_utf8(digits).ok()?;
            u8::from_str_radix(digits, 8).ok()
        });
        match (byte, octal) {
            (b'\\', Some(value)) => {
                out.push(value);
                rest = &tail[3..];
            }
            _ => {
                out.push(byte);
                rest = tail;
            }
        }
    }
    out
}

/// Tunes the kernel's side of a mount: how far it reads ahead, and how much of
/// the page cache its dirty pages may take. Needs root; what fails is left.
/// Does not touch the mount itself, which may not be served yet.
pub fn tune(mountpoint: &Path) {
    let mounts = mounts().unwrap_or_default();
    let Some(mount) = mounts.iter().rfind(|m| m.mountpoint == mountpoint) else {
        return;
    };
    let bdi = Path::new("/sys/class/bdi").join(&mount.device);
    for (name, value) in [("read_ahead_kb", "8192"), ("max_ratio", "50")] {
        if let Err(error) = std::fs::write(bdi.join(name), value) {
            log::debug!("{name}: {error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mountinfo_lines_are_understood() {
        let line =
            b"97 26 0:45 / /mnt/my\\040files rw,nosuid - fuse.kmsfs /srv/backing rw,user_id=7,group_id=8";
        assert_eq!(
            parse_mountinfo(line),
            Some(MountedAt {
                mountpoint: "/mnt/my files".into(),
                source: "/srv/backing".into(),
                device: "0:45".into(),
                owner: 7,
            })
        );
        let other = b"26 1 8:1 / / rw,relatime - ext4 /dev/sda1 rw";
        assert_eq!(parse_mountinfo(other), None);
    }
}
