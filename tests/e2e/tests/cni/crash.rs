//! Killed at the wrong moment: afterwards DEL cleans up, and ADD works.

use std::process::Command;

use heddle_netlink::link;

use super::bench::{Answer, Host, Pod};

/// Kills the plugin at its `n`th call of `call`, while it does `command`. `None`: it came to its end before.
fn killed_at(host: &Host, pod: &Pod, command: &str, call: &str, n: usize) -> Option<()> {
    let answer = injected(host, pod, command, &format!("{call}:signal=KILL:when={n}"));
    (!answer.success).then_some(())
}

/// Runs the plugin while something is done to its system calls (`-e inject` of strace).
fn injected(host: &Host, pod: &Pod, command: &str, fault: &str) -> Answer {
    let call = fault.split(':').next().unwrap();
    let mut strace = Command::new("strace");
    strace.args(["-f", "-qq", "-o", "/dev/null", "-e", &format!("trace={call}")]);
    strace.arg("-e").arg(format!("inject={fault}")).arg(heddle_lab::bin("heddle"));
    let mut variables = Host::variables(pod, command);
    variables.push(("PATH".into(), "/usr/bin:/bin".into()));
    let answer = host.run(&mut strace, &variables, host.conf().to_string().as_bytes());
    assert!(!answer.stderr.contains("panicked"), "{fault}: {answer:?}");
    answer
}

/// Every call of these kinds is a moment: before the kernel is told something, a lease appears or goes.
const CALLS: [&str; 4] = ["sendto", "linkat", "unlinkat", "setns"];

#[test]
fn fault_041_killed_in_the_middle_of_add() {
    let (host, conf, pod, before) = Host::settled();
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
    let (host, conf, pod, before) = Host::settled();
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

#[test]
fn fault_044_every_call_may_fail() {
    let (host, conf, pod, before) = Host::settled();
    let mut failures = 0;
    for (call, errno) in [
        ("openat", "EMFILE"),
        ("openat2", "EIO"),
        ("linkat", "ENOSPC"),
        ("sendto", "ENOMEM"),
        ("write", "EIO"),
    ] {
        let mut untouched = 0;
        for n in 1.. {
            let fault = format!("{call}:error={errno}:when={n}");
            let added = injected(&host, &pod, "ADD", &fault);
            if added.success {
                let deleted = injected(&host, &pod, "DEL", &fault);
                if deleted.success {
                    untouched += 1;
                } else {
                    // A runtime that is told of a failure tries again.
                    host.del(&pod, &conf);
                }
            } else {
                failures += 1;
                untouched = 0;
                if let Some(code) = added.json["code"].as_u64() {
                    assert!(matches!(code, 3..=5 | 7 | 101 | 102), "{fault}: {added:?}");
                }
            }
            assert_eq!(host.state(), before, "{fault}: {added:?}");
            // Some failures may be borne; after several that were, there are no more such calls.
            if untouched == 4 {
                break;
            }
        }
    }
    assert!(failures > 30, "{failures}");
}
