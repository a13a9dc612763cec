//! The lab wires pods as kubelet would: proven with the reference plugins.

use std::path::Path;
use std::time::Duration;

use heddle_lab::{Ask, Error, Lab, Result, Snapshot, eventually};

const SOON: Duration = Duration::from_secs(20);

const REFERENCE: &str = r#"{ "cniVersion": "0.4.0", "name": "pods", "plugins": [
    { "type": "ptp", "ipam": { "type": "host-local", "routes": [{ "dst": "0.0.0.0/0" }, { "dst": "::/0" }],
      "ranges": [[{ "subnet": "10.244.1.0/24" }], [{ "subnet": "fd00:10:244:1::/64" }]] } },
    { "type": "tuning" } ] }"#;

fn have_reference() -> bool {
    let there = Path::new("/usr/lib/cni/ptp").is_file();
    if !there {
        heddle_lab::skip("the package containernetworking-plugins is not installed");
    }
    there
}

#[test]
fn pods_of_the_reference_plugins_reach_each_other() -> Result<()> {
    if !have_reference() {
        return Ok(());
    }
    let lab = Lab::builder().nodes(1).build()?;
    let node = lab.node(1);
    node.write_conflist(REFERENCE)?;
    node.run("sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1")?;
    let before = Snapshot::of(&lab)?;
    {
        let (one, two) = (node.pod("one")?, node.pod("two")?);
        for pod in [&one, &two] {
            assert_eq!(pod.cni_add()?.ips.len(), 2);
            pod.cni_check()?;
        }
        assert!(node.path(&format!("/var/lib/cni/networks/pods/{}", one.ip4())).exists());
        let _server = two.serve("two", 8080)?;
        for (own, to) in [(one.ip4(), two.ip4()), (one.ip6(), two.ip6())] {
            // The reference plugin does not wait until its IPv6 gateway has an address.
            eventually("an answer", SOON, || {
                let reply = Ask::new((to, 8080)).limit(Duration::from_millis(300)).tcp(&one)?;
                assert_eq!((reply.server.as_str(), reply.client.ip()), ("two", own));
                Ok(true)
            })?;
        }
        one.cni_del()?;
        two.cni_del()?;
        // DEL of what is not there is no error.
        two.cni_del()?;
        assert!(one.result().is_none());
    }
    // host-local remembers what it gave last.
    let files = ["files"];
    before.without(&files).same_as(&Snapshot::of(&lab)?.without(&files))
}

#[test]
fn the_words_of_a_plugin_that_fails_are_shown() -> Result<()> {
    if !have_reference() {
        return Ok(());
    }
    let lab = Lab::builder().nodes(1).build()?;
    let pod = lab.node(1).pod("one")?;
    let none = pod.cni_add().expect_err("there is no configuration");
    assert!(matches!(none, Error::Unsupported(_)), "{none}");
    lab.node(1).write_conflist(&REFERENCE.replace("10.244.1.0/24", "10.244.1.0/32"))?;
    let error = pod.cni_add().expect_err("the range is too small").to_string();
    assert!(error.starts_with("CNI ADD of `ptp` for n1/one: ") && error.contains("too small"), "{error}");
    Ok(())
}
