//! Is this node's overlay well? For the kubelet.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use heddle_daemon::http::{Answer, Listen, Site, listen};
use heddle_reconcile::Status;
use hyper::StatusCode;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;

/// Without a pass of the loop for so long the daemon hangs: a pass is made at least every half a minute.
const STILL: Duration = Duration::from_secs(300);

/// The server; it ends when this is dropped.
#[derive(Debug)]
pub struct Health(Vec<JoinHandle<()>>);

impl Health {
    /// Answers at `at` for a loop of this status. To be called in a tokio runtime.
    pub fn start(at: Listen, status: &watch::Receiver<Arc<Status>>) -> Self {
        let Some(at) = at.0 else { return Self(Vec::new()) };
        let probes = Arc::new(Probes { status: status.clone(), pulse: Mutex::new(Instant::now()) });
        let follow = tokio::spawn(follow(Arc::clone(&probes), status.clone()));
        Self(vec![follow, tokio::spawn(serve(at, probes))])
    }
}

impl Drop for Health {
    fn drop(&mut self) {
        self.0.iter().for_each(JoinHandle::abort);
    }
}

async fn serve(at: SocketAddr, probes: Arc<Probes>) {
    let told = Mutex::new(String::new());
    let tell = |trouble: Option<String>| {
        let mut told = told.lock().unwrap_or_else(PoisonError::into_inner);
        match trouble {
            Some(what) if *told != what => {
                tracing::warn!("healthz: {what}");
                *told = what;
            }
            _ => {}
        }
    };
    listen(at, "name another address by --healthz-address, or off", probes, tell).await;
}

async fn follow(probes: Arc<Probes>, mut status: watch::Receiver<Arc<Status>>) {
    while status.changed().await.is_ok() {
        *probes.pulse.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }
}

/// `/healthz`: the overlay was once as the sources say it should be, since this daemon started. `/livez`: the daemon
/// does its work.
#[derive(Debug)]
struct Probes {
    status: watch::Receiver<Arc<Status>>,
    /// When the loop ended a pass last.
    pulse: Mutex<Instant>,
}

impl Site for Probes {
    async fn answer(&self, path: &str) -> Answer {
        let status = Arc::clone(&self.status.borrow());
        let well = match path {
            "/healthz" => status.ready,
            "/livez" => self.pulse.lock().unwrap_or_else(PoisonError::into_inner).elapsed() < STILL,
            _ => return Answer::not_found(),
        };
        let code = if well { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
        let troubles: Vec<String> =
            status.troubles.iter().map(|(object, trouble)| format!("{object}: {}", trouble.what)).collect();
        let body =
            serde_json::json!({ "ready": status.ready, "synced": status.synced, "troubles": troubles });
        Answer::json(code, body.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn ready_after_the_first_full_pass_and_alive_as_long_as_there_are_passes() {
        let (tell, status) = watch::channel(Arc::new(Status::default()));
        let probes = Arc::new(Probes { status: status.clone(), pulse: Mutex::new(Instant::now()) });
        let follow = tokio::spawn(follow(Arc::clone(&probes), status));
        let codes = async || {
            let mut codes = Vec::new();
            for path in ["/healthz", "/livez", "/"] {
                codes.push(probes.answer(path).await.status.as_u16());
            }
            codes
        };
        assert_eq!(codes().await, [503, 200, 404]);
        tokio::time::sleep(STILL).await;
        assert_eq!(codes().await, [503, 503, 404], "no pass for so long");
        tell.send_replace(Arc::new(Status { ready: true, ..Status::default() }));
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(codes().await, [200, 200, 404]);
        tokio::time::sleep(STILL).await;
        assert_eq!(codes().await, [200, 503, 404]);
        follow.abort();
    }
}
