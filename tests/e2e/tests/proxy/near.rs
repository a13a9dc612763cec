//! Around one pod and one node: itself, its node's ports, its device, large packets.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use heddle_lab::traffic::connect;
use heddle_lab::{Ask, Error, Load, Result, eventually};

use crate::odd::counter;
use crate::world::{BY, SOLO, WEB, World, list, status, strict};

const LIMIT: Duration = Duration::from_secs(20);

/// A pod reaches itself through its own service, TCP and UDP, both families, with and without the socket hooks.
#[test]
fn fault_067_a_pod_reaches_itself() -> Result<()> {
    for world in [World::start(strict())?, World::start_unhooked(strict())?] {
        let pod = world.web1.pod();
        for v4 in [true, false] {
            for by in BY {
                for _ in 0..3 {
                    assert_eq!(by.ask(Ask::new(SOLO.cluster(v4)), pod)?.server, "web-1");
                }
            }
        }
    }
    Ok(())
}

/// A pod reaches the node port of its own node by each address that the node has: those of the underlay, and those
/// that packets of its own bear.
#[test]
fn fault_068_a_pod_reaches_a_port_of_its_own_node_by_every_address() -> Result<()> {
    let world = World::start(strict())?;
    for (pod, index) in [(world.web1.pod(), 1), (world.web2.pod(), 2), (&world.visitor, 3)] {
        let node = world.cluster.node(index);
        for v4 in [true, false] {
            for by in BY {
                for named in [SOLO, WEB] {
                    let reply = by.ask(Ask::new(named.published(node.ip(v4))), pod)?;
                    assert!(reply.server.starts_with("web-"), "{reply:?}");
                    if reply.server != pod.name() {
                        assert_eq!(Some(reply.client.ip()), pod.ip(v4), "{by:?}: its own address");
                    }
                }
            }
        }
    }
    Ok(())
}

/// Ten megabytes each way in writes of 64 KiB, which travel as packets of up to 64 KiB with a checksum that is still to
/// be made: through the tunnel and beside it nothing of it is sent twice or too large, and far fewer packets are seen
/// than segments.
#[test]
fn fault_069_packets_of_64_kib() -> Result<()> {
    const WRITE: usize = 65_536;
    const WRITES: usize = 160;
    let world = World::start(strict())?;
    let client = world.cluster.client();
    for (index, v4) in [(1, true), (3, true), (1, false), (3, false)] {
        let node = world.cluster.node(index);
        let to = SOLO.published(node.ip(v4));
        let before = counter(node, "request")?;
        let bulk = || -> io::Result<()> {
            let stream = connect(to, None, Duration::from_secs(20))?;
            let question = [vec![b'x'; WRITE - 1], vec![b'\n']].concat();
            std::thread::scope(|scope| {
                let send = scope.spawn(|| (0..WRITES).try_for_each(|_| (&stream).write_all(&question)));
                receive(&stream, WRITE * WRITES)?;
                send.join().expect("it does not panic")
            })
        };
        client.enter(bulk)?.map_err(|e| Error::Oracle(format!("{to}: {e}")))?;
        let packets = counter(node, "request")? - before;
        let segments = (WRITE * WRITES / 1400) as u64;
        assert!(packets < segments * 3 / 4, "{to}: {packets} packets for {segments} segments");
        assert_eq!(counter(node, "too_big")?, 0);
    }
    Ok(())
}

/// Reads so many bytes of questions that come back, and what stands before each.
fn receive(mut stream: &TcpStream, bytes: usize) -> io::Result<()> {
    let mut buffer = vec![0; 1 << 16];
    let mut seen = 0;
    while seen < bytes {
        match stream.read(&mut buffer)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            length => seen += buffer[..length].iter().filter(|byte| matches!(byte, b'x' | b'\n')).count(),
        }
    }
    Ok(())
}

/// The host side of a pod's veth is set down, renamed there and back, and set up; its route is put back: the hooks are where they were, and connections of before go on.
#[test]
fn fault_061_a_pods_device_is_tampered_with() -> Result<()> {
    let world = World::start_unhooked(strict())?;
    let (node, pod) = (world.cluster.node(3), &world.visitor);
    let load = Load::streams(WEB.cluster(true), 2).rate(20).limit(LIMIT).start(pod)?;
    load.wait_for(10, LIMIT)?;
    let route = format!("ip -o route get {}", pod.ip4());
    let text = node.run(route.as_str())?;
    let mut words = text.split_whitespace().skip_while(|word| *word != "dev").skip(1);
    let device = words.next().ok_or_else(|| Error::Oracle(format!("no route: {text}")))?.to_owned();
    let routes = node.run(format!("ip route show dev {device}").as_str())?;
    let other = "renamed0";
    node.run(format!("ip link set {device} down").as_str())?;
    node.run(format!("ip link set {device} name {other}").as_str())?;
    node.run(format!("ip link set {other} name {device}").as_str())?;
    node.run(format!("ip link set {device} up").as_str())?;
    for route in routes.lines().filter(|line| !line.trim().is_empty()) {
        node.run(format!("ip route replace {} dev {device}", route.trim()).as_str())?;
    }
    load.wait_for(20, LIMIT)?;
    load.stop().assert_clean();
    eventually("the pod has its hooks", LIMIT, || {
        let said = status(node)?;
        let hooks = list(&said["hooks"]);
        Ok(["pod", "pod_out"].iter().all(|program| {
            hooks.iter().any(|h| h["at"] == device.as_str() && h["program"] == *program && h["dead"] == false)
        }))
    })
}
