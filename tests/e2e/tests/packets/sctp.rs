//! SCTP: addresses are translated, ports are not, and the CRC32c stays as it is.

use heddle_bpf::TcHook::{OverlayIn, Pod, UnderlayIn};
use heddle_ebpf_common::{CT_FIN, CT_REPLY, Counter, REMOTE_SNAT};

use crate::frames::{SCTP, icmp_about, sctp};
use crate::world::{BOTH, OVERLAY, PODS, To, UNDERLAY, Verdict, pod, request_mac, vtep_mac, world};

const DATA: u8 = 0;
const INIT: u8 = 1;
const INIT_ACK: u8 = 2;
const ABORT: u8 = 6;
const SHUTDOWN: u8 = 7;
const SHUTDOWN_ACK: u8 = 8;

#[test]
fn an_association() {
    for f in BOTH {
        let w = &mut *world();
        let to = |n, i| To { addr: f.pod(n, i, 80), node: n.into() };
        w.service_at(f, SCTP, f.service(1, 80), 80, &[to(1, 11)]);
        for (hook, ifname, client, frontend) in [
            (Pod, PODS[0], f.pod(1, 10, 5000), f.service(1, 80)),
            (UnderlayIn, UNDERLAY, f.client(5000), f.node(1, 80)),
        ] {
            let backend = f.pod(1, 11, 80);
            let seen = w.send(hook, ifname, &sctp(INIT, client, frontend)).sent(PODS[1]);
            assert_eq!(seen.text, format!("sctp {client} > {backend}"));
            let seen = w.send(Pod, PODS[1], &sctp(INIT_ACK, backend, client)).sent(ifname);
            assert_eq!(seen.text, format!("sctp {frontend} > {client}"));
            w.send(hook, ifname, &sctp(DATA, client, frontend)).sent(PODS[1]);
            // An error about it.
            let about = sctp(DATA, client, backend);
            let kind = if f.is_v4() { (3, 4) } else { (2, 0) };
            let seen = w.send_raw(Pod, PODS[1], &icmp_about(&about, backend.ip(), kind, 1300)).sent(ifname);
            assert!(seen.text.ends_with(&format!("(sctp {client} > {frontend})")), "{}", seen.text);
            w.send(hook, ifname, &sctp(SHUTDOWN, client, frontend)).sent(PODS[1]);
            w.send(Pod, PODS[1], &sctp(SHUTDOWN_ACK, backend, client)).sent(ifname);
            assert!(w.flow(&sctp(0, client, frontend)).unwrap().0.flags & CT_FIN != 0);
            let reply = w.flow(&sctp(0, backend, client)).unwrap().0.flags;
            assert_eq!(reply & (CT_FIN | CT_REPLY), CT_FIN | CT_REPLY);
            let out = w.send(hook, ifname, &sctp(INIT, client, frontend));
            assert_eq!(out.count(Counter::FlowNew), 1, "over a closed one");
        }
        // By tunnel.
        let w = &mut *w;
        w.service_at(f, SCTP, f.service(2, 81), 81, &[To { addr: f.pod(2, 20, 81), node: 2 }]);
        let (client, frontend) = (f.client(5001), f.node(1, 81));
        let seen = w.send(UnderlayIn, UNDERLAY, &sctp(INIT, client, frontend)).sent(OVERLAY);
        assert_eq!(seen.smac, request_mac(f.pod(2, 20, 81), SCTP));
    }
}

/// The source port stays, too: a second flow with the same ends is refused, not misdelivered.
#[test]
fn where_a_port_would_have_to_change() {
    for f in BOTH {
        let w = &mut *world();
        w.configure(|config| config.remote = REMOTE_SNAT);
        w.service_at(f, SCTP, f.service(1, 80), 80, &[To { addr: f.pod(2, 20, 80), node: 2 }]);
        let seen = w.send(UnderlayIn, UNDERLAY, &sctp(INIT, f.client(5000), f.node(1, 80))).sent(OVERLAY);
        let own = f.vtep(1, 5000);
        assert_eq!(seen.text, format!("sctp {own} > {}", f.pod(2, 20, 80)));
        let reply = sctp(INIT_ACK, f.pod(2, 20, 80), own).macs(vtep_mac(2), vtep_mac(1));
        w.send(OverlayIn, OVERLAY, &reply).sent(UNDERLAY);
        w.send(UnderlayIn, UNDERLAY, &sctp(INIT, f.node(3, 5000), f.node(1, 80)))
            .dropped(Counter::DropNoPort);
        // A frontend that should not be there.
        w.service(f, SCTP, &[pod(f, 1, 11)]);
        w.send(Pod, PODS[0], &sctp(INIT, f.pod(1, 10, 6), f.service(1, 80)));
        w.send(UnderlayIn, UNDERLAY, &sctp(INIT, f.client(6), f.node(1, 30080))).dropped(Counter::DropNoPort);
    }
}

/// An association ends by protocol unreachable (RFC 9260 section 10), like a TCP connection by a RST.
#[test]
fn what_is_nobodys() {
    for f in BOTH {
        let w = &mut *world();
        let backends = w.service_at(f, SCTP, f.service(1, 80), 80, &[To { addr: f.pod(1, 11, 80), node: 1 }]);
        let (client, frontend) = (f.pod(1, 10, 5000), f.service(1, 80));
        let kind = if f.is_v4() { "3/2" } else { "4/1" };
        let out = w.send(Pod, PODS[0], &sctp(DATA, client, frontend));
        assert!(out.sent(PODS[0]).text.contains(kind), "{out:?}");
        w.send(Pod, PODS[0], &sctp(INIT, client, frontend)).sent(PODS[1]);
        w.change_backend(backends[0], |backend| backend.generation += 1);
        let out = w.send(Pod, PODS[0], &sctp(DATA, client, frontend));
        assert!(out.sent(PODS[0]).text.contains(kind), "{out:?}");
        assert_eq!(out.count(Counter::RejectStale), 1);
        let out = w.send(Pod, PODS[0], &sctp(ABORT, f.pod(1, 10, 5001), frontend));
        assert_ne!(out.verdict, Verdict::Pass);
        w.change(frontend, SCTP, |frontend| frontend.ring_len = 0);
        let out = w.send(Pod, PODS[0], &sctp(INIT, f.pod(1, 10, 5002), frontend));
        assert_eq!((out.count(Counter::RejectNoBackend), out.sent(PODS[0]).ttl), (1, 64));
    }
}
