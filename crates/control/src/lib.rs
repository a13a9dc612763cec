//! Sources of desired state: a directory of manifests, later the Kubernetes API and Docker Swarm.
