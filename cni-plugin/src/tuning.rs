//! What the tuning plugin does: kernel parameters of the pod's namespace, flags and queue of its interface.

use std::io::ErrorKind;
use std::path::Path;

use heddle_netlink::link::{self, Change, Link};
use heddle_netlink::sysctl;
use heddle_netlink::{NetNs, Socket};
use heddle_spec::{Failure, code};
use regex_lite::Regex;

use crate::conf::{Setting, Tuning};

/// The parameters that the operator allows, as the reference plugin reads them: a regular expression a line. Without the
/// file, all of the pod's namespace are allowed.
const ALLOWED: &str = "/etc/cni/tuning/allowlist.conf";

/// Refuses parameters that the operator does not allow. Reads nothing if there are none.
///
/// # Errors
/// Code 7.
pub fn check_allowed(wanted: &Tuning) -> Result<(), Failure> {
    if wanted.sysctls.is_empty() { Ok(()) } else { check_against(Path::new(ALLOWED), &wanted.sysctls) }
}

fn check_against(file: &Path, settings: &[Setting]) -> Result<(), Failure> {
    let list = match std::fs::read_to_string(file) {
        Ok(list) => list,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => {
            return Err(Failure::new(code::IO, format!("cannot read {}: {error}", file.display())));
        }
    };
    let allowed = list
        .lines()
        .map(str::trim)
        .enumerate()
        .filter(|(_, line)| !line.is_empty())
        .map(|(n, line)| {
            Regex::new(line).map_err(|error| {
                let place = format!("{}, line {}", file.display(), n + 1);
                Failure::new(code::INVALID_CONFIG, format!("{place}: no regular expression: {error}"))
            })
        })
        .collect::<Result<Vec<_>, _>>()?;
    match settings.iter().find(|setting| !allowed.iter().any(|line| line.is_match(&setting.name))) {
        Some(setting) => Err(Failure::new(
            code::INVALID_CONFIG,
            format!("sysctl: {} is not among those that {} allows", setting.name, file.display()),
        )),
        None => Ok(()),
    }
}

/// Makes the changes. `far` is the pod's interface.
pub fn apply(wanted: &Tuning, ns: &NetNs, pod: &mut Socket, far: &Link) -> Result<(), Failure> {
    let change = Change {
        promiscuous: wanted.promiscuous,
        all_multicast: wanted.all_multicast,
        queue: wanted.queue,
        ..Change::default()
    };
    if wanted.promiscuous.is_some() || wanted.all_multicast.is_some() || wanted.queue.is_some() {
        link::change(pod, far.index, &change)?;
    }
    if wanted.sysctls.is_empty() {
        return Ok(());
    }
    ns.run(|| {
        for setting in &wanted.sysctls {
            sysctl::write(&setting.key(&far.name), &setting.value)
                .map_err(|error| Failure::new(code::KERNEL, format!("sysctl: {error}")))?;
        }
        Ok(())
    })?
}

/// Compares the pod with what it is to be.
///
/// # Errors
/// Code 101 for the first difference.
pub fn check(wanted: &Tuning, ns: &NetNs, far: &Link) -> Result<(), Failure> {
    let different = |what: String| Err(Failure::new(code::KERNEL, what));
    let flags = [
        (wanted.promiscuous, far.promiscuous, "promisc"),
        (wanted.all_multicast, far.all_multicast, "allmulti"),
    ];
    for (wanted, found, key) in flags {
        if wanted.is_some_and(|wanted| wanted != found) {
            return different(format!("{}: {key} is {found}", far.name));
        }
    }
    if let Some(queue) = wanted.queue.filter(|queue| *queue != far.queue) {
        return different(format!("{}: txqueuelen is {}, not {queue}", far.name, far.queue));
    }
    if wanted.sysctls.is_empty() {
        return Ok(());
    }
    ns.run(|| {
        for setting in &wanted.sysctls {
            let key = setting.key(&far.name);
            let found = sysctl::read(&key)?;
            // The kernel writes lists of numbers with tabs.
            if !found.split_whitespace().eq(setting.value.split_whitespace()) {
                return different(format!("sysctl {key} is {found:?}, not {:?}", setting.value));
            }
        }
        Ok(())
    })?
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_list_of_the_operator_counts() {
        let settings = |name: &str| {
            let object = json!({"sysctl": {name: "1"}});
            Tuning::read(object.as_object().unwrap()).unwrap().sysctls
        };
        let file = std::env::temp_dir().join(format!("heddle-allowed-{}", std::process::id()));
        check_against(&file, &settings("net.core.somaxconn")).unwrap();
        std::fs::write(&file, "^net\\.core\\.somaxconn$\n\n  ^net\\.ipv4\\.conf\\.IFNAME\\.[a-z_]*$\n")
            .unwrap();
        check_against(&file, &settings("net.core.somaxconn")).unwrap();
        check_against(&file, &settings("net.ipv4.conf.IFNAME.arp_filter")).unwrap();
        for name in ["net.core.somaxconn2", "net.ipv4.conf.all.arp_filter", "net/core/somaxconn"] {
            let failure = check_against(&file, &settings(name)).unwrap_err();
            assert!(failure.code == 7 && failure.msg.contains(name), "{failure:?}");
        }
        std::fs::write(&file, "").unwrap();
        assert_eq!(check_against(&file, &settings("net.core.somaxconn")).unwrap_err().code, 7);
        std::fs::write(&file, "ok\n(").unwrap();
        assert!(check_against(&file, &settings("net.core.x")).unwrap_err().msg.contains("line 2"));
        std::fs::remove_file(&file).unwrap();
    }
}
