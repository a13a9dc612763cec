//! Typed kernel I/O over netlink: links, addresses, routes, neighbours, nf_tables, namespaces, sysctls.
