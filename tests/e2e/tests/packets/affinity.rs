//! Session affinity: a client keeps its backend from flow to flow, for a time.

use heddle_bpf::TcHook::{Pod, UnderlayIn};
use heddle_ebpf_common::{AffinityKey, BACKEND_DRAINING, NODE_DOWN};

use crate::frames::{UDP, udp};
use crate::world::{BOTH, Family, PODS, UNDERLAY, World, addr, pod, world};

const TIMEOUT: u32 = 100;
const SECOND: u64 = 1_000_000_000;

/// A service of three backends on other nodes.
fn service(w: &mut World, f: Family) -> Vec<u32> {
    let all = w.service(f, UDP, &[pod(f, 2, 20), pod(f, 3, 30), pod(f, 3, 31)]);
    for at in [f.any(30080), f.service(1, 80)] {
        w.change(at, UDP, |frontend| frontend.affinity = TIMEOUT);
    }
    all
}

/// At this second, with this random number.
fn at(w: &mut World, second: u64, random: u32) {
    w.configure(|config| {
        (config.fixed_time, config.fixed_random) = (1000 * SECOND + second * SECOND, random)
    });
}

/// The backend that a new flow of pod 10 gets.
fn ask(w: &mut World, f: Family, port: u16) -> u32 {
    let packet = udp(f.pod(1, 10, port), f.service(1, 80));
    w.send(Pod, PODS[0], &packet);
    w.flow(&packet).expect("a flow").0.backend
}

/// The random number that chooses the backend `i` of three.
fn random(i: u32) -> u32 {
    (u32::MAX / 3) * i + 9
}

#[test]
fn fault_080_affinity_lasts_as_long_as_its_timeout_from_the_last_new_flow() {
    for f in BOTH {
        let w = &mut *world();
        let all = service(w, f);
        at(w, 0, random(1));
        assert_eq!(ask(w, f, 5000), all[1]);
        // Chance would have it otherwise; each new flow begins the time anew.
        at(w, 99, random(2));
        assert_eq!(ask(w, f, 5001), all[1]);
        at(w, 198, random(0));
        assert_eq!(ask(w, f, 5002), all[1]);
        // A packet of a flow that is there is no new flow.
        at(w, 250, random(0));
        assert_eq!(ask(w, f, 5000), all[1]);
        at(w, 298, random(2));
        assert_eq!(ask(w, f, 5003), all[2], "over");
        at(w, 299, random(0));
        assert_eq!(ask(w, f, 5004), all[2]);
        // Another client, another service.
        let packet = udp(f.pod(1, 11, 5000), f.service(1, 80));
        w.send(Pod, PODS[1], &packet);
        assert_eq!(w.flow(&packet).unwrap().0.backend, all[0]);
        let others = w.service_at(f, UDP, f.service(2, 80), 30081, &[pod(f, 2, 20), pod(f, 3, 30)]);
        let packet = udp(f.pod(1, 10, 6000), f.service(2, 80));
        w.send(Pod, PODS[0], &packet);
        assert_eq!(w.flow(&packet).unwrap().0.backend, others[0]);
        // Switched off.
        w.change(f.service(1, 80), UDP, |frontend| frontend.affinity = 0);
        assert_eq!(ask(w, f, 5005), all[0]);
    }
}

#[test]
fn fault_080_a_backend_that_takes_no_new_flows_is_left() {
    for f in BOTH {
        for end in ["drains", "is another", "its node dies"] {
            let w = &mut *world();
            let all = service(w, f);
            at(w, 0, random(1));
            assert_eq!(ask(w, f, 5000), all[1]);
            at(w, 1, random(0));
            match end {
                "drains" => w.change_backend(all[1], |backend| backend.state = BACKEND_DRAINING),
                "is another" => w.change_backend(all[1], |backend| backend.generation += 1),
                _ => {
                    let mut node = w.maps().nodes.get(&3, 0).unwrap();
                    node.state = NODE_DOWN;
                    w.maps().nodes.set(3, node, 0).unwrap();
                }
            }
            assert_eq!(ask(w, f, 5001), all[0], "{end}");
            at(w, 2, random(2));
            assert_eq!(ask(w, f, 5002), all[0], "{end}: and stays there");
        }
    }
}

/// From outside the first flow's backend follows from the client's address alone, so that every node says the same.
#[test]
fn clients_outside() {
    for f in BOTH {
        let w = &mut *world();
        service(w, f);
        let key = AffinityKey { client: addr(f.client(0).ip()), service: 1, zero: 0 };
        let mut met = std::collections::BTreeSet::new();
        for port in 5000..5030 {
            // As on thirty nodes, none of which has met the client.
            let _ = w.maps().affinity.remove(&key);
            let packet = udp(f.client(port), f.node(1, 30080));
            w.send(UnderlayIn, UNDERLAY, &packet);
            let flow = w.flow(&packet).unwrap().0;
            assert_eq!(flow.service, 1);
            met.insert(flow.backend);
        }
        assert_eq!(met.len(), 1, "{met:?}");
        let entry = w.maps().affinity.get(&key, 0).unwrap();
        assert_eq!((entry.backend, entry.check), (*met.first().unwrap(), entry.sum(&key)));
        // An entry counts for more than the hash.
        let other = if entry.backend == 1 { 2 } else { 1 };
        let mut moved = heddle_ebpf_common::Affinity { backend: other, generation: 100 + other, ..entry };
        moved.check = moved.sum(&key);
        w.maps().affinity.insert(key, moved, 0).unwrap();
        let packet = udp(f.client(6000), f.node(1, 30080));
        w.send(UnderlayIn, UNDERLAY, &packet);
        assert_eq!(w.flow(&packet).unwrap().0.backend, other);
        // One that is half of two is none.
        w.maps().affinity.insert(key, heddle_ebpf_common::Affinity { backend: 3, ..moved }, 0).unwrap();
        let packet = udp(f.client(6001), f.node(1, 30080));
        w.send(UnderlayIn, UNDERLAY, &packet);
        assert_eq!(w.flow(&packet).unwrap().0.backend, *met.first().unwrap());
    }
}
