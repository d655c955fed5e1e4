//! Extended attributes. Those of users are encrypted, name and value; those
//! that the kernel reads itself (`security`, `system`, `trusted`) pass through.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::backing::{Errno, xattr};
use crate::sys::creds::Changer;

use super::inode::Inode;
use super::open::strip_foreign_group;
use super::{Fs, FsError, Result};

const USER: &[u8] = b"user.";
/// In front of encrypted names.
const SEALED: &[u8] = b"user.kmsfs.";
/// In front of digests of names whose encrypted form is too long.
const LONG: &[u8] = b"user.kmsfs-long.";
const NAME_MAX: usize = 255;
/// File capabilities, which every change of a file's content takes away.
const CAPABILITY: &[u8] = b"security.capability";
/// The ACL that is checked, which has the mode in it.
const ACL: &[u8] = b"system.posix_acl_access";
/// What a host lists if it has it; of other names, some hosts make values up.
const LISTED: [&[u8]; 4] = [USER, CAPABILITY, ACL, b"system.posix_acl_default"];

/// Whether an inode is known to have no attributes at all. Most have none, and
/// the kernel asks for several with every file that is created or copied.
#[derive(Default)]
pub(super) struct XattrPresence {
    /// Goes up before and after every change.
    changes: AtomicU64,
    /// One more than what `changes` was when the host listed none.
    none_at: AtomicU64,
}

impl XattrPresence {
    fn is_none(&self) -> bool {
        self.none_at.load(Ordering::Acquire) == self.changes.load(Ordering::Acquire) + 1
    }

    fn changing<T>(&self, change: impl FnOnce() -> T) -> T {
        self.changes.fetch_add(1, Ordering::AcqRel);
        let result = change();
        self.changes.fetch_add(1, Ordering::AcqRel);
        result
    }
}

/// The attributes' names as the host has them.
fn stored_names(inode: &Inode) -> Result<Vec<Vec<u8>>> {
    if inode.xattrs.is_none() {
        return Ok(Vec::new());
    }
    let changes = inode.xattrs.changes.load(Ordering::Acquire);
    let names = xattr::list(inode.fd()?)?;
    if names.is_empty() {
        inode.xattrs.none_at.store(changes + 1, Ordering::Release);
    }
    Ok(names)
}

/// The value of an attribute that is stored as `stored`.
fn stored_value(inode: &Inode, stored: &[u8]) -> Result<Vec<u8>> {
    let listed = LISTED.iter().any(|known| stored.starts_with(known));
    if listed && stored_names(inode).is_ok_and(|names| names.is_empty()) {
        return Err(Errno::NODATA.into());
    }
    Ok(xattr::get(inode.fd()?, stored)?)
}

/// Whether a file has capabilities.
pub(super) fn has_capabilities(inode: &Inode) -> bool {
    stored_value(inode, CAPABILITY).is_ok()
}

/// Takes file capabilities away. A daemon without privileges is refused that, also
/// where there are none; where there are, the host took them with the change itself.
pub(super) fn remove_capabilities(inode: &Inode) -> Result<()> {
    if !has_capabilities(inode) {
        return Ok(());
    }
    match xattr::remove(inode.fd()?, CAPABILITY) {
        Ok(()) | Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(()),
        Err(Errno::PERM) if xattr::get(inode.fd()?, CAPABILITY).is_err() => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// How a user attribute is stored.
enum Stored {
    /// Passes through.
    Plain,
    /// Under this name, the value alone.
    Sealed(Vec<u8>),
    /// Under this name, the plain name and the value.
    Long(Vec<u8>),
}

impl Fs {
    fn stored_xattr(&self, name: &[u8]) -> Result<Stored> {
        let Some(plain) = name.strip_prefix(USER) else {
            return Ok(Stored::Plain);
        };
        if plain.is_empty() {
            return Err(FsError::Invalid);
        }
        if name.len() > NAME_MAX {
            return Err(FsError::NameTooLong);
        }
        let sealed = self.names.seal_xattr_name(plain);
        let short = [SEALED, sealed.as_bytes()].concat();
        if short.len() <= NAME_MAX {
            return Ok(Stored::Sealed(short));
        }
        let digest = crate::crypto::NameCipher::digest(&sealed);
        Ok(Stored::Long([LONG, digest.as_bytes()].concat()))
    }

    /// The value of an attribute.
    ///
    /// # Errors
    /// Those of the host; `BadMetadata` if it does not decrypt.
    pub fn getxattr(&self, ino: u64, name: &[u8]) -> Result<Vec<u8>> {
        let inode = self.inodes.get(ino)?;
        match self.stored_xattr(name)? {
            Stored::Plain => stored_value(&inode, name),
            Stored::Sealed(stored) => {
                let value = stored_value(&inode, &stored)?;
                self.names
                    .open_xattr(name, &value)
                    .ok_or(FsError::BadMetadata)
            }
            Stored::Long(stored) => {
                let value = stored_value(&inode, &stored)?;
                let (_, value) = self.open_long(&value).ok_or(FsError::BadMetadata)?;
                Ok(value)
            }
        }
    }

    /// Sets an attribute; `flags` as in `setxattr(2)`, `by` as for
    /// [`Self::setattr`].
    ///
    /// # Errors
    /// Those of the host.
    pub fn setxattr(
        &self,
        ino: u64,
        name: &[u8],
        value: &[u8],
        flags: u32,
        by: Option<Changer>,
    ) -> Result<()> {
        let inode = self.inodes.get_to_change(ino)?;
        let fd = inode.fd()?;
        let set = |name: &[u8], value: &[u8]| {
            let set = || xattr::set(fd, name, value, flags);
            inode.xattrs.changing(set)
        };
        match self.stored_xattr(name)? {
            Stored::Plain => {
                set(name, value)?;
                if let Some(by) = by
                    && name == ACL
                {
                    strip_foreign_group(&inode, by)?;
                }
            }
            Stored::Sealed(stored) => set(&stored, &self.names.seal_xattr(name, value))?,
            Stored::Long(stored) => {
                let mut both = (name.len() as u16).to_le_bytes().to_vec();
                both.extend_from_slice(name);
                both.extend_from_slice(value);
                set(&stored, &self.names.seal_xattr(LONG, &both))?;
            }
        }
        Ok(())
    }

    /// The names of an inode's attributes.
    ///
    /// # Errors
    /// Those of the host. Names that do not decrypt are left out and reported.
    pub fn listxattr(&self, ino: u64) -> Result<Vec<Vec<u8>>> {
        let inode = self.inodes.get(ino)?;
        let stored = stored_names(&inode)?;
        let mut names = Vec::with_capacity(stored.len());
        for stored in stored {
            let name = if let Some(sealed) = stored.strip_prefix(SEALED) {
                let plain = self.names.open_xattr_name(sealed);
                plain.map(|plain| [USER, &plain].concat())
            } else if stored.starts_with(LONG) {
                let value = xattr::get(inode.fd()?, &stored)?;
                self.open_long(&value).map(|(name, _)| name)
            } else if stored.starts_with(USER) {
                None
            } else {
                Some(stored)
            };
            match name {
                Some(name) => names.push(name),
                None => log::warn!("inode {ino}: an attribute's name does not decrypt"),
            }
        }
        Ok(names)
    }

    /// Removes an attribute.
    ///
    /// # Errors
    /// Those of the host.
    pub fn removexattr(&self, ino: u64, name: &[u8]) -> Result<()> {
        let inode = self.inodes.get_to_change(ino)?;
        match self.stored_xattr(name)? {
            Stored::Plain => xattr::remove(inode.fd()?, name)?,
            Stored::Sealed(stored) | Stored::Long(stored) => xattr::remove(inode.fd()?, &stored)?,
        }
        Ok(())
    }

    fn open_long(&self, value: &[u8]) -> Option<(Vec<u8>, Vec<u8>)> {
        let both = self.names.open_xattr(LONG, value)?;
        let (len, rest) = both.split_first_chunk::<2>()?;
        let (name, value) = rest.split_at_checked(u16::from_le_bytes(*len).into())?;
        Some((name.to_vec(), value.to_vec()))
    }
}
