//! What host-local does with addresses, and what an operator expects of them (section 4, its documentation).

use std::collections::BTreeSet;
use std::fs;

use anyhow::{Result, anyhow, ensure};
use serde_json::{Value, json};

use crate::bench::Pod;
use crate::list::List;
use crate::stage::{Stage, ips, said};
use crate::subject::{Check, IPAM, Part};

/// Also through a plugin that wires: the built-in one of ours is another way in.
const BOTH: &[Part] = &[Part::Ipam, Part::Ptp];

pub const CHECKS: &[Check] = &[
    Check { section: "host-local", parts: BOTH, name: "the first address is not the gateway's", run: first },
    Check {
        section: "host-local",
        parts: BOTH,
        name: "addresses are given in order, and not again while others are free",
        run: in_order,
    },
    Check {
        section: "host-local",
        parts: BOTH,
        name: "network and broadcast address are never given",
        run: neither_end,
    },
    Check {
        section: "host-local",
        parts: BOTH,
        name: "rangeStart and rangeEnd are the first and last",
        run: bounds,
    },
    Check {
        section: "host-local",
        parts: BOTH,
        name: "a gateway inside the range is left out",
        run: gateway_inside,
    },
    Check {
        section: "host-local",
        parts: IPAM,
        name: "a second range of a set follows the first",
        run: second_range,
    },
    Check { section: "host-local", parts: IPAM, name: "of two sets each gives an address", run: two_sets },
    Check {
        section: "host-local",
        parts: BOTH,
        name: "the old keys subnet, rangeStart, gateway work beside ranges",
        run: old_keys,
    },
    Check { section: "host-local", parts: BOTH, name: "CNI_ARGS IP= is given", run: asked_by_args },
    Check {
        section: "conventions: ips",
        parts: BOTH,
        name: "args.cni.ips is given",
        run: asked_by_configuration,
    },
    Check {
        section: "conventions: ips",
        parts: BOTH,
        name: "the capability ips is given",
        run: asked_by_capability,
    },
    Check {
        section: "host-local",
        parts: BOTH,
        name: "an address that is asked for and in no range is refused",
        run: asked_outside,
    },
    Check {
        section: "host-local",
        parts: BOTH,
        name: "an address that is asked for and taken is refused, naming it",
        run: asked_taken,
    },
    Check {
        section: "host-local",
        parts: BOTH,
        name: "the gateway's address is refused to who asks for it",
        run: asked_gateway,
    },
    Check {
        section: "conventions: ipRanges",
        parts: BOTH,
        name: "the capability ipRanges adds range sets",
        run: ranges_by_capability,
    },
    Check {
        section: "host-local",
        parts: BOTH,
        name: "a full range is an error that names the range",
        run: full,
    },
    Check {
        section: "host-local",
        parts: BOTH,
        name: "the error of a full range says how many leases there are",
        run: full_says_how_many,
    },
    Check {
        section: "host-local",
        parts: BOTH,
        name: "after DEL an address of a full range is free",
        run: free_again,
    },
    Check { section: "host-local", parts: BOTH, name: "ranges that overlap are refused", run: overlap },
    Check {
        section: "host-local",
        parts: BOTH,
        name: "a subnet without room for a pod is refused",
        run: no_room,
    },
    Check {
        section: "host-local",
        parts: BOTH,
        name: "a lease is a file named after the address, with container and interface in it",
        run: file,
    },
    Check {
        section: "host-local",
        parts: IPAM,
        name: "a lease file without content (a crash, a full disk) is not lost for ever",
        run: empty_file,
    },
    Check {
        section: "host-local",
        parts: BOTH,
        name: "a file that is no lease does no harm",
        run: strange_files,
    },
    Check {
        section: "host-local",
        parts: IPAM,
        name: "a note of the last address that is garbage does no harm",
        run: garbled_note,
    },
    Check {
        section: "host-local",
        parts: &[Part::Ptp, Part::Bridge, Part::Ipam],
        name: "the address of a pod whose namespace went without DEL is given again when no other is free",
        run: dead_pod,
    },
    Check {
        section: "host-local",
        parts: &[Part::Ptp, Part::Bridge, Part::Ipam],
        name: "the addresses of an earlier boot are free",
        run: earlier_boot,
    },
    Check { section: "host-local", parts: IPAM, name: "16 at once get 16 addresses", run: at_once },
    Check {
        section: "host-local",
        parts: IPAM,
        name: "ADD again for the same interface gives no second address",
        run: again,
    },
    Check {
        section: "host-local",
        parts: IPAM,
        name: "DEL frees only the address of its interface",
        run: frees_its_own,
    },
];

fn one(stage: &Stage, id: &str, list: &List) -> Result<Vec<String>> {
    let result = stage.add_one(id, list)?;
    Ok(ips(&result).iter().map(ToString::to_string).collect())
}

fn range(stage: &Stage, range: Value) -> List {
    stage.list().ranges(json!([[range]]))
}

fn expect(has: &[String], wanted: &[&str]) -> Result<()> {
    ensure!(has == wanted, "{} is given", has.join(" and "));
    Ok(())
}

fn first(stage: &Stage) -> Result<()> {
    expect(&one(stage, "abc", &stage.list())?, &["10.1.0.2"])
}

fn in_order(stage: &Stage) -> Result<()> {
    let list = stage.list();
    expect(&one(stage, "a", &list)?, &["10.1.0.2"])?;
    let pod = Pod::new("b");
    let result = stage.add(&pod, &list)?;
    stage.del(&pod, &list, Some(&result))?;
    expect(&one(stage, "c", &list)?, &["10.1.0.4"])
}

fn neither_end(stage: &Stage) -> Result<()> {
    let list = range(stage, json!({"subnet": "10.1.0.0/29"}));
    let mut given = BTreeSet::new();
    for n in 0..5 {
        given.extend(one(stage, &format!("pod-{n}"), &list)?);
    }
    let wanted: BTreeSet<_> = (2..7).map(|n| format!("10.1.0.{n}")).collect();
    ensure!(given == wanted, "{given:?} are given");
    ensure!(!stage.try_add(&Pod::new("late"), &list).success, "a sixth is given");
    Ok(())
}

fn bounds(stage: &Stage) -> Result<()> {
    let list =
        range(stage, json!({"subnet": "10.1.0.0/24", "rangeStart": "10.1.0.20", "rangeEnd": "10.1.0.21"}));
    expect(&one(stage, "a", &list)?, &["10.1.0.20"])?;
    expect(&one(stage, "b", &list)?, &["10.1.0.21"])?;
    ensure!(!stage.try_add(&Pod::new("c"), &list).success, "a third is given");
    Ok(())
}

fn gateway_inside(stage: &Stage) -> Result<()> {
    let list = range(stage, json!({"subnet": "10.1.0.0/24", "gateway": "10.1.0.3"}));
    expect(&one(stage, "a", &list)?, &["10.1.0.1"])?;
    expect(&one(stage, "b", &list)?, &["10.1.0.2"])?;
    expect(&one(stage, "c", &list)?, &["10.1.0.4"])
}

fn second_range(stage: &Stage) -> Result<()> {
    let list = stage.list().ranges(json!([[{"subnet": "10.1.0.0/30"}, {"subnet": "10.2.0.0/30"}]]));
    expect(&one(stage, "a", &list)?, &["10.1.0.2"])?;
    let result = stage.add_one("b", &list)?;
    ensure!(result["ips"][0]["address"] == "10.2.0.2/30", "{} is given", result["ips"][0]["address"]);
    ensure!(result["ips"][0]["gateway"] == "10.2.0.1", "with the gateway {}", result["ips"][0]["gateway"]);
    Ok(())
}

fn two_sets(stage: &Stage) -> Result<()> {
    let list = stage
        .list()
        .ranges(json!([[{"subnet": "10.1.0.0/24"}], [{"subnet": "10.2.0.0/24"}], [{"subnet": "fd01::/64"}]]));
    expect(&one(stage, "a", &list)?, &["10.1.0.2", "10.2.0.2", "fd01::2"])
}

fn old_keys(stage: &Stage) -> Result<()> {
    let mut list = stage.list().ranges(json!([[{"subnet": "fd01::/64"}]]));
    for (key, value) in [("subnet", "10.1.0.0/24"), ("rangeStart", "10.1.0.9"), ("gateway", "10.1.0.254")] {
        list = list.ipam(key, json!(value));
    }
    let result = stage.add(&Pod::new("abc"), &list)?;
    let has: Vec<_> = ips(&result).iter().map(ToString::to_string).collect();
    expect(&has, &["10.1.0.9", "fd01::2"])?;
    ensure!(result["ips"][0]["gateway"] == "10.1.0.254", "with the gateway {}", result["ips"][0]["gateway"]);
    Ok(())
}

fn asked_by_args(stage: &Stage) -> Result<()> {
    let answer = stage.with_args(&Pod::new("abc"), "ADD", &stage.list(), "IP=10.1.0.77");
    ensure!(answer.success, "ADD fails: {}", said(&answer));
    expect(&answer.ips(), &["10.1.0.77"])
}

fn asked_by_configuration(stage: &Stage) -> Result<()> {
    let list = stage.list().with("args", json!({"cni": {"ips": ["10.1.0.77"]}}));
    expect(&one(stage, "abc", &list)?, &["10.1.0.77"])
}

fn asked_by_capability(stage: &Stage) -> Result<()> {
    let list = stage.dual().capability("ips", json!(["10.1.0.77/24", "fd01::77/64"]));
    expect(&one(stage, "abc", &list)?, &["10.1.0.77", "fd01::77"])
}

fn asked_outside(stage: &Stage) -> Result<()> {
    let answer = stage.with_args(&Pod::new("abc"), "ADD", &stage.list(), "IP=10.9.9.9");
    ensure!(!answer.success, "ADD succeeds");
    ensure!(stage.leases().is_empty(), "an address stays leased");
    Ok(())
}

fn asked_taken(stage: &Stage) -> Result<()> {
    let list = stage.list();
    one(stage, "abc", &list)?;
    let answer = stage.with_args(&Pod::new("late"), "ADD", &list, "IP=10.1.0.2");
    ensure!(!answer.success, "ADD succeeds");
    ensure!(answer.msg().contains("10.1.0.2"), "it is not named: {}", said(&answer));
    ensure!(stage.leases().len() == 1, "another address is leased");
    Ok(())
}

fn asked_gateway(stage: &Stage) -> Result<()> {
    let answer = stage.with_args(&Pod::new("abc"), "ADD", &stage.list(), "IP=10.1.0.1");
    ensure!(!answer.success, "ADD succeeds");
    Ok(())
}

fn ranges_by_capability(stage: &Stage) -> Result<()> {
    let mut list = stage.list().capability("ipRanges", json!([[{"subnet": "10.7.0.0/24"}]]));
    list.plugins[0]["ipam"].as_object_mut().unwrap().remove("ranges");
    expect(&one(stage, "abc", &list)?, &["10.7.0.2"])
}

fn full(stage: &Stage) -> Result<()> {
    let list = range(stage, json!({"subnet": "10.1.0.0/30"}));
    one(stage, "abc", &list)?;
    let answer = stage.try_add(&Pod::new("late"), &list);
    ensure!(!answer.success, "ADD succeeds");
    ensure!(answer.msg().contains("10.1.0."), "it does not: {}", said(&answer));
    ensure!(stage.leases().len() == 1, "there are {} leases then", stage.leases().len());
    Ok(())
}

fn full_says_how_many(stage: &Stage) -> Result<()> {
    let list = range(stage, json!({"subnet": "10.1.0.0/29"}));
    for n in 0..5 {
        one(stage, &format!("pod-{n}"), &list)?;
    }
    let answer = stage.try_add(&Pod::new("late"), &list);
    ensure!(answer.msg().contains("5 leases"), "it says: {}", said(&answer));
    Ok(())
}

fn free_again(stage: &Stage) -> Result<()> {
    let list = range(stage, json!({"subnet": "10.1.0.0/30"}));
    let pod = Pod::new("abc");
    let result = stage.add(&pod, &list)?;
    stage.del(&pod, &list, Some(&result))?;
    expect(&one(stage, "next", &list)?, &["10.1.0.2"])
}

fn refused(stage: &Stage, list: &List) -> Result<()> {
    let answer = stage.try_add(&Pod::new("abc"), list);
    ensure!(!answer.success, "ADD succeeds");
    ensure!(stage.leases().is_empty(), "an address is leased all the same");
    Ok(())
}

fn overlap(stage: &Stage) -> Result<()> {
    refused(stage, &stage.list().ranges(json!([[{"subnet": "10.1.0.0/24"}], [{"subnet": "10.1.0.128/25"}]])))
}

fn no_room(stage: &Stage) -> Result<()> {
    for subnet in ["10.1.0.0/31", "10.1.0.0/32"] {
        refused(stage, &range(stage, json!({"subnet": subnet})))?;
    }
    Ok(())
}

fn file(stage: &Stage) -> Result<()> {
    one(stage, "abc", &stage.list())?;
    let content = fs::read_to_string(stage.host.data_dir().join("net/10.1.0.2"))?;
    let wanted = format!("abc\r\n{}", stage.ifname());
    ensure!(content.trim() == wanted, "it holds {content:?}");
    let last = fs::read_to_string(stage.host.data_dir().join("net/last_reserved_ip.0"))?;
    ensure!(last == "10.1.0.2", "last_reserved_ip.0 holds {last:?}");
    Ok(())
}

fn empty_file(stage: &Stage) -> Result<()> {
    let list = range(stage, json!({"subnet": "10.1.0.0/30"}));
    let dir = stage.host.data_dir().join("net");
    fs::create_dir_all(&dir)?;
    fs::write(dir.join("10.1.0.2"), "")?;
    expect(&one(stage, "abc", &list)?, &["10.1.0.2"])
}

fn strange_files(stage: &Stage) -> Result<()> {
    let dir = stage.host.data_dir().join("net");
    fs::create_dir_all(dir.join("10.1.0.2"))?;
    fs::write(dir.join("README"), "\u{0}\u{0}")?;
    fs::write(dir.join("10.1.0.3.bak"), "x")?;
    expect(&one(stage, "abc", &stage.list())?, &["10.1.0.3"])
}

fn garbled_note(stage: &Stage) -> Result<()> {
    let dir = stage.host.data_dir().join("net");
    fs::create_dir_all(&dir)?;
    for (n, note) in ["", "garbage", "10.9.9.9", "fd01::1"].into_iter().enumerate() {
        fs::write(dir.join("last_reserved_ip.0"), note)?;
        one(stage, &format!("pod-{n}"), &stage.list())?;
    }
    Ok(())
}

fn dead_pod(stage: &Stage) -> Result<()> {
    let list = range(stage, json!({"subnet": "10.1.0.0/30"}));
    let pod = Pod::new("dead");
    let result = stage.add(&pod, &list)?;
    drop(pod);
    if stage.subject.part != Part::Ipam {
        stage.await_end(&result)?;
    }
    // A process that another check has forked, and that is not yet the plugin, may hold the namespace for a moment.
    let mut given = one(stage, "abc", &list);
    for _ in 0..10 {
        if given.is_ok() {
            break;
        }
        given = one(stage, "abc", &list);
    }
    expect(&given?, &["10.1.0.2"])
}

fn earlier_boot(stage: &Stage) -> Result<()> {
    let list = range(stage, json!({"subnet": "10.1.0.0/30"}));
    stage.add(&Pod::new("dead"), &list)?;
    let note = stage.host.data_dir().join("net/.heddle/boot");
    if note.exists() {
        fs::write(note, "00000000-0000-4000-8000-000000000000")?;
    }
    // Nothing is left of the machine as it was but its files, to which the list leads.
    let again = Stage::new(stage.subject);
    expect(&one(&again, "abc", &list)?, &["10.1.0.2"])
}

fn at_once(stage: &Stage) -> Result<()> {
    let list = stage.list();
    let given: Result<Vec<Vec<String>>> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..16)
            .map(|n| {
                scope.spawn({
                    let list = &list;
                    move || one(stage, &format!("pod-{n}"), list)
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().map_err(|_| anyhow!("one panicked"))?).collect()
    });
    let distinct: BTreeSet<_> = given?.into_iter().flatten().collect();
    ensure!(distinct.len() == 16 && stage.leases().len() == 16, "they get {}", distinct.len());
    Ok(())
}

fn again(stage: &Stage) -> Result<()> {
    let (pod, list) = (Pod::new("abc"), stage.list());
    stage.add(&pod, &list)?;
    drop(stage.try_add(&pod, &list));
    let leases = stage.leases().len();
    ensure!(leases == 1, "there are {leases} leases");
    Ok(())
}

fn frees_its_own(stage: &Stage) -> Result<()> {
    let (pod, list) = (Pod::new("abc"), stage.list());
    stage.add_as(&pod, "eth0", &list)?;
    stage.add_as(&pod, "net1", &list)?;
    let answer = stage.try_del_as(&pod, "net1", &list, None);
    ensure!(answer.success, "DEL fails: {}", said(&answer));
    let left = stage.leases();
    ensure!(
        left.len() == 1 && left.iter().all(|lease| lease.ends_with("10.1.0.2")),
        "{} are left",
        left.len()
    );
    Ok(())
}
