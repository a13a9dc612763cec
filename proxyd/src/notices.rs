//! What is wrong beside the loop: told like the loop's own troubles, by log, `proxyd status` and metric.

use std::collections::BTreeMap;
use std::sync::Arc;

use heddle_reconcile::Trouble;
use tokio::sync::watch;
use tokio::time::Instant;

/// Shared by all who have something to say.
#[derive(Clone, Debug, Default)]
pub struct Notices(Arc<watch::Sender<BTreeMap<String, Trouble>>>);

impl Notices {
    /// `object` has this trouble now. Said again it changes nothing.
    pub fn set(&self, object: &str, what: String) {
        self.0.send_if_modified(|troubles| {
            if troubles.get(object).is_some_and(|trouble| trouble.what == what) {
                return false;
            }
            tracing::warn!("{object}: {what}");
            troubles.insert(object.to_owned(), Trouble { what, since: Instant::now() });
            true
        });
    }

    /// `object` has no trouble any more.
    pub fn clear(&self, object: &str) {
        self.0.send_if_modified(|troubles| {
            let Some(trouble) = troubles.remove(object) else { return false };
            tracing::info!("{object}: no longer: {}", trouble.what);
            true
        });
    }

    /// Follows them.
    pub fn watch(&self) -> watch::Receiver<BTreeMap<String, Trouble>> {
        self.0.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trouble_keeps_its_age_until_its_words_change() {
        let notices = Notices::default();
        let mut watch = notices.watch();
        notices.set("a", "x".into());
        let since = watch.borrow_and_update()["a"].since;
        notices.set("a", "x".into());
        assert!(!watch.has_changed().unwrap());
        notices.set("a", "y".into());
        let now = watch.borrow_and_update()["a"].clone();
        assert!(now.what == "y" && now.since >= since);
        notices.clear("b");
        assert!(!watch.has_changed().unwrap());
        notices.clear("a");
        assert!(watch.borrow_and_update().is_empty());
    }
}
