//! The shared HTTP client, as the SDK wants one.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use aws_sdk_kms::config::RuntimeComponents;
use aws_smithy_runtime_api::client::http::{
    HttpClient, HttpConnector, HttpConnectorFuture, HttpConnectorSettings, SharedHttpConnector,
};
use aws_smithy_runtime_api::client::orchestrator::{HttpRequest, HttpResponse};
use aws_smithy_runtime_api::client::result::ConnectorError;
use aws_smithy_runtime_api::http::StatusCode;
use aws_smithy_types::body::SdkBody;
use reqwest::Method;
use zeroize::Zeroizing;

use crate::keys::KeyError;
use crate::keys::kms::http::{Http, HttpError, Request, Response, Trust};

/// Where the metadata service of EC2 and the agents of ECS and EKS are, with
/// IPv6; with IPv4 they have link-local addresses.
const METADATA: [u16; 2] = [0xfd00, 0xec2];

/// Sends the SDK's requests.
#[derive(Clone)]
pub(super) struct Transport(Arc<Clients>);

struct Clients {
    encrypted: Http,
    unencrypted: Http,
}

impl Transport {
    /// One that believes the authorities in the file, if one is named; else the
    /// system's.
    pub(super) fn new(authorities: Option<&Path>, key: &str) -> Result<Self, KeyError> {
        let client = |trust| Http::new(trust).map_err(|error| error.about(key, "AWS"));
        Ok(Self(Arc::new(Clients {
            encrypted: client(Trust::of(authorities)?)?,
            unencrypted: client(Trust::Unencrypted)?,
        })))
    }
}

impl fmt::Debug for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Transport")
    }
}

impl HttpClient for Transport {
    fn http_connector(
        &self,
        settings: &HttpConnectorSettings,
        _: &RuntimeComponents,
    ) -> SharedHttpConnector {
        let connecting = settings.connect_timeout().unwrap_or_default();
        SharedHttpConnector::new(Connector {
            transport: self.clone(),
            time: settings.read_timeout().map(|reading| connecting + reading),
        })
    }
}

#[derive(Debug)]
struct Connector {
    transport: Transport,
    /// How long a request may take, where the SDK says: for metadata services,
    /// which are not there outside of AWS. What is asked for KMS has a limit of
    /// its own.
    time: Option<Duration>,
}

impl HttpConnector for Connector {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let (transport, time) = (self.transport.clone(), self.time);
        let prepared = prepare(&request);
        HttpConnectorFuture::new(async move {
            let work = async {
                let (encrypted, request) = prepared?;
                let clients = &transport.0;
                let http = match encrypted {
                    true => &clients.encrypted,
                    false => &clients.unencrypted,
                };
                answer(http.exchange(request).await?)
            };
            let result = match time {
                None => work.await,
                Some(time) => match tokio::time::timeout(time, work).await {
                    Ok(result) => result,
                    Err(_) => Err(HttpError::TimedOut),
                },
            };
            result.map_err(|error| match error {
                HttpError::TimedOut => ConnectorError::timeout(error.into()),
                HttpError::Unreachable(_) | HttpError::Broken(_) => {
                    ConnectorError::io(error.into())
                }
                HttpError::Untrusted(_) | HttpError::TooLong | HttpError::Unsendable(_) => {
                    ConnectorError::user(error.into())
                }
            })
        })
    }
}

/// The SDK's request as the shared client wants it, and whether to encrypt it.
fn prepare(request: &HttpRequest) -> Result<(bool, Request), HttpError> {
    let unsendable = |problem: &str| HttpError::Unsendable(problem.to_owned());
    let url = request.uri();
    let plain = url.strip_prefix("http://");
    if plain.is_some_and(|rest| !may_be_unencrypted(rest)) {
        return Err(unsendable(
            "http is for servers on this machine and for metadata services only",
        ));
    }
    let method = Method::from_bytes(request.method().as_bytes());
    let method = method.map_err(|_| unsendable("it has no valid method"))?;
    let mut sent = Request::new(method, url.to_owned());
    for (name, value) in request.headers().iter() {
        sent = sent.header(name.to_owned(), value);
    }
    // Of one piece, as everything that is not a stream.
    let body = request.body().bytes();
    let body = body.ok_or_else(|| unsendable("its body is a stream"))?;
    sent.body = Zeroizing::new(body.to_vec());
    Ok((plain.is_none(), sent))
}

/// The answer as the SDK wants it, with a body that is wiped when the SDK has
/// read it.
fn answer(answer: Response) -> Result<HttpResponse, HttpError> {
    let broken = |_| HttpError::Broken("it is not HTTP".into());
    let status = StatusCode::try_from(answer.status).map_err(broken)?;
    let headers: Vec<(String, String)> = answer
        .headers()
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect();
    let body = SdkBody::from(bytes::Bytes::from_owner(answer.body));
    let mut response = HttpResponse::new(status, body);
    for (name, value) in headers {
        let added = response.headers_mut().try_append(name, value);
        added.map_err(broken)?;
    }
    Ok(response)
}

/// Whether a URL, without its scheme, is of this machine or of a metadata service.
fn may_be_unencrypted(rest: &str) -> bool {
    let authority = rest.split(['/', '?']).next().unwrap_or_default();
    let host = match authority.strip_prefix('[') {
        Some(rest) => rest.split(']').next(),
        None => authority.split(':').next(),
    };
    let host = host.unwrap_or_default();
    match host.parse() {
        Ok(IpAddr::V4(address)) => address.is_loopback() || address.is_link_local(),
        Ok(IpAddr::V6(address)) => {
            address == Ipv6Addr::LOCALHOST || address.segments().starts_with(&METADATA)
        }
        Err(_) => host == "localhost",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_leaves_this_machine_unencrypted() {
        for good in [
            "127.0.0.1:4566/",
            "localhost",
            "localhost:80/x",
            "169.254.169.254/latest",
            "169.254.170.2:80?x",
            "[::1]:80/",
            "[fd00:ec2::254]/latest",
        ] {
            assert!(may_be_unencrypted(good), "{good}");
        }
        for bad in [
            "",
            "kms.us-east-1.amazonaws.com/",
            "10.0.0.1/",
            "localhost.example/",
            "127.0.0.1.example/",
            "[fd00:ec3::1]/",
            "user@localhost/",
        ] {
            assert!(!may_be_unencrypted(bad), "{bad}");
        }
    }
}
