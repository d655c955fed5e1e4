//! A file that is only ever appended to, by one process at a time.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::{FlockOperation, flock};

/// No line is longer.
const LONGEST_LINE: u64 = 256 * 1024;

/// An open log file.
pub struct AppendLog {
    file: File,
    len: u64,
}

impl AppendLog {
    /// Opens the file, which is made if it is missing, and gives its last line
    /// if it has one. Symbolic links are not followed.
    ///
    /// # Errors
    /// `WouldBlock` if another process has it open so, `PermissionDenied` if
    /// others may read or write it, those of opening it.
    pub fn open(path: &Path) -> io::Result<(Self, Option<Vec<u8>>)> {
        let mut file = OpenOptions::new()
            .read(true)
            .append(true)
            .create(true)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
            .open(path)?;
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            return Err(io::Error::other("not a regular file"));
        }
        let owner = rustix::process::geteuid().as_raw();
        if metadata.uid() != owner || metadata.mode() & 0o077 != 0 {
            let message = "others than its owner may use it; chmod 600 it";
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, message));
        }
        flock(&file, FlockOperation::NonBlockingLockExclusive).map_err(|error| match error {
            rustix::io::Errno::WOULDBLOCK => {
                io::Error::new(io::ErrorKind::WouldBlock, "another mount writes to it")
            }
            other => other.into(),
        })?;
        let mut len = file.metadata()?.len();
        file.seek(SeekFrom::Start(len.saturating_sub(LONGEST_LINE)))?;
        let mut tail = Vec::new();
        file.read_to_end(&mut tail)?;
        if tail.last().is_some_and(|&byte| byte != b'\n') {
            // The machine stopped in the middle of it; the line stays, and shows.
            file.write_all(b"\n")?;
            tail.push(b'\n');
            len += 1;
        }
        let mut lines = tail.split(|&byte| byte == b'\n').rev();
        lines.next();
        let last = lines.next().map(<[u8]>::to_vec);
        Ok((Self { file, len }, last))
    }

    /// Appends a line.
    ///
    /// # Errors
    /// Those of writing; also if the file was cut, deleted or written to by
    /// someone else.
    pub fn append(&mut self, line: &[u8]) -> io::Result<()> {
        let metadata = self.file.metadata()?;
        if metadata.nlink() == 0 {
            return Err(io::Error::other("it was deleted"));
        }
        if metadata.len() != self.len {
            return Err(io::Error::other("its length was changed by someone else"));
        }
        if let Err(error) = self.file.write_all(line) {
            // A part of a line would be a line that does not verify.
            let _ = self.file.set_len(self.len);
            return Err(error);
        }
        self.len += line.len() as u64;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn continues_where_it_was_and_notices_others() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let (mut log, last) = AppendLog::open(&path).unwrap();
        assert_eq!(last, None);
        log.append(b"one\n").unwrap();
        let busy = AppendLog::open(&path).err().unwrap();
        assert_eq!(busy.kind(), io::ErrorKind::WouldBlock);
        drop(log);
        assert_eq!(
            fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o600
        );
        fs::write(&path, b"one\ntw").unwrap();
        let (mut log, last) = AppendLog::open(&path).unwrap();
        assert_eq!(last.as_deref(), Some(&b"tw"[..]));
        log.append(b"three\n").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"one\ntw\nthree\n");
        fs::remove_file(&path).unwrap();
        assert!(log.append(b"four\n").is_err());
        drop(log);
        fs::write(&path, b"").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        assert!(AppendLog::open(&path).is_err());
    }
}
