//! A connection to an API server: HTTP/1.1, one request at a time.
//!
//! That the other side is gone is noticed within [`DEAD`] even if nobody says so: by keep-alive probes while nothing is
//! to be sent, by the kernel's patience with what is not acknowledged else.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use http::{HeaderValue, Method, Request, Response, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use nix::sys::socket::{setsockopt, sockopt};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};
use tokio_rustls::TlsConnector;

use super::access::{Access, Credentials, Url, told};
use super::failure::Failure;

/// For a TCP connection. The first packet is repeated after a second (RFC 6298, 2.1): twice is asked, and soon anew.
const CONNECT: Duration = Duration::from_millis(1500);
/// Addresses are tried one after the other, and side by side from then on.
const STAGGER: Duration = Duration::from_millis(250);
/// For TLS, once there is a connection; the API server may be busy.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// For the first byte of an answer: the API server itself gives up after 60 s, and says so.
const ANSWER: Duration = Duration::from_secs(65);
/// How long nothing may come back at all.
pub const DEAD: Duration = Duration::from_secs(11);
/// After this long quiet the other side is asked whether it is there, and again every `PROBE`.
const QUIET: u32 = 5;
const PROBE: u32 = 2;
/// A connection is used for this long. Then another one is made: where there are several API servers, those that were
/// away get their share again.
const OLD: Duration = Duration::from_secs(1800);

/// A connection that is open.
#[derive(Debug)]
pub struct Connection {
    sender: SendRequest<Full<Bytes>>,
    access: Access,
    server: Url,
    since: Instant,
    driver: JoinHandle<()>,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

impl Connection {
    pub async fn open(access: &Access) -> Result<Self, Failure> {
        let credentials = access.read().await?;
        let (stream, server) = tcp(&credentials.servers).await?;
        let (sender, driver) = match server.is_plain() {
            true => start(stream).await,
            false => start(tls(stream, &credentials, &server).await?).await,
        }?;
        tracing::debug!(%server, "connected");
        Ok(Self { sender, access: access.clone(), server, since: Instant::now(), driver })
    }

    /// Whether another request may be sent.
    pub fn is_usable(&self) -> bool {
        self.sender.is_ready() && self.since.elapsed() < OLD
    }

    /// Sends a request and waits for the beginning of its answer. The token is read anew.
    pub async fn send(
        &mut self,
        method: Method,
        path: &str,
        body: Option<(&str, Vec<u8>)>,
    ) -> Result<Response<Incoming>, Failure> {
        let credentials = self.access.read().await?;
        let mut request = Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.server.prefix()))
            .header(header::HOST, self.server.authority())
            .header(header::ACCEPT, "application/json")
            .header(header::USER_AGENT, concat!("heddle/", env!("CARGO_PKG_VERSION")));
        if let Some(authorization) = &credentials.authorization {
            request = request.header(header::AUTHORIZATION, HeaderValue::clone(authorization));
        }
        let mut bytes = Bytes::new();
        if let Some((kind, body)) = body {
            request = request.header(header::CONTENT_TYPE, kind);
            bytes = body.into();
        }
        let request = request.body(Full::new(bytes)).map_err(|error| Failure::Access(told(error)))?;
        let lost = |error: hyper::Error| Failure::Lost(told(error));
        let answer = async {
            self.sender.ready().await.map_err(lost)?;
            self.sender.send_request(request).await.map_err(lost)
        };
        timeout(ANSWER, answer).await.map_err(|_| Failure::Silent(ANSWER))?
    }
}

async fn start<S>(stream: S) -> Result<(SendRequest<Full<Bytes>>, JoinHandle<()>), Failure>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (sender, driver) =
        handshake(TokioIo::new(stream)).await.map_err(|error| Failure::Lost(told(error)))?;
    // Its errors are those of the requests.
    let driver = tokio::spawn(async move { drop(driver.await) });
    Ok((sender, driver))
}

async fn tls(
    stream: TcpStream,
    credentials: &Credentials,
    server: &Url,
) -> Result<impl AsyncRead + AsyncWrite + Unpin + Send + 'static + use<>, Failure> {
    let failed = |why: String| Failure::Tls { to: server.to_string(), why };
    let name = credentials.name(server).map_err(failed)?;
    let connecting = TlsConnector::from(Arc::clone(&credentials.tls)).connect(name, stream);
    match timeout(HANDSHAKE, connecting).await {
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err(error)) => Err(failed(error.to_string())),
        Err(_) => Err(failed(format!("no answer within {} s", HANDSHAKE.as_secs()))),
    }
}

/// A connection to the first of the servers that takes one.
async fn tcp(servers: &[Url]) -> Result<(TcpStream, Url), Failure> {
    let mut attempts: FuturesUnordered<_> = servers
        .iter()
        .zip(0u32..)
        .map(|(server, number)| async move {
            sleep(STAGGER * number).await;
            let stream = timeout(CONNECT, dial(server)).await;
            let why = match stream {
                Ok(Ok(stream)) => return Ok((stream, server.clone())),
                Ok(Err(why)) => why,
                Err(_) => "no answer".into(),
            };
            Err(Failure::Connect { to: server.to_string(), why })
        })
        .collect();
    let mut first = None;
    while let Some(attempt) = attempts.next().await {
        match attempt {
            Ok(connected) => return Ok(connected),
            Err(failure) => drop(first.get_or_insert(failure)),
        }
    }
    Err(first.unwrap_or_else(|| Failure::Access("no address of an API server".into())))
}

async fn dial(server: &Url) -> Result<TcpStream, String> {
    let mut why = "the name has no address".to_owned();
    let addresses = tokio::net::lookup_host((server.host(), server.port()));
    let addresses: Vec<SocketAddr> = addresses.await.map_err(|error| error.to_string())?.collect();
    for address in addresses {
        match TcpStream::connect(address).await {
            Ok(stream) => {
                notice_death(&stream).map_err(|error| error.to_string())?;
                return Ok(stream);
            }
            Err(error) => why = error.to_string(),
        }
    }
    Err(why)
}

fn notice_death(stream: &TcpStream) -> nix::Result<()> {
    setsockopt(stream, sockopt::TcpNoDelay, &true)?;
    setsockopt(stream, sockopt::KeepAlive, &true)?;
    setsockopt(stream, sockopt::TcpKeepIdle, &QUIET)?;
    setsockopt(stream, sockopt::TcpKeepInterval, &PROBE)?;
    // Counts for probes as well (tcp(7)), instead of their number.
    setsockopt(stream, sockopt::TcpUserTimeout, &u32::try_from(DEAD.as_millis()).unwrap_or(u32::MAX))
}
