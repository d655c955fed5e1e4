//! Stands between kmsfs and the server, with the certificates of both, and can be
//! told to misbehave.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::WebPkiClientVerifier;
use rustls::{
    ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection, StreamOwned,
};

use crate::pykmip::PyKmip;

const ASSOCIATED_DATA: u32 = 0x42_00fe;
const BATCH_COUNT: [u8; 8] = [0x42, 0x00, 0x0d, 0x02, 0, 0, 0, 4];
const HEADER: usize = 8;

/// How it treats a request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Manner {
    #[default]
    Proper,
    /// Refuses it for this reason.
    Refuse(u32),
    /// Refuses it if there are several operations in it.
    RefuseBatch,
    /// Sends what is no message.
    Garbage,
    /// Announces and sends far too much.
    Oversized,
    /// Hangs up in the middle of the answer.
    CutOff,
    /// Hides the associated data from the server.
    HideAssociatedData,
}

/// What is wrong with it, and for how many requests.
#[derive(Clone, Copy, Default)]
pub(crate) struct Trouble {
    pub(crate) calls: usize,
    pub(crate) delay: Duration,
    pub(crate) manner: Manner,
}

pub(crate) struct Proxy {
    pub(crate) port: u16,
    /// How many requests came, refused ones included.
    pub(crate) calls: AtomicUsize,
    trouble: Mutex<Trouble>,
    /// Connections of earlier generations end with their next request.
    generation: AtomicUsize,
    upstream: Arc<ClientConfig>,
    server: u16,
}

impl Proxy {
    /// Starts one, which runs as long as the process.
    pub(crate) fn start(server: &PyKmip) -> Arc<Self> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let chain = |name: &str| -> Vec<CertificateDer<'static>> {
            let pem = std::fs::read(server.file(name)).unwrap();
            CertificateDer::pem_slice_iter(&pem)
                .collect::<Result<_, _>>()
                .unwrap()
        };
        let key = |name: &str| PrivateKeyDer::from_pem_file(server.file(name)).unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(chain("ca").remove(0)).unwrap();
        let roots = Arc::new(roots);
        let verifier =
            WebPkiClientVerifier::builder_with_provider(Arc::clone(&roots), Arc::clone(&provider));
        let config = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_client_cert_verifier(verifier.build().unwrap())
            .with_single_cert(chain("server"), key("server-key"))
            .unwrap();
        let upstream = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_client_auth_cert(chain("kmsfs"), key("kmsfs-key"))
            .unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let proxy = Arc::new(Self {
            port: listener.local_addr().unwrap().port(),
            calls: AtomicUsize::new(0),
            trouble: Mutex::default(),
            generation: AtomicUsize::new(0),
            upstream: Arc::new(upstream),
            server: server.port,
        });
        let (own, config) = (Arc::clone(&proxy), Arc::new(config));
        std::thread::spawn(move || {
            for stream in listener.incoming().filter_map(Result::ok) {
                let (own, config) = (Arc::clone(&own), Arc::clone(&config));
                std::thread::spawn(move || own.talk(stream, config));
            }
        });
        proxy
    }

    pub(crate) fn trouble(&self) -> MutexGuard<'_, Trouble> {
        self.trouble.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Ends all connections there are.
    pub(crate) fn hang_up(&self) {
        self.generation.fetch_add(1, Ordering::SeqCst);
    }

    /// Until the other side has had enough; `None` ends the connection.
    fn talk(&self, stream: TcpStream, config: Arc<ServerConfig>) -> Option<()> {
        stream.set_nodelay(true).ok()?;
        let generation = self.generation.load(Ordering::SeqCst);
        let connection = ServerConnection::new(config).ok()?;
        let mut client = StreamOwned::new(connection, stream);
        let name = ServerName::try_from("localhost").ok()?;
        let connection = ClientConnection::new(Arc::clone(&self.upstream), name).ok()?;
        let stream = TcpStream::connect(("127.0.0.1", self.server)).ok()?;
        stream.set_nodelay(true).ok()?;
        let mut server = StreamOwned::new(connection, stream);
        loop {
            let request = read_message(&mut client)?;
            if self.generation.load(Ordering::SeqCst) != generation {
                return None;
            }
            self.calls.fetch_add(1, Ordering::SeqCst);
            let trouble = {
                let mut trouble = self.trouble();
                let affected = trouble.calls > 0;
                trouble.calls = trouble.calls.saturating_sub(1);
                match affected {
                    true => *trouble,
                    false => Trouble::default(),
                }
            };
            let answer = match trouble.manner {
                Manner::Refuse(reason) => refusal(reason),
                Manner::RefuseBatch if batch_count(&request) > 1 => refusal(8),
                Manner::HideAssociatedData => {
                    server.write_all(&without(&request, ASSOCIATED_DATA)).ok()?;
                    read_message(&mut server)?
                }
                _ => {
                    server.write_all(&request).ok()?;
                    read_message(&mut server)?
                }
            };
            std::thread::sleep(trouble.delay);
            match trouble.manner {
                Manner::Garbage => client.write_all(b"220 ready when you are\r\n").ok()?,
                Manner::Oversized => {
                    client.write_all(b"\x42\0\x7b\x01\x7f\xff\xff\xf8").ok()?;
                    while client.write_all(&[0; 8192]).is_ok() {}
                    return None;
                }
                Manner::CutOff => {
                    client.write_all(&answer[..answer.len() / 2]).ok()?;
                    return None;
                }
                _ => client.write_all(&answer).ok()?,
            }
        }
    }
}

fn read_message(stream: &mut impl Read) -> Option<Vec<u8>> {
    let mut message = vec![0; HEADER];
    stream.read_exact(&mut message).ok()?;
    let length = u32::from_be_bytes(message[4..].try_into().ok()?) as usize;
    message.resize(HEADER + length, 0);
    stream.read_exact(&mut message[HEADER..]).ok()?;
    Some(message)
}

fn batch_count(request: &[u8]) -> u32 {
    let mut windows = request.windows(BATCH_COUNT.len());
    let at = windows.position(|window| window == BATCH_COUNT).unwrap() + BATCH_COUNT.len();
    u32::from_be_bytes(request[at..at + 4].try_into().unwrap())
}

fn item(tag: u32, kind: u8, value: &[u8]) -> Vec<u8> {
    let mut item = tag.to_be_bytes()[1..].to_vec();
    item.push(kind);
    item.extend((value.len() as u32).to_be_bytes());
    item.extend(value);
    item.resize(item.len().next_multiple_of(8), 0);
    item
}

/// Items without those of one tag, at any depth.
fn without(mut items: &[u8], tag: u32) -> Vec<u8> {
    let mut kept = Vec::new();
    while let Some((head, rest)) = items.split_first_chunk::<HEADER>() {
        let found = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let length = u32::from_be_bytes(head[4..].try_into().unwrap()) as usize;
        let value = &rest[..length];
        items = &rest[length.next_multiple_of(8)..];
        if found != tag {
            let inner = (head[3] == 1).then(|| without(value, tag));
            kept.extend(item(found, head[3], inner.as_deref().unwrap_or(value)));
        }
    }
    kept
}

/// The answer of a server that refuses a whole request.
fn refusal(reason: u32) -> Vec<u8> {
    let number = |tag, value: u32| item(tag, 2, &value.to_be_bytes());
    let version = [number(0x42_006a, 1), number(0x42_006b, 4)].concat();
    let header = [item(0x42_0069, 1, &version), number(0x42_000d, 1)].concat();
    let result = [
        item(0x42_007f, 5, &1_u32.to_be_bytes()),
        item(0x42_007e, 5, &reason.to_be_bytes()),
        item(0x42_007d, 7, b"out of order"),
    ]
    .concat();
    let message = [item(0x42_007a, 1, &header), item(0x42_000f, 1, &result)].concat();
    item(0x42_007b, 1, &message)
}
