//! What a cluster's network must show, by real pods: one list, for Heddle and for what it is measured against.

mod control;
mod crowd;
mod lateness;
mod life;
mod load;
mod names;
mod nodes;
mod services;
mod stage;

use std::time::Instant;

use crate::error::{Error, Result};
pub use stage::{FAMILIES, Stage, Subject};

/// One thing that must be so.
#[derive(Clone, Copy, Debug)]
pub struct Check {
    pub name: &'static str,
    pub run: fn(&Stage) -> Result<()>,
}

macro_rules! checks {
    ($($path:path),* $(,)?) => {
        [$(Check { name: stringify!($path), run: $path }),*]
    };
}

/// What every network of pods and services must show, in this order.
pub fn smoke() -> Vec<Check> {
    checks![
        nodes::ready_within_a_minute,
        crowd::pods_on_each_node_and_each_reaches_each,
        services::cluster_ip,
        services::node_port_cluster,
        services::node_port_local_keeps_the_client,
        services::balancer_address_set_by_hand,
        services::session_affinity,
        services::host_port,
        names::by_the_clusters_dns,
        life::pod_deleted_by_force,
        life::rolling_update_under_load,
    ]
    .to_vec()
}

/// What Heddle must show besides.
pub fn heddle() -> Vec<Check> {
    checks![
        life::heddle_itself_replaced_under_load,
        control::api_server_away,
        control::etcd_restarted,
        nodes::drained_under_load,
        nodes::fault_126_a_node_that_is_dead_is_kept_until_it_is_deleted,
        nodes::fault_127_a_node_that_comes_back_under_its_name,
        crowd::nothing_is_left_when_pods_are_gone,
    ]
    .to_vec()
}

/// Carries `checks` out on one cluster, tells how long each took, and gives all failures.
///
/// `HEDDLE_CHECK`: only those whose name contains it. `HEDDLE_LOGS`: a directory where what all programs have printed is
/// kept.
///
/// # Errors
/// When one failed.
pub fn run(stage: &Stage, checks: &[Check]) -> Result<()> {
    let only = std::env::var("HEDDLE_CHECK").unwrap_or_default();
    let mut failed = Vec::new();
    for check in checks.iter().filter(|check| check.name.contains(&only)) {
        let begun = Instant::now();
        let result = (check.run)(stage);
        let verdict = if result.is_ok() { "ok" } else { "FAILED" };
        println!("{:?} {} ... {verdict} ({:.1} s)", stage.subject, check.name, begun.elapsed().as_secs_f32());
        if let Err(e) = result {
            println!("    {e}");
            failed.push(format!("{}: {e}", check.name));
        }
    }
    if let Some(dir) = std::env::var_os("HEDDLE_LOGS") {
        stage.keep_logs(dir.as_ref())?;
    }
    if failed.is_empty() { Ok(()) } else { Err(Error::new("pass all checks", failed.join("\n"))) }
}

/// An error unless `is_so`.
fn ensure(is_so: bool, what: impl FnOnce() -> String) -> Result<()> {
    if is_so { Ok(()) } else { Err(Error::new("be content", what())) }
}

/// A size: the environment's, else this.
fn size(variable: &str, default: usize) -> usize {
    std::env::var(variable).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}
