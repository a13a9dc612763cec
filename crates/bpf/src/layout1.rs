//! Layout 1, the one before maps described themselves.

/// Where things stand in it, as a description of that layout would say.
pub(crate) const DESCRIPTION: &str = "\
frontends key addr 0 16
frontends key net 16 4
frontends key port 20 2
frontends key proto 22 1
frontends value service 16 4
backends value addr 0 16
backends value generation 16 4
backends value port 24 2
backends value proto 26 1
backends value state 27 1
nodes value mac 4 6
nodes value overlay 10 1
ct key src 0 16
ct key dst 16 16
ct key sport 32 2
ct key dport 34 2
ct key proto 36 1
ct value to.src 0 16
ct value to.dst 16 16
ct value to.sport 32 2
ct value to.dport 34 2
ct value to.proto 36 1
ct value backend 40 4
ct value generation 44 4
ct value service 48 4
ct value flags 52 4
ct value node 56 4
ct value ifindex 60 4
ct value seen 64 8
sock_rev key cookie 0 8
sock_rev key addr 8 16
sock_rev key port 24 2
sock_rev key proto 26 1
sock_rev value addr 0 16
sock_rev value port 16 2
sock_udp key cookie 0 8
sock_udp key addr 8 16
sock_udp key port 24 2
sock_udp key proto 26 1
sock_udp value backend 0 4
sock_udp value generation 4 4
sock_udp value service 8 4
";
