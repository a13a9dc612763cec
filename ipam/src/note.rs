//! Our notes: what an interface holds and where it went, a small file for each.
//!
//! The leases are the truth. A note spares reading all of them to find those of one interface, and says which
//! network namespace they went to, for which a lease has no room.

use std::net::IpAddr;

use heddle_spec::Owner;

use crate::file::{create, names, read_at, remove, replace};
use crate::store::{OURS, content};
use crate::{Locked, Namespace, Result};

/// What a note begins with. It keeps the reference plugin from taking the file for a lease of a container that is
/// called like an address.
const BEGINNING: &str = "leases ";

/// What is known of an interface.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Note {
    /// What it was about to be given. Each lease must be looked at.
    pub ips: Vec<IpAddr>,
    /// Not known of leases that somebody else made, or that were made for no namespace that we could see.
    pub namespace: Option<Namespace>,
}

impl Note {
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let mut lines = text.lines();
        let ips =
            lines.next()?.strip_prefix(BEGINNING)?.split(' ').filter_map(|ip| ip.parse().ok()).collect();
        Some(Self { ips, namespace: lines.next().and_then(Namespace::parse) })
    }

    fn text(&self) -> String {
        let ips: Vec<_> = self.ips.iter().map(ToString::to_string).collect();
        let mut text = format!("{BEGINNING}{}", ips.join(" "));
        if let Some(namespace) = &self.namespace {
            text.push('\n');
            text.push_str(&namespace.to_line());
        }
        text
    }
}

impl Locked<'_> {
    /// Our note of `owner`. One that makes no sense is none.
    pub(crate) fn noted(&self, owner: &Owner) -> Result<Option<Note>> {
        let name = file_name(owner);
        let bytes = read_at(self.ours(), &name).map_err(|errno| self.failed("read", &name, errno))?;
        Ok(bytes.and_then(|bytes| Note::parse(&String::from_utf8(bytes).ok()?)))
    }

    /// Notes what `owner` is about to be given. Before the leases: a lease that no note names would be found only
    /// by reading all leases.
    pub(crate) fn note(&self, owner: &Owner, note: &Note) -> Result<()> {
        self.write_ours(&file_name(owner), note.text().as_bytes())
    }

    /// The names of all notes, and of what else is beside them.
    pub(crate) fn notes(&self) -> Result<Vec<String>> {
        names(self.ours()).map_err(|errno| self.failed("list", OURS, errno))
    }

    pub(crate) fn forget(&self, owner: &Owner) -> Result<()> {
        let name = file_name(owner);
        remove(self.ours(), &name).map_err(|errno| self.failed("delete", &name, errno))
    }

    /// Writes a file of ours as a whole, in place of the one that is there.
    pub(crate) fn write_ours(&self, name: &str, content: &[u8]) -> Result<()> {
        let created = create(self.ours(), name, content, 0o600, false)
            .and_then(|created| if created { Ok(()) } else { replace(self.ours(), name, content, 0o600) });
        created.map_err(|errno| self.failed("write", name, errno))
    }
}

/// A file name for `owner` of a fixed length: 128 bits of FNV-1a.
pub(crate) fn file_name(owner: &Owner) -> String {
    let hash = content(owner).bytes().fold(0x6c62_272e_07bb_0142_62b8_2175_6295_c58d_u128, |hash, byte| {
        (hash ^ u128::from(byte)).wrapping_mul(0x0000_0000_0100_0000_0000_0000_0000_013b)
    });
    format!("{hash:032x}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::owner_of;

    #[test]
    fn a_note_is_read_back_as_it_was_written() {
        let ips = vec!["10.1.0.2".parse().unwrap(), "fd00::2".parse().unwrap()];
        let plain = Note { ips: ips.clone(), namespace: None };
        assert_eq!(plain.text(), "leases 10.1.0.2 fd00::2");
        assert_eq!(Note::parse(&plain.text()), Some(plain));
        let namespace = Namespace::parse("netns 4:5 6 /run/netns/a b");
        let whole = Note { ips, namespace };
        assert!(whole.text().ends_with("\nnetns 4:5 6 /run/netns/a b"), "{}", whole.text());
        assert_eq!(Note::parse(&whole.text()), Some(whole));
        assert_eq!(Note::parse("10.1.0.2"), None);
        assert_eq!(Note::parse(""), None);
    }

    /// It compares a whole file, without white space at its ends, with `containerID\r\nifname` or `containerID`.
    #[test]
    fn the_reference_plugin_takes_no_note_for_a_lease() {
        let text = Note { ips: vec!["10.1.0.2".parse().unwrap()], namespace: None }.text();
        assert!(Owner::new(&text, "eth0").is_err() && owner_of(&text).is_none());
        assert!(!text.contains('\r'));
        assert!(Owner::new("leases ", "eth0").is_err(), "no container is called so");
    }

    #[test]
    fn owners_that_differ_have_notes_that_differ() {
        let name = |container: &str, ifname: &str| file_name(&Owner::new(container, ifname).unwrap());
        assert_eq!(name("a", "eth0").len(), 32);
        assert_ne!(name("a", "eth0"), name("a", "eth1"));
        assert_ne!(name("a", "eth0"), name("b", "eth0"));
    }
}
