//! Keys whose writes have lost against other nodes a short time ago. A small collection among them
//! is better split: then those who write different elements of it do not hinder each other.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::Mutex;

/// A key is contended when this many of its writes have lost within [`WINDOW`].
const LOST: u32 = 2;
const WINDOW: Duration = Duration::from_secs(10);
/// The most keys that are remembered.
const MOST: usize = 1_000;

/// The keys of one database.
#[derive(Default)]
pub struct Contention {
    keys: Mutex<HashMap<Bytes, Losses>>,
    /// How many keys it has, for those who need no more.
    count: AtomicUsize,
}

/// Writes of a key that have lost, from the first one on.
struct Losses {
    first: Instant,
    count: u32,
}

impl Losses {
    fn are_recent(&self) -> bool {
        self.first.elapsed() < WINDOW
    }
}

impl Contention {
    /// A write of this key has lost.
    pub fn lost(&self, key: &Bytes) {
        let mut keys = self.keys.lock();
        if keys.len() >= MOST && !keys.contains_key(key) {
            keys.retain(|_, losses| losses.are_recent());
            if keys.len() >= MOST {
                return;
            }
        }
        let new = || Losses {
            first: Instant::now(),
            count: 0,
        };
        let losses = keys.entry(key.clone()).or_insert_with(new);
        if !losses.are_recent() {
            *losses = new();
        }
        losses.count += 1;
        self.count.store(keys.len(), Ordering::Relaxed);
    }

    pub fn is_contended(&self, key: &[u8]) -> bool {
        if self.count.load(Ordering::Relaxed) == 0 {
            return false;
        }
        let mut keys = self.keys.lock();
        let Some(losses) = keys.get(key) else {
            return false;
        };
        if losses.are_recent() {
            return losses.count >= LOST;
        }
        keys.remove(key);
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
        let [a, b] = [Bytes::from_static(b"a"), Bytes::from_static(b"b")];
        contention.lost(&a);
        contention.lost(&b);
        assert!(!contention.is_contended(b"a"));
        contention.lost(&a);
        assert!(contention.is_contended(b"a"));
        assert!(!contention.is_contended(b"b"));
        assert!(!contention.is_contended(b"c"));
    }

    #[test]
    fn few_keys_are_remembered_and_not_for_long() {
        let contention = Contention::default();
        for n in 0..2 * MOST {
            contention.lost(&Bytes::from(n.to_string()));
        }
        assert_eq!(contention.keys.lock().len(), MOST);
        for losses in contention.keys.lock().values_mut() {
            *losses = Losses {
                first: Instant::now().checked_sub(WINDOW).expect("a time"),
                count: LOST,
            };
        }
        assert!(!contention.is_contended(b"0"));
        contention.lost(&Bytes::from_static(b"new"));
        contention.lost(&Bytes::from_static(b"new"));
        assert!(contention.is_contended(b"new"));
        contention.lost(&Bytes::from_static(b"newer"));
        assert_eq!(contention.keys.lock().len(), 2, "what is old makes room");
    }
}
