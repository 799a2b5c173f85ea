//! A digest of everything that a database shows at a position of the log. It is equal on all nodes
//! that are at that position. It shows whether nodes, or a node and its own past, have diverged.
//!
//! Per partition it is the sum (modulo 2^128) of a hash over key, value and expiry of each visible
//! key, and of each element of a split collection that has its head and is within the bounds there.
//! So the order does not matter.
//! Expired keys count until their tombstone comes: the sum is a function of the log alone, not of
//! the time.
//!
//! The store is read in small parts while the applier goes on. A part and a batch exclude each
//! other. While a digest is being made, a batch subtracts what it changes in the part that was read
//! already, and adds it again after the change. So at any moment between batches the sum is exact
//! for what was read, and at the end it is exact for all. It belongs to a position when the store
//! has everything below that position and nothing beyond. Then, at the latest before the next
//! batch, it is taken.
#![deny(clippy::wildcard_enum_match_arm)]

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::{Mutex, MutexGuard};
use xxhash_rust::xxh3::Xxh3;

use super::{Database, Fault, Service};
use crate::log::TopicPartition;
use crate::model::{Change, ElementName, Entry, Payload, Value, home_key};
use crate::store::{Scanned, Store, StoreError, key_hash};
use crate::supervise;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Keys that are read at once. Batches wait for that long.
const PART: usize = 32;
/// How long a digest may take to find a moment at which the store is at a position.
const PATIENCE: Duration = Duration::from_secs(30);
/// How many times a flush may make a digest start again.
const RESTARTS: u32 = 10;

/// What one partition shows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PartitionDigest {
    /// Everything below this offset counts, nothing else.
    pub position: u64,
    pub keys: u64,
    pub sum: u128,
}

/// What is needed to sum the store up while the writer changes it.
#[derive(Default)]
pub struct Digests {
    state: Mutex<State>,
    /// How many callers want the store to be given every record in its order.
    exact: AtomicUsize,
    /// Held while a digest is made: only one is made at a time.
    turn: tokio::sync::Mutex<()>,
}

#[derive(Default)]
struct State {
    /// Per partition, the position after the newest record that the store was given.
    given: BTreeMap<TopicPartition, u64>,
    /// Per partition, the position from which on the store has everything that it was not given
    /// while memory was ahead.
    lacking: BTreeMap<TopicPartition, u64>,
    making: Option<Making>,
}

/// A digest that is being made.
struct Making {
    database: u16,
    /// Keys with a lower hash are in the sums. `None`: all keys are.
    next: Option<u64>,
    sums: BTreeMap<u32, PartitionDigest>,
    restarts: u32,
    /// Why it cannot be made.
    failed: Option<String>,
    done: Option<Vec<PartitionDigest>>,
}

/// See [`Digests::exactly`].
pub(super) struct Exactly<'a>(&'a Digests);

impl Drop for Exactly<'_> {
    fn drop(&mut self) {
        self.0.exact.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Gives up a digest that is not waited for any more.
struct GiveUp<'a>(&'a Digests);

impl Drop for GiveUp<'_> {
    fn drop(&mut self) {
        self.0.state.lock().making = None;
    }
}

impl Digests {
    /// While the result lives, the store is given every record in its order.
    pub(super) fn exactly(&self) -> Exactly<'_> {
        self.exact.fetch_add(1, Ordering::AcqRel);
        Exactly(self)
    }

    pub(super) fn must_be_exact(&self) -> bool {
        self.exact.load(Ordering::Acquire) > 0
    }

    /// True if the store has some state of every key that had one below the positions that the
    /// store has reached.
    pub(super) fn lacks_nothing(&self, databases: &[Database]) -> bool {
        let stored = |at: &TopicPartition| {
            let partitions = databases.get(at.database as usize)?.partitions();
            Some(partitions.get(at.partition as usize)?.stored.load(Ordering::Acquire))
        };
        let state = self.state.lock();
        let mut lacking = state.lacking.iter();
        lacking.all(|(at, position)| stored(at).is_none_or(|stored| stored >= *position))
    }

    /// The store may not have what stands before this record of a key. It is at no position until
    /// it has this record too.
    pub(super) fn lacks_before(&self, at: TopicPartition, offset: u64) {
        let mut state = self.state.lock();
        let State { given, lacking, .. } = &mut *state;
        for position in [given, lacking].map(|positions| positions.entry(at).or_default()) {
            *position = (*position).max(offset + 1);
        }
    }

    /// Gives the store these changes, and keeps the sums of what was read correct. The writer alone
    /// calls it.
    pub(super) fn apply(
        &self,
        store: &dyn Store,
        databases: &[Database],
        changes: &[Change],
    ) -> Result<(), StoreError> {
        let mut state = self.state.lock();
        // What came before is complete, if its position has been reported.
        state.try_finish(databases);
        let outcome = state.apply_and_sum(store, changes);
        for change in changes {
            let at = TopicPartition {
                database: change.database,
                partition: change.partition,
            };
            let given = state.given.entry(at).or_default();
            *given = (change.offset + 1).max(*given);
        }
        outcome
    }

    /// Empties a database of the store. A digest of it cannot be made any more.
    pub(super) fn clear(&self, store: &dyn Store, database: u16) -> Result<(), StoreError> {
        let mut state = self.state.lock();
        state.given.retain(|at, _| at.database != database);
        state.lacking.retain(|at, _| at.database != database);
        if let Some(making) = state.making.as_mut().filter(|making| making.database == database) {
            making.failed = Some("the local store is being rebuilt".into());
        }
        store.clear(database)
    }

    /// Reads the whole database into the sums. Blocking.
    fn read_all(&self, service: &Service) -> Result<(), StoreError> {
        let store = &service.store;
        let mut state = self.state.lock();
        loop {
            let Some(making) = state.making.as_mut().filter(|making| making.failed.is_none()) else {
                return Ok(());
            };
            let Some(from) = making.next else {
                return Ok(());
            };
            let mut keys = Vec::with_capacity(PART);
            let mut meet = |scanned: Scanned<'_>| keys.push(Bytes::copy_from_slice(scanned.key));
            making.next = store.scan(making.database, from, PART, &mut meet)?;
            for key in &keys {
                making.count_key(&**store, key, Sign::Plus)?;
            }
            // A batch that waits goes first.
            MutexGuard::bump(&mut state);
            if service.is_stopping() {
                return Ok(());
            }
        }
    }
}

impl State {
    /// Completes the digest if the store is at a position now.
    fn try_finish(&mut self, databases: &[Database]) {
        let State { given, making, .. } = self;
        let Some(making) = making.as_mut().filter(|m| m.next.is_none() && m.done.is_none()) else {
            return;
        };
        let mut digests = Vec::new();
        for (progress, partition) in databases[making.database as usize].partitions().iter().zip(0..) {
            let at = TopicPartition {
                database: making.database,
                partition,
            };
            let position = progress.stored.load(Ordering::Acquire);
            if given.get(&at).is_some_and(|&given| given > position) {
                return;
            }
            let sum = making.sums.get(&partition).copied().unwrap_or_default();
            digests.push(PartitionDigest { position, ..sum });
        }
        making.done = Some(digests);
    }

    /// Applies a batch, and keeps the sums of what was read correct.
    fn apply_and_sum(&mut self, store: &dyn Store, changes: &[Change]) -> Result<(), StoreError> {
        let Some(making) = &mut self.making else {
            return store.apply(changes);
        };
        let database = making.database;
        let mine = changes.iter().filter(|change| change.database == database);
        let flushes = mine.clone().any(|change| change.payload == Payload::FLUSH);
        if flushes {
            making.start_over();
        }
        let changed: HashSet<&Bytes> = mine
            .filter_map(|change| match change.payload {
                Payload::Key(_) => Some(&change.key),
                Payload::Control(_) => None,
            })
            .filter(|key| making.next.is_none_or(|next| key_hash(home_key(key)) < next))
            .collect();
        let mut count = |sign| -> Result<(), StoreError> {
            for key in &changed {
                match ElementName::parse(key) {
                    None => making.count_key(store, key, sign)?,
                    // It is counted with its head.
                    Some(name) if changed.contains(&Bytes::copy_from_slice(name.key)) => {}
                    Some(name) => making.count_element(store, key, name, sign)?,
                }
            }
            Ok(())
        };
        count(Sign::Minus)?;
        store.apply(changes)?;
        count(Sign::Plus)
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Sign {
    Plus,
    Minus,
}

impl Making {
    fn new(database: u16) -> Making {
        Making {
            database,
            next: Some(0),
            sums: BTreeMap::new(),
            restarts: 0,
            failed: None,
            done: None,
        }
    }

    fn start_over(&mut self) {
        self.restarts += 1;
        self.next = Some(0);
        self.sums.clear();
        if self.restarts > RESTARTS {
            self.failed = Some("the database was flushed again and again".into());
        }
    }

    /// Counts a key as the store has it, with the elements of a split collection.
    fn count_key(&mut self, store: &dyn Store, key: &[u8], sign: Sign) -> Result<(), StoreError> {
        let Some(entry) = store.get(self.database, key)? else {
            return Ok(());
        };
        self.add(key, &entry, sign);
        let digest = self.sums.entry(entry.meta.partition).or_default();
        match sign {
            Sign::Plus => digest.keys += 1,
            Sign::Minus => digest.keys -= 1,
        }
        let Value::Split(split) = &entry.value else {
            return Ok(());
        };
        let (database, version) = (self.database, split.version());
        let mut from = Some(Bytes::new());
        while let Some(start) = from {
            let mut meet = |sub_key: &[u8], entry: Entry| {
                if !split.excludes(sub_key) {
                    let name = ElementName { key, version, sub_key };
                    self.add(&name.record_key(), &entry, sign);
                }
            };
            from = store.elements(database, (key, version), &start, PART, &mut meet)?;
        }
        Ok(())
    }

    /// Counts an element as the store has it. Without its head it does not count.
    fn count_element(
        &mut self,
        store: &dyn Store,
        record_key: &[u8],
        name: ElementName<'_>,
        sign: Sign,
    ) -> Result<(), StoreError> {
        let head = store.get(self.database, name.key)?.map(|entry| entry.value);
        if let Some(Value::Split(split)) = head
            && split.version() == name.version
            && !split.excludes(name.sub_key)
            && let Some(entry) = store.get(self.database, record_key)?
        {
            self.add(record_key, &entry, sign);
        }
        Ok(())
    }

    fn add(&mut self, record_key: &[u8], entry: &Entry, sign: Sign) {
        let digest = self.sums.entry(entry.meta.partition).or_default();
        let hash = hash(record_key, entry);
        digest.sum = match sign {
            Sign::Plus => digest.sum.wrapping_add(hash),
            Sign::Minus => digest.sum.wrapping_sub(hash),
        };
    }
}

/// XXH3-128 over the key's length, the key, its expiry, whether it can be read, and the value.
fn hash(key: &[u8], entry: &Entry) -> u128 {
    let mut hash = Xxh3::new();
    hash.update(&(key.len() as u64).to_le_bytes());
    hash.update(key);
    match entry.meta.expire_at {
        None => hash.update(&[0]),
        Some(at) => {
            hash.update(&[1]);
            hash.update(&at.to_le_bytes());
        }
    }
    match entry.value.kept() {
        Ok((of, bytes)) => {
            // 1 is for what cannot be read.
            let of = of.number();
            hash.update(&[if of == 0 { 0 } else { of + 1 }]);
            hash.update(bytes);
        }
        Err(_) => hash.update(&[1]),
    }
    hash.digest128()
}

impl Service {
    /// Gives the store changes. The thread that writes behind alone calls it.
    pub(super) fn apply_to_store(&self, changes: &[Change]) -> Result<(), StoreError> {
        self.digests.apply(&*self.store, &self.databases, changes)
    }

    /// The digest of each partition of a database. Other callers that want one wait for it.
    pub async fn digest(self: &Arc<Self>, database: u16) -> Result<Vec<PartitionDigest>, Fault> {
        let digests = &self.digests;
        let _turn = digests.turn.lock().await;
        let _give_up = GiveUp(digests);
        let _exactly = digests.exactly();
        self.store_caught_up().await?;
        digests.state.lock().making = Some(Making::new(database));
        let made = async {
            loop {
                let progress = self.progress.notified();
                let reading = self.clone();
                supervise::blocking(&supervise::DIGEST, move || reading.digests.read_all(&reading))
                    .await
                    .map_err(|e| Fault::error(format!("ERR the digest was not made: {e}")))??;
                {
                    let mut state = digests.state.lock();
                    state.try_finish(&self.databases);
                    match &state.making {
                        Some(Making { failed: Some(why), .. }) => return Err(Fault::error(format!("STALE {why}"))),
                        Some(Making { done: Some(done), .. }) => return Ok(done.clone()),
                        _ if self.is_stopping() => return Err("ERR this node is stopping".into()),
                        _ => {}
                    }
                }
                let _ = tokio::time::timeout(Duration::from_millis(200), progress).await;
            }
        };
        // Reading takes time for each key. Each step of it is bounded, and here the whole, if it
        // cannot end.
        let mut made = std::pin::pin!(made);
        loop {
            tokio::select! {
                done = &mut made => return done,
                () = tokio::time::sleep(PATIENCE) => {
                    let reading = digests.state.lock().making.as_ref().is_some_and(|making| making.next.is_some());
                    if !reading {
                        return Err("STALE the local store did not come upon a position of the log".into());
                    }
                }
            }
        }
    }
}
