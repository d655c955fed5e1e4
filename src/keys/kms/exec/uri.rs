//! `exec:PROGRAM[?key=KEY][&arg=ARGUMENT…]`.

use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::keys::KeyError;
use crate::keys::kms::uri::{percent_decode, percent_encode, write_query};

const HINT: &str = "write exec:NAME?key=KEY or exec:/path/to/plugin?key=KEY&arg=ARGUMENT; \
                    docs/PLUGIN_PROTOCOL.md has the rest";
/// Directories, parted by colons, whose programs may be run as plugins.
const TRUSTED: &str = "KMSFS_PLUGIN_PATH";
/// Where plugins come from if that is not set.
const SYSTEM: &str = "/usr/local/libexec/kmsfs:/usr/libexec/kmsfs";

/// A key behind a plugin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExecUri {
    /// The program's name, or its absolute path.
    pub program: String,
    /// Which of the plugin's keys.
    pub key: Option<String>,
    /// What the plugin is started with.
    pub arguments: Vec<String>,
    /// How long a call may take in all.
    pub deadline: Option<Duration>,
}

impl ExecUri {
    /// The scheme, without a colon.
    pub const SCHEME: &str = "exec";

    /// Parses a whole URI of this scheme.
    pub fn parse(text: &str) -> Result<Self, KeyError> {
        let rest = text.strip_prefix("exec:").unwrap_or_default();
        Self::parse_rest(rest).map_err(|problem| KeyError::Configuration {
            detail: format!("the key uri {text:?} cannot be used: {problem}"),
            hint: Some(HINT.into()),
        })
    }

    fn parse_rest(rest: &str) -> Result<Self, String> {
        let (program, query) = rest.split_once('?').unwrap_or((rest, ""));
        let program = percent_decode(program).ok_or("the program's name is malformed")?;
        let path = Path::new(&program);
        let name = path
            .file_name()
            .is_some_and(|name| name.to_str() == Some(&program));
        if !path.is_absolute() && !name {
            return Err("the program is neither a name nor an absolute path".into());
        }
        let mut uri = Self {
            program,
            key: None,
            arguments: Vec::new(),
            deadline: None,
        };
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair
                .split_once('=')
                .ok_or_else(|| format!("parameter {pair:?} has no value"))?;
            let value = percent_decode(value)
                .ok_or_else(|| format!("the value of parameter {name:?} is malformed"))?;
            match name {
                "arg" => uri.arguments.push(value),
                "key" if uri.key.is_none() && !value.is_empty() => uri.key = Some(value),
                "deadline" if uri.deadline.is_none() => {
                    let seconds = value.parse().ok().filter(|n| (1..=300).contains(n));
                    let seconds =
                        seconds.ok_or("deadline is not a number of seconds from 1 to 300")?;
                    uri.deadline = Some(Duration::from_secs(seconds));
                }
                _ => {
                    return Err(format!(
                        "parameter {name:?} is unknown, empty, or given twice"
                    ));
                }
            }
        }
        Ok(uri)
    }

    /// The program's name, without its directory.
    pub fn name(&self) -> &str {
        self.program.rsplit('/').next().unwrap_or(&self.program)
    }

    /// What wrapped keys carry: the plugin's name and the key's, without what
    /// holds for one machine.
    pub fn identity(&self) -> String {
        let short = Self {
            program: self.name().to_owned(),
            key: self.key.clone(),
            arguments: Vec::new(),
            deadline: None,
        };
        short.to_string()
    }

    /// Whether both name the same key.
    pub fn names_same_key(&self, other: &Self) -> bool {
        self.name() == other.name() && self.key == other.key
    }

    /// The program's file. A volume's configuration may have been changed by
    /// whoever can write to its backing directory, and must not choose what is
    /// run: only programs in directories that the user trusts are.
    pub(super) fn locate(&self) -> Result<PathBuf, KeyError> {
        let trusted = std::env::var_os(TRUSTED).unwrap_or_else(|| OsString::from(SYSTEM));
        self.locate_in(std::env::split_paths(&trusted).collect())
    }

    fn locate_in(&self, trusted: Vec<PathBuf>) -> Result<PathBuf, KeyError> {
        let real = trusted.iter().filter_map(|path| path.canonicalize().ok());
        let mut real = real.filter(|path| path.is_absolute());
        let named = Path::new(&self.program);
        if !named.is_absolute() {
            let mut files = real.map(|directory| directory.join(named));
            return files
                .find(|file| file.is_file())
                .ok_or_else(|| KeyError::Configuration {
                    detail: format!("there is no plugin {:?}", self.program),
                    hint: Some(format!(
                        "plugins are in the directories in {TRUSTED}, or else in {SYSTEM}"
                    )),
                });
        }
        let file = named
            .canonicalize()
            .map_err(|error| KeyError::Configuration {
                detail: format!("cannot find the plugin {}: {error}", self.program),
                hint: Some("correct the path in the key uri".into()),
            })?;
        if real.any(|directory| file.parent() == Some(&directory)) {
            return Ok(file);
        }
        Err(KeyError::Configuration {
            detail: format!("the plugin {} is in no directory of plugins", self.program),
            hint: Some(format!(
                "if you trust it, set {TRUSTED} to its directory; a volume may not choose \
                 which programs run"
            )),
        })
    }
}

impl fmt::Display for ExecUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = format!("exec:{}", percent_encode(&self.program, b"/"));
        let mut parameters = Vec::new();
        parameters.extend(self.key.clone().map(|key| ("key", key)));
        parameters.extend(
            self.arguments
                .iter()
                .map(|argument| ("arg", argument.clone())),
        );
        parameters.extend(self.deadline.map(|d| ("deadline", d.as_secs().to_string())));
        write_query(&mut text, &parameters);
        f.write_str(&text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_round_trips_and_few_are_in_the_identity() {
        let text = "exec:/opt/a%20b/tencent?key=k/1&arg=--region&arg=x%26y&deadline=4";
        let uri = ExecUri::parse(text).unwrap();
        assert_eq!(uri.to_string(), text);
        assert_eq!(uri.arguments, ["--region", "x&y"]);
        assert_eq!(uri.identity(), "exec:tencent?key=k/1");
        let identity = ExecUri::parse(&uri.identity()).unwrap();
        assert!(uri.names_same_key(&identity));
        assert!(!uri.names_same_key(&ExecUri::parse("exec:tencent").unwrap()));
    }

    #[test]
    fn refuses_what_it_does_not_understand() {
        let bad = [
            "exec:",
            "exec:..",
            "exec:a/b",
            "exec:./a",
            "exec:a?b",
            "exec:a?b=c",
            "exec:a?key=1&key=2",
            "exec:a?key=",
            "exec:a?deadline=0",
            "exec:a%00",
            "exec:a?arg=%0A",
        ];
        for text in bad {
            let error = ExecUri::parse(text).expect_err(text);
            assert!(matches!(
                error,
                KeyError::Configuration { hint: Some(_), .. }
            ));
        }
    }

    #[test]
    fn only_trusted_directories_have_plugins() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        std::fs::create_dir(root.join("good")).unwrap();
        std::fs::write(root.join("good/p"), "").unwrap();
        std::fs::write(root.join("evil"), "").unwrap();
        let find = |program: String| {
            let uri = ExecUri::parse(&format!("exec:{program}")).unwrap();
            uri.locate_in(vec![root.join("none"), root.join("good")])
        };
        assert_eq!(find("p".into()).unwrap(), root.join("good/p"));
        let shown = root.display();
        assert_eq!(
            find(format!("{shown}/good/p")).unwrap(),
            root.join("good/p")
        );
        assert!(find("evil".into()).is_err());
        assert!(find(format!("{shown}/good/../evil")).is_err());
        assert!(find("/bin/sh".into()).is_err());
    }
}
