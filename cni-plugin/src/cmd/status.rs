//! STATUS: would an ADD succeed now?

use heddle_ipam::Store;

use super::{PATIENCE, boot_id};
use crate::conf::Conf;
use heddle_spec::{Failure, code};

/// Whether the leases can be written and every range has a free address.
pub fn status(conf: &Conf) -> Result<(), Failure> {
    let unavailable = |failure: Failure| Failure { code: code::NOT_AVAILABLE, ..failure };
    let store = Store::open(&conf.pool.data_dir, &conf.network, &boot_id()?, conf.pool.durable)
        .map_err(|error| unavailable(error.into()))?;
    let locked = store.lock(PATIENCE).map_err(|error| unavailable(error.into()))?;
    locked.check_room(&conf.pool.sets).map_err(|error| unavailable(error.into()))
}
