//! Labs side by side, in one process and in several, do not see each other.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use heddle_lab::{Lab, Load, Result, Snapshot, eventually};

const SOON: Duration = Duration::from_secs(60);

/// A lab with addresses and names as all the others, and servers whose names are its own.
fn one(number: usize) -> Result<Duration> {
    let begun = Instant::now();
    let lab = Lab::builder().build()?;
    let built = begun.elapsed();
    let before = Snapshot::of(&lab)?;
    let mine = format!("lab-{number}");
    let server = lab.node(2).serve(&mine, 80)?;
    let loads = [
        Load::connects((lab.node(2).ip4(), 80)).start(lab.node(1))?,
        Load::datagrams((lab.node(2).ip6(), 80)).expect([mine.as_str()]).start(lab.client())?,
        Load::streams((lab.node(2).ip4(), 80), 2).expect([mine.as_str()]).start(lab.node(3))?,
    ];
    loads[0].expect([mine.as_str()]);
    lab.node(1).run("ip link add heddle.1 type vxlan id 1 dstport 8472 dev eth0")?;
    lab.node(1).run("nft add table inet heddle")?;
    lab.switch().lossy(&[("n3", u8::try_from(number).unwrap_or(0))])?;
    lab.switch().lossy(&[])?;
    for load in &loads {
        load.wait_for(100, SOON)?;
    }
    for load in loads {
        let report = load.stop();
        assert_eq!((report.misdelivered, report.resets), (0, 0), "{report}");
        assert_eq!(report.by_backend.keys().collect::<Vec<_>>(), [&mine]);
    }
    drop(server);
    lab.node(1).run("ip link del heddle.1")?;
    lab.node(1).run("nft delete table inet heddle")?;
    before.same_as(&Snapshot::of(&lab)?)?;
    assert_eq!(lab.switch().foreign()?, 0);
    Ok(built)
}

#[test]
fn four_in_one_process_and_two_in_others() -> Result<()> {
    // Directories of their own: `lab down` of somebody else is not to find them.
    let temp = |name: &str| std::env::temp_dir().join(format!("lab-test-{}-{name}", std::process::id()));
    let holder = |name: &str| {
        std::fs::create_dir_all(temp(name)).expect("it can be made");
        let mut command = Command::new(env!("CARGO_BIN_EXE_lab"));
        command.args(["up", "--foreground", "--bare"]).env("TMPDIR", temp(name)).stdout(Stdio::piped());
        let mut child = command.spawn().expect("it starts");
        let lines = BufReader::new(child.stdout.take().expect("it is piped")).lines();
        assert!(lines.map_while(|line| line.ok()).any(|line| line.starts_with("enter with")), "it stands");
        child
    };
    let mut others = [holder("one"), holder("two")];
    let built: Result<Vec<_>> = std::thread::scope(|scope| {
        let threads: Vec<_> = (1..=4).map(|number| scope.spawn(move || one(number))).collect();
        threads.into_iter().map(|thread| thread.join().expect("no panic")).collect()
    });
    println!("four labs, built at the same time, stood after {:?}", built?);
    for (other, name) in others.iter_mut().zip(["one", "two"]) {
        assert!(other.try_wait().expect("it is our child").is_none(), "lab {name} stands");
        other.kill().and_then(|()| other.wait()).expect("it is our child");
        eventually("the end of the other lab", SOON, || {
            Ok(std::fs::read_dir(temp(name)).is_ok_and(|mut dir| dir.next().is_none()))
        })?;
        std::fs::remove_dir(temp(name)).expect("it is empty");
    }
    Ok(())
}

#[test]
fn a_lab_stands_in_well_under_a_second() -> Result<()> {
    drop(Lab::builder().build()?);
    let begun = Instant::now();
    let lab = Lab::builder().nodes(3).build()?;
    let built = begun.elapsed();
    drop(lab);
    println!("three nodes and a client: up {built:?}, up and down {:?}", begun.elapsed());
    // Beside other tests, on a busy machine.
    assert!(built < Duration::from_secs(5));
    Ok(())
}
