//! Names, by CoreDNS in pods of its own.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::ensure;
use super::stage::{FAMILIES, Stage};
use crate::error::Result;
use crate::{dns, pods};

/// A service's name, short and long, found within a pod as its resolv.conf says; and one that is none.
pub fn by_the_clusters_dns(stage: &Stage) -> Result<()> {
    if let Some(why) = dns::missing() {
        heddle_lab::skip(&why);
        return Ok(());
    }
    let web = stage.web()?;
    stage.cluster.api().apply_all(dns::objects())?;
    stage.cluster.api().wait_all(
        "v1/Pod",
        Some("kube-system"),
        "k8s-app=kube-dns",
        crate::cluster::LIMIT,
        |pods| !pods.is_empty() && pods.iter().all(|pod| crate::cluster::condition(pod, "Ready")),
    )?;
    let service = stage.service(&pods::service("named", "web"))?;
    let expected: BTreeSet<IpAddr> = FAMILIES.iter().filter_map(|v4| pods::ip(&service, *v4)).collect();
    let server = std::net::SocketAddr::new(dns::ADDRESS.into(), 53);
    for standing in &web {
        // Over TCP it says that it is there.
        heddle_lab::eventually("a DNS server", crate::cluster::LIMIT, || {
            standing
                .place
                .enter(|| std::net::TcpStream::connect_timeout(&server, std::time::Duration::from_secs(1)))?
                .map(|_| true)
                .map_err(|e| heddle_lab::Error::Oracle(e.to_string()))
        })?;
        for name in ["named", "named.default", "named.default.svc.cluster.local"] {
            let resolve = format!("exec {} -- /inmate resolve {name}", standing.name());
            let printed = stage.cluster.kubectl(&resolve)?;
            let found: BTreeSet<IpAddr> = printed.lines().filter_map(|line| line.parse().ok()).collect();
            ensure(found == expected, || {
                format!("{name} in {} is {found:?}, not {expected:?}", standing.name())
            })?;
        }
        let nothing = stage.cluster.kubectl(&format!("exec {} -- /inmate resolve nobody", standing.name()));
        ensure(nothing.is_err(), || format!("nobody is {nothing:?}"))?;
    }
    stage.withdraw("named")
}
