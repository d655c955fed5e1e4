//! Which errno a program sees. `docs/SEMANTICS.md` has the same table.

use crate::backing::Errno;
use crate::content::ContentError;
use crate::format::FormatError;
use crate::fs::FsError;
use crate::keys::KeyError;

/// The errno of an error.
pub fn errno(error: &FsError) -> Errno {
    match error {
        FsError::Host(errno) => *errno,
        FsError::Content(error) => content(error),
        FsError::NotFound => Errno::NOENT,
        FsError::NotEmpty => Errno::NOTEMPTY,
        FsError::NameTooLong => Errno::NAMETOOLONG,
        FsError::Reserved => Errno::PERM,
        FsError::Stale => Errno::STALE,
        FsError::NoDirectoryId | FsError::BadMetadata => Errno::IO,
        FsError::Unsupported => Errno::OPNOTSUPP,
        FsError::Invalid => Errno::INVAL,
        FsError::NoData => Errno::NXIO,
    }
}

fn content(error: &ContentError) -> Errno {
    match error {
        ContentError::Backing(errno) => *errno,
        ContentError::Format(error) => format(error),
        ContentError::WrongVolume
        | ContentError::WrongKey
        | ContentError::NoHeader
        | ContentError::BadBlock(_) => Errno::IO,
        ContentError::Key(error) => key(error),
        ContentError::TooLarge => Errno::FBIG,
    }
}

fn format(error: &FormatError) -> Errno {
    match error {
        FormatError::TooNew { .. } | FormatError::UnknownSuite(_) => Errno::OPNOTSUPP,
        FormatError::BadHeader | FormatError::HeaderFull { .. } => Errno::IO,
    }
}

fn key(error: &KeyError) -> Errno {
    match error {
        KeyError::NotFound { .. } | KeyError::Locked => Errno::NOKEY,
        KeyError::Disabled { .. } => Errno::KEYREVOKED,
        KeyError::Expired { .. } => Errno::KEYEXPIRED,
        KeyError::Denied { .. } | KeyError::Configuration { .. } => Errno::ACCESS,
        KeyError::Rejected { .. } | KeyError::Malformed { .. } => Errno::IO,
        KeyError::Throttled { .. } | KeyError::Unavailable { .. } | KeyError::WouldWait => {
            Errno::TIMEDOUT
        }
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
            *errno == Errno::IO
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every error this module knows, as the documentation names it.
    fn all() -> Vec<(&'static str, FsError)> {
        let (key, detail) = (String::new(), String::new());
        let keys = |error: KeyError| FsError::Content(ContentError::Key(error));
        macro_rules! key {
            ($variant:ident) => {
                keys(KeyError::$variant {
                    key: key.clone(),
                    detail: detail.clone(),
                })
            };
        }
        let format = |error| FsError::Content(ContentError::Format(error));
        let hint = None;
        vec![
            ("FsError::NotFound", FsError::NotFound),
            ("FsError::NotEmpty", FsError::NotEmpty),
            ("FsError::NameTooLong", FsError::NameTooLong),
            ("FsError::Reserved", FsError::Reserved),
            ("FsError::Stale", FsError::Stale),
            ("FsError::NoDirectoryId", FsError::NoDirectoryId),
            ("FsError::BadMetadata", FsError::BadMetadata),
            ("FsError::Unsupported", FsError::Unsupported),
            ("FsError::Invalid", FsError::Invalid),
            ("FsError::NoData", FsError::NoData),
            ("ContentError::BadBlock", ContentError::BadBlock(0).into()),
            ("ContentError::NoHeader", ContentError::NoHeader.into()),
            ("ContentError::WrongKey", ContentError::WrongKey.into()),
            (
                "ContentError::WrongVolume",
                ContentError::WrongVolume.into(),
            ),
            ("ContentError::TooLarge", ContentError::TooLarge.into()),
            ("FormatError::BadHeader", format(FormatError::BadHeader)),
            (
                "FormatError::HeaderFull",
                format(FormatError::HeaderFull { needed: 1, slot: 0 }),
            ),
            (
                "FormatError::TooNew",
                format(FormatError::TooNew { needs: 2 }),
            ),
            (
                "FormatError::UnknownSuite",
                format(FormatError::UnknownSuite(9)),
            ),
            ("KeyError::NotFound", key!(NotFound)),
            ("KeyError::Locked", keys(KeyError::Locked)),
            ("KeyError::Disabled", key!(Disabled)),
            ("KeyError::Expired", key!(Expired)),
            ("KeyError::Denied", key!(Denied)),
            (
                "KeyError::Configuration",
                keys(KeyError::Configuration {
                    detail: detail.clone(),
                    hint,
                }),
            ),
            ("KeyError::Rejected", key!(Rejected)),
            ("KeyError::Malformed", key!(Malformed)),
            (
                "KeyError::Throttled",
                keys(KeyError::Throttled {
                    key: key.clone(),
                    detail: detail.clone(),
                    retry_after: None,
                }),
            ),
            ("KeyError::Unavailable", key!(Unavailable)),
        ]
    }

    const NAMES: [(&str, Errno); 15] = [
        ("EACCES", Errno::ACCESS),
        ("EFBIG", Errno::FBIG),
        ("EINVAL", Errno::INVAL),
        ("EIO", Errno::IO),
        ("EKEYEXPIRED", Errno::KEYEXPIRED),
        ("EKEYREVOKED", Errno::KEYREVOKED),
        ("ENAMETOOLONG", Errno::NAMETOOLONG),
        ("ENOENT", Errno::NOENT),
        ("ENOKEY", Errno::NOKEY),
        ("ENOTEMPTY", Errno::NOTEMPTY),
        ("ENXIO", Errno::NXIO),
        ("EOPNOTSUPP", Errno::OPNOTSUPP),
        ("EPERM", Errno::PERM),
        ("ESTALE", Errno::STALE),
        ("ETIMEDOUT", Errno::TIMEDOUT),
    ];

    #[test]
    fn the_documentation_has_the_same_table() {
        let rows = include_str!("../../docs/SEMANTICS.md").lines();
        let documented: Vec<(&str, &str)> = rows
            .filter_map(|row| {
                let mut cells = row.strip_prefix("| `")?.split(" | ");
                let name = cells.next()?.strip_suffix('`')?;
                let errno = cells.last()?.strip_suffix(" |")?;
                name.contains("Error::").then_some((name, errno))
            })
            .collect();
        for (name, error) in &all() {
            let number = errno(error).raw_os_error();
            let errno = NAMES.iter().find(|(_, e)| e.raw_os_error() == number);
            let row = (*name, errno.expect("a documented errno").0);
            assert!(documented.contains(&row), "{row:?} is not documented");
        }
        assert_eq!(documented.len(), all().len());
    }
}
