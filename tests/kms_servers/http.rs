//! A small HTTP/1.1 server on loopback, with or without TLS, that can be told
//! to misbehave.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

const LARGEST_BODY: usize = 1 << 20;

/// A request as it came.
pub struct Request {
    pub method: String,
    pub path: String,
    /// Still escaped.
    pub query: String,
    /// With lowercase names.
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Request {
    /// A header's value, or the empty string.
    pub fn header(&self, name: &str) -> &str {
        let found = self.headers.iter().find(|(n, _)| n == name);
        found.map_or("", |(_, value)| value)
    }
}

/// What to send back.
#[derive(Default)]
pub struct Reply {
    pub status: u16,
    pub headers: Vec<(&'static str, String)>,
    pub body: Vec<u8>,
    pub after: Duration,
    pub manner: Manner,
}

/// How to send it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Manner {
    #[default]
    Proper,
    /// Hang up without an answer.
    HangUp,
    /// Hang up in the middle of the body.
    CutOff,
    /// Send bytes that are not HTTP.
    Garbage,
    /// Send a body without end.
    Endless,
}

type Handler = Arc<dyn Fn(&Request) -> Reply + Send + Sync>;

/// Serves `handler` on a free port of loopback, in threads that live as long as
/// the process.
pub fn serve(tls: Option<Arc<rustls::ServerConfig>>, handler: Handler) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming().filter_map(Result::ok) {
            let (tls, handler) = (tls.clone(), Arc::clone(&handler));
            std::thread::spawn(move || {
                let _ = stream.set_read_timeout(Some(Duration::from_secs(60)));
                let _ = stream.set_nodelay(true);
                talk(stream, tls, &handler);
            });
        }
    });
    address
}

/// A configuration for a certificate and its key, both PEM.
pub fn tls_config(certificate: &[u8], key: &[u8]) -> Arc<rustls::ServerConfig> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let chain = CertificateDer::pem_slice_iter(certificate);
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(
            chain.collect::<Result<_, _>>().unwrap(),
            PrivateKeyDer::from_pem_slice(key).unwrap(),
        );
    Arc::new(config.unwrap())
}

fn talk(stream: TcpStream, tls: Option<Arc<rustls::ServerConfig>>, handler: &Handler) {
    match tls {
        None => converse(stream, handler),
        Some(config) => {
            let connection = rustls::ServerConnection::new(config).unwrap();
            converse(rustls::StreamOwned::new(connection, stream), handler);
        }
    }
}

fn converse(stream: impl Read + Write, handler: &Handler) {
    let mut stream = BufReader::new(stream);
    while let Some(request) = read_request(&mut stream) {
        let reply = handler(&request);
        std::thread::sleep(reply.after);
        let keep = write_reply(stream.get_mut(), &reply).is_ok() && reply.manner == Manner::Proper;
        if !keep || request.header("connection").eq_ignore_ascii_case("close") {
            return;
        }
    }
}

fn read_request(stream: &mut impl BufRead) -> Option<Request> {
    let mut line = String::new();
    stream.read_line(&mut line).ok().filter(|len| *len > 0)?;
    let mut words = line.split_whitespace();
    let (method, target) = (words.next()?.to_owned(), words.next()?.to_owned());
    let mut headers = Vec::new();
    loop {
        let mut line = String::new();
        stream.read_line(&mut line).ok().filter(|len| *len > 0)?;
        let line = line.trim_end();
        if line.is_empty() {
            break;
        }
        let (name, value) = line.split_once(':')?;
        headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
    }
    let (path, query) = target.split_once('?').unwrap_or((&target, ""));
    let mut request = Request {
        method,
        path: path.to_owned(),
        query: query.to_owned(),
        headers,
        body: Vec::new(),
    };
    let length = request.header("content-length").parse().unwrap_or(0);
    if length > LARGEST_BODY {
        return None;
    }
    request.body = vec![0; length];
    stream.read_exact(&mut request.body).ok()?;
    Some(request)
}

fn write_reply(out: &mut impl Write, reply: &Reply) -> std::io::Result<()> {
    if reply.manner == Manner::HangUp {
        return Ok(());
    }
    if reply.manner == Manner::Garbage {
        out.write_all(b"\x16\x03garbage, not HTTP\r\n\r\n")?;
        return out.flush();
    }
    let endless = reply.manner == Manner::Endless;
    let mut head = format!("HTTP/1.1 {} Answer\r\n", reply.status);
    for (name, value) in &reply.headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head.push_str(&match endless {
        true => "connection: close\r\n\r\n".to_owned(),
        false => format!("content-length: {}\r\n\r\n", reply.body.len()),
    });
    let body = match reply.manner {
        Manner::CutOff => &reply.body[..reply.body.len() / 2],
        _ => &reply.body,
    };
    // In one piece, so that no client waits for a delayed acknowledgement.
    out.write_all(&[head.as_bytes(), body].concat())?;
    out.flush()?;
    if endless {
        // Until the other side has had enough.
        loop {
            out.write_all(&[b'x'; 8192])?;
        }
    }
    Ok(())
}
