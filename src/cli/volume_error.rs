//! Failures of making, opening and mounting volumes, in words.

use crate::cli::{ExitCode, Failure};
use crate::format::FormatError;
use crate::format::config::ConfigError;
use crate::fs::OpenError;
use crate::fuse::SessionError;

impl From<OpenError> for Failure {
    fn from(error: OpenError) -> Self {
        let message = error.to_string();
        let fail = |code| Self::new(code, message.clone());
        match error {
            OpenError::Host { .. } | OpenError::Journal(_) | OpenError::Fs(_) => fail(ExitCode::Io),
            OpenError::NotAVolume(path) => fail(ExitCode::NotAVolume)
                .hint(format!("make one with: kmsfs init {}", path.display())),
            OpenError::NotEmpty(_) => {
                fail(ExitCode::BackingNotEmpty).hint("give the path of an empty directory")
            }
            OpenError::Config { error, .. } => match error {
                ConfigError::Format(FormatError::TooNew { .. } | FormatError::UnknownSuite(_))
                | ConfigError::Critical(_) => {
                    fail(ExitCode::VolumeTooNew).hint("install a newer kmsfs")
                }
                ConfigError::Malformed(_) | ConfigError::Format(_) => {
                    fail(ExitCode::Corrupt).hint("restore kmsfs.json from a backup")
                }
            },
            OpenError::InUse(_) => {
                fail(ExitCode::VolumeInUse).hint("unmount it first; kmsfs umount MOUNTPOINT")
            }
            OpenError::WriteTooNew => fail(ExitCode::VolumeTooNew)
                .hint("install a newer kmsfs, or mount it read-only with -o ro"),
            OpenError::WrongKey => fail(ExitCode::KeyRejected)
                .hint("kmsfs.json was changed, or is of another volume; restore it"),
            OpenError::NeedsRecovery => {
                fail(ExitCode::Io).hint("make the backing directory writable and mount it once")
            }
            OpenError::Key(error) => error.into(),
        }
    }
}

impl From<SessionError> for Failure {
    fn from(error: SessionError) -> Self {
        let message = error.to_string();
        match error {
            SessionError::Mount { .. } => Self::new(ExitCode::MountFailed, message)
                .hint("check that /dev/fuse is there and fuse3 is installed"),
            SessionError::Connection(_) => Self::new(ExitCode::MountFailed, message),
            SessionError::Close(_) => Self::new(ExitCode::Io, message),
        }
    }
}
