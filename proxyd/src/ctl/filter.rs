//! Which services somebody asks about.

use std::str::FromStr;

/// `NAMESPACE/NAME`, `NAMESPACE/NAME:PORT`, `NAMESPACE/`, or an address (with or without its port).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filter(String);

impl FromStr for Filter {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let address = || text.trim_matches(['[', ']']).parse::<std::net::IpAddr>().is_ok();
        let socket = || text.parse::<std::net::SocketAddr>().is_ok();
        match text.split_once('/') {
            Some((namespace, _)) if !namespace.is_empty() => {}
            None if address() || socket() => {}
            _ => return Err("a service is NAMESPACE/NAME, or one of its addresses".into()),
        }
        Ok(Self(text.to_owned()))
    }
}

impl Filter {
    /// Whether a frontend is meant: `name` as in `namespace/name:port`, `address` as in `10.96.0.1:80/tcp`.
    pub fn takes(&self, name: &str, address: &str) -> bool {
        let asked = self.0.as_str();
        let starts = |text: &str, with: &str, then: &[char]| {
            text.strip_prefix(with).is_some_and(|rest| rest.is_empty() || rest.starts_with(then))
        };
        let bare = asked.trim_matches(['[', ']']);
        (asked.ends_with('/') && name.starts_with(asked))
            || starts(name, asked, &[':'])
            || starts(address, asked, &[':', '/'])
            || starts(address, &format!("[{bare}]"), &[':', '/'])
    }

    /// Whether it names this service, of which nothing else is known.
    pub fn takes_service(&self, name: &str) -> bool {
        self.takes(name, "") || self.0.split(':').next() == Some(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn services_are_asked_for_by_name_or_address() {
        let takes =
            |asked: &str, name: &str, address: &str| Filter::from_str(asked).unwrap().takes(name, address);
        let web = |asked| takes(asked, "default/web:http", "10.96.0.1:80/tcp");
        for yes in ["default/web", "default/web:http", "default/", "10.96.0.1", "10.96.0.1:80"] {
            assert!(web(yes), "{yes}");
        }
        for no in ["default/we", "default/web:https", "kube-system/", "10.96.0.10", "10.96.0.1:8"] {
            assert!(!web(no), "{no}");
        }
        let v6 = |asked| takes(asked, "a/b:c", "[fd00::1]:80/tcp");
        assert!(v6("fd00::1") && v6("[fd00::1]") && v6("[fd00::1]:80") && !v6("fd00::11") && !v6("fd00::"));
        assert!(Filter::from_str("default/web").unwrap().takes_service("default/web"));
        assert!(Filter::from_str("default/web:http").unwrap().takes_service("default/web"));
        for wrong in ["web", "/web", "", "10.96.0"] {
            assert!(Filter::from_str(wrong).is_err(), "{wrong}");
        }
    }
}
