//! Moving a cluster over to Heddle, node by node, under traffic, with the real programs of what it had before.

mod flannel;
mod kube_proxy;
