//! The thread that starts the programs of a lab.
//!
//! The kernel sends a child its parent-death signal when the *thread* that forked it ends. So all children
//! of a lab are forked by one thread that lives as long as the lab.
//!
//! A child has a copy of its parent's table of descriptors until it becomes the program. A socket that another thread
//! closes meanwhile stays open: its port stays taken, its peer hears nothing. So the thread that forks has a table of
//! its own, with nothing in it but what the child shall have.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Seek, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, mpsc};

use nix::libc;
use nix::sys::signal::Signal;

use crate::cmd::Cmd;
use crate::error::{Context, Error, Result};
use crate::process::{Process, lock, pidfd_open};

type Job = Box<dyn FnOnce(&Table) + Send>;

/// The spawner thread's own table of descriptors.
pub(crate) struct Table {
    /// This process, whose other threads have another table.
    others: OwnedFd,
}

impl Table {
    /// Gives the calling thread an empty table (but for the three standard streams).
    fn of_this_thread() -> io::Result<Self> {
        // SAFETY: no pointers. This thread has opened nothing yet that it would miss.
        let closed =
            unsafe { libc::close_range(3, libc::c_uint::MAX, libc::CLOSE_RANGE_UNSHARE as libc::c_int) };
        if closed < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Self { others: pidfd_open(std::process::id())? })
    }

    /// A copy, in this table, of a descriptor of the other threads; they keep it open meanwhile.
    pub(crate) fn fetch(&self, fd: RawFd) -> io::Result<OwnedFd> {
        // SAFETY: no pointers; the result is a new descriptor (with close-on-exec) or -1.
        let copy = unsafe { libc::syscall(libc::SYS_pidfd_getfd, self.others.as_raw_fd(), fd, 0) };
        match RawFd::try_from(copy) {
            // SAFETY: the kernel has just made it, nobody else owns it.
            Ok(copy) if copy >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(copy) }),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

/// The thread that forks, and the directory that output goes to.
#[derive(Debug)]
pub(crate) struct Spawner {
    jobs: Mutex<Option<mpsc::Sender<Job>>>,
    thread: Mutex<Option<std::thread::JoinHandle<()>>>,
    logs: PathBuf,
    next: AtomicU64,
}

impl Spawner {
    pub(crate) fn new(logs: PathBuf) -> Result<Self> {
        let (jobs, work) = mpsc::channel::<Job>();
        let thread = std::thread::Builder::new()
            .name("lab-spawner".into())
            .spawn(move || match Table::of_this_thread() {
                Ok(table) => work.iter().for_each(|job| job(&table)),
                // Whoever asks for a program learns that nobody takes the job.
                Err(e) => eprintln!("lab: a table of descriptors for the spawner thread: {e}"),
            })
            .context(|| "start the lab's spawner thread".into())?;
        Ok(Self {
            jobs: Mutex::new(Some(jobs)),
            thread: Mutex::new(Some(thread)),
            logs,
            next: AtomicU64::new(1),
        })
    }

    /// A new file for what a program prints.
    fn file(&self, place: &str, program: &str, kind: &str) -> Result<(PathBuf, File)> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let path = self.logs.join(format!("{number:04}.{place}.{program}.{kind}"));
        let file = OpenOptions::new().create_new(true).read(true).append(true).open(&path);
        Ok((path.clone(), file.context(|| format!("create {}", path.display()))?))
    }

    /// Starts `cmd`. `prepare` fetches what the function that it gives needs; the child calls that one.
    pub(crate) fn spawn<F: Fn() -> io::Result<()> + Send + Sync + 'static>(
        &self,
        place: &str,
        cmd: impl Into<Cmd>,
        streams: Streams,
        prepare: impl FnOnce(&Table) -> io::Result<F> + Send + 'static,
    ) -> Result<Process> {
        let cmd = cmd.into();
        let (line, program) = (cmd.to_string(), cmd.program());
        let Cmd { mut command, stdin } = cmd;
        let (out, stdout) =
            self.file(place, &program, if streams == Streams::Log { "log" } else { "out" })?;
        let (err, stderr) = match streams {
            Streams::Log => (out.clone(), stdout.try_clone().context(|| "duplicate a descriptor".into())?),
            Streams::Apart => self.file(place, &program, "err")?,
        };
        let stdin = match stdin.as_slice() {
            [] => None,
            input => Some(self.input(place, &program, input)?),
        };
        command.process_group(0);
        // These stay open here until the child is there.
        let files = (stdin, stdout, stderr);
        let [input, output, errors] =
            [files.0.as_ref(), Some(&files.1), Some(&files.2)].map(|file| file.map(AsRawFd::as_raw_fd));
        let start = move |table: &Table| -> io::Result<Child> {
            let stream =
                |fd: Option<RawFd>| fd.map_or(Ok(Stdio::null()), |fd| table.fetch(fd).map(Stdio::from));
            command.stdin(stream(input)?).stdout(stream(output)?).stderr(stream(errors)?);
            let before_exec = prepare(table)?;
            let parent = std::process::id();
            // SAFETY: between fork and exec only system calls on descriptors that are open are made; nothing
            // allocates or takes a lock.
            unsafe {
                command.pre_exec(move || {
                    nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
                    if u32::try_from(nix::unistd::getppid().as_raw()) != Ok(parent) {
                        return Err(io::Error::from_raw_os_error(libc::ESRCH));
                    }
                    before_exec()
                });
            }
            command.spawn()
        };
        let (answer, started) = mpsc::sync_channel(1);
        let job: Job = Box::new(move |table| {
            let _ = answer.send(start(table));
        });
        let gone = || Error::Unsupported("the lab is down: nothing can be started in it".into());
        lock(&self.jobs).as_ref().ok_or_else(gone)?.send(job).map_err(|_| gone())?;
        let child = started
            .recv()
            .map_err(|_| gone())?
            .context(|| format!("start `{line}` in {place} (is it installed or built?)"))?;
        Process::new(line, place, child, out, err)
    }

    /// A file with `input` in it, read from its start, without a name.
    fn input(&self, place: &str, program: &str, input: &[u8]) -> Result<File> {
        let (path, mut file) = self.file(place, program, "in")?;
        file.write_all(input).and_then(|()| file.rewind()).context(|| format!("write {}", path.display()))?;
        let _ = fs::remove_file(path);
        Ok(file)
    }

    /// Ends the thread; the kernel then kills the children that are left.
    pub(crate) fn stop(&self) {
        drop(lock(&self.jobs).take());
        if let Some(thread) = lock(&self.thread).take() {
            let _ = thread.join();
        }
    }

    /// The logs written so far, by file name.
    pub(crate) fn logs(&self) -> Vec<(String, String)> {
        let mut logs: Vec<_> = fs::read_dir(&self.logs)
            .into_iter()
            .flatten()
            .flatten()
            .filter(|e| e.file_name().to_string_lossy().ends_with(".log"))
            .filter_map(|e| Some((e.file_name().into_string().ok()?, fs::read_to_string(e.path()).ok()?)))
            .collect();
        logs.sort();
        logs
    }
}

/// Where what a program prints goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Streams {
    /// Standard output and error to a file each.
    Apart,
    /// Both to one log, shown when a test fails.
    Log,
}
