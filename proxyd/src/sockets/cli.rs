//! The command line of the helper.

use std::path::PathBuf;

use clap::Parser;
use heddle_daemon::Common;

/// Ends the connections of pods to backends that are gone, when proxyd says so
///
/// Enters the network namespaces of pods, which takes CAP_SYS_ADMIN, and destroys sockets there, which takes
/// CAP_NET_ADMIN; proxyd itself needs neither of it. Listens to root alone, in the run directory. Without it such
/// connections stay until they notice by themselves.
#[derive(Debug, Parser)]
#[command(name = "proxyd-sockets", version)]
pub struct Cli {
    #[command(flatten)]
    pub common: Common,
    /// Where the CNI plugin keeps its leases, which name pods' network namespaces; may be given several times
    #[arg(long, value_name = "DIR", default_value = heddle_ipam::DEFAULT_DATA_DIR)]
    pub leases: Vec<PathBuf>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_option_is_known_to_flag_environment_and_file() {
        let scratch = tempfile::NamedTempFile::new().unwrap();
        let samples =
            [("log-format", "json"), ("log-level", "debug"), ("run-dir", "/x"), ("leases", "/var/leases")];
        heddle_daemon::config::layers_agree::<Cli>(&samples, scratch.path()).unwrap();
    }
}
