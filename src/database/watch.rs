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

use crate::model::Entry;

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
    },
}

impl Found {
    /// For this entry, at that time (milliseconds since the epoch).
    pub fn of(entry: Option<&Entry>, now: u64) -> Found {
        match entry.filter(|entry| entry.is_live(now)).map(|entry| &entry.meta) {
            Some(meta) => Found::Record {
                partition: meta.partition,
                offset: meta.offset,
            },
            None => Found::Absent,
        }
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
