//! healthCheckNodePort: where a load balancer asks whether this node has endpoints of a service.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};

use heddle_model::ServiceName;
use heddle_model::resolve::HealthCheck;
use hyper::StatusCode;
use hyper::header::{HeaderName, HeaderValue};
use serde_json::json;

use super::Health;
use crate::http::{Answer, Server, Site};
use crate::notices::Notices;

/// How many new connections this node should get, in the measure of its endpoints.
const WEIGHT: HeaderName = HeaderName::from_static("x-load-balancing-endpoint-weight");

const HINT: &str =
    "the service's healthCheckNodePort must be free on every node; load balancers take this one for ill";

/// The servers of all services.
#[derive(Debug)]
pub struct Checks {
    health: Health,
    notices: Notices,
    open: BTreeMap<u16, Open>,
}

#[derive(Debug)]
struct Open {
    about: Arc<About>,
    servers: BTreeMap<IpAddr, Server>,
}

#[derive(Debug)]
struct About {
    health: Health,
    check: Mutex<HealthCheck>,
}

impl Checks {
    pub const fn new(health: Health, notices: Notices) -> Self {
        Self { health, notices, open: BTreeMap::new() }
    }

    /// Answers for these services, by port, on these addresses; servers of others are closed. To be called in a
    /// tokio runtime.
    pub fn set(&mut self, wanted: BTreeMap<u16, HealthCheck>, addresses: &[IpAddr]) {
        self.open
            .retain(|port, open| wanted.get(port).is_some_and(|check| check.service == open.about.service()));
        for (port, check) in wanted {
            let name = check.service.to_string();
            let open = self.open.entry(port).or_insert_with(|| Open {
                about: Arc::new(About { health: self.health.clone(), check: Mutex::new(check.clone()) }),
                servers: BTreeMap::new(),
            });
            *open.about.check.lock().unwrap_or_else(PoisonError::into_inner) = check;
            open.servers.retain(|ip, _| addresses.contains(ip));
            for ip in addresses {
                open.servers.entry(*ip).or_insert_with(|| {
                    let at = SocketAddr::new(*ip, port);
                    let name = format!("service {name}: health check at {at}");
                    Server::start(name, at, HINT, Arc::clone(&open.about), &self.notices)
                });
            }
        }
    }
}

impl About {
    fn service(&self) -> ServiceName {
        self.check.lock().unwrap_or_else(PoisonError::into_inner).service.clone()
    }
}

impl Site for About {
    /// Whatever the path: load balancers are configured in many ways.
    async fn answer(&self, _path: &str) -> Answer {
        let HealthCheck { service, local } =
            self.check.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let healthy = self.health.state().healthy;
        let status = if local > 0 && healthy { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
        let body = json!({
            "service": { "namespace": service.namespace, "name": service.name },
            "localEndpoints": local,
            "serviceProxyHealthy": healthy,
        });
        let mut answer = Answer::json(status, body.to_string());
        answer.headers.push((WEIGHT, HeaderValue::from(local)));
        answer
    }
}
