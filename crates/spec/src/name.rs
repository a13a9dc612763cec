//! Names from outside, checked before anything is done with them.

use std::fmt;

use serde_json::{Map, Value};

use crate::{Failure, invalid};

/// A name that came from outside and is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what} {value:?} is not valid: {reason}")]
pub struct InvalidName {
    pub what: &'static str,
    /// The beginning of it.
    pub value: String,
    pub reason: &'static str,
}

type Result<T> = std::result::Result<T, InvalidName>;

/// The longest name we take: a file name of any file system, with room for a suffix.
const LONGEST: usize = 200;

/// A network's name: the name of a directory. CNI specification 1.1.0, section 1: "must start with an
/// alphanumeric character, optionally followed by any combination of alphanumeric characters,
/// underscores, dots or hyphens".
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Network(String);

impl Network {
    /// Checks a name.
    pub fn new(name: &str) -> Result<Self> {
        check("network name", name)?;
        Ok(Self(name.to_owned()))
    }

    /// The name in a network configuration.
    ///
    /// # Errors
    /// Code 7.
    pub fn of(object: &Map<String, Value>) -> std::result::Result<Self, Failure> {
        match object.get("name") {
            Some(Value::String(name)) => Self::new(name).map_err(|error| invalid("name", error)),
            Some(_) => Err(invalid("name", "it is not a string")),
            None => Err(invalid("name", "it is missing")),
        }
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// An interface of a container: what a lease belongs to.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Owner {
    container: String,
    ifname: String,
}

impl Owner {
    /// Checks a container id and an interface name. (The kernel's rules for the latter are the caller's
    /// business; here it must only be a line of text.)
    pub fn new(container: &str, ifname: &str) -> Result<Self> {
        check("container id", container)?;
        if ifname.is_empty() || ifname.len() > 15 || !ifname.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(InvalidName {
                what: "interface name",
                value: excerpt(ifname),
                reason: "it has 1 to 15 printable ASCII characters",
            });
        }
        Ok(Self { container: container.to_owned(), ifname: ifname.to_owned() })
    }

    /// The id of the container.
    pub fn container(&self) -> &str {
        &self.container
    }

    /// The name of the interface inside the container.
    pub fn ifname(&self) -> &str {
        &self.ifname
    }
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of container {}", self.ifname, self.container)
    }
}

fn check(what: &'static str, name: &str) -> Result<()> {
    let refused = |reason| Err(InvalidName { what, value: excerpt(name), reason });
    if name.is_empty() {
        return refused("it is empty");
    }
    if name.len() > LONGEST {
        return refused("it is longer than 200 characters");
    }
    if !name.starts_with(|first: char| first.is_ascii_alphanumeric()) {
        return refused("it must begin with a letter or a digit");
    }
    if !name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-')) {
        return refused("it may hold letters, digits, `_`, `.` and `-`");
    }
    Ok(())
}

/// The beginning of a text, for an error message.
fn excerpt(text: &str) -> String {
    text.chars().take(64).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostile_names_are_refused() {
        let long = "a".repeat(201);
        let hostile =
            ["", ".", "..", "../../etc", "a/b", "-x", "_a", "a b", "a\n", "a\0", "é", "/abs", &long];
        for name in hostile {
            assert!(Network::new(name).is_err(), "{name:?}");
            assert!(Owner::new(name, "eth0").is_err(), "{name:?}");
        }
        for name in ["a", "cbr0", "my.net_1-x", "0123456789abcdef"] {
            assert!(Network::new(name).is_ok() && Owner::new(name, "eth0").is_ok(), "{name:?}");
        }
        for ifname in ["", "a\r\nb", "0123456789abcdef", "a b"] {
            assert!(Owner::new("c", ifname).is_err(), "{ifname:?}");
        }
    }
}
