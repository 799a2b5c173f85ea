//! Sets of keys of all databases. They have a bound, so that they do not take memory without end.

use std::collections::HashSet;

use bytes::Bytes;

/// So many keys are in a set, with so many bytes of names.
pub const MOST_KEYS: usize = 1_000_000;
pub const MOST_BYTES: usize = 256 << 20;

/// A set of keys.
#[derive(Default)]
pub struct Keys {
    keys: HashSet<(u64, Bytes)>,
    bytes: usize,
}

impl Keys {
    /// Adds a key. Returns whether it is in the set now: there is no room for more keys than the
    /// bound.
    #[must_use]
    pub fn add(&mut self, database: u64, key: &[u8]) -> bool {
        // What came is a part of a larger buffer, which must not be kept.
        let key = (database, Bytes::copy_from_slice(key));
        if self.keys.contains(&key) {
            return true;
        }
        let bytes = self.bytes + key.1.len();
        let has_room = self.keys.len() < MOST_KEYS && bytes <= MOST_BYTES;
        if has_room {
            self.bytes = bytes;
            self.keys.insert(key);
        }
        has_room
    }

    pub fn remove(&mut self, database: u64, key: &Bytes) {
        if self.keys.remove(&(database, key.clone())) {
            self.bytes -= key.len();
        }
    }

    pub fn contains(&self, database: u64, key: &Bytes) -> bool {
        self.keys.contains(&(database, key.clone()))
    }

    pub fn len(&self) -> usize {
        self.keys.len()
    }

    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// Whether a good part of the room is taken.
    pub fn are_many(&self) -> bool {
        self.keys.len() > MOST_KEYS / 10 || self.bytes > MOST_BYTES / 10
    }

    pub fn iter(&self) -> impl Iterator<Item = &(u64, Bytes)> {
        self.keys.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_noted_up_to_a_bound() {
        let mut keys = Keys::default();
        let name = |number: usize| Bytes::copy_from_slice(&number.to_be_bytes());
        assert!((0..MOST_KEYS / 10).all(|number| keys.add(0, &name(number))) && !keys.are_many());
        assert!((0..MOST_KEYS).all(|number| keys.add(0, &name(number))) && keys.are_many());
        assert!(keys.add(0, &name(0)), "it is there already");
        assert!(!keys.add(1, &name(0)) && !keys.contains(1, &name(0)));
        keys.remove(0, &name(1));
        keys.remove(0, &name(1));
        assert!(keys.add(1, &name(0)) && !keys.contains(0, &name(1)));
        assert_eq!((keys.len(), keys.bytes), (MOST_KEYS, MOST_KEYS * 8));

        let mut keys = Keys::default();
        let long = |first: u8| vec![first; MOST_BYTES / 2];
        assert!(keys.add(0, &long(0)) && keys.add(0, &long(1)) && keys.are_many());
        assert!(!keys.add(1, b"k"));
        keys.remove(0, &Bytes::from(long(0)));
        assert!(keys.add(1, b"k"));
    }
}
