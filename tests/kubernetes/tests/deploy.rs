//! The objects of deploy/kubernetes before a real API server: the rights that they give and no others.

use std::fs;
use std::path::Path;

use heddle_kubernetes::control_plane::{ControlPlane, Options};
use heddle_kubernetes::kubeconfig::{self, Credentials};
use heddle_kubernetes::{Api, Cluster, Result, deploy};
use heddle_lab::{Capability, Snapshot, eventually};
use serde_json::{Value, json};
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(30);
/// From the start of programs on, on a busy machine.
const START: Duration = Duration::from_secs(120);
const ACCOUNT: &str = "system:serviceaccount:kube-system:heddle";

/// Resource and verbs, as `kubectl auth can-i --list` shows them: all that the account may do beyond what every service
/// account may.
const RIGHTS: &str = "\
endpointslices.discovery.k8s.io [] [] [list watch]
nodes [] [] [get list watch patch]
nodes/status [] [] [patch]
services [] [] [list watch]
";

#[test]
fn the_plain_file_is_what_kubectl_makes_of_the_base() -> Result<()> {
    if let Some(reason) = heddle_kubernetes::programs::missing(&["kubectl"]) {
        heddle_lab::skip(&reason);
        return Ok(());
    }
    let base = deploy::file("base");
    let made = std::process::Command::new(heddle_kubernetes::program("kubectl")?)
        .arg("kustomize")
        .arg(&base)
        .output()
        .expect("kubectl is there");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let plain = fs::read_to_string(deploy::file("heddle.yaml")).expect("it is there");
    assert!(
        plain == String::from_utf8_lossy(&made.stdout),
        "deploy/kubernetes/heddle.yaml is not what the base makes: kubectl kustomize deploy/kubernetes/base > deploy/kubernetes/heddle.yaml"
    );
    Ok(())
}

fn rights(plane: &ControlPlane, account: &str) -> Result<Vec<String>> {
    let list = plane
        .kubectl(&["auth", "can-i", "--list", "--as", account, "-n", "kube-system", "--no-headers"], "")?;
    let mut lines: Vec<String> =
        list.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
    lines.sort();
    Ok(lines)
}

/// A connection as the account, with a token of a pod on `node`, as kubelet asks for it.
fn as_pod_on(plane: &ControlPlane, dir: &Path, node: &str) -> Result<Api> {
    let api = plane.api();
    let name = format!("heddle-{node}");
    api.apply(&json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": { "name": name, "namespace": "kube-system" },
        "spec": {
            "nodeName": node, "serviceAccountName": "heddle", "automountServiceAccountToken": false,
            "containers": [{ "name": "vxland", "image": deploy::IMAGE }],
        },
    }))?;
    let request = json!({
        "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest",
        "spec": {
            "expirationSeconds": 3600,
            "boundObjectRef": { "apiVersion": "v1", "kind": "Pod", "name": name },
        },
    });
    let path = "/api/v1/namespaces/kube-system/serviceaccounts/heddle/token";
    let answer = api.raw("POST", path, Some(&request))?;
    let token = answer["status"]["token"].as_str().unwrap_or_default();
    let file = dir.join(format!("{name}.kubeconfig"));
    let file = kubeconfig::write_to(file, &plane.url(true), &plane.ca(), Credentials::Token(token))?;
    Api::connect(&plane.machine().place, &file)
}

fn code(answer: Result<Value>) -> Option<u16> {
    answer.err().map(|error| error.code().unwrap_or(0))
}

/// One API server for all that is asked of it.
#[test]
fn fault_s19_the_account_may_do_what_it_must_on_its_own_node_and_nothing_else() -> Result<()> {
    if let Some(reason) =
        ControlPlane::missing().or_else(|| heddle_kubernetes::programs::missing(&["kubectl"]))
    {
        heddle_lab::skip(&reason);
        return Ok(());
    }
    let plane = ControlPlane::alone(Options::default())?;
    let (api, dir) = (plane.api(), plane.lab().expect("it is alone").dir().to_owned());
    let plain = deploy::file("heddle.yaml").display().to_string();
    plane.kubectl(&["apply", "-f", &plain], "")?;
    // Nothing is unknown, doubled or out of date in it.
    let said = plane
        .kubectl(&["apply", "--server-side", "--force-conflicts", "--validate=strict", "-f", &plain], "")?;
    assert!(!said.contains("Warning"), "{said}");

    let everybody = rights(&plane, "system:serviceaccount:kube-system:nobody")?;
    let ours = rights(&plane, ACCOUNT)?;
    let more: String =
        ours.iter().filter(|line| !everybody.contains(line)).map(|line| format!("{line}\n")).collect();
    assert_eq!(more, RIGHTS);

    for node in ["n1", "n2"] {
        api.apply(&json!({
            "apiVersion": "v1", "kind": "Node",
            "metadata": { "name": node, "annotations": { "mine": "stays" }, "labels": { "a": "b" } },
            "spec": { "podCIDR": "10.244.1.0/24", "podCIDRs": ["10.244.1.0/24"] },
        }))?;
        let status = json!({ "status": {
            "addresses": [{ "type": "InternalIP", "address": "192.0.2.1" }],
            "conditions": [
                { "type": "Ready", "status": "True" },
                { "type": "NetworkUnavailable", "status": "True", "reason": "x", "message": "y" },
            ],
        }});
        api.patch_status("v1/Node", node, &status)?;
    }
    let pod = as_pod_on(&plane, &dir, "n1")?;
    let annotate =
        json!({ "metadata": { "annotations": { "flannel.alpha.coreos.com/backend-type": "vxlan" } } });
    pod.patch("v1/Node", "n1", &annotate)?;
    // The policy begins some time after it was applied.
    eventually("the policy", LIMIT, || Ok(code(pod.patch("v1/Node", "n2", &annotate)) == Some(422)))
        .map_err(|error| heddle_kubernetes::Error::new("see the policy at work", error))?;
    pod.patch(
        "v1/Node",
        "n1",
        &json!({ "metadata": { "annotations": { "flannel.alpha.coreos.com/public-ip": "192.0.2.1" } } }),
    )?;
    pod.patch(
        "v1/Node",
        "n1",
        &json!({ "metadata": { "annotations": { "flannel.alpha.coreos.com/public-ip": null } } }),
    )?;
    // A merge patch names the whole list.
    let conditions = |ready: &str, network: &str| {
        json!({ "status": { "conditions": [
            { "type": "Ready", "status": ready },
            { "type": "NetworkUnavailable", "status": network, "reason": "HeddleIsUp", "message": "m" },
        ]}})
    };
    pod.patch_status("v1/Node", "n1", &conditions("True", "False"))?;
    let refused = json!([
        { "metadata": { "annotations": { "mine": null } } },
        { "metadata": { "annotations": { "other": "x" } } },
        { "metadata": { "labels": { "node-role.kubernetes.io/control-plane": "" } } },
        { "spec": { "unschedulable": true } },
        { "spec": { "taints": [{ "key": "a", "effect": "NoSchedule" }] } },
    ]);
    for change in refused.as_array().expect("a list") {
        assert_eq!(code(pod.patch("v1/Node", "n1", change)), Some(422), "{change}");
    }
    let lost = json!({ "status": { "conditions": [{ "type": "NetworkUnavailable", "status": "False" }] } });
    for (node, change) in [
        ("n1", conditions("False", "False")),
        ("n1", lost),
        ("n1", json!({ "status": { "addresses": [{ "type": "InternalIP", "address": "192.0.2.9" }] } })),
        ("n1", json!({ "status": { "capacity": { "cpu": "100" } } })),
        ("n2", conditions("True", "False")),
    ] {
        assert_eq!(code(pod.patch_status("v1/Node", node, &change)), Some(422), "{node} {change}");
    }
    let node = api.get("v1/Node", "n1")?.unwrap_or_default();
    assert_eq!(node["metadata"]["annotations"]["mine"], "stays");
    // Nor anything of others.
    for (method, path) in [
        ("GET", "/api/v1/secrets"),
        ("GET", "/api/v1/namespaces/kube-system/configmaps"),
        ("GET", "/api/v1/pods"),
        ("DELETE", "/api/v1/nodes/n1"),
        ("GET", "/api/v1/namespaces/default/services/kubernetes"),
    ] {
        assert_eq!(code(pod.raw(method, path, None)), Some(403), "{method} {path}");
    }
    assert!(pod.list("v1/Service", None, "").is_ok());
    assert!(pod.list("discovery.k8s.io/v1/EndpointSlice", None, "").is_ok());
    // A token that belongs to no pod says of no node that it is its own.
    let file = plane.service_account("kube-system/heddle", &plane.url(true))?;
    let loose = Api::connect(&plane.machine().place, &file)?;
    assert_eq!(code(loose.patch("v1/Node", "n1", &annotate)), Some(422));
    Ok(())
}

/// What the programs of the image run as: capabilities, no_new_privs, seccomp, as the kernel has them.
fn confinement(task: &str) -> Option<[String; 4]> {
    let status = fs::read_to_string(format!("/proc/{task}/status")).ok()?;
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        line.unwrap_or_default().trim().to_owned()
    };
    Some([field("CapPrm:"), field("CapBnd:"), field("NoNewPrivs:"), field("Seccomp:")])
}

/// What of `node` is Heddle's, or was changed by it.
fn traces(cluster: &Cluster) -> Result<(Snapshot, Vec<String>)> {
    let node = cluster.node(1).node();
    let lines = |command: &[&str]| Ok::<_, heddle_kubernetes::Error>(node.run(command)?);
    let mut more: Vec<String> = Vec::new();
    for command in [
        &["ls", "-A", "/opt/cni/bin"][..],
        &["ls", "-A", "/etc/cni/net.d"],
        &[
            "sysctl",
            "-e",
            "net.ipv4.ip_forward",
            "net.ipv6.conf.all.forwarding",
            "net.ipv6.conf.eth0.accept_ra",
        ],
    ] {
        more.extend(lines(command)?.lines().map(|line| format!("{}: {line}", command.join(" "))));
    }
    Ok((Snapshot::of(cluster.lab())?.without(&["tasks", "mounts", "cgroups"]), more))
}

fn file(name: &str) -> String {
    deploy::file(name).display().to_string()
}

/// Runs a script of deploy/vagrant as administrator of the cluster.
fn script(cluster: &Cluster, name: &str, args: &[&str]) -> Result<String> {
    let plane = cluster.plane();
    let path = std::env::var("PATH").unwrap_or_default();
    let cmd = heddle_lab::Cmd::new("sh")
        .arg("-e")
        .arg(deploy::file(&format!("../vagrant/{name}.sh")))
        .args(args.iter().copied())
        .env("PATH", format!("{}:{path}", heddle_kubernetes::programs::dir().display()))
        .env("KUBECONFIG", plane.admin());
    Ok(plane.machine().place.run(cmd)?)
}

/// One node from `kubectl apply` to the last command of the page that tells how to uninstall.
#[test]
fn fault_s17_a_node_runs_on_what_is_shipped_and_nothing_of_it_is_left() -> Result<()> {
    if let Some(reason) = Cluster::missing() {
        heddle_lab::skip(&reason);
        return Ok(());
    }
    let cluster = Cluster::raise_with(1, |lab| Ok(vec![deploy::image(lab)?]))?;
    let (node, api) = (cluster.node(1).node(), cluster.api());
    let before = traces(&cluster)?;
    script(&cluster, "heddle", &[&cluster.plane().url(true), &file("heddle.yaml")])?;
    cluster.await_ready(START)?;
    deploy::await_ready(api, 1, START)?;

    let mut seen = std::collections::BTreeSet::new();
    for line in node.run("find /sys/fs/cgroup -name cgroup.procs -exec cat {} +")?.lines() {
        let comm = fs::read_to_string(format!("/proc/{line}/comm")).unwrap_or_default();
        let program = comm.trim();
        let capabilities = heddle_lab::shipped(program);
        if capabilities.is_empty() {
            continue;
        }
        let mask = format!("{:016x}", Capability::mask(capabilities));
        let filter = "2".to_owned();
        assert_eq!(confinement(line), Some([mask.clone(), mask, "1".to_owned(), filter]), "{program}");
        seen.insert(program.to_owned());
    }
    assert_eq!(seen.into_iter().collect::<Vec<_>>(), ["proxyd", "proxyd-sockets", "vxland"]);
    // What it may write of its own node, it has written.
    let told = |node: Option<&Value>| {
        let Some(node) = node else { return false };
        let condition = |one: &Value| one["type"] == "NetworkUnavailable" && one["status"] == "False";
        node["metadata"]["annotations"]["flannel.alpha.coreos.com/backend-type"] == "vxlan"
            && node["status"]["conditions"].as_array().is_some_and(|all| all.iter().any(condition))
    };
    api.wait("v1/Node", "n1", START, told)?;
    // A pod that comes and goes.
    api.apply(&heddle_kubernetes::pods::pod("web", "web", "n1"))?;
    let ready =
        |pod: Option<&Value>| pod.is_some_and(|pod| heddle_kubernetes::cluster::condition(pod, "Ready"));
    api.wait("v1/Pod", "default/web", START, ready)?;
    api.delete("v1/Pod", "default/web")?;
    // The API server's own service, through proxyd, from a process of the node.
    let answer =
        node.run("curl -sk -m 10 --retry 20 --retry-all-errors --retry-delay 1 https://10.96.0.1/version")?;
    assert!(answer.contains("gitVersion"), "{answer}");

    api.wait("v1/Pod", "default/web", START, |pod| pod.is_none())?;

    script(&cluster, "uninstall", &[&file(".")])?;
    let gone = |pods: &[&Value]| pods.is_empty();
    api.wait_all("v1/Pod", Some("kube-system"), "app.kubernetes.io/name=heddle-uninstall", START, gone)?;
    let after = traces(&cluster)?;
    let mut left = before.0.changes(&after.0);
    left.retain(|line| {
        let others = [
            "/run/containerd",
            "/var/lib/kubelet",
            "/var/lib/containerd",
            "/run/cri-",
            "/var/lib/cni/results",
        ];
        !others.iter().any(|dir| line.contains(dir))
    });
    // What kubelet makes to mount it, empty.
    let directories = ["/run/heddle/", "/var/lib/cni/", "/var/lib/cni/networks/"];
    assert_eq!(left, directories.map(|dir| format!("+ n1 files: {dir}")));
    assert_eq!(before.1, after.1);
    Ok(())
}
