//! Which parts of the array `ring` are in use.
//!
//! Extents are counted in slots and begin at a multiple of [`RING_BLOCK`]; what is left of the last block
//! belongs to the extent.
//!
//! A part that is given back may still be read by a program that looked its frontend up a moment ago.
//! It is handed out again only after [`settle`](Extents::settle), which the caller calls when every
//! program that ran at that moment has ended.

use std::collections::{BTreeMap, BTreeSet};

use heddle_ebpf_common::RING_BLOCK;

/// A run of slots: `start .. start + len`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Extent {
    pub start: u32,
    pub len: u32,
}

impl Extent {
    /// The same with the rest of its last block.
    fn whole_blocks(self) -> Self {
        Self { len: self.len.next_multiple_of(RING_BLOCK), ..self }
    }
}

/// The allocator: best fit, neighbours joined. All functions are O(log free extents).
#[derive(Clone, Debug)]
pub struct Extents {
    /// Start to length; no two touch.
    free: BTreeMap<u32, u32>,
    /// The same as (length, start).
    by_len: BTreeSet<(u32, u32)>,
    /// Given back, not yet settled.
    cooling: Vec<Extent>,
    /// Slots in `free`.
    available: u32,
}

impl Extents {
    /// `size` free slots; a last block that is not whole is not used.
    pub fn new(size: u32) -> Self {
        let mut new =
            Self { free: BTreeMap::new(), by_len: BTreeSet::new(), cooling: Vec::new(), available: 0 };
        new.insert(Extent { start: 0, len: size - size % RING_BLOCK });
        new
    }

    /// The smallest free extent of at least `len` slots, cut to `len`. `None`: there is none (perhaps
    /// [`settle`](Self::settle) helps).
    pub fn allocate(&mut self, len: u32) -> Option<Extent> {
        let (found, start) = *self.by_len.range((len, 0)..).next()?;
        let extent = Extent { start, len };
        let taken = extent.whole_blocks().len;
        self.remove(Extent { start, len: found });
        self.insert(Extent { start: start + taken, len: found - taken });
        Some(extent)
    }

    /// Marks an extent as used that was found in use. False, and nothing done, if a part of it is in use
    /// already or it does not exist.
    pub fn reserve(&mut self, extent: Extent) -> bool {
        if !extent.start.is_multiple_of(RING_BLOCK) || extent.len > u32::MAX - RING_BLOCK {
            return false;
        }
        let extent = extent.whole_blocks();
        let Some(end) = extent.start.checked_add(extent.len) else { return false };
        if extent.len == 0 {
            return true;
        }
        let Some((&start, &len)) = self.free.range(..=extent.start).next_back() else { return false };
        if start + len < end {
            return false;
        }
        self.remove(Extent { start, len });
        self.insert(Extent { start, len: extent.start - start });
        self.insert(Extent { start: end, len: start + len - end });
        true
    }

    /// Gives an extent back; it cools until [`settle`](Self::settle).
    pub fn release(&mut self, extent: Extent) {
        if extent.len > 0 {
            self.cooling.push(extent.whole_blocks());
        }
    }

    /// Whether something is cooling.
    pub fn is_cooling(&self) -> bool {
        !self.cooling.is_empty()
    }

    /// A grace period has passed: what was given back may be handed out.
    pub fn settle(&mut self) {
        for extent in std::mem::take(&mut self.cooling) {
            let Extent { mut start, mut len } = extent;
            if let Some((&before, &before_len)) = self.free.range(..start).next_back()
                && before + before_len == start
            {
                self.remove(Extent { start: before, len: before_len });
                start = before;
                len += before_len;
            }
            if let Some(&after_len) = self.free.get(&(extent.start + extent.len)) {
                self.remove(Extent { start: extent.start + extent.len, len: after_len });
                len += after_len;
            }
            self.insert(Extent { start, len });
        }
    }

    /// Slots that are free now.
    pub const fn available(&self) -> u32 {
        self.available
    }

    fn insert(&mut self, Extent { start, len }: Extent) {
        if len > 0 {
            self.free.insert(start, len);
            self.by_len.insert((len, start));
            self.available += len;
        }
    }

    fn remove(&mut self, Extent { start, len }: Extent) {
        if self.free.remove(&start).is_some() {
            self.available -= len;
        }
        self.by_len.remove(&(len, start));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Debug)]
    enum Op {
        Allocate(u32),
        Release(prop::sample::Index),
        Settle,
    }

    fn op() -> impl Strategy<Value = Op> {
        prop_oneof![
            4 => (1u32..160).prop_map(Op::Allocate),
            3 => any::<prop::sample::Index>().prop_map(Op::Release),
            1 => Just(Op::Settle),
        ]
    }

    proptest! {
        #[test]
        fn nothing_is_handed_out_twice_or_before_its_time(ops in prop::collection::vec(op(), 1..200)) {
            const SIZE: u32 = 1024;
            let mut extents = Extents::new(SIZE);
            let mut used: Vec<Extent> = Vec::new();
            // What may not be handed out: used or cooling.
            let mut busy = [false; SIZE as usize];
            let mut cooling: Vec<Extent> = Vec::new();
            for op in ops {
                match op {
                    Op::Allocate(len) => match extents.allocate(len) {
                        Some(extent) => {
                            prop_assert_eq!(extent.len, len);
                            prop_assert_eq!(extent.start % RING_BLOCK, 0);
                            for slot in extent.start..extent.start + len.next_multiple_of(RING_BLOCK) {
                                prop_assert!(!std::mem::replace(&mut busy[slot as usize], true));
                            }
                            used.push(extent);
                        }
                        None => {
                            // Only because there is no run of that length: neighbours are joined.
                            let longest = busy.split(|b| *b).map(<[bool]>::len).max().unwrap_or(0);
                            prop_assert!(longest < len as usize);
                        }
                    },
                    Op::Release(pick) if !used.is_empty() => {
                        let extent = used.swap_remove(pick.index(used.len()));
                        extents.release(extent);
                        cooling.push(extent);
                    }
                    Op::Release(_) => {}
                    Op::Settle => {
                        extents.settle();
                        for Extent { start, len } in cooling.drain(..) {
                            busy[start as usize..(start + len.next_multiple_of(RING_BLOCK)) as usize].fill(false);
                        }
                    }
                }
                let free = busy.iter().filter(|b| !**b).count();
                prop_assert_eq!(extents.available() as usize, free);
            }
            used.drain(..).for_each(|extent| extents.release(extent));
            extents.settle();
            prop_assert_eq!(extents.allocate(SIZE), Some(Extent { start: 0, len: SIZE }));
        }

        #[test]
        fn reserving_what_was_found_gives_the_same_allocator(lens in prop::collection::vec(1u32..40, 1..20)) {
            let mut first = Extents::new(512);
            let used: Vec<_> = lens.iter().filter_map(|len| first.allocate(*len)).collect();
            let mut second = Extents::new(512);
            for extent in used.iter().rev() {
                prop_assert!(second.reserve(*extent));
                prop_assert!(!second.reserve(*extent), "in use already");
            }
            prop_assert_eq!(first.free, second.free);
            prop_assert_eq!(first.by_len, second.by_len);
        }
    }

    #[test]
    fn what_does_not_exist_cannot_be_reserved() {
        let mut extents = Extents::new(40);
        assert!(!extents.reserve(Extent { start: 16, len: 17 }));
        assert!(!extents.reserve(Extent { start: 8, len: 8 }), "begins within a block");
        assert!(!extents.reserve(Extent { start: u32::MAX, len: 2 }));
        assert!(!extents.reserve(Extent { start: 0, len: u32::MAX }));
        assert!(extents.reserve(Extent { start: 16, len: 3 }));
        assert!(!extents.reserve(Extent { start: 16, len: 3 }));
    }
}
