//! The helper at work: one request after another, of root alone.

use std::fs;
use std::io::{self, ErrorKind};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use heddle_daemon::Failure;
use heddle_daemon::run_dir::Instance;
use heddle_daemon::signal::Stop;
use nix::sys::socket::{getsockopt, sockopt};
use nix::sys::stat::{Mode, umask};
use tokio::net::UnixListener;

use super::cli::Cli;
use super::protocol::{self, Answer, Request};
use super::{PROGRAM, destroy, places, socket};

/// How long a request may take to arrive, and its answer to be taken.
const PATIENCE: Duration = Duration::from_secs(5);

/// Runs until SIGTERM or SIGINT.
///
/// # Errors
/// If it cannot listen.
pub fn run(cli: &Cli) -> Result<(), Failure> {
    heddle_daemon::log::init(&cli.common);
    let instance = Instance::take(&cli.common.run_dir, PROGRAM, || {
        tracing::info!("another {PROGRAM} runs on this node: waiting for it to end");
    })?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut stop = Stop::listen()?;
        let path = socket(&cli.common.run_dir);
        let listener = listen(&path)?;
        instance.ready()?;
        tracing::info!("listening at {}", path.display());
        let signal = tokio::select! {
            signal = stop.wait() => signal,
            error = accept(&listener, &cli.leases) => return Err(error.into()),
        };
        tracing::info!("{signal}: ending");
        let _ = fs::remove_file(&path);
        Ok(())
    })
}

/// The socket is root's alone from its first moment on.
fn listen(path: &Path) -> io::Result<UnixListener> {
    let failed = |error: io::Error| {
        io::Error::new(error.kind(), format!("cannot listen at {}: {error}", path.display()))
    };
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(failed(error)),
        _ => {}
    }
    let before = umask(Mode::from_bits_truncate(0o177));
    let listener = UnixListener::bind(path);
    umask(before);
    listener.map_err(failed)
}

/// Answers until the socket fails.
async fn accept(listener: &UnixListener, leases: &[PathBuf]) -> io::Error {
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream.into_std(),
            Err(error) => return error,
        };
        let leases = leases.to_vec();
        // One at a time: there is one proxyd, and the others who ask are in no hurry.
        let work = tokio::task::spawn_blocking(move || answer(stream?, &leases));
        match work.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!("a request was not answered: {error}"),
            Err(error) => return io::Error::other(error),
        }
    }
}

fn answer(mut stream: UnixStream, leases: &[PathBuf]) -> io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let peer = getsockopt(&stream, sockopt::PeerCredentials)?;
    if peer.uid() != 0 {
        let who = format!("process {} of user {} is not root", peer.pid(), peer.uid());
        return Err(io::Error::new(ErrorKind::PermissionDenied, who));
    }
    let request = protocol::receive(&mut stream)?;
    let places = places::all(leases);
    let mut answer = match request {
        Request::Hello => Answer { namespaces: places.len(), ..Answer::default() },
        Request::Destroy(gone) => {
            let answer = destroy::destroy(&gone, &places);
            let asked: usize = gone.iter().map(|gone| gone.sockets.len()).sum();
            let (destroyed, namespaces) = (answer.destroyed.len(), answer.namespaces);
            tracing::info!(
                backends = gone.len(),
                asked,
                destroyed,
                namespaces,
                "sockets of removed backends"
            );
            answer
        }
    };
    answer.version = env!("CARGO_PKG_VERSION").into();
    protocol::send(&mut stream, &answer)
}
