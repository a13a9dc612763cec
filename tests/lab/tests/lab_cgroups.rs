//! A socket program on a node's cgroup sees the sockets of that node and of its pods, and no others,
//! whether a program, a thread of a test or a traffic generator opens them.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::{Duration, Instant};

use heddle_lab::oracle::bpf_objects;
use heddle_lab::{Ask, Lab, Place, Result, Snapshot};
use nix::libc;

// linux/bpf.h
const BPF_PROG_LOAD: u32 = 5;
const BPF_PROG_ATTACH: u32 = 8;
const BPF_PROG_TYPE_CGROUP_SOCK_ADDR: u32 = 18;
const BPF_CGROUP_INET4_CONNECT: u32 = 10;

#[repr(C)]
#[derive(Default)]
struct Load {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log: [u32; 4],
    kern_version: u32,
    prog_flags: u32,
    prog_name: [u8; 16],
    prog_ifindex: u32,
    expected_attach_type: u32,
}

#[repr(C)]
struct Attach {
    target_fd: u32,
    attach_bpf_fd: u32,
    attach_type: u32,
    attach_flags: u32,
}

fn bpf<T>(command: u32, attr: &T) -> io::Result<i32> {
    // SAFETY: `attr` is a struct of plain numbers with the layout that this command reads, and lives through
    // the call; what its pointers point to is static.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attr), size_of::<T>()) };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(i32::try_from(result).expect("a descriptor"))
    }
}

/// Forbids connect(2) with IPv4 addresses to all in the cgroup of `node`.
fn forbid_connect(node: &Place) -> io::Result<()> {
    // r0 = 0; exit
    static PROGRAM: [u64; 2] = [0xb7, 0x95];
    let load = Load {
        prog_type: BPF_PROG_TYPE_CGROUP_SOCK_ADDR,
        insn_cnt: 2,
        insns: PROGRAM.as_ptr() as u64,
        license: c"MIT".as_ptr() as u64,
        expected_attach_type: BPF_CGROUP_INET4_CONNECT,
        ..Load::default()
    };
    // SAFETY: the descriptor is new, and ours.
    let program = unsafe { OwnedFd::from_raw_fd(bpf(BPF_PROG_LOAD, &load)?) };
    let cgroup = File::open(node.cgroup().path())?;
    let number = |fd: i32| u32::try_from(fd).expect("a descriptor");
    let attach = Attach {
        target_fd: number(cgroup.as_raw_fd()),
        attach_bpf_fd: number(program.as_raw_fd()),
        attach_type: BPF_CGROUP_INET4_CONNECT,
        attach_flags: 0,
    };
    bpf(BPF_PROG_ATTACH, &attach).map(drop)
}

#[test]
fn a_socket_program_sees_its_node_and_nothing_else() -> Result<()> {
    let lab = Lab::builder().nodes(2).build()?;
    let server = lab.client().serve("client", 80)?;
    let to = Ask::new((lab.client().ip(true), 80));
    let pod = lab.node(1).pod("web")?;
    pod.run("ip link set lo up")?;
    let in_pod = pod.serve("web", 80)?;
    let to_itself = Ask::new(([127, 0, 0, 1], 80));
    to.tcp(lab.node(1))?;
    to_itself.tcp(&pod)?;

    let before = Snapshot::of(&lab)?;
    forbid_connect(lab.node(1)).expect("the kernel takes it");
    assert_eq!(before.changes(&Snapshot::of(&lab)?), ["+ n1 attached: cgroup / inet4_connect: 1"]);
    let refused =
        |result: Result<_>| result.err().and_then(|e| e.kind()) == Some(io::ErrorKind::PermissionDenied);
    assert!(refused(to.tcp(lab.node(1)).map(drop)), "a thread of the test on the node");
    assert!(refused(to_itself.tcp(&pod).map(drop)), "a thread of the test in the pod");
    let curl = lab.node(1).output("curl -sS http://192.168.77.201/")?;
    assert!(!curl.status.success(), "a program on the node");
    to.tcp(lab.node(2))?;
    lab.node(2).run("curl -sS http://192.168.77.201/")?;
    Ask::new((lab.node(1).ip4(), 80)).tcp(lab.client()).expect_err("nothing listens there");
    Ask::new((lab.client().ip(false), 80)).tcp(lab.node(1))?;

    let with = bpf_objects();
    // A pod that ends before its server must not wait for it.
    let begun = Instant::now();
    drop(pod);
    assert!(begun.elapsed() < Duration::from_secs(5));
    drop((in_pod, server, lab));
    // The program was held by the cgroup alone.
    heddle_lab::eventually("the end of the program", Duration::from_secs(20), || {
        Ok(with.programs.iter().any(|id| !bpf_objects().programs.contains(id)))
    })
}

/// The machine may have cgroup2 mounted in more than one place. A daemon that finds another than its node's serves
/// the sockets of the whole machine.
#[test]
fn a_node_finds_no_cgroup_but_its_own() -> Result<()> {
    use nix::mount::{MsFlags, mount};
    use nix::sched::{CloneFlags, unshare};
    // In a mount namespace of this thread alone.
    unshare(CloneFlags::CLONE_FS | CloneFlags::CLONE_NEWNS).expect("we are root");
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_PRIVATE | MsFlags::MS_REC, None::<&str>)
        .expect("a mount namespace can be made private");
    mount(Some("none"), "/mnt", Some("cgroup2"), MsFlags::empty(), None::<&str>)
        .expect("cgroup2 can be mounted");

    let lab = Lab::builder().nodes(1).build()?;
    let mounts = lab.node(1).run("cat /proc/self/mountinfo")?;
    let cgroups: Vec<&str> = mounts.lines().filter(|line| line.contains(" - cgroup2 ")).collect();
    assert_eq!(cgroups.len(), 1, "{cgroups:#?}");
    assert!(cgroups[0].contains(" /sys/fs/cgroup "), "{cgroups:#?}");
    Ok(())
}
