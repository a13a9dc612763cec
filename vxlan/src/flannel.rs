//! A node that was flannel's: its VXLAN device has the VNI and the port that ours needs, and its rules and its CNI list
//! stay when it goes. With `--replace-flannel` all of that is taken over or away; without, it is told.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use heddle_netlink::nft::{Batch, Family, Nft};
use heddle_netlink::sysctl::{self, Key};
use heddle_netlink::{Result, Socket, link};

/// Its list comes before ours in the alphabet, and so in a runtime's choice.
pub const CONFLIST: &str = "10-flannel.conflist";
/// Where that goes: no runtime reads a name that ends so.
const PUT_AWAY: &str = "10-flannel.conflist.replaced";
/// The bridge of its pods.
const BRIDGE: &str = "cni0";

/// Is this one of its devices (one for each family)?
pub fn is_device(name: &str) -> bool {
    name.starts_with("flannel.") || name.starts_with("flannel-v6.")
}

fn is_chain(name: &str) -> bool {
    matches!(name, "FLANNEL-POSTRTG" | "FLANNEL-FWD")
}

fn is_table(family: Family, name: &str) -> bool {
    matches!((family, name), (Family::Ip, "flannel-ipv4") | (Family::Ip6, "flannel-ipv6"))
}

/// The process of flannel's daemon in this network namespace. A container that does not share the node's processes sees
/// none.
pub fn running() -> Option<u32> {
    let own = fs::read_link("/proc/self/ns/net").ok()?;
    fs::read_dir("/proc").ok()?.flatten().find_map(|entry| {
        let number = entry.file_name().to_str()?.parse().ok()?;
        let name = fs::read_to_string(entry.path().join("comm")).ok()?;
        let here = || fs::read_link(entry.path().join("ns/net")).is_ok_and(|netns| netns == own);
        (matches!(name.trim(), "flanneld" | "flannel") && here()).then_some(number)
    })
}

/// Deletes its devices, and with them its routes, neighbours and FDB: ours come at once.
///
/// # Errors
/// The kernel's.
pub fn delete_devices(socket: &mut Socket) -> Result<()> {
    for device in link::list(socket)? {
        if is_device(&device.name) && device.vxlan.is_some() {
            tracing::info!("deleting {} of flannel's", device.name);
            match link::delete_by_name(socket, &device.name) {
                Err(error) if !error.not_found() => return Err(error),
                _ => {}
            }
        }
    }
    Ok(())
}

/// What it has left on this node besides devices, as it is called there.
///
/// # Errors
/// The kernel's.
pub fn rules() -> Result<Vec<String>> {
    let mut nft = Nft::open()?;
    let chains = nft.chains()?;
    let chains = chains.iter().filter(|chain| is_chain(&chain.name));
    let mut found: BTreeSet<String> =
        chains.map(|chain| format!("chain {} {} {}", chain.family, chain.table, chain.name)).collect();
    let tables = nft.tables()?;
    let tables = tables.iter().filter(|table| is_table(table.family, &table.name));
    found.extend(tables.map(|table| format!("table {} {}", table.family, table.name)));
    Ok(found.into_iter().collect())
}

/// Takes those away, in one transaction.
///
/// # Errors
/// The kernel's.
pub fn remove_rules() -> Result<()> {
    let mut nft = Nft::open()?;
    let mut batch = Batch::new();
    nft.remove_chains(&mut batch, |chain| is_chain(&chain.name))?;
    for table in nft.tables()? {
        if is_table(table.family, &table.name) {
            batch.delete_table(table.family, &table.name);
        }
    }
    if batch.is_empty() { Ok(()) } else { nft.commit(&batch) }
}

/// Its pods are on a bridge and take all pods of the node for neighbours; ours are not there. From now on the node answers
/// for ours (IPv4; for IPv6 there is no such setting for a whole range).
///
/// # Errors
/// The kernel's.
pub fn answer_for_ours(socket: &mut Socket) -> Result<()> {
    if link::by_name(socket, BRIDGE)?.is_none() {
        return Ok(());
    }
    let proxy = Key::new(["net", "ipv4", "conf", BRIDGE, "proxy_arp"]);
    if sysctl::read(&proxy)?.trim() != "1" {
        sysctl::write(&proxy, "1")?;
        tracing::info!("{BRIDGE}: the node answers for pods that are not on it");
    }
    Ok(())
}

/// Puts its CNI list where no runtime reads it. The file, if there was one.
///
/// # Errors
/// The file system's.
pub fn put_conflist_away(dir: &Path) -> io::Result<Option<PathBuf>> {
    let file = dir.join(CONFLIST);
    match fs::rename(&file, dir.join(PUT_AWAY)) {
        Ok(()) => Ok(Some(file)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// After ours stands: everything else of flannel's goes. What cannot be done is told, and tried at the next start.
pub fn replace_rest(conf_dir: &Path) {
    let told = |what: &str, done: std::result::Result<(), String>| {
        if let Err(error) = done {
            tracing::warn!("flannel: cannot {what}: {error}");
        }
    };
    match rules() {
        Ok(rules) if rules.is_empty() => {}
        Ok(rules) => {
            told("remove its rules", remove_rules().map_err(|error| error.to_string()));
            tracing::info!("removed of flannel's: {}", rules.join(", "));
        }
        Err(error) => told("read its rules", Err(error.to_string())),
    }
    let bridge = Socket::open().and_then(|mut socket| answer_for_ours(&mut socket));
    told("answer for pods on its bridge", bridge.map_err(|error| error.to_string()));
    match put_conflist_away(conf_dir) {
        Ok(Some(file)) => tracing::info!("put {} away: new pods are ours", file.display()),
        Ok(None) => {}
        Err(error) => told("put its CNI list away", Err(error.to_string())),
    }
}

/// What is in the way, for who did not ask for it to be replaced.
pub fn tell(conf_dir: &Path) {
    if let Ok(rules) = rules()
        && !rules.is_empty()
    {
        tracing::warn!("flannel has left {} (--replace-flannel takes them away)", rules.join(", "));
    }
    let list = conf_dir.join(CONFLIST);
    if list.exists() {
        tracing::warn!(
            "{} comes before ours: new pods are flannel's (--replace-flannel puts it away)",
            list.display()
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn its_names_are_known() {
        assert!(is_device("flannel.1") && is_device("flannel-v6.1"));
        assert!(!is_device("heddle.1") && !is_device("flannel"));
        assert!(is_table(Family::Ip6, "flannel-ipv6") && !is_table(Family::Inet, "flannel-ipv6"));
    }

    #[test]
    fn its_list_is_put_where_no_runtime_reads_it() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(put_conflist_away(dir.path()).unwrap(), None);
        let file = dir.path().join(CONFLIST);
        fs::write(&file, "{}").unwrap();
        assert_eq!(put_conflist_away(dir.path()).unwrap(), Some(file));
        let left: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(left, [PUT_AWAY]);
    }
}
