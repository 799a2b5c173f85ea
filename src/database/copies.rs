//! Copies: values outside of their key's home partition, left there by producers with another
//! partitioner.
//!
//! What is shown of a key is a function of what each partition has of it, so that all nodes agree,
//! in whatever order they read the partitions: the value in the home partition, else that of the
//! lowest partition that has one. For this every copy is kept, in a hidden database of the store
//! after the ones that clients see (with another number of those, the store is rebuilt). What is
//! shown is determined again when a copy comes or goes. A write through this node removes the
//! copies of its keys.
//!
//! A topic with one partition, the default, pays nothing for this. A topic without copies pays one
//! hash of each key.
#![deny(clippy::wildcard_enum_match_arm)]

use std::sync::atomic::Ordering;

use bytes::{BufMut, Bytes, BytesMut};
use smallvec::SmallVec;
use tracing::warn;

use super::write::Item;
use super::{Database, Service};
use crate::log::{Read, TopicPartition};
use crate::model::{Change, Entry, Meta, Payload};
use crate::store::{Checkpoint, StoreError};

/// Number of databases that the store has to have for this many that clients see.
pub const fn databases_with_copies(databases: u16) -> u16 {
    databases * 2
}

/// The name of a key's copy in the hidden database.
fn copy_name(key: &[u8], partition: u32) -> Bytes {
    let mut name = BytesMut::with_capacity(key.len() + 4);
    name.put_slice(key);
    name.put_u32(partition);
    name.freeze()
}

/// The key of a copy with this name.
pub(super) fn split_copy_name(name: &[u8]) -> &[u8] {
    name.split_last_chunk::<4>().map_or(name, |(key, _)| key)
}

impl Database {
    /// True if any key may have a copy.
    fn has_copies(&self) -> bool {
        self.copies.load(Ordering::Acquire)
    }
}

impl Service {
    /// True if what this record changes depends on what other partitions have of its key. `home` is
    /// the key's home partition.
    pub(super) fn may_have_copies(&self, change: &Change, home: u32) -> bool {
        match change.payload {
            Payload::Key(Some(_)) => change.partition != home,
            Payload::Key(None) => self.databases[change.database as usize].has_copies(),
            Payload::Control(_) => false,
        }
    }

    /// The hidden database with the copies of this one.
    fn hidden(&self, database: u16) -> u16 {
        self.database_count() + database
    }

    /// Empties a database in the store.
    pub(super) fn clear_store(&self, database: u16) -> Result<(), StoreError> {
        self.databases[database as usize].copies.store(false, Ordering::Release);
        self.digests.clear(&*self.store, self.hidden(database))?;
        self.digests.clear(&*self.store, database)
    }

    /// Empties databases of which the store has no position: it was filled by a process that was
    /// killed before its first checkpoint. What was deleted since then may have left the log.
    pub(super) fn clear_unknown(&self, checkpoint: &Checkpoint) -> Result<(), StoreError> {
        for database in self.without_position(checkpoint) {
            if self.holds_any(database)? {
                self.clear_store(database)?;
            }
        }
        Ok(())
    }

    /// True if there are such databases.
    pub(super) fn has_unknown(&self, checkpoint: &Checkpoint) -> Result<bool, StoreError> {
        for database in self.without_position(checkpoint) {
            if self.holds_any(database)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn without_position(&self, checkpoint: &Checkpoint) -> impl Iterator<Item = u16> {
        (0..self.database_count()).filter(|number| !checkpoint.databases.contains_key(number))
    }

    /// True if the store holds anything of a database.
    fn holds_any(&self, database: u16) -> Result<bool, StoreError> {
        Ok(!self.store.is_empty(database)? || !self.store.is_empty(self.hidden(database))?)
    }

    /// Checks whether the store has copies from before.
    pub(super) fn look_for_copies(&self) -> Result<(), StoreError> {
        for (number, database) in (0..).zip(&self.databases) {
            let spread = database.partitions().len() > 1;
            let hidden = self.hidden(number);
            let any = spread && self.store.count(hidden)? + self.store.count_hidden(hidden)? > 0;
            database.copies.store(any, Ordering::Release);
        }
        Ok(())
    }

    /// The state applied last under a name in `stored`, a database or its hidden one. Own writes
    /// that were acknowledged since then are not seen.
    fn applied_last(&self, database: u16, stored: u16, name: &[u8]) -> Result<Option<Entry>, StoreError> {
        let entry = match self.behind.newest(stored, name) {
            Some(entry) => entry,
            None => self.store.get(stored, name)?,
        };
        Ok(entry.filter(|entry| self.databases[database as usize].visible(entry)))
    }

    /// The copies of a key, lowest partition first.
    fn copies(&self, database: u16, key: &[u8], home: u32) -> Result<SmallVec<[Entry; 1]>, StoreError> {
        let partitions = 0..self.databases[database as usize].partitions().len() as u32;
        let copy = |partition| self.applied_last(database, self.hidden(database), &copy_name(key, partition));
        partitions
            .filter(|&partition| partition != home)
            .filter_map(|partition| copy(partition).transpose())
            .collect()
    }

    /// The items, with tombstones for the copies of their keys.
    pub(super) fn with_copies(&self, items: SmallVec<[Item; 1]>) -> Result<SmallVec<[Item; 1]>, StoreError> {
        let spread = |item: &Item| self.databases[item.database() as usize].has_copies();
        if !items.iter().any(spread) {
            return Ok(items);
        }
        let mut all = SmallVec::new();
        for item in items {
            if let Item::Key { database, key, .. } = &item
                && spread(&item)
            {
                let home = self.log.partition(*database, key);
                all.extend(self.copies(*database, key, home)?.iter().map(|copy| Item::Tombstone {
                    database: *database,
                    key: key.clone(),
                    partition: copy.meta.partition,
                }));
            }
            all.push(item);
        }
        Ok(all)
    }

    /// What a command that read a key rests on besides the key's home.
    pub(super) fn reads_of_copies(&self, database: u16, key: &Bytes) -> impl Iterator<Item = Read> {
        let home = self.log.partition(database, key);
        let known = &self.databases[database as usize];
        let partitions = (0..)
            .zip(known.partitions())
            .filter(move |(partition, _)| *partition != home);
        let partitions = known.has_copies().then_some(partitions).into_iter().flatten();
        partitions.map(move |(partition, progress)| Read {
            at: TopicPartition { database, partition },
            key: Some(key.clone()),
            added: None,
            known: progress.applied.load(Ordering::Acquire),
        })
    }

    /// What an applied record of a topic with several partitions changes of what is shown, if
    /// anything. `home` is the home partition of its key. What it changes of the copies is appended
    /// to `hidden`. Everything applied before is in [`super::write_behind`] or in the store.
    pub(super) fn settle(
        &self,
        change: Change,
        home: u32,
        hidden: &mut Vec<Change>,
    ) -> Result<Option<Change>, StoreError> {
        let database = &self.databases[change.database as usize];
        let is_value = match change.payload {
            Payload::Key(ref state) => state.is_some(),
            Payload::Control(_) => {
                if database.has_copies() {
                    hidden.push(Change {
                        database: self.hidden(change.database),
                        ..change.clone()
                    });
                }
                return Ok(Some(change));
            }
        };
        let key = change.key.clone();
        let is_home = change.partition == home;
        if is_home && (is_value || !database.has_copies()) {
            return Ok(Some(change));
        }
        if !is_home {
            if is_value {
                self.counters.records_misplaced.fetch_add(1, Ordering::Relaxed);
                if !database.copies.swap(true, Ordering::AcqRel) {
                    self.warn_of_copies(&change);
                }
            } else if !database.has_copies() {
                return Ok(None);
            }
            let name = copy_name(&key, change.partition);
            let stored = self.hidden(change.database);
            let known = self.applied_last(change.database, stored, &name)?;
            if known.is_some_and(|known| known.meta.offset > change.offset) {
                return Ok(None);
            }
            hidden.push(Change {
                database: stored,
                key: name,
                ..change.clone()
            });
        }
        let shown = self.applied_last(change.database, change.database, &key)?;
        if shown.as_ref().is_some_and(|shown| {
            let meta = &shown.meta;
            meta.partition == home && (!is_home || meta.offset > change.offset)
        }) {
            return Ok(None);
        }
        // This record is not among those applied before.
        let mut copies = self.copies(change.database, &key, home)?;
        copies.retain(|copy| copy.meta.partition != change.partition);
        if !is_home {
            copies.extend(change.entry());
        }
        let best = copies.into_iter().min_by_key(|copy| copy.meta.partition);
        Ok(match best {
            Some(best) if shown.is_some_and(|shown| shown.meta == best.meta) => None,
            Some(best) => {
                let Meta { partition, offset, .. } = best.meta;
                Some(Change::of_key(change.database, partition, offset, key, Some(best)))
            }
            None => Some(change),
        })
    }

    fn warn_of_copies(&self, first: &Change) {
        let (topic, partitioner) = self
            .log
            .identity(first.database)
            .map_or_else(Default::default, |topic| (topic.topic, topic.partitioner));
        let other = if partitioner == "crc32" { "murmur2" } else { "crc32" };
        warn!(
            database = first.database,
            partition = first.partition,
            offset = first.offset,
            "topic {topic} has records outside of the partition that their key belongs into by {partitioner}. Reads find them, and \
             writes take longer. Kafka's Java clients use murmur2, librdkafka and kcat crc32 by default: if its other producers go \
             by {other}, start all nodes with --partitioner {other}",
        );
    }
}
