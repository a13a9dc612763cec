//! Metrics for Prometheus: kube-proxy's names where they mean the same, `heddle_` for the rest
//! (docs/observability.md has them all).

mod gauge;
mod kernel;
mod record;
mod site;
mod text;

pub use gauge::{Gauges, MapGauge};
pub use record::{Changes, Pass, Record};
pub use site::Metrics;
pub use text::{CONTENT_TYPE, Page};
