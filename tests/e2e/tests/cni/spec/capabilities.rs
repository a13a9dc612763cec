//! What the runtime asks for one pod: `runtimeConfig`, `args.cni`, `CNI_ARGS`.

use std::process::Command;

use heddle_netlink::{DisplayMac, link};
use serde_json::{Value, json};

use super::super::bench::{Answer, Host, Pod};

fn mac_of(pod: &Pod) -> String {
    DisplayMac(link::by_name(&mut pod.socket(), "eth0").unwrap().unwrap().mac.unwrap()).to_string()
}

fn ping(pod: &Pod, to: &str) {
    let mut ping = Command::new("ping");
    ping.args(["-c1", "-W5", to]);
    let output = pod.ns.run(|| ping.output()).unwrap().unwrap();
    assert!(output.status.success(), "{to}: {output:?}");
}

/// With `CNI_ARGS`.
fn call(host: &Host, pod: &Pod, command: &str, args: &str, conf: &Value) -> Answer {
    let mut variables = Host::variables(pod, command);
    variables.push(("CNI_ARGS".into(), args.into()));
    host.raw(&variables, conf.to_string().as_bytes())
}

/// Both modes, with a gateway that can be pinged.
fn confs(host: &Host) -> [Value; 2] {
    let mut bridge = host.conf();
    bridge["name"] = json!("lan");
    bridge["mode"] = json!("bridge");
    bridge["isGateway"] = json!(true);
    bridge["ipam"]["ranges"] = json!([[{"subnet": "10.9.0.0/24"}]]);
    bridge["ipam"]["routes"] = json!([]);
    [host.conf(), bridge]
}

#[test]
fn the_ethernet_address_that_is_asked_for() {
    let host = Host::new();
    for (n, conf) in confs(&host).into_iter().enumerate() {
        let (gateway, plain) = (["10.244.1.1", "10.9.0.1"][n], conf.clone());
        let pod = Pod::new(&format!("pod-{n}"));
        let mut asked = conf.clone();
        asked["runtimeConfig"] = json!({"mac": "02:11:22:33:44:0a"});
        asked["args"] = json!({"cni": {"mac": "02:11:22:33:44:0b"}});
        // The capability counts more than args.cni, and that more than CNI_ARGS.
        let mut args = conf.clone();
        args["args"] = asked["args"].clone();
        let third = "MAC=02:11:22:33:44:0c";
        for (conf, wanted) in [(&asked, "0a"), (&args, "0b"), (&conf, "0c")] {
            let wanted = format!("02:11:22:33:44:{wanted}");
            let answer = call(&host, &pod, "ADD", third, conf);
            assert!(answer.success, "{answer:?}");
            let interfaces = answer.json["interfaces"].as_array().unwrap();
            assert_eq!(interfaces.last().unwrap()["mac"], json!(wanted));
            assert_eq!(mac_of(&pod), wanted);
            ping(&pod, gateway);
            let mut checked = conf.clone();
            checked["prevResult"] = answer.json;
            let whole = call(&host, &pod, "CHECK", third, &checked);
            assert!(whole.success, "{whole:?}");
            // Whoever calls DEL need not know.
            host.del(&pod, &plain);
            assert!(link::by_name(&mut pod.socket(), "eth0").unwrap().is_none());
        }
        for wrong in ["x", "ff:ff:ff:ff:ff:ff", "00:00:00:00:00:00"] {
            asked["runtimeConfig"]["mac"] = json!(wrong);
            assert_eq!(host.call(&pod, "ADD", &asked).code(), 7, "{wrong}");
            assert_eq!(call(&host, &pod, "ADD", &format!("MAC={wrong}"), &conf).code(), 4, "{wrong}");
        }
    }
}

#[test]
fn addresses_and_ranges_that_are_asked_for() {
    let host = Host::new();
    let with = |asked: Value| {
        let mut conf = host.conf();
        conf["runtimeConfig"] = asked;
        conf
    };
    let pod = Pod::new("abc");
    let conf = with(json!({"ips": ["10.244.1.40/24", "fd00:10:244:1::40"]}));
    assert_eq!(host.add(&pod, &conf).ips(), ["10.244.1.40", "fd00:10:244:1::40"]);
    let other = Pod::new("other");
    let taken = host.call(&other, "ADD", &conf);
    assert!(taken.code() == 7 && taken.msg().contains("10.244.1.40"), "{taken:?}");
    host.del(&pod, &conf);

    let both = call(&host, &other, "ADD", "IP=10.244.1.41,fd00:10:244:1::41", &host.conf());
    assert_eq!(both.ips(), ["10.244.1.41", "fd00:10:244:1::41"]);
    host.del(&other, &host.conf());

    // The runtime's ranges come before those of the configuration; two of a family are two addresses.
    let mut conf = with(json!({"ipRanges": [[{"subnet": "10.55.0.0/24"}]]}));
    assert_eq!(host.add(&pod, &conf).ips(), ["10.55.0.2", "10.244.1.2", "fd00:10:244:1::2"]);
    ping(&pod, "10.55.0.1");
    ping(&pod, "10.244.1.1");
    host.del(&pod, &conf);
    conf["ipam"].as_object_mut().unwrap().remove("ranges");
    conf["ipam"]["routes"] = json!([]);
    assert_eq!(host.add(&pod, &conf).ips(), ["10.55.0.3"]);
    host.del(&pod, &conf);
}

#[test]
fn names_that_are_asked_for_and_capabilities_that_are_nobodys() {
    let (host, pod) = (Host::new(), Pod::new("abc"));
    let mut conf = host.conf();
    conf["dns"] = json!({"nameservers": ["10.0.0.53"], "domain": "of.the.network"});
    conf["capabilities"] = json!({"dns": true, "cgroupPath": true});
    assert_eq!(host.add(&pod, &conf).json["dns"], conf["dns"]);
    host.del(&pod, &conf);
    conf["runtimeConfig"] = json!({
        "cgroupPath": "/kubepods/burstable/x",
        "dns": {"servers": ["10.96.0.10"], "searches": ["svc.cluster.local"], "options": ["ndots:5"]}
    });
    let asked =
        json!({"nameservers": ["10.96.0.10"], "search": ["svc.cluster.local"], "options": ["ndots:5"]});
    assert_eq!(host.add(&pod, &conf).json["dns"], asked);
    host.del(&pod, &conf);
    for (key, value) in
        [("deviceID", json!("0000:00:1f.6")), ("infinibandGUID", json!("x")), ("aliases", json!(["a"]))]
    {
        let mut conf = host.conf();
        conf["runtimeConfig"] = json!({ key: value });
        let refused = host.call(&pod, "ADD", &conf);
        assert!(
            refused.code() == 2 && refused.msg().starts_with(&format!("runtimeConfig.{key}: ")),
            "{refused:?}"
        );
        host.del(&pod, &conf);
    }
}
