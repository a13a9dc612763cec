//! What a network says of names (section 5, "Success", key `dns`).

use serde::{Deserialize, Serialize};

/// Name servers and search domains. Nobody here acts on it: it is handed from the configuration to the caller.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default)]
pub struct Dns {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub nameservers: Vec<String>,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub domain: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub search: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub options: Vec<String>,
}

impl Dns {
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// What an earlier plugin of the chain said, and then what this one adds to it.
    #[must_use]
    pub fn merged(mut self, later: Self) -> Self {
        let lists = [
            (&mut self.nameservers, later.nameservers),
            (&mut self.search, later.search),
            (&mut self.options, later.options),
        ];
        for (list, more) in lists {
            for one in more {
                if !list.contains(&one) {
                    list.push(one);
                }
            }
        }
        if self.domain.is_empty() {
            self.domain = later.domain;
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dns(nameservers: &[&str], domain: &str) -> Dns {
        let nameservers = nameservers.iter().map(|one| (*one).to_owned()).collect();
        Dns { nameservers, domain: domain.to_owned(), ..Dns::default() }
    }

    #[test]
    fn what_was_said_first_stays_first() {
        let merged = dns(&["10.0.0.1", "10.0.0.2"], "").merged(dns(&["10.0.0.2", "fd00::1"], "b"));
        assert_eq!(merged, dns(&["10.0.0.1", "10.0.0.2", "fd00::1"], "b"));
        assert_eq!(dns(&[], "a").merged(dns(&[], "b")), dns(&[], "a"));
    }

    #[test]
    fn what_is_not_said_is_not_written() {
        assert_eq!(serde_json::to_string(&Dns::default()).unwrap(), "{}");
    }
}
