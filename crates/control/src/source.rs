//! What a source is, and how one is named on the command line.

use std::convert::Infallible;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use heddle_model::store;

use crate::manifests::Manifests;

/// Something that knows what the cluster should be.
pub trait Source: Send + 'static {
    /// As on the command line.
    fn name(&self) -> String;

    /// Keeps `slice` equal to what the source says, until it is dropped. It never gives up: what fails is
    /// a problem in the slice and is tried again, and meanwhile the last good state stands.
    fn run(self, slice: store::Source) -> impl Future<Output = Infallible> + Send;
}

/// `--source KIND:WHERE`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Spec {
    /// `manifests:DIR`
    Manifests(PathBuf),
}

impl Spec {
    /// Registers the source with the store and starts it on the current tokio runtime; it ends with it.
    pub fn start(&self, store: &store::Store) {
        match self {
            Self::Manifests(directory) => start(Manifests::new(directory), store),
        }
    }
}

/// Registers a source with the store and starts it on the current tokio runtime; it ends with it.
pub fn start(source: impl Source, store: &store::Store) {
    let slice = store.source(source.name());
    tokio::spawn(source.run(slice));
}

impl FromStr for Spec {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once(':') {
            Some(("manifests", "")) => Err("the directory is missing (manifests:DIR)".into()),
            Some(("manifests", directory)) => Ok(Self::Manifests(directory.into())),
            _ => Err("no such kind of source (known: manifests:DIR)".into()),
        }
    }
}

impl fmt::Display for Spec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Manifests(directory) => write!(f, "manifests:{}", directory.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_survive() {
        let spec: Spec = "manifests:/a:b".parse().unwrap();
        assert_eq!(spec, Spec::Manifests("/a:b".into()));
        assert_eq!(spec.to_string(), "manifests:/a:b");
        for bad in ["", "manifests", "manifests:", "etcd:x", "/dir"] {
            assert!(bad.parse::<Spec>().is_err(), "{bad}");
        }
    }
}
