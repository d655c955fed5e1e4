//! Descriptors that the parent process handed over by number.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::{BorrowedFd, RawFd};

/// A duplicate of the inherited descriptor `number`, which stays open; `EBADF`
/// if there is none.
pub fn duplicate(number: RawFd) -> io::Result<File> {
    if number < 0 {
        return Err(io::Error::from_raw_os_error(libc::EBADF));
    }
    // SAFETY: the borrow lasts for the one call below, which fails with EBADF
    // if the number is not an open descriptor; -1 was excluded above.
    let inherited = unsafe { BorrowedFd::borrow_raw(number) };
    Ok(File::from(rustix::io::fcntl_dupfd_cloexec(inherited, 3)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::os::fd::AsRawFd;

    #[test]
    fn duplicates_what_is_open_and_refuses_the_rest() {
        let file = File::open("/proc/self/comm").unwrap();
        let mut text = String::new();
        let mut copy = duplicate(file.as_raw_fd()).unwrap();
        copy.read_to_string(&mut text).unwrap();
        assert!(!text.is_empty());
        for bad in [-1, 1_000_000] {
            assert_eq!(
                duplicate(bad).unwrap_err().raw_os_error(),
                Some(libc::EBADF)
            );
        }
    }
}
