//! Exit codes: documented in `docs/EXIT_CODES.md`, stable, never reused.

macro_rules! exit_codes {
    ($($(#[doc = $meaning:literal])+ $variant:ident = $code:literal, $name:literal;)+) => {
        /// What the command's exit code says.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum ExitCode {
            $($(#[doc = $meaning])+ $variant = $code,)+
        }

        impl ExitCode {
            /// Every code, ascending.
            pub const ALL: &[Self] = &[$(Self::$variant),+];

            /// The name that the documentation uses.
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)+
                }
            }

            /// What it means, in a line.
            pub fn meaning(self) -> &'static str {
                match self {
                    $(Self::$variant => concat!($($meaning),+).trim_ascii(),)+
                }
            }
        }
    };
}

exit_codes! {
    /// The command did what was asked.
    Ok = 0, "ok";
    /// An error inside kmsfs that has no code of its own.
    Internal = 1, "internal";
    /// The command line makes no sense.
    Usage = 2, "usage";
    /// The directory or file is not part of a kmsfs volume.
    NotAVolume = 10, "not-a-volume";
    /// The volume was written by a newer kmsfs.
    VolumeTooNew = 11, "volume-too-new";
    /// The volume is mounted already, here or by another process.
    VolumeInUse = 12, "volume-in-use";
    /// The mountpoint is missing, not a directory or not empty.
    MountpointInvalid = 13, "mountpoint-invalid";
    /// The backing directory, the mountpoint or the keystore lies inside another of them.
    Overlap = 14, "overlap";
    /// The directory for a new volume is not empty.
    BackingNotEmpty = 15, "backing-not-empty";
    /// The key, or the version of it that is needed, does not exist.
    KeyNotFound = 20, "key-not-found";
    /// The key is disabled or scheduled for deletion.
    KeyDisabled = 21, "key-disabled";
    /// Access to the key was denied; also a wrong passphrase.
    KeyDenied = 22, "key-denied";
    /// The key provider cannot be reached, throttles or answers nonsense.
    KeyUnavailable = 23, "key-unavailable";
    /// The key rejected the wrapped key: it was tampered with or moved.
    KeyRejected = 24, "key-rejected";
    /// The key provider is set up wrongly: a URI, a file, a passphrase source.
    KeyConfiguration = 25, "key-configuration";
    /// The validity of the key or of the wrapped key has ended.
    KeyExpired = 26, "key-expired";
    /// Mounting failed.
    MountFailed = 30, "mount-failed";
    /// There is no kmsfs mount at that place.
    NotMounted = 31, "not-mounted";
    /// The mount is in use.
    Busy = 32, "busy";
    /// Only the mount's owner and root may do this.
    NotPermitted = 33, "not-permitted";
    /// The host failed to read or write.
    Io = 40, "io";
    /// A file or the volume is damaged or does not authenticate.
    Corrupt = 41, "corrupt";
}

impl From<ExitCode> for std::process::ExitCode {
    fn from(code: ExitCode) -> Self {
        Self::from(code as u8)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_documentation_has_the_same_table() {
        let documented: Vec<String> = include_str!("../../docs/EXIT_CODES.md")
            .lines()
            .filter(|line| line.starts_with("| ") && line.as_bytes()[2].is_ascii_digit())
            .map(str::to_owned)
            .collect();
        let row = |code: &ExitCode| {
            format!(
                "| {} | `{}` | {} |",
                *code as u8,
                code.name(),
                code.meaning()
            )
        };
        let defined: Vec<String> = ExitCode::ALL.iter().map(row).collect();
        assert_eq!(documented, defined);
    }

    #[test]
    fn codes_ascend_and_leave_the_shells_alone() {
        let codes: Vec<u8> = ExitCode::ALL.iter().map(|code| *code as u8).collect();
        assert!(codes.is_sorted_by(|a, b| a < b));
        assert!(codes.iter().all(|&code| code < 64));
    }
}
