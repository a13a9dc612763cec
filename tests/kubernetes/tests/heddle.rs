//! A real cluster on Heddle alone: raised once, looked at in many ways.

use heddle_kubernetes::checks::{self, Stage, Subject};
use heddle_kubernetes::{Cluster, Result, heddle};
use heddle_lab::skip;

/// Nodes of the cluster.
const NODES: usize = 3;

#[test]
fn a_cluster_on_heddle_alone() -> Result<()> {
    if let Some(why) = Cluster::missing() {
        skip(&why);
        return Ok(());
    }
    let cluster = Cluster::raise(NODES)?;
    let daemons = heddle::install(&cluster)?;
    let stage = Stage::new(cluster, Subject::Heddle, daemons);
    let all = [checks::smoke(), checks::heddle()].concat();
    checks::run(&stage, &all)
}
