//! Small HTTP servers for whoever watches this node: probes, load balancers, Prometheus.
//!
//! Anybody who reaches the port may talk to them, so a client costs little and for a short time: no body is read,
//! a request's head has a limit, a connection carries one request and has [`LIMIT`] for all of it, and of more than
//! [`MOST`] connections the oldest is closed. A client that is quick is always answered.

mod listen;

use std::collections::VecDeque;
use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderName, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{sleep, timeout};

pub use listen::{Listen, can_ipv6, listen};

/// Connections of one server at one time.
const MOST: usize = 64;
/// Time for a connection, from its first packet to its end.
const LIMIT: Duration = Duration::from_secs(10);
/// Bytes of a request's head, and of what is read ahead.
const HEAD: usize = 16 * 1024;
/// Wait after the system has no more descriptors.
const BREATH: Duration = Duration::from_millis(100);

/// What a server says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    pub status: StatusCode,
    pub content_type: &'static str,
    /// Further headers.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    pub body: String,
}

impl Answer {
    pub const fn json(status: StatusCode, body: String) -> Self {
        Self { status, content_type: "application/json", headers: Vec::new(), body }
    }

    pub fn text(status: StatusCode, body: impl Into<String>) -> Self {
        Self { status, content_type: "text/plain; charset=utf-8", headers: Vec::new(), body: body.into() }
    }

    pub fn not_found() -> Self {
        Self::text(StatusCode::NOT_FOUND, "not found\n")
    }

    fn response(self) -> Response<Full<Bytes>> {
        let mut response = Response::new(Full::from(self.body));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(self.content_type));
        headers.insert("x-content-type-options", HeaderValue::from_static("nosniff"));
        headers.extend(self.headers);
        response
    }
}

/// Who answers: a GET (or a HEAD, whose body is left out) of a path.
pub trait Site: Send + Sync + 'static {
    fn answer(&self, path: &str) -> impl Future<Output = Answer> + Send;
}

/// Answers on `listener` until it is dropped (cancelled); its connections end with it.
pub async fn serve<S: Site>(listener: TcpListener, site: Arc<S>) {
    let mut connections = JoinSet::new();
    let mut oldest: VecDeque<AbortHandle> = VecDeque::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    oldest.retain(|connection| !connection.is_finished());
                    if oldest.len() >= MOST
                        && let Some(connection) = oldest.pop_front()
                    {
                        connection.abort();
                    }
                    oldest.push_back(connections.spawn(talk(stream, Arc::clone(&site))));
                }
                Err(error) if is_of_the_client(&error) => {}
                Err(error) => {
                    tracing::debug!("cannot accept a connection: {error}");
                    sleep(BREATH).await;
                }
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

/// It went away before it was taken.
fn is_of_the_client(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset)
}

async fn talk<S: Site>(stream: TcpStream, site: Arc<S>) {
    let service = service_fn(|request: Request<Incoming>| {
        let site = Arc::clone(&site);
        async move { Ok::<_, Infallible>(respond(site.as_ref(), &request).await.response()) }
    });
    let mut http = http1::Builder::new();
    http.keep_alive(false).max_buf_size(HEAD).max_headers(64);
    // What a client does wrong is its own affair.
    let _ = timeout(LIMIT, http.serve_connection(TokioIo::new(stream), service)).await;
}

async fn respond<S: Site>(site: &S, request: &Request<Incoming>) -> Answer {
    if *request.method() != Method::GET && *request.method() != Method::HEAD {
        let mut answer = Answer::text(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD\n");
        answer.headers.push((ALLOW, HeaderValue::from_static("GET, HEAD")));
        return answer;
    }
    site.answer(request.uri().path()).await
}

#[cfg(test)]
mod tests;
