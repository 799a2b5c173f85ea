//! Keys that are longer than fjall's keys can be. Pure functions.
//!
//! A stored key is the space's number and the key. If that is too long, it is stored as its
//! beginning and its hash, and the value has its whole name. Keys with the same beginning and the
//! same hash share a place, so the value is a list of names and values ([`Records`]). Reading
//! validates, so damaged bytes are an error and never a wrong value.
//!
//! Stored keys have the order of the whole ones, but for long keys with the same beginning. A range
//! sorts these ([`super::found`]).

use std::ops::Bound;

use bytes::Bytes;
use smallvec::SmallVec;
use xxhash_rust::xxh3::xxh3_128;

use crate::store::engine::{Failure, Range};

/// The longest key of fjall.
const MOST: usize = u16::MAX as usize;
const HASH: usize = size_of::<u128>();
/// Stored keys that are not shorter than this are long: they are cut here, and the hash follows.
const CUT: usize = MOST - HASH;

pub(super) const NUMBER: usize = size_of::<u32>();

pub(super) type StoredKey = SmallVec<[u8; 64]>;

/// Where a key of a space is stored.
pub(super) fn place(space: u32, key: &[u8]) -> StoredKey {
    let mut stored = beginning(space, key);
    if stored.len() == CUT {
        stored.extend_from_slice(&xxh3_128(key).to_be_bytes());
    }
    stored
}

/// The number of the space and the key, up to the cut.
fn beginning(space: u32, key: &[u8]) -> StoredKey {
    let key = &key[..key.len().min(CUT - NUMBER)];
    let mut stored = StoredKey::with_capacity(NUMBER + key.len());
    stored.extend_from_slice(&space.to_be_bytes());
    stored.extend_from_slice(key);
    stored
}

pub(super) fn is_long(stored: &[u8]) -> bool {
    stored.len() >= CUT
}

/// Whether two long keys begin with the same bytes.
pub(super) fn begin_alike(stored: &[u8], other: &[u8]) -> bool {
    is_long(stored) && is_long(other) && stored[..CUT] == other[..CUT]
}

/// The bounds of stored keys within which all keys of a range are. `None` if the range is empty.
pub(super) fn places(space: u32, (from, to): Range<'_>) -> Option<(Bound<StoredKey>, Bound<StoredKey>)> {
    if let (Bound::Included(first) | Bound::Excluded(first), Bound::Included(last) | Bound::Excluded(last)) = (from, to)
        && (first > last || first == last && !matches!((from, to), (Bound::Included(_), Bound::Included(_))))
    {
        return None;
    }
    let from = match from {
        Bound::Unbounded => Bound::Included(beginning(space, &[])),
        Bound::Included(key) | Bound::Excluded(key) => {
            let first = beginning(space, key);
            let is_exact = !is_long(&first) && matches!(from, Bound::Excluded(_));
            if is_exact {
                Bound::Excluded(first)
            } else {
                Bound::Included(first)
            }
        }
    };
    let to = match to {
        Bound::Unbounded => Bound::Excluded(beginning(space.saturating_add(1), &[])),
        Bound::Included(key) | Bound::Excluded(key) => {
            let mut last = beginning(space, key);
            let is_long = is_long(&last);
            if is_long {
                last.extend_from_slice(&[u8::MAX; HASH]);
            }
            match to {
                Bound::Excluded(_) if !is_long => Bound::Excluded(last),
                _ => Bound::Included(last),
            }
        }
    };
    Some((from, to))
}

/// What is stored under a long key: `length name length value`, repeated. Lengths have four bytes,
/// big-endian.
#[derive(Default)]
pub(super) struct Records(pub Vec<(Bytes, Bytes)>);

impl Records {
    pub fn read(stored: &Bytes) -> Result<Records, Failure> {
        let (mut records, mut rest) = (Vec::new(), stored.clone());
        while !rest.is_empty() {
            let read = take(&mut rest).and_then(|name| Some((name, take(&mut rest)?)));
            records.push(read.ok_or_else(|| Failure::damaged("long key"))?);
        }
        Ok(Records(records))
    }

    pub fn find(self, name: &[u8]) -> Option<Bytes> {
        let found = self.0.into_iter().find(|(of, _)| of == name);
        found.map(|(_, value)| value)
    }

    /// Gives a name a value; `None` removes it.
    pub fn set(&mut self, name: &[u8], value: Option<&[u8]>) {
        self.0.retain(|(of, _)| of != name);
        if let Some(value) = value {
            self.0
                .push((Bytes::copy_from_slice(name), Bytes::copy_from_slice(value)));
        }
    }

    /// `None` if there are none.
    pub fn build(&self) -> Option<Bytes> {
        let mut stored = Vec::new();
        for part in self.0.iter().flat_map(|(name, value)| [name, value]) {
            // The store's keys and values are shorter: the log's records are.
            let length = u32::try_from(part.len()).expect("shorter than 4 GiB");
            stored.extend_from_slice(&length.to_be_bytes());
            stored.extend_from_slice(part);
        }
        (!stored.is_empty()).then(|| stored.into())
    }
}

fn take(rest: &mut Bytes) -> Option<Bytes> {
    let length = u32::from_be_bytes(*rest.first_chunk()?) as usize;
    let end = length.checked_add(4).filter(|end| *end <= rest.len())?;
    Some(rest.split_to(end).slice(4..))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stored_keys_fit_and_keep_their_order() {
        let long = |length: usize, end: &[u8]| [&vec![b'k'; length][..], end].concat();
        let keys = [
            vec![],
            long(CUT - NUMBER - 1, b""),
            long(CUT - NUMBER, b""),
            long(100_000, b"a"),
            long(CUT - NUMBER - 1, b"l"),
            long(3, b"l"),
        ];
        for (key, next) in keys.iter().zip(&keys[1..]) {
            let (stored, after) = (place(7, key), place(7, next));
            assert!(stored.len() <= MOST && key < next);
            assert!(stored < after || begin_alike(&stored, &after));
        }
        assert!(place(7, &keys[2]) != place(7, &keys[3]) && begin_alike(&place(7, &keys[2]), &place(7, &keys[3])));
    }

    #[test]
    fn records_survive_a_round_trip_and_nonsense_is_an_error() {
        let mut records = Records::default();
        assert_eq!(records.build(), None);
        records.set(b"one", Some(b"1"));
        records.set(b"", Some(b""));
        records.set(b"two", Some(b"2"));
        records.set(b"one", Some(b"3"));
        records.set(b"two", None);
        let stored = records.build().unwrap();
        let read = |name: &[u8]| Records::read(&stored).unwrap().find(name);
        assert_eq!(read(b"one").as_deref(), Some(&b"3"[..]));
        assert_eq!(read(b"").as_deref(), Some(&b""[..]));
        assert_eq!(read(b"two"), None);
        for end in 1..stored.len() {
            // Whole records may be missing; that is for the engine's checksums.
            assert!(end == 8 || Records::read(&stored.slice(..end)).is_err(), "cut at {end}");
        }
    }
}
