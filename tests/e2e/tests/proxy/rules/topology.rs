//! `trafficDistribution`, for EndpointSlices that nobody has written hints into.

use heddle_lab::manifests::node_yaml;
use heddle_lab::{Result, Service};

use super::{FAMILIES, Setting, assert_kept, assert_only, cluster, published};

/// The first two nodes are in one zone, the third in another.
fn zoned() -> Result<Setting> {
    let setting = Setting::start(&[])?;
    for node in setting.cluster.nodes() {
        let zone = if node.index() < 3 { "near" } else { "far" };
        let labels = format!("  labels:\n    topology.kubernetes.io/zone: {zone}\nspec:\n");
        let yaml = node_yaml(node).replacen("spec:\n", &labels, 1);
        setting.cluster.manifests().put(&format!("node-{}.yaml", node.name()), &yaml)?;
    }
    setting.carried_out()?;
    Ok(setting)
}

fn distributed(how: &str) -> Service {
    published("spread", 20).spec(format!("trafficDistribution: {how}"))
}

/// Who is on node N reaches exactly `wanted[N - 1]`.
fn reach(setting: &Setting, wanted: [&[&str]; 3]) -> Result<()> {
    for asker in setting.insiders()? {
        for v4 in FAMILIES {
            let wanted = wanted[asker.node - 1];
            assert_only(cluster(20, v4), &asker.place, 6, wanted)?;
            // The node that the client is on decides, whatever address it uses.
            if asker.reaches(3) {
                assert_only(setting.node_port(3, v4), &asker.place, 3, wanted)?;
            }
        }
    }
    // A client outside is led by the node that he came to.
    for v4 in FAMILIES {
        for node in 1..=3 {
            assert_kept(setting.node_port(node, v4), setting.cluster.client(), 6, wanted[node - 1])?;
        }
    }
    Ok(())
}

#[test]
fn rule_traffic_distribution() -> Result<()> {
    let setting = zoned()?;
    zones(&setting)?;
    nodes(&setting)
}

fn zones(setting: &Setting) -> Result<()> {
    setting.publish(&distributed("PreferClose"), &[1, 2, 3])?;
    reach(setting, [&["p1", "p2"], &["p1", "p2"], &["p3"]])?;
    // The far zone has nobody left: any will do.
    setting.publish(&distributed("PreferSameZone"), &[1, 2])?;
    reach(setting, [&["p1", "p2"]; 3])?;
    setting.publish(&distributed("PreferSameZone"), &[2, 3])?;
    reach(setting, [&["p2"], &["p2"], &["p3"]])
}

fn nodes(setting: &Setting) -> Result<()> {
    setting.publish(&distributed("PreferSameNode"), &[1, 2, 3])?;
    reach(setting, [&["p1"], &["p2"], &["p3"]])?;
    // The node has nobody left: its zone, then any.
    setting.publish(&distributed("PreferSameNode"), &[2, 3])?;
    reach(setting, [&["p2"], &["p2"], &["p3"]])?;
    setting.publish(&distributed("PreferSameNode"), &[3])?;
    reach(setting, [&["p3"]; 3])
}
