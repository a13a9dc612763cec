//! Random packets: the programs against the model, in short. `./x fuzz` does the same at length.
//! `HEDDLE_PACKETS`: how many (1,000,000); `HEDDLE_SEED`: where the cases begin (1).
#![expect(clippy::unwrap_used, reason = "tests")]

use std::env;
use std::thread;

use heddle_fuzz::dice::Dice;
use heddle_fuzz::model::{Model, Stimulus, Verdict};
use heddle_fuzz::session::{Session, Step};
use heddle_fuzz::wire::{Seen, read};
use heddle_fuzz::world::World;
use heddle_fuzz::{PACKETS, case, make};

fn number(name: &str, default: u64) -> u64 {
    env::var(name).map_or(default, |text| text.replace('_', "").parse().unwrap())
}

#[test]
fn the_programs_and_the_model_agree() {
    let (packets, seed) = (number("HEDDLE_PACKETS", 1_000_000), number("HEDDLE_SEED", 1));
    let cases = packets.div_ceil(PACKETS as u64);
    let object = env::var_os("HEDDLE_TEST_OBJECT").map(std::path::PathBuf::from);
    let object = object.as_deref();
    thread::scope(|scope| {
        for half in 0..2 {
            scope.spawn(move || {
                let mut world = World::new(object).unwrap();
                for at in (half..cases).step_by(2) {
                    if let Some(report) = case(&mut world, seed + at).unwrap() {
                        panic!("{report}");
                    }
                }
            });
        }
    });
}

/// What is broken goes nowhere as a service's: random bytes, and packets of services in which some were changed. The
/// programs say of each what the model says, and pass none that is malformed.
#[test]
fn fault_070_malformed_packets_are_never_translated() {
    thread::spawn(|| {
        let mut world = World::new(None).unwrap();
        let (mut malformed, mut dropped) = (0, 0);
        for seed in 0..100 {
            let mut dice = Dice::new(1_000_000 + seed);
            let table = make::table(&mut dice);
            let mut session = Session::begin(&mut world, &table).unwrap();
            for _ in 0..PACKETS {
                let mut stimulus = make::stimulus(&mut dice, &session.model);
                for _ in 0..=dice.below(3) {
                    make::mutate(&mut dice, &mut stimulus.frame);
                }
                if !make::can_be_run(&stimulus) {
                    continue;
                }
                let before = session.model.clone();
                let difference = session.step(&Step::Packet(stimulus.clone())).unwrap();
                assert!(difference.is_none(), "seed {seed}: {difference:?}");
                if matches!(read(&stimulus.frame, stimulus.gso != 0, |_| None), Seen::Malformed) {
                    malformed += 1;
                    dropped += u32::from(judged(before, &stimulus));
                }
            }
            assert!(session.end().unwrap().is_none(), "seed {seed}");
        }
        assert!(malformed > 5_000, "{malformed}");
        assert!(dropped > malformed / 2, "{dropped} of {malformed}");
    })
    .join()
    .unwrap();
}

/// Whether a malformed packet is dropped; one that nobody looks at passes as it is.
fn judged(mut model: Model, stimulus: &Stimulus) -> bool {
    let outcome = model.packet(stimulus);
    match outcome.verdict {
        Verdict::Drop => true,
        Verdict::Pass => {
            assert_eq!(outcome.frame.bytes, stimulus.frame);
            false
        }
        Verdict::To(dev) => panic!("a malformed packet is sent to {}", dev.name()),
    }
}
