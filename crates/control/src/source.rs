//! What a source is, and how one is named on the command line.

use std::convert::Infallible;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use heddle_model::store;

use crate::kubernetes::api::{Access, Kind, Kubernetes, Url};
use crate::manifests::Manifests;

/// Something that knows what the cluster should be.
pub trait Source: Send + 'static {
    /// As on the command line.
    fn name(&self) -> String;

    /// Keeps `slice` equal to what the source says, until it is dropped. It never gives up: what fails is
    /// a problem in the slice and is tried again, and meanwhile the last good state stands.
    fn run(self, slice: store::Source) -> impl Future<Output = Infallible> + Send;
}

/// `--source KIND[:WHERE]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Spec {
    /// `manifests:DIR`
    Manifests(PathBuf),
    /// `kubernetes` (in a pod), or `kubernetes:KUBECONFIG`
    Kubernetes(Option<PathBuf>),
}

/// What sources are told beside their names.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// Where the API server is, if not where the kubeconfig or the pod's environment says; several are one cluster's.
    pub kube_api: Vec<Url>,
    /// Nodes are all that is needed.
    pub nodes_only: bool,
}

impl Spec {
    /// Registers the source with the store and starts it on the current tokio runtime; it ends with it.
    pub fn start(&self, store: &store::Store, settings: &Settings) {
        match self {
            Self::Manifests(directory) => start(Manifests::new(directory), store),
            Self::Kubernetes(kubeconfig) => {
                let access = Access::new(kubeconfig.clone(), settings.kube_api.clone());
                let kinds = if settings.nodes_only { &[Kind::Node][..] } else { &Kind::ALL };
                start(Kubernetes::new(self.to_string(), access, kinds), store);
            }
        }
    }

    /// How the API server is reached, if this is one.
    pub fn access(&self, settings: &Settings) -> Option<Access> {
        match self {
            Self::Manifests(_) => None,
            Self::Kubernetes(kubeconfig) => Some(Access::new(kubeconfig.clone(), settings.kube_api.clone())),
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
            Some(("kubernetes", "")) => {
                Err("the kubeconfig is missing (kubernetes:KUBECONFIG, or kubernetes)".into())
            }
            Some(("kubernetes", kubeconfig)) => Ok(Self::Kubernetes(Some(kubeconfig.into()))),
            None if text == "kubernetes" => Ok(Self::Kubernetes(None)),
            _ => {
                Err("no such kind of source (known: manifests:DIR, kubernetes, kubernetes:KUBECONFIG)".into())
            }
        }
    }
}

impl fmt::Display for Spec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Manifests(directory) => write!(f, "manifests:{}", directory.display()),
            Self::Kubernetes(None) => f.write_str("kubernetes"),
            Self::Kubernetes(Some(kubeconfig)) => write!(f, "kubernetes:{}", kubeconfig.display()),
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
        for text in ["kubernetes", "kubernetes:/etc/kubernetes/heddle.conf"] {
            assert_eq!(text.parse::<Spec>().unwrap().to_string(), text);
        }
        for bad in ["", "manifests", "manifests:", "kubernetes:", "etcd:x", "/dir"] {
            assert!(bad.parse::<Spec>().is_err(), "{bad}");
        }
    }
}
