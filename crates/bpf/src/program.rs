//! The programs of the object, by the hooks that they belong to.

/// `enum bpf_attach_type` (include/uapi/linux/bpf.h).
mod attach_type {
    pub const INET4_CONNECT: u32 = 10;
    pub const INET6_CONNECT: u32 = 11;
    pub const UDP4_SENDMSG: u32 = 14;
    pub const UDP6_SENDMSG: u32 = 15;
    pub const UDP4_RECVMSG: u32 = 19;
    pub const UDP6_RECVMSG: u32 = 20;
    pub const INET4_GETPEERNAME: u32 = 29;
    pub const INET6_GETPEERNAME: u32 = 30;
    pub const TCX_INGRESS: u32 = 46;
    pub const TCX_EGRESS: u32 = 47;
    pub const XDP: u32 = 37;
}

/// Hooks of network devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TcHook {
    /// What a pod sends: ingress of the host side of its veth.
    Pod,
    /// What the host sends to a pod: egress of the same.
    PodOut,
    UnderlayIn,
    UnderlayOut,
    /// What the VXLAN device has unwrapped.
    OverlayIn,
}

impl TcHook {
    pub const ALL: [Self; 5] =
        [Self::Pod, Self::PodOut, Self::UnderlayIn, Self::UnderlayOut, Self::OverlayIn];

    /// The name of the program.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Pod => "pod",
            Self::PodOut => "pod_out",
            Self::UnderlayIn => "underlay_in",
            Self::UnderlayOut => "underlay_out",
            Self::OverlayIn => "overlay_in",
        }
    }

    pub(crate) const fn attach_type(self) -> u32 {
        match self {
            Self::Pod | Self::UnderlayIn | Self::OverlayIn => attach_type::TCX_INGRESS,
            Self::PodOut | Self::UnderlayOut => attach_type::TCX_EGRESS,
        }
    }
}

/// How a device runs XDP programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum XdpMode {
    /// The driver does, before there is a socket buffer.
    Native,
    /// The kernel does, for any device, after it.
    Generic,
}

impl XdpMode {
    pub const ALL: [Self; 2] = [Self::Native, Self::Generic];

    /// The name of the program.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Native => "xdp_native",
            Self::Generic => "xdp_generic",
        }
    }

    /// `XDP_FLAGS_*` (include/uapi/linux/if_link.h).
    pub(crate) const fn flags(self) -> u32 {
        match self {
            Self::Generic => 1 << 1,
            Self::Native => 1 << 2,
        }
    }
}

pub(crate) const XDP_ATTACH: u32 = attach_type::XDP;

/// Hooks of a cgroup: the sockets of its processes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SocketHook {
    Connect4,
    Connect6,
    Sendmsg4,
    Sendmsg6,
    Recvmsg4,
    Recvmsg6,
    Getpeername4,
    Getpeername6,
}

impl SocketHook {
    /// In the order in which they are attached: what restores an address is there before what translates it.
    pub const ALL: [Self; 8] = [
        Self::Recvmsg4,
        Self::Recvmsg6,
        Self::Getpeername4,
        Self::Getpeername6,
        Self::Connect4,
        Self::Connect6,
        Self::Sendmsg4,
        Self::Sendmsg6,
    ];

    /// The name of the program.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Connect4 => "connect4",
            Self::Connect6 => "connect6",
            Self::Sendmsg4 => "sendmsg4",
            Self::Sendmsg6 => "sendmsg6",
            Self::Recvmsg4 => "recvmsg4",
            Self::Recvmsg6 => "recvmsg6",
            Self::Getpeername4 => "getpeername4",
            Self::Getpeername6 => "getpeername6",
        }
    }

    pub(crate) const fn attach_type(self) -> u32 {
        match self {
            Self::Connect4 => attach_type::INET4_CONNECT,
            Self::Connect6 => attach_type::INET6_CONNECT,
            Self::Sendmsg4 => attach_type::UDP4_SENDMSG,
            Self::Sendmsg6 => attach_type::UDP6_SENDMSG,
            Self::Recvmsg4 => attach_type::UDP4_RECVMSG,
            Self::Recvmsg6 => attach_type::UDP6_RECVMSG,
            Self::Getpeername4 => attach_type::INET4_GETPEERNAME,
            Self::Getpeername6 => attach_type::INET6_GETPEERNAME,
        }
    }
}
