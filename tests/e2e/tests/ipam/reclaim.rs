//! What pods and boots leave behind that nobody called DEL for.

use std::fs;
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;

use heddle_netlink::NetNs;
use heddle_netlink::route::{self, Route};
use heddle_netlink::{Socket, link};
use serde_json::{Value, json};

use super::bench::{Host, Program};

/// A pod whose namespace is found through a link that can be taken away, as a runtime unmounts it.
struct Pod {
    ns: NetNs,
    path: PathBuf,
}

impl Pod {
    fn new(host: &Host, name: &str) -> Self {
        let ns = NetNs::create().unwrap();
        let path = host.path(name);
        std::os::unix::fs::symlink(format!("/proc/{}/fd/{}", std::process::id(), ns.as_raw_fd()), &path)
            .unwrap();
        Self { ns, path }
    }

    fn add(&self, host: &Host, container: &str, conf: &Value) {
        let variables = [("CNI_NETNS", self.path.to_str().unwrap())];
        let answer = host.call_with(Program::Ours, "ADD", container, conf, &variables);
        assert!(answer.success, "{answer:?}");
    }

    /// The path is gone; the namespace lives as long as somebody holds it.
    fn unlink(&self) {
        fs::remove_file(&self.path).unwrap();
    }
}

/// A /29 with `pod` on 10.1.0.2 and this host's own namespace, which lives, on the rest.
fn full(host: &Host, pod: &Pod) -> Value {
    let conf = host.small();
    pod.add(host, "pod", &conf);
    for n in 0..4 {
        host.add(Program::Ours, &format!("c{n}"), &conf);
    }
    conf
}

#[test]
fn fault_056_the_lease_of_a_namespace_that_is_gone_is_freed_when_it_is_needed() {
    let host = Host::new();
    let pod = Pod::new(&host, "pod");
    let mut conf = full(&host, &pod);
    assert_eq!(host.call(Program::Ours, "ADD", "late", &conf).code(), 100, "it lives, at its path");
    pod.unlink();
    drop(pod);
    conf["cniVersion"] = json!("1.1.0");
    assert!(host.call(Program::Ours, "STATUS", "", &conf).success, "an ADD would succeed");
    assert_eq!(host.leases().len(), 5, "STATUS changed nothing");
    assert_eq!(host.add(Program::Ours, "late", &conf), ["10.1.0.2"]);
    assert_eq!((host.leases().len(), host.notes()), (5, 5));
    // The late DEL of the dead one takes nothing from its heir.
    host.del(Program::Ours, "pod", &conf);
    assert!(host.leases().contains("10.1.0.2"));
}

/// Somebody waits in the namespace until its standard input ends.
fn process_in(ns: &NetNs) -> Child {
    ns.run(|| Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::null()).spawn()).unwrap().unwrap()
}

#[test]
fn a_namespace_that_somebody_is_in_is_alive_without_a_path() {
    let host = Host::new();
    let pod = Pod::new(&host, "pod");
    let conf = full(&host, &pod);
    let mut process = process_in(&pod.ns);
    pod.unlink();
    drop(pod);
    let late = host.call(Program::Ours, "ADD", "late", &conf);
    assert!(late.code() == 100 && late.msg().contains("not where they were, but still there"), "{late:?}");
    drop(process.stdin.take());
    process.wait().unwrap();
    assert_eq!(host.add(Program::Ours, "late", &conf), ["10.1.0.2"]);
}

/// A runtime that mounts its namespaces where we cannot see them, and has no process in them yet.
#[test]
fn a_namespace_that_is_mounted_elsewhere_is_alive() {
    use nix::mount::{MsFlags, mount};
    use nix::sched::{CloneFlags, unshare};
    let host = Host::new();
    let pod = Pod::new(&host, "pod");
    let conf = full(&host, &pod);
    let target = host.path("mounted");
    fs::write(&target, "").unwrap();
    let (ready, is_ready) = mpsc::channel();
    // On a thread, which moves into a mount namespace of its own and leaves a process there.
    let source = format!("/proc/{}/fd/{}", std::process::id(), pod.ns.as_raw_fd());
    let thread = std::thread::spawn(move || {
        unshare(CloneFlags::CLONE_FS | CloneFlags::CLONE_NEWNS).unwrap();
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>).unwrap();
        mount(Some(source.as_str()), &target, None::<&str>, MsFlags::MS_BIND, None::<&str>).unwrap();
        ready.send(Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap()).unwrap();
    });
    let mut process = is_ready.recv().unwrap();
    thread.join().unwrap();
    pod.unlink();
    drop(pod);
    let late = host.call(Program::Ours, "ADD", "late", &conf);
    assert_eq!(late.code(), 100, "{late:?}");
    drop(process.stdin.take());
    process.wait().unwrap();
    assert_eq!(host.add(Program::Ours, "late", &conf), ["10.1.0.2"], "the mount went with the last process");
}

#[test]
fn an_address_that_the_host_still_routes_to_is_not_freed() {
    let host = Host::new();
    let pod = Pod::new(&host, "pod");
    let conf = full(&host, &pod);
    let mut socket = Socket::open_in(&host.ns).unwrap();
    let lo = link::by_name(&mut socket, "lo").unwrap().unwrap().index;
    let wired = Route::on_link("10.1.0.2/32".parse().unwrap(), lo);
    route::add(&mut socket, &wired).unwrap();
    pod.unlink();
    drop(pod);
    assert_eq!(host.call(Program::Ours, "ADD", "late", &conf).code(), 100);
    route::delete(&mut socket, &wired).unwrap();
    assert_eq!(host.add(Program::Ours, "late", &conf), ["10.1.0.2"]);
}

#[test]
fn fault_048_what_an_earlier_boot_left_is_free_before_the_first_add() {
    let host = Host::new();
    let conf = host.small();
    for n in 0..4 {
        host.add(Program::Ours, &format!("c{n}"), &conf);
    }
    host.add(Program::Reference, "theirs", &conf);
    // As if the machine had been started anew.
    fs::write(host.lease(".heddle/boot"), "another boot").unwrap();
    assert_eq!(host.add(Program::Ours, "new", &conf), ["10.1.0.2"]);
    assert_eq!(host.leases().into_iter().collect::<Vec<_>>(), ["10.1.0.2", "10.1.0.6"], "host-local's stays");
    assert_eq!(host.notes(), 1);
}

#[test]
fn fault_058_a_sandbox_that_is_made_anew_has_an_address_and_the_old_one_none() {
    let host = Host::new();
    let conf = host.small();
    for n in 0..20 {
        let (old, new) = (format!("sandbox-{n}"), format!("sandbox-{}", n + 1));
        if n == 0 {
            host.add(Program::Ours, &old, &conf);
        }
        // The runtime was restarted in the middle of ADD, asks again, and then gives the pod a new sandbox.
        let again = host.add(Program::Ours, &old, &conf);
        assert_ne!(host.add(Program::Ours, &new, &conf), again);
        host.del(Program::Ours, &old, &conf);
        assert_eq!(host.leases().len(), 1);
    }
}

#[test]
fn fault_052_two_nodes_with_one_range_do_not_know_of_each_other() {
    // Addresses are this node's own business: what other nodes give, only who knows the nodes can see. A node-local
    // plugin can do one thing, and does it: it gives no address that this node routes to somebody else alone.
    let [one, two] = [Host::new(), Host::new()];
    let conf = |host: &Host| host.small();
    assert_eq!(one.add(Program::Ours, "a", &conf(&one)), two.add(Program::Ours, "b", &conf(&two)));
    let mut socket = Socket::open_in(&two.ns).unwrap();
    let lo = link::by_name(&mut socket, "lo").unwrap().unwrap().index;
    route::add(&mut socket, &Route::on_link("10.1.0.3/32".parse().unwrap(), lo)).unwrap();
    assert_eq!(two.add(Program::Ours, "c", &conf(&two)), ["10.1.0.4"]);
}
