//! The services of a measurement: one that is asked, in the middle of many that are not.

use std::net::{IpAddr, Ipv4Addr};

use serde_json::{Value, json};

/// Backends of each service that is not asked.
pub const BACKENDS: u32 = 10;
/// One service in so many has a node port.
const NODE_PORT_EVERY: u32 = 5;
/// The first of them; 2,000 follow.
const FIRST_NODE_PORT: u16 = 30_100;
/// The first address of services.
const SERVICES: Ipv4Addr = Ipv4Addr::new(10, 96, 16, 1);
/// The first address of backends that are nobody's.
const NOBODY: Ipv4Addr = Ipv4Addr::new(10, 128, 0, 1);

/// One service.
pub struct Served {
    pub number: u32,
    pub ip: Ipv4Addr,
    pub node_port: Option<u16>,
    pub target: u16,
    pub backends: Vec<Ipv4Addr>,
}

/// All services of a node.
pub struct Fleet {
    pub services: Vec<Served>,
    /// Which of them is asked.
    pub asked: usize,
}

impl Fleet {
    /// `count` services; the one in the middle is answered by `backend` at port `target`.
    pub fn new(count: u32, backend: Ipv4Addr, target: u16) -> Self {
        let above = |first: Ipv4Addr, n: u32| Ipv4Addr::from_bits(first.to_bits() + n);
        let asked = count / 2;
        let service = |number: u32| Served {
            number,
            ip: above(SERVICES, number),
            node_port: number
                .is_multiple_of(NODE_PORT_EVERY)
                .then(|| FIRST_NODE_PORT + (number / NODE_PORT_EVERY) as u16),
            target,
            backends: match number == asked {
                true => vec![backend],
                false => (0..BACKENDS).map(|i| above(NOBODY, number * BACKENDS + i)).collect(),
            },
        };
        Self { services: (0..count).map(service).collect(), asked: asked as usize }
    }

    /// The service that is asked.
    pub fn asked(&self) -> &Served {
        &self.services[self.asked]
    }

    /// As one manifest.
    pub fn manifest(&self) -> Value {
        let items: Vec<Value> =
            self.services.iter().flat_map(|service| [object(service), slice(service)]).collect();
        json!({ "apiVersion": "v1", "kind": "List", "items": items })
    }
}

fn name(service: &Served) -> String {
    format!("s{}", service.number)
}

fn object(service: &Served) -> Value {
    let mut port = json!({ "name": "http", "protocol": "TCP", "port": 80, "targetPort": service.target });
    if let Some(node_port) = service.node_port {
        port["nodePort"] = node_port.into();
    }
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": { "name": name(service), "namespace": "default" },
        "spec": {
            "type": if service.node_port.is_some() { "NodePort" } else { "ClusterIP" },
            "clusterIP": service.ip, "clusterIPs": [service.ip], "ipFamilies": ["IPv4"], "ports": [port],
        },
    })
}

fn slice(service: &Served) -> Value {
    let endpoint = |ip: &Ipv4Addr| {
        let conditions = json!({ "ready": true, "serving": true, "terminating": false });
        json!({ "addresses": [IpAddr::V4(*ip)], "conditions": conditions })
    };
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {
            "name": format!("{}-v4", name(service)), "namespace": "default",
            "labels": { "kubernetes.io/service-name": name(service) },
        },
        "ports": [{ "name": "http", "protocol": "TCP", "port": service.target }],
        "endpoints": service.backends.iter().map(endpoint).collect::<Vec<_>>(),
    })
}
