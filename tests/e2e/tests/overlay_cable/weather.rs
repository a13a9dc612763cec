//! Loss, duplicates, another order, wrong bits, and a cable that carries in one direction alone.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use heddle_e2e::{Ask, Cluster, Lab, Load, Plan};

use crate::cable::Cable;

const PORT: u16 = 8080;

fn lab() -> Lab {
    let lab = Lab::builder().nodes(2).clients(0).build().unwrap();
    for node in lab.nodes() {
        lab.manifests().node(node).unwrap();
    }
    lab
}

/// The cable forgets what is still to be done, so it is done before.
fn plan() -> Plan {
    Plan::overlay().vxland_arg("--checksum-offload=off")
}

fn is_vxlan(frame: &[u8]) -> bool {
    frame.len() > 100 && frame[12..14] == [8, 0] && frame[23] == 17 && frame[36..38] == 8472u16.to_be_bytes()
}

/// What streams carry arrives as it was sent, whatever becomes of single packets; wrong bits inside are seen by the inner
/// checksum (the outer has none, RFC 7348 section 5).
#[test]
fn fault_131_bad_weather_costs_time_and_nothing_else() {
    let lab = lab();
    let wrong = Arc::new(AtomicU32::new(0));
    let counted = Arc::clone(&wrong);
    let (mut number, mut held) = (0u32, [const { Vec::new() }; 2]);
    let _cable = Cable::put(&lab, "n1", move |end, frame| {
        if !is_vxlan(frame) {
            return vec![frame.to_vec()];
        }
        number += 1;
        let mut out = match number {
            // 5 % are lost.
            n if n % 20 == 0 => vec![],
            n if n % 7 == 0 => vec![frame.to_vec(), frame.to_vec()],
            n if n % 9 == 0 => {
                let mut bent = frame.to_vec();
                *bent.last_mut().unwrap() ^= 0x10;
                counted.fetch_add(1, Ordering::Relaxed);
                vec![bent]
            }
            // Overtaken by the next.
            n if n % 5 == 0 => {
                held[end].push(frame.to_vec());
                return vec![];
            }
            _ => vec![frame.to_vec()],
        };
        out.append(&mut held[end]);
        out
    });
    let cluster = Cluster::on(lab, plan()).unwrap();
    let pod = cluster.pod(1, "client").unwrap();
    let server = cluster.backend(2, "server", PORT).unwrap();
    let loads: Vec<_> = [true, false]
        .map(|v4| (server.pod().ip(v4).unwrap(), PORT))
        .into_iter()
        .map(|to| {
            Load::streams(to, 2)
                .padding(4000)
                .limit(Duration::from_secs(20))
                .expect([server.name()])
                .start(&pod)
                .unwrap()
        })
        .collect();
    for load in &loads {
        load.wait_for(30, Duration::from_secs(60)).unwrap();
    }
    for load in loads {
        load.stop().assert_clean();
    }
    assert!(wrong.load(Ordering::Relaxed) > 0, "the weather was bad");
}

/// A third of the packets is lost: connections are slow, and none of them is with somebody else.
#[test]
fn fault_131_a_third_of_the_packets_is_lost() {
    let cluster = Cluster::on(lab(), Plan::overlay()).unwrap();
    let pod = cluster.pod(1, "client").unwrap();
    let server = cluster.backend(2, "server", PORT).unwrap();
    let to = (server.pod().ip4(), PORT);
    cluster.switch().lossy(&[("n2", 30)]).unwrap();
    // Half of the segments or their answers are lost: the kernel waits twice as long after each, 51 s after eight of them.
    let patience = Duration::from_secs(180);
    let load = Load::streams(to, 2).limit(patience).expect([server.name()]).start(&pod).unwrap();
    load.wait_for(5, patience).unwrap();
    cluster.switch().lossy(&[]).unwrap();
    load.wait_for(20, patience).unwrap();
    load.stop().assert_clean();
    assert!(cluster.switch().lost().unwrap() > 0);
}

/// What one node hears of the other and the other does not hear of it. The connection goes on where it stood. How long it
/// lasts: `HEDDLE_PARTITION_SECONDS`.
#[test]
fn fault_131_a_partition_in_one_direction_heals() {
    let seconds =
        std::env::var("HEDDLE_PARTITION_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(1);
    let lab = lab();
    let cut = [Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false))];
    let ends = cut.clone();
    let _cable =
        Cable::put(
            &lab,
            "n1",
            move |end, frame| {
                if ends[end].load(Ordering::Relaxed) { vec![] } else { vec![frame.to_vec()] }
            },
        );
    let cluster = Cluster::on(lab, plan()).unwrap();
    let pod = cluster.pod(1, "client").unwrap();
    let server = cluster.backend(2, "server", PORT).unwrap();
    let to = (server.pod().ip4(), PORT);
    let limit = Duration::from_secs(30 + 2 * seconds);
    let load = Load::streams(to, 1).limit(limit).expect([server.name()]).start(&pod).unwrap();
    for end in &cut {
        load.wait_for(5, limit).unwrap();
        end.store(true, Ordering::Relaxed);
        assert!(Ask::new(to).limit(Duration::from_secs(seconds)).tcp(&pod).is_err());
        end.store(false, Ordering::Relaxed);
        load.wait_for(5, limit).unwrap();
    }
    load.stop().assert_clean();
}
