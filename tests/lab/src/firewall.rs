//! The packet filter of a machine's owner, as a node may find it.

use crate::error::Result;
use crate::place::Place;
use crate::tools::nft;

/// The packet filter of the nodes. It is the machine owner's, never Heddle's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Firewall {
    /// None.
    #[default]
    Open,
    /// As firewalld, ufw and Docker leave a machine: invalid packets are dropped in INPUT and FORWARD, the
    /// policy of FORWARD is DROP, and its owner has let pods talk to pods, as `vxland` asks for.
    Strict,
    /// The same, and nobody has let pods talk to pods.
    Closed,
}

impl Firewall {
    pub(crate) fn raise(self, node: &Place) -> Result<()> {
        let pods = match self {
            Self::Open => return Ok(()),
            Self::Strict => {
                "ip saddr 10.244.0.0/16 ip daddr 10.244.0.0/16 accept
                 ip6 saddr fd00:10:244::/48 ip6 daddr fd00:10:244::/48 accept"
            }
            Self::Closed => "",
        };
        nft(
            node,
            &format!(
                "table inet machine {{
                     counter invalid {{ }}
                     counter refused {{ }}
                     chain input {{
                         type filter hook input priority filter; policy accept;
                         ct state invalid counter name invalid drop
                     }}
                     chain forward {{
                         type filter hook forward priority filter; policy drop;
                         ct state invalid counter name invalid drop
                         ct state established,related accept
                         {pods}
                         counter name refused
                     }}
                 }}"
            ),
        )
    }
}
