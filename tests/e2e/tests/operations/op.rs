//! What may happen.

use std::fmt::Write;

/// An interface that may be attached: network and pod, by number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Id {
    pub net: u8,
    pub pod: u8,
}

/// One thing that happens. Numbers that are out of range mean less, never an error, so that a sequence stays one
/// when parts of it are taken out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    Add(Id),
    Del(Id),
    Check(Id),
    Status {
        net: u8,
    },
    /// The pods whose bit is set are still there. From bit 8 on: those of the reference plugin.
    Gc {
        net: u8,
        valid: u16,
    },
    /// Killed before its `at`th system call.
    KillAdd(Id, u16),
    KillDel(Id, u16),
    KillGc {
        net: u8,
        valid: u16,
        at: u16,
    },
    /// The first call that can fail, from its `at`th system call on, does.
    FailAdd(Id, u16, Errno),
    FailDel(Id, u16, Errno),
    FailGc {
        net: u8,
        valid: u16,
        at: u16,
        errno: Errno,
    },
    /// The disk is full from now on.
    Fill,
    /// It is not any more.
    Free,
    /// Everything but the files is gone, and the boot has another identity.
    Reboot,
    /// The namespace of a pod goes without a word.
    Die {
        pod: u8,
    },
    /// The host's side of an interface goes without a word.
    Unplug(Id),
    /// The reference plugin gives an address to a pod of its own, or takes it back.
    TheirAdd {
        pod: u8,
    },
    TheirDel {
        pod: u8,
    },
}

/// What a system call may fail with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Errno {
    NoSpace,
    Io,
    NoMemory,
    TooManyFiles,
    ReadOnly,
}

/// Networks, pods, pods of the reference plugin.
pub const NETS: u8 = 2;
pub const PODS: u8 = 6;
pub const THEIRS: u8 = 2;
/// More system calls than a command makes.
const CALLS: u64 = 260;

/// SplitMix64: a sequence that a number names.
#[derive(Debug)]
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Below `limit`.
    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    fn byte(&mut self, limit: u8) -> u8 {
        u8::try_from(self.below(limit.into())).unwrap()
    }

    fn id(&mut self) -> Id {
        Id { net: self.byte(NETS), pod: self.byte(PODS) }
    }

    fn short(&mut self, limit: u64) -> u16 {
        u16::try_from(self.below(limit)).unwrap()
    }

    fn errno(&mut self) -> Errno {
        use Errno::{Io, NoMemory, NoSpace, ReadOnly, TooManyFiles};
        [NoSpace, Io, NoMemory, TooManyFiles, ReadOnly][usize::from(self.byte(5))]
    }

    /// Most of the pods, mostly.
    fn valid(&mut self) -> u16 {
        self.short(1 << 16) | self.short(1 << 16)
    }
}

impl Op {
    pub fn random(random: &mut Random) -> Self {
        let net = random.byte(NETS);
        match random.below(1000) {
            0..300 => Self::Add(random.id()),
            300..500 => Self::Del(random.id()),
            500..560 => Self::Check(random.id()),
            560..590 => Self::Status { net },
            590..640 => Self::Gc { net, valid: random.valid() },
            640..730 => Self::KillAdd(random.id(), random.short(CALLS)),
            730..780 => Self::KillDel(random.id(), random.short(CALLS)),
            780..800 => Self::KillGc { net, valid: random.valid(), at: random.short(CALLS) },
            800..850 => Self::FailAdd(random.id(), random.short(CALLS), random.errno()),
            850..880 => Self::FailDel(random.id(), random.short(CALLS), random.errno()),
            880..890 => {
                Self::FailGc { net, valid: random.valid(), at: random.short(CALLS), errno: random.errno() }
            }
            890..900 => Self::Fill,
            900..920 => Self::Free,
            920..925 => Self::Reboot,
            925..945 => Self::Die { pod: random.byte(PODS) },
            945..960 => Self::Unplug(random.id()),
            960..980 => Self::TheirAdd { pod: random.byte(THEIRS) },
            _ => Self::TheirDel { pod: random.byte(THEIRS) },
        }
    }

    /// The kind of operation, for counting.
    pub fn kind(&self) -> String {
        let text = format!("{self:?}");
        text.split(['(', ' ']).next().unwrap().to_owned()
    }
}

/// A test that plays these, to be pasted.
pub fn as_regression(ops: &[Op]) -> String {
    let mut text = String::from("#[test]\nfn what_went_wrong() {\n    play(&[\n");
    for op in ops {
        let _ = writeln!(text, "        {op:?},");
    }
    text.push_str("    ]);\n}\n");
    text
}
