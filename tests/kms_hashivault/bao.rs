//! A real OpenBao server on loopback, shared by the tests of this program.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

const ROOT: &str = "root-of-the-tests";
const START: Duration = Duration::from_secs(60);

/// The server.
pub(crate) struct Bao {
    pub(crate) address: SocketAddr,
    /// It runs until this process ends and with it the pipe to it.
    _process: Child,
}

/// The server of this process, started when first needed.
pub(crate) fn bao() -> &'static Bao {
    static BAO: OnceLock<Bao> = OnceLock::new();
    BAO.get_or_init(Bao::start)
}

/// The program that `scripts/install-kms-servers` has installed. A test that
/// found no server would show nothing, so it fails.
fn program() -> PathBuf {
    let place = std::env::var_os("KMSFS_KMS_SERVERS").map(PathBuf::from);
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    let place = place.unwrap_or_else(|| package.join("target/kms-servers"));
    let program = place.join("bin/bao");
    assert!(
        program.exists(),
        "there is no {}: run scripts/install-kms-servers",
        program.display()
    );
    program
}

impl Bao {
    fn start() -> Self {
        let free = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = free.local_addr().unwrap();
        drop(free);
        // It ends when its input does, however this process ends.
        let script = r#""$0" server -dev -dev-no-store-token "$@" >/dev/null 2>&1 </dev/null &
                        cat >/dev/null; kill $!"#;
        let process = Command::new("/bin/sh")
            .args(["-c", script])
            .arg(program())
            .arg(format!("-dev-root-token-id={ROOT}"))
            .arg(format!("-dev-listen-address={address}"))
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        let bao = Self {
            address,
            _process: process,
        };
        let start = Instant::now();
        while TcpStream::connect(address).is_err()
            || exchange(address, "GET", "/v1/sys/health", &[], b"").is_none_or(|(s, _)| s != 200)
        {
            assert!(start.elapsed() < START, "the server does not start");
            std::thread::sleep(Duration::from_millis(50));
        }
        for (path, kind) in [
            ("sys/mounts/transit", "transit"),
            ("sys/auth/approle", "approle"),
            ("sys/auth/kubernetes", "kubernetes"),
        ] {
            bao.post(path, &json!({ "type": kind }));
        }
        bao
    }

    /// Makes a call as root, which must succeed.
    pub(crate) fn call(&self, method: &str, path: &str, body: &Value) -> Value {
        self.call_in("", method, path, body)
    }

    /// The same in a namespace.
    pub(crate) fn call_in(&self, namespace: &str, method: &str, path: &str, body: &Value) -> Value {
        let headers = [("x-vault-token", ROOT), ("x-vault-namespace", namespace)];
        let path = format!("/v1/{path}");
        let body = body.to_string();
        let answer = exchange(self.address, method, &path, &headers, body.as_bytes());
        let (status, body) = answer.unwrap();
        let text = String::from_utf8_lossy(&body);
        assert!(matches!(status, 200 | 204), "{path}: {status} {text}");
        serde_json::from_slice(&body).unwrap_or(Value::Null)
    }

    pub(crate) fn post(&self, path: &str, body: &Value) -> Value {
        self.call("POST", path, body)
    }
}

/// One request on a connection of its own; `None` if there is no answer.
pub(crate) fn exchange(
    address: SocketAddr,
    method: &str,
    target: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> Option<(u16, Vec<u8>)> {
    let mut stream = TcpStream::connect(address).ok()?;
    // The old version of the protocol: the answer ends with the connection.
    let mut request = format!(
        "{method} {target} HTTP/1.0\r\nhost: {address}\r\ncontent-length: {}\r\n",
        body.len()
    );
    for (name, value) in headers {
        request.push_str(&format!("{name}: {value}\r\n"));
    }
    request.push_str("\r\n");
    stream
        .write_all(&[request.as_bytes(), body].concat())
        .ok()?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).ok()?;
    let head = answer.windows(4).position(|end| end == b"\r\n\r\n")?;
    let status = std::str::from_utf8(&answer[..head]).ok()?;
    let status = status.split(' ').nth(1)?.parse().ok()?;
    Some((status, answer[head + 4..].to_vec()))
}
