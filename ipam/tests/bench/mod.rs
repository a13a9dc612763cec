//! A directory of leases, and a machine that knows what a test tells it.
#![allow(dead_code, reason = "each test program uses its part")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use heddle_ipam::{Config, Namespace, Pool, Request, Result, Store, Surroundings, Use};
use heddle_spec::{Network, Owner};
use tempfile::TempDir;

pub const PATIENCE: Duration = Duration::from_secs(10);
pub const DUAL: &str = r#"{"ranges":[[{"subnet":"10.1.0.0/24"}],[{"subnet":"fd00:1::/64"}]]}"#;
pub const SMALL: &str = r#"{"subnet":"10.1.0.0/29"}"#;

/// What the machine knows.
#[derive(Debug, Default)]
pub struct World {
    pub own: BTreeSet<IpAddr>,
    pub wired: BTreeSet<IpAddr>,
    /// `None`: it cannot see all namespaces. Else those that somebody holds: inode and cookie, if that can be told.
    pub living: Option<BTreeMap<u64, Option<u64>>>,
    /// How often it was asked for namespaces.
    pub looked: usize,
}

impl Surroundings for World {
    fn usage(&mut self, ip: IpAddr) -> Result<Use> {
        Ok(match (self.own.contains(&ip), self.wired.contains(&ip)) {
            (true, _) => Use::Own,
            (false, true) => Use::Wired,
            (false, false) => Use::None,
        })
    }

    fn living(&mut self, inodes: &BTreeSet<u64>) -> Option<BTreeMap<u64, Option<u64>>> {
        self.looked += 1;
        let all = self.living.clone()?;
        Some(all.into_iter().filter(|(inode, _)| inodes.contains(inode)).collect())
    }
}

pub struct Bench {
    pub dir: TempDir,
    pub pool: Pool,
}

impl Bench {
    pub fn new(ipam: &str) -> Self {
        let pool = serde_json::from_str::<Config>(ipam).unwrap().pool().unwrap();
        Self { dir: tempfile::tempdir().unwrap(), pool }
    }

    pub fn store(&self, boot: &str) -> Store {
        Store::open(self.dir.path(), &Network::new("net").unwrap(), boot, false).unwrap()
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join("net").join(name)
    }

    /// ADD for `container`, whose namespace is `namespace`, on a machine that knows `world`.
    pub fn add_in(
        &self,
        world: &mut World,
        container: &str,
        namespace: Option<&Namespace>,
    ) -> Result<Vec<String>> {
        self.request(world, "boot-1", container, &[], namespace)
    }

    pub fn request(
        &self,
        world: &mut World,
        boot: &str,
        container: &str,
        ips: &[&str],
        namespace: Option<&Namespace>,
    ) -> Result<Vec<String>> {
        let ips: Vec<IpAddr> = ips.iter().map(|ip| ip.parse().unwrap()).collect();
        let owner = owner(container);
        let request = Request { owner: &owner, sets: &self.pool.sets, ips: &ips, namespace };
        let store = self.store(boot);
        let mut clear = |owner: &Owner| {
            store.lock(PATIENCE).unwrap().release(owner).unwrap();
            true
        };
        let given = store.lease(PATIENCE, &request, world, &mut clear)?;
        Ok(given.iter().map(|given| given.ip.to_string()).collect())
    }

    pub fn add(&self, container: &str) -> Result<Vec<String>> {
        self.add_at("boot-1", container, &[])
    }

    pub fn add_at(&self, boot: &str, container: &str, ips: &[&str]) -> Result<Vec<String>> {
        self.request(&mut World::default(), boot, container, ips, None)
    }

    pub fn del(&self, container: &str) -> usize {
        let store = self.store("boot-1");
        store.lock(PATIENCE).unwrap().release(&owner(container)).unwrap().len()
    }

    /// Names of all files, but for the lock and what only the order depends on.
    pub fn files(&self) -> BTreeSet<String> {
        let names =
            |dir: PathBuf| fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
        names(self.path(""))
            .chain(names(self.path(".heddle")))
            .filter(|n| {
                !n.starts_with("last_reserved_ip.")
                    && !["lock", ".heddle", "boot", "turns", "surveyed"].contains(&n.as_str())
            })
            .collect()
    }
}

pub fn owner(container: &str) -> Owner {
    Owner::new(container, "eth0").unwrap()
}
