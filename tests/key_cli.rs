//! `kmsfs key` as scripts use it.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde_json::Value;

struct World {
    dir: tempfile::TempDir,
}

impl World {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        Self { dir }
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_kmsfs"));
        command
            .args(arguments)
            .env_clear()
            .env("KMSFS_KEYSTORE", self.dir.path().join("keys"))
            .stdin(Stdio::null());
        command
    }

    fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    fn ok(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert!(output.status.success(), "{arguments:?}: {output:?}");
        assert!(output.stderr.is_empty(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    fn fails(&self, code: i32, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert_eq!(
            output.status.code(),
            Some(code),
            "{arguments:?}: {output:?}"
        );
        let text = String::from_utf8(output.stderr).unwrap();
        assert!(text.starts_with("kmsfs: error: "), "{text}");
        assert!(!text.contains('\x1b'), "no colour off a terminal: {text}");
        text
    }

    fn file(&self, name: &str, content: &str) -> String {
        let path = self.dir.path().join(name);
        std::fs::write(&path, content).unwrap();
        path.display().to_string()
    }
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

#[test]
fn a_key_goes_through_its_life() {
    let world = World::new();
    assert!(world.ok(&["key", "list"]).starts_with("NAME"));
    let made = world.ok(&["key", "create", "work"]);
    assert!(made.contains("local:work#"), "{made}");
    let state = || json(&world.ok(&["key", "show", "work", "--json"]))["state"].clone();
    assert_eq!(state(), "enabled");
    world.ok(&["key", "rotate", "local:work"]);
    world.ok(&["key", "disable", "work"]);
    assert_eq!(state(), "disabled");
    world.fails(21, &["key", "rotate", "work"]);
    world.ok(&["key", "schedule-deletion", "work", "--days", "7"]);
    assert_eq!(state(), "scheduled-for-deletion");
    world.fails(25, &["key", "delete", "work"]);
    world.fails(25, &["key", "enable", "work"]);
    world.ok(&["key", "cancel-deletion", "work"]);
    world.ok(&["key", "enable", "work"]);
    world.ok(&["key", "disable", "work", "--version", "1"]);
    let shown = json(&world.ok(&["key", "show", "work", "--json"]));
    assert_eq!(shown["versions"][0]["state"], "disabled");
    assert_eq!(shown["versions"][1]["state"], "enabled");
    let listed = json(&world.ok(&["key", "list", "--json"]));
    assert_eq!(listed, Value::Array(vec![shown]));
    world.ok(&["key", "delete", "work", "--force"]);
    let error = world.fails(20, &["key", "show", "work"]);
    assert!(error.contains("kmsfs: hint: "), "{error}");
}

#[test]
fn passphrases_come_from_files_and_descriptors() {
    let world = World::new();
    let cheap = ["--argon2-memory", "19", "--argon2-iterations", "2"];
    let one = world.file("one", "one\n");
    let two = world.file("two", "two\n");
    let create = ["key", "create", "k", "--passphrase-file", &one];
    world.ok(&[&create[..], &cheap].concat());
    world.fails(22, &["key", "rotate", "k", "--passphrase-file", &two]);
    world.fails(
        25,
        &["key", "rotate", "k", "--passphrase-file", "/nonexistent"],
    );
    let passwd = ["key", "passwd", "k", "--passphrase-file", &one];
    let passwd = [&passwd[..], &["--new-passphrase-file", &two], &cheap].concat();
    world.ok(&passwd);
    let mut child = world
        .command(&["key", "rotate", "k", "--passphrase-fd", "0"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(b"two\n").unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    assert!(String::from_utf8_lossy(&output.stdout).contains("version 2"));
    world.ok(&["key", "passwd", "k", "--passphrase-file", &two, "--keyfile"]);
    world.ok(&["key", "rotate", "k"]);
    world.fails(
        2,
        &["key", "create", "w", "--passphrase", "--argon2-memory", "8"],
    );
    world.fails(
        2,
        &[
            "key",
            "create",
            "w",
            "--passphrase",
            "--argon2-iterations",
            "1",
        ],
    );
}

#[test]
fn mistakes_have_their_codes() {
    let world = World::new();
    world.fails(2, &["key", "show"]);
    world.fails(2, &["nonsense"]);
    world.fails(25, &["key", "create", "../up"]);
    world.fails(25, &["key", "show", "aws:x"]);
    world.ok(&["key", "create"]);
    world.fails(25, &["key", "create", "default"]);
    let path = world.dir.path().join("keys/default.json");
    let loose = std::os::unix::fs::PermissionsExt::from_mode(0o644);
    std::fs::set_permissions(Path::new(&path), loose).unwrap();
    let error = world.fails(25, &["key", "list"]);
    assert!(error.contains("chmod 600"), "{error}");
}

#[test]
fn version_and_help_are_plain_output() {
    let world = World::new();
    let version = world.ok(&["version"]);
    assert!(version.starts_with(concat!("kmsfs ", env!("CARGO_PKG_VERSION"))));
    json(&world.ok(&["version", "--json"]));
    assert!(world.ok(&["key", "create", "--help"]).contains("examples:"));
    let output = world.run(&[]);
    assert_eq!(output.status.code(), Some(2));
}
