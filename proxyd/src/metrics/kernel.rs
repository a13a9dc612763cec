//! What the maps say.

use super::gauge::{Gauges, ServiceGauge, service_of};
use super::text::Page;

/// The counters of the programs, by what they mean: `flow_new`, `drop_ttl` and so on are their names.
pub fn write(page: &mut Page, gauges: &Gauges) {
    let counters = &gauges.counters.0;
    let named = |prefix: &'static str| {
        counters.iter().filter_map(move |(name, count)| Some((name.strip_prefix(prefix)?, count)))
    };
    let count = |name: &str| counters.get(name).copied().unwrap_or(0);
    page.counter("heddle_flows_total", "Flows that were given a backend packet by packet")
        .is(count("flow_new"));
    page.counter("heddle_sockets_translated_total", "Connects and datagrams that a socket hook translated")
        .is(count("socket_translated"));
    page.counter("heddle_packets_total", "Packets of services, by direction")
        .of(&[("direction", "request")], count("request"))
        .of(&[("direction", "reply")], count("reply"));
    page.counter("heddle_tunnel_packets_total", "Packets of services through the tunnel, by direction")
        .of(&[("direction", "sent")], count("tunnel_sent"))
        .of(&[("direction", "received")], count("tunnel_received"));
    for (name, help, prefix) in [
        ("heddle_drops_total", "Packets that were dropped, by reason", "drop_"),
        (
            "heddle_rejects_total",
            "Packets and connects that were answered with a refusal, by reason",
            "reject_",
        ),
    ] {
        let mut family = page.counter(name, help);
        for (reason, count) in named(prefix) {
            family.of(&[("reason", reason)], count);
        }
    }
    let mut events = page.counter("heddle_events_total", "What else the programs have counted, by name");
    let said = ["flow_new", "socket_translated", "request", "reply", "tunnel_sent", "tunnel_received"];
    for (name, count) in counters {
        if !name.starts_with("drop_") && !name.starts_with("reject_") && !said.contains(&name.as_str()) {
            events.of(&[("event", name)], count);
        }
    }
    services(page, gauges);
    maps(page, gauges);
}

fn services(page: &mut Page, gauges: &Gauges) {
    let mut family =
        page.gauge("heddle_service_flows", "Flows under way that are translated packet by packet");
    for (name, gauge) in &gauges.services {
        let (service, port) = service_of(name);
        family.of(&[("service", service), ("port", port)], gauge.flows);
    }
    type Read = fn(&ServiceGauge) -> u64;
    let read: [(&'static str, &str, Read); 2] = [
        ("heddle_service_flow_packets", "Packets of those flows, in both directions", |gauge| gauge.packets),
        ("heddle_service_flow_bytes", "Bytes of those flows, in both directions", |gauge| gauge.bytes),
    ];
    for (name, help, value) in read {
        let mut family = page.gauge(name, help);
        for (name, gauge) in &gauges.services {
            let (service, port) = service_of(name);
            family.of(&[("service", service), ("port", port)], value(gauge));
        }
    }
    let mut family = page.counter("heddle_backend_given_total", "Flows and sockets that a backend was given");
    for backend in &gauges.backends {
        let (service, port) = service_of(&backend.name);
        family.of(&[("service", service), ("port", port), ("backend", &backend.address)], backend.given);
    }
    page.gauge(
        "kubeproxy_sync_proxy_rules_no_local_endpoints_total",
        "Services with a traffic policy Local and backends on other nodes only",
    )
    .of(&[("traffic_policy", "internal")], gauges.no_local_internal)
    .of(&[("traffic_policy", "external")], gauges.no_local_external);
}

fn maps(page: &mut Page, gauges: &Gauges) {
    let mut family = page.gauge("heddle_map_entries", "Entries of the eBPF maps");
    for map in &gauges.maps {
        if let Some(entries) = map.entries {
            family.of(&[("map", &map.name)], entries);
        }
    }
    let mut family = page.gauge("heddle_map_max_entries", "Entries that fit into the eBPF maps");
    for map in gauges.maps.iter().filter(|map| map.max_entries > 0) {
        family.of(&[("map", &map.name)], map.max_entries);
    }
    let mut family = page.gauge("heddle_map_bytes", "Kernel memory of the eBPF maps");
    for map in &gauges.maps {
        family.of(&[("map", &map.name)], map.bytes);
    }
}
