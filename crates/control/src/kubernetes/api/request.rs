//! Lists, watches and changes, as requests; and what comes back, as bytes.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::FutureExt as _;
use http::{Method, Response, StatusCode, header};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use tokio::time::{Instant, timeout};

use super::access::told;
use super::connect::Connection;
use super::failure::{Failure, Status};
use super::item::{Kind, Version};

/// The largest answer, in bytes: all EndpointSlices of a large cluster in one page.
const LARGEST: usize = 512 << 20;
/// The largest event: objects in etcd are at most 1.5 MiB, in a denser form.
const LARGEST_LINE: usize = 16 << 20;
/// Between two pieces of an answer that has begun.
const PIECE: Duration = Duration::from_secs(30);
/// A watch is quiet for a minute at most: then there is a bookmark.
const QUIET: Duration = Duration::from_secs(150);

/// The path of a list.
pub fn list(kind: Kind, paged: bool, token: Option<&str>) -> String {
    let mut path = format!("{}?", kind.path());
    if paged {
        path.push_str(&format!("limit={}&", kind.page()));
    }
    if let Some(selector) = kind.selector() {
        path.push_str(&format!("labelSelector={selector}&"));
    }
    if let Some(token) = token {
        path.push_str(&format!("continue={}&", escaped(token)));
    }
    path.pop();
    path
}

/// The path of a watch that the API server ends after so long.
pub fn watch(kind: Kind, version: &Version, seconds: u64) -> String {
    let selector = kind.selector().map_or_else(String::new, |selector| format!("&labelSelector={selector}"));
    let version = escaped(&version.0);
    format!(
        "{}?watch=1&allowWatchBookmarks=true&resourceVersion={version}&timeoutSeconds={seconds}{selector}",
        kind.path()
    )
}

/// For a part of a path or of a query (RFC 3986, 2.1).
pub fn escaped(text: &str) -> String {
    let mut all = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => all.push(char::from(byte)),
            _ => all.push_str(&format!("%{byte:02X}")),
        }
    }
    all
}

/// Asks, and gives back an answer that says yes.
pub async fn get(connection: &mut Connection, path: &str) -> Result<Response<Incoming>, Failure> {
    checked(connection.send(Method::GET, path, None).await?).await
}

/// Changes an object. `kind`: of the patch.
pub async fn patch(
    connection: &mut Connection,
    path: &str,
    kind: &str,
    body: Vec<u8>,
) -> Result<Bytes, Failure> {
    let answer = checked(connection.send(Method::PATCH, path, Some((kind, body))).await?).await?;
    whole(answer, LARGEST_LINE).await
}

async fn checked(answer: Response<Incoming>) -> Result<Response<Incoming>, Failure> {
    if answer.status() == StatusCode::OK {
        return Ok(answer);
    }
    let code = answer.status().as_u16();
    let after = answer.headers().get(header::RETRY_AFTER);
    let after = after.and_then(|after| after.to_str().ok()?.parse().ok()).map(Duration::from_secs);
    // Its words are worth having, but not waiting for.
    let body = whole(answer, 64 << 10).await.unwrap_or_default();
    Err(Failure::of(code, &Status::of(&body), after))
}

/// All of an answer.
pub async fn whole(answer: Response<Incoming>, largest: usize) -> Result<Bytes, Failure> {
    let mut body = answer.into_body();
    let mut all = BytesMut::new();
    while let Some(piece) = piece(&mut body, PIECE).await? {
        if all.len() + piece.len() > largest {
            return Err(Failure::Malformed(format!("an answer of more than {largest} bytes")));
        }
        all.extend_from_slice(&piece);
    }
    Ok(all.freeze())
}

/// A list.
pub async fn page(answer: Response<Incoming>) -> Result<Bytes, Failure> {
    whole(answer, LARGEST).await
}

async fn piece(body: &mut Incoming, patience: Duration) -> Result<Option<Bytes>, Failure> {
    loop {
        match timeout(patience, body.frame()).await.map_err(|_| Failure::Silent(patience))? {
            None => return Ok(None),
            Some(Err(error)) => return Err(Failure::Lost(told(error))),
            Some(Ok(frame)) => {
                if let Ok(data) = frame.into_data() {
                    return Ok(Some(data));
                }
            }
        }
    }
}

/// The lines of an answer that goes on and on.
#[derive(Debug)]
pub struct Lines {
    body: Incoming,
    /// Begins with what is not told yet.
    buffer: BytesMut,
    /// So much of it holds no end of a line.
    searched: usize,
    is_over: bool,
    /// When the last of it came.
    arrived: Instant,
}

impl Lines {
    pub fn of(answer: Response<Incoming>) -> Self {
        Self {
            body: answer.into_body(),
            buffer: BytesMut::new(),
            searched: 0,
            is_over: false,
            arrived: Instant::now(),
        }
    }

    /// When the last piece of the stream came: the line that was told last was in it, or before it.
    pub const fn arrived(&self) -> Instant {
        self.arrived
    }

    /// The next line; `None` at the end. What is behind the last line is half a line, and told as nothing. Safe to cancel.
    pub async fn next(&mut self) -> Result<Option<Bytes>, Failure> {
        loop {
            if let Some(line) = self.ready() {
                return Ok(Some(line));
            }
            if self.is_over {
                return Ok(None);
            }
            if self.buffer.len() > LARGEST_LINE {
                return Err(Failure::Malformed(format!("an event of more than {LARGEST_LINE} bytes")));
            }
            match piece(&mut self.body, QUIET).await? {
                None => self.is_over = true,
                Some(piece) => {
                    self.arrived = Instant::now();
                    self.buffer.extend_from_slice(&piece);
                }
            }
        }
    }

    /// The next line, if it has come already.
    pub fn next_now(&mut self) -> Option<Result<Option<Bytes>, Failure>> {
        self.next().now_or_never()
    }

    fn ready(&mut self) -> Option<Bytes> {
        loop {
            let Some(end) = self.buffer[self.searched..].iter().position(|byte| *byte == b'\n') else {
                self.searched = self.buffer.len();
                return None;
            };
            let mut line = self.buffer.split_to(self.searched + end + 1);
            self.searched = 0;
            line.truncate(line.len() - 1);
            if !line.iter().all(u8::is_ascii_whitespace) {
                return Some(line.freeze());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths() {
        assert_eq!(list(Kind::Node, true, None), "/api/v1/nodes?limit=250");
        assert_eq!(list(Kind::Node, false, None), "/api/v1/nodes");
        let page = list(Kind::Service, true, Some("a+/="));
        assert!(
            page.ends_with("&continue=a%2B%2F%3D") && page.contains("labelSelector=%21service"),
            "{page}"
        );
        let path = watch(Kind::EndpointSlice, &Version("12".into()), 300);
        assert!(path.contains("resourceVersion=12&timeoutSeconds=300&labelSelector="), "{path}");
    }
}
