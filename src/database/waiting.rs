//! Records that were read and are not applied yet: the first belongs to a group whose other records
//! have not all come, and the others came after it. Also groups of which a part was applied at
//! once. Knows groups and places in the log, but not what is done with the records.

use std::collections::{BTreeMap, HashMap, VecDeque};

use smallvec::{SmallVec, smallvec};

use crate::log::{Group, LogRecord, TopicPartition};

/// What a record costs here besides its key and value, bytes (measured roughly).
const OVERHEAD: usize = 250;

#[derive(Default)]
pub struct Waiting {
    /// In the order in which they came. A record that was taken with its group leaves a gap until
    /// everything before it is taken.
    records: VecDeque<Option<LogRecord>>,
    /// The number of the first record. Each later record has the next number.
    first: u64,
    /// The numbers of each group's records.
    groups: HashMap<u128, SmallVec<[u64; 4]>, foldhash::fast::RandomState>,
    /// The numbers of each partition's records. Those before the first that is still here were
    /// removed.
    partitions: BTreeMap<TopicPartition, VecDeque<u64>>,
    bytes: usize,
}

impl Waiting {
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    pub fn bytes(&self) -> usize {
        self.bytes
    }

    pub fn front(&self) -> Option<&LogRecord> {
        self.records.front()?.as_ref()
    }

    /// The number of the first record.
    pub fn first(&self) -> u64 {
        self.first
    }

    /// The number that the next record gets.
    pub fn next(&self) -> u64 {
        self.first + self.records.len() as u64
    }

    /// How many records of a group are here.
    pub fn count(&self, group: u128) -> usize {
        self.groups.get(&group).map_or(0, |numbers| numbers.len())
    }

    /// The offset of the first record of each partition.
    pub fn first_offsets(&self) -> impl Iterator<Item = (TopicPartition, u64)> {
        let first = |(at, numbers): (&TopicPartition, &VecDeque<u64>)| {
            let place = numbers.front()? - self.first;
            Some((*at, self.records.get(place as usize)?.as_ref()?.offset))
        };
        self.partitions.iter().filter_map(first)
    }

    pub fn push(&mut self, record: LogRecord) {
        let number = self.next();
        if let Some(group) = record.group {
            self.groups.entry(group.id).or_default().push(number);
        }
        self.partitions.entry(record.at).or_default().push_back(number);
        self.bytes += bytes(&record);
        self.records.push_back(Some(record));
    }

    /// Takes the first record and, if it belongs to a group, all records of the group that have
    /// come.
    pub fn take_front(&mut self) -> SmallVec<[LogRecord; 1]> {
        let group = self.front().and_then(|first| first.group);
        let numbers = group.and_then(|group| self.groups.remove(&group.id));
        let numbers = numbers.unwrap_or_else(|| smallvec![self.first]);
        let taken = numbers.into_iter().filter_map(|number| self.take(number)).collect();
        while let Some(None) = self.records.front() {
            self.records.pop_front();
            self.first += 1;
        }
        taken
    }

    fn take(&mut self, number: u64) -> Option<LogRecord> {
        let place = |number: u64| (number - self.first) as usize;
        let record = self.records.get_mut(place(number))?.take()?;
        self.bytes -= bytes(&record);
        let numbers = self.partitions.get_mut(&record.at)?;
        while numbers
            .front()
            .is_some_and(|&number| self.records[place(number)].is_none())
        {
            numbers.pop_front();
        }
        Some(record)
    }
}

/// How many groups of each partition are remembered: more than can be in the midst of being
/// committed.
const REMEMBERED: usize = 16_384;

/// The newest groups of which a part was applied, record by record as they came.
#[derive(Default)]
pub struct InPart {
    /// How many records of each group are still to come.
    groups: HashMap<u128, u32, foldhash::fast::RandomState>,
    newest: BTreeMap<TopicPartition, VecDeque<u128>>,
}

impl InPart {
    /// How many records of a group are still to come, if a part of it was applied.
    pub fn missing(&self, group: u128) -> Option<u32> {
        self.groups.get(&group).copied()
    }

    /// Notes that a record of a group was applied.
    pub fn note(&mut self, at: TopicPartition, group: Group) {
        let missing = self.groups.entry(group.id).or_insert(group.records);
        *missing = missing.saturating_sub(1);
        if *missing == 0 {
            self.groups.remove(&group.id);
            return;
        }
        let newest = self.newest.entry(at).or_default();
        if newest.back() != Some(&group.id) {
            newest.push_back(group.id);
        }
        if newest.len() > REMEMBERED
            && let Some(oldest) = newest.pop_front()
        {
            self.groups.remove(&oldest);
        }
    }
}

fn bytes(record: &LogRecord) -> usize {
    OVERHEAD + record.key.len() + record.payload.bytes()
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::model::Payload;

    fn record(partition: u32, offset: u64, group: Option<u128>) -> LogRecord {
        LogRecord {
            at: TopicPartition { database: 0, partition },
            offset,
            timestamp: 0,
            key: Bytes::from_static(b"k"),
            payload: Payload::TOMBSTONE,
            group: group.map(|id| Group { id, records: 2 }),
        }
    }

    fn firsts(waiting: &Waiting) -> Vec<(u32, u64)> {
        let firsts = waiting.first_offsets();
        firsts.map(|(at, offset)| (at.partition, offset)).collect()
    }

    #[test]
    fn the_newest_groups_in_part_are_remembered() {
        let at = TopicPartition {
            database: 0,
            partition: 3,
        };
        let mut groups = InPart::default();
        let mut note = |id, records| groups.note(at, Group { id, records });
        note(1, 3);
        note(2, 2);
        note(1, 3);
        note(3, 1);
        assert_eq!([1, 2, 3].map(|id| groups.missing(id)), [Some(1), Some(1), None]);
        let mut note = |id, records| groups.note(at, Group { id, records });
        note(1, 3);
        (0..REMEMBERED as u128 - 1).for_each(|id| note(10 + id, 2));
        assert_eq!([1, 2, 10].map(|id| groups.missing(id)), [None, None, Some(1)]);
        assert!(!groups.groups.is_empty());
    }

    #[test]
    fn groups_are_taken_out_and_the_others_keep_their_order() {
        let mut waiting = Waiting::default();
        let came = [
            record(0, 0, Some(1)),
            record(1, 7, Some(2)),
            record(1, 8, None),
            record(0, 1, Some(2)),
            record(1, 9, Some(1)),
        ];
        for record in &came {
            waiting.push(record.clone());
        }
        assert_eq!((waiting.count(1), waiting.count(2), waiting.count(3)), (2, 2, 0));
        assert_eq!(firsts(&waiting), [(0, 0), (1, 7)]);
        assert_eq!(waiting.take_front()[..], [came[0].clone(), came[4].clone()]);
        assert_eq!((waiting.first(), waiting.next()), (1, 5));
        assert_eq!(firsts(&waiting), [(0, 1), (1, 7)]);
        assert_eq!(waiting.take_front()[..], [came[1].clone(), came[3].clone()]);
        assert_eq!(firsts(&waiting), [(1, 8)]);
        assert_eq!(waiting.take_front()[..], [came[2].clone()]);
        assert!(waiting.is_empty() && waiting.front().is_none() && firsts(&waiting).is_empty());
        assert_eq!((waiting.bytes(), waiting.first(), waiting.next()), (0, 5, 5));
        assert!(waiting.groups.is_empty());
    }
}
