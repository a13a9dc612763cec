//! The control run: with the reference plugins and kube-proxy the same cluster passes the same checks.

use heddle_kubernetes::checks::{self, Stage, Subject};
use heddle_kubernetes::{Cluster, Result, reference};
use heddle_lab::skip;

/// Nodes of the cluster.
const NODES: usize = 3;

#[test]
fn a_cluster_on_the_reference_plugins_and_kube_proxy() -> Result<()> {
    if let Some(why) = Cluster::missing().or_else(reference::missing) {
        skip(&why);
        return Ok(());
    }
    let cluster = Cluster::raise(NODES)?;
    let proxies = reference::install(&cluster)?;
    let stage = Stage::new(cluster, Subject::Reference);
    checks::run(&stage, &checks::smoke())?;
    assert!(proxies.iter().all(heddle_lab::Process::is_running), "a kube-proxy has ended");
    Ok(())
}
