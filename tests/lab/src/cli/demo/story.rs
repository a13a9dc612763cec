//! What the demo does, step by step.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use heddle_lab::{Builder, Cmd, Error, Place, Snapshot, addresses::cluster_ip, bin, eventually};

use super::curl::{CurlLoop, Tally, all_more, curl, url};
use super::show::Show;
use super::stage::{NODE_PORT, POD_PORT, Stage};

/// How long a change may take to reach every node.
const SOON: Duration = Duration::from_secs(30);
const FAMILIES: [(bool, &str); 2] = [(true, "IPv4"), (false, "IPv6")];

pub fn tell(show: &mut Show, lab: Builder) -> Result<()> {
    show.step("raise 3 nodes, an outside client and the switch between them");
    let lab = lab.build().context("cannot raise the lab")?;
    for node in lab.nodes() {
        show.say(format!("{}      {}  {}", node.name(), node.ip4(), node.ip6()));
    }
    show.say(format!("client  {}  {}", lab.client().ip(true), lab.client().ip(false)));
    let before = Snapshot::of(&lab)?;

    show.step("start vxland and proxyd on every node");
    let begun = Instant::now();
    let mut stage = Stage::raise(lab).context("cannot start the daemons")?;
    show.check(format!("all six are ready after {:.1} s", begun.elapsed().as_secs_f32()), true);

    let told = first_hour(show, &mut stage);
    if told.is_err() || show.has_failed() {
        for (name, log) in stage.cluster.logs() {
            println!("\n---- {name}\n{log}");
        }
    }
    told?;
    end(show, stage, &before)
}

fn first_hour(show: &mut Show, stage: &mut Stage) -> Result<()> {
    pods(show, stage)?;
    service(show, stage)?;
    published_port(show, stage)?;
    scale(show, stage)?;
    cut(show, stage)?;
    kill_proxyd(show, stage)
}

fn pods(show: &mut Show, stage: &mut Stage) -> Result<()> {
    show.step("wire two pods on every node with the CNI plugin, as kubelet would");
    let pods = [(1, "web-1"), (1, "shell-1"), (2, "web-2"), (2, "web-3"), (3, "shell-2"), (3, "shell-3")];
    for (node, name) in pods {
        let begun = Instant::now();
        stage.add(node, name).with_context(|| format!("cannot wire {name}"))?;
        let took = begun.elapsed().as_secs_f32() * 1000.0;
        let pod = stage.pod(name)?.pod();
        let what = format!("{name:<8} on n{node}  {:<11} {:<21} in {took:.0} ms", pod.ip4(), pod.ip6());
        show.check(what, true);
    }
    show.step("pod to pod: curl, both families");
    let talks =
        [("web-1", "shell-1", "the same node"), ("web-2", "web-3", "the same node")].into_iter().chain([
            ("shell-2", "web-1", "n3 to n1"),
            ("web-1", "web-2", "n1 to n2"),
            ("web-3", "shell-3", "n2 to n3"),
        ]);
    for (from, to, way) in talks {
        for (v4, family) in FAMILIES {
            let (client, server) = (stage.pod(from)?.pod(), stage.pod(to)?.pod());
            let (own, to_ip) = (client.ip(v4), server.ip(v4).context("a pod lacks an address")?);
            let answer = curl(client, &url(to_ip, POD_PORT));
            let right = |(name, seen): &(String, _)| name == to && Some(*seen) == own;
            match answer {
                Ok(answer) => show.check(
                    format!("{from} -> {to} ({way}, {family}): {} answered, saw {}", answer.0, answer.1),
                    right(&answer),
                ),
                Err(error) => show.check(format!("{from} -> {to} ({way}, {family}): {error:#}"), false),
            };
        }
    }
    overlay_only(show, stage)
}

/// What the switch has seen of packets that are neither from nor to nodes and clients.
fn overlay_only(show: &mut Show, stage: &Stage) -> Result<()> {
    let switch = stage.cluster.switch();
    let foreign = switch.foreign()?;
    show.check(format!("packets that went around the overlay: {foreign}"), foreign == 0);
    for pair in switch.foreigners()? {
        show.say(pair);
    }
    Ok(())
}

/// Waits until `curl` is answered: the first sign that a change has arrived.
fn await_answer(place: &Place, url: &str) -> Result<()> {
    let asked = || curl(place, url).map_err(|error| Error::Oracle(format!("{error:#}")));
    Ok(eventually(&format!("an answer of {url}"), SOON, || asked().map(|_| true))?)
}

/// Waits until `proxyd status` on node `node` shows it.
fn await_status(stage: &Stage, node: usize, shown: impl Fn(&str) -> bool) -> Result<()> {
    let node = stage.cluster.node(node);
    Ok(eventually(&format!("a change in `proxyd status` of {}", node.name()), SOON, || {
        Ok(shown(&node.run(Cmd::new(bin("proxyd")).arg("status"))?))
    })?)
}

fn service(show: &mut Show, stage: &Stage) -> Result<()> {
    show.step("publish the service `web`, three backends: web-1 on n1, web-2 and web-3 on n2, none on n3");
    stage.scale(&["web-1", "web-2", "web-3"], &[], &[])?;
    stage.publish()?;
    let begun = Instant::now();
    // A pod that asks before that sends its question to the default route, as anywhere.
    for node in stage.cluster.nodes() {
        let addresses = FAMILIES.map(|(v4, _)| cluster_ip(10, v4).to_string());
        await_status(stage, node.index(), |status| addresses.iter().all(|address| status.contains(address)))?;
    }
    show.say(format!("on every node after {:.1} s", begun.elapsed().as_secs_f32()));
    let status = stage.cluster.node(3).run(Cmd::new(bin("proxyd")).arg("status"))?;
    show.say("n3# proxyd status");
    status
        .lines()
        .skip_while(|line| !line.starts_with("FRONTEND"))
        .take_while(|line| !line.is_empty())
        .for_each(|line| show.say(line));
    for from in ["shell-1", "web-2", "shell-2"] {
        for (v4, family) in FAMILIES {
            let (place, vip) = (stage.place(from)?, cluster_ip(10, v4));
            let to = url(vip, 80);
            await_answer(place, &to)?;
            let mut tally = Tally::default();
            for _ in 0..20 {
                tally.add(curl(place, &to), None);
            }
            let all = tally.is_from(&["web-1", "web-2", "web-3"]) && tally.failures.is_empty();
            show.check(format!("{from} -> {vip} ({family}) 20 times: {tally}"), all);
        }
    }
    Ok(())
}

fn published_port(show: &mut Show, stage: &Stage) -> Result<()> {
    show.step("the published port, from outside, 20 times through each address of each node");
    let client = stage.cluster.client();
    for node in stage.cluster.nodes() {
        let mut seen = BTreeSet::new();
        for (v4, family) in FAMILIES {
            let to = url(node.ip(v4), NODE_PORT);
            await_answer(client, &to)?;
            let mut tally = Tally::default();
            for _ in 0..20 {
                tally.add(curl(client, &to), Some(client.ip(v4)));
            }
            seen.extend(tally.by_backend.keys().cloned());
            let whole = tally.answers() == 20 && tally.strange.is_empty();
            let what = format!("through {} ({family}): {tally}, all saw {}", node.name(), client.ip(v4));
            show.check(what, whole);
        }
        let all = seen.iter().map(String::as_str).eq(["web-1", "web-2", "web-3"]);
        show.check(format!("through {}: every backend has answered", node.name()), all);
    }
    Ok(())
}

/// Curl loops that run while things change: from outside through n3 and n1, from pods to the ClusterIP.
fn loops(stage: &Stage) -> Result<Vec<CurlLoop>> {
    let (client, nodes) = (stage.cluster.client(), stage.cluster.nodes());
    let outside = |name: &str, node: usize, v4: bool| {
        let to = url(nodes[node - 1].ip(v4), NODE_PORT);
        CurlLoop::start(name, client.place(), to, Some(client.ip(v4)))
    };
    let inside = |name: &str, pod: &str, v4: bool| -> Result<CurlLoop> {
        Ok(CurlLoop::start(name, stage.place(pod)?, url(cluster_ip(10, v4), 80), None))
    };
    Ok(vec![
        outside("outside -> n3", 3, true),
        outside("outside -> n1 (IPv6)", 1, false),
        inside("shell-1 -> ClusterIP", "shell-1", true)?,
        inside("shell-3 -> ClusterIP (IPv6)", "shell-3", false)?,
    ])
}

fn judge(show: &mut Show, loops: &[CurlLoop], meanwhile: &str) {
    for each in loops {
        let tally = each.take();
        let whole = tally.answers() > 0 && tally.failures.is_empty() && tally.strange.is_empty();
        show.check(format!("{}, {meanwhile}: {tally}", each.name()), whole);
    }
}

fn scale(show: &mut Show, stage: &mut Stage) -> Result<()> {
    show.step("scale 3 -> 5 -> 2 while curl runs, from outside and from pods");
    let loops = loops(stage)?;
    all_more(&loops, 10)?;
    stage.add(1, "web-4")?;
    stage.add(3, "web-5")?;
    let five = ["web-1", "web-2", "web-3", "web-4", "web-5"];
    stage.scale(&five, &[], &[])?;
    for each in &loops {
        let settled = each.settles_on(&five, 10);
        let took = settled.as_ref().map(|took| format!(" within {:.1} s", took.as_secs_f32()));
        let what = format!("{}: all five answer{}", each.name(), took.unwrap_or_default());
        show.worked(what, settled);
    }
    judge(show, &loops, "3 -> 5");
    // As Kubernetes does it: the leaving ones take no new connections, then end, then are forgotten.
    let two = ["web-1", "web-2"];
    stage.scale(&two, &five[2..], &[])?;
    for each in &loops {
        let settled = each.settles_on(&two, 10);
        show.worked(format!("{}: only web-1 and web-2 answer", each.name()), settled);
    }
    for name in &five[2..] {
        stage.delete(name).with_context(|| format!("cannot end {name}"))?;
    }
    stage.scale(&two, &[], &[])?;
    all_more(&loops, 10)?;
    judge(show, &loops, "5 -> 2");
    Ok(())
}

fn cut(show: &mut Show, stage: &Stage) -> Result<()> {
    show.step("cut the link of n2, where web-2 runs, and bring it back");
    let (client, switch) = (stage.cluster.client(), stage.cluster.switch());
    switch.cut("n2")?;
    let to_n2 = url(stage.cluster.node(2).ip4(), NODE_PORT);
    let dead = client.output(["curl", "-sS", "--max-time", "1", to_n2.as_str()])?;
    show.check("n2 does not answer", !dead.status.success());
    show.say("the cluster notices and takes web-2 out");
    stage.scale(&["web-1"], &[], &["web-2"])?;
    let gone = stage.pod("web-2")?.pod().ip4().to_string();
    for node in [1, 3] {
        await_status(stage, node, |status| {
            !status.lines().any(|line| line.contains(&gone) && line.contains(" active "))
        })?;
    }
    let through = [("n1", 1, true), ("n3", 3, true), ("n3 (IPv6)", 3, false)];
    for (name, node, v4) in through {
        let to = url(stage.cluster.node(node).ip(v4), NODE_PORT);
        let each = CurlLoop::start(name, client.place(), to, Some(client.ip(v4)));
        each.settles_on(&["web-1"], 5)?;
        each.take();
        each.more(20)?;
        let tally = each.take();
        let right = tally.is_from(&["web-1"]) && tally.failures.is_empty() && tally.strange.is_empty();
        show.check(format!("through {name}: {tally}"), right);
    }
    let begun = Instant::now();
    switch.restore("n2")?;
    stage.scale(&["web-1", "web-2"], &[], &[])?;
    for (name, node, v4) in [("n2", 2, true), ("n3", 3, true), ("n2 (IPv6)", 2, false)] {
        let to = url(stage.cluster.node(node).ip(v4), NODE_PORT);
        await_answer(client, &to)?;
        let each = CurlLoop::start(name, client.place(), to, Some(client.ip(v4)));
        let settled = each.settles_on(&["web-1", "web-2"], 10);
        let took = begun.elapsed().as_secs_f32();
        show.worked(format!("the link is back, through {name}: both answer, {took:.1} s later"), settled);
    }
    Ok(())
}

fn kill_proxyd(show: &mut Show, stage: &mut Stage) -> Result<()> {
    show.step("kill proxyd with SIGKILL on every node, under load, and start it again");
    let loops = loops(stage)?;
    all_more(&loops, 10)?;
    loops.iter().for_each(|each| drop(each.take()));
    for node in 1..=3 {
        stage.cluster.kill_daemon(node, "proxyd");
    }
    all_more(&loops, 30)?;
    judge(show, &loops, "no proxyd runs");
    let begun = Instant::now();
    stage.cluster.start_everywhere("proxyd")?;
    show.say(format!("all three are ready again after {:.1} s", begun.elapsed().as_secs_f32()));
    all_more(&loops, 30)?;
    judge(show, &loops, "proxyd is back");
    stage.add(3, "web-6")?;
    let three = ["web-1", "web-2", "web-6"];
    stage.scale(&three, &[], &[])?;
    for each in &loops {
        let settled = each.settles_on(&three, 10);
        show.worked(format!("{}: a new backend is taken up", each.name()), settled);
    }
    judge(show, &loops, "2 -> 3");
    Ok(())
}

/// What may stay: directories, lock files (`turns` is one), and the note which address was given last, so that it is not
/// given again at once. A lease has the name of an address.
fn stays(change: &str) -> bool {
    let path = change.split_once(" files: ").map(|(_, path)| path).unwrap_or_default();
    let ours = ["/run/heddle/", "/var/lib/heddle/", "/var/lib/cni/"].iter().any(|dir| path.starts_with(dir));
    let name = path.rsplit('/').next().unwrap_or_default();
    ours && (name.is_empty()
        || name.ends_with("lock")
        || ["last_reserved_ip", "boot", "turns"].iter().any(|n| name.starts_with(n)))
}

fn end(show: &mut Show, mut stage: Stage, before: &Snapshot) -> Result<()> {
    show.step("end: pods deleted, daemons stopped, `vxland cleanup`, `proxyd cleanup`");
    overlay_only(show, &stage)?;
    for name in stage.names() {
        stage.delete(&name).with_context(|| format!("cannot end {name}"))?;
    }
    for node in 1..=3 {
        for program in ["proxyd", "vxland"] {
            stage.cluster.stop_daemon(node, program)?;
            let command = Cmd::new(bin(program)).arg("cleanup");
            stage.cluster.node(node).run(command)?;
        }
    }
    let mut changes = before.changes(&Snapshot::of(&stage.cluster)?);
    changes.retain(|change| !stays(change));
    for change in changes.iter().take(20) {
        show.say(change);
    }
    show.check("the nodes are as they were before", changes.is_empty());
    let dir = stage.cluster.dir().to_owned();
    let cgroup = stage.cluster.node(1).cgroup().path().to_owned();
    drop(stage);
    show.check("the lab is gone", !dir.exists() && !cgroup.exists());
    if dir.exists() {
        bail!("{} is still there", dir.display());
    }
    Ok(())
}
