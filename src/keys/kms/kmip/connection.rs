//! One TLS connection, with time limits.

use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream, ToSocketAddrs};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use rustls::pki_types::ServerName;
use rustls::{AlertDescription, ClientConfig, ClientConnection, StreamOwned};
use zeroize::Zeroizing;

use super::message::{LARGEST_ANSWER, tag};
use super::ttlv::{self, HEADER};
use crate::keys::kms::retry::Deadline;

/// Leaves time for another address or another try.
const LONGEST_CONNECT: Duration = Duration::from_secs(3);

/// Why there is no answer.
#[derive(Debug)]
pub(super) enum Trouble {
    /// No answer in time.
    TimedOut,
    /// Nobody there.
    Unreachable(String),
    /// The connection broke.
    Broken(String),
    /// What came is not an answer.
    Nonsense(&'static str),
    /// Its certificate is not one of the authority's.
    Untrusted(String),
    /// It does not take our certificate.
    Refused(String),
    /// The two have no way of encryption in common.
    Incompatible(String),
}

/// A connection on which nothing is outstanding.
pub(super) struct Connection {
    stream: StreamOwned<ClientConnection, Timed>,
}

/// A socket whose reads and writes end with a deadline, however many there are.
struct Timed {
    socket: TcpStream,
    deadline: Deadline,
}

impl Timed {
    fn left(&self) -> io::Result<Duration> {
        match self.deadline.left() {
            Duration::ZERO => Err(io::ErrorKind::TimedOut.into()),
            left => Ok(left),
        }
    }
}

impl Read for Timed {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.socket.set_read_timeout(Some(self.left()?))?;
        self.socket.read(buffer)
    }
}

impl Write for Timed {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.socket.set_write_timeout(Some(self.left()?))?;
        self.socket.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Connection {
    /// Connects and shakes hands.
    pub(super) fn open(
        host: &str,
        port: u16,
        config: Arc<ClientConfig>,
        deadline: Deadline,
    ) -> Result<Self, Trouble> {
        let name = ServerName::try_from(host.to_owned())
            .map_err(|error| Trouble::Unreachable(error.to_string()))?;
        let mut tls = ClientConnection::new(config, name)
            .map_err(|error| Trouble::Incompatible(error.to_string()))?;
        let socket = connect(&resolve(host, port, deadline)?, deadline)?;
        let mut socket = Timed { socket, deadline };
        while tls.is_handshaking() {
            tls.complete_io(&mut socket).map_err(Trouble::of)?;
        }
        let stream = StreamOwned::new(tls, socket);
        Ok(Self { stream })
    }

    /// Sends a request and waits for the answer to it.
    pub(super) fn exchange(
        &mut self,
        request: &[u8],
        deadline: Deadline,
    ) -> Result<Zeroizing<Vec<u8>>, Trouble> {
        self.stream.sock.deadline = deadline;
        let sent = self
            .stream
            .write_all(request)
            .and_then(|()| self.stream.flush());
        sent.map_err(|error| self.last_words(error))?;
        let mut header = [0; HEADER];
        self.stream.read_exact(&mut header).map_err(Trouble::of)?;
        let (found, length) = ttlv::header(&header);
        if found != tag::RESPONSE_MESSAGE {
            return Err(Trouble::Nonsense("it does not speak KMIP"));
        }
        if length > LARGEST_ANSWER {
            return Err(Trouble::Nonsense("its answer is too long"));
        }
        let mut answer = Zeroizing::new(vec![0; HEADER + length]);
        answer[..HEADER].copy_from_slice(&header);
        self.stream
            .read_exact(&mut answer[HEADER..])
            .map_err(Trouble::of)?;
        Ok(answer)
    }

    /// Why a request could not be sent: a server that does not take our certificate
    /// may have said so and hung up.
    fn last_words(&mut self, error: io::Error) -> Trouble {
        let trouble = Trouble::of(error);
        if !matches!(trouble, Trouble::Broken(_)) {
            return trouble;
        }
        match self.stream.read(&mut [0]).map_err(Trouble::of) {
            Err(said @ (Trouble::Refused(_) | Trouble::Incompatible(_))) => said,
            _ => trouble,
        }
    }

    /// Takes leave. Nothing is waited for, and failure has no consequence.
    pub(super) fn close(mut self) {
        self.stream.conn.send_close_notify();
        self.stream.sock.deadline = Deadline::after(Duration::from_millis(100));
        let _ = self.stream.flush();
    }
}

impl Trouble {
    fn of(error: io::Error) -> Self {
        let tls = error.get_ref().and_then(|inner| inner.downcast_ref());
        let text = error.to_string();
        match (tls, error.kind()) {
            (Some(tls), _) => Self::of_tls(tls),
            // Sockets say "would block" of a timeout.
            (None, io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock) => Self::TimedOut,
            (None, io::ErrorKind::UnexpectedEof) => Self::Broken("the server hung up".into()),
            (None, _) => Self::Broken(text),
        }
    }

    fn of_tls(error: &rustls::Error) -> Self {
        use AlertDescription as Alert;
        let text = error.to_string();
        match error {
            rustls::Error::InvalidCertificate(_) => Self::Untrusted(text),
            rustls::Error::AlertReceived(
                Alert::BadCertificate
                | Alert::UnsupportedCertificate
                | Alert::CertificateRevoked
                | Alert::CertificateExpired
                | Alert::CertificateUnknown
                | Alert::CertificateRequired
                | Alert::UnknownCA
                | Alert::AccessDenied
                | Alert::NoCertificate,
            ) => Self::Refused(text),
            rustls::Error::AlertReceived(
                Alert::HandshakeFailure | Alert::ProtocolVersion | Alert::InsufficientSecurity,
            )
            | rustls::Error::PeerIncompatible(_) => Self::Incompatible(text),
            rustls::Error::InvalidMessage(_) => Self::Nonsense("it does not speak TLS"),
            _ => Self::Broken(text),
        }
    }
}

/// The server's addresses. The system's resolver has no deadline, so it is
/// asked on a thread of its own, which ends when the resolver does.
fn resolve(host: &str, port: u16, deadline: Deadline) -> Result<Vec<SocketAddr>, Trouble> {
    if let Ok(address) = host.parse::<IpAddr>() {
        return Ok(vec![SocketAddr::new(address, port)]);
    }
    let (sender, receiver) = mpsc::channel();
    let name = host.to_owned();
    std::thread::Builder::new()
        .name("kmsfs-resolve".into())
        .spawn(move || {
            let found = (name.as_str(), port).to_socket_addrs();
            // Nobody may be waiting any more.
            let _ = sender.send(found.map(Iterator::collect::<Vec<_>>));
        })
        .map_err(|error| Trouble::Unreachable(error.to_string()))?;
    match receiver.recv_timeout(deadline.left()) {
        Ok(Ok(addresses)) => Ok(addresses),
        Ok(Err(error)) => Err(Trouble::Unreachable(error.to_string())),
        Err(_) => Err(Trouble::TimedOut),
    }
}

/// Connects to the first address that answers.
fn connect(addresses: &[SocketAddr], deadline: Deadline) -> Result<TcpStream, Trouble> {
    let mut last = "it has no address".to_owned();
    for address in addresses {
        let time = deadline.within(LONGEST_CONNECT).left();
        if time.is_zero() {
            return Err(Trouble::TimedOut);
        }
        let connected = TcpStream::connect_timeout(address, time)
            .and_then(|socket| socket.set_nodelay(true).map(|()| socket));
        match connected {
            Ok(socket) => return Ok(socket),
            Err(error) => last = error.to_string(),
        }
    }
    Err(Trouble::Unreachable(last))
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::time::Instant;

    use rustls::RootCertStore;

    use super::*;

    fn open(host: &str, port: u16) -> Trouble {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(RootCertStore::empty())
            .with_no_client_auth();
        let deadline = Deadline::after(Duration::from_millis(400));
        let opened = Connection::open(host, port, Arc::new(config), deadline);
        opened.err().expect("nobody there who could answer")
    }

    #[test]
    fn a_silent_or_absent_server_does_not_outlast_the_deadline() {
        let start = Instant::now();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        assert!(matches!(open("127.0.0.1", port), Trouble::TimedOut));
        assert!(matches!(open("127.0.0.1", 1), Trouble::Unreachable(_)));
        assert!(start.elapsed() < Duration::from_secs(3));
    }

    #[test]
    fn a_server_of_another_kind_is_recognised() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let _ = stream.read(&mut [0; 4096]);
            let _ = stream.write_all(b"SSH-2.0-what_did_you_expect\r\n");
        });
        let trouble = open("127.0.0.1", port);
        assert!(matches!(trouble, Trouble::Nonsense(_)), "{trouble:?}");
    }
}
