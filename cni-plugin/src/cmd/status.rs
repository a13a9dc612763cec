//! STATUS: would an ADD succeed now?

use crate::addresses;
use crate::conf::{Conf, Ipam, Mode};
use crate::mode::ipvlan;
use heddle_spec::program::Call;
use heddle_spec::{Failure, code};

/// Whether the leases can be written and every range has a free address; whether the delegate is ready.
pub fn status(conf: &Conf, call: &Call) -> Result<(), Failure> {
    if let Mode::Ipvlan(wanted) = &conf.mode {
        ipvlan::status(conf, wanted)?;
    }
    match &conf.ipam {
        Ipam::None => Ok(()),
        Ipam::BuiltIn(pool) => addresses::check_room(conf, pool)
            .map_err(|failure| Failure { code: code::NOT_AVAILABLE, ..failure }),
        Ipam::Delegate(name) => addresses::pass_on(Some(name), call).map_err(|failure| match failure.code {
            code::DELEGATE => Failure { code: code::NOT_AVAILABLE, ..failure },
            _ => failure,
        }),
    }
}
