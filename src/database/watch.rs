//! WATCH: which keys somebody watches, and a flag per connection that a change of one of them raises.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};

use bytes::Bytes;
use parking_lot::Mutex;

/// Raised when a watched key may have changed.
pub type Changed = AtomicBool;

/// Watched keys of one database.
#[derive(Default)]
pub struct Watches {
    /// Number of keys in `keys`, so that a change costs nothing while nobody watches.
    watched: AtomicUsize,
    keys: Mutex<HashMap<Bytes, Vec<Weak<Changed>>>>,
}

impl Watches {
    pub fn watch(&self, key: Bytes, flag: &Arc<Changed>) {
        let mut keys = self.keys.lock();
        keys.retain(|_, flags| {
            flags.retain(|flag| flag.strong_count() > 0);
            !flags.is_empty()
        });
        keys.entry(key).or_default().push(Arc::downgrade(flag));
        self.watched.store(keys.len(), Ordering::SeqCst);
    }

    pub fn changed(&self, key: &[u8]) {
        if self.watched.load(Ordering::SeqCst) == 0 {
            return;
        }
        let mut keys = self.keys.lock();
        for flag in keys.remove(key).into_iter().flatten() {
            if let Some(flag) = flag.upgrade() {
                flag.store(true, Ordering::SeqCst);
            }
        }
        self.watched.store(keys.len(), Ordering::SeqCst);
    }

    /// The database is flushed: raises the flags of the watched keys for which `affected` says so.
    pub fn flushed(&self, affected: impl Fn(&[u8]) -> bool) {
        if self.watched.load(Ordering::SeqCst) == 0 {
            return;
        }
        let watched: Vec<Bytes> = self.keys.lock().keys().cloned().collect();
        for key in watched.iter().filter(|key| affected(key)) {
            self.changed(key);
        }
    }
}
