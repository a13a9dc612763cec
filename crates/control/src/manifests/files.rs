//! What the files say: the last good state of each, and what is wrong with it now.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::io::{self, ErrorKind};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use heddle_model::{Object as About, Problem, Slice, What};

use crate::directory::{Directory, Identity};
use crate::kubernetes::{self, Key, Object, Value};
use crate::tree::{self, At, Error};
use crate::watch::Changes;

/// All manifests of a directory.
#[derive(Debug)]
pub struct Files {
    path: PathBuf,
    files: BTreeMap<String, Manifest>,
    /// Why the directory itself cannot be read.
    problem: Option<String>,
    /// Why it is not watched.
    pub unwatched: Option<String>,
}

#[derive(Debug, Default)]
struct Manifest {
    /// Of what was read last, good or bad.
    identity: Option<Identity>,
    good: Option<Vec<Object>>,
    problem: Option<Error>,
}

impl Files {
    pub fn new(path: &Path) -> Self {
        Self { path: path.to_owned(), files: BTreeMap::new(), problem: None, unwatched: None }
    }

    /// Reads what changed. `busy` names files that are being written: they keep their state until later.
    pub fn scan(&mut self, directory: &Directory, changes: &Changes, busy: impl Fn(&str) -> bool) {
        let names = match directory.names(manifest_name) {
            Ok(names) => names,
            Err(error) => return self.unreadable(&error),
        };
        self.problem = None;
        self.files.retain(|name, _| names.contains(name));
        for name in names {
            if busy(&name) {
                continue;
            }
            let file = self.files.entry(name.clone()).or_default();
            let again = changes.all || changes.names.contains(OsStr::new(&name));
            match directory.read(&name, file.identity.filter(|_| !again)) {
                Ok(None) => {}
                Ok(Some((identity, bytes))) => {
                    file.identity = Some(identity);
                    match parse(&name, &bytes) {
                        Ok(objects) => {
                            file.good = Some(objects);
                            file.problem = None;
                        }
                        Err(error) => file.problem = Some(error),
                    }
                }
                // Gone since it was listed, or a link to what is gone: as if it were not there.
                Err(error) if error.kind() == ErrorKind::NotFound => drop(self.files.remove(&name)),
                Err(error) => {
                    file.identity = None;
                    file.problem =
                        Some(Error::new(At { line: 0, column: 0 }, format!("cannot read it: {error}")));
                }
            }
        }
    }

    /// The directory cannot be read; what its files said stands.
    pub fn unreadable(&mut self, error: &io::Error) {
        self.problem = Some(format!("cannot read the directory: {error}"));
    }

    /// Everything could be read at least once: what is absent is not there.
    pub fn is_complete(&self) -> bool {
        self.problem.is_none()
            && self.files.values().all(|file| file.good.is_some() || file.problem.is_none())
    }

    /// What the files say together. Of two that describe one object the first counts, by name and then by
    /// line.
    pub fn slice(&self) -> Slice {
        let mut slice = Slice::default();
        let mut owners: BTreeMap<&Key, String> = BTreeMap::new();
        let mut mirrored = Vec::new();
        for (name, file) in &self.files {
            let path = self.path.join(name);
            if let Some(error) = &file.problem {
                slice
                    .problems
                    .insert(Problem::new(self.place(name, error.at), What::Said(error.message.clone())));
            }
            for object in file.good.iter().flatten() {
                let place = format!("{}:{}", path.display(), object.line);
                if let Some(winner) = owners.get(&object.key) {
                    let what = What::Duplicate { loser: object.key.to_string(), winner: winner.clone() };
                    slice.problems.insert(Problem::new(About::Input(place), what));
                    continue;
                }
                owners.insert(&object.key, place);
                match &object.value {
                    Value::Node(node) => {
                        slice.nodes.insert(node.name.clone(), Arc::clone(node));
                    }
                    Value::Service(service) => {
                        slice.services.insert(service.name.clone(), Arc::clone(service));
                    }
                    Value::Slice(list) => {
                        slice.endpoints.insert(list.name.clone(), Arc::clone(list));
                    }
                    Value::Endpoints(parts) => mirrored.extend(parts),
                    Value::NotOurs => {}
                }
            }
        }
        // Kubernetes keeps EndpointSlices that repeat every Endpoints object: where there are slices of a
        // service, they are the truth and the whole of it.
        let sliced: BTreeSet<_> = slice.endpoints.keys().map(|name| name.service.clone()).collect();
        for list in mirrored.into_iter().filter(|list| !sliced.contains(&list.name.service)) {
            slice.endpoints.insert(list.name.clone(), Arc::clone(list));
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
        let documents = if name.ends_with(".json") { tree::json(text)? } else { tree::yaml(text)? };
        let mut objects = Vec::new();
        for document in documents {
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
