//! The rows of the space `meta`: numbers that say how a database's spaces are to be read.

use std::collections::BTreeMap;

use super::walk::Walk;
use super::writer::DatabaseWriter;
use crate::model::Meta;
use crate::store::engine::{EVERYTHING, Engine, Failure};

/// The key of a row. All numbers are big-endian.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Row {
    /// Format of keys and entries.
    Format,
    /// Number of databases.
    Databases,
    /// The counts are outdated: something was changed since they were written.
    Dirty,
    /// The generation of the spaces that are in use.
    Generation { database: u16 },
    /// Entries of this partition with a lower offset are hidden.
    FlushedBelow { database: u16, partition: u32 },
    /// See [`KeyCount`].
    Count { database: u16, partition: u32 },
    /// A walk is not finished. 1: it counts.
    Walk { database: u16 },
}

const FORMAT: u8 = b'v';
const DATABASES: u8 = b'n';
const DIRTY: u8 = b'd';
const GENERATION: u8 = b'g';
const FLUSHED_BELOW: u8 = b'f';
const COUNT: u8 = b'c';
const WALK: u8 = b'w';

impl Row {
    pub fn key(self) -> Vec<u8> {
        let of_partition = |tag, database: u16, partition: u32| {
            [&[tag][..], &database.to_be_bytes(), &partition.to_be_bytes()].concat()
        };
        match self {
            Row::Format => vec![FORMAT],
            Row::Databases => vec![DATABASES],
            Row::Dirty => vec![DIRTY],
            Row::Generation { database } => [&[GENERATION][..], &database.to_be_bytes()].concat(),
            Row::FlushedBelow { database, partition } => of_partition(FLUSHED_BELOW, database, partition),
            Row::Count { database, partition } => of_partition(COUNT, database, partition),
            Row::Walk { database } => [&[WALK][..], &database.to_be_bytes()].concat(),
        }
    }

    fn parse(key: &[u8]) -> Option<Row> {
        let (&tag, rest) = key.split_first()?;
        let database = rest.first_chunk().map(|database| u16::from_be_bytes(*database));
        let partition = rest.get(2..).and_then(<[u8]>::first_chunk);
        let partition = partition.map(|partition| u32::from_be_bytes(*partition));
        let row = match (tag, database, partition) {
            (FORMAT, None, None) => Row::Format,
            (DATABASES, None, None) => Row::Databases,
            (DIRTY, None, None) => Row::Dirty,
            (GENERATION, Some(database), None) => Row::Generation { database },
            (WALK, Some(database), None) => Row::Walk { database },
            (FLUSHED_BELOW, Some(database), Some(partition)) => Row::FlushedBelow { database, partition },
            (COUNT, Some(database), Some(partition)) => Row::Count { database, partition },
            _ => return None,
        };
        (row.key() == key).then_some(row)
    }

    pub fn set<E: Engine>(
        self,
        engine: &E,
        batch: &mut E::Batch,
        meta: &E::Space,
        numbers: &[u64],
    ) -> Result<(), Failure> {
        let value: Vec<u8> = numbers.iter().flat_map(|number| number.to_be_bytes()).collect();
        engine.set(batch, meta, &self.key(), &value)
    }

    pub fn remove<E: Engine>(self, engine: &E, batch: &mut E::Batch, meta: &E::Space) -> Result<(), Failure> {
        engine.remove(batch, meta, &self.key())
    }
}

/// The counts of one partition.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct KeyCount {
    /// Visible keys, and how many of them have an expiry.
    pub keys: u64,
    pub expiring: u64,
    /// Entries that a flush has hidden and that still exist.
    pub hidden: u64,
    /// No entry with a higher offset was ever counted.
    pub newest: u64,
}

impl KeyCount {
    pub fn numbers(&self) -> [u64; 4] {
        [self.keys, self.expiring, self.hidden, self.newest]
    }

    /// Called when an entry has this offset now.
    pub fn meet(&mut self, offset: u64) {
        self.newest = self.newest.max(offset);
    }

    pub fn add(&mut self, meta: &Meta, is_hidden: bool) {
        self.meet(meta.offset);
        if is_hidden {
            self.hidden += 1;
        } else {
            self.keys += 1;
            self.expiring += u64::from(meta.expire_at.is_some());
        }
    }

    pub fn remove(&mut self, meta: &Meta, is_hidden: bool) {
        let number = if is_hidden { &mut self.hidden } else { &mut self.keys };
        debug_assert!(*number > 0, "more removed than counted");
        *number = number.saturating_sub(1);
        if !is_hidden {
            self.expiring = self.expiring.saturating_sub(u64::from(meta.expire_at.is_some()));
        }
    }

    /// The counts when everything below an offset is hidden. `None` if some entry may not be below:
    /// then the partition has to be counted again.
    pub fn hidden_below(&self, offset: u64) -> Option<KeyCount> {
        (self.newest < offset).then(|| KeyCount {
            hidden: self.hidden + self.keys,
            newest: self.newest,
            ..KeyCount::default()
        })
    }
}

/// What the rows say.
#[derive(Default)]
pub(super) struct Rows {
    pub format: Option<u64>,
    pub database_count: Option<u64>,
    pub is_dirty: bool,
    pub databases: BTreeMap<u16, OfDatabase>,
}

#[derive(Default)]
pub(super) struct OfDatabase {
    pub writer: DatabaseWriter,
    pub flushed_below: Vec<(u32, u64)>,
}

pub(super) fn read<E: Engine>(engine: &E, meta: &E::Space) -> Result<Rows, Failure> {
    let mut rows = Rows::default();
    for found in engine.range(meta, EVERYTHING) {
        let (key, value) = found?;
        let number = |chunk: &[u8]| chunk.try_into().map(u64::from_be_bytes).ok();
        let numbers: Option<Vec<u64>> = value.chunks(8).map(number).collect();
        let read = Row::parse(&key).zip(numbers);
        read.and_then(|(row, numbers)| rows.take_in(row, &numbers))
            .ok_or_else(|| Failure::damaged("row of the store's own numbers"))?;
    }
    Ok(rows)
}

impl Rows {
    fn of(&mut self, database: u16) -> &mut OfDatabase {
        self.databases.entry(database).or_default()
    }

    fn take_in(&mut self, row: Row, numbers: &[u64]) -> Option<()> {
        match (row, numbers) {
            (Row::Format, &[format]) => self.format = Some(format),
            (Row::Databases, &[count]) => self.database_count = Some(count),
            (Row::Dirty, &[]) => self.is_dirty = true,
            (Row::Generation { database }, &[generation]) => self.of(database).writer.generation = generation,
            (Row::FlushedBelow { database, partition }, &[offset]) => {
                self.of(database).flushed_below.push((partition, offset));
            }
            (Row::Count { database, partition }, &[keys, expiring, hidden, newest]) => {
                let count = KeyCount {
                    keys,
                    expiring,
                    hidden,
                    newest,
                };
                self.of(database).writer.counts.insert(partition, count);
            }
            (Row::Walk { database }, &[counts @ (0 | 1)]) => {
                self.of(database).writer.walk = Some(Walk::new(counts == 1));
            }
            _ => return None,
        }
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_survive_a_round_trip() {
        let (database, partition) = (513, 70_000);
        for row in [
            Row::Format,
            Row::Databases,
            Row::Dirty,
            Row::Generation { database },
            Row::FlushedBelow { database, partition },
            Row::Count { database, partition },
            Row::Walk { database },
        ] {
            let key = row.key();
            assert_eq!(Row::parse(&key), Some(row));
            assert_eq!(Row::parse(&[&key[..], b"x"].concat()), None);
            assert_eq!(Row::parse(&key[1..]), None);
        }
    }
}
