//! The objects of deploy/kubernetes before a real API server: the rights that they give and no others.

use std::fs;
use std::path::Path;

use heddle_kubernetes::control_plane::{ControlPlane, Options};
use heddle_kubernetes::kubeconfig::{self, Credentials};
use heddle_kubernetes::{Api, Result, deploy};
use heddle_lab::eventually;
use serde_json::{Value, json};
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(30);
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
    let conditions = |kind: &str, status: &str| {
        let condition = json!({ "type": kind, "status": status, "reason": "HeddleIsUp", "message": "m" });
        // As clients do: a list with a key in it, merged.
        json!({ "status": { "conditions": [condition] } })
    };
    let strategic = |node: &str, change: &Value| {
        let patch = change.to_string();
        let file = dir.join(format!("heddle-{node}.kubeconfig"));
        let kubectl =
            heddle_lab::Cmd::new(heddle_kubernetes::program("kubectl")?).arg("--kubeconfig").arg(&file);
        let line = ["patch", "node", node, "--subresource=status", "--type=strategic", "-p", &patch];
        Ok::<_, heddle_kubernetes::Error>(plane.machine().place.output(kubectl.args(line))?)
    };
    let fine = strategic("n1", &conditions("NetworkUnavailable", "False"))?;
    assert!(fine.status.success(), "{fine:?}");
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
    for (node, change) in [
        ("n1", conditions("Ready", "False")),
        ("n1", json!({ "status": { "addresses": [{ "type": "InternalIP", "address": "192.0.2.9" }] } })),
        ("n1", json!({ "status": { "capacity": { "cpu": "100" } } })),
        ("n2", conditions("NetworkUnavailable", "False")),
    ] {
        let output = strategic(node, &change)?;
        assert!(!output.status.success() && output.stderr.contains("Heddle"), "{node} {change}: {output:?}");
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
