//! Tells the others on the bridge where the pod's addresses are now: who talked to the pod that had one of them before
//! would go on talking to that for a minute.

use heddle_netlink::link::{self, Change};
use heddle_netlink::neigh::{self, Neigh};
use heddle_netlink::sysctl::{self, Key};
use heddle_netlink::{NetNs, Socket};

use super::Ready;
use crate::addresses::Allocation;
use crate::mode::has_family;
use crate::veth::{self, Pair};
use heddle_spec::Failure;

/// Has the kernel say once that the pod's addresses are at its Ethernet address: a gratuitous ARP request (RFC 5227,
/// section 3), an unsolicited neighbour advertisement (RFC 4861, section 7.2.6). And the pod learns where its gateways
/// are, if the node is theirs.
///
/// The kernel does so when the Ethernet address is set, also to what it is (`inetdev_event`, `ndisc_netdev_event`), if
/// `arp_notify` and `ndisc_notify` are on, which they stay; and it forgets all neighbours then, so those come after.
/// A packet socket would need neither, but closing one takes a grace period of RCU, some 10 ms.
pub fn announce(
    ns: &NetNs,
    pod: &mut Socket,
    pair: &Pair,
    ready: &Ready,
    allocations: &[Allocation],
) -> Result<(), Failure> {
    ns.visit(|| {
        if has_family(allocations, true) {
            sysctl::write(&Key::ipv4_conf(&pair.pod, "arp_notify"), "1")?;
        }
        if has_family(allocations, false) {
            sysctl::write(&Key::ipv6_conf(&pair.pod, "ndisc_notify"), "1")?;
        }
        Ok::<_, Failure>(())
    })??;
    let index = veth::find(pod, &pair.pod)?.index;
    pod.together(|pod| {
        link::change(pod, index, &Change { mac: Some(pair.pod_mac), ..Change::default() })?;
        if let Some(mac) = ready.gateway.as_ref().and_then(|gateway| gateway.mac) {
            for gateway in allocations.iter().filter_map(|allocation| allocation.gateway) {
                neigh::replace(pod, &Neigh::new(index, gateway, mac))?;
            }
        }
        Ok(())
    })
}
