//! Errors as the user sees them.

use std::io::{self, IsTerminal, Write};

use crate::cli::exit::ExitCode;
use crate::keys::KeyError;

/// Why a command failed: one line, perhaps one about what to do, and the code
/// it exits with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The code to exit with.
    pub code: ExitCode,
    /// What went wrong: lower case, no full stop.
    pub message: String,
    /// What to do about it.
    pub hint: Option<String>,
}

impl Failure {
    /// A failure without a hint.
    pub fn new(code: ExitCode, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            hint: None,
        }
    }

    /// The same with a hint.
    pub fn hint(self, hint: impl Into<String>) -> Self {
        Self {
            hint: Some(hint.into()),
            ..self
        }
    }

    /// Writes `kmsfs: error: …` and `kmsfs: hint: …` on standard error.
    pub fn report(&self) {
        let stderr = io::stderr();
        let colour = may_colour(stderr.is_terminal(), |name| std::env::var_os(name));
        // Nothing is left to be told if this fails.
        let _ = stderr.lock().write_all(self.render(colour).as_bytes());
    }

    fn render(&self, colour: bool) -> String {
        let label = |word: &str, code: &str| match colour {
            true => format!("kmsfs: \x1b[{code}m{word}:\x1b[0m "),
            false => format!("kmsfs: {word}: "),
        };
        let mut text = format!("{}{}\n", label("error", "1;31"), self.message);
        if let Some(hint) = &self.hint {
            text.push_str(&format!("{}{hint}\n", label("hint", "1;36")));
        }
        text
    }
}

/// Colour only for people who did not opt out (<https://no-color.org>).
fn may_colour(terminal: bool, variable: impl Fn(&str) -> Option<std::ffi::OsString>) -> bool {
    let opted_out = variable("NO_COLOR").is_some_and(|value| !value.is_empty());
    let dumb = variable("TERM").is_some_and(|value| value == "dumb");
    terminal && !opted_out && !dumb
}

impl From<KeyError> for Failure {
    fn from(error: KeyError) -> Self {
        let code = match &error {
            KeyError::NotFound { .. } => ExitCode::KeyNotFound,
            KeyError::Disabled { .. } => ExitCode::KeyDisabled,
            KeyError::Expired { .. } => ExitCode::KeyExpired,
            KeyError::Denied { .. } => ExitCode::KeyDenied,
            KeyError::Rejected { .. } => ExitCode::KeyRejected,
            KeyError::Throttled { .. }
            | KeyError::Unavailable { .. }
            | KeyError::Malformed { .. }
            | KeyError::Locked
            | KeyError::WouldWait => ExitCode::KeyUnavailable,
            KeyError::Configuration { .. } => ExitCode::KeyConfiguration,
        };
        let hint = match &error {
            KeyError::Configuration { hint, .. } => hint.clone(),
            KeyError::NotFound { key, .. } if key.starts_with("local:") => {
                Some("kmsfs key list shows the keys there are, kmsfs key create makes one".into())
            }
            KeyError::Disabled { key, .. } if key.starts_with("local:") => {
                Some("kmsfs key enable or kmsfs key cancel-deletion makes it usable again".into())
            }
            _ => None,
        };
        Self {
            code,
            message: error.to_string(),
            hint,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_have_one_line_and_hints_another() {
        let failure = Failure::new(ExitCode::Usage, "no such thing").hint("try another");
        assert_eq!(
            failure.render(false),
            "kmsfs: error: no such thing\nkmsfs: hint: try another\n"
        );
        assert!(failure.render(true).contains("\x1b[1;31merror:\x1b[0m no"));
    }

    #[test]
    fn colour_is_for_terminals_whose_user_wants_it() {
        let with = |name: &'static str, value: &'static str| {
            move |asked: &str| (asked == name).then(|| value.into())
        };
        assert!(may_colour(true, |_| None));
        assert!(may_colour(true, with("NO_COLOR", "")));
        assert!(!may_colour(true, with("NO_COLOR", "1")));
        assert!(!may_colour(true, with("TERM", "dumb")));
        assert!(!may_colour(false, |_| None));
    }

    #[test]
    fn key_errors_keep_their_class() {
        let error = KeyError::Denied {
            key: "local:k".into(),
            detail: "wrong passphrase".into(),
        };
        let failure = Failure::from(error);
        assert_eq!(failure.code, ExitCode::KeyDenied);
        assert!(failure.message.contains("wrong passphrase"));
    }
}
