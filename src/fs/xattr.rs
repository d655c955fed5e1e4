//! Extended attributes. Those of users are encrypted, name and value; those
//! that the kernel reads itself (`security`, `system`, `trusted`) pass through.

use crate::backing::xattr;

use super::{Fs, FsError, Result};

const USER: &[u8] = b"user.";
/// In front of encrypted names.
const SEALED: &[u8] = b"user.kmsfs.";
/// In front of digests of names whose encrypted form is too long.
const LONG: &[u8] = b"user.kmsfs-long.";
const NAME_MAX: usize = 255;

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
            Stored::Plain => Ok(xattr::get(inode.fd()?, name)?),
            Stored::Sealed(stored) => {
                let value = xattr::get(inode.fd()?, &stored)?;
                self.names
                    .open_xattr(name, &value)
                    .ok_or(FsError::BadMetadata)
            }
            Stored::Long(stored) => {
                let value = xattr::get(inode.fd()?, &stored)?;
                let (_, value) = self.open_long(&value).ok_or(FsError::BadMetadata)?;
                Ok(value)
            }
        }
    }

    /// Sets an attribute; `flags` as in `setxattr(2)`.
    ///
    /// # Errors
    /// Those of the host.
    pub fn setxattr(&self, ino: u64, name: &[u8], value: &[u8], flags: u32) -> Result<()> {
        let inode = self.inodes.get(ino)?;
        match self.stored_xattr(name)? {
            Stored::Plain => xattr::set(inode.fd()?, name, value, flags)?,
            Stored::Sealed(stored) => {
                let value = self.names.seal_xattr(name, value);
                xattr::set(inode.fd()?, &stored, &value, flags)?;
            }
            Stored::Long(stored) => {
                let mut both = (name.len() as u16).to_le_bytes().to_vec();
                both.extend_from_slice(name);
                both.extend_from_slice(value);
                let value = self.names.seal_xattr(LONG, &both);
                xattr::set(inode.fd()?, &stored, &value, flags)?;
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
        let stored = xattr::list(inode.fd()?)?;
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
        let inode = self.inodes.get(ino)?;
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
