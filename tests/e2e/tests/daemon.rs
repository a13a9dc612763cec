//! proxyd as a program: its command line, its files, how it ends, and how it follows its sources. What the
//! packets do is the business of other tests.

use std::time::Duration;

use heddle_e2e::addresses::cluster_ip;
use heddle_e2e::{
    Capability, Cluster, Cmd, Lab, Node, Output, Plan, Proto, Result, Service, bin, eventually, shipped,
};
use serde_json::Value;

const LIMIT: Duration = Duration::from_secs(20);

fn proxyd(node: &Node, args: &str) -> Output {
    node.output(Cmd::new(bin("proxyd")).args(args.split(' ').filter(|arg| !arg.is_empty())))
        .expect("the program is built")
}

fn status(node: &Node) -> Value {
    let output = proxyd(node, "status -o json");
    serde_json::from_str(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
}

/// What the daemon finds wrong: `object: what`.
fn troubles(node: &Node) -> Vec<String> {
    // While a daemon starts, half of what it pins may be there.
    let status: Value = serde_json::from_str(&proxyd(node, "status -o json").stdout).unwrap_or_default();
    let troubles = status["daemon"]["troubles"].as_object().cloned().unwrap_or_default();
    troubles
        .iter()
        .map(|(object, trouble)| format!("{object}: {}", trouble["what"].as_str().unwrap_or("?")))
        .collect()
}

fn frontends(node: &Node) -> Vec<String> {
    let status = status(node);
    let list = status["frontends"].as_array().cloned().unwrap_or_default();
    list.iter().map(|frontend| frontend["name"].as_str().unwrap_or("?").to_owned()).collect()
}

fn service(name: &str, number: u8) -> Service {
    Service::new(name).cluster_ip(cluster_ip(number, true)).port("", Proto::Tcp, 80, 8080)
}

/// One node with proxyd alone.
fn lone() -> Result<Cluster> {
    let plan = Plan { vxland: None, ..Plan::default() };
    Cluster::start_with(Lab::builder().nodes(1).clients(0), plan)
}

#[test]
fn daemon_a_wrong_command_line_ends_with_2_and_says_what_to_do() {
    let lab = Lab::builder().nodes(1).clients(0).build().unwrap();
    let node = lab.node(1);
    let file = lab.dir().join("proxyd.toml");
    let file = file.to_str().unwrap();
    std::fs::write(file, "# mine\nnode-name = 'n1'\nnode_port = 1\n").unwrap();
    let source = format!("--source manifests:{}", lab.dir().display());
    for (args, code, expected) in [
        (String::new(), 2, "--node-name is missing".to_owned()),
        ("--node-name n1".into(), 2, "--source is missing".into()),
        (format!("--config {file} status"), 2, format!("{file}:3: unknown key `node_port`")),
        ("--config /nowhere/x.toml".into(), 2, "cannot read /nowhere/x.toml".into()),
        ("--mode iptables".into(), 2, "possible values: ebpf, ipvs".into()),
        (format!("--node-name n1 {source} --mode ipvs"), 78, "mode ipvs is not built yet".into()),
        (format!("--node-name n1 {source} --cgroup-root {}", lab.dir().display()), 78, "cgroup2".into()),
        ("--version".into(), 0, "proxyd 0.".into()),
        ("status".into(), 0, "nothing is there".into()),
    ] {
        let output = proxyd(node, &args);
        let said = format!("{}{}", output.stdout, output.stderr);
        assert_eq!(output.status.code(), Some(code), "{args}: {said}");
        assert!(said.contains(&expected), "{args}: {said}");
    }
    let variable = node.output(Cmd::new(bin("proxyd")).env("HEDDLE_VNI", "0")).unwrap();
    assert_eq!(variable.status.code(), Some(2));
    assert!(variable.stderr.contains("environment variable HEDDLE_VNI: "), "{}", variable.stderr);
}

#[test]
fn daemon_an_invalid_manifest_is_told_by_line_and_its_services_stand() -> Result<()> {
    let cluster = lone()?;
    let (node, manifests) = (cluster.node(1), cluster.manifests());
    manifests.put("web.yaml", &service("web", 10).to_yaml())?;
    eventually("web", LIMIT, || Ok(frontends(node) == ["default/web:80"]))?;
    assert_eq!(troubles(node), Vec::<String>::new());

    manifests.put("web.yaml", &service("web", 10).to_yaml().replace("port: 80\n", "port: 80000\n"))?;
    let told = |text: &str| Ok(troubles(node).iter().any(|trouble| trouble.contains(text)));
    eventually("the trouble", LIMIT, || told("web.yaml:"))?;
    eventually("what it is", LIMIT, || told("spec.ports[0].port: 80000 is no port (0 to 65535)"))?;
    manifests.put("api.yaml", &service("api", 11).to_yaml())?;
    eventually("both", LIMIT, || Ok(frontends(node) == ["default/web:80", "default/api:80"]))?;

    // Two services want one address: the first by name has it, and the other is told.
    manifests.put("web.yaml", &service("web", 11).to_yaml())?;
    eventually("the conflict", LIMIT, || told("service default/web: frontend 10.96.0.11:80/tcp refused"))?;
    eventually("api alone", LIMIT, || Ok(frontends(node) == ["default/api:80"]))?;
    let text = node.run(Cmd::new(bin("proxyd")).arg("status"))?;
    assert!(text.contains("proxyd runs: ready") && text.contains("TROUBLE"), "{text}");
    manifests.remove("web.yaml")?;
    eventually("no trouble", LIMIT, || Ok(troubles(node).is_empty()))
}

#[test]
fn daemon_sigterm_leaves_the_datapath_and_a_restart_adopts_it() -> Result<()> {
    let mut cluster = lone()?;
    cluster.manifests().put("web.yaml", &service("web", 10).to_yaml())?;
    cluster.manifests().put("old.yaml", &service("old", 11).to_yaml())?;
    eventually("services", LIMIT, || Ok(frontends(cluster.node(1)).len() == 2))?;
    let refused = proxyd(cluster.node(1), "cleanup");
    assert_eq!(refused.status.code(), Some(2), "{refused:?}");
    assert!(refused.stderr.contains("stop it first"), "{refused:?}");

    cluster.stop_daemon(1, "proxyd")?;
    let node = cluster.node(1);
    assert!(!node.path("/run/heddle/proxyd.ready").exists());
    let said = status(node);
    assert!(said["daemon"].is_null(), "{said}");
    assert_eq!(frontends(node), ["default/web:80", "default/old:80"]);
    // Their programs may be newer.
    let hooks = |node: &Node| {
        let hooks = status(node)["hooks"].as_array().cloned().unwrap_or_default();
        hooks
            .iter()
            .map(|hook| format!("{} {} {}", hook["program"], hook["at"], hook["dead"]))
            .collect::<Vec<_>>()
    };
    let before = hooks(node);

    // Gone while nobody looked; and a file that is broken when the daemon starts.
    cluster.manifests().remove("old.yaml")?;
    cluster.manifests().put("broken.yaml", "kind: [")?;
    let daemon = cluster.lab().start_daemon(node, "proxyd", &["--mode", "ebpf"])?;
    let told = |text: &str| Ok(troubles(node).iter().any(|trouble| trouble.contains(text)));
    eventually("the trouble", LIMIT, || told("broken.yaml:"))?;
    assert_eq!(frontends(node), ["default/web:80", "default/old:80"], "it may have been in the broken file");
    cluster.manifests().remove("broken.yaml")?;
    eventually("the rest", LIMIT, || Ok(frontends(node) == ["default/web:80"]))?;
    assert_eq!(hooks(node), before, "the hooks that were there are the hooks that are there");
    eventually("ready", LIMIT, || Ok(node.path("/run/heddle/proxyd.ready").exists()))?;

    // The next one waits for its turn.
    let second = cluster.lab().start_daemon(node, "proxyd", &["--mode", "ebpf", "--log-format", "json"])?;
    eventually("it waits", LIMIT, || Ok(second.log().contains("waiting for it to end")))?;
    let line: Value = serde_json::from_str(second.log().lines().next().unwrap()).unwrap();
    assert_eq!(line["level"], "INFO", "{line}");
    assert_eq!(daemon.terminate(LIMIT)?.code(), Some(0), "{}", daemon.log());
    eventually("its turn", LIMIT, || Ok(second.log().contains("\"ready\"")))?;
    assert!(second.terminate(LIMIT)?.success());
    let done = proxyd(node, "cleanup -o json");
    assert!(done.status.success() && done.stdout.contains("true"), "{done:?}");
    assert!(status(node)["mode"].is_null());
    Ok(())
}

#[test]
fn daemon_an_unknown_node_is_told_and_served_when_it_is_known() -> Result<()> {
    let lab = Lab::builder().nodes(1).clients(0).build()?;
    let node = lab.node(1);
    lab.manifests().put("web.yaml", &service("web", 10).to_yaml())?;
    let daemon = lab.start_daemon(node, "proxyd", &["--mode", "ebpf"])?;
    let trouble = "devices: the sources name no usable address of this node (is --node-name right?";
    eventually("the trouble", LIMIT, || Ok(troubles(node).iter().any(|told| told.starts_with(trouble))))?;
    assert!(!node.path("/run/heddle/proxyd.ready").exists());
    lab.manifests().node(node)?;
    eventually("ready", LIMIT, || Ok(node.path("/run/heddle/proxyd.ready").exists()))?;
    assert_eq!(troubles(node), Vec::<String>::new());
    daemon.terminate(LIMIT)?;
    proxyd(node, "cleanup");
    Ok(())
}

#[test]
fn daemon_a_vxlan_device_that_comes_later_is_hooked_when_it_comes() -> Result<()> {
    let plan = Plan { vxland: None, ..Plan::default() };
    let cluster = Cluster::start_with(Lab::builder().nodes(1).clients(0), plan)?;
    let node = cluster.node(1);
    let hooked = || {
        let hooks = status(node)["hooks"].as_array().cloned().unwrap_or_default();
        hooks
            .iter()
            .any(|hook| hook["program"] == "overlay_in" && hook["at"] == "heddle.1" && hook["dead"] == false)
    };
    assert!(!hooked());
    let vxland = cluster.lab().start_vxland(node, &[])?;
    // By the event, long before the regular pass.
    eventually("the hook", Duration::from_secs(2), || Ok(hooked()))?;
    vxland.terminate(LIMIT)?;
    node.run("ip link del heddle.1")?;
    node.run("ip link add heddle.1 type vxlan id 1 dstport 8472 dev eth0")?;
    eventually("the hook of the new device", Duration::from_secs(2), || Ok(hooked()))
}

/// FAULT S17: as they run in every test, so they are shipped.
#[test]
fn fault_s17_daemons_have_the_rights_that_they_are_shipped_with_and_no_others() -> Result<()> {
    let cluster = Cluster::start(Lab::builder().nodes(1).clients(0))?;
    for program in ["vxland", "proxyd"] {
        let pid = cluster.daemon(1, program).expect("it runs").pid();
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
        let field =
            |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or("?").trim();
        let mask = format!("{:016x}", Capability::mask(shipped(program)));
        for set in ["CapPrm:", "CapEff:", "CapBnd:"] {
            assert_eq!(field(set), mask, "{program} {set}");
        }
        let none = "0000000000000000";
        assert_eq!(
            (field("CapInh:"), field("CapAmb:"), field("NoNewPrivs:")),
            (none, none, "1"),
            "{program}"
        );
    }
    let deploy = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy");
    let read = |name: &str| std::fs::read_to_string(deploy.join(name)).expect("it is there");
    let manifest = read("kubernetes/base/daemonset.yaml");
    for program in ["vxland", "proxyd", "proxyd-sockets"] {
        let set = shipped(program);
        let names: Vec<_> = set.iter().map(|one| one.name()).collect();
        let container =
            manifest.split("\n        - name: ").find(|part| part.starts_with(&format!("{program}\n")));
        let container = container.unwrap_or_else(|| panic!("no container {program}"));
        for line in [format!("add: [{}]", names.join(", ")), "drop: [ALL]".into()] {
            assert!(container.contains(&line), "{program}: {line}");
        }
        for line in ["allowPrivilegeEscalation: false", "readOnlyRootFilesystem: true"] {
            assert!(container.contains(line), "{program}: {line}");
        }
        let unit = read(&format!("systemd/{program}.service"));
        let names: Vec<_> = set.iter().map(|one| format!("CAP_{}", one.name())).collect();
        let line = format!("\nCapabilityBoundingSet={}\n", names.join(" "));
        assert!(unit.contains(&line) && unit.contains("\nNoNewPrivileges=yes\n"), "{program}: {line}");
    }
    Ok(())
}
