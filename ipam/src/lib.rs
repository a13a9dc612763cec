//! Host-local address management: the library, and later the CNI IPAM plugin.
