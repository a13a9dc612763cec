//! Making a sequence that fails as short as it can be (delta debugging: Zeller and Hildebrandt, 2002).

use super::op::Op;

/// The world is not quite deterministic (namespaces die when the kernel finds time): a sequence counts as failing if
/// one of so many runs fails.
const RUNS: usize = 2;
/// Runs after which what we have is short enough.
const MOST: usize = 400;

/// The shortest that still fails, and how it fails.
pub fn shrink(
    mut ops: Vec<Op>,
    mut why: String,
    play: impl Fn(&[Op]) -> Result<(), String>,
) -> (Vec<Op>, String) {
    let mut left = MOST;
    let mut fails = |ops: &[Op]| {
        (0..RUNS).find_map(|_| {
            left = left.checked_sub(1)?;
            play(ops).err()
        })
    };
    let mut chunk = ops.len().div_ceil(2);
    while chunk > 0 {
        let mut start = 0;
        let mut shorter = false;
        while start < ops.len() {
            let end = (start + chunk).min(ops.len());
            let rest: Vec<Op> = ops[..start].iter().chain(&ops[end..]).copied().collect();
            match fails(&rest) {
                Some(reason) => {
                    (ops, why, shorter) = (rest, reason, true);
                }
                None => start = end,
            }
        }
        chunk = if shorter && chunk == 1 { 1 } else { chunk / 2 };
    }
    (ops, why)
}

#[test]
fn what_does_not_matter_is_taken_out() {
    use super::op::Id;
    let id = |pod| Id { net: 0, pod };
    let ops: Vec<Op> = (0..100).map(|n| Op::Add(id(n))).collect();
    // Fails where both are, in this order.
    let play = |ops: &[Op]| {
        let at = |pod| ops.iter().position(|op| *op == Op::Add(id(pod)));
        match (at(17), at(80)) {
            (Some(a), Some(b)) if a < b => Err("both".to_owned()),
            _ => Ok(()),
        }
    };
    let (shortest, why) = shrink(ops, "first".into(), play);
    assert_eq!(shortest, [Op::Add(id(17)), Op::Add(id(80))]);
    assert_eq!(why, "both");
}
