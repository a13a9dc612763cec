//! Which elements of the array `backends` are in use.
//!
//! A slot's life: free - taken (written whole, then named by rings) - retired (in no ring, state DOWN) -
//! *grace* - generation raised, FREE - *grace* - free. A program that holds the number of a slot with
//! its generation therefore never finds another backend's address under that generation.

use std::collections::VecDeque;

/// The allocator. It knows numbers and generations; the caller writes the map.
#[derive(Clone, Debug)]
pub struct Slots {
    /// Last generation of each slot; 0: never used. Slot 0 is never handed out.
    generations: Vec<u32>,
    /// Free and used before, the longest unused first.
    free: VecDeque<u32>,
    /// The first slot that was never used.
    fresh: u32,
    size: u32,
    retired: Vec<u32>,
    cooling: Vec<u32>,
}

impl Slots {
    /// `size` elements, slot 0 among them.
    pub fn new(size: u32) -> Self {
        Self {
            generations: vec![0],
            free: VecDeque::new(),
            fresh: 1,
            size,
            retired: Vec::new(),
            cooling: Vec::new(),
        }
    }

    /// Takes over what the map holds: the next slot in order, its generation, and whether a backend lives there.
    /// A slot that was used once cools: it may have been freed a moment ago. Unless all is known to be `settled`.
    pub fn adopt(&mut self, generation: u32, used: bool, settled: bool) {
        let slot = self.generations.len() as u32;
        self.generations.push(generation);
        match (used, generation) {
            (true, _) => {}
            (false, 0) => self.free.push_back(slot),
            (false, _) if settled => self.free.push_back(slot),
            (false, _) => self.cooling.push(slot),
        }
        self.fresh = slot + 1;
    }

    /// A slot and the generation of its new backend. Slots never used come first, then the one that is
    /// free for the longest time. `None`: all are in use (perhaps [`settle`](Self::settle) helps).
    pub fn allocate(&mut self) -> Option<(u32, u32)> {
        if self.fresh < self.size {
            let slot = self.fresh;
            self.fresh += 1;
            self.generations.push(1);
            return Some((slot, 1));
        }
        let slot = self.free.pop_front()?;
        let generation = &mut self.generations[slot as usize];
        if *generation == 0 {
            *generation = 1;
        }
        Some((slot, *generation))
    }

    /// The slot is in no ring any more.
    pub fn retire(&mut self, slot: u32) {
        self.retired.push(slot);
    }

    /// Whether slots are on their way to being free.
    pub fn is_cooling(&self) -> bool {
        !self.cooling.is_empty()
    }

    pub fn has_retired(&self) -> bool {
        !self.retired.is_empty()
    }

    /// A grace period has passed. Returns the slots that were retired before it, with the generation
    /// that must now be written to them; what cooled before is free.
    pub fn settle(&mut self) -> Vec<(u32, u32)> {
        self.free.extend(self.cooling.drain(..));
        let retired = std::mem::take(&mut self.retired);
        let raised = retired.into_iter().map(|slot| {
            let generation = &mut self.generations[slot as usize];
            *generation = generation.wrapping_add(1).max(1);
            (slot, *generation)
        });
        let raised: Vec<_> = raised.collect();
        self.cooling.extend(raised.iter().map(|(slot, _)| *slot));
        raised
    }

    /// How many slots are neither in use nor on their way back.
    pub fn available(&self) -> usize {
        self.free.len() + (self.size - self.fresh) as usize
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Debug)]
    enum Op {
        Allocate,
        Retire(prop::sample::Index),
        Grace,
        Restart,
    }

    fn op() -> impl Strategy<Value = Op> {
        prop_oneof![
            6 => Just(Op::Allocate),
            5 => any::<prop::sample::Index>().prop_map(Op::Retire),
            2 => Just(Op::Grace),
            1 => Just(Op::Restart),
        ]
    }

    proptest! {
        #[test]
        fn a_slot_and_generation_name_one_backend_for_ever(ops in prop::collection::vec(op(), 1..300)) {
            const SIZE: u32 = 12;
            let mut slots = Slots::new(SIZE);
            let mut given: BTreeSet<(u32, u32)> = BTreeSet::new();
            let mut used: BTreeMap<u32, u32> = BTreeMap::new();
            // The map: generation and whether it is in use (not FREE).
            let mut map = [(0u32, false); SIZE as usize];
            // Slot to number of graces since it was retired.
            let mut graces: BTreeMap<u32, u32> = BTreeMap::new();
            for op in ops {
                match op {
                    Op::Allocate => if let Some((slot, generation)) = slots.allocate() {
                        prop_assert!((1..SIZE).contains(&slot) && generation > 0);
                        prop_assert!(given.insert((slot, generation)), "given twice");
                        prop_assert!(!used.contains_key(&slot));
                        prop_assert!(graces.remove(&slot).is_none_or(|n| n >= 2), "too early");
                        used.insert(slot, generation);
                        map[slot as usize] = (generation, true);
                    } else {
                        let taken = used.len() + graces.values().filter(|n| **n < 2).count();
                        prop_assert_eq!(taken, SIZE as usize - 1);
                    },
                    Op::Retire(pick) if !used.is_empty() => {
                        let slot = *used.keys().nth(pick.index(used.len())).unwrap();
                        used.remove(&slot);
                        slots.retire(slot);
                        graces.insert(slot, 0);
                    }
                    Op::Retire(_) => {}
                    Op::Grace => {
                        for (slot, generation) in slots.settle() {
                            map[slot as usize] = (generation, false);
                        }
                        graces.values_mut().for_each(|n| *n += 1);
                    }
                    Op::Restart => {
                        slots = Slots::new(SIZE);
                        for (slot, (generation, live)) in map.iter().enumerate().skip(1) {
                            slots.adopt(*generation, *live, false);
                            let slot = slot as u32;
                            // Retired, and the grace period never came: found again as a slot that no
                            // frontend names.
                            if *live && !used.contains_key(&slot) {
                                slots.retire(slot);
                                graces.insert(slot, 0);
                            } else if !*live && graces.contains_key(&slot) {
                                graces.insert(slot, 1);
                            }
                        }
                    }
                }
            }
        }
    }
}
