//! Ports of services and of endpoints.

use heddle_model::{EndpointPort, Protocol, ServicePort};

use super::cursor::Cursor;
use crate::tree::Error;

/// Those of a Service. It may have node ports or not; a number there is then none.
pub fn of_service(spec: &Cursor<'_>, has_node_ports: bool) -> Result<Vec<ServicePort>, Error> {
    let mut ports = Vec::new();
    for port in spec.list("ports")? {
        let Some(proto) = protocol(&port)? else { continue };
        let number = port.need("port")?;
        let node_port = match port.get("nodePort")? {
            Some(field) if has_node_ports => Some(field.port()?).filter(|number| *number != 0),
            _ => None,
        };
        ports.push(ServicePort { name: name(&port)?, port: not_zero(&number)?, proto, node_port });
    }
    Ok(ports)
}

/// A DNS label (RFC 1123), or none.
fn name(port: &Cursor<'_>) -> Result<String, Error> {
    let Some(field) = port.get("name")? else { return Ok(String::new()) };
    let text = field.text()?;
    let fine = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    match text.len() <= 63 && text.chars().all(fine) {
        true => Ok(text.to_owned()),
        false => Err(field.error("not a port name (at most 63 of a-z 0-9 -)")),
    }
}

fn not_zero(at: &Cursor<'_>) -> Result<u16, Error> {
    match at.port()? {
        0 => Err(at.error("0 is no port (1 to 65535)")),
        port => Ok(port),
    }
}

/// `None`: one that is not known here, and the port is left out.
fn protocol(port: &Cursor<'_>) -> Result<Option<Protocol>, Error> {
    let Some(field) = port.get("protocol")? else { return Ok(Some(Protocol::Tcp)) };
    match field.text()? {
        "TCP" => Ok(Some(Protocol::Tcp)),
        "UDP" => Ok(Some(Protocol::Udp)),
        "SCTP" => Ok(Some(Protocol::Sctp)),
        other => field.unknown(format!("{other:?} is no protocol (TCP, UDP, SCTP)"), None),
    }
}

/// Those of an EndpointSlice, or of a subset of an Endpoints object.
pub fn of_endpoints(object: &Cursor<'_>) -> Result<Vec<EndpointPort>, Error> {
    let mut ports = Vec::new();
    for at in object.list("ports")? {
        // Without a number it stands for all ports, which no Service can name.
        let Some(port) = at.get("port")? else { continue };
        let Some(proto) = protocol(&at)? else { continue };
        let name = at.text_at("name")?.unwrap_or_default().to_owned();
        ports.push(EndpointPort { name, port: not_zero(&port)?, proto });
    }
    Ok(ports)
}
