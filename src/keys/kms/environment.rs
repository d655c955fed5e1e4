//! The environment variables that say where services are and who calls them.

use std::collections::HashMap;
use std::path::PathBuf;

/// What the names of variables that matter begin with.
const PREFIXES: [&str; 10] = [
    "ALIBABA_CLOUD_",
    "AWS_",
    "AZURE_",
    "BAO_",
    "CLOUDSDK_",
    "GCE_",
    "GOOGLE_",
    "IDENTITY_",
    "KMSFS_",
    "VAULT_",
];

/// A process environment: the real one, or a test's.
#[derive(Clone, Default)]
pub struct Environment(HashMap<String, String>);

impl Environment {
    /// The variables this process was started with, as far as they matter.
    pub fn of_process() -> Self {
        let matters =
            |name: &str| name == "HOME" || PREFIXES.iter().any(|prefix| name.starts_with(prefix));
        let variables = std::env::vars_os().filter_map(|(name, value)| {
            let name = name.into_string().ok()?;
            matters(&name).then_some((name, value.into_string().ok()?))
        });
        Self(variables.collect())
    }

    /// Exactly these variables.
    pub fn of(variables: &[(&str, &str)]) -> Self {
        let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        Self(variables.iter().map(owned).collect())
    }

    /// A variable's value, unless it is empty.
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        let value = self.0.get(name).map(String::as_str);
        value.filter(|value| !value.is_empty())
    }

    /// The value of the first of these variables that has one.
    pub(super) fn first(&self, names: &[&str]) -> Option<&str> {
        names.iter().find_map(|name| self.get(name))
    }

    /// Whether a variable says `true`.
    pub(super) fn is_true(&self, name: &str) -> bool {
        self.get(name)
            .is_some_and(|value| value.eq_ignore_ascii_case("true"))
    }

    /// A file in the user's home directory.
    pub(super) fn in_home(&self, path: &str) -> Option<PathBuf> {
        Some(PathBuf::from(self.get("HOME")?).join(path))
    }
}
