//! QEMU with one of the kernels, and the host's file system inside (virtiofs; what is written there is lost).

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::initrd;
use super::kernel::Kernel;
use crate::root;

/// Memory in MiB: it also holds what is written.
const MEMORY: u32 = 3072;

/// A VM that runs a job. Both streams of the job come out of `qemu`'s own. Ends when this value does.
#[derive(Debug)]
pub struct Machine {
    pub qemu: Child,
    files: Child,
    dir: PathBuf,
}

impl Machine {
    /// Boots `kernel` to run `job`, calls of `run` in init.sh.
    pub fn start(kernel: &Kernel, job: &str) -> Result<Self> {
        let dir = root::target().join(format!("vm/job.{}", std::process::id()));
        fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
        let initrd = initrd::build(&dir, kernel, job)?;
        let socket = dir.join("files.sock");
        let files = share(&dir, &socket)?;
        let mut machine = Self { qemu: qemu(kernel, &initrd, &dir, &socket)?, files, dir };
        if let Some(status) = machine.qemu.try_wait()? {
            bail!("qemu ended at once: {status}");
        }
        Ok(machine)
    }

    /// What the kernel and `init.sh` said, its end.
    pub fn console(&self) -> String {
        let all = fs::read(self.dir.join("console")).unwrap_or_default();
        let all = String::from_utf8_lossy(&all).into_owned();
        let lines: Vec<_> = all.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        for child in [&mut self.qemu, &mut self.files] {
            drop(child.kill());
            drop(child.wait());
        }
        drop(fs::remove_dir_all(&self.dir));
    }
}

/// A command that ends when the thread that starts it does.
fn bound(program: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL"]).arg(program);
    command
}

/// Starts the server of the host's files.
fn share(dir: &Path, socket: &Path) -> Result<Child> {
    let log = fs::File::create(dir.join("files.log"))?;
    // The one in Rust (Debian 13; there QEMU's path leads to it, too), else QEMU's own, in C (Debian 12).
    let own = Path::new("/usr/libexec/virtiofsd");
    let mut command = if own.exists() {
        let mut command = bound(own);
        command.args(["--shared-dir=/", "--cache=always", "--sandbox=chroot"]);
        // Overlayfs takes no file system that mounts others by itself.
        command.arg("--no-announce-submounts");
        command
    } else {
        let mut command = bound("/usr/lib/qemu/virtiofsd");
        command.args(["-f", "-o", "source=/,cache=always,sandbox=chroot"]);
        command
    };
    command.arg(format!("--socket-path={}", socket.display()));
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
    let mut child = command.spawn().context("cannot start virtiofsd")?;
    let end = Instant::now() + Duration::from_secs(20);
    while !socket.exists() {
        if child.try_wait()?.is_some() || Instant::now() > end {
            drop(child.kill());
            drop(child.wait());
            let log = fs::read_to_string(dir.join("files.log")).unwrap_or_default();
            bail!("virtiofsd did not start (are we root?)\n{log}");
        }
        #[expect(
            clippy::disallowed_methods,
            reason = "a socket of another program appears, and nothing tells"
        )]
        thread::sleep(Duration::from_millis(10));
    }
    Ok(child)
}

fn qemu(kernel: &Kernel, initrd: &Path, dir: &Path, socket: &Path) -> Result<Child> {
    let file = |path: &Path| path.display().to_string();
    let mut command = bound("qemu-system-x86_64");
    command.args(["-M", "q35,memory-backend=mem", "-m", &format!("{MEMORY}M")]);
    command.args(["-object", &format!("memory-backend-memfd,id=mem,size={MEMORY}M,share=on")]);
    // As many as the host has: the tests wait for each other's programs.
    let processors = thread::available_parallelism().map_or(1, usize::from).min(4);
    command.args(["-smp", &processors.to_string()]);
    if kvm_works() {
        command.args(["-accel", "kvm", "-cpu", "host"]);
    } else {
        command.args(["-accel", "tcg,thread=multi", "-cpu", "max"]);
    }
    command.args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]);
    command.args(["-kernel", &file(&kernel.image), "-initrd", &file(initrd)]);
    command.args(["-append", "console=ttyS0 quiet panic=-1 mitigations=off random.trust_cpu=on nowatchdog"]);
    command.args(["-serial", &format!("file:{}", file(&dir.join("console")))]);
    command.args(["-device", "virtio-serial-pci"]);
    for (n, stream) in [(1, "out"), (2, "err")] {
        // The files are pipes, ours.
        command.args(["-chardev", &format!("file,id={stream},path=/proc/self/fd/{n},append=on")]);
        command.args(["-device", &format!("virtserialport,chardev={stream},nr={n}")]);
    }
    command.args(["-chardev", &format!("socket,id=files,path={}", file(socket))]);
    command.args(["-device", "vhost-user-fs-pci,chardev=files,tag=root"]);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.spawn().context("cannot start qemu-system-x86_64")
}

/// `/dev/kvm` alone says little: in a VM of somebody else it may be there and fail.
fn kvm_works() -> bool {
    let module = ["kvm_intel", "kvm_amd"].iter().any(|name| Path::new("/sys/module").join(name).exists());
    module && fs::OpenOptions::new().read(true).write(true).open("/dev/kvm").is_ok()
}
