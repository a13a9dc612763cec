//! How the programs are called.

use super::{Component, ControlPlane, POD_RANGES, PORT, SERVICE_RANGES};

/// Who asked for what; not the objects themselves.
pub(super) const AUDIT_POLICY: &str = "\
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules: [{ level: Metadata }]
";

pub(super) fn of(plane: &ControlPlane, component: Component) -> Vec<String> {
    match component {
        Component::Etcd => etcd(plane),
        Component::ApiServer => api_server(plane),
        Component::ControllerManager => controller_manager(plane),
        Component::Scheduler => scheduler(plane),
    }
}

/// A file of the control plane.
fn file(plane: &ControlPlane, name: &str) -> String {
    plane.dir.join(name).display().to_string()
}

/// Nothing survives the test, so nothing is synced to disk. One member elects itself: that need not take a second.
fn etcd(plane: &ControlPlane) -> Vec<String> {
    let client = "http://127.0.0.1:2379";
    let fixed = [
        "--listen-client-urls",
        client,
        "--advertise-client-urls",
        client,
        "--listen-peer-urls=http://127.0.0.1:2380",
        "--unsafe-no-fsync",
        "--heartbeat-interval=20",
        "--election-timeout=200",
        "--log-level=warn",
    ];
    let mut args = vec![format!("--data-dir={}", file(plane, "etcd"))];
    args.extend(fixed.map(str::to_owned));
    args
}

/// Dual-stack; each user has the rights of RBAC and no more, kubelets those of their node.
fn api_server(plane: &ControlPlane) -> Vec<String> {
    let mut args = vec![
        "--etcd-servers=http://127.0.0.1:2379".into(),
        "--bind-address=::".into(),
        format!("--secure-port={PORT}"),
        format!("--advertise-address={}", plane.machine.ip4),
        format!("--tls-cert-file={}", file(plane, "server.crt")),
        format!("--tls-private-key-file={}", file(plane, "server.key")),
        format!("--client-ca-file={}", file(plane, "ca.crt")),
        format!("--kubelet-client-certificate={}", file(plane, "kubelet-client.crt")),
        format!("--kubelet-client-key={}", file(plane, "kubelet-client.key")),
        "--kubelet-preferred-address-types=InternalIP".into(),
        "--service-account-issuer=https://kubernetes.default.svc.cluster.local".into(),
        format!("--service-account-key-file={}", file(plane, "service-accounts.pub")),
        format!("--service-account-signing-key-file={}", file(plane, "service-accounts.key")),
        format!("--service-cluster-ip-range={SERVICE_RANGES}"),
        "--authorization-mode=Node,RBAC".into(),
        "--enable-admission-plugins=NodeRestriction".into(),
        "--allow-privileged=true".into(),
        "--profiling=false".into(),
    ];
    if plane.options.audit {
        args.push(format!("--audit-policy-file={}", file(plane, "audit-policy.yaml")));
        args.push(format!("--audit-log-path={}", plane.audit().display()));
    }
    args.extend(plane.options.api_server.iter().cloned());
    args
}

/// Its own kubeconfig, for what it does and for whom it answers.
fn credentials(plane: &ControlPlane, component: Component) -> Vec<String> {
    let kubeconfig = file(plane, &format!("{}.kubeconfig", component.program()));
    let names = ["kubeconfig", "authentication-kubeconfig", "authorization-kubeconfig"];
    let mut args: Vec<_> = names.iter().map(|name| format!("--{name}={kubeconfig}")).collect();
    args.extend(["--bind-address=127.0.0.1", "--leader-elect=false", "--profiling=false"].map(str::to_owned));
    args
}

fn controller_manager(plane: &ControlPlane) -> Vec<String> {
    let mut args = credentials(plane, Component::ControllerManager);
    args.extend([
        format!("--service-account-private-key-file={}", file(plane, "service-accounts.key")),
        format!("--root-ca-file={}", file(plane, "ca.crt")),
        format!("--cluster-signing-cert-file={}", file(plane, "ca.crt")),
        format!("--cluster-signing-key-file={}", file(plane, "ca.key")),
        "--use-service-account-credentials=true".into(),
        "--allocate-node-cidrs=true".into(),
        format!("--cluster-cidr={POD_RANGES}"),
        format!("--service-cluster-ip-range={SERVICE_RANGES}"),
        "--node-cidr-mask-size-ipv4=24".into(),
        "--node-cidr-mask-size-ipv6=64".into(),
        "--kube-api-qps=200".into(),
        "--kube-api-burst=400".into(),
    ]);
    args.extend(plane.options.controller_manager.iter().cloned());
    args
}

fn scheduler(plane: &ControlPlane) -> Vec<String> {
    let mut args = credentials(plane, Component::Scheduler);
    args.extend(["--kube-api-qps=200".to_owned(), "--kube-api-burst=400".to_owned()]);
    args
}
