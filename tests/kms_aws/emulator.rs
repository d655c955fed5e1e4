//! The emulators of AWS, and the proxy that checks signatures, on loopback.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::{Mutex, OnceLock};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

const START: Duration = Duration::from_secs(120);
pub(crate) const REGION: &str = "eu-west-1";

/// Which emulator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// It enforces the states of keys, and knows multi-Region keys.
    Ministack,
    /// Its wrapped keys are authenticated, and it has ReEncrypt.
    Moto,
}

/// A running emulator and the proxy before it.
pub(crate) struct Emulator {
    pub(crate) address: SocketAddr,
    pub(crate) verifier: Verifier,
    /// It runs until this process ends and with it the pipe to it.
    _process: Child,
}

/// The proxy that checks signatures.
pub(crate) struct Verifier {
    pub(crate) address: SocketAddr,
    pipes: Mutex<(ChildStdin, BufReader<ChildStdout>)>,
    _process: Child,
}

/// An access key.
#[derive(Clone, Debug)]
pub(crate) struct AccessKey {
    pub(crate) id: String,
    pub(crate) secret: String,
    pub(crate) token: Option<String>,
}

/// What came back from a server.
pub(crate) struct Answer {
    pub(crate) status: u16,
    /// With lowercase names.
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

/// The emulator of this process, started when first needed.
pub(crate) fn emulator(kind: Kind) -> &'static Emulator {
    static MINISTACK: OnceLock<Emulator> = OnceLock::new();
    static MOTO: OnceLock<Emulator> = OnceLock::new();
    let emulator = match kind {
        Kind::Ministack => &MINISTACK,
        Kind::Moto => &MOTO,
    };
    emulator.get_or_init(|| Emulator::start(kind))
}

/// A program that `scripts/install-kms-servers` has installed. A test that
/// found no server would show nothing, so it fails.
fn program(path: &str) -> PathBuf {
    let place = std::env::var_os("KMSFS_KMS_SERVERS").map(PathBuf::from);
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    let place = place.unwrap_or_else(|| package.join("target/kms-servers"));
    let program = place.join(path);
    assert!(
        program.exists(),
        "there is no {}: run scripts/install-kms-servers",
        program.display()
    );
    program
}

impl Emulator {
    fn start(kind: Kind) -> Self {
        let free = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = free.local_addr().unwrap();
        drop(free);
        let port = address.port().to_string();
        // It ends when its input does, however this process ends.
        let script = r#""$@" >/dev/null 2>&1 </dev/null & cat >/dev/null; kill $!"#;
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script, "sh"]);
        match kind {
            // By itself it would listen to the whole network.
            Kind::Ministack => command
                .arg(program("ministack/bin/ministack"))
                .env("BIND_HOST", "127.0.0.1")
                .env("GATEWAY_PORT", port)
                .env("SERVICES", "kms"),
            Kind::Moto => command.arg(program("moto/bin/moto_server")).args([
                "-H",
                "127.0.0.1",
                "-p",
                port.as_str(),
            ]),
        };
        let process = command
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        let start = Instant::now();
        while TcpStream::connect(address).is_err() {
            assert!(start.elapsed() < START, "{kind:?} does not start");
            std::thread::sleep(Duration::from_millis(50));
        }
        Self {
            address,
            verifier: Verifier::start(address, Duration::ZERO),
            _process: process,
        }
    }

    /// Makes a call that must succeed, past the proxy.
    pub(crate) fn call(&self, region: &str, operation: &str, body: &Value) -> Value {
        let credential = format!("Credential=tests/20260101/{region}/kms/aws4_request");
        let headers = [
            ("host", self.address.to_string()),
            ("content-type", "application/x-amz-json-1.1".to_owned()),
            ("x-amz-target", format!("TrentService.{operation}")),
            (
                "authorization",
                format!("AWS4-HMAC-SHA256 {credential}, SignedHeaders=host, Signature=0"),
            ),
        ];
        let headers: Vec<(&str, &str)> = headers.iter().map(|(n, v)| (*n, v.as_str())).collect();
        let answer = exchange(self.address, "/", &headers, body.to_string().as_bytes()).unwrap();
        let text = String::from_utf8_lossy(&answer.body);
        assert_eq!(answer.status, 200, "{operation}: {text}");
        serde_json::from_slice(&answer.body).unwrap_or(Value::Null)
    }

    /// Makes a key and gives its ARN.
    pub(crate) fn create_key(&self, settings: &Value) -> String {
        let made = self.call(REGION, "CreateKey", settings);
        made["KeyMetadata"]["Arn"].as_str().unwrap().to_owned()
    }
}

impl Verifier {
    /// One before a server, with a clock that is so much ahead.
    pub(crate) fn start(upstream: SocketAddr, ahead: Duration) -> Self {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/kms_aws/sigv4.py");
        // ministack's environment has AWS's signer.
        let mut process = Command::new(program("ministack/bin/python"))
            .arg(script)
            .arg(upstream.port().to_string())
            .arg(ahead.as_secs().to_string())
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut output = BufReader::new(process.stdout.take().unwrap());
        let mut port = String::new();
        output.read_line(&mut port).unwrap();
        let port: u16 = port.trim().parse().expect("the proxy does not start");
        Self {
            address: SocketAddr::from(([127, 0, 0, 1], port)),
            pipes: Mutex::new((process.stdin.take().unwrap(), output)),
            _process: process,
        }
    }

    /// Lets an access key in, or says that it has ended.
    pub(crate) fn know(&self, key: &AccessKey, ended: bool) {
        let (id, secret, token) = (&key.id, &key.secret, &key.token);
        let line = json!({ "id": id, "secret": secret, "token": token, "ended": ended });
        let (input, output) = &mut *self.pipes.lock().unwrap();
        writeln!(input, "{line}").unwrap();
        input.flush().unwrap();
        assert_eq!(output.read_line(&mut String::new()).unwrap(), 1);
    }
}

/// One `POST` on a connection of its own; `None` if there is no answer.
pub(crate) fn exchange(
    address: SocketAddr,
    target: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> Option<Answer> {
    let mut stream = TcpStream::connect(address).ok()?;
    // The old version of the protocol: the answer ends with the connection.
    let length = body.len();
    let mut request = format!("POST {target} HTTP/1.0\r\ncontent-length: {length}\r\n");
    for (name, value) in headers {
        request.push_str(&format!("{name}: {value}\r\n"));
    }
    request.push_str("\r\n");
    let request = [request.as_bytes(), body].concat();
    stream.write_all(&request).ok()?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).ok()?;
    let end = answer.windows(4).position(|end| end == b"\r\n\r\n")?;
    let mut lines = std::str::from_utf8(&answer[..end]).ok()?.lines();
    let status = lines.next()?.split(' ').nth(1)?.parse().ok()?;
    let headers = lines.filter_map(|line| line.split_once(':'));
    Some(Answer {
        status,
        headers: headers
            .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
            .collect(),
        body: answer[end + 4..].to_vec(),
    })
}
