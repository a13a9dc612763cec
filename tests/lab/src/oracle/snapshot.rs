//! Everything that can leak, before and after.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::cgroup;
use crate::cmd::Cmd;
use crate::error::{Context, Error, Result};
use crate::lab::Lab;
use crate::oracle::bpf;
use crate::owner;
use crate::place::Place;

/// What was there at one moment, as lines, by place and kind (`n1 routes`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    sections: BTreeMap<String, BTreeSet<String>>,
}

/// One question of the snapshot: a kind, and the command that answers it.
const COMMANDS: [(&str, &str); 9] = [
    ("addresses", "ip -o addr show"),
    ("routes", "ip -4 route show table all"),
    ("routes6", "ip -6 route show table all"),
    ("rules", "ip -4 rule"),
    ("rules6", "ip -6 rule"),
    ("neighbours", "ip neigh show nud permanent"),
    ("proxies", "ip neigh show proxy"),
    ("fdb", "bridge fdb show"),
    ("queueing", "tc qdisc show"),
];

impl Snapshot {
    /// Of all nodes and clients of `lab`.
    ///
    /// # Errors
    /// When something cannot be asked.
    pub fn of(lab: &Lab) -> Result<Self> {
        let mut snapshot = Self::default();
        let nodes = lab.nodes().iter().map(|node| node.place());
        for place in nodes.chain(lab.clients().iter().map(|client| client.place())) {
            snapshot.add_network(place.name(), |line| place.run(line))?;
            snapshot.add_place(place)?;
        }
        Ok(snapshot)
    }

    /// Of this machine and process: its network, mounts, what labs own by name, this process's descriptors
    /// and children. Meaningful where nothing else runs at the same time in this process.
    ///
    /// # Errors
    /// When something cannot be asked.
    pub fn of_machine() -> Result<Self> {
        let mut snapshot = Self::default();
        snapshot.add_network("machine", run_here)?;
        snapshot.add("machine", "mounts", mounts("/proc/self/mountinfo")?);
        let own = format!("{}-", std::process::id());
        let ours = owner::remains().into_iter().map(|path| path.display().to_string());
        snapshot.add("machine", "labs", ours.filter(|path| path.contains(&own)));
        snapshot.add("process", "descriptors", descriptors()?);
        Ok(snapshot)
    }

    fn add(&mut self, place: &str, kind: &str, lines: impl IntoIterator<Item = String>) {
        self.sections.entry(format!("{place} {kind}")).or_default().extend(lines);
    }

    /// What `ip`, `bridge`, `tc` and `nft` show.
    fn add_network(&mut self, place: &str, run: impl Fn(&str) -> Result<String>) -> Result<()> {
        self.add(place, "links", links(&run("ip -j -d link show")?)?);
        for (kind, command) in COMMANDS {
            let text = run(command)?;
            self.add(
                place,
                kind,
                text.lines().filter(|line| !is_volatile(line)).map(|line| steady(kind, line)),
            );
        }
        let mut table = String::new();
        let rules = run("nft -s list ruleset")?;
        let lines = rules.lines().map(|line| {
            if line.starts_with("table") {
                table = line.trim_end_matches([' ', '{']).to_owned();
            }
            format!("{table}: {}", line.trim())
        });
        let lines: Vec<_> = lines.filter(|line| !line.ends_with(": ") && !line.ends_with(": }")).collect();
        self.add(place, "nftables", lines);
        Ok(())
    }

    /// What is seen from inside the place: files, mounts, BPF; and its cgroup.
    fn add_place(&mut self, place: &Place) -> Result<()> {
        let name = place.name();
        let mut files = Vec::new();
        for dir in ["/run", "/var/lib", "/etc/cni"] {
            walk(&place.path(dir), dir, &mut files);
        }
        self.add(name, "files", files);
        let mut pins = Vec::new();
        walk(&place.path("/sys/fs/bpf"), "/sys/fs/bpf", &mut pins);
        self.add(name, "pins", pins);
        self.add(name, "mounts", place.enter(|| mounts("/proc/thread-self/mountinfo"))??);

        let devices = place.path("/sys/class/net");
        let attached = place.enter(|| {
            let devices = fs::read_dir(&devices).into_iter().flatten().flatten();
            devices
                .flat_map(|device| {
                    let index = fs::read_to_string(device.path().join("ifindex")).unwrap_or_default();
                    let hooks = index.trim().parse().map(bpf::at_device).unwrap_or_default();
                    let device = device.file_name().to_string_lossy().into_owned();
                    hooks.into_iter().map(move |hook| format!("{device} {hook}"))
                })
                .collect::<Vec<_>>()
        })?;
        self.add(name, "attached", attached);

        let mut groups = Vec::new();
        cgroup_dirs(place.cgroup().path(), &mut groups);
        for dir in groups {
            let group = dir.strip_prefix(place.cgroup().path()).unwrap_or(&dir).display().to_string();
            let hooks = bpf::at_cgroup(&dir);
            self.add(name, "attached", hooks.into_iter().map(|hook| format!("cgroup /{group} {hook}")));
            if !group.is_empty() {
                self.add(name, "cgroups", [group]);
            }
        }
        let tasks = cgroup::tasks_of(place.cgroup().path()).into_iter();
        let comm = |task| fs::read_to_string(format!("/proc/{task}/comm")).unwrap_or_default();
        self.add(name, "tasks", tasks.map(|task| format!("{task} {}", comm(task).trim())));
        Ok(())
    }

    /// Leaves out sections whose name ends with one of `kinds`, e.g. `n1 routes` or all `files`.
    #[must_use]
    pub fn without(mut self, kinds: &[&str]) -> Self {
        self.sections
            .retain(|name, _| !kinds.iter().any(|kind| name == kind || name.ends_with(&format!(" {kind}"))));
        self
    }

    /// The lines of a section, e.g. `n1 routes`.
    pub fn section(&self, name: &str) -> impl Iterator<Item = &str> {
        self.sections.get(name).into_iter().flatten().map(String::as_str)
    }

    /// What changed until `after`: `+ n1 routes: ...`, `- n1 links: ...`.
    pub fn changes(&self, after: &Self) -> Vec<String> {
        let none = BTreeSet::new();
        let names: BTreeSet<_> = self.sections.keys().chain(after.sections.keys()).collect();
        let mut changes = Vec::new();
        for name in names {
            let (old, new) =
                (self.sections.get(name).unwrap_or(&none), after.sections.get(name).unwrap_or(&none));
            changes.extend(new.difference(old).map(|line| format!("+ {name}: {line}")));
            changes.extend(old.difference(new).map(|line| format!("- {name}: {line}")));
        }
        changes
    }

    /// The oracle: nothing changed until `after`.
    ///
    /// # Errors
    /// [`Error::Oracle`] with what did.
    pub fn same_as(&self, after: &Self) -> Result<()> {
        let changes = self.changes(after);
        if changes.is_empty() {
            return Ok(());
        }
        let mut text = String::from("not as it was before:");
        for change in changes {
            let _ = write!(text, "\n    {change}");
        }
        Err(Error::Oracle(text))
    }
}

fn run_here(line: &str) -> Result<String> {
    let mut words = line.split_whitespace();
    let output = Command::new(words.next().unwrap_or_default()).args(words).output();
    let output = output.context(|| format!("run `{}`", Cmd::from(line)))?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// What comes and goes by itself: entries that a switch or a neighbour table learnt, multicast groups.
fn is_volatile(line: &str) -> bool {
    line.starts_with("33:33:") || line.starts_with("01:00:5e:") || line.contains("extern_learn")
}

/// A line without what changes by itself: times, indexes, the state of the link.
fn steady(kind: &str, line: &str) -> String {
    let mut words = line.split_whitespace().peekable();
    let mut kept = Vec::new();
    while let Some(word) = words.next() {
        match word {
            "expires" | "valid_lft" | "preferred_lft" | "refcnt" => drop(words.next()),
            "linkdown" | "dead" | "\\" => {}
            word if kind == "addresses" && kept.is_empty() && word.ends_with(':') => {}
            word => kept.push(word),
        }
    }
    kept.join(" ")
}

fn links(json: &str) -> Result<Vec<String>> {
    let list: Vec<Value> = serde_json::from_str(json)
        .map_err(|e| Error::Oracle(format!("`ip -j link` printed no JSON: {e}")))?;
    let show = |link: &Value| {
        let text = |value: &Value| value.as_str().unwrap_or("-").to_owned();
        format!(
            "{} {} mtu {} master {} mac {}",
            text(&link["ifname"]),
            text(&link["linkinfo"]["info_kind"]),
            link["mtu"],
            text(&link["master"]),
            text(&link["address"]),
        )
    };
    Ok(list.iter().map(show).collect())
}

fn mounts(file: &str) -> Result<Vec<String>> {
    let text = fs::read_to_string(file).context(|| format!("read {file}"))?;
    // Field 5: where; after the dash: the kind. Identifiers say nothing.
    let show = |line: &str| {
        let at = line.split(' ').nth(4)?;
        let kind = line.split_once(" - ")?.1.split(' ').next()?;
        Some(format!("{at} {kind}"))
    };
    Ok(text.lines().filter_map(show).collect())
}

/// This process's descriptors by what they are: `net:[...] 3`.
fn descriptors() -> Result<Vec<String>> {
    let mut kinds: BTreeMap<String, usize> = BTreeMap::new();
    for entry in fs::read_dir("/proc/self/fd").context(|| "read /proc/self/fd".into())?.flatten() {
        let target = fs::read_link(entry.path()).unwrap_or_default().display().to_string();
        if target != format!("/proc/{}/fd", std::process::id()) {
            let kind = target.split([':', '[']).next().unwrap_or_default().to_owned();
            *kinds.entry(kind).or_default() += 1;
        }
    }
    Ok(kinds.into_iter().map(|(kind, n)| format!("{kind} {n}")).collect())
}

/// The files below `dir`, called `name`, with the content of small ones; symbolic links are not followed.
fn walk(dir: &Path, name: &str, found: &mut Vec<String>) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = format!("{name}/{}", entry.file_name().to_string_lossy());
        if path == "/run/machine-etc" {
            continue;
        }
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            walk(&entry.path(), &path, found);
            found.push(format!("{path}/"));
        } else {
            found.push(path);
        }
    }
}

fn cgroup_dirs(dir: &Path, found: &mut Vec<std::path::PathBuf>) {
    found.push(dir.to_owned());
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            cgroup_dirs(&entry.path(), found);
        }
    }
}
