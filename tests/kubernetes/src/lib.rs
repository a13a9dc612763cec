//! A real Kubernetes, in the Lab: etcd, API server, controller manager, scheduler, kubelets and containerd, as they are
//! released, on network namespaces of this machine.
#![forbid(unsafe_code)]
