//! Where Heddle's eBPF objects are pinned, and how a pinned program is attached.
