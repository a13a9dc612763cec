//! Where a server listens, and what is said when it cannot.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, UdpSocket};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio::time::sleep;

use super::{Site, serve};
use crate::notices::Notices;

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

/// A server that listens, or tries to, until it is dropped.
#[derive(Debug)]
pub struct Server {
    task: JoinHandle<()>,
    notices: Notices,
    name: String,
}

impl Server {
    /// Listens at `at`; `name`: what notices call it; `hint`: the way out where that fails. Everything else goes on
    /// meanwhile. To be called in a tokio runtime.
    pub fn start<S: Site>(
        name: String,
        at: SocketAddr,
        hint: &'static str,
        site: Arc<S>,
        notices: &Notices,
    ) -> Self {
        let at = everywhere(at);
        let task = tokio::spawn({
            let (name, notices) = (name.clone(), notices.clone());
            async move {
                let listener = loop {
                    match TcpListener::bind(at).await {
                        Ok(listener) => break listener,
                        Err(error) => notices.set(&name, why(at, &error, hint)),
                    }
                    sleep(RETRY).await;
                };
                notices.clear(&name);
                tracing::debug!("{name}: listening on {at}");
                serve(listener, site).await;
            }
        });
        Self { task, notices: notices.clone(), name }
    }
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

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
        self.notices.clear(&self.name);
    }
}
