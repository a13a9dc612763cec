//! The control plane by itself: it stands within seconds, keeps what it was given, and gives nobody more than RBAC does.

use std::time::{Duration, Instant};

use heddle_kubernetes::control_plane::{Component, ControlPlane, Options};
use heddle_kubernetes::{Api, Result, kubeconfig};
use serde_json::json;

const LIMIT: Duration = Duration::from_secs(30);

#[test]
fn the_api_server_keeps_objects_through_kills() -> Result<()> {
    if let Some(reason) = ControlPlane::missing() {
        heddle_lab::skip(&reason);
        return Ok(());
    }
    let started = Instant::now();
    let plane = ControlPlane::alone(Options::default())?;
    println!("raised in {:?}", started.elapsed());
    let api = plane.api();
    let service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": { "name": "web", "namespace": "default" },
        "spec": { "ipFamilyPolicy": "RequireDualStack", "ports": [{ "port": 80 }], "selector": { "app": "web" } },
    });
    let made = api.apply(&service)?;
    let addresses = made["spec"]["clusterIPs"].as_array().map(Vec::len);
    assert_eq!(addresses, Some(2), "{made}");
    api.patch("v1/Service", "default/web", &json!({ "metadata": { "labels": { "seen": "yes" } } }))?;
    let labelled = api.list("v1/Service", Some("default"), "seen=yes")?;
    assert_eq!(labelled.len(), 1, "{labelled:?}");

    for component in [Component::ApiServer, Component::Etcd] {
        let started = Instant::now();
        plane.kill(component);
        assert!(!plane.is_running(component));
        plane.start(component)?;
        println!("{} is back in {:?}", component.program(), started.elapsed());
        assert!(api.get("v1/Service", "default/web")?.is_some());
    }
    api.delete("v1/Service", "default/web")?;
    api.wait("v1/Service", "default/web", LIMIT, |web| web.is_none())?;

    // A service account has the rights that it was given.
    let account = json!({
        "apiVersion": "v1", "kind": "ServiceAccount", "metadata": { "name": "reader", "namespace": "default" },
    });
    api.apply(&account)?;
    let file = plane.service_account("default/reader", &plane.url(true))?;
    let reader = Api::connect(&plane.machine().place, &file)?;
    assert_eq!(reader.list("v1/Service", None, "").unwrap_err().code(), Some(403));
    api.apply(&json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": { "name": "reader" },
        "rules": [{ "apiGroups": [""], "resources": ["services"], "verbs": ["list"] }],
    }))?;
    api.apply(&json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": { "name": "reader" },
        "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "reader" },
        "subjects": [{ "kind": "ServiceAccount", "name": "reader", "namespace": "default" }],
    }))?;
    heddle_lab::eventually("rights that were given", LIMIT, || {
        Ok(reader.list("v1/Service", None, "").is_ok())
    })?;
    assert_eq!(reader.list("v1/Node", None, "").unwrap_err().code(), Some(403));

    // Nobody is let in by a certificate of another authority.
    let foreign = plane.machine().place.path("/run/foreign");
    std::fs::create_dir(&foreign).unwrap();
    let authority = heddle_kubernetes::pki::Authority::new(&foreign)?;
    let pair = authority.issue("admin", "admin", Some("system:masters"), &[])?;
    let credentials = kubeconfig::Credentials::Pair(&pair);
    let file = kubeconfig::write_to(foreign.join("kubeconfig"), &plane.url(false), &plane.ca(), credentials)?;
    let stranger = Api::connect(&plane.machine().place, &file)?;
    assert_eq!(stranger.list("v1/Service", None, "").unwrap_err().code(), Some(401));
    Ok(())
}
