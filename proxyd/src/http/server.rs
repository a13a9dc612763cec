//! A server of proxyd's: what it cannot do is told as a notice.

use std::net::SocketAddr;
use std::sync::Arc;

use heddle_daemon::http::{Site, listen};
use tokio::task::JoinHandle;

use crate::notices::Notices;

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
        let task = tokio::spawn({
            let (name, notices) = (name.clone(), notices.clone());
            async move {
                let tell = |trouble| match trouble {
                    Some(what) => notices.set(&name, what),
                    None => notices.clear(&name),
                };
                listen(at, hint, site, tell).await;
            }
        });
        Self { task, notices: notices.clone(), name }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
        self.notices.clear(&self.name);
    }
}
