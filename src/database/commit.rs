//! Hands what a transaction writes to the log, and makes it known on this node as under way.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use smallvec::SmallVec;

use super::notices::Notice;
use super::write::{Item, Outstanding, Write};
use super::{Seen, Service, functions};
use crate::log::{Batch, Completion as _, Condition, ProduceError, Record, TopicPartition};
use crate::model::{Change, Control, FEATURES_KEY, Payload, State, Value, function_key, home_key};
use crate::supervise;

/// Ends a write whose thread panics before the log has the write, so that no other connection waits
/// for it.
struct GivenUp<'w>(&'w Arc<Write>);

impl Drop for GivenUp<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let cause = "the command panicked".to_owned();
            self.0.clone().complete(Err(ProduceError::Uncertain(cause)));
        }
    }
}

impl Service {
    /// A record with a reserved key that says nothing. If this version does not understand it, it
    /// is counted, and the first one is reported.
    pub(super) fn met_reserved(&self, change: &Change) {
        if change.payload == Payload::PASSED {
            return;
        }
        if self.counters.records_reserved.fetch_add(1, Ordering::Relaxed) == 0 {
            tracing::warn!(
                database = change.database,
                partition = change.partition,
                offset = change.offset,
                key = %change.key.escape_ascii(),
                "a record with a reserved key is never shown: keys that begin with \\0highwater: are the topic's own"
            );
        }
    }

    /// The records of the items, and the item of each record: a flush has a record in every
    /// partition.
    fn records_of(&self, items: SmallVec<[Item; 1]>) -> (SmallVec<[Record; 1]>, SmallVec<[Item; 1]>) {
        let (mut records, mut of_each) = (SmallVec::new(), SmallVec::new());
        let mut add = |item: Item, database, partition, key, payload| {
            let to = TopicPartition { database, partition };
            records.push(Record { to, key, payload });
            of_each.push(item);
        };
        for item in items {
            match &item {
                Item::Key { database, key, state } => {
                    let (database, key, state) = (*database, key.clone(), state.clone());
                    let home = self.log.partition(database, &key);
                    add(item, database, home, key, Payload::Key(state));
                }
                Item::Element { database, key, element } => {
                    let (database, key) = (*database, key.clone());
                    let state = element.clone().map(|element| State {
                        value: Value::Element(element),
                        expire_at: None,
                    });
                    let home = self.log.partition(database, &key);
                    add(item, database, home, key, Payload::Key(state));
                }
                Item::Flush { database } => {
                    let database = *database;
                    for partition in 0..self.databases[database as usize].partitions().len() as u32 {
                        let key = bytes::Bytes::from_static(crate::log::record::FLUSH_KEY);
                        add(item.clone(), database, partition, key, Payload::FLUSH);
                    }
                }
                Item::Tombstone {
                    database,
                    key,
                    partition,
                } => {
                    let (database, partition, key) = (*database, *partition, key.clone());
                    add(item, database, partition, key, Payload::TOMBSTONE);
                }
                Item::Features {
                    database,
                    partition,
                    features,
                } => {
                    let (database, partition, features) = (*database, *partition, features.clone());
                    let key = bytes::Bytes::from_static(FEATURES_KEY);
                    add(
                        item,
                        database,
                        partition,
                        key,
                        Payload::Control(Control::Features(features)),
                    );
                }
                Item::Function { library, text } => {
                    let (key, payload) = (function_key(library), Control::Function(text.clone()));
                    let payload = Payload::Control(payload);
                    add(item, functions::DATABASE, functions::PARTITION, key, payload);
                }
            }
        }
        (records, of_each)
    }

    /// Hands the items to the log as one batch. The caller holds the stripes of all keys.
    pub(super) fn commit(
        self: &Arc<Self>,
        items: SmallVec<[Item; 1]>,
        owner: &Arc<Outstanding>,
        epoch: u64,
        condition: Option<Condition>,
        notices: Vec<Notice>,
    ) -> Arc<Write> {
        let (records, items) = self.records_of(items);
        let write = Write::new(self.clone(), owner.clone(), items, condition.as_ref(), notices);
        let given_up = GivenUp(&write);
        for (index, item) in write.items.iter().enumerate() {
            match item {
                Item::Key { database, key, .. } => {
                    let database = &self.databases[*database as usize];
                    database.hot.pend(key, &write, index);
                    database.watches.changed(key);
                    match item.state() {
                        Some(_) => self.waiters.changed(item.database(), key),
                        None => self.waiters.gone(item.database(), key),
                    }
                }
                Item::Element { .. } if index > 0 && item.is_of_collection(&write.items[index - 1]) => {}
                Item::Element { database, key, .. } => {
                    let database = &self.databases[*database as usize];
                    let alike = write.items[index..].iter();
                    let alike = alike.take_while(|other| other.is_of_collection(item));
                    let names = alike.clone().filter_map(|item| Some(&item.name()?.1[..]));
                    database.elements.pend(names, &write, index);
                    database.watches.changed(home_key(key));
                    if self.waiters.any() {
                        self.wake(item.database(), alike);
                    }
                }
                Item::Flush { database } => {
                    let number = *database;
                    self.databases[number as usize].flushes.fetch_add(1, Ordering::Relaxed);
                    let exists = |key: &[u8]| matches!(self.read(number, key, true), Ok(Seen { entry: Some(_), .. }));
                    self.databases[number as usize].watches.flushed(exists);
                    self.waiters.all_gone(number);
                }
                Item::Function { .. } => {
                    let database = &self.databases[functions::DATABASE as usize];
                    database.functions.pend(&write);
                }
                Item::Tombstone { .. } | Item::Features { .. } => {}
            }
        }
        if supervise::is_injected("panic", "commit") {
            panic!("injected");
        }
        self.log.produce(
            Batch {
                records,
                condition,
                completion: write.clone(),
            },
            epoch,
        );
        drop(given_up);
        write
    }

    /// Wakes those that wait at the collection of these elements, once for all of them.
    pub(super) fn wake<'i>(&self, database: u16, mut alike: impl Iterator<Item = &'i Item> + Clone) {
        let first = alike.clone().next();
        let concerning = alike.find(|item| item.concerns_readers());
        if let Some(Item::Element { key, element, .. }) = concerning.or(first) {
            self.waiters.element_changed(database, key, element.is_some());
        }
    }
}
