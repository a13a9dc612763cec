//! Labs one after the other leave this process and the machine as they were. The only test of its file, so
//! that nothing else changes what is counted.

use heddle_lab::{Lab, Pod, Result, Snapshot};

fn round() -> Result<()> {
    let lab = Lab::builder().build()?;
    let pods: Vec<Pod> = lab.nodes().iter().map(|node| node.pod("web")).collect::<Result<_>>()?;
    let _servers: Vec<_> = pods.iter().map(|pod| pod.serve("web", 80)).collect::<Result<_>>()?;
    let _sleeper = lab.node(1).spawn("sleep 1000")?;
    Ok(())
}

#[test]
fn many_labs_leave_the_machine_as_it_was() -> Result<()> {
    round()?;
    let before = Snapshot::of_machine()?;
    for _ in 0..10 {
        round()?;
    }
    before.same_as(&Snapshot::of_machine()?)?;
    Ok(())
}
