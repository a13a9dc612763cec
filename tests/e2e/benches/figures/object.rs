//! eBPF objects and BPF_PROG_TEST_RUN.

use std::fs;
use std::os::fd::{AsFd, AsRawFd};
use std::path::PathBuf;

use anyhow::{Context, Result, anyhow, bail};
use aya::maps::{Map, MapData};
use aya::programs::SchedClassifier;
use aya::{Ebpf, TestRun, TestRunOptions};

use crate::cpu;

/// Where `cargo xtask` puts an object.
fn path(name: &str) -> PathBuf {
    let target = std::env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| "target".into());
    [env!("CARGO_MANIFEST_DIR"), "..", ".."].iter().collect::<PathBuf>().join(target).join("ebpf").join(name)
}

pub fn read(name: &str) -> Result<Vec<u8>> {
    let path = path(name);
    fs::read(&path).with_context(|| format!("cannot read {} (`./x bench` builds it)", path.display()))
}

/// An object of its own, nothing of it pinned.
pub fn load(name: &str) -> Result<Ebpf> {
    Ebpf::load(&read(name)?).with_context(|| format!("cannot load {name}"))
}

/// A classifier of it, given to the kernel.
pub fn classifier<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a SchedClassifier> {
    let program = ebpf.program_mut(name).ok_or_else(|| anyhow!("the object has no program {name}"))?;
    let program: &mut SchedClassifier = program.try_into()?;
    if program.fd().is_err() {
        program.load().with_context(|| format!("cannot load the program {name}"))?;
    }
    Ok(program)
}

/// `struct __sk_buff` up to `ifindex`, the only field that is set.
pub fn context(device: u32) -> [u8; 44] {
    let mut context = [0; 44];
    context[40..].copy_from_slice(&device.to_ne_bytes());
    context
}

/// What one run answers.
pub fn once(program: &SchedClassifier, packet: &[u8]) -> Result<u32> {
    let options = TestRunOptions { data_in: Some(packet), ..TestRunOptions::new() };
    Ok(program.test_run(options)?.return_value)
}

/// Nanoseconds of processor time a run, over `repeat` runs in one system call.
pub fn nanoseconds(program: &SchedClassifier, packet: &[u8], repeat: u32) -> Result<f64> {
    let options = TestRunOptions { data_in: Some(packet), repeat, ..TestRunOptions::new() };
    let start = cpu::used()?;
    program.test_run(options)?;
    Ok((cpu::used()? - start).as_nanos() as f64 / f64::from(repeat))
}

/// The kernel memory of a hash, in bytes.
pub fn memory(ebpf: &Ebpf, map: &str) -> Result<u64> {
    let data = hash(ebpf.map(map).ok_or_else(|| anyhow!("the object has no map {map}"))?)?;
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", data.fd().as_fd().as_raw_fd()))?;
    let line = info.lines().find_map(|line| line.strip_prefix("memlock:"));
    Ok(line.context("the kernel does not tell a map's memory")?.trim().parse()?)
}

fn hash(map: &Map) -> Result<&MapData> {
    match map {
        Map::HashMap(data) | Map::LruHashMap(data) => Ok(data),
        _ => bail!("not a hash"),
    }
}
