//! Several keys as they are together: a group becomes visible at once to everyone who reads several keys, or reads strictly. Owns the lock of that,
//! and what was taken under it; a transaction computes on that when the lock is free again.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::{RwLock, RwLockReadGuard, RwLockWriteGuard};
use smallvec::SmallVec;

use super::hot::PREFETCHED;
use super::transaction::STORE_READ;
use super::{Fault, Seen, Service, Turn, Wait};

/// Bytes of values that are kept for one transaction beside those that memory has anyway.
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

/// A group becomes visible as long as this lives.
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

    /// No group becomes visible as long as this lives.
    pub fn hold(&self) -> RwLockReadGuard<'_, ()> {
        self.lock.read()
    }

    fn shown(&self) -> u64 {
        self.shown.load(Ordering::Acquire)
    }

    /// Whether no group became visible, in part or whole, since that was told.
    fn none_since(&self, shown: u64) -> bool {
        shown.is_multiple_of(2) && self.shown() == shown
    }
}

impl Drop for Showing<'_> {
    fn drop(&mut self) {
        self.groups.shown.fetch_add(1, Ordering::AcqRel);
    }
}

/// What keys are together.
pub struct Together<'k> {
    keys: &'k [Place<'k>],
    seen: SmallVec<[Seen; 1]>,
    /// Where the next key stands that is looked at, if they are in their order.
    next: usize,
    /// Where each stands, once one was looked at out of order.
    places: HashMap<Place<'k>, usize>,
}

impl Together<'_> {
    /// What was found of this key, if it is one of them.
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
    /// Takes what these keys are together, without holding anybody up for longer than memory is looked at; `None` if that is too much to be kept.
    pub(super) fn together<'k>(
        &self,
        keys: &'k [Place<'k>],
        pending: bool,
        turn: Turn,
    ) -> Result<Option<Together<'k>>, Fault> {
        let shown = self.groups.shown();
        let mut seen = self.read_all(keys, pending, turn)?;
        if seen.is_some() && !self.groups.none_since(shown) {
            // Memory has now what had to be read from the store.
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
                if bytes > MAX_BYTES {
                    return Ok(None);
                }
                all.push(seen);
            }
        }
        Ok(Some(all))
    }
}
