//! A network-namespace laboratory: nodes, pods, clients, traffic, oracles.
