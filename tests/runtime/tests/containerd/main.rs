//! containerd calls the plugin, as on a Kubernetes node.

mod bench;
mod faults;
mod holders;
mod life;
mod overlay;
mod ports;
