//! A `resolv.conf` as the answer's `dns` (key `ipam.resolvConf` of the reference plugin).

use std::fs::OpenOptions;
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use heddle_spec::Dns;
use nix::fcntl::OFlag;

use crate::{Error, Result};

/// More than this is no resolv.conf (bytes).
const LARGEST: u64 = 1 << 20;

/// Reads the file (resolv.conf(5)): several `nameserver` lines, `search` and `options` add up, the last `domain`
/// counts.
///
/// # Errors
/// [`Error::Io`], naming the file.
pub fn read(path: &Path) -> Result<Dns> {
    let text = text(path).map_err(|source| Error::io("read", path, source))?;
    Ok(parse(&text))
}

fn text(path: &Path) -> io::Result<String> {
    // A FIFO must not block us.
    let file = OpenOptions::new().read(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("it is not a file"));
    }
    let mut bytes = Vec::new();
    file.take(LARGEST + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > LARGEST {
        return Err(io::Error::other("it is larger than 1 MiB"));
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn parse(text: &str) -> Dns {
    let mut dns = Dns::default();
    for line in text.lines().map(str::trim) {
        if line.starts_with(['#', ';']) {
            continue;
        }
        let mut words = line.split_whitespace().map(str::to_owned);
        match (words.next().as_deref(), words.next()) {
            (Some("nameserver"), Some(server)) => dns.nameservers.push(server),
            (Some("domain"), Some(domain)) => dns.domain = domain,
            (Some("search"), Some(first)) => dns.search.extend([first].into_iter().chain(words)),
            (Some("options"), Some(first)) => dns.options.extend([first].into_iter().chain(words)),
            _ => {}
        }
    }
    dns
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_read_as_the_reference_plugin_reads_it() {
        let text = "# comment\n; another\n\n  nameserver 10.0.0.1 ignored\nnameserver\tfd00::1\nnameserver\n\
                    domain old\ndomain new.example\nsearch a b\nsearch c\noptions ndots:5 rotate\noptions edns0\r\n\
                    sortlist 10.0.0.0/8\nNAMESERVER 10.9.9.9\n";
        let dns = parse(text);
        assert_eq!(dns.nameservers, ["10.0.0.1", "fd00::1"]);
        assert_eq!(dns.domain, "new.example");
        assert_eq!(dns.search, ["a", "b", "c"]);
        assert_eq!(dns.options, ["ndots:5", "rotate", "edns0"]);
        assert!(parse("").is_empty());
    }

    #[test]
    fn a_file_that_cannot_be_read_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let fifo = dir.path().join("fifo");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let large = dir.path().join("large");
        std::fs::write(&large, vec![b'#'; 1 << 21]).unwrap();
        for path in [dir.path().join("absent"), dir.path().to_owned(), fifo, large] {
            let error = read(&path).unwrap_err().to_string();
            assert!(error.starts_with(&format!("cannot read {}: ", path.display())), "{error}");
        }
    }
}
