//! Delegates that behave as a plugin should not.

use super::*;

/// Small programs, each with a bad habit.
fn delegate(name: &str) -> Delegate {
    let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/delegates");
    Delegate::find(name, directory).unwrap()
}

fn impatient(name: &str) -> Delegate {
    Delegate { patience: Duration::from_millis(300), ..delegate(name) }
}

fn told(delegate: &Delegate, input: &[u8]) -> Failure {
    delegate.run(Command::Add, input).unwrap_err()
}

/// More than a pipe holds.
fn much() -> Vec<u8> {
    vec![b' '; 500 << 10]
}

#[test]
fn s1_names_that_lead_out_of_a_directory_are_refused() {
    let long = "a".repeat(129);
    for name in ["", ".", "..", "../sh", "a/b", "/bin/sh", "-x", ".hidden", "a b", "a\0", "a\n", "é", &long]
    {
        let failure = Delegate::find(name, "/usr/bin:/bin").unwrap_err();
        assert_eq!(failure.code, 7, "{name:?}: {failure:?}");
    }
    assert!(name_is_valid("host-local") && name_is_valid("my.ipam_2"));
}

#[test]
fn s1_only_files_that_can_be_run_in_absolute_directories_are_found() {
    let here = concat!(env!("CARGO_MANIFEST_DIR"), "/tests");
    let relative = "tests/delegates";
    assert!(Path::new(relative).join("fails").exists(), "the tests run in the package's directory");
    for path in ["", ":", relative, "./tests/delegates", here, "/absent"] {
        let failure = Delegate::find("fails", path).unwrap_err();
        assert_eq!(failure.code, code::DELEGATE, "{path:?}: {failure:?}");
        assert!(failure.msg.contains("there is no program fails"), "{failure:?}");
    }
    // A directory, and a file that cannot be run.
    assert!(Delegate::find("delegates", here).is_err());
    assert!(Delegate::find("Cargo.toml", env!("CARGO_MANIFEST_DIR")).is_err());
    let found = Delegate::find("fails", &format!("/absent::{relative}:{here}/delegates")).unwrap();
    assert_eq!(found.program, Path::new(here).join("delegates/fails"));
}

#[test]
fn a_program_is_not_its_own_delegate() {
    let own = std::env::current_exe().unwrap();
    let directory = own.parent().unwrap().to_str().unwrap();
    let failure = Delegate::find(own.file_name().unwrap().to_str().unwrap(), directory).unwrap_err();
    assert!(failure.code == 7 && failure.msg.contains("heddle itself"), "{failure:?}");
}

#[test]
fn what_neither_reads_nor_ends_is_killed() {
    for input in [b"{}".to_vec(), much()] {
        let start = Instant::now();
        let failure = told(&impatient("hangs"), &input);
        assert!(failure.code == code::DELEGATE && failure.msg.contains("was killed"), "{failure:?}");
        assert!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
    }
}

#[test]
fn what_never_stops_writing_is_killed() {
    let failure = told(&delegate("endless"), b"{}");
    assert!(failure.msg.contains("more than 1024 KiB"), "{failure:?}");
}

#[test]
fn how_it_ended_is_told() {
    for (name, words) in [("killed", "signal 9 ended it"), ("fails", "exit status 7 and no error object")] {
        let failure = told(&delegate(name), b"{}");
        assert_eq!(failure.code, code::DELEGATE);
        assert!(failure.msg.starts_with(name) && failure.msg.contains(words), "{failure:?}");
    }
    let garbage = delegate("garbage").add(b"{}", Version::V1_1_0).unwrap_err();
    assert!(garbage.msg.contains("its answer cannot be read"), "{garbage:?}");
}

#[test]
fn its_own_error_is_passed_on() {
    let failure = told(&delegate("refuses"), b"{}");
    let wanted = Failure::new(11, "refuses: no lease yet").with_details("the server is asleep");
    assert_eq!(failure, wanted);
}

#[test]
fn what_does_not_listen_or_leaves_a_child_behind_is_heard() {
    for name in ["deaf", "leaves-a-child"] {
        let start = Instant::now();
        let answer = delegate(name).add(&much(), Version::V1_1_0).unwrap();
        assert_eq!(answer.ips.len(), 1);
        assert!(start.elapsed() < Duration::from_secs(3), "{name} is not waited for: {:?}", start.elapsed());
    }
}
