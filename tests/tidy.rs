//! The rules of the house that the compiler does not know: which module may
//! import which (`docs/ARCHITECTURE.md`), where `unsafe` and each dependency
//! may be used, how long a file may get, which words are out.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// The layers from the bottom up; a module may import those of lower layers.
const LAYERS: [&[&str]; 6] = [
    &["sys", "types"],
    &["keys", "format", "crypto", "backing"],
    &["content"],
    &["fs"],
    &["fuse"],
    &["cli"],
];

/// Imports inside one layer that are part of the design: a data key is the
/// crypto module's, and the keys module is about nothing else.
const WITHIN: [(&str, &str); 1] = [("keys", "crypto")];

/// Each dependency and the only modules that may use it.
const USERS: [(&str, &[&str]); 28] = [
    ("aes_siv", &["crypto"]),
    ("argon2", &["keys"]),
    ("aws_config", &["keys"]),
    ("aws_credential_types", &["keys"]),
    ("aws_lc_rs", &["crypto", "keys"]),
    ("aws_runtime", &["keys"]),
    ("aws_sdk_kms", &["keys"]),
    ("aws_smithy_async", &["keys"]),
    ("aws_smithy_runtime_api", &["keys"]),
    ("aws_smithy_types", &["keys"]),
    ("bytes", &["keys"]),
    ("clap", &["cli"]),
    ("crc32fast", &["format"]),
    ("cryptoki", &["keys"]),
    // Also a module of aws_lc_rs.
    ("hmac", &["crypto", "keys"]),
    ("hkdf", &["crypto"]),
    ("io_uring", &["sys"]),
    ("libc", &["backing", "sys"]),
    ("lru", &["keys", "fs"]),
    ("p12_keystore", &["keys"]),
    ("reqwest", &["keys"]),
    ("rustix", &["backing", "sys", "fs", "fuse", "cli"]),
    ("rustls", &["keys"]),
    ("serde", &["format", "keys", "cli"]),
    ("serde_json", &["format", "keys", "cli"]),
    ("sha2", &["crypto"]),
    ("signal_hook", &["fuse", "cli"]),
    ("tokio", &["keys"]),
];

/// Dependencies that only the providers of remote services may use.
const REMOTE: [&str; 12] = [
    "aws_config",
    "aws_credential_types",
    "aws_runtime",
    "aws_sdk_kms",
    "aws_smithy_async",
    "aws_smithy_runtime_api",
    "aws_smithy_types",
    "bytes",
    "p12_keystore",
    "reqwest",
    "rustls",
    "tokio",
];

/// Where `unsafe` may stand.
const UNSAFE: [&str; 2] = ["backing", "sys"];

/// Longest file, in lines.
const LONGEST: usize = 600;

/// Words that say nothing, as parts of a module's name.
const VAGUE: [&str; 5] = ["manager", "helper", "helpers", "util", "utils"];

/// Words that the field does not use for these things, or that must not stay.
const BANNED: [&str; 5] = ["todo!", "dbg!", "unimplemented!", "FIXME", "XXX"];

/// A source file: its path and its code without comments and literals.
struct Source {
    path: PathBuf,
    module: String,
    text: String,
    code: String,
}

impl Source {
    /// Whether it is a file of unit tests beside the code.
    fn is_test(&self) -> bool {
        let stem = self.path.file_stem().unwrap_or_default().to_string_lossy();
        stem.ends_with("tests") || stem == "testing"
    }
}

fn rust_files(dir: &Path, found: &mut Vec<PathBuf>) {
    let Ok(entries) = fs::read_dir(dir) else {
        return;
    };
    for entry in entries {
        let path = entry.expect("readdir").path();
        if path.is_dir() {
            rust_files(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    found.sort();
}

/// The sources below a directory of the package.
fn sources(dir: &str) -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut paths = Vec::new();
    rust_files(&root.join(dir), &mut paths);
    paths
        .into_iter()
        .map(|path| {
            let text = fs::read_to_string(&path).expect("UTF-8");
            let relative = path.strip_prefix(root).expect("below the root").to_owned();
            let first = relative.components().nth(1).expect("a module").as_os_str();
            let module = first.to_string_lossy().trim_end_matches(".rs").to_owned();
            let mut code = without_comments_and_literals(&text);
            // Unit tests may reach across layers.
            if relative.starts_with("src") {
                let tests = code.find(
                    "#[cfg(test)]
mod tests {",
                );
                code.truncate(tests.unwrap_or(code.len()));
            }
            Source {
                path: relative,
                module,
                text,
                code,
            }
        })
        .collect()
}

/// Blanks comments, strings and characters, so that words are code.
fn without_comments_and_literals(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut code = String::with_capacity(text.len());
    let mut at = 0;
    while at < bytes.len() {
        let rest = &bytes[at..];
        let skipped = if rest.starts_with(b"//") {
            until(rest, b"\n")
        } else if rest.starts_with(b"/*") {
            2 + until(&rest[2..], b"*/") + 2
        } else if rest[0] == b'"' {
            string(rest, b'"')
        } else if rest[0] == b'r' && !identifier_before(bytes, at) && raw_string(rest).is_some() {
            raw_string(rest).expect("just checked")
        } else if rest[0] == b'\'' {
            character(rest)
        } else {
            0
        };
        if skipped == 0 {
            code.push(char::from(rest[0]));
            at += 1;
        } else {
            let end = (at + skipped).min(bytes.len());
            code.extend(
                bytes[at..end]
                    .iter()
                    .map(|&byte| if byte == b'\n' { '\n' } else { ' ' }),
            );
            at = end;
        }
    }
    code
}

fn until(bytes: &[u8], end: &[u8]) -> usize {
    bytes
        .windows(end.len())
        .position(|window| window == end)
        .unwrap_or(bytes.len())
}

fn identifier_before(bytes: &[u8], at: usize) -> bool {
    at > 0 && (bytes[at - 1].is_ascii_alphanumeric() || bytes[at - 1] == b'_')
}

/// Length of a quoted literal with backslash escapes.
fn string(bytes: &[u8], quote: u8) -> usize {
    let mut at = 1;
    while at < bytes.len() && bytes[at] != quote {
        at += if bytes[at] == b'\\' { 2 } else { 1 };
    }
    at + 1
}

fn raw_string(bytes: &[u8]) -> Option<usize> {
    let hashes = bytes[1..].iter().take_while(|&&byte| byte == b'#').count();
    if bytes.get(1 + hashes) != Some(&b'"') {
        return None;
    }
    let mut end = vec![b'"'];
    end.extend(std::iter::repeat_n(b'#', hashes));
    let start = 2 + hashes;
    Some(start + until(&bytes[start..], &end) + end.len())
}

/// Length of a character literal; 0 for a lifetime.
fn character(bytes: &[u8]) -> usize {
    match bytes.get(1) {
        Some(b'\\') => string(bytes, b'\''),
        Some(_) => {
            let width = 1 + bytes[2..]
                .iter()
                .take_while(|&&byte| byte & 0xc0 == 0x80)
                .count();
            if bytes.get(1 + width) == Some(&b'\'') {
                width + 2
            } else {
                0
            }
        }
        None => 0,
    }
}

/// The words of the code: identifiers, with the byte after each.
fn words(code: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut at = 0;
    code.split(|c: char| !c.is_alphanumeric() && c != '_')
        .map(move |word| {
            let start = at;
            at += word.len() + 1;
            (start, word)
        })
        .filter(|(_, word)| !word.is_empty())
}

/// The top-level modules that a file names after `crate::`.
fn imports(code: &str) -> Vec<String> {
    let mut found = Vec::new();
    for (start, _) in code.match_indices("crate::") {
        let rest = &code[start + "crate::".len()..];
        if let Some(group) = rest.strip_prefix('{') {
            let mut depth = 0;
            let mut item = String::new();
            for c in group.chars() {
                match c {
                    '{' => depth += 1,
                    '}' if depth == 0 => break,
                    '}' => depth -= 1,
                    ',' if depth == 0 => found.push(std::mem::take(&mut item)),
                    c => item.push(c),
                }
            }
            found.push(item);
        } else {
            found.push(
                rest.chars()
                    .take_while(|c| c.is_alphanumeric() || *c == '_')
                    .collect(),
            );
        }
    }
    found
        .iter()
        .map(|path| {
            path.trim()
                .split("::")
                .next()
                .unwrap_or_default()
                .to_owned()
        })
        .filter(|name| !name.is_empty())
        .collect()
}

fn layer(module: &str) -> Option<usize> {
    LAYERS.iter().position(|layer| layer.contains(&module))
}

/// Fails with every complaint at once.
fn report(complaints: Vec<String>) {
    assert!(complaints.is_empty(), "\n{}\n", complaints.join("\n"));
}

#[test]
fn modules_import_only_lower_layers() {
    let mut complaints = Vec::new();
    for source in sources("src") {
        let path = source.path.display();
        let (module, code) = (source.module.as_str(), source.code.as_str());
        if ["lib", "main"].contains(&module) || source.is_test() {
            continue;
        }
        let Some(own) = layer(module) else {
            complaints.push(format!("{path}: the module {module} is in no layer"));
            continue;
        };
        for import in imports(code) {
            let Some(other) = layer(&import) else {
                // Items of the crate root would hide where they come from.
                complaints.push(format!(
                    "{path}: imports crate::{import}, which is no module of a layer"
                ));
                continue;
            };
            let allowed =
                other < own || import == module || WITHIN.contains(&(module, import.as_str()));
            if !allowed {
                complaints.push(format!("{path}: {module} may not import {import}"));
            }
        }
    }
    report(complaints);
}

#[test]
fn unsafe_is_kept_in_two_modules() {
    let mut complaints = Vec::new();
    for source in sources("src") {
        let allowed = UNSAFE.contains(&source.module.as_str());
        if !allowed && words(&source.code).any(|(_, word)| word == "unsafe") {
            complaints.push(format!(
                "{}: unsafe outside of {UNSAFE:?}",
                source.path.display()
            ));
        }
    }
    report(complaints);
}

#[test]
fn dependencies_stay_in_their_modules() {
    let allowed: BTreeMap<&str, &[&str]> = USERS.into_iter().collect();
    let mut complaints = Vec::new();
    for source in sources("src") {
        for (at, word) in words(&source.code) {
            let Some(modules) = allowed.get(word) else {
                continue;
            };
            let path = source.code[at + word.len()..].starts_with("::")
                && !source.code[..at].ends_with("::");
            let import = source.code[..at].ends_with("use ");
            if (path || import) && !modules.contains(&source.module.as_str()) {
                complaints.push(format!(
                    "{}: {word} belongs to {modules:?}",
                    source.path.display()
                ));
            }
        }
    }
    complaints.dedup();
    report(complaints);
}

#[test]
fn only_remote_providers_are_asynchronous() {
    let mut complaints = Vec::new();
    for source in sources("src") {
        if source.path.starts_with("src/keys/kms") {
            continue;
        }
        for (at, word) in words(&source.code) {
            let rest = &source.code[at + word.len()..];
            let first = !source.code[..at].ends_with("::");
            let remote = REMOTE.contains(&word) && first && rest.starts_with("::");
            if remote || ["async", "await"].contains(&word) {
                complaints.push(format!("{}: {word}", source.path.display()));
            }
        }
    }
    report(complaints);
}

#[test]
fn every_dependency_is_declared_and_has_a_home() {
    // These are for everyone.
    const COMMON: [&str; 5] = [
        "data_encoding",
        "log",
        "parking_lot",
        "thiserror",
        "zeroize",
    ];
    let manifest = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml"))
        .expect("manifest");
    let section = manifest
        .split("\n[dependencies]\n")
        .nth(1)
        .expect("dependencies");
    let section = section.split("\n[").next().expect("a section");
    let mut complaints = Vec::new();
    for line in section
        .lines()
        .filter(|line| line.contains('=') && !line.starts_with('#'))
    {
        let name = line
            .split(['=', '.', ' '])
            .next()
            .expect("a name")
            .replace('-', "_");
        let known = COMMON.contains(&name.as_str()) || USERS.iter().any(|(user, _)| *user == name);
        if !known {
            complaints.push(format!(
                "{name}: say in tests/tidy.rs which module it belongs to"
            ));
        }
    }
    report(complaints);
}

#[test]
fn files_are_not_too_long() {
    let mut complaints = Vec::new();
    for source in sources("src").into_iter().chain(sources("tests")) {
        let lines = source.text.lines().count();
        if lines > LONGEST {
            complaints.push(format!(
                "{}: {lines} lines, more than {LONGEST}",
                source.path.display()
            ));
        }
    }
    report(complaints);
}

#[test]
fn nothing_unfinished_and_no_vague_names() {
    let mut complaints = Vec::new();
    for source in sources("src").into_iter().chain(sources("tests")) {
        let path = source.path.display();
        for word in BANNED {
            // This file names them.
            if !source.path.ends_with("tidy.rs") && source.text.contains(word) {
                complaints.push(format!("{path}: {word}"));
            }
        }
        for part in source.path.components() {
            let name = part.as_os_str().to_string_lossy();
            let name = name.trim_end_matches(".rs");
            if name.split('_').any(|word| VAGUE.contains(&word)) {
                complaints.push(format!("{path}: say what it is, not that it is a {name}"));
            }
        }
        for (at, word) in words(&source.code) {
            if word == "mod" {
                let name = source.code[at + 4..]
                    .split([' ', ';', '{'])
                    .next()
                    .unwrap_or_default();
                if name.split('_').any(|word| VAGUE.contains(&word)) {
                    complaints.push(format!("{path}: mod {name}"));
                }
            }
        }
    }
    report(complaints);
}

#[test]
fn every_source_file_says_what_it_is() {
    let mut complaints = Vec::new();
    for source in sources("src").into_iter().chain(sources("tests")) {
        if !source.is_test() && !source.text.starts_with("//!") {
            complaints.push(format!(
                "{}: starts without a //! line",
                source.path.display()
            ));
        }
    }
    report(complaints);
}

#[test]
fn the_checks_themselves_see_what_they_should() {
    let code = without_comments_and_literals(
        "use crate::{fs, keys::{a, b}};\n// unsafe\nlet x = \"unsafe \\\" crate::cli\";\nlet c = '\"'; crate::cli::run();\nlet r = r#\"unsafe\"#; fn f<'a>() {}\n",
    );
    assert_eq!(imports(&code), ["fs", "keys", "cli"]);
    assert!(!words(&code).any(|(_, word)| word == "unsafe"));
    assert!(words(&code).any(|(_, word)| word == "run"));
    assert!(words("unsafe { f() }").any(|(_, word)| word == "unsafe"));
    assert_eq!(layer("cli"), Some(5));
    assert!(layer("fuse") > layer("fs") && layer("content") > layer("format"));
}
