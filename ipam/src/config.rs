//! The `ipam` section of a network configuration (keys of the reference plugin `host-local`).

use std::net::IpAddr;
use std::path::PathBuf;

use heddle_spec::Route;
use serde::Deserialize;

use crate::range::prefix;
use crate::{Error, Range, RangeConfig, RangeSet, Result};

/// Where leases are when the configuration does not say.
pub const DEFAULT_DATA_DIR: &str = "/var/lib/cni/networks";
/// More range sets than this are a mistake: each costs every interface an address.
const MOST_SETS: usize = 16;

/// The section as it is written.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Config {
    /// `host-local` or `heddle-ipam`.
    #[serde(rename = "type")]
    pub kind: String,
    pub subnet: Option<String>,
    pub range_start: Option<String>,
    pub range_end: Option<String>,
    pub gateway: Option<String>,
    /// A list of range sets; an interface gets one address from each.
    pub ranges: Vec<Vec<RangeConfig>>,
    pub routes: Vec<RouteConfig>,
    pub data_dir: Option<String>,
    /// A resolv.conf to take the answer's `dns` from.
    pub resolv_conf: Option<String>,
    /// Ours: whether the runtime may ask for an address by name. On by default, as with the reference plugin.
    pub allow_requests: Option<bool>,
    /// Ours: leases survive a power cut (fsync). No pod does, so this is for those who want to go back to
    /// the reference plugin, which keeps leases over a reboot.
    pub durable: bool,
}

/// A route as it is written.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct RouteConfig {
    pub dst: String,
    pub gw: Option<String>,
    pub mtu: Option<u32>,
    pub advmss: Option<u32>,
    pub priority: Option<u32>,
    pub table: Option<u32>,
    pub scope: Option<u8>,
}

/// A section that makes sense.
#[derive(Clone, Debug)]
pub struct Pool {
    pub sets: Vec<RangeSet>,
    pub routes: Vec<Route>,
    pub data_dir: PathBuf,
    /// Where the answer's `dns` comes from.
    pub resolv_conf: Option<PathBuf>,
    /// Whether the runtime may ask for an address by name.
    pub allow_requests: bool,
    pub durable: bool,
}

impl Config {
    /// Checks the section.
    ///
    /// # Errors
    /// [`Error::Config`], naming the key.
    pub fn pool(&self) -> Result<Pool> {
        let mut sets = Vec::new();
        let single = RangeConfig {
            subnet: self.subnet.clone(),
            range_start: self.range_start.clone(),
            range_end: self.range_end.clone(),
            gateway: self.gateway.clone(),
        };
        if single.subnet.is_some() {
            sets.push((RangeSet::single(Range::new(&single, "ipam")?), "ipam.subnet".to_owned()));
        } else if self.range_start.is_some() || self.range_end.is_some() || self.gateway.is_some() {
            return Err(Error::config(
                "ipam.subnet",
                "it is missing, but rangeStart, rangeEnd or gateway is given",
            ));
        }
        for (position, ranges) in self.ranges.iter().enumerate() {
            let key = format!("ipam.ranges[{position}]");
            sets.push((RangeSet::new(ranges, &key)?, key));
        }
        if sets.is_empty() {
            return Err(Error::config("ipam.ranges", "there is no range to take addresses from"));
        }
        if sets.len() > MOST_SETS {
            return Err(Error::config("ipam.ranges", format!("more than {MOST_SETS} range sets")));
        }
        for (position, (set, _)) in sets.iter().enumerate() {
            for (other, key) in sets.iter().skip(position + 1) {
                if set.overlaps(other) {
                    return Err(Error::config(key, format!("{other} overlaps with {set}")));
                }
            }
        }
        let routes = self
            .routes
            .iter()
            .enumerate()
            .map(|(position, route)| route.check(&format!("ipam.routes[{position}]")))
            .collect::<Result<_>>()?;
        let data_dir = self.data_dir.as_deref().filter(|dir| !dir.is_empty()).unwrap_or(DEFAULT_DATA_DIR);
        if !data_dir.starts_with('/') || data_dir.contains('\0') {
            return Err(Error::config("ipam.dataDir", format!("{data_dir:?} is not an absolute path")));
        }
        let sets = sets.into_iter().map(|(set, _)| set).collect();
        let resolv_conf = self.resolv_conf.as_deref().filter(|path| !path.is_empty());
        if resolv_conf.is_some_and(|path| path.contains('\0')) {
            return Err(Error::config("ipam.resolvConf", "it is no path"));
        }
        Ok(Pool {
            sets,
            routes,
            data_dir: data_dir.into(),
            resolv_conf: resolv_conf.map(PathBuf::from),
            allow_requests: self.allow_requests.unwrap_or(true),
            durable: self.durable,
        })
    }
}

impl Pool {
    /// Whether addresses may be asked for by name.
    ///
    /// # Errors
    /// [`Error::Config`] if any is, and none may.
    pub fn check_requests(&self, ips: &[IpAddr]) -> Result<()> {
        match ips.first() {
            Some(ip) if !self.allow_requests => {
                let reason = format!("it is false, and the address {ip} is asked for by name");
                Err(Error::config("ipam.allowRequests", reason))
            }
            _ => Ok(()),
        }
    }
}

impl RouteConfig {
    fn check(&self, key: &str) -> Result<Route> {
        let dst = prefix(&self.dst).map_err(|reason| Error::config(format!("{key}.dst"), reason))?;
        let gw = match self.gw.as_deref().filter(|gw| !gw.is_empty()) {
            None => None,
            Some(text) => {
                let gw: IpAddr = text.parse().map_err(|_| {
                    Error::config(format!("{key}.gw"), format!("{text:?} is not an IP address"))
                })?;
                if gw.is_ipv4() != dst.is_ipv4() {
                    return Err(Error::config(
                        format!("{key}.gw"),
                        format!("{gw} is not of the family of {dst}"),
                    ));
                }
                Some(gw)
            }
        };
        Ok(Route {
            dst,
            gw,
            mtu: self.mtu,
            advmss: self.advmss,
            priority: self.priority,
            table: self.table,
            scope: self.scope,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(text: &str) -> Result<Pool> {
        serde_json::from_str::<Config>(text).unwrap().pool()
    }

    #[test]
    fn a_subnet_comes_before_the_ranges() {
        let pool = pool(
            r#"{"type":"host-local","subnet":"10.1.0.0/24","ranges":[[{"subnet":"fd00::/64"}]],"unknown":1}"#,
        )
        .unwrap();
        assert_eq!(pool.sets.len(), 2);
        assert!(pool.sets[0].is_ipv4() && !pool.sets[1].is_ipv4());
        assert_eq!(pool.data_dir, PathBuf::from(DEFAULT_DATA_DIR));
    }

    #[test]
    fn what_cannot_be_meant_is_refused_by_key() {
        let cases = [
            (r"{}", "ipam.ranges: there is no range"),
            (r#"{"gateway":"10.0.0.1"}"#, "ipam.subnet: it is missing"),
            (r#"{"ranges":[[]]}"#, "ipam.ranges[0]: the range set is empty"),
            (r#"{"ranges":[[{"subnet":"10.0.0.0/24"}],[{"subnet":"10.0.0.0/25"}]]}"#, "ipam.ranges[1]: "),
            (r#"{"subnet":"10.0.0.0/24","dataDir":"relative"}"#, "ipam.dataDir: "),
            (r#"{"subnet":"10.0.0.0/24","routes":[{"dst":"1.1.1.1"}]}"#, "ipam.routes[0].dst: "),
            (
                r#"{"subnet":"10.0.0.0/24","routes":[{"dst":"0.0.0.0/0","gw":"fe80::1"}]}"#,
                "ipam.routes[0].gw: ",
            ),
        ];
        for (text, wanted) in cases {
            let error = pool(text).unwrap_err().to_string();
            assert!(error.starts_with(wanted), "{text}: {error}");
        }
    }
}
