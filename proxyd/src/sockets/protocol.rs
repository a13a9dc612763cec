//! What proxyd and its helper say to each other: one request and one answer a connection, each a length (four
//! bytes, the highest first) and so many bytes of JSON.

use std::collections::BTreeSet;
use std::io::{self, ErrorKind, Read, Write};
use std::net::SocketAddr;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// Longer messages are refused: some 400,000 sockets.
const LONGEST: usize = 8 << 20;

/// What proxyd asks for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Request {
    /// Are you there?
    Hello,
    Destroy(Vec<Gone>),
}

/// A backend that is gone, and the sockets that have it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Gone {
    pub transport: Transport,
    pub backend: SocketAddr,
    /// Their cookies. A socket that has one of these, but another peer by now, is left alone.
    pub sockets: BTreeSet<u64>,
    /// It may live: only what has sent again and got no answer is destroyed.
    #[serde(default)]
    pub if_stalled: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Transport {
    Tcp,
    Udp,
}

/// What the helper did.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Answer {
    /// Its version.
    pub version: String,
    /// Network namespaces that it knows: the node's and those of pods.
    pub namespaces: usize,
    /// The sockets that it destroyed. Of the others, none is connected to that backend any more, unless there are
    /// `problems`.
    pub destroyed: BTreeSet<u64>,
    /// What it could not do.
    pub problems: Vec<String>,
    /// The kernel was built without CONFIG_INET_DIAG_DESTROY.
    pub unsupported: bool,
}

pub(super) fn send(to: &mut impl Write, message: &impl Serialize) -> io::Result<()> {
    let text = serde_json::to_vec(message)?;
    let length = u32::try_from(text.len()).map_err(io::Error::other)?;
    to.write_all(&[&length.to_be_bytes()[..], &text].concat())
}

pub(super) fn receive<T: DeserializeOwned>(from: &mut impl Read) -> io::Result<T> {
    let mut length = [0; 4];
    from.read_exact(&mut length)?;
    let length = u32::from_be_bytes(length) as usize;
    if length > LONGEST {
        return Err(io::Error::new(ErrorKind::InvalidData, format!("a message of {length} bytes")));
    }
    let mut text = Vec::new();
    // Memory comes with what is sent, not with what is announced.
    if from.take(length as u64).read_to_end(&mut text)? < length {
        return Err(ErrorKind::UnexpectedEof.into());
    }
    Ok(serde_json::from_slice(&text)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_sent_is_received() {
        let gone = Gone {
            transport: Transport::Udp,
            backend: "[fd00::1]:53".parse().unwrap(),
            sockets: [7, u64::MAX].into(),
            if_stalled: true,
        };
        for request in [Request::Hello, Request::Destroy(vec![gone])] {
            let mut bytes = Vec::new();
            send(&mut bytes, &request).unwrap();
            assert_eq!(receive::<Request>(&mut bytes.as_slice()).unwrap(), request);
            bytes.pop();
            let cut = receive::<Request>(&mut bytes.as_slice()).unwrap_err();
            assert_eq!(cut.kind(), ErrorKind::UnexpectedEof);
        }
        let huge = receive::<Request>(&mut &[0xff; 8][..]).unwrap_err();
        assert_eq!(huge.kind(), ErrorKind::InvalidData);
    }
}
