//! Several keys as they are at one moment. A group becomes visible at once to everyone who reads
//! several keys, or reads strictly. This module owns the lock for that, and what was read under it.
//! A transaction computes on what was read when the lock is free again.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::{RwLock, RwLockReadGuard, RwLockWriteGuard};
use smallvec::SmallVec;

use super::fault::STORE_READ;
use super::hot::PREFETCHED;
use super::{Fault, Seen, Service, Turn, Wait};
use crate::model::{Entry, Value};

/// Bytes of values that are kept for one transaction, besides those that memory holds anyway.
const MAX_BYTES: usize = if cfg!(test) { 1 << 10 } else { 64 << 20 };

/// A key of a database.
pub type Place<'k> = (u16, &'k [u8]);

/// Held for writing while several keys become visible at once.
#[derive(Default)]
pub struct Groups {
    lock: RwLock<()>,
    /// Odd while a group becomes visible.
    shown: AtomicU64,
}

/// While this lives, a group becomes visible.
pub struct Showing<'g> {
    groups: &'g Groups,
    _lock: RwLockWriteGuard<'g, ()>,
}

impl Groups {
    pub fn show(&self) -> Showing<'_> {
        let lock = self.lock.write();
        self.shown.fetch_add(1, Ordering::AcqRel);
        Showing {
            groups: self,
            _lock: lock,
        }
    }

    /// While the result lives, no group becomes visible.
    pub fn hold(&self) -> RwLockReadGuard<'_, ()> {
        self.lock.read()
    }

    #[cfg(test)]
    pub fn is_held(&self) -> bool {
        self.lock.try_write().is_none()
    }

    /// As [`Groups::hold`], for a thread that may hold it already.
    pub fn hold_again(&self) -> RwLockReadGuard<'_, ()> {
        self.lock.read_recursive()
    }

    fn shown(&self) -> u64 {
        self.shown.load(Ordering::Acquire)
    }

    /// True if no group became visible, in part or whole, since [`Groups::shown`] returned this.
    fn none_since(&self, shown: u64) -> bool {
        shown.is_multiple_of(2) && self.shown() == shown
    }
}

impl Drop for Showing<'_> {
    fn drop(&mut self) {
        self.groups.shown.fetch_add(1, Ordering::AcqRel);
    }
}

/// The states of several keys at one moment.
pub struct Together<'k> {
    keys: &'k [Place<'k>],
    seen: SmallVec<[Seen; 1]>,
    /// The place of the next key to be read, if they are read in their order.
    next: usize,
    /// The place of each key, once one was read out of order.
    places: HashMap<Place<'k>, usize>,
}

impl Together<'_> {
    /// The state that was read of this key, if it is one of them.
    pub fn get(&mut self, database: u16, key: &[u8]) -> Option<Seen> {
        let mut place = self.next;
        if self.keys.get(place) != Some(&(database, key)) {
            if self.places.is_empty() {
                self.places = self.keys.iter().copied().zip(0..).collect();
            }
            let places: &HashMap<Place<'_>, usize> = &self.places;
            place = *places.get(&(database, key))?;
        }
        self.next = place + 1;
        self.seen.get(place).cloned()
    }
}

impl Service {
    /// Reads these keys as they are at one moment, without holding up anyone for longer than it
    /// takes to read memory. Returns `None` if that is too much to be kept.
    pub(super) fn together<'k>(
        &self,
        keys: &'k [Place<'k>],
        pending: bool,
        turn: Turn,
    ) -> Result<Option<Together<'k>>, Fault> {
        let shown = self.groups.shown();
        let mut seen = self.read_all(keys, pending, turn)?;
        if seen.is_some() && !self.groups.none_since(shown) {
            // Memory now has what had to be read from the store.
            let _groups = self.groups.hold();
            seen = self.read_all(keys, pending, turn)?;
        }
        Ok(seen.map(|seen| Together {
            keys,
            seen,
            next: 0,
            places: HashMap::new(),
        }))
    }

    fn read_all(&self, keys: &[Place<'_>], pending: bool, turn: Turn) -> Result<Option<SmallVec<[Seen; 1]>>, Fault> {
        let (mut all, mut bytes, mut work) = (SmallVec::with_capacity(keys.len()), 0, 0);
        for part in keys.chunks(PREFETCHED) {
            let alike = part.iter().filter(|(database, _)| *database == part[0].0);
            self.prefetch(part[0].0, alike.map(|(_, key)| *key));
            for (database, key) in part {
                let seen = self.read_up_to(*database, key, pending, turn.work())?;
                bytes += seen.own_bytes();
                if seen.from_store {
                    work += STORE_READ + seen.own_bytes();
                }
                if work > turn.work() {
                    return Err(Fault::Wait(Wait::Turn(Turn::Large)));
                }
                let is_split = |entry: &Entry| matches!(entry.value, Value::Split(_));
                // Elements are read later: nothing may become visible before.
                if bytes > MAX_BYTES || seen.entry.as_ref().is_some_and(is_split) {
                    return Ok(None);
                }
                all.push(seen);
            }
        }
        Ok(Some(all))
    }
}
