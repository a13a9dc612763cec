//! What the files say: the last good state of each, and what is wrong with it now.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::io::{self, ErrorKind};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use heddle_model::{Object as About, Problem, Slice, What};

use super::objects::Objects;
use crate::directory::{Directory, Found, Identity};
use crate::kubernetes::{self, Object};
use crate::tree::{self, At, Error};
use crate::watch::Changes;

/// All manifests of a directory.
#[derive(Debug)]
pub struct Files {
    path: PathBuf,
    files: BTreeMap<Arc<str>, Manifest>,
    /// What they say together.
    objects: Objects,
    /// Names whose content may change without a word of it: links (what they lead to has another name), and what could
    /// not be read.
    linked: BTreeSet<Arc<str>>,
    /// Files with a problem.
    troubled: BTreeSet<Arc<str>>,
    /// Why the directory itself cannot be read.
    problem: Option<String>,
    /// Why it is not watched.
    pub unwatched: Option<String>,
}

#[derive(Debug, Default)]
struct Manifest {
    /// Of what was read last, good or bad.
    identity: Option<Identity>,
    is_good: bool,
    problem: Option<Error>,
}

impl Files {
    pub fn new(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
            files: BTreeMap::new(),
            objects: Objects::default(),
            linked: BTreeSet::new(),
            troubled: BTreeSet::new(),
            problem: None,
            unwatched: None,
        }
    }

    /// Reads what changed. `busy` names files that are being written: they keep their state until later. What was
    /// heard of is read; everything is looked at if nothing was heard, or it may not be all.
    pub fn scan(&mut self, directory: &Directory, changes: &Changes, busy: impl Fn(&str) -> bool) {
        let everything = changes.all || changes.names.is_empty() || self.problem.is_some();
        let names: BTreeSet<Arc<str>> = match everything {
            true => match directory.names(manifest_name) {
                Ok(names) => names.into_iter().map(Into::into).collect(),
                Err(error) => return self.unreadable(&error),
            },
            false => {
                let heard = changes.names.iter().filter_map(|name| manifest_name(name)).map(Into::into);
                heard.chain(self.linked.iter().cloned()).collect()
            }
        };
        self.problem = None;
        if everything {
            self.linked.retain(|name| names.contains(name));
            let gone: Vec<Arc<str>> =
                self.files.keys().filter(|name| !names.contains(*name)).cloned().collect();
            gone.iter().for_each(|name| self.forget(name));
        }
        let known = |name: Arc<str>| {
            let again = changes.all || changes.names.contains(OsStr::new(&*name));
            let identity = self.files.get(&name).and_then(|file| file.identity).filter(|_| !again);
            (name, identity)
        };
        let wanted: Vec<_> = names.into_iter().filter(|name| !busy(name)).map(known).collect();
        // So many at a time: what is read and not yet taken lies in memory.
        for part in wanted.chunks(8 * SHARE) {
            fetch(directory, part).into_iter().for_each(|(name, found)| self.take(name, found));
        }
    }

    fn take(&mut self, name: Arc<str>, found: Fetched) {
        let (identity, is_linked, said) = match found {
            Fetched::Same => return,
            Fetched::Absent { leads_nowhere } => {
                self.forget(&name);
                put(&mut self.linked, &name, leads_nowhere);
                return;
            }
            Fetched::Read { identity, is_linked, said } => (identity, is_linked, said),
        };
        let file = self.files.entry(Arc::clone(&name)).or_default();
        file.identity = identity;
        file.problem = None;
        match said {
            Ok(objects) => {
                file.is_good = true;
                self.objects.replace(&name, objects);
            }
            Err(error) => file.problem = Some(error),
        }
        put(&mut self.troubled, &name, file.problem.is_some());
        put(&mut self.linked, &name, is_linked);
    }

    fn forget(&mut self, name: &Arc<str>) {
        if self.files.remove(name).is_some() {
            self.objects.replace(name, Vec::new());
        }
        self.troubled.remove(name);
        self.linked.remove(name);
    }

    /// The directory cannot be read; what its files said stands.
    pub fn unreadable(&mut self, error: &io::Error) {
        self.problem = Some(format!("cannot read the directory: {error}"));
    }

    /// Everything could be read at least once: what is absent is not there.
    pub fn is_complete(&self) -> bool {
        let mut troubled = self.troubled.iter().filter_map(|name| self.files.get(name));
        self.problem.is_none() && troubled.all(|file| file.is_good)
    }

    /// What the files say together.
    pub fn slice(&self) -> Slice {
        let mut slice = self.objects.slice(&self.path);
        for name in &self.troubled {
            if let Some(error) = self.files.get(name).and_then(|file| file.problem.as_ref()) {
                let place = self.place(name, error.at);
                slice.problems.insert(Problem::new(place, What::Said(error.message.clone())));
            }
        }
        for problem in self.problem.iter().chain(&self.unwatched) {
            let place = About::Input(self.path.display().to_string());
            slice.problems.insert(Problem::new(place, What::Said(problem.clone())));
        }
        slice
    }

    fn place(&self, name: &str, at: At) -> About {
        let path = self.path.join(name);
        About::Input(match at.line {
            0 => path.display().to_string(),
            line => format!("{}:{line}:{}", path.display(), at.column),
        })
    }
}

fn put(set: &mut BTreeSet<Arc<str>>, name: &Arc<str>, member: bool) {
    if !member {
        set.remove(name);
    } else if !set.contains(name) {
        set.insert(Arc::clone(name));
    }
}

/// What was found under a name.
enum Fetched {
    /// What is known already.
    Same,
    /// Nothing, or no file, or a link to what is not there.
    Absent { leads_nowhere: bool },
    /// `identity`: `None` if it could not be read.
    Read { identity: Option<Identity>, is_linked: bool, said: Result<Vec<Object>, Error> },
}

/// As many files are read by one thread if others may help.
const SHARE: usize = 64;

/// Reads files, and understands them; those that are still what is known of them are left.
fn fetch(directory: &Directory, wanted: &[(Arc<str>, Option<Identity>)]) -> Vec<(Arc<str>, Fetched)> {
    let all = |part: &[(Arc<str>, Option<Identity>)]| -> Vec<(Arc<str>, Fetched)> {
        part.iter().map(|(name, known)| (Arc::clone(name), fetch_one(directory, name, *known))).collect()
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(wanted.len() / SHARE + 1);
    if threads == 1 {
        return all(wanted);
    }
    std::thread::scope(|scope| {
        let parts = wanted.chunks(wanted.len().div_ceil(threads));
        let helpers: Vec<_> = parts.map(|part| (part, scope.spawn(move || all(part)))).collect();
        // A reader that failed is a fault of ours; its part is read again, here.
        let join = |(part, helper): (_, std::thread::ScopedJoinHandle<'_, _>)| {
            helper.join().unwrap_or_else(|_| all(part))
        };
        helpers.into_iter().flat_map(join).collect()
    })
}

fn fetch_one(directory: &Directory, name: &str, known: Option<Identity>) -> Fetched {
    match directory.read(name, known) {
        Ok(None) if known.is_some() => Fetched::Same,
        // A directory with such a name.
        Ok(None) => Fetched::Absent { leads_nowhere: false },
        Ok(Some(Found { identity, text, is_linked })) => {
            Fetched::Read { identity: Some(identity), is_linked, said: parse(name, &text) }
        }
        // Gone since it was heard of, or a link to what is gone: as if it were not there.
        Err(error) if error.kind() == ErrorKind::NotFound => {
            Fetched::Absent { leads_nowhere: directory.has(name) }
        }
        Err(error) => {
            let error = Error::new(At { line: 0, column: 0 }, format!("cannot read it: {error}"));
            Fetched::Read { identity: None, is_linked: true, said: Err(error) }
        }
    }
}

/// The name of a manifest (`*.yaml`, `*.yml`, `*.json`, not hidden), or `None`.
fn manifest_name(name: &OsStr) -> Option<&str> {
    let name = name.to_str()?;
    let (stem, extension) = name.rsplit_once('.')?;
    (matches!(extension, "yaml" | "yml" | "json") && !stem.is_empty() && !name.starts_with('.'))
        .then_some(name)
}

fn parse(name: &str, bytes: &[u8]) -> Result<Vec<Object>, Error> {
    let text = std::str::from_utf8(bytes).map_err(|error| {
        let before = &bytes[..error.valid_up_to()];
        let line = before.iter().filter(|byte| **byte == b'\n').count() + 1;
        let column = before.iter().rev().take_while(|byte| **byte != b'\n').count() + 1;
        Error::new(At { line, column }, "not UTF-8")
    })?;
    let read = || {
        if name.ends_with(".json") {
            return kubernetes::json(text);
        }
        let mut objects = Vec::new();
        for document in tree::yaml(text)? {
            objects.extend(kubernetes::objects(&document)?);
        }
        Ok(objects)
    };
    // A fault in a parser is that file's problem and nobody else's.
    catch_unwind(AssertUnwindSafe(read)).unwrap_or_else(|_| {
        Err(Error::new(At { line: 1, column: 1 }, "the parser failed on it (a fault of ours)"))
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SAMPLE: &str = "apiVersion: v1\nkind: List\nitems:\n- &a\n  apiVersion: v1\n  kind: Service\n  metadata: {name: \"web\\u0041\", labels: {x: 'y'}}\n  spec:\n    clusterIPs: [10.96.0.1, 'fd00::1']\n    ports: [{port: 80, nodePort: 30080}]\n- *a\n---\n# comment\nkind: Node\n...\n";
    const JSON: &str = r#"{"apiVersion":"v1","kind":"NodeList","items":[{"metadata":{"name":"n\ud83d\ude00"},"spec":{"podCIDR":"10.0.0.0/24"}}]}"#;

    fn survives(name: &str, bytes: &[u8]) {
        if let Err(error) = parse(name, bytes) {
            assert!(!error.message.contains("a fault of ours"), "{error}");
        }
    }

    proptest! {
        #[test]
        fn no_text_breaks_the_reader(
            text in "\\PC{0,200}", at in any::<prop::sample::Index>(), cut in 0usize..20, json: bool,
        ) {
            let (name, sample) = if json { ("a.json", JSON) } else { ("a.yaml", SAMPLE) };
            survives(name, text.as_bytes());
            let mut bytes = sample.as_bytes().to_vec();
            let at = at.index(bytes.len());
            let end = (at + cut).min(bytes.len());
            bytes.splice(at..end, text.bytes().take(cut));
            survives(name, &bytes);
        }
    }
}
