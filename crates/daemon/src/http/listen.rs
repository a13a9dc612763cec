//! Where a server listens, and what is said when it cannot.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, UdpSocket};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::time::sleep;

use super::{Site, serve};

/// Time between two attempts to listen.
const RETRY: Duration = Duration::from_secs(2);

/// An address and port, or `off`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listen(pub Option<SocketAddr>);

impl FromStr for Listen {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "off" {
            return Ok(Self(None));
        }
        let wrong = |_| "an address and port as in 127.0.0.1:10249 or [::]:10249, or off".to_owned();
        text.parse().map(|at| Self(Some(at))).map_err(wrong)
    }
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(at) => at.fmt(f),
            None => f.write_str("off"),
        }
    }
}

/// Listens at `at` and answers, or tries to, until it is dropped (cancelled). `tell` hears why it cannot listen, and
/// with `None` that it does; `hint`: the way out where it cannot.
pub async fn listen<S: Site>(at: SocketAddr, hint: &str, site: Arc<S>, tell: impl Fn(Option<String>)) {
    let at = everywhere(at);
    let listener = loop {
        match TcpListener::bind(at).await {
            Ok(listener) => break listener,
            Err(error) => tell(Some(why(at, &error, hint))),
        }
        sleep(RETRY).await;
    };
    tell(None);
    tracing::debug!("listening on {at}");
    serve(listener, site).await;
}

/// 0.0.0.0 stands for every address of the machine, of either family, as it does for kube-proxy.
fn everywhere(at: SocketAddr) -> SocketAddr {
    match at.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() && can_ipv6() => (Ipv6Addr::UNSPECIFIED, at.port()).into(),
        _ => at,
    }
}

/// Whether this machine has IPv6 at all.
pub fn can_ipv6() -> bool {
    UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0)).is_ok()
}

fn why(at: SocketAddr, error: &io::Error, hint: &str) -> String {
    match error.kind() {
        io::ErrorKind::AddrInUse => format!("cannot listen on {at}: another program does ({hint})"),
        io::ErrorKind::AddrNotAvailable => {
            format!("cannot listen on {at}: no address of this machine ({hint})")
        }
        _ => format!("cannot listen on {at}: {error} ({hint})"),
    }
}
