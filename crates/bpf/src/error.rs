use std::io;
use std::path::PathBuf;

pub type Result<T, E = Error> = std::result::Result<T, E>;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("built without the eBPF object; build with ./x build")]
    NotEmbedded,
    #[error("cannot {operation} {path}: {source}{}", hint(source))]
    Pin { operation: &'static str, path: PathBuf, source: io::Error },
    #[error("{path} is no BPF file system (mount one: mount -t bpf bpf {path})")]
    NotBpffs { path: PathBuf },
    #[error("cannot load the eBPF object: {}", chain(source))]
    Load { source: Box<aya::EbpfError> },
    #[error("cannot load eBPF program {name}: {}", chain(source))]
    Program { name: &'static str, source: Box<aya::programs::ProgramError> },
    #[error("the eBPF object has no program {name}")]
    NoProgram { name: &'static str },
    #[error("cannot use map {name}: {}", chain(source))]
    Map { name: &'static str, source: Box<aya::maps::MapError> },
    #[error("cannot {operation} eBPF program {program} {to}: {source}{}", hint(source))]
    Attach { operation: &'static str, program: &'static str, to: String, source: io::Error },
    #[error("cannot wait for running programs (membarrier): {source}")]
    Grace { source: io::Error },
    #[error("cannot run eBPF program (BPF_PROG_TEST_RUN): {source}")]
    TestRun { source: io::Error },
}

/// Aya's errors keep the kernel's words in their sources.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let words = cause.to_string();
        if !text.contains(&words) {
            text.push_str(": ");
            text.push_str(&words);
        }
        source = cause.source();
    }
    text
}

fn hint(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(nix::libc::EPERM) => " (are CAP_BPF and CAP_NET_ADMIN there?)",
        Some(nix::libc::ENODEV) => " (is the device gone?)",
        _ => "",
    }
}
