//! The parameters that come in the environment (section 2, "Parameters").

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;

use heddle_netlink::link;

use crate::{Failure, Owner, Version, code};

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    Add,
    Del,
    Check,
    Gc,
    Status,
    Version,
}

impl Command {
    /// Reads `CNI_COMMAND`.
    pub fn parse(text: &str) -> Result<Self, Failure> {
        Ok(match text {
            "ADD" => Self::Add,
            "DEL" => Self::Del,
            "CHECK" => Self::Check,
            "GC" => Self::Gc,
            "STATUS" => Self::Status,
            "VERSION" => Self::Version,
            other => {
                let shown: String = other.chars().take(32).collect();
                return Err(Failure::new(
                    code::INVALID_ENVIRONMENT,
                    format!("CNI_COMMAND {shown:?} is not ADD, DEL, CHECK, GC, STATUS or VERSION"),
                ));
            }
        })
    }

    /// The version of the specification that the command came with.
    pub const fn since(self) -> Version {
        match self {
            Self::Add | Self::Del | Self::Version => Version::V0_1_0,
            Self::Check => Version::V0_4_0,
            Self::Gc | Self::Status => Version::V1_1_0,
        }
    }

    /// The variables that the command cannot do without.
    fn required(self) -> &'static [&'static str] {
        match self {
            Self::Add | Self::Check => &["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_PATH"],
            Self::Del => &["CNI_CONTAINERID", "CNI_IFNAME", "CNI_PATH"],
            Self::Gc | Self::Status => &["CNI_PATH"],
            Self::Version => &[],
        }
    }
}

/// The interface that the command is about, checked.
#[derive(Debug)]
pub struct Environment {
    /// Container and interface.
    pub owner: Owner,
    /// Not given for DEL if the namespace is gone.
    pub netns: Option<PathBuf>,
    /// The address that `CNI_ARGS` asks for.
    pub requested: Option<IpAddr>,
}

impl Environment {
    /// Checks the variables that `command` needs. Those of ADD, DEL and CHECK make an environment.
    pub fn parse(command: Command, get: impl Fn(&str) -> Option<String>) -> Result<Option<Self>, Failure> {
        let invalid = |msg: String| Failure::new(code::INVALID_ENVIRONMENT, msg);
        let missing: Vec<&str> = command
            .required()
            .iter()
            .copied()
            .filter(|name| get(name).is_none_or(|value| value.is_empty()))
            .collect();
        match missing.as_slice() {
            [] => {}
            // The specification has a word for a container without a name.
            ["CNI_CONTAINERID"] if get("CNI_CONTAINERID").is_some() => {
                return Err(Failure::new(code::UNKNOWN_CONTAINER, "CNI_CONTAINERID is empty"));
            }
            _ => {
                return Err(invalid(format!(
                    "required environment variables are missing: {}",
                    missing.join(", ")
                )));
            }
        }
        if !matches!(command, Command::Add | Command::Del | Command::Check) {
            return Ok(None);
        }
        let ifname = get("CNI_IFNAME").unwrap_or_default();
        if !link::name_is_valid(&ifname) || matches!(ifname.as_str(), "lo" | "all" | "default") {
            let shown: String = ifname.chars().take(32).collect();
            return Err(invalid(format!("CNI_IFNAME {shown:?} cannot be the name of an interface")));
        }
        let owner = Owner::new(&get("CNI_CONTAINERID").unwrap_or_default(), &ifname)
            .map_err(|error| invalid(format!("CNI_CONTAINERID: {error}")))?;
        let netns = get("CNI_NETNS").filter(|path| !path.is_empty()).map(PathBuf::from);
        let args = arguments(&get("CNI_ARGS").unwrap_or_default()).or_else(|failure| {
            // What cannot be read cannot keep an interface from being deleted.
            if command == Command::Del { Ok(BTreeMap::new()) } else { Err(failure) }
        })?;
        let requested = match args.get("IP").filter(|ip| !ip.is_empty()) {
            None => None,
            Some(ip) => {
                Some(ip.parse().map_err(|_| invalid(format!("CNI_ARGS: IP={ip:?} is not an IP address")))?)
            }
        };
        Ok(Some(Self { owner, netns, requested }))
    }
}

/// Reads `CNI_ARGS`: `KEY=VALUE;KEY=VALUE`. What Kubernetes tells of the pod is taken and not used.
fn arguments(text: &str) -> Result<BTreeMap<String, String>, Failure> {
    let invalid = |msg: String| Failure::new(code::INVALID_ENVIRONMENT, msg);
    let mut pairs = BTreeMap::new();
    for pair in text.split(';').filter(|pair| !pair.is_empty()) {
        let Some((key, value)) = pair.split_once('=') else {
            let shown: String = pair.chars().take(64).collect();
            return Err(invalid(format!("CNI_ARGS: {shown:?} is not KEY=VALUE")));
        };
        pairs.insert(key.to_owned(), value.to_owned());
    }
    let ignore =
        pairs.get("IgnoreUnknown").is_some_and(|value| matches!(value.as_str(), "1" | "true" | "True"));
    let unknown = pairs
        .keys()
        .find(|key| !matches!(key.as_str(), "IP" | "IgnoreUnknown") && !key.starts_with("K8S_POD_"));
    match unknown {
        Some(key) if !ignore => {
            let shown: String = key.chars().take(64).collect();
            Err(invalid(format!("CNI_ARGS: {shown:?} is not known, and IgnoreUnknown is not set")))
        }
        _ => Ok(pairs),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(command: Command, variables: &[(&str, &str)]) -> Result<Option<Environment>, Failure> {
        let find = |name: &str| variables.iter().find(|(n, _)| *n == name).map(|(_, v)| (*v).to_owned());
        Environment::parse(command, find)
    }

    const ALL: [(&str, &str); 4] = [
        ("CNI_CONTAINERID", "abc"),
        ("CNI_NETNS", "/proc/1/ns/net"),
        ("CNI_IFNAME", "eth0"),
        ("CNI_PATH", "/x"),
    ];

    #[test]
    fn fault_014_every_missing_variable_is_named() {
        for mask in 0..16u32 {
            let given: Vec<_> =
                ALL.iter().enumerate().filter(|(n, _)| mask & (1 << n) != 0).map(|(_, v)| *v).collect();
            let result = parse(Command::Add, &given);
            if mask == 15 {
                assert!(result.is_ok());
                continue;
            }
            let failure = result.unwrap_err();
            assert_eq!(failure.code, 4);
            for (n, (name, _)) in ALL.iter().enumerate() {
                assert_eq!(failure.msg.contains(name), mask & (1 << n) == 0, "{failure:?}");
            }
        }
        let without_netns: Vec<_> = ALL.iter().copied().filter(|(name, _)| *name != "CNI_NETNS").collect();
        assert!(parse(Command::Del, &without_netns).unwrap().unwrap().netns.is_none());
    }

    #[test]
    fn fault_015_commands_are_upper_case() {
        for text in ["add", "Add", "ADD ", "", "REMOVE"] {
            assert_eq!(Command::parse(text).unwrap_err().code, 4, "{text:?}");
        }
    }

    fn with(name: &'static str, value: &str) -> Result<Option<Environment>, Failure> {
        let mut variables: Vec<_> = ALL.iter().copied().filter(|(n, _)| *n != name).collect();
        variables.push((name, value));
        parse(Command::Add, &variables)
    }

    #[test]
    fn fault_016_container_ids() {
        let long = "a".repeat(1024);
        for id in ["-x", "../", "a b", "a/b", "a\nb", &long] {
            assert_eq!(with("CNI_CONTAINERID", id).unwrap_err().code, 4, "{id:?}");
        }
        assert_eq!(with("CNI_CONTAINERID", "").unwrap_err().code, 3);
    }

    #[test]
    fn fault_017_interface_names() {
        for name in
            ["0123456789abcdef", ".", "..", "a/b", "a:b", "a b", "eth%d", "é", "lo", "all", "default", "a\tb"]
        {
            assert_eq!(with("CNI_IFNAME", name).unwrap_err().code, 4, "{name:?}");
        }
    }

    #[test]
    fn fault_022_arguments() {
        for args in ["IP", "IP=x", "IP=10.0.0.300", "FOO=1", "=;x"] {
            assert_eq!(with("CNI_ARGS", args).unwrap_err().code, 4, "{args:?}");
        }
        let fine = "IgnoreUnknown=1;K8S_POD_NAME=a\nb;K8S_POD_NAMESPACE=c;FOO=1;IP=10.0.0.3";
        assert_eq!(with("CNI_ARGS", fine).unwrap().unwrap().requested, "10.0.0.3".parse().ok());
        let mut del = ALL.to_vec();
        del.push(("CNI_ARGS", "nonsense"));
        assert!(parse(Command::Del, &del).is_ok(), "DEL goes on");
    }
}
