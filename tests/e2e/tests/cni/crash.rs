//! Killed at the wrong moment: afterwards DEL cleans up, and ADD works.

use std::process::Command;

use heddle_netlink::link;

use super::bench::{Host, Pod};

/// Kills the plugin at its `n`th call of `call`, while it does `command`. `None`: it came to its end before.
fn killed_at(host: &Host, pod: &Pod, command: &str, call: &str, n: usize) -> Option<()> {
    let mut strace = Command::new("strace");
    strace.args(["-f", "-qq", "-o", "/dev/null", "-e", &format!("trace={call}")]);
    strace.arg("-e").arg(format!("inject={call}:signal=KILL:when={n}")).arg(heddle_lab::bin("heddle"));
    let mut variables = Host::variables(pod, command);
    variables.push(("PATH".into(), "/usr/bin:/bin".into()));
    let answer = host.run(&mut strace, &variables, host.conf().to_string().as_bytes());
    assert!(!answer.stderr.contains("panicked"), "{answer:?}");
    (!answer.success).then_some(())
}

/// Every call of these kinds is a moment: before the kernel is told something, a lease appears or goes.
const CALLS: [&str; 4] = ["sendto", "linkat", "unlinkat", "setns"];

#[test]
fn fault_041_killed_in_the_middle_of_add() {
    let host = Host::new();
    let conf = host.conf();
    let pod = Pod::new("abc");
    host.add(&pod, &conf);
    host.del(&pod, &conf);
    let before = host.state();
    let mut moments = 0;
    for call in CALLS {
        for n in 1.. {
            if killed_at(&host, &pod, "ADD", call, n).is_none() {
                host.del(&pod, &conf);
                break;
            }
            moments += 1;
            // Either the runtime deletes, or it tries again with the same container.
            if n % 2 == 0 {
                host.del(&pod, &conf);
                assert_eq!(host.state(), before, "{call} {n}");
                assert!(link::by_name(&mut pod.socket(), "eth0").unwrap().is_none(), "{call} {n}");
            }
            let again = host.call(&pod, "ADD", &conf);
            // Only if the interface was complete, and the answer was all that was missing.
            assert!(again.success || again.msg().contains("attached already"), "{call} {n}: {again:?}");
            host.del(&pod, &conf);
            assert_eq!(host.state(), before, "{call} {n}");
        }
    }
    assert!(moments > 20, "{moments}");
}

#[test]
fn fault_042_killed_in_the_middle_of_delete() {
    let host = Host::new();
    let conf = host.conf();
    let pod = Pod::new("abc");
    host.add(&pod, &conf);
    host.del(&pod, &conf);
    let before = host.state();
    for call in CALLS {
        for n in 1.. {
            host.add(&pod, &conf);
            let killed = killed_at(&host, &pod, "DEL", call, n);
            host.del(&pod, &conf);
            assert_eq!(host.state(), before, "{call} {n}");
            if killed.is_none() {
                break;
            }
        }
    }
}
