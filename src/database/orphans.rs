//! Elements that have lost their head: it was deleted, replaced, or hidden by a flush. Or it has
//! bounds that exclude them. No reader finds them. On Kafka they get tombstones, so that other
//! consumers hear of it and compaction frees the space. (The embedded log drops them by itself, and
//! the store with it.)
//!
//! A tombstone rests on the head: it is not written if the key has that version again, and admits
//! the element, and is not written while the head cannot be read.

use std::sync::Arc;

use bytes::Bytes;

use super::fault::Fault;
use super::transaction::{Keys, View};
use super::write::Write;
use super::{Service, elements};
use crate::model::{ElementName, Meta, Split, Value, Version};
use crate::store::StoreError;

/// Collections that one step looks at.
const COLLECTIONS: usize = 100;

/// A collection that has lost its head, or a part of its elements by its head, and has some of them
/// left.
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
                let head = split_of(head, version);
                let prefix = ElementName::prefix(&key, version);
                match &head {
                    None => database.elements.forget(&prefix),
                    // The store can lack the head: then it takes all elements for garbage.
                    Some(head) if self.log.chains() && !head.bounds().is_none() => {
                        let mut names: Vec<Box<[u8]>> = Vec::new();
                        let mut meet = |sub_key: &[u8], _| {
                            if head.excludes(sub_key) {
                                names.push(sub_key.into());
                            }
                        };
                        self.store.orphaned(number, (&key, version), budget, &mut meet)?;
                        database.elements.forget_excluded(&prefix, &names);
                    }
                    // Where others read the log, tombstones do it.
                    Some(_) => {}
                }
                more |= self
                    .store
                    .sweep_orphans(number, (&key, version), head.is_none(), budget)?;
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
            let head = transaction.get_even_expired(*database, key)?.map(|entry| entry.value);
            // Its producer may put it right, and then the elements are there again.
            if matches!(head, Some(Value::Unreadable(_))) {
                return Ok(0);
            }
            let head = split_of(head, *version);
            let is_garbage = |sub_key: &[u8]| head.as_ref().is_none_or(|head| head.excludes(sub_key));
            let garbage = names.iter().filter(|(name, _)| is_garbage(elements::split(name).1));
            let mut buried = 0;
            for (name, meta) in garbage {
                transaction.bury_element(*database, name, meta);
                buried += 1;
            }
            Ok(buried)
        })?;
        Ok((computed.value, computed.write))
    }
}

/// The head of the split collection of this version, expired or not, if that is what a key holds.
fn split_of(value: Option<Value>, version: Version) -> Option<Split> {
    match value {
        Some(Value::Split(split)) if split.version() == version => Some(split),
        _ => None,
    }
}
