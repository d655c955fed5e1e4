//! Reading the keystore's files, which no one but their owner may touch.

use std::fs::{File, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use zeroize::Zeroizing;

use super::wrap::KEY_LEN;
use crate::keys::KeyError;
use crate::sys::secret::Secret;
use crate::sys::{durable, process};

const MAX_FILE: u64 = 1024 * 1024;

/// Tells whether a file is still the one that was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Signature {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Signature {
    fn of(metadata: &Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }

    /// The present signature of `path`, if there is such a file.
    pub(crate) fn at(path: &Path) -> io::Result<Self> {
        std::fs::metadata(path).map(|metadata| Self::of(&metadata))
    }
}

/// A file's content with its signature.
pub(crate) type SignedBytes = (Zeroizing<Vec<u8>>, Signature);

/// Opens a secret file and reads it whole. `Ok(None)` if it does not exist.
pub(crate) fn read_private(path: &Path) -> Result<Option<SignedBytes>, KeyError> {
    let file = match durable::open_without_waiting(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(unreadable(path, &error)),
    };
    let metadata = file.metadata().map_err(|error| unreadable(path, &error))?;
    check_private(path, &metadata)?;
    let mut bytes = Zeroizing::new(Vec::with_capacity(
        metadata.len().min(MAX_FILE) as usize + 1,
    ));
    read_up_to(&file, &mut bytes).map_err(|error| unreadable(path, &error))?;
    Ok(Some((bytes, Signature::of(&metadata))))
}

fn read_up_to(file: &File, bytes: &mut Vec<u8>) -> io::Result<()> {
    let read = file.take(MAX_FILE + 1).read_to_end(bytes)?;
    if read as u64 > MAX_FILE {
        return Err(io::ErrorKind::FileTooLarge.into());
    }
    Ok(())
}

/// The thirty-two bytes of a key file.
pub(crate) fn read_key_bytes(path: &Path) -> Result<Secret, KeyError> {
    let Some((bytes, _)) = read_private(path)? else {
        return Err(KeyError::Configuration {
            detail: format!("the key file {} does not exist", path.display()),
            hint: Some("restore it from a backup; without it the key cannot be used".into()),
        });
    };
    if bytes.len() != KEY_LEN {
        return Err(KeyError::Configuration {
            detail: format!(
                "the key file {} has {} bytes, not {KEY_LEN}",
                path.display(),
                bytes.len()
            ),
            hint: None,
        });
    }
    Ok(Secret::copy_of(&bytes))
}

fn check_private(path: &Path, metadata: &Metadata) -> Result<(), KeyError> {
    let refuse = |problem: &str, hint: Option<String>| {
        Err(KeyError::Configuration {
            detail: format!("{} {problem}", path.display()),
            hint,
        })
    };
    if !metadata.is_file() {
        return refuse("is not a regular file", None);
    }
    if metadata.mode() & 0o077 != 0 {
        return refuse(
            &format!(
                "may be accessed by others (mode {:04o})",
                metadata.mode() & 0o7777
            ),
            Some(format!("chmod 600 {}", path.display())),
        );
    }
    let me = process::effective_user();
    if ![0, metadata.uid()].contains(&me) && metadata.uid() != 0 {
        return refuse("belongs to another user", None);
    }
    Ok(())
}

/// The error for a keystore file that the host would not read or write.
pub(crate) fn unreadable(path: &Path, error: &io::Error) -> KeyError {
    let key = path.display().to_string();
    let detail = error.to_string();
    match error.kind() {
        io::ErrorKind::PermissionDenied => KeyError::Denied { key, detail },
        _ => KeyError::Unavailable { key, detail },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::Permissions;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_file_that_others_may_access_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("k");
        assert!(read_private(&path).unwrap().is_none());
        std::fs::write(&path, [5; KEY_LEN]).unwrap();
        for mode in [0o640, 0o604, 0o620, 0o602, 0o610, 0o601] {
            std::fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
            let KeyError::Configuration { hint, .. } = read_private(&path).unwrap_err() else {
                panic!("mode {mode:o}")
            };
            assert!(hint.unwrap().starts_with("chmod 600"));
        }
        std::fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
        assert_eq!(*read_key_bytes(&path).unwrap(), [5; KEY_LEN]);
        std::fs::write(&path, [5; KEY_LEN + 1]).unwrap();
        assert!(read_key_bytes(&path).is_err());
    }

    #[test]
    fn only_regular_files_of_sensible_size() {
        let dir = tempfile::tempdir().unwrap();
        assert!(read_private(dir.path()).is_err());
        let path = dir.path().join("big");
        let file = File::create(&path).unwrap();
        file.set_permissions(Permissions::from_mode(0o600)).unwrap();
        file.set_len(MAX_FILE + 1).unwrap();
        assert!(read_private(&path).is_err());
        file.set_len(MAX_FILE).unwrap();
        assert!(read_private(&path).is_ok());
    }
}
