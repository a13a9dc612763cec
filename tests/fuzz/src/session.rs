//! A sequence of packets and changes over a table: played to the programs and to the model, and compared.

use std::collections::BTreeMap;
use std::fmt::Debug;

use anyhow::Result;
use heddle_ebpf_common::{Counter, Flow, Tuple};

use crate::model::{Model, Outcome, Sent, Stimulus, Verdict};
use crate::table::{Change, Table};
use crate::world::{ROOM, State, World};

#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    Packet(Stimulus),
    Change(Change),
}

/// The programs and the model do not agree.
#[derive(Clone, Debug)]
pub struct Difference {
    /// Which step it showed at; `None`: at the end.
    pub at: Option<usize>,
    pub what: String,
}

/// One play.
#[derive(Debug)]
pub struct Session<'a> {
    world: &'a mut World,
    pub model: Model,
    before: [u64; Counter::COUNT as usize],
    steps: usize,
}

impl<'a> Session<'a> {
    pub fn begin(world: &'a mut World, table: &Table) -> Result<Self> {
        world.reset(table)?;
        let before = world.counted()?;
        Ok(Self { world, model: Model::new(table.clone(), ROOM as usize), before, steps: 0 })
    }

    /// What is wrong with this step, if anything is.
    pub fn step(&mut self, step: &Step) -> Result<Option<Difference>> {
        let at = Some(self.steps);
        self.steps += 1;
        match step {
            Step::Change(change) => {
                self.model.change(change);
                self.world.change(change)?;
                Ok(None)
            }
            Step::Packet(stimulus) => {
                let what = match self.xdp(stimulus) {
                    Ok(Some(sent)) => self.sent(stimulus, &sent),
                    Ok(None) => {
                        let expected = self.model.packet(stimulus);
                        compare(self.world, stimulus, &expected)?
                    }
                    Err(error) => Some(format!("{error:#}")),
                };
                let Some(mut what) = what else { return Ok(None) };
                if let Some(state) = self.state()? {
                    what = format!("{what}\n{}", state.what);
                }
                Ok(Some(Difference { at, what }))
            }
        }
    }

    /// What XDP sends in place of this packet.
    fn xdp(&mut self, stimulus: &Stimulus) -> Result<Option<Vec<u8>>> {
        match stimulus.xdp {
            Some(mode) => self.world.run_xdp(mode, &stimulus.frame),
            None => Ok(None),
        }
    }

    fn sent(&mut self, stimulus: &Stimulus, sent: &[u8]) -> Option<String> {
        match self.model.by_xdp(stimulus) {
            Ok(wanted) if wanted.is(sent) => None,
            Ok(Sent::Plain(frame)) => Some(format!(
                "XDP sends {}\n must be, but for the hop, {}",
                crate::report::text(sent),
                crate::report::text(&frame.bytes)
            )),
            Ok(Sent::Wrapped(frame)) => Some(format!(
                "XDP sends {}\n must be VXLAN around {}",
                crate::report::text(sent),
                crate::report::text(&frame.bytes)
            )),
            Err(verdict) => Some(format!("XDP sends {}\n must be {verdict:?}", crate::report::text(sent))),
        }
    }

    /// Is what the maps hold what it must be? `Some(counter)`: what was counted is looked at, too.
    pub fn state(&self) -> Result<Option<Difference>> {
        Ok(self.judge(&self.world.state()?))
    }

    /// The same at the end; the maps are empty then.
    pub fn end(self) -> Result<Option<Difference>> {
        let state = self.world.take_state()?;
        Ok(self.judge(&state))
    }

    fn judge(&self, state: &State) -> Option<Difference> {
        let at = None;
        let mut wrong = Vec::new();
        entries(&mut wrong, "ct_new", &self.model.flows.entries(false), &state.new);
        entries(&mut wrong, "ct", &self.model.flows.entries(true), &state.answered);
        lacks(&mut wrong, "frags", &self.model.frags, &state.frags);
        lacks(&mut wrong, "affinity", &self.model.affinity, &state.affinity);
        lacks(&mut wrong, "conns", &self.model.conns, &state.conns);
        for (counter, name) in Counter::ALL {
            let (wanted, before) = (self.model.counted[counter as usize], self.before[counter as usize]);
            let counted = state.counted[counter as usize] - before;
            if wanted != counted {
                wrong.push(format!("counted {name} {counted} times, must be {wanted}"));
            }
        }
        (!wrong.is_empty()).then(|| Difference { at, what: wrong.join("\n") })
    }
}

/// Flows: but for the check, which must be right.
fn entries(
    wrong: &mut Vec<String>,
    name: &str,
    wanted: &BTreeMap<Tuple, Flow>,
    found: &BTreeMap<Tuple, Flow>,
) {
    // By which way a flow went last is no one's interest but the programs'.
    let cleared = |(key, flow): (&Tuple, &Flow)| (*key, Flow { out: 0, mtu: 0, way: 0, ..*flow });
    lacks(wrong, name, wanted, &found.iter().map(cleared).collect());
}

fn lacks<K: Ord + Debug, V: PartialEq + Debug>(
    wrong: &mut Vec<String>,
    name: &str,
    wanted: &BTreeMap<K, V>,
    found: &BTreeMap<K, V>,
) {
    for (key, value) in wanted {
        match found.get(key) {
            Some(other) if other == value => {}
            Some(other) => wrong.push(format!("{name}: {key:?}\n  is {other:?}\n  must be {value:?}")),
            None => wrong.push(format!("{name}: {key:?} is not there, must be {value:?}")),
        }
    }
    for (key, value) in found.iter().filter(|(key, _)| !wanted.contains_key(key)) {
        wrong.push(format!("{name}: {key:?} must not be there, is {value:?}"));
    }
}

fn compare(world: &mut World, stimulus: &Stimulus, expected: &Outcome) -> Result<Option<String>> {
    let summed = stimulus.summed && expected.sum_stays;
    let ran = match world.run(stimulus, summed) {
        Ok(ran) => ran,
        Err(error) => return Ok(Some(format!("{error:#}; must be {:?}", expected.verdict))),
    };
    if ran.verdict != expected.verdict {
        let what = format!(
            "verdict {:?}, must be {:?}; frame {}",
            ran.verdict,
            expected.verdict,
            crate::report::text(ran.frame)
        );
        return Ok(Some(what));
    }
    if expected.verdict == Verdict::Drop {
        return Ok(None);
    }
    if ran.mark != expected.mark {
        return Ok(Some(format!("mark {:#x}, must be {:#x}", ran.mark, expected.mark)));
    }
    if !expected.frame.is(ran.frame) {
        return Ok(Some(format!(
            "frame {}\n must be {}",
            crate::report::text(ran.frame),
            crate::report::text(&expected.frame.bytes)
        )));
    }
    Ok(None)
}

/// Plays all steps. `closely`: the maps are compared after each.
pub fn play(world: &mut World, table: &Table, steps: &[Step], closely: bool) -> Result<Option<Difference>> {
    let mut session = Session::begin(world, table)?;
    for (at, step) in steps.iter().enumerate() {
        if let Some(difference) = session.step(step)? {
            return Ok(Some(difference));
        }
        if closely && let Some(difference) = session.state()? {
            return Ok(Some(Difference { at: Some(at), ..difference }));
        }
    }
    session.end()
}
