//! What goes wrong between containerd and the plugin, and what is left of it.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Instant;

use heddle_lab::eventually;
use heddle_runtime::{Containerd, Plan, Pod, Result};
use nix::sys::signal::Signal;
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;

use super::bench::{Bench, IDLE, LIMIT, ask, at_once, figure, put_tail};
use super::holders::holders;

/// Forgets a pod, which ends its place and with it our hold on its namespace; keeps the sandbox's id.
fn id_of(pod: Pod) -> String {
    pod.id
}

#[test]
fn fault_055_a_cached_result_of_no_bytes() -> Result<()> {
    let Some(bench) = Bench::start()? else { return Ok(()) };
    let (containerd, node) = (&bench.containerd, bench.lab.node(1));
    let cut = |name| -> Result<String> {
        let id = id_of(bench.pod(&Plan::new(name))?);
        fs::write(node.path(&cached(&id)), "").expect("the runtime caches what the plugin answered");
        Ok(id)
    };
    let mend = |id: &str| fs::remove_file(node.path(&cached(id))).expect("the cached result is still there");

    // containerd 1.6 then calls nobody and says which network it was. Newer ones may call DEL all the same.
    let collected = cut("collected")?;
    if let Err(e) = containerd.stop(&collected) {
        assert!(e.to_string().contains("cached result"), "{e}");
        // GC does not need it, and then the addresses are free; DEL has nothing left to do.
        bench.gc(&[])?;
        assert_eq!(bench.leases()?, Vec::<String>::new());
        mend(&collected);
        containerd.stop(&collected)?;
    }
    containerd.remove(&collected)?;

    // Without the file DEL is called without prevResult, and leaves nothing either.
    let repaired = cut("repaired")?;
    mend(&repaired);
    containerd.stop(&repaired)?;
    containerd.remove(&repaired)?;
    bench.assert_no_leak()
}

/// Where libcni keeps what ADD answered.
fn cached(id: &str) -> String {
    format!("/var/lib/cni/results/heddle-{id}-eth0")
}

#[test]
fn fault_056_a_chained_plugin_missing_or_failing_after_us() -> Result<()> {
    let Some(bench) = Bench::chained()? else { return Ok(()) };
    let containerd = &bench.containerd;
    let good = bench.pod(&Plan::new("good"))?;

    let refused = |name: &str, why: &str| -> Result<String> {
        let error = containerd.run_sandbox(&Plan::new(name)).expect_err("the chain is broken");
        assert!(error.to_string().contains(why), "{error}");
        // containerd asked for DEL, but from the end of the chain: it never came to us. It keeps the sandbox,
        // which is not ready, until kubelet has it removed.
        let known = containerd.sandboxes()?;
        let known = known.iter().find(|one| one.metadata.as_ref().is_some_and(|of| of.name == name));
        Ok(known.expect("containerd knows of it").id.clone())
    };
    fs::remove_file(containerd.plugins().join("tail")).expect("it is there");
    let missing = refused("missing", "failed to find plugin \"tail\"")?;
    put_tail(containerd, Path::new("/bin/false"))?;
    let failing = refused("failing", "netplugin failed")?;
    assert_eq!(bench.leases()?.len(), 6, "two addresses each of `good`, `missing` and `failing`");

    // Either somebody collects, whatever the state of the chain, ...
    containerd.stop(&failing).expect_err("the chain is still broken");
    bench.gc(&[&good.id, &missing])?;
    assert_eq!(bench.leases()?.len(), 4);
    // ... or the chain is repaired, and kubelet's next attempt gets through to us.
    put_tail(containerd, Path::new(IDLE))?;
    for id in [missing, failing] {
        containerd.stop(&id)?;
        containerd.remove(&id)?;
    }
    ask(bench.lab.node(1), &good)?;
    let good = id_of(good);
    assert_eq!(bench.leases()?.len(), 2);
    containerd.stop(&good)?;
    containerd.remove(&good)?;
    bench.assert_no_leak()
}

#[test]
fn fault_057_nothing_holds_a_pods_namespace_after_the_plugin() -> Result<()> {
    let Some(bench) = Bench::start()? else { return Ok(()) };
    let pod = bench.pod(&Plan::new("held"))?;
    let namespace = pod.place.net().inode();
    let held = holders(namespace);
    // Its two containers, and containerd's mount; no plugin that has stayed.
    assert_eq!(held.iter().filter(|holder| holder.ends_with(" inmate is in it")).count(), 2, "{held:#?}");
    let plugin = |holder: &&String| [" heddle ", " loopback "].iter().any(|name| holder.contains(name));
    assert_eq!(held.iter().find(plugin), None);

    let id = id_of(pod);
    bench.containerd.stop(&id)?;
    bench.containerd.remove(&id)?;
    eventually("the end of the pod's namespace", LIMIT, || match holders(namespace) {
        none if none.is_empty() => Ok(true),
        some => Err(heddle_lab::Error::Oracle(some.join(", "))),
    })?;
    bench.assert_no_leak()
}

#[test]
fn fault_058_containerd_killed_between_add_and_its_answer() -> Result<()> {
    let Some(bench) = Bench::chained()? else { return Ok(()) };
    let containerd = &bench.containerd;
    // Behind us in the chain is a plugin that says that it was called, and waits.
    let dir = bench.lab.dir();
    let (gate, calls, tail) = (dir.join("gate"), dir.join("calls"), dir.join("waiting-tail"));
    mkfifo(&gate, Mode::S_IRWXU).expect("the directory is ours");
    let script = format!(
        "#!/bin/sh\n[ $CNI_COMMAND != ADD ] || {{ echo >>{}; read line <{}; }}\nexec {IDLE}\n",
        calls.display(),
        gate.display(),
    );
    fs::write(&tail, script).expect("the directory is ours");
    fs::set_permissions(&tail, fs::Permissions::from_mode(0o755)).expect("the file is ours");
    put_tail(containerd, &tail)?;

    let plans = ["stopped", "collected"].map(Plan::new);
    std::thread::scope(|scope| -> Result<()> {
        let runs: Vec<_> = plans.iter().map(|plan| scope.spawn(|| containerd.run_sandbox(plan))).collect();
        let called = || fs::read(&calls).map_or(0, |calls| calls.len());
        eventually("the chained plugin called for both", LIMIT, || Ok(called() == 2))?;
        containerd.end(Signal::SIGKILL)?;
        for run in runs {
            run.join().expect("it does not panic").expect_err("the connection is cut");
        }
        Ok(())
    })?;
    put_tail(containerd, Path::new(IDLE))?;
    containerd.start_again()?;
    let old = containerd.sandboxes()?;
    let old = |name: &str| {
        let found = old.iter().find(|one| one.metadata.as_ref().is_some_and(|of| of.name == name));
        found.map(|sandbox| sandbox.id.clone())
    };

    // kubelet makes each pod anew: another sandbox, other addresses, while the old ones are still taken.
    let again = at_once(&plans, |plan| bench.pod(&Plan { attempt: 1, ..plan.clone() }))?;
    assert_eq!(bench.leases()?.len(), 8);
    again.iter().try_for_each(|pod| ask(bench.lab.node(1), pod))?;
    // What it finds of the old sandboxes it has stopped and removed, ...
    if let Some(id) = old("stopped") {
        containerd.stop(&id)?;
        containerd.remove(&id)?;
        assert_eq!(bench.leases()?.len(), 6);
    }
    // ... what is not among the living is collected.
    bench.gc(&[&again[0].id, &again[1].id])?;
    assert_eq!(bench.leases()?.len(), 4);
    again.iter().try_for_each(|pod| ask(bench.lab.node(1), pod))?;
    let ids = again.into_iter().map(id_of).chain(old("collected"));
    for id in ids {
        containerd.stop(&id)?;
        containerd.remove(&id)?;
    }
    // Those that wait at the gate have no namespace left to work in.
    drop(fs::OpenOptions::new().read(true).write(true).open(&gate).map(|mut gate| {
        use std::io::Write;
        gate.write_all(b"go\ngo\n").and_then(|()| gate.flush())
    }));
    bench.assert_no_leak()
}

/// As kubelet does. Its next try is for containerd 1.6: killed between the renaming of a snapshot's directory and the
/// commit of its database it finds the directory in its way, once, and removes it.
fn again(containerd: &Containerd, plan: &Plan) -> Result<String> {
    let plan = Plan { attempt: 1, ..plan.clone() };
    match containerd.run_sandbox(&plan) {
        Err(error) if error.to_string().contains("failed to rename") => {
            println!("{}: {error}", plan.name);
            containerd.run_sandbox(&plan)
        }
        other => other,
    }
}

#[test]
fn fault_058_containerd_killed_while_pods_come() -> Result<()> {
    let Some(bench) = Bench::start()? else { return Ok(()) };
    let containerd = &bench.containerd;
    let plans: Vec<_> = (0..12).map(|n| Plan::new(format!("pod-{n}"))).collect();
    std::thread::scope(|scope| -> Result<()> {
        let runs: Vec<_> = plans.iter().map(|plan| scope.spawn(|| containerd.run_sandbox(plan))).collect();
        let enough = || bench.leases().map(|leases| leases.len() >= 6);
        eventually("some of the pods wired", LIMIT, || Ok(enough().unwrap_or(false)))?;
        containerd.end(Signal::SIGKILL)?;
        let up = runs.into_iter().filter_map(|run| run.join().expect("it does not panic").ok()).count();
        println!("{up} of 12 were up when containerd was killed");
        Ok(())
    })?;
    containerd.start_again()?;
    let again = at_once(&plans, |plan| again(containerd, plan))?;
    let again: Vec<_> = again.iter().map(String::as_str).collect();
    let old: Vec<_> = containerd.sandboxes()?.into_iter().map(|sandbox| sandbox.id).collect();
    for id in old.iter().filter(|id| !again.contains(&id.as_str())) {
        containerd.stop(id)?;
        containerd.remove(id)?;
    }
    // Of a sandbox that containerd had not written down nobody knows but us.
    bench.gc(&again)?;
    assert_eq!(bench.leases()?.len(), 24);
    for id in again {
        containerd.stop(id)?;
        containerd.remove(id)?;
    }
    bench.assert_no_leak_of_ours()
}

/// The size of the burst; FAULTS: the 110 pods that kubelet allows on a node.
fn burst() -> usize {
    std::env::var("HEDDLE_BURST").ok().and_then(|size| size.parse().ok()).unwrap_or(110)
}

#[test]
fn fault_059_a_burst_of_pods_and_a_mass_delete() -> Result<()> {
    let Some(bench) = Bench::start()? else { return Ok(()) };
    let containerd = &bench.containerd;
    let plans: Vec<_> = (0..burst()).map(|n| Plan::new(format!("pod-{n}"))).collect();
    let began = Instant::now();
    let ids = at_once(&plans, |plan| containerd.run_sandbox(plan))?;
    figure(&format!("{} pods up", ids.len()), began);
    assert_eq!(bench.leases()?.len(), 2 * ids.len());
    let began = Instant::now();
    at_once(&ids, |id| containerd.stop(id).and_then(|()| containerd.remove(id)))?;
    figure(&format!("{} pods gone", ids.len()), began);
    assert_eq!(bench.leases()?, Vec::<String>::new());
    bench.assert_no_leak()
}
