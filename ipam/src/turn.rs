//! One after the other: an ADD and a DEL of the same interface that a runtime, having lost patience, runs at once.
//!
//! Without it a DEL could give an address back while the ADD beside it wires the pod that has it. All
//! interfaces of a network share one file, each locks a byte of its own (F_OFD_SETLK, fcntl(2)): nothing of it is left when
//! the process is gone, however it went.

use std::fs::File;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl, openat};
use nix::libc;
use nix::sys::stat::Mode;

use heddle_spec::Owner;

use crate::note::file_name;
use crate::{Error, Result, Store};

/// The file that is locked, beside our notes.
pub(crate) const NAME: &str = "turns";

/// It is this process's turn with an interface until this is dropped.
#[derive(Debug)]
pub struct Turn {
    _file: File,
}

impl Store {
    /// Waits until nobody else works on `owner`'s interface.
    ///
    /// # Errors
    /// [`Error::Locked`] after `patience`.
    pub fn turn(&self, owner: &Owner, patience: Duration) -> Result<Turn> {
        let path = self.path().join(".heddle").join(NAME);
        let failed = |errno: Errno| Error::io("lock", &path, errno);
        let flags = OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW;
        let file = openat(self.ours(), NAME, flags, Mode::from_bits_truncate(0o600)).map_err(failed)?;
        let range = range(owner);
        match fcntl(&file, FcntlArg::F_OFD_SETLK(&range)) {
            Ok(_) => return Ok(Turn { _file: file.into() }),
            Err(Errno::EAGAIN | Errno::EACCES) => {}
            Err(errno) => return Err(failed(errno)),
        }
        // It waits for ever, so it waits on a thread, which ends with the process if we give up.
        let (sender, receiver) = mpsc::channel();
        let waiter = move || {
            let locked = loop {
                match fcntl(&file, FcntlArg::F_OFD_SETLKW(&range)) {
                    Err(Errno::EINTR) => {}
                    other => break other.map(|_| File::from(file)),
                }
            };
            // Nobody listens any more if we gave up: the file is dropped, and with it the lock.
            drop(sender.send(locked));
        };
        thread::Builder::new()
            .name("turn".into())
            .spawn(waiter)
            .map_err(|source| Error::io("lock", &path, source))?;
        match receiver.recv_timeout(patience) {
            Ok(locked) => locked.map(|file| Turn { _file: file }).map_err(failed),
            Err(_) => Err(Error::Locked { path, waited: patience }),
        }
    }
}

/// The byte of an interface: anywhere in a file that is empty. Two that share one wait for each other, no more.
fn range(owner: &Owner) -> libc::flock {
    let hash = u64::from_str_radix(file_name(owner).get(..15).unwrap_or_default(), 16).unwrap_or_default();
    libc::flock {
        l_type: libc::F_WRLCK as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: hash.cast_signed(),
        l_len: 1,
        l_pid: 0,
    }
}

#[cfg(test)]
mod tests {
    use heddle_spec::Network;

    use super::*;

    #[test]
    fn fault_037_one_interface_is_worked_on_by_one_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let network = Network::new("net").unwrap();
        let store = Store::open(dir.path(), &network, "boot", false).unwrap();
        let short = Duration::from_millis(20);
        let [a, b] = ["a", "b"].map(|container| Owner::new(container, "eth0").unwrap());
        let first = store.turn(&a, short).unwrap();
        assert!(matches!(store.turn(&a, short), Err(Error::Locked { .. })));
        let _other = store.turn(&b, short).unwrap();
        let waiting = thread::scope(|scope| {
            let waiting = scope.spawn(|| store.turn(&a, Duration::from_secs(10)));
            drop(first);
            waiting.join().unwrap()
        });
        assert!(waiting.is_ok());
    }
}
