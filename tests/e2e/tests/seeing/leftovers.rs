//! `proxyd kube-proxy`: what another proxy has left is found, told and taken away, and nothing else is. (With the real one,
//! under traffic: tests/kubernetes/tests/moving.)

use heddle_lab::{Cmd, Error, Lab, Place, Result, bin};
use serde_json::{Value, json};

const SERVICE: &str = "KUBE-SVC-ERIFXISQEP7F7OF4";

fn kube_proxy(node: &Place, args: &[&str]) -> Result<Value> {
    let text =
        node.run(Cmd::new(bin("proxyd")).args(["kube-proxy", "-o", "json"]).args(args.iter().copied()))?;
    serde_json::from_str(&text).map_err(|error| Error::Oracle(format!("{error}: {text}")))
}

#[test]
fn leftovers_of_kube_proxy_are_found_and_taken_away() -> Result<()> {
    let lab = Lab::builder().nodes(1).clients(0).build()?;
    let node = lab.node(1).place();
    assert_eq!(kube_proxy(node, &[])?["iptables"], json!({}));
    let others = [
        // The kubelet's, a network policy's, the machine owner's.
        "-t mangle -N KUBE-KUBELET-CANARY",
        "-t nat -N KUBE-MARK-MASQ",
        "-N KUBE-FIREWALL",
        "-A OUTPUT -j KUBE-FIREWALL",
        "-N KUBE-ROUTER-INPUT",
        "-A INPUT -j KUBE-ROUTER-INPUT",
        "-t nat -A POSTROUTING -s 10.9.9.0/24 -j MASQUERADE",
    ];
    for program in ["iptables", "ip6tables"] {
        for rule in &others[..6] {
            node.run(format!("{program} {rule}").as_str())?;
        }
    }
    node.run(format!("iptables {}", others[6]).as_str())?;
    let before = node.run("iptables-save")? + &node.run("ip6tables-save")?;
    for program in ["iptables", "ip6tables"] {
        for rule in [
            "-t nat -N KUBE-SERVICES".to_owned(),
            format!("-t nat -N {SERVICE}"),
            "-t nat -A PREROUTING -m comment --comment kubernetes -j KUBE-SERVICES".into(),
            "-t nat -A OUTPUT -g KUBE-SERVICES".into(),
            format!("-t nat -A KUBE-SERVICES -p tcp --dport 443 -j {SERVICE}"),
            format!("-t nat -A {SERVICE} -j KUBE-MARK-MASQ"),
            "-N KUBE-FORWARD".into(),
            "-A FORWARD -j KUBE-FORWARD".into(),
            "-t mangle -N KUBE-PROXY-CANARY".into(),
        ] {
            node.run(format!("{program} {rule}").as_str())?;
        }
    }
    for family in ["ip", "ip6"] {
        node.run(format!("nft add table {family} kube-proxy").as_str())?;
        node.run(
            Cmd::new("nft")
                .args(["add", "chain", family, "kube-proxy", "nat-prerouting"])
                .arg("{ type nat hook prerouting priority dstnat ; }"),
        )?;
    }
    node.run("ipset create KUBE-CLUSTER-IP hash:ip,port")?;
    node.run("ipset create owners hash:ip")?;
    node.run("iptables -t nat -I KUBE-SERVICES -m set --match-set KUBE-CLUSTER-IP dst,dst -j ACCEPT")?;

    let found = kube_proxy(node, &[])?;
    let chains = json!(["KUBE-SERVICES", SERVICE]);
    assert_eq!(found["running"], Value::Null, "{found}");
    assert_eq!((&found["iptables"]["ip nat"], &found["iptables"]["ip6 nat"]), (&chains, &chains), "{found}");
    assert_eq!(found["iptables"]["ip mangle"], json!(["KUBE-PROXY-CANARY"]), "{found}");
    assert_eq!(found["nft"], json!(["ip kube-proxy", "ip6 kube-proxy"]), "{found}");
    assert_eq!(found["ipsets"], json!(["KUBE-CLUSTER-IP"]), "{found}");
    let doctor = node.output(Cmd::new(bin("proxyd")).arg("doctor"))?;
    assert!(doctor.stdout.contains("it has left") && doctor.stdout.contains("proxyd kube-proxy --remove"));

    let left = kube_proxy(node, &["--remove"])?;
    for what in ["iptables", "nft", "ipsets"] {
        assert!(left[what] == json!({}) || left[what] == json!([]), "{left}");
    }
    let after = node.run("iptables-save")? + &node.run("ip6tables-save")?;
    let rules = |text: &str| {
        text.lines().filter(|line| !line.starts_with('#')).map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(rules(&before), rules(&after), "what is others' is as it was");
    assert_eq!(node.run("ipset list -n")?.trim(), "owners");
    Ok(())
}

/// No netlink reaches it: the commands that are printed do it.
#[test]
fn leftovers_in_the_old_iptables_go_by_the_commands_that_are_printed() -> Result<()> {
    let lab = Lab::builder().nodes(1).clients(0).build()?;
    let node = lab.node(1).place();
    if node.run("iptables-legacy -t nat -N KUBE-MARK-MASQ").is_err() {
        heddle_lab::skip("no iptables-legacy");
        return Ok(());
    }
    let rules = [
        "-N KUBE-SERVICES".to_owned(),
        format!("-N {SERVICE}"),
        "-A PREROUTING -j KUBE-SERVICES".into(),
        format!("-A KUBE-SERVICES -p tcp --dport 443 -j {SERVICE}"),
        "-A POSTROUTING -s 10.9.9.0/24 -j MASQUERADE".into(),
    ];
    for rule in rules {
        node.run(format!("iptables-legacy -t nat {rule}").as_str())?;
    }
    let text = node.run(Cmd::new(bin("proxyd")).arg("kube-proxy"))?;
    let commands: Vec<&str> = text.lines().filter_map(|line| line.trim().strip_prefix("by hand: ")).collect();
    assert_eq!(commands.len(), 1, "{text}");
    node.run(Cmd::new("sh").args(["-c", commands[0]]))?;
    let saved = node.run("iptables-legacy-save -t nat")?;
    assert!(
        saved.contains(":KUBE-MARK-MASQ") && saved.contains("MASQUERADE") && !saved.contains("KUBE-S"),
        "{saved}"
    );
    assert_eq!(kube_proxy(node, &[])?["iptablesLegacy"], json!({}));
    Ok(())
}
