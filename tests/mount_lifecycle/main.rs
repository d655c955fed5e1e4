//! Making a volume, mounting and unmounting it, and everything that is refused.

#[path = "../common/mod.rs"]
mod common;

/// Skips a test where there is no mount to look at.
macro_rules! needs_mounts {
    () => {
        if $crate::common::is_plain() {
            return $crate::common::skip("needs a kmsfs mount");
        }
    };
}

mod ending;
mod info;
mod precedence;
mod refused;
mod serving;
mod transport;

use std::path::Path;
use std::process::Output;

fn text(path: &Path) -> &str {
    path.to_str().expect("test paths are UTF-8")
}

/// A refusal in the voice of the command: exit code, error line, hint.
fn assert_refused(output: &Output, words: &[&str]) {
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    let code = output
        .status
        .code()
        .unwrap_or_else(|| panic!("died of a signal: {}", common::said(output)));
    assert!(
        code != 0 && code != 101,
        "exit code {code}: {}",
        common::said(output)
    );
    assert!(
        output.stdout.is_empty(),
        "errors go to stderr: {}",
        common::said(output)
    );
    let error = stderr
        .lines()
        .find_map(|line| line.strip_prefix("kmsfs: error: "))
        .unwrap_or_else(|| panic!("no `kmsfs: error:` line: {stderr}"));
    assert!(!error.ends_with('.'), "no full stop: {error}");
    assert!(
        error.starts_with(|c: char| !c.is_uppercase()),
        "lower case: {error}"
    );
    for line in stderr.lines() {
        assert!(
            line.starts_with("kmsfs: ") || line.starts_with(' '),
            "a stray line: {stderr}"
        );
        assert!(!line.contains('\u{1b}'), "no colour into a pipe: {stderr}");
    }
    let lower = stderr.to_lowercase();
    for word in words {
        assert!(
            lower.contains(&word.to_lowercase()),
            "{word:?} is not in: {stderr}"
        );
    }
}

fn hint(output: &Output) -> String {
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    let hints: Vec<&str> = stderr
        .lines()
        .filter_map(|line| line.strip_prefix("kmsfs: hint: "))
        .collect();
    assert!(!hints.is_empty(), "no `kmsfs: hint:` line: {stderr}");
    hints.join("\n")
}
