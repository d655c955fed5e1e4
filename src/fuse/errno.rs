//! Which errno a program sees. `docs/SEMANTICS.md` has the same table.

use fuser::Errno;

use crate::backing::Errno as HostErrno;
use crate::content::ContentError;
use crate::format::FormatError;
use crate::fs::FsError;
use crate::keys::KeyError;

/// The errno of an error.
pub fn errno(error: &FsError) -> Errno {
    match error {
        FsError::Host(errno) => host(*errno),
        FsError::Content(error) => content(error),
        FsError::NotFound => Errno::ENOENT,
        FsError::NotEmpty => Errno::ENOTEMPTY,
        FsError::NameTooLong => Errno::ENAMETOOLONG,
        FsError::Reserved => Errno::EPERM,
        FsError::Stale => Errno::ESTALE,
        FsError::NoDirectoryId | FsError::BadMetadata => Errno::EIO,
        FsError::Unsupported => Errno::EOPNOTSUPP,
        FsError::Invalid => Errno::EINVAL,
        FsError::NoData => Errno::ENXIO,
    }
}

fn host(errno: HostErrno) -> Errno {
    Errno::from_i32(errno.raw_os_error())
}

fn content(error: &ContentError) -> Errno {
    match error {
        ContentError::Backing(errno) => host(*errno),
        ContentError::Format(error) => format(error),
        ContentError::WrongVolume
        | ContentError::WrongKey
        | ContentError::NoHeader
        | ContentError::BadBlock(_) => Errno::EIO,
        ContentError::Key(error) => key(error),
        ContentError::TooLarge => Errno::EFBIG,
    }
}

fn format(error: &FormatError) -> Errno {
    match error {
        FormatError::TooNew { .. } | FormatError::UnknownSuite(_) => Errno::EOPNOTSUPP,
        FormatError::BadHeader | FormatError::HeaderFull { .. } => Errno::EIO,
    }
}

fn key(error: &KeyError) -> Errno {
    match error {
        KeyError::NotFound { .. } => host(HostErrno::NOKEY),
        KeyError::Disabled { .. } => host(HostErrno::KEYREVOKED),
        KeyError::Expired { .. } => host(HostErrno::KEYEXPIRED),
        KeyError::Denied { .. } | KeyError::Configuration { .. } => Errno::EACCES,
        KeyError::Rejected { .. } | KeyError::Malformed { .. } => Errno::EIO,
        KeyError::Throttled { .. } | KeyError::Unavailable { .. } => Errno::ETIMEDOUT,
    }
}

/// Whether the error is worth a line in the log: not those that programs cause
/// and expect.
pub(super) fn is_remarkable(error: &FsError) -> bool {
    match error {
        FsError::Content(
            ContentError::Format(_)
            | ContentError::WrongVolume
            | ContentError::WrongKey
            | ContentError::NoHeader
            | ContentError::BadBlock(_)
            | ContentError::Key(_),
        )
        | FsError::NoDirectoryId
        | FsError::BadMetadata => true,
        FsError::Host(errno) | FsError::Content(ContentError::Backing(errno)) => {
            *errno == HostErrno::IO
        }
        _ => false,
    }
}
