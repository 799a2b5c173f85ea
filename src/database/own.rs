//! Own records that were acknowledged. Memory has their states, so the applier passes them over
//! when it meets them in the log.
//!
//! A record is known by its offset, its key and its timestamp together. If the log lost what it had
//! acknowledged, and now has another record at that offset, that record is not taken for ours.

use std::collections::VecDeque;

use parking_lot::Mutex;

use crate::store::key_hash;

/// The most records remembered for a partition (16 bytes each). Any beyond that are applied like
/// other writers' records.
const MOST: usize = 1 << 20;
/// Room for this many is kept when there are none.
const USUAL: usize = 1 << 14;

#[derive(Default)]
pub struct OwnRecords(Mutex<VecDeque<(u64, u64)>>);

impl OwnRecords {
    /// Memory has the state of this record.
    pub fn acknowledged(&self, offset: u64, timestamp: i64, key: &[u8]) {
        let record = (offset, mark(timestamp, key));
        let mut records = self.0.lock();
        if records.len() >= MOST {
            return;
        }
        match records.back() {
            // Different threads report the lanes of a log.
            Some((last, _)) if *last > offset => {
                let place = records.partition_point(|(known, _)| *known < offset);
                records.insert(place, record);
            }
            _ => records.push_back(record),
        }
    }

    /// True if this record was acknowledged. Records are met in the order of the log, so what is
    /// before this one is forgotten.
    pub fn meet(&self, offset: u64, timestamp: i64, key: &[u8]) -> bool {
        let mut records = self.0.lock();
        let mut is_it = false;
        while let Some(&(known, its_mark)) = records.front() {
            if known > offset {
                break;
            }
            records.pop_front();
            is_it |= known == offset && its_mark == mark(timestamp, key);
        }
        if records.is_empty() && records.capacity() > USUAL {
            *records = VecDeque::new();
        }
        is_it
    }

    pub fn forget(&self) {
        self.0.lock().clear();
    }
}

fn mark(timestamp: i64, key: &[u8]) -> u64 {
    key_hash(key) ^ (timestamp as u64).rotate_left(32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_acknowledged_is_known_once_and_only_as_it_was() {
        let own = OwnRecords::default();
        for offset in [3, 4, 9, 7, 8, 12] {
            own.acknowledged(offset, 100, b"k");
        }
        assert!(!own.meet(2, 100, b"k"));
        assert!(own.meet(3, 100, b"k"));
        assert!(!own.meet(3, 100, b"k"), "it is met once");
        assert!(!own.meet(4, 100, b"other"), "another record stands there");
        assert!(!own.meet(7, 101, b"k"), "one of another time stands there");
        assert!(own.meet(8, 100, b"k"), "it was told after a later one");
        assert!(own.meet(9, 100, b"k"));
        assert!(!own.meet(11, 100, b"k"));
        own.forget();
        assert!(!own.meet(12, 100, b"k"));
    }
    #[test]
    fn records_of_different_times_are_different_whatever_their_key() {
        for key in (0u64..64).map(u64::to_le_bytes) {
            let own = OwnRecords::default();
            own.acknowledged(3, 100, &key);
            assert!(!own.meet(3, 101, &key), "{key:?}");
        }
    }
}
