//! Removes from the log what a flush has hidden. A flush is one marker per partition. Consumers
//! that know nothing of Highwater see what came before the marker until each of its keys has a
//! tombstone ([`crate::sweep`]).
//!
//! The store keeps a hidden entry until a later record of its key comes. So every node finds there
//! what is left to be done: the node that flushed, another one, or one that was started again or
//! rebuilt from the log. Nothing else is remembered.
//!
//! Such a tombstone is for one partition. It changes nothing of what is shown. Its condition is
//! that the partition has got nothing of the key since. If anyone has written or deleted a flushed
//! key since, nothing is left to be done for it.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;

use super::Service;
use super::copies::split_copy_name;
use super::fault::Fault;
use super::hot::At;
use super::transaction::{Keys, View};
use super::write::Write;
use crate::log::TopicPartition;
use crate::model::is_control;
use crate::store::{Scanned, StoreError};

/// A record that a flush has hidden: the newest of its key in its partition, as far as the store
/// is.
pub struct Flushed {
    pub(super) at: TopicPartition,
    pub(super) key: Bytes,
    pub(super) offset: u64,
    /// The store has everything below this position.
    pub(super) stored: u64,
}

impl Service {
    /// How many records that flushes have hidden are left in a database of the store: one that
    /// clients see, or one of [copies](super::copies).
    pub fn flushed_left(&self, stored: u16) -> Result<u64, StoreError> {
        self.store.count_hidden(stored)
    }

    /// Number of flushes of a database of the store that this node has handed to the log since it
    /// was started.
    pub fn own_flushes(&self, stored: u16) -> u64 {
        let database = stored % self.database_count();
        self.databases[database as usize].flushes.load(Ordering::Relaxed)
    }

    /// Some of these records, in the order of their names' hashes starting at `from`. Also returns
    /// where to continue.
    pub fn find_flushed(&self, stored: u16, from: u64, some: usize) -> Result<(Vec<Flushed>, Option<u64>), StoreError> {
        let database = stored % self.database_count();
        let is_copy = stored != database;
        // The positions are taken before the store is read.
        let positions: Vec<u64> = self.databases[database as usize]
            .partitions()
            .iter()
            .map(|partition| partition.stored.load(Ordering::Acquire))
            .collect();
        let mut found = Vec::new();
        let mut meet = |Scanned { key, meta }: Scanned<'_>| {
            let key = match is_copy {
                true => split_copy_name(key),
                false => key,
            };
            let partition = meta.partition;
            let is_home = self.log.partition(database, key) == partition;
            // What is shown of a copy is gone once the copy is gone. The marker itself must stay
            // the newest record of its key.
            if is_home != is_copy
                && !is_control(key)
                && let Some(&stored) = positions.get(partition as usize)
            {
                found.push(Flushed {
                    at: TopicPartition { database, partition },
                    key: Bytes::copy_from_slice(key),
                    offset: meta.offset,
                    stored,
                });
            }
        };
        let next = self.store.scan_hidden(stored, from, some, &mut meet)?;
        Ok((found, next))
    }

    /// Writes a tombstone after it, unless a newer record is known.
    pub fn bury(self: &Arc<Self>, flushed: &Flushed) -> Result<Option<Arc<Write>>, Fault> {
        // It has an owner of its own: it rests on no other write.
        let computed = self.transact(
            &Arc::default(),
            Keys::Some(&[&flushed.key]),
            View::Update,
            |transaction| transaction.bury(flushed),
        )?;
        Ok(computed.write)
    }

    /// The position up to which every record of the key in that partition is known, while its
    /// newest record is the flushed one; `None` if a newer one is known. The caller holds the key's
    /// stripe.
    pub(super) fn known_of_flushed(&self, flushed: &Flushed) -> Result<Option<u64>, StoreError> {
        let Flushed { at, key, offset, .. } = flushed;
        // Copies are known only as far as the store is.
        if self.log.partition(at.database, key) != at.partition {
            return Ok(Some(flushed.stored));
        }
        let partitions = self.databases[at.database as usize].partitions();
        let Some(progress) = partitions.get(at.partition as usize) else {
            return Ok(None);
        };
        // In this order: what is read is at least as new as what was applied before.
        let applied = progress.applied.load(Ordering::Acquire);
        let seen = self.read(at.database, key, true)?;
        let is_newer = |seen: At| seen.partition == at.partition && seen.offset > *offset;
        let is_superseded = seen.depends.is_some() || seen.at.is_some_and(is_newer);
        Ok((!is_superseded).then_some(applied.max(flushed.stored)))
    }
}
