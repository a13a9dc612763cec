//! `/healthz` and `/livez`.

use std::sync::Arc;

use hyper::StatusCode;
use serde_json::{Map, Value};

use super::{Health, rfc3339};
use crate::http::{Answer, Site};
use crate::metrics::Record;

/// Answers probes: `/healthz` says whether load balancers may send this node something new, `/livez` whether the
/// daemon does its work.
#[derive(Debug)]
pub struct Probes {
    health: Health,
    record: Record,
}

impl Probes {
    pub fn new(health: Health, record: Record) -> Arc<Self> {
        Arc::new(Self { health, record })
    }

    fn say(&self, livez: bool) -> Answer {
        let state = self.health.state();
        let well = state.healthy && (livez || state.node_eligible);
        let status = if well { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
        self.record.probed(livez, status.as_u16());
        let mut body = Map::new();
        body.insert("lastUpdated".into(), rfc3339(state.last_updated).into());
        body.insert("currentTime".into(), rfc3339(state.now).into());
        if !livez {
            body.insert("nodeEligible".into(), state.node_eligible.into());
        }
        Answer::json(status, Value::from(body).to_string())
    }
}

impl Site for Probes {
    async fn answer(&self, path: &str) -> Answer {
        match path {
            "/healthz" => self.say(false),
            "/livez" => self.say(true),
            _ => Answer::not_found(),
        }
    }
}
