//! Which names are kube-proxy's. Others call things KUBE-... too: the kubelet (KUBE-FIREWALL, KUBE-KUBELET-CANARY,
//! KUBE-MARK-..., KUBE-IPTABLES-HINT) and network policies (KUBE-ROUTER-..., KUBE-POD-FW-..., KUBE-NWPLCY-...).
//!
//! Source: pkg/proxy/{iptables,ipvs,nftables} of Kubernetes 1.20 to 1.36.

/// The device that holds the services' addresses in IPVS mode.
pub const IPVS_DEVICE: &str = "kube-ipvs0";
/// The table of the nftables mode, of family ip and of family ip6.
pub const TABLE: &str = "kube-proxy";

const CHAINS: [&str; 13] = [
    "KUBE-SERVICES",
    "KUBE-EXTERNAL-SERVICES",
    "KUBE-NODEPORTS",
    "KUBE-POSTROUTING",
    "KUBE-FORWARD",
    "KUBE-PROXY-FIREWALL",
    "KUBE-PROXY-CANARY",
    // Of the IPVS mode.
    "KUBE-LOAD-BALANCER",
    "KUBE-NODE-PORT",
    "KUBE-SOURCE-RANGES-FIREWALL",
    "KUBE-IPVS-FILTER",
    "KUBE-IPVS-OUT-FILTER",
    "KUBE-FIREWALL-IPVS",
];

/// In front of a hash of 16 digits of base 32: a chain of one service or endpoint.
const OF_ONE: [&str; 6] = ["KUBE-SVC-", "KUBE-SVL-", "KUBE-SEP-", "KUBE-EXT-", "KUBE-FW-", "KUBE-XLB-"];

/// Is this chain of iptables kube-proxy's?
pub fn is_chain(name: &str) -> bool {
    let hash = |rest: &str| {
        rest.len() == 16
            && rest.bytes().all(|byte| byte.is_ascii_uppercase() || (b'2'..=b'7').contains(&byte))
    };
    CHAINS.contains(&name) || OF_ONE.iter().any(|prefix| name.strip_prefix(prefix).is_some_and(hash))
}

/// Is this ipset kube-proxy's?
pub fn is_set(name: &str) -> bool {
    const SETS: [&str; 16] = [
        "LOOP-BACK",
        "CLUSTER-IP",
        "EXTERNAL-IP",
        "EXTERNAL-IP-LOCAL",
        "LOAD-BALANCER",
        "LOAD-BALANCER-LOCAL",
        "LOAD-BALANCER-FW",
        "LOAD-BALANCER-SOURCE-IP",
        "LOAD-BALANCER-SOURCE-CIDR",
        "NODE-PORT-TCP",
        "NODE-PORT-LOCAL-TCP",
        "NODE-PORT-UDP",
        "NODE-PORT-LOCAL-UDP",
        "NODE-PORT-SCTP-HASH",
        "NODE-PORT-LOCAL-SCTP-HASH",
        "HEALTH-CHECK-NODE-PORT",
    ];
    let name = name.strip_prefix("KUBE-6-").or_else(|| name.strip_prefix("KUBE-"));
    // A name has 31 characters at most: the longest of IPv6 are cut.
    name.is_some_and(|name| {
        SETS.contains(&name)
            || name == "IPVS-IPS"
            || (name.len() >= 20 && SETS.iter().any(|set| set.starts_with(name)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_kube_proxys_is_taken_for_it() {
        for name in
            ["KUBE-SERVICES", "KUBE-PROXY-CANARY", "KUBE-SVC-ERIFXISQEP7F7OF4", "KUBE-SEP-WPRIKOOSPSMMCQJD"]
        {
            assert!(is_chain(name), "{name}");
        }
        for name in [
            "KUBE-KUBELET-CANARY",
            "KUBE-FIREWALL",
            "KUBE-MARK-MASQ",
            "KUBE-MARK-DROP",
            "KUBE-IPTABLES-HINT",
            "KUBE-ROUTER-INPUT",
            "KUBE-POD-FW-WPRIKOOSPSMMCQJD",
            "KUBE-NWPLCY-WPRIKOOSPSMMCQJD",
            "KUBE-SVC-short",
            "PREROUTING",
        ] {
            assert!(!is_chain(name), "{name}");
        }
        assert!(is_set("KUBE-CLUSTER-IP") && is_set("KUBE-6-LOAD-BALANCER-SOURCE-CID"));
        assert!(!is_set("KUBE-SRC-XYZ") && !is_set("CLUSTER-IP"));
    }
}
