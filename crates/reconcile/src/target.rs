//! What the loop drives.

use std::collections::BTreeMap;
use std::fmt;

use heddle_model::{Effect, Problem};

/// An error of a target; the loop reports it with its causes and tries again.
pub type Error = Box<dyn std::error::Error + Send + Sync>;

/// A piece of kernel state that is made to follow desired state.
///
/// The kernel is asked (`observe`), never remembered: a target that was changed by others, killed half-way
/// or just started is driven by the same calls. All of them may block for as long as the kernel takes.
pub trait Target: Send {
    /// What the desired state is made from.
    type Input: Send + Sync;
    /// Observed and desired state, in the same form.
    type State: Clone + PartialEq + Send;
    /// One change to one part.
    type Step: Send;
    /// The name of a part: what fails, backs off and is retried by itself.
    type Part: Clone + Ord + fmt::Display + Send;

    /// What must be, as far as this target can have it, and what is wrong with the input or cannot be had.
    fn desired(&mut self, input: &Self::Input) -> (Self::State, Vec<Problem>);

    /// What is. Changes nothing.
    fn observe(&mut self) -> Result<Self::State, Error>;

    /// The steps from one to the other, in the order in which they are to be done. Pure; empty if there is
    /// nothing to do; at most one step for a part.
    fn diff(&self, observed: &Self::State, desired: &Self::State) -> Vec<Self::Step>;

    /// How much there is whose loss would be noticed, if most of it went at once ([`guard`](crate::guard)). 0:
    /// nothing is guarded.
    fn guarded(&self, _observed: &Self::State) -> usize {
        0
    }

    /// Whether this step takes one of these away, or leaves nothing of it.
    fn takes_away(&self, _observed: &Self::State, step: &Self::Step) -> bool {
        Self::effect(step) == Effect::Remove
    }

    /// What is, as far as it is known for certain without asking the kernel, after an event of the kernel or a step that
    /// failed. What the event may be about is left open. `None`: it must be observed.
    fn recall(&mut self) -> Option<Self::State> {
        None
    }

    /// Something in the kernel may have changed since the last pass: what follows from it is to be looked up again.
    fn stirred(&mut self) {}

    /// After an observation: what is, is `state`.
    fn settled(&mut self, _state: &Self::State) {}

    fn part(step: &Self::Step) -> Self::Part;

    fn effect(step: &Self::Step) -> Effect;

    /// Does the steps. One that fails does not stop the others, unless they need it. Each step can be done
    /// again without harm.
    fn apply(&mut self, steps: Vec<Self::Step>) -> Outcome<Self::Part>;

    /// Called when nothing else is to be done, at least as often as the pace says: housekeeping that is no
    /// part of the desired state.
    fn tend(&mut self) -> Result<(), Error> {
        Ok(())
    }
}

/// What became of a plan: every part that is not named here was done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome<P> {
    /// Why, in the kernel's words.
    pub failed: BTreeMap<P, String>,
}

impl<P: Ord> Outcome<P> {
    pub const fn done() -> Self {
        Self { failed: BTreeMap::new() }
    }

    /// Remembers the first failure of a part.
    pub fn fail(&mut self, part: P, why: impl fmt::Display) {
        self.failed.entry(part).or_insert_with(|| why.to_string());
    }
}

impl<P: Ord> Default for Outcome<P> {
    fn default() -> Self {
        Self::done()
    }
}
