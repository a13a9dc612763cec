//! The keys and values of the two designs: equal but for the size of an address.

use heddle_ebpf_common as product;

/// An address as it stands in a key.
pub trait Address: Copy {
    /// The address `n` above this one.
    fn above(self, n: u32) -> Self;
    fn fold(self) -> u32;
}

/// An IPv4 address in network byte order.
impl Address for u32 {
    #[inline(always)]
    fn above(self, n: u32) -> Self {
        self.to_be().wrapping_add(n).to_be()
    }

    #[inline(always)]
    fn fold(self) -> u32 {
        self
    }
}

/// Both families, in the form of the product's maps.
impl Address for product::Addr {
    #[inline(always)]
    fn above(mut self, n: u32) -> Self {
        self.0[3] = self.0[3].above(n);
        self
    }

    #[inline(always)]
    fn fold(self) -> u32 {
        self.0[0] ^ self.0[1] ^ self.0[2] ^ self.0[3]
    }
}

#[repr(C)]
#[derive(Clone, Copy)]
pub struct FrontendKey<A> {
    pub addr: A,
    pub net: u32,
    pub port: u16,
    pub proto: u8,
    pub zero: u8,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub struct Tuple<A> {
    pub src: A,
    pub dst: A,
    pub sport: u16,
    pub dport: u16,
    pub proto: u8,
    pub zero: [u8; 3],
}

#[repr(C)]
#[derive(Clone, Copy)]
pub struct Flow<A> {
    pub to: Tuple<A>,
    pub rest: [u32; 18],
}

pub type Frontend = [u32; 10];

/// What is measured here is the product's layout.
const _: () = {
    assert!(size_of::<FrontendKey<product::Addr>>() == size_of::<product::FrontendKey>());
    assert!(size_of::<Frontend>() == size_of::<product::Frontend>());
    assert!(size_of::<Tuple<product::Addr>>() == size_of::<product::Tuple>());
    assert!(size_of::<Flow<product::Addr>>() == size_of::<product::Flow>());
};

impl<A: Address> Tuple<A> {
    #[inline(always)]
    pub fn fold(&self) -> u32 {
        let ports = u32::from(self.sport) | u32::from(self.dport) << 16;
        self.src.fold() ^ self.dst.fold() ^ ports ^ u32::from(self.proto)
    }

    #[inline(always)]
    pub fn frontend(&self) -> FrontendKey<A> {
        FrontendKey { addr: self.dst, net: 0, port: self.dport, proto: self.proto, zero: 0 }
    }
}

impl<A: Address> Flow<A> {
    #[inline(always)]
    pub fn fold(&self) -> u32 {
        self.to.fold() ^ fold(&self.rest)
    }
}

#[inline(always)]
pub fn fold(words: &[u32]) -> u32 {
    words.iter().fold(0, |sum, word| sum ^ word)
}
