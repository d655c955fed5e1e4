//! File handles: names of inodes that outlive every descriptor, for `nfsd` and
//! `open_by_handle_at(2)` on the mount.
#![allow(unsafe_code)]

use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use rustix::io::Errno;

use super::Result;

const MOST: usize = 128;

/// The host's name for an inode.
#[derive(Clone)]
pub struct FileHandle {
    kind: i32,
    bytes: Box<[u8]>,
}

#[repr(C)]
struct Raw {
    len: u32,
    kind: i32,
    bytes: [u8; MOST],
}

/// The handle of what `fd` refers to.
///
/// # Errors
/// `OPNOTSUPP` on filesystems that have none.
pub fn of(fd: impl AsFd) -> Result<FileHandle> {
    let mut raw = Raw {
        len: MOST as u32,
        kind: 0,
        bytes: [0; MOST],
    };
    let mut mount = 0;
    // SAFETY: `raw` has the layout of struct file_handle with MOST bytes, as
    // its `len` says; the path is a C string and `mount` a valid int.
    let status = unsafe {
        libc::name_to_handle_at(
            fd.as_fd().as_raw_fd(),
            c"".as_ptr(),
            (&raw mut raw).cast(),
            &raw mut mount,
            libc::AT_EMPTY_PATH,
        )
    };
    if status != 0 {
        return Err(last_error());
    }
    Ok(FileHandle {
        kind: raw.kind,
        bytes: raw.bytes[..raw.len as usize].into(),
    })
}

/// An `O_PATH` descriptor of the inode `handle` names, on the filesystem that
/// `root` is on. Needs `CAP_DAC_READ_SEARCH`.
pub fn open(root: impl AsFd, handle: &FileHandle) -> Result<OwnedFd> {
    let mut raw = Raw {
        len: handle.bytes.len() as u32,
        kind: handle.kind,
        bytes: [0; MOST],
    };
    raw.bytes[..handle.bytes.len()].copy_from_slice(&handle.bytes);
    // SAFETY: `raw` has the layout of struct file_handle, as above.
    let fd = unsafe {
        libc::open_by_handle_at(
            root.as_fd().as_raw_fd(),
            (&raw mut raw).cast(),
            libc::O_PATH | libc::O_CLOEXEC,
        )
    };
    if fd < 0 {
        return Err(last_error());
    }
    // SAFETY: the kernel just gave this descriptor to us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn last_error() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)
}
