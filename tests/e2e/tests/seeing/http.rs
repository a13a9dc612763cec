//! Questions to the servers of proxyd.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use heddle_lab::{Error, Place, Result};

/// What a server says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Said {
    pub status: u16,
    /// In lower case.
    pub head: String,
    pub body: String,
}

/// Asks `http://AT/PATH` from `place`.
pub fn get(place: &Place, at: SocketAddr, path: &str) -> Result<Said> {
    let ask = || -> std::io::Result<String> {
        let mut stream = TcpStream::connect_timeout(&at, Duration::from_secs(2))?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        write!(stream, "GET {path} HTTP/1.1\r\nHost: {at}\r\n\r\n")?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        Ok(text)
    };
    let text = place.enter(ask)?.map_err(|error| Error::Oracle(format!("http://{at}{path}: {error}")))?;
    let none = || Error::Oracle(format!("http://{at}{path}: {text}"));
    let (head, body) = text.split_once("\r\n\r\n").ok_or_else(none)?;
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).ok_or_else(none)?;
    Ok(Said { status, head: head.to_lowercase(), body: body.into() })
}

/// The value of a metric with these labels (as they stand in the text, `{a="b"}`).
pub fn metric(page: &str, name: &str) -> Option<f64> {
    let line = page.lines().find(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(' ')))?;
    line.rsplit_once(' ')?.1.parse().ok()
}
