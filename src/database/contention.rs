//! Keys whose writes have lost against other nodes a short time ago. A small collection among them
//! is better split: then those who write different elements of it do not hinder each other.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::store::key_hash;

/// A key is contended when this many records of others have come before its writes within
/// [`WINDOW`].
const LOST: u32 = 2;
const WINDOW: Duration = Duration::from_secs(10);
/// The most keys that are remembered.
const MOST: usize = 1_000;

/// The keys of one database.
#[derive(Default)]
pub struct Contention {
    /// By the key's hash: keys can be large. Two keys with the same hash count together, and do no
    /// harm but a split.
    keys: Mutex<HashMap<u64, Losses>>,
    /// How many keys it has, for those who need no more.
    count: AtomicUsize,
}

/// Writes of a key that have lost, from the first one on.
struct Losses {
    first: Instant,
    count: u32,
    /// After the newest record of another writer that was counted.
    after: u64,
}

impl Losses {
    fn are_recent(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.first) < WINDOW
    }
}

impl Contention {
    /// A write of this key has lost against the record before this offset of the key's partition.
    /// All writes that were computed before that record lose against it, and count once.
    pub fn lost(&self, key: &[u8], after: u64) {
        let now = Instant::now();
        let hash = key_hash(key);
        let mut keys = self.keys.lock();
        if keys.len() >= MOST && !keys.contains_key(&hash) {
            keys.retain(|_, losses| losses.are_recent(now));
            if keys.len() >= MOST {
                return;
            }
        }
        let new = || Losses {
            first: now,
            count: 0,
            after: 0,
        };
        let losses = keys.entry(hash).or_insert_with(new);
        if !losses.are_recent(now) {
            *losses = new();
        }
        if after > losses.after {
            losses.after = after;
            losses.count += 1;
        }
        self.count.store(keys.len(), Ordering::Relaxed);
    }

    pub fn is_contended(&self, key: &[u8]) -> bool {
        if self.count.load(Ordering::Relaxed) == 0 {
            return false;
        }
        let hash = key_hash(key);
        let mut keys = self.keys.lock();
        let Some(losses) = keys.get(&hash) else {
            return false;
        };
        if losses.are_recent(Instant::now()) {
            return losses.count >= LOST;
        }
        keys.remove(&hash);
        self.count.store(keys.len(), Ordering::Relaxed);
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_contended_when_it_has_lost_twice() {
        let contention = Contention::default();
        contention.lost(b"a", 1);
        contention.lost(b"b", 1);
        assert!(!contention.is_contended(b"a"));
        contention.lost(b"a", 2);
        assert!(contention.is_contended(b"a"));
        assert!(!contention.is_contended(b"b"));
        assert!(!contention.is_contended(b"c"));
    }

    #[test]
    fn many_writes_that_lose_against_one_record_count_once() {
        let contention = Contention::default();
        for _ in 0..5 {
            contention.lost(b"a", 7);
        }
        assert!(!contention.is_contended(b"a"));
        contention.lost(b"a", 8);
        assert!(contention.is_contended(b"a"));
    }

    #[test]
    fn few_keys_are_remembered_and_not_for_long() {
        let contention = Contention::default();
        for n in 0..2 * MOST {
            contention.lost(n.to_string().as_bytes(), 1);
        }
        assert_eq!(contention.keys.lock().len(), MOST);
        for losses in contention.keys.lock().values_mut() {
            *losses = Losses {
                first: Instant::now().checked_sub(WINDOW).expect("a time"),
                count: LOST,
                after: 1,
            };
        }
        assert!(!contention.is_contended(b"0"));
        contention.lost(b"new", 1);
        contention.lost(b"new", 2);
        assert!(contention.is_contended(b"new"));
        contention.lost(b"newer", 1);
        assert_eq!(contention.keys.lock().len(), 2, "what is old makes room");
    }
}
