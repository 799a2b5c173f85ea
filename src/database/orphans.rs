//! Elements that have lost their head: it was deleted, replaced, or hidden by a flush. No reader
//! finds them. On Kafka they get tombstones, so that other consumers hear of it and compaction
//! frees the space. (The embedded log drops them by itself, and the store with it.)
//!
//! A tombstone rests on the head: it is not written if the key has that version again.

use std::sync::Arc;

use bytes::Bytes;

use super::fault::Fault;
use super::transaction::{Keys, View};
use super::write::Write;
use super::{Service, Transaction};
use crate::model::{ElementName, Meta, Value, Version};
use crate::store::StoreError;

/// Collections that one step looks at.
const COLLECTIONS: usize = 100;

/// A collection that has lost its head and has elements left.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Orphans {
    pub database: u16,
    pub key: Bytes,
    pub version: Version,
}

impl Service {
    /// Up to `limit` of them in a database, as the store has found them.
    pub fn find_orphans(&self, database: u16, limit: usize) -> Result<Vec<Orphans>, StoreError> {
        let found = self.store.orphans(database, limit)?.into_iter();
        let orphans = found.map(|(key, version)| Orphans { database, key, version });
        Ok(orphans.collect())
    }

    /// One step of freeing memory and the store of what has lost its head, up to about `budget`
    /// elements. While loading, a head can come after its elements: then it must not be called.
    /// Returns true if there is more to be done now.
    pub(super) fn sweep_orphans(&self, budget: usize) -> Result<bool, StoreError> {
        let mut more = false;
        for (number, database) in (0..).zip(&self.databases) {
            for (key, version) in self.store.orphans(number, COLLECTIONS)? {
                // A head can be in memory before it is in the store, and its elements after it.
                let head = self.read(number, &key, false)?.entry.map(|entry| entry.value);
                let gone = !matches!(head, Some(Value::Split(split)) if split.version() == version);
                if gone {
                    database.elements.forget(&ElementName::prefix(&key, version));
                }
                more |= self.store.sweep_orphans(number, (&key, version), gone, budget)?;
            }
        }
        Ok(more)
    }

    /// Writes tombstones for up to `limit` elements of such a collection, in one group. Returns how
    /// many, and the write.
    pub fn bury_orphans(
        self: &Arc<Self>,
        orphans: &Orphans,
        limit: usize,
    ) -> Result<(usize, Option<Arc<Write>>), Fault> {
        let Orphans { database, key, version } = orphans;
        let mut names = Vec::new();
        let mut meet = |sub_key: &[u8], meta: Meta| {
            let name = ElementName {
                key,
                version: *version,
                sub_key,
            };
            names.push((name.record_key(), meta));
        };
        self.store.orphaned(*database, (key, *version), limit, &mut meet)?;
        // With an owner of its own: it rests on no other write.
        let computed = self.transact(&Arc::default(), Keys::Some(&[key]), View::Update, |transaction| {
            if transaction.has_head(*database, key, *version)? {
                return Ok(0);
            }
            for (name, meta) in &names {
                transaction.bury_element(*database, name, meta);
            }
            Ok(names.len())
        })?;
        Ok((computed.value, computed.write))
    }
}

impl Transaction<'_> {
    /// True if the key holds the split collection of this version, expired or not.
    fn has_head(&mut self, database: u16, key: &[u8], version: Version) -> Result<bool, Fault> {
        let entry = self.get_even_expired(database, key)?;
        Ok(matches!(entry.map(|entry| entry.value), Some(Value::Split(split)) if split.version() == version))
    }
}
