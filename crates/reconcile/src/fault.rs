//! Faults for tests: a target whose kernel fails one time in ten.

use heddle_model::{Effect, Problem};

use crate::pace::Random;
use crate::target::{Error, Outcome, Target};

/// Faults in a hundred operations.
pub const USUAL: u64 = 10;

/// A target with injected faults. An observation fails, a step fails before or after it was done (the answer
/// of the kernel is lost), or the rest of a plan is never begun.
#[derive(Debug)]
pub struct Faulty<T> {
    pub inner: T,
    /// Faults in a hundred operations; 0 heals it.
    pub percent: u64,
    random: Random,
}

impl<T> Faulty<T> {
    pub const fn new(inner: T, percent: u64, seed: u64) -> Self {
        Self { inner, percent, random: Random::new(seed) }
    }
}

impl<T: Target> Target for Faulty<T> {
    type Input = T::Input;
    type State = T::State;
    type Step = T::Step;
    type Part = T::Part;

    fn desired(&mut self, input: &T::Input) -> (T::State, Vec<Problem>) {
        self.inner.desired(input)
    }

    fn observe(&mut self) -> Result<T::State, Error> {
        match self.random.chance(self.percent) {
            true => Err("injected fault".into()),
            false => self.inner.observe(),
        }
    }

    fn diff(&self, observed: &T::State, desired: &T::State) -> Vec<T::Step> {
        self.inner.diff(observed, desired)
    }

    fn guarded(&self, observed: &T::State) -> usize {
        self.inner.guarded(observed)
    }

    fn takes_away(&self, observed: &T::State, step: &T::Step) -> bool {
        self.inner.takes_away(observed, step)
    }

    fn recall(&mut self) -> Option<T::State> {
        self.inner.recall()
    }

    fn stirred(&mut self) {
        self.inner.stirred();
    }

    fn settled(&mut self, state: &T::State) {
        self.inner.settled(state);
    }

    fn part(step: &T::Step) -> T::Part {
        T::part(step)
    }

    fn effect(step: &T::Step) -> Effect {
        T::effect(step)
    }

    fn apply(&mut self, steps: Vec<T::Step>) -> Outcome<T::Part> {
        let mut outcome = Outcome::done();
        let mut broken = false;
        for step in steps {
            let part = T::part(&step);
            broken |= self.random.chance(self.percent / 5);
            let fault = self.random.chance(self.percent);
            let before = self.random.chance(50);
            if broken || (fault && before) {
                outcome.fail(part, "injected fault: not done");
                continue;
            }
            for (part, why) in self.inner.apply(vec![step]).failed {
                outcome.fail(part, why);
            }
            if fault {
                outcome.fail(part, "injected fault: done, the answer lost");
            }
        }
        outcome
    }

    fn tend(&mut self) -> Result<(), Error> {
        self.inner.tend()
    }
}
