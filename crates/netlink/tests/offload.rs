//! Checksums, left to a device or not.

use heddle_netlink::link::{self, VethEnd};
use heddle_netlink::{NetNs, Socket, offload};

#[test]
fn transmit_checksums_are_left_to_the_device_or_not() {
    NetNs::create()
        .unwrap()
        .run(|| {
            let mut socket = Socket::open().unwrap();
            let end = |name| VethEnd { name, ..VethEnd::default() };
            link::create_veth(&mut socket, &end("a"), &end("b")).unwrap();
            assert!(offload::transmit_checksums(&socket, "a").unwrap());
            offload::set_transmit_checksums(&socket, "a", false).unwrap();
            assert!(!offload::transmit_checksums(&socket, "a").unwrap());
            assert!(offload::transmit_checksums(&socket, "b").unwrap(), "the other is another");
            offload::set_transmit_checksums(&socket, "a", true).unwrap();
            assert!(offload::transmit_checksums(&socket, "a").unwrap());
            let error = offload::transmit_checksums(&socket, "c").unwrap_err();
            assert_eq!(error.errno(), Some(nix::errno::Errno::ENODEV), "{error}");
        })
        .unwrap();
}
