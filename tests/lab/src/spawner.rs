//! The thread that starts the programs of a lab.
//!
//! The kernel sends a child its parent-death signal when the *thread* that forked it ends. So all children
//! of a lab are forked by one thread that lives as long as the lab.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Seek, Write};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, mpsc};

use nix::libc;
use nix::sys::signal::Signal;

use crate::cmd::Cmd;
use crate::error::{Context, Error, Result};
use crate::process::{Process, lock};

type Job = Box<dyn FnOnce() + Send>;

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
            .spawn(move || work.iter().for_each(|job| job()))
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

    /// Starts `cmd`, calling `before_exec` in the child.
    pub(crate) fn spawn(
        &self,
        place: &str,
        cmd: impl Into<Cmd>,
        streams: Streams,
        before_exec: impl Fn() -> io::Result<()> + Send + Sync + 'static,
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
        command.stdin(match stdin.as_slice() {
            [] => Stdio::null(),
            input => Stdio::from(self.input(place, &program, input)?),
        });
        command.stdout(stdout).stderr(stderr).process_group(0);
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
        let (answer, started) = mpsc::sync_channel(1);
        let job: Job = Box::new(move || {
            let _ = answer.send(command.spawn());
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
