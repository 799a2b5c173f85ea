//! Reads of one key: from memory, else from the store.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::hot::{self, At, Lookup};
use super::write::Write;
use super::{Service, now_ms};
use crate::model::{Entry, is_reserved};
use crate::store::StoreError;

/// The result of reading a key.
#[derive(Clone)]
pub struct Seen {
    pub entry: Option<Entry>,
    /// The write under way that the entry comes from.
    pub depends: Option<Arc<Write>>,
    /// The record that the state comes from, if it is known.
    pub(super) at: Option<At>,
    /// It was read from the store.
    pub(super) from_store: bool,
}

impl Seen {
    /// Bytes of the value, unless memory holds them anyway.
    pub(super) fn own_bytes(&self) -> usize {
        match self.entry.as_ref().map(|entry| &entry.value) {
            Some(value) if self.from_store || value.bytes() <= hot::INLINE => value.bytes(),
            _ => 0,
        }
    }
}

impl Service {
    /// Prefetch hint: these keys are about to be read.
    pub fn prefetch<'k>(&self, database: u16, keys: impl Iterator<Item = &'k [u8]>) {
        self.databases[database as usize].hot.prefetch(keys);
    }

    /// The newest state of a key, expired or not. With `pending`, writes under way count.
    pub fn read(&self, database: u16, key: &[u8], pending: bool) -> Result<Seen, StoreError> {
        self.read_up_to(database, key, pending, usize::MAX)
    }

    /// As [`Service::read`], but a value of more than `most` bytes is not read from the store
    /// ([`StoreError::Larger`]).
    pub(super) fn read_up_to(&self, database: u16, key: &[u8], pending: bool, most: usize) -> Result<Seen, StoreError> {
        let number = database;
        let database = &self.databases[number as usize];
        if is_reserved(key) {
            // The topic's own records, and elements of collections: no key of a user.
            return Ok(Seen {
                entry: None,
                depends: None,
                at: None,
                from_store: false,
            });
        }
        match database.hot.get(key, pending) {
            Lookup::Committed(at, entry) => Ok(Seen {
                entry: entry.filter(|e| database.visible(e)),
                depends: None,
                at: Some(at),
                from_store: false,
            }),
            Lookup::Pending(write, item) => {
                let at = At {
                    partition: 0,
                    offset: u64::MAX,
                };
                Ok(Seen {
                    entry: write.entry(item, at, now_ms() as i64),
                    depends: Some(write),
                    at: None,
                    from_store: false,
                })
            }
            Lookup::Absent => {
                debug_assert!(self.is_absent(number, key), "memory lacks a key that is there");
                Ok(Seen {
                    entry: None,
                    depends: None,
                    at: None,
                    from_store: false,
                })
            }
            Lookup::Cold(token) => {
                self.counters.store_reads.fetch_add(1, Ordering::Relaxed);
                // While loading, what was applied is neither in memory nor in the store, so what is
                // read then (by WATCH) must not be remembered.
                let lasts = self.is_serving();
                let entry = self.beneath(number, key, most)?;
                if lasts {
                    database.hot.fill(key, entry.as_ref(), token);
                }
                let at = entry.as_ref().map(|e| At {
                    partition: e.meta.partition,
                    offset: e.meta.offset,
                });
                Ok(Seen {
                    entry,
                    depends: None,
                    at,
                    from_store: true,
                })
            }
        }
    }

    /// The entry of a key that is not in memory: from the store, or on its way to the store since
    /// it was loaded.
    pub(super) fn beneath(&self, number: u16, key: &[u8], most: usize) -> Result<Option<Entry>, StoreError> {
        let entry = match self.behind.get(number, key) {
            Some(entry) => entry,
            None => self.store.get_up_to(number, key, most)?,
        };
        Ok(entry.filter(|entry| self.databases[number as usize].visible(entry)))
    }

    /// True if the store and what is on its way there have no such key either, or if memory has the
    /// key by now.
    fn is_absent(&self, number: u16, key: &[u8]) -> bool {
        let is_now_known = || !matches!(self.databases[number as usize].hot.get(key, true), Lookup::Absent);
        let beneath = match self.beneath(number, key, 0) {
            // Only the whole entry says whether a flush hides it.
            Err(StoreError::Larger) => self.beneath(number, key, usize::MAX),
            beneath => beneath,
        };
        !matches!(beneath, Ok(Some(_))) || is_now_known()
    }
}
