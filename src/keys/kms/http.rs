//! The HTTP client of all services: asynchronous inside, blocking outside.
//!
//! Connections are kept and shared, redirects are never followed (requests are
//! signed for one host), answers are bounded in size and time, and buffers that
//! may hold keys are wiped where this code owns them; what the TLS and HTTP
//! libraries keep internally is out of its reach.

use std::borrow::Cow;
use std::error::Error as _;
use std::path::Path;
use std::sync::Arc;
#[cfg(any(feature = "alibaba", feature = "azure", feature = "gcp"))]
use std::sync::OnceLock;
use std::time::Duration;

use parking_lot::Mutex;
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use reqwest::{Certificate, Client, Method, redirect};
use tokio::runtime::Runtime;
use zeroize::{Zeroize, Zeroizing};

use crate::keys::KeyError;
use crate::keys::kms::time;

/// The most bytes an answer may have: a wrapped key is a few hundred.
const LARGEST_ANSWER: usize = 64 * 1024;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// Shorter than servers keep idle connections, which is mostly 60 s.
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);
const WORKERS: usize = 2;

/// A client for one kind of server.
pub(super) struct Http {
    trust: Trust,
    client: Mutex<Option<(u32, Client)>>,
}

/// Whom to believe to be the server.
pub(super) enum Trust {
    /// Holders of a certificate that the system's authorities vouch for.
    System,
    /// Only those that these authorities (PEM) vouch for.
    Only(Vec<u8>),
    /// Anyone: for unencrypted requests to this machine or to the metadata
    /// service of a cloud, past any proxy.
    Unencrypted,
}

/// A request; its body is wiped after use.
pub(super) struct Request {
    pub(super) method: Method,
    pub(super) url: String,
    pub(super) headers: Vec<(Cow<'static, str>, Zeroizing<String>)>,
    pub(super) body: Zeroizing<Vec<u8>>,
}

impl Request {
    /// A request without a body.
    pub(super) fn new(method: Method, url: String) -> Self {
        Self {
            method,
            url,
            headers: Vec::new(),
            body: Zeroizing::default(),
        }
    }

    /// The same with one header more.
    pub(super) fn header(
        mut self,
        name: impl Into<Cow<'static, str>>,
        value: impl Into<String>,
    ) -> Self {
        self.headers
            .push((name.into(), Zeroizing::new(value.into())));
        self
    }
}

/// An answer; its body is wiped after use.
pub(super) struct Response {
    pub(super) status: u16,
    pub(super) body: Zeroizing<Vec<u8>>,
    headers: HeaderMap,
}

impl Response {
    /// A header's value, if it is text.
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// All headers whose value is text.
    #[cfg(feature = "aws")]
    pub(super) fn headers(&self) -> impl Iterator<Item = (&str, &str)> {
        let headers = self.headers.iter();
        headers.filter_map(|(name, value)| Some((name.as_str(), value.to_str().ok()?)))
    }

    /// The server's clock, in seconds since 1970.
    pub(super) fn date(&self) -> Option<u64> {
        time::parse_http_date(self.header("date")?)
    }
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum HttpError {
    #[error("no answer in time")]
    TimedOut,
    #[error("cannot connect: {0}")]
    Unreachable(String),
    #[error("its certificate is not trusted: {0}")]
    Untrusted(String),
    #[error("the connection broke: {0}")]
    Broken(String),
    #[error("its answer is longer than {LARGEST_ANSWER} bytes")]
    TooLong,
    #[error("the request cannot be sent: {0}")]
    Unsendable(String),
}

impl HttpError {
    /// The error as a provider reports it: `server` did not answer about `key`.
    pub(super) fn about(&self, key: &str, server: &str) -> KeyError {
        let detail = format!("{server}: {self}");
        let key = key.to_owned();
        match self {
            Self::TimedOut | Self::Unreachable(_) | Self::Broken(_) => {
                KeyError::Unavailable { key, detail }
            }
            Self::TooLong => KeyError::Malformed { key, detail },
            Self::Untrusted(_) => KeyError::Configuration {
                detail,
                hint: Some(
                    "a server with a private certificate authority needs ca=/path/to/ca.pem \
                     in the key uri"
                        .into(),
                ),
            },
            Self::Unsendable(_) => KeyError::Configuration { detail, hint: None },
        }
    }
}

impl Http {
    /// A client; nothing is sent and no thread started before the first call.
    pub(super) fn new(trust: Trust) -> Result<Self, HttpError> {
        // Made now, so that a bad authority file does not wait for the first call.
        let client = trust.client()?;
        Ok(Self {
            trust,
            client: Mutex::new(Some((std::process::id(), client))),
        })
    }

    /// Sends `request` and waits for the answer, at most for `time`.
    pub(super) fn send(&self, request: Request, time: Duration) -> Result<Response, HttpError> {
        wait(time, self.exchange(request))?
    }

    /// Sends `request`, for code that is asynchronous itself.
    pub(super) async fn exchange(&self, request: Request) -> Result<Response, HttpError> {
        exchange(self.client()?, request).await
    }

    /// The client of this process: one inherited through `fork` waits for
    /// threads that exist in the parent only.
    fn client(&self) -> Result<Client, HttpError> {
        let process = std::process::id();
        let mut slot = self.client.lock();
        match slot.take() {
            Some((owner, client)) if owner == process => {
                *slot = Some((owner, client.clone()));
                return Ok(client);
            }
            stale => std::mem::forget(stale),
        }
        let client = self.trust.client()?;
        *slot = Some((process, client.clone()));
        Ok(client)
    }
}

/// Does `work`, asynchronous code, and waits for its end, at most for `time`.
pub(super) fn wait<T>(time: Duration, work: impl Future<Output = T>) -> Result<T, HttpError> {
    runtime()?.block_on(async {
        let result = tokio::time::timeout(time, work).await;
        result.map_err(|_| HttpError::TimedOut)
    })
}

impl Trust {
    /// The authorities in the file, if one is named; else the system's.
    pub(super) fn of(authorities: Option<&Path>) -> Result<Self, KeyError> {
        let Some(path) = authorities else {
            return Ok(Self::System);
        };
        let pem = std::fs::read(path).map_err(|error| KeyError::Configuration {
            detail: format!("cannot read {}: {error}", path.display()),
            hint: None,
        })?;
        Ok(Self::Only(pem))
    }

    fn client(&self) -> Result<Client, HttpError> {
        // Fails if it was installed before, which is as good.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let builder = Client::builder()
            .redirect(redirect::Policy::none())
            .retry(reqwest::retry::never())
            .connect_timeout(CONNECT_TIMEOUT)
            .pool_idle_timeout(IDLE_TIMEOUT)
            .user_agent(concat!("kmsfs/", env!("CARGO_PKG_VERSION")));
        let unusable = |error: reqwest::Error| HttpError::Unsendable(causes(&error));
        let builder = match self {
            Self::System => builder.https_only(true),
            Self::Only(pem) => {
                let authorities = Certificate::from_pem_bundle(pem).map_err(unusable)?;
                if authorities.is_empty() {
                    let problem = "the authority file holds no certificate";
                    return Err(HttpError::Unsendable(problem.into()));
                }
                builder.https_only(true).tls_certs_only(authorities)
            }
            Self::Unencrypted => builder.no_proxy().tls_certs_only([]),
        };
        builder.build().map_err(unusable)
    }
}

/// Clients for servers that are known by their URLs: those that give out
/// credentials. Whoever calls sees to it that what is not encrypted stays on this
/// machine or goes to the metadata service of a cloud.
#[cfg(any(feature = "alibaba", feature = "azure", feature = "gcp"))]
#[derive(Default)]
pub(super) struct Clients {
    encrypted: OnceLock<Http>,
    unencrypted: OnceLock<Http>,
}

#[cfg(any(feature = "alibaba", feature = "azure", feature = "gcp"))]
impl Clients {
    /// The client for a URL.
    pub(super) fn of(&self, url: &str) -> Result<&Http, KeyError> {
        let (slot, trust) = match url.starts_with("http://") {
            true => (&self.unencrypted, Trust::Unencrypted),
            false => (&self.encrypted, Trust::System),
        };
        if let Some(http) = slot.get() {
            return Ok(http);
        }
        let made = Http::new(trust).map_err(|error| error.about("", "credentials"))?;
        Ok(slot.get_or_init(|| made))
    }
}

async fn exchange(client: Client, mut request: Request) -> Result<Response, HttpError> {
    let unsendable = |problem: &str| HttpError::Unsendable(problem.to_owned());
    let mut headers = HeaderMap::new();
    for (name, value) in &request.headers {
        let mut value = HeaderValue::from_str(value)
            .map_err(|_| unsendable(&format!("header {name} has no valid value")))?;
        value.set_sensitive(true);
        let name = HeaderName::from_bytes(name.as_bytes())
            .map_err(|_| unsendable(&format!("{name} is no header's name")))?;
        headers.insert(name, value);
    }
    let body = bytes::Bytes::from_owner(std::mem::take(&mut request.body));
    let sent = client
        .request(request.method, &request.url)
        .headers(headers)
        .body(body)
        .send();
    let mut answer = sent.await.map_err(|error| classify(&error))?;
    let mut body = Zeroizing::new(Vec::with_capacity(LARGEST_ANSWER));
    while let Some(chunk) = answer.chunk().await.map_err(|error| classify(&error))? {
        let fits = body.len() + chunk.len() <= LARGEST_ANSWER;
        if fits {
            // Never grows, so leaves no unwiped copy behind.
            body.extend_from_slice(&chunk);
        }
        if let Ok(mut own) = chunk.try_into_mut() {
            own.zeroize();
        }
        if !fits {
            return Err(HttpError::TooLong);
        }
    }
    Ok(Response {
        status: answer.status().as_u16(),
        headers: std::mem::take(answer.headers_mut()),
        body,
    })
}

fn classify(error: &reqwest::Error) -> HttpError {
    let detail = causes(error);
    if error.is_timeout() {
        HttpError::TimedOut
    } else if is_untrusted(error) {
        HttpError::Untrusted(detail)
    } else if error.is_connect() {
        HttpError::Unreachable(detail)
    } else if error.is_builder() {
        HttpError::Unsendable(detail)
    } else {
        HttpError::Broken(detail)
    }
}

fn is_untrusted(error: &reqwest::Error) -> bool {
    let mut cause = error.source();
    while let Some(error) = cause {
        if let Some(rustls::Error::InvalidCertificate(_)) = tls_error(error) {
            return true;
        }
        cause = error.source();
    }
    false
}

/// The TLS error that `error` is, or that is packed into it as an I/O error,
/// perhaps several times.
fn tls_error<'a>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a rustls::Error> {
    match error.downcast_ref::<std::io::Error>() {
        Some(error) => tls_error(error.get_ref()?),
        None => error.downcast_ref(),
    }
}

/// The innermost cause: the outer ones only say that something failed, and one
/// of them shows the URL with the query.
fn causes(error: &reqwest::Error) -> String {
    let mut cause = error.source();
    let mut last = None;
    while let Some(error) = cause {
        last = Some(error.to_string());
        cause = error.source();
    }
    last.unwrap_or_else(|| "no cause is known".to_owned())
}

/// The threads that watch connections, made when first needed, and anew in a
/// child process, which inherits none.
fn runtime() -> Result<Arc<Runtime>, HttpError> {
    static RUNTIME: Mutex<Option<(u32, Arc<Runtime>)>> = Mutex::new(None);
    let process = std::process::id();
    let mut slot = RUNTIME.lock();
    match slot.take() {
        Some((owner, runtime)) if owner == process => {
            *slot = Some((owner, Arc::clone(&runtime)));
            return Ok(runtime);
        }
        stale => std::mem::forget(stale),
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WORKERS)
        .thread_name("kmsfs-kms")
        .enable_io()
        .enable_time()
        .build()
        .map_err(|error| HttpError::Unsendable(format!("no thread for it: {error}")))?;
    let runtime = Arc::new(runtime);
    *slot = Some((process, Arc::clone(&runtime)));
    Ok(runtime)
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpListener;

    use super::*;

    /// A server that answers every connection with `answer` and then hangs up.
    fn server(answer: &'static [u8]) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/", listener.local_addr().unwrap());
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let _ = stream.read(&mut [0; 4096]);
                let _ = stream.write_all(answer);
            }
        });
        url
    }

    fn get(url: String) -> Result<Response, HttpError> {
        let http = Http::new(Trust::Unencrypted).unwrap();
        http.send(Request::new(Method::GET, url), Duration::from_secs(2))
    }

    #[test]
    fn an_answer_has_status_headers_and_body() {
        let url = server(
            b"HTTP/1.1 418 T\r\ndate: Sun, 06 Nov 1994 08:49:37 GMT\r\n\
              content-length: 2\r\n\r\nhi",
        );
        let answer = get(url).unwrap();
        assert_eq!((answer.status, answer.body.as_slice()), (418, &b"hi"[..]));
        assert_eq!(answer.date(), Some(784_111_777));
    }

    #[test]
    fn redirects_are_answers_like_any_other() {
        let url =
            server(b"HTTP/1.1 302 F\r\nlocation: http://192.0.2.1/\r\ncontent-length: 0\r\n\r\n");
        assert_eq!(get(url).unwrap().status, 302);
    }

    #[test]
    fn every_failure_has_its_kind() {
        let cut = server(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhi");
        assert!(matches!(get(cut), Err(HttpError::Broken(_))));
        let garbage = server(b"what?\r\n\r\n");
        assert!(matches!(get(garbage), Err(HttpError::Broken(_))));
        let closed = "http://127.0.0.1:1/".to_owned();
        assert!(matches!(get(closed), Err(HttpError::Unreachable(_))));
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let silent = format!("http://{}/", listener.local_addr().unwrap());
        assert!(matches!(get(silent), Err(HttpError::TimedOut)));
        let encrypted = "https://127.0.0.1:1/".to_owned();
        let http = Http::new(Trust::System).unwrap();
        let plain = Request::new(Method::GET, encrypted.replace("https", "http"));
        let error = http.send(plain, Duration::from_secs(1)).err().unwrap();
        assert!(matches!(error, HttpError::Unsendable(_)), "{error:?}");
        assert!(Http::new(Trust::Only(b"no certificate".to_vec())).is_err());
    }

    #[test]
    fn an_endless_answer_is_cut_off() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/", listener.local_addr().unwrap());
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let _ = stream.read(&mut [0; 4096]);
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n");
            while stream.write_all(&[b'x'; 4096]).is_ok() {}
        });
        assert!(matches!(get(url), Err(HttpError::TooLong)));
    }
}
