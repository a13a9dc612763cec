//! A route of a pod (section 5, "Success", key `routes`).

use std::net::IpAddr;

use ipnetwork::IpNetwork;

/// A route for the pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    pub dst: IpNetwork,
    /// The gateway of the pod's address of the same family, if not given.
    pub gw: Option<IpAddr>,
    pub mtu: Option<u32>,
    pub advmss: Option<u32>,
    pub priority: Option<u32>,
    pub table: Option<u32>,
    pub scope: Option<u8>,
}
