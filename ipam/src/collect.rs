//! GC: what belongs to nobody that the runtime knows.

use std::collections::BTreeSet;

use heddle_spec::Owner;

use crate::file::{TEMPORARY, read_at, remove};
use crate::note::{Note, file_name};
use crate::store::{Lease, owner_of};
use crate::{Locked, Result};

impl Locked<'_> {
    /// Frees every lease of an interface that is not `valid`, and what [`Locked::sweep`] deletes. What is not a lease
    /// of an interface or of a container stays: it is not ours to judge.
    pub fn collect(&self, valid: &BTreeSet<Owner>) -> Result<()> {
        let containers: BTreeSet<&str> = valid.iter().map(Owner::container).collect();
        for ip in self.addresses()? {
            let Lease::Held(content) = self.lease(ip)? else { continue };
            let known = match owner_of(&content) {
                Some(owner) => valid.contains(&owner),
                // Old versions of the reference plugin wrote the container's id alone.
                None => Owner::new(&content, "any").is_err() || containers.contains(content.as_str()),
            };
            if !known {
                self.reclaim(ip)?;
            }
        }
        self.sweep()
    }

    /// Deletes what writers left that were killed: notes that name no lease of their owner, leases of nobody, and
    /// files that were about to get their name. Nobody else writes while we have the lock.
    pub fn sweep(&self) -> Result<()> {
        for name in self.notes()? {
            if self.is_stray(&name)? {
                remove(self.ours(), &name).map_err(|errno| self.failed("delete", &name, errno))?;
            }
        }
        for name in self.names()? {
            if name.starts_with(TEMPORARY) {
                self.unlink(&name)?;
            }
        }
        for ip in self.addresses()? {
            // Frees it if it is nobody's.
            self.is_free(ip)?;
        }
        Ok(())
    }

    /// Whether a file of ours is a note that names no address that its owner holds, or no file that has a use.
    fn is_stray(&self, name: &str) -> Result<bool> {
        if name.starts_with(TEMPORARY) {
            return Ok(true);
        }
        // The length of a note's name: see `file_name`.
        if name.len() != 32 {
            return Ok(false);
        }
        let Some(bytes) = read_at(self.ours(), name).map_err(|errno| self.failed("read", name, errno))?
        else {
            return Ok(false);
        };
        let Some(note) = Note::parse(&String::from_utf8_lossy(&bytes)) else { return Ok(true) };
        for ip in note.ips {
            if let Lease::Held(content) = self.lease(ip)?
                && owner_of(&content).is_some_and(|owner| file_name(&owner) == name)
            {
                return Ok(false);
            }
        }
        Ok(true)
    }
}
