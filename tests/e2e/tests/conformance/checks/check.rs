//! CHECK (section 2).

use anyhow::{Result, ensure};
use heddle_netlink::addr;
use heddle_netlink::link::{self, Change};
use heddle_netlink::route::{self, Filter, Route};
use serde_json::{Value, json};

use crate::bench::Pod;
use crate::list::List;
use crate::stage::{Stage, device, ips, said};
use crate::subject::{Check, PTP, Part, WIRED};

const WITH_IPAM: &[Part] = &[Part::Ptp, Part::Bridge, Part::Ipam];

pub const CHECKS: &[Check] = &[
    Check { section: "2 CHECK", parts: WITH_IPAM, name: "it succeeds after ADD, and is silent", run: whole },
    Check {
        section: "2 CHECK",
        parts: WIRED,
        name: "it succeeds after ADD with two families",
        run: whole_with_two_families,
    },
    Check { section: "2 CHECK", parts: WIRED, name: "without prevResult it fails", run: without_result },
    Check {
        section: "2 CHECK",
        parts: WIRED,
        name: "for a version before 0.4.0 it is refused with code 1",
        run: before_0_4_0,
    },
    Check { section: "2 CHECK", parts: WIRED, name: "an address that is gone is found", run: address_gone },
    Check { section: "2 CHECK", parts: WIRED, name: "a route that is gone is found", run: route_gone },
    Check {
        section: "2 CHECK",
        parts: WIRED,
        name: "an interface that is gone is found",
        run: interface_gone,
    },
    Check {
        section: "2 CHECK",
        parts: WIRED,
        name: "a pod's side that is down is found",
        run: pod_side_down,
    },
    Check {
        section: "2 CHECK",
        parts: WIRED,
        name: "a host side that is down is found",
        run: host_side_down,
    },
    Check {
        section: "2 CHECK",
        parts: PTP,
        name: "the host's route to the pod that is gone is found",
        run: host_route_gone,
    },
    Check {
        section: "2 CHECK",
        parts: &[Part::Bridge],
        name: "a host side that left its bridge is found",
        run: left_the_bridge,
    },
    Check {
        section: "2 CHECK",
        parts: WITH_IPAM,
        name: "an address that is no longer leased is found",
        run: lease_gone,
    },
    Check {
        section: "2 CHECK",
        parts: WITH_IPAM,
        name: "an address that is leased to another by now is found",
        run: lease_of_another,
    },
    Check {
        section: "2 CHECK",
        parts: WIRED,
        name: "a host side with another MTU than the configured one is found",
        run: other_mtu,
    },
    Check { section: "2 CHECK", parts: WIRED, name: "what others added since is no fault", run: additions },
];

/// A pod that was added.
fn added(stage: &Stage) -> Result<(Pod, List, Value)> {
    let (pod, list) = (Pod::new("abc"), stage.list());
    let result = stage.add(&pod, &list)?;
    Ok((pod, list, result))
}

fn found(stage: &Stage, pod: &Pod, list: &List, result: &Value) -> Result<()> {
    let answer = stage.check(pod, list, result);
    ensure!(!answer.success, "CHECK succeeds");
    ensure!(answer.json["msg"].is_string(), "CHECK fails without an error object");
    Ok(())
}

fn whole(stage: &Stage) -> Result<()> {
    let (pod, list, result) = added(stage)?;
    let answer = stage.check(&pod, &list, &result);
    ensure!(answer.success, "it fails: {}", said(&answer));
    ensure!(answer.stdout.trim().is_empty(), "it writes to standard output");
    Ok(())
}

fn whole_with_two_families(stage: &Stage) -> Result<()> {
    let (pod, list) = (Pod::new("abc"), stage.dual());
    let result = stage.add(&pod, &list)?;
    let answer = stage.check(&pod, &list, &result);
    ensure!(answer.success, "it fails: {}", said(&answer));
    Ok(())
}

fn without_result(stage: &Stage) -> Result<()> {
    let (pod, list, _) = added(stage)?;
    let answer = stage.plugin(&pod, "CHECK", "eth0", &list.conf(0, None));
    ensure!(!answer.success, "it succeeds");
    Ok(())
}

fn before_0_4_0(stage: &Stage) -> Result<()> {
    let (pod, list) = (Pod::new("abc"), stage.list().version("0.3.1"));
    let result = stage.add(&pod, &list)?;
    let answer = stage.check(&pod, &list, &result);
    ensure!(!answer.success, "it succeeds");
    ensure!(answer.code() == 1, "code {}: {}", answer.code(), said(&answer));
    Ok(())
}

fn address_gone(stage: &Stage) -> Result<()> {
    let (pod, list, result) = added(stage)?;
    let eth0 = device(&pod, "eth0")?.index;
    let mut socket = pod.socket();
    let own = addr::list(&mut socket, Some(eth0)).unwrap();
    addr::delete(&mut socket, eth0, own.iter().find(|a| a.ip.is_ipv4()).unwrap().ip).unwrap();
    found(stage, &pod, &list, &result)
}

fn route_gone(stage: &Stage) -> Result<()> {
    let (pod, list, result) = added(stage)?;
    let mut socket = pod.socket();
    let filter = Filter { table: Some(route::TABLE_MAIN), ..Filter::default() };
    let routes = route::list(&mut socket, &filter).unwrap();
    route::delete(&mut socket, routes.iter().find(|route| route.dst.prefix() == 0).unwrap()).unwrap();
    found(stage, &pod, &list, &result)
}

fn interface_gone(stage: &Stage) -> Result<()> {
    let (pod, list, result) = added(stage)?;
    link::delete_by_name(&mut pod.socket(), "eth0").unwrap();
    found(stage, &pod, &list, &result)
}

fn pod_side_down(stage: &Stage) -> Result<()> {
    let (pod, _, _) = added(stage)?;
    // Without routes, which go with the carrier.
    let list = stage.list().ipam("routes", json!([]));
    let other = Pod::new("other");
    drop(pod);
    let result = stage.add(&other, &list)?;
    let index = device(&other, "eth0")?.index;
    link::set_down(&mut other.socket(), index).unwrap();
    found(stage, &other, &list, &result)
}

fn host_side_down(stage: &Stage) -> Result<()> {
    let (pod, list, result) = added(stage)?;
    let near = stage.host_side(&result)?;
    link::set_down(&mut stage.host.socket(), near.index).unwrap();
    found(stage, &pod, &list, &result)
}

fn host_route_gone(stage: &Stage) -> Result<()> {
    let (pod, list, result) = added(stage)?;
    let mut socket = stage.host.socket();
    let filter = Filter { table: Some(route::TABLE_MAIN), ..Filter::default() };
    let routes = route::list(&mut socket, &filter).unwrap();
    let own = ips(&result)[0];
    route::delete(&mut socket, routes.iter().find(|route| route.dst.ip() == own).unwrap()).unwrap();
    found(stage, &pod, &list, &result)
}

fn left_the_bridge(stage: &Stage) -> Result<()> {
    let (pod, list, result) = added(stage)?;
    let near = stage.host_side(&result)?;
    let change = Change { master: Some(None), ..Change::default() };
    link::change(&mut stage.host.socket(), near.index, &change).unwrap();
    found(stage, &pod, &list, &result)
}

fn lease_gone(stage: &Stage) -> Result<()> {
    let (pod, list, result) = added(stage)?;
    std::fs::remove_file(stage.host.data_dir().join("net/10.1.0.2")).unwrap();
    found(stage, &pod, &list, &result)
}

fn lease_of_another(stage: &Stage) -> Result<()> {
    let (pod, list, result) = added(stage)?;
    let lease = stage.host.data_dir().join("net/10.1.0.2");
    std::fs::remove_file(&lease).unwrap();
    std::fs::write(lease, "another\r\neth0").unwrap();
    found(stage, &pod, &list, &result)
}

fn other_mtu(stage: &Stage) -> Result<()> {
    let (pod, list) = (Pod::new("abc"), stage.list().with("mtu", json!(1450)));
    let result = stage.add(&pod, &list)?;
    let near = stage.host_side(&result)?;
    let change = Change { mtu: Some(1300), ..Change::default() };
    link::change(&mut stage.host.socket(), near.index, &change).unwrap();
    found(stage, &pod, &list, &result)
}

fn additions(stage: &Stage) -> Result<()> {
    let (pod, list, result) = added(stage)?;
    let index = device(&pod, "eth0")?.index;
    let mut socket = pod.socket();
    addr::add(&mut socket, &addr::Addr::new(index, "198.51.100.1/32".parse().unwrap())).unwrap();
    route::add(&mut socket, &Route::on_link("203.0.113.0/24".parse().unwrap(), index)).unwrap();
    let answer = stage.check(&pod, &list, &result);
    ensure!(answer.success, "CHECK fails: {}", said(&answer));
    Ok(())
}
