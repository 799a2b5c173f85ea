//! A write under way: what was handed to the log as one batch, who waits for it, and how it ended.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use smallvec::SmallVec;
use tokio::sync::Notify;

use super::Service;
use super::hot::At;
use crate::log::{Appended, Completion, ProduceError};
use crate::store::{Entry, Meta, Value};

/// The new state of a key.
#[derive(Clone, Debug)]
pub enum NewState {
    Value { value: Bytes, expire_at: Option<u64> },
    Deleted,
}

/// One record of a write.
#[derive(Clone, Debug)]
pub enum Item {
    Key {
        database: u16,
        key: Bytes,
        state: NewState,
    },
    /// Flush marker of one partition.
    Flush {
        database: u16,
    },
}

/// One batch on its way to the log.
pub struct Write {
    pub items: SmallVec<[Item; 1]>,
    service: Arc<Service>,
    owner: Arc<Outstanding>,
    outcome: OnceLock<Result<(), ProduceError>>,
    done: Notify,
}

impl Write {
    pub(super) fn new(service: Arc<Service>, owner: Arc<Outstanding>, items: SmallVec<[Item; 1]>) -> Self {
        owner.count.fetch_add(1, Ordering::Relaxed);
        Write {
            items,
            service,
            owner,
            outcome: OnceLock::new(),
            done: Notify::new(),
        }
    }

    /// How it ended; `None` while under way.
    pub fn outcome(&self) -> Option<&Result<(), ProduceError>> {
        self.outcome.get()
    }

    /// Waits for the end. The log bounds the time (`--write-timeout`).
    pub async fn finished(&self) -> &Result<(), ProduceError> {
        loop {
            let notified = self.done.notified();
            if let Some(outcome) = self.outcome.get() {
                return outcome;
            }
            notified.await;
        }
    }

    /// The state that the item gives its key, as an entry that is not in the log yet.
    pub fn entry(&self, item: usize, at: At, timestamp: i64) -> Option<Entry> {
        match &self.items[item] {
            Item::Key {
                state: NewState::Value { value, expire_at },
                ..
            } => Some(Entry {
                meta: Meta {
                    partition: at.partition,
                    offset: at.offset,
                    timestamp,
                    expire_at: *expire_at,
                },
                value: Value::String(value.clone()),
            }),
            _ => None,
        }
    }

    fn acknowledged(self: &Arc<Self>, appended: &[Appended]) {
        // Several keys become visible at once to everyone who reads several keys.
        let _group = (self.items.len() > 1).then(|| self.service.groups.write());
        for (index, (item, at)) in self.items.iter().zip(appended).enumerate() {
            let place = At {
                partition: at.at.partition,
                offset: at.offset,
            };
            match item {
                Item::Key { database, key, .. } => {
                    let entry = self.entry(index, place, at.timestamp);
                    let database = &self.service.databases[*database as usize];
                    database.hot.resolve(key, self, Some((place, entry)));
                    database.acknowledged(place);
                }
                Item::Flush { database } => {
                    self.service.flushed(*database, place);
                    self.service.databases[*database as usize].acknowledged(place);
                }
            }
        }
    }

    fn failed(self: &Arc<Self>) {
        for item in &self.items {
            if let Item::Key { database, key, .. } = item {
                self.service.databases[*database as usize].hot.resolve(key, self, None);
            }
        }
    }
}

impl Completion for Write {
    fn complete(self: Arc<Self>, outcome: Result<&[Appended], ProduceError>) {
        let outcome = match outcome {
            Ok(appended) => {
                self.acknowledged(appended);
                Ok(())
            }
            Err(error) => {
                self.failed();
                Err(error)
            }
        };
        if self.outcome.set(outcome).is_ok() {
            self.done.notify_waiters();
            self.owner.finish_one();
        }
    }
}

/// The writes that one connection has under way; wakes it once, when the last of a burst is over.
#[derive(Default)]
pub struct Outstanding {
    count: AtomicUsize,
    none: Notify,
}

impl Outstanding {
    pub fn count(&self) -> usize {
        self.count.load(Ordering::Acquire)
    }

    fn finish_one(&self) {
        if self.count.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.none.notify_waiters();
        }
    }

    /// Waits until every write of this connection is over.
    pub async fn none(&self) {
        loop {
            let notified = self.none.notified();
            if self.count() == 0 {
                return;
            }
            notified.await;
        }
    }
}
