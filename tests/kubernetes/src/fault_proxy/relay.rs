//! One connection, and its requests.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::error::Error as StdError;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use futures::SinkExt as _;
use futures::channel::mpsc;
use http::{Request, Response, StatusCode, Uri, header};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Empty, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::client::conn::http1::handshake;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::{sleep, sleep_until};
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::{Fault, Lines, Seen, Shared, lock};

type Failed = Box<dyn StdError + Send + Sync>;
type Body = UnsyncBoxBody<Bytes, Failed>;

/// Until it ends, or is broken.
pub async fn connection(shared: Arc<Shared>, stream: TcpStream) {
    let mut generation = shared.generation.subscribe();
    generation.borrow_and_update();
    let tls = Arc::clone(&lock(&shared.tls));
    let serve = async {
        let Ok(stream) = TlsAcceptor::from(tls).accept(stream).await else { return };
        let service = service_fn(|request| answer(Arc::clone(&shared), request));
        // A client that goes is no matter.
        let _ =
            hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
    };
    tokio::select! {
        () = serve => {}
        _ = generation.changed() => {}
    }
}

async fn answer(shared: Arc<Shared>, request: Request<Incoming>) -> Result<Response<Body>, Failed> {
    let query: BTreeMap<String, String> = request
        .uri()
        .query()
        .unwrap_or_default()
        .split('&')
        .filter_map(|part| part.split_once('='))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect();
    let seen = Seen { at: Instant::now(), path: request.uri().path().to_owned(), query };
    lock(&shared.seen).push(seen.clone());
    let rule = lock(&shared.rule).clone();
    match rule.and_then(|rule| rule(&seen)) {
        None => {
            let uri = request.uri().clone();
            relayed(&shared, request, uri).await
        }
        Some(Fault::Cut) => Err("cut".into()),
        Some(Fault::Hang) => std::future::pending().await,
        Some(Fault::Answer { code, retry_after, body }) => {
            let mut answer = Response::builder().status(code);
            if let Some(seconds) = retry_after {
                answer = answer.header(header::RETRY_AFTER, seconds);
            }
            Ok(answer.body(full(body.into()))?)
        }
        Some(Fault::Ask(changes)) => {
            let mut query = seen.query.clone();
            for (name, value) in changes {
                query.remove(name);
                if !value.is_empty() {
                    query.insert(name.to_owned(), value);
                }
            }
            let query: Vec<_> = query.into_iter().map(|(name, value)| format!("{name}={value}")).collect();
            let uri: Uri = format!("{}?{}", seen.path, query.join("&")).parse()?;
            relayed(&shared, request, uri).await
        }
        Some(Fault::Page(change)) => {
            let uri = request.uri().clone();
            let (parts, body) = relayed(&shared, request, uri).await?.into_parts();
            let body = body.collect().await?.to_bytes();
            let body = match parts.status {
                StatusCode::OK => change(serde_json::from_slice(&body)?).to_string().into(),
                _ => body,
            };
            let mut answer = Response::new(full(body));
            *answer.status_mut() = parts.status;
            Ok(answer)
        }
        Some(Fault::Stream { lines, end }) => {
            let end = end.map(|end| tokio::time::Instant::now() + end);
            let uri = request.uri().clone();
            let answer = relayed(&shared, request, uri).await?;
            let (out, told) = mpsc::channel(16);
            tokio::spawn(stream(answer.into_body(), lines, end, out));
            Ok(Response::new(StreamBody::new(told).boxed_unsync()))
        }
        Some(Fault::Told(lines)) => {
            let (mut out, told) = mpsc::channel(16);
            tokio::spawn(async move {
                for line in lines {
                    let line = Bytes::from(line + "\n");
                    if out.send(Ok(Frame::data(line))).await.is_err() {
                        return;
                    }
                }
                sleep(std::time::Duration::from_secs(600)).await;
            });
            Ok(Response::new(StreamBody::new(told).boxed_unsync()))
        }
    }
}

fn full(bytes: Bytes) -> Body {
    Full::new(bytes).map_err(|never: Infallible| match never {}).boxed_unsync()
}

/// What the API server says to it.
async fn relayed(shared: &Shared, request: Request<Incoming>, uri: Uri) -> Result<Response<Body>, Failed> {
    let stream = TcpStream::connect(shared.server).await?;
    stream.set_nodelay(true)?;
    let name = ServerName::try_from("127.0.0.1")?;
    let stream = TlsConnector::from(Arc::clone(&shared.upstream)).connect(name, stream).await?;
    let (mut sender, driver) = handshake(TokioIo::new(stream)).await?;
    tokio::spawn(driver);
    let (mut parts, body) = request.into_parts();
    parts.uri = uri;
    let body = body.collect().await?.to_bytes();
    let body: Body = if body.is_empty() {
        Empty::new().map_err(|never| match never {}).boxed_unsync()
    } else {
        full(body)
    };
    let (mut parts, body) = sender.send_request(Request::from_parts(parts, body)).await?.into_parts();
    // It is said anew how the body comes.
    parts.headers.remove(header::TRANSFER_ENCODING);
    parts.headers.remove(header::CONTENT_LENGTH);
    Ok(Response::from_parts(parts, body.map_err(Into::into).boxed_unsync()))
}

type Out = mpsc::Sender<Result<Frame<Bytes>, Failed>>;

/// Line by line, until the end.
async fn stream(mut body: Body, lines: Lines, end: Option<tokio::time::Instant>, mut out: Out) {
    let mut rest = Vec::new();
    let over = async {
        match end {
            Some(end) => sleep_until(end).await,
            None => std::future::pending().await,
        }
    };
    let pass = async {
        while let Some(Ok(frame)) = body.frame().await {
            rest.extend_from_slice(&frame.into_data().unwrap_or_default());
            while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = rest.drain(..=end).collect();
                for line in lines(String::from_utf8_lossy(&line[..end]).into_owned()) {
                    if out.send(Ok(Frame::data(Bytes::from(line + "\n")))).await.is_err() {
                        return;
                    }
                }
            }
        }
    };
    tokio::select! {
        () = over => {}
        () = pass => {}
    }
}
