//! A real cluster on Heddle alone, as it is shipped: raised once, looked at in many ways.

use heddle_kubernetes::checks::{self, Stage, Subject};
use heddle_kubernetes::{Cluster, Result, deploy};
use heddle_lab::skip;

/// Nodes of the cluster.
const NODES: usize = 3;

#[test]
fn a_cluster_on_heddle_alone() -> Result<()> {
    if let Some(why) = Cluster::missing() {
        skip(&why);
        return Ok(());
    }
    let cluster = Cluster::raise_with(NODES, |lab| Ok(vec![deploy::image(lab)?]))?;
    deploy::apply(&cluster)?;
    let stage = Stage::new(cluster, Subject::Heddle);
    checks::run(&stage, &[checks::smoke(), checks::heddle()].concat())
}
