//! WATCH: the keys that are watched, and one flag per connection that is raised when one of them
//! changes.
//!
//! The flag alone is not enough: the applier shows a change before it raises the flag, and a
//! transaction may be computed in between. So WATCH also notes the [`Found`] of each key, and EXEC
//! compares it with what it finds itself.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};

use bytes::Bytes;
use parking_lot::Mutex;

use super::write::Write;
use super::{Fault, Service, Transaction};
use crate::model::{ElementName, Entry, Value};
use crate::store::StoreError;

/// Raised when a watched key may have changed.
pub type Changed = AtomicBool;

/// The record that gives a key its state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// Absent, or expired.
    Absent,
    Record {
        partition: u32,
        offset: u64,
        /// Of a split collection: what memory has of its elements, see [`Service::elements_known`].
        elements: u64,
    },
}

impl Service {
    /// For this entry of a key, at that time (milliseconds since the epoch).
    pub fn found(&self, database: u16, key: &[u8], entry: Option<&Entry>, now: u64) -> Found {
        match entry.filter(|entry| entry.is_live(now)) {
            Some(entry) => Found::Record {
                partition: entry.meta.partition,
                offset: entry.meta.offset,
                elements: self.elements_known(database, key, entry),
            },
            None => Found::Absent,
        }
    }

    /// A write of the key, or of an element of it, that is under way.
    pub fn under_way(&self, database: u16, key: &[u8]) -> Result<Option<Arc<Write>>, StoreError> {
        let seen = self.read(database, key, true)?;
        match seen.entry.map(|entry| entry.value) {
            Some(Value::Split(split)) if seen.depends.is_none() => {
                let prefix = ElementName::prefix(key, split.version());
                Ok(self.databases[database as usize].elements.under_way(&prefix))
            }
            _ => Ok(seen.depends),
        }
    }

    /// A number that changes with each change of the elements of a split collection, and when
    /// memory forgets some of them; else 0.
    fn elements_known(&self, database: u16, key: &[u8], entry: &Entry) -> u64 {
        match &entry.value {
            Value::Split(split) => {
                let prefix = ElementName::prefix(key, split.version());
                self.databases[database as usize].elements.newest(&prefix)
            }
            Value::String(_) | Value::Packed(_) | Value::Element(_) | Value::Unreadable(_) => 0,
        }
    }
}

impl Transaction<'_> {
    /// What is found of a watched key. What is written rests on the key, and on all its elements.
    pub fn found(&mut self, database: u16, key: &[u8]) -> Result<Found, Fault> {
        let now = self.now;
        let entry = self.get_even_expired(database, key)?;
        if let Some(Value::Split(split)) = entry.as_ref().map(|entry| &entry.value) {
            self.rests_on_all(database, &ElementName::prefix(key, split.version()));
        }
        Ok(self.service().found(database, key, entry.as_ref(), now))
    }
}

/// Watched keys of one database.
#[derive(Default)]
pub struct Watches {
    /// Number of keys in `keys`, so that a change costs nothing while no key is watched.
    watched: AtomicUsize,
    keys: Mutex<Keys>,
}

#[derive(Default)]
struct Keys {
    flags: HashMap<Bytes, Vec<Weak<Changed>>>,
    /// Bytes of keys added since the last sweep, which removes flags of connections that watch no
    /// longer; and the bytes at which the next sweep comes.
    added: usize,
    sweep_at: usize,
}

/// Bytes of keys below which nothing is swept.
const MIN_SWEEP: usize = 8 << 10;
/// What a key costs besides its bytes.
const KEY: usize = 128;

impl Watches {
    pub fn watch(&self, key: Bytes, flag: &Arc<Changed>) {
        let mut keys = self.keys.lock();
        keys.added += key.len() + KEY;
        let flags = keys.flags.entry(key).or_default();
        flags.retain(|flag| flag.strong_count() > 0);
        flags.push(Arc::downgrade(flag));
        if keys.added >= keys.sweep_at {
            keys.flags.retain(|_, flags| {
                flags.retain(|flag| flag.strong_count() > 0);
                !flags.is_empty()
            });
            // The next sweep comes when as much was added as there is now.
            let kept: usize = keys.flags.keys().map(|key| key.len() + KEY).sum();
            (keys.added, keys.sweep_at) = (0, kept.max(MIN_SWEEP));
        }
        self.watched.store(keys.flags.len(), Ordering::SeqCst);
    }

    /// The connection with this flag does not watch these keys any more.
    pub fn unwatch<'k>(&self, watched: impl Iterator<Item = &'k [u8]>, flag: &Arc<Changed>) {
        let mut keys = self.keys.lock();
        for key in watched {
            if let Some(flags) = keys.flags.get_mut(key) {
                flags.retain(|other| !std::ptr::eq(other.as_ptr(), Arc::as_ptr(flag)));
                if flags.is_empty() {
                    keys.flags.remove(key);
                }
            }
        }
        self.watched.store(keys.flags.len(), Ordering::SeqCst);
    }

    pub fn is_watched(&self, key: &[u8]) -> bool {
        self.watched.load(Ordering::SeqCst) > 0 && self.keys.lock().flags.contains_key(key)
    }

    pub fn changed(&self, key: &[u8]) {
        if self.watched.load(Ordering::SeqCst) == 0 {
            return;
        }
        let mut keys = self.keys.lock();
        for flag in keys.flags.remove(key).into_iter().flatten() {
            if let Some(flag) = flag.upgrade() {
                flag.store(true, Ordering::SeqCst);
            }
        }
        self.watched.store(keys.flags.len(), Ordering::SeqCst);
    }

    /// The keys that are watched.
    pub fn watched(&self) -> Vec<Bytes> {
        if self.watched.load(Ordering::SeqCst) == 0 {
            return Vec::new();
        }
        self.keys.lock().flags.keys().cloned().collect()
    }

    /// The database is flushed: raises the flags of those watched keys for which `affected` is
    /// true.
    pub fn flushed(&self, affected: impl Fn(&[u8]) -> bool) {
        for key in self.watched().iter().filter(|key| affected(key)) {
            self.changed(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_raises_the_flags_of_its_key_once() {
        let (watches, mine, other) = (
            Watches::default(),
            Arc::new(Changed::default()),
            Arc::new(Changed::default()),
        );
        watches.watch("a".into(), &mine);
        watches.watch("b".into(), &other);
        watches.changed(b"a");
        assert!(mine.load(Ordering::SeqCst) && !other.load(Ordering::SeqCst));
        assert_eq!(watches.watched(), ["b"]);
    }

    #[test]
    fn who_watches_no_more_leaves_the_others() {
        let (watches, mine, other) = (Watches::default(), Arc::default(), Arc::default());
        watches.watch("a".into(), &mine);
        watches.watch("b".into(), &mine);
        watches.watch("a".into(), &other);
        watches.unwatch([&b"a"[..], b"b", b"c"].into_iter(), &mine);
        assert_eq!(watches.watched(), ["a"]);
        watches.changed(b"a");
        assert!(!mine.load(Ordering::SeqCst) && other.load(Ordering::SeqCst));
    }

    #[test]
    fn those_who_left_leave_nothing_behind() {
        let watches = Watches::default();
        for number in 0..10_000 {
            watches.watch(format!("k{number}").into(), &Arc::default());
            watches.watch("same".into(), &Arc::default());
        }
        assert!(watches.watched().len() <= 2 * MIN_SWEEP / KEY);
        assert!(watches.keys.lock().flags["same".as_bytes()].len() <= 2);
    }
}
