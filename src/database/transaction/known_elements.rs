//! Elements of split collections as this node knows them: from memory, from the writes under way,
//! or from the store, which then fills memory.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;

use super::elements::record_key;
use crate::database::Service;
use crate::database::elements::{self, All, Held, InOrder, Known, Order};
use crate::database::fault::{Fault, STORE_READ};
use crate::database::hot::At;
use crate::database::write::Write;
use crate::model::{Entry, Split, State, Value, Version};
use crate::store::StoreError;

/// Elements that are read from the store at once, and those that are read first where one is
/// enough.
const PART: usize = 256;
const FEW: usize = 8;

/// A collection to be read whole, or from an element on.
pub(super) struct Whole<'k> {
    /// The user's key, and the version.
    pub of: (&'k [u8], Version),
    /// What the names of its elements begin with.
    pub prefix: &'k Bytes,
    pub order: Option<Order>,
    /// Elements with lower names may be missing.
    pub from: &'k [u8],
}

/// One element, as it was read.
pub(super) struct SeenElement {
    pub value: Option<Value>,
    pub depends: Option<Arc<Write>>,
    /// The record that it comes from, if it is known.
    pub at: Option<At>,
    pub from_store: bool,
}

impl Service {
    pub(super) fn element(
        &self,
        number: u16,
        record_key: &[u8],
        pending: bool,
        most: usize,
    ) -> Result<SeenElement, StoreError> {
        let database = &self.databases[number as usize];
        let partition = self.log.partition(number, record_key);
        match database.elements.get(record_key, pending) {
            Known::Here(held, depends) => {
                let offset = held
                    .as_ref()
                    .map(|held| held.offset)
                    .filter(|offset| *offset < u64::MAX);
                Ok(SeenElement {
                    at: offset.map(|offset| At { partition, offset }),
                    value: held.map(|held| held.value),
                    depends,
                    from_store: false,
                })
            }
            Known::Unknown => {
                self.counters.store_reads.fetch_add(1, Ordering::Relaxed);
                let (prefix, name) = elements::split(record_key);
                let fill = database.elements.fill(prefix, self.stored_at_home(number, record_key));
                let entry = self.beneath(number, record_key, most)?;
                if let Some(entry) = &entry {
                    fill.keep(Held::new(name, entry.value.clone(), entry.meta.offset));
                }
                Ok(SeenElement {
                    at: entry.as_ref().map(|entry| At {
                        partition: entry.meta.partition,
                        offset: entry.meta.offset,
                    }),
                    value: entry.map(|entry| entry.value),
                    depends: None,
                    from_store: true,
                })
            }
        }
    }

    /// The record of an element, as far as the log has acknowledged it, with an element of this
    /// collection. Its time is -1 while this node has not read it.
    pub fn element_record(
        &self,
        number: u16,
        key: &[u8],
        split: &Split,
        sub_key: &[u8],
    ) -> Result<Option<Entry>, StoreError> {
        if split.excludes(sub_key) {
            return Ok(None);
        }
        let name = record_key(key, split, sub_key);
        let known = self.databases[number as usize].elements.get(&name, false);
        let entry = self.beneath(number, &name, usize::MAX)?;
        Ok(match known {
            Known::Unknown => entry,
            Known::Here(None, _) => None,
            Known::Here(Some(held), _) => {
                let is_it = |entry: &Entry| entry.meta.offset == held.offset;
                let unread = || {
                    let partition = self.log.partition(number, &name);
                    let state = State {
                        expire_at: None,
                        value: held.value.clone(),
                    };
                    Entry::new(&state, partition, held.offset, -1)
                };
                Some(entry.filter(is_it).unwrap_or_else(unread))
            }
        })
    }

    /// A write under way of an element of this collection.
    pub fn element_under_way(&self, number: u16, key: &[u8], split: &Split) -> Option<Arc<Write>> {
        let prefix = record_key(key, split, b"");
        self.databases[number as usize].elements.under_way(&prefix)
    }

    /// All elements of a collection, from memory, or from the store into memory. `works` gets the
    /// bytes that are gone through, and can stop it. They may lack the order, if memory is used up.
    pub(super) fn elements(
        &self,
        number: u16,
        whole: &Whole,
        pending: bool,
        works: &mut dyn FnMut(usize) -> Result<(), Fault>,
    ) -> Result<All, Fault> {
        let Whole {
            of,
            prefix,
            order,
            from,
        } = *whole;
        let database = &self.databases[number as usize];
        let mut filled = None;
        loop {
            // Several elements can become visible at once.
            let one_moment = self.groups.hold_again();
            let all = match order {
                None => database.elements.all(prefix, from, pending),
                Some(order) => {
                    match database.elements.in_order(
                        prefix,
                        (order, from),
                        self.stored_at_home(number, prefix),
                        pending,
                    ) {
                        Some(InOrder::Here(all)) => Some(all),
                        Some(InOrder::ToMake(mut making)) => {
                            drop(one_moment);
                            works(making.work())?;
                            making.put_in_order();
                            let _one_moment = self.groups.hold_again();
                            match making.complete(pending) {
                                Some(all) => return Ok(all),
                                // All was forgotten meanwhile.
                                None => filled = None,
                            }
                            continue;
                        }
                        None => None,
                    }
                }
            };
            if let Some(all) = all.or(filled) {
                return Ok(all);
            }
            drop(one_moment);
            // In this order: what leaves memory from now on is in the buffer, and what has left the
            // buffer is in the store.
            let fill = database.elements.fill(prefix, self.stored_at_home(number, prefix));
            let buffered = self.behind.elements(number, prefix);
            let mut found = Vec::new();
            let mut next = Some(Bytes::copy_from_slice(from));
            while let Some(start) = next {
                self.counters.store_reads.fetch_add(1, Ordering::Relaxed);
                let (mut bytes, before) = (0, found.len());
                let mut meet = |sub_key: &[u8], entry: Entry| {
                    bytes += sub_key.len() + entry.value.bytes();
                    found.push(Held::new(sub_key, entry.value, entry.meta.offset));
                };
                next = self.store.elements(number, of, &start, PART, &mut meet)?;
                works(bytes + STORE_READ + (found.len() - before) * size_of::<Held>())?;
            }
            found.retain(|held| {
                let name = [&prefix[..], &held.name].concat();
                !buffered.contains_key(&name[..])
            });
            for (name, change) in &buffered {
                if let (Some(sub_key), Some(entry)) = (name.strip_prefix(&prefix[..]), change.entry())
                    && database.visible(&entry)
                {
                    found.push(Held::new(sub_key, entry.value, entry.meta.offset));
                }
            }
            let _one_moment = self.groups.hold_again();
            filled = fill.complete(found, from, pending);
        }
    }

    /// A name of a collection from which on to read, so that the highest element within this range
    /// is among what is read. It is the store's highest one, or what memory covers.
    pub(super) fn highest_from(
        &self,
        number: u16,
        of: (&[u8], Version),
        prefix: &Bytes,
        (start, end): (&[u8], &[u8]),
    ) -> Result<Bytes, StoreError> {
        let elements = &self.databases[number as usize].elements;
        if let Some(covered) = elements.covered_from(prefix).filter(|covered| covered[..] < *end) {
            return Ok(Bytes::from(covered));
        }
        self.counters.store_reads.fetch_add(1, Ordering::Relaxed);
        let highest = self.store.highest_element(number, of, (start, end))?;
        Ok(highest.unwrap_or_else(|| Bytes::copy_from_slice(start)))
    }

    /// True if a collection has an element that has not expired at this time. It reads no more than
    /// it has to.
    pub(super) fn has_elements(
        &self,
        number: u16,
        of: (&[u8], Version),
        prefix: &Bytes,
        pending: bool,
        now: u64,
    ) -> Result<bool, StoreError> {
        let database = &self.databases[number as usize];
        if let Some(has) = database.elements.has_live(prefix, pending, now) {
            return Ok(has);
        }
        for (name, change) in self.behind.elements(number, prefix) {
            let is_newest = matches!(database.elements.get(&name, pending), Known::Unknown);
            if is_newest
                && change
                    .entry()
                    .is_some_and(|entry| database.visible(&entry) && entry.is_live(now))
            {
                return Ok(true);
            }
        }
        let (mut from, mut some) = (Some(Bytes::new()), FEW);
        while let Some(start) = from {
            let mut live = Vec::new();
            let mut meet = |sub_key: &[u8], entry: Entry| {
                if entry.is_live(now) {
                    live.push([&prefix[..], sub_key].concat());
                }
            };
            from = self.store.elements(number, of, &start, some, &mut meet)?;
            some = PART;
            for name in live {
                // A newer state would have been found before, if it were a live one.
                let is_newest = matches!(database.elements.get(&name, pending), Known::Unknown)
                    && self.behind.get(number, &name).is_none();
                if is_newest {
                    return Ok(true);
                }
            }
        }
        Ok(false)
    }
}
