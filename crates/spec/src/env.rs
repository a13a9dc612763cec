//! The parameters that come in the environment (section 2, "Parameters").

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;

use heddle_netlink::{MacAddr, link};

use crate::{Failure, Owner, Version, code, mac};

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

    /// As `CNI_COMMAND` has it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Add => "ADD",
            Self::Del => "DEL",
            Self::Check => "CHECK",
            Self::Gc => "GC",
            Self::Status => "STATUS",
            Self::Version => "VERSION",
        }
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
    /// The addresses that `CNI_ARGS` asks for: `IP=`, several with commas, with or without prefix length.
    pub requested: Vec<IpAddr>,
    /// The Ethernet address that `CNI_ARGS` asks for: `MAC=`.
    pub mac: Option<MacAddr>,
}

impl Environment {
    /// What is known of an interface that nobody calls for: its owner.
    pub const fn of(owner: Owner) -> Self {
        Self { owner, netns: None, requested: Vec::new(), mac: None }
    }

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
        // `lo` is for a plugin to judge that knows whether it is a loopback plugin.
        if !link::name_is_valid(&ifname) || matches!(ifname.as_str(), "all" | "default") {
            let shown: String = ifname.chars().take(32).collect();
            return Err(invalid(format!("CNI_IFNAME {shown:?} cannot be the name of an interface")));
        }
        let owner = Owner::new(&get("CNI_CONTAINERID").unwrap_or_default(), &ifname)
            .map_err(|error| invalid(format!("CNI_CONTAINERID: {error}")))?;
        let netns = get("CNI_NETNS").filter(|path| !path.is_empty()).map(PathBuf::from);
        // The kernel's PATH_MAX. DEL takes such a path for one that leads nowhere.
        if command != Command::Del && netns.as_ref().is_some_and(|path| path.as_os_str().len() >= 4096) {
            return Err(invalid("CNI_NETNS is longer than a path can be".into()));
        }
        let environment = Self { netns, ..Self::of(owner) };
        match Arguments::parse(&get("CNI_ARGS").unwrap_or_default()) {
            Ok(args) => Ok(Some(Self { requested: args.ips, mac: args.mac, ..environment })),
            // What cannot be read cannot keep an interface from being deleted.
            Err(_) if command == Command::Del => Ok(Some(environment)),
            Err(reason) => Err(invalid(format!("CNI_ARGS: {reason}"))),
        }
    }
}

/// `CNI_ARGS`: `KEY=VALUE;KEY=VALUE`, the last of a key counts.
#[derive(Debug, Default)]
struct Arguments {
    ips: Vec<IpAddr>,
    mac: Option<MacAddr>,
}

impl Arguments {
    /// What Kubernetes tells of the pod (`K8S_POD_NAME` and the like) is taken and not used.
    fn parse(text: &str) -> Result<Self, String> {
        let mut pairs = BTreeMap::new();
        for pair in text.split(';').filter(|pair| !pair.is_empty()) {
            let (key, value) =
                pair.split_once('=').ok_or_else(|| format!("{} is not KEY=VALUE", shown(pair)))?;
            pairs.insert(key, value);
        }
        let ignore = match pairs.get("IgnoreUnknown").map(|value| value.to_ascii_lowercase()).as_deref() {
            Some("1" | "true") => true,
            None | Some("0" | "false") => false,
            Some(other) => return Err(format!("IgnoreUnknown={} is not true or false", shown(other))),
        };
        let known = |key: &str| matches!(key, "IP" | "MAC" | "IgnoreUnknown") || key.starts_with("K8S_POD_");
        if let Some(key) = pairs.keys().find(|key| !ignore && !known(key)) {
            return Err(format!("{} is not known, and IgnoreUnknown is not set", shown(key)));
        }
        let ips = pairs.get("IP").filter(|list| !list.is_empty()).map(|list| list.split(','));
        let ips = ips.into_iter().flatten().map(|ip| {
            let bare = ip.split('/').next().unwrap_or_default();
            bare.parse().map_err(|_| format!("IP={} is not an IP address", shown(ip)))
        });
        let mac = pairs.get("MAC").filter(|mac| !mac.is_empty()).map(|mac| mac::parse(mac)).transpose();
        Ok(Self { ips: ips.collect::<Result<_, _>>()?, mac: mac.map_err(|reason| format!("MAC={reason}"))? })
    }
}

fn shown(text: &str) -> String {
    format!("{:?}", text.chars().take(64).collect::<String>())
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
            ["0123456789abcdef", ".", "..", "a/b", "a:b", "a b", "eth%d", "é", "all", "default", "a\tb"]
        {
            assert_eq!(with("CNI_IFNAME", name).unwrap_err().code, 4, "{name:?}");
        }
    }

    #[test]
    fn fault_022_arguments() {
        let wrong = [
            "IP",
            "IP=x",
            "IP=10.0.0.300",
            "IP=10.0.0.3,,",
            "FOO=1",
            "=;x",
            "IgnoreUnknown=yes",
            "IgnoreUnknown=",
            "IgnoreUnknown=0;FOO=1",
            "MAC=x",
            "MAC=ff:ff:ff:ff:ff:ff",
        ];
        for args in wrong {
            assert_eq!(with("CNI_ARGS", args).unwrap_err().code, 4, "{args:?}");
            let mut del = ALL.to_vec();
            del.push(("CNI_ARGS", args));
            assert!(parse(Command::Del, &del).is_ok(), "{args:?}: DEL goes on");
        }
        for truth in ["1", "true", "True", "TRUE"] {
            let args =
                format!("IgnoreUnknown={truth};FOO=1=2;;K8S_POD_NAME=a\nb;K8S_POD_NAMESPACE=c;IP=10.0.0.3");
            assert_eq!(
                with("CNI_ARGS", &args).unwrap().unwrap().requested,
                ["10.0.0.3".parse::<IpAddr>().unwrap()]
            );
        }
        let both = with("CNI_ARGS", "IP=10.0.0.3/24,fd00::3;MAC=02:00:00:00:00:07;IgnoreUnknown=0");
        let both = both.unwrap().unwrap();
        assert_eq!((both.requested.len(), both.mac), (2, Some([2, 0, 0, 0, 0, 7])));
    }
}
