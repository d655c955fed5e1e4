//! A real PyKMIP server on loopback, shared by the tests of this program.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::{Mutex, OnceLock};

use serde_json::{Value, json};

/// The server, and its keys' owner.
pub(crate) struct PyKmip {
    pub(crate) port: u16,
    /// Where the certificates are.
    pub(crate) dir: PathBuf,
    owner: Mutex<(ChildStdin, BufReader<ChildStdout>)>,
    /// It runs until this process ends and with it the pipe to it.
    _process: Child,
}

/// The server of this process, started when first needed.
pub(crate) fn pykmip() -> &'static PyKmip {
    static SERVER: OnceLock<PyKmip> = OnceLock::new();
    SERVER.get_or_init(PyKmip::start)
}

/// The Python that `scripts/install-kms-servers` has installed PyKMIP for. A
/// test that found no server would show nothing, so it fails.
fn python() -> PathBuf {
    let place = std::env::var_os("KMSFS_KMS_SERVERS").map(PathBuf::from);
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    let place = place.unwrap_or_else(|| package.join("target/kms-servers"));
    let program = place.join("pykmip/bin/python");
    assert!(
        program.exists(),
        "there is no {}: run scripts/install-kms-servers",
        program.display()
    );
    program
}

impl PyKmip {
    fn start() -> Self {
        // The server removes it when it ends.
        let dir = tempfile::tempdir().unwrap().keep();
        let mut process = Command::new(python())
            .args(["-W", "ignore"])
            .arg(concat!(
                env!("CARGO_MANIFEST_DIR"),
                "/tests/kms_kmip/server.py"
            ))
            .arg(&dir)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let input = process.stdin.take().unwrap();
        let mut output = BufReader::new(process.stdout.take().unwrap());
        let ready = read(&mut output);
        Self {
            port: ready["port"].as_u64().unwrap().try_into().unwrap(),
            dir,
            owner: Mutex::new((input, output)),
            _process: process,
        }
    }

    /// Has the owner do something, which must succeed.
    pub(crate) fn order(&self, task: &Value) -> Value {
        let mut owner = self.owner.lock().unwrap_or_else(|e| e.into_inner());
        let (input, output) = &mut *owner;
        writeln!(input, "{task}").unwrap();
        input.flush().unwrap();
        let answer = read(output);
        assert!(answer.get("error").is_none(), "{task}: {answer}");
        answer["result"].clone()
    }

    /// Has the owner make a key, and gives its id.
    pub(crate) fn make(&self, name: &str, active: bool) -> String {
        let made = self.order(&json!({ "do": "make", "name": name, "active": active }));
        made.as_str().unwrap().to_owned()
    }

    /// A file with a certificate or key.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.dir.join(format!("{name}.pem"))
    }
}

fn read(output: &mut impl BufRead) -> Value {
    let mut line = String::new();
    output.read_line(&mut line).unwrap();
    assert!(!line.is_empty(), "the server has ended");
    serde_json::from_str(&line).unwrap()
}
