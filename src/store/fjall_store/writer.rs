//! The only code that changes the store: gathers changes and what they do to counts, watermarks and
//! the index, and commits them as one batch.
#![deny(clippy::wildcard_enum_match_arm)]

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::slot::{self, Slot};
use super::{Engine, Failure, FjallStore, View, key};
use crate::model::{Change, Control, Meta, Payload, State};
use crate::store::checkpoint::{KeyCount, PositionFile};
use crate::store::entry::{self, Body};
use crate::store::{Checkpoint, key_hash};

/// Bytes of one batch; more changes are committed as several.
const BATCH_BYTES: usize = 8 << 20;
/// How often a checkpoint makes the engine write its memory to disk. A crash means that the log is
/// read again from the last time this was done. Doing it at every checkpoint would write the same
/// data over and over.
const FLUSH_INTERVAL: Duration = Duration::from_secs(60);
/// Longest time that writing the engine's memory to disk may take.
const FLUSH_PATIENCE: Duration = Duration::from_secs(60);

pub(super) struct Writer {
    databases: Vec<DatabaseWriter>,
    checkpoint: Checkpoint,
    last_flush: Option<Instant>,
    /// See [`Options::keeps_hidden`](crate::store::Options::keeps_hidden).
    keeps_hidden: bool,
    /// A walk frees what is hidden or of another generation. Everything up to this key has been
    /// visited.
    walk: Option<Vec<u8>>,
    pending: Pending,
    encoded: Vec<u8>,
}

#[derive(Clone, Default)]
pub(super) struct DatabaseWriter {
    pub view: View,
    /// The counts of each partition.
    pub counts: BTreeMap<u32, KeyCount>,
    /// Partitions whose counts in the engine are out of date.
    changed: BTreeSet<u32>,
}

/// What the next commit writes. `None`: removed.
#[derive(Default)]
struct Pending {
    writes: BTreeMap<Vec<u8>, Option<Vec<u8>>>,
    bytes: usize,
}

impl Pending {
    fn set(&mut self, key: Vec<u8>, value: Option<Vec<u8>>) {
        self.bytes += key.len() + value.as_ref().map_or(0, Vec::len);
        self.writes.insert(key, value);
    }

    /// The value as it will be after the commit.
    fn get(&self, engine: &Engine, key: &[u8]) -> Result<Option<fjall::Slice>, Failure> {
        match self.writes.get(key) {
            Some(pending) => Ok(pending.as_deref().map(fjall::Slice::from)),
            None => engine.slot(key),
        }
    }

    fn commit(&mut self, engine: &Engine) -> Result<(), Failure> {
        self.bytes = 0;
        let mut batch = fjall::OwnedWriteBatch::with_capacity(engine.db.clone(), self.writes.len());
        for (key, value) in std::mem::take(&mut self.writes) {
            match value {
                Some(value) => batch.insert(&engine.keyspace, key, value),
                None => batch.remove(&engine.keyspace, key),
            }
        }
        Ok(batch.commit()?)
    }
}

impl Writer {
    pub fn new(databases: Vec<DatabaseWriter>, checkpoint: Checkpoint, keeps_hidden: bool, walking: bool) -> Writer {
        Writer {
            databases,
            checkpoint,
            last_flush: None,
            keeps_hidden,
            walk: walking.then(Vec::new),
            pending: Pending::default(),
            encoded: Vec::new(),
        }
    }

    pub fn apply(&mut self, store: &FjallStore, changes: &[Change]) -> Result<(), Failure> {
        for change in changes {
            match &change.payload {
                Payload::Key(state) => self.put(&store.engine, change, state.as_ref())?,
                Payload::Control(Control::Flush) => self.flush(store, change)?,
                Payload::Control(Control::Features(_) | Control::Unknown) => {}
            }
            if self.pending.bytes >= BATCH_BYTES {
                self.commit(store)?;
            }
        }
        self.commit(store)
    }

    fn database(&mut self, database: u16) -> Result<&mut DatabaseWriter, Failure> {
        self.databases
            .get_mut(usize::from(database))
            .ok_or(Failure::NoSuchDatabase)
    }

    /// Commits the changes with the current counts, then lets readers see counts and views.
    fn commit(&mut self, store: &FjallStore) -> Result<(), Failure> {
        for (database, of) in (0u16..).zip(&mut self.databases) {
            for partition in std::mem::take(&mut of.changed) {
                let count = of.counts.get(&partition);
                let value = count.map(|count| {
                    let numbers = [count.keys, count.expiring, count.hidden, count.newest];
                    numbers.map(u64::to_be_bytes).concat()
                });
                self.pending.set(key::of_partition(b'c', database, partition), value);
            }
        }
        self.pending.commit(&store.engine)?;
        self.publish(store);
        Ok(())
    }

    pub fn publish(&self, store: &FjallStore) {
        for (of, seen) in self.databases.iter().zip(&store.databases) {
            if **seen.view.load() != of.view {
                seen.view.store(Arc::new(of.view.clone()));
            }
            let sum = |number: fn(&KeyCount) -> u64| of.counts.values().map(number).sum::<u64>();
            seen.keys.store(sum(|count| count.keys), Ordering::Relaxed);
            seen.expiring.store(sum(|count| count.expiring), Ordering::Relaxed);
            seen.hidden.store(sum(|count| count.hidden), Ordering::Relaxed);
        }
    }

    /// Gives a key a new state; `None` deletes it.
    fn put(&mut self, engine: &Engine, change: &Change, new: Option<&State>) -> Result<(), Failure> {
        let name = &change.key[..];
        let meta = new.map(|state| change.meta(state));
        let keeps_hidden = self.keeps_hidden;
        let (hash, of) = (key_hash(name), self.database(change.database)?);
        let (generation, view) = (of.view.generation, of.view.clone());
        // A record from before a flush that is already known, read again: it supersedes older ones,
        // and is hidden.
        let meta = meta.filter(|meta| keeps_hidden || !view.hides(meta));
        let place = key::entry(change.database, generation, hash);
        let stored = self.pending.get(engine, &place)?;
        let records = Slot(stored.as_deref().unwrap_or_default()).records();
        let (mut others, mut old) = (Vec::new(), None);
        for record in records {
            let (of, state) = record?;
            let meta = entry::decode(state)?.0;
            match of == name {
                true => old = Some(meta),
                false => others.push((of, state, meta)),
            }
        }
        // A hidden entry waits for the tombstone of its own partition.
        let is_outdated = |old: &Meta| match old.partition == change.partition {
            true => old.offset >= change.offset,
            false => meta.is_none() && view.hides(old),
        };
        if old.as_ref().is_some_and(is_outdated) || old.is_none() && meta.is_none() {
            return Ok(());
        }
        let expiries: Vec<u64> = others.iter().filter_map(|(_, _, meta)| meta.expire_at).collect();
        let others = others.iter().map(|&(of, state, _)| (of, state));
        let slot = match (&meta, new) {
            (Some(meta), Some(State { value, .. })) => {
                let body = match value.kept() {
                    Ok((of, bytes)) => Body::Inline(of, bytes),
                    Err(reason) => Body::Unreadable(reason),
                };
                entry::encode(meta, &body, &mut self.encoded);
                slot::build(others.chain([(name, self.encoded.as_slice())]))
            }
            _ => slot::build(others),
        };
        self.pending.set(place, (!slot.is_empty()).then_some(slot));
        let (was, is) = (old.and_then(|old| old.expire_at), meta.and_then(|meta| meta.expire_at));
        if was != is {
            let index = |expire_at| key::expiry(change.database, generation, expire_at, hash);
            // Another key with this hash may have the same place in the index.
            if let Some(was) = was.filter(|was| !expiries.contains(was)) {
                self.pending.set(index(was), None);
            }
            if let Some(is) = is {
                self.pending.set(index(is), Some(Vec::new()));
            }
        }
        self.database(change.database)?
            .count(&view, old.as_ref(), meta.as_ref());
        Ok(())
    }

    fn flush(&mut self, store: &FjallStore, change: &Change) -> Result<(), Failure> {
        let keeps_hidden = self.keeps_hidden;
        let Change {
            database,
            partition,
            offset,
            ..
        } = *change;
        let of = self.database(database)?;
        if offset <= of.view.flushed_below(partition) {
            return Ok(());
        }
        let count = of.counts.get(&partition).copied().unwrap_or_default();
        let hidden = count.hidden_below(offset);
        if hidden.is_none() {
            // Only what is committed can be counted again, and nothing is committed without its
            // counts.
            self.commit(store)?;
        }
        let of = self.database(database)?;
        of.view.flushed_below.retain(|(of, _)| *of != partition);
        of.view.flushed_below.push((partition, offset));
        let count = match hidden {
            Some(hidden) => hidden,
            None => count_anew(&store.engine, database, &of.view, partition)?,
        };
        of.counts.insert(partition, count);
        of.changed.insert(partition);
        let is_empty = of.counts.values().all(|count| count.keys == 0);
        let watermark = offset.to_be_bytes().to_vec();
        self.pending
            .set(key::of_partition(b'f', database, partition), Some(watermark));
        if keeps_hidden {
            return Ok(());
        }
        if is_empty {
            self.begin_generation(database)?;
        }
        self.begin_walk();
        Ok(())
    }

    /// Makes all entries of a database invisible, to be freed later.
    fn begin_generation(&mut self, database: u16) -> Result<(), Failure> {
        let of = self.database(database)?;
        of.view.generation += 1;
        let generation = of.view.generation.to_be_bytes().to_vec();
        for partition in std::mem::take(&mut of.counts).into_keys() {
            of.changed.insert(partition);
        }
        self.pending.set(key::generation(database), Some(generation));
        Ok(())
    }

    fn begin_walk(&mut self) {
        self.pending.set(key::WALK.to_vec(), Some(Vec::new()));
        self.walk = Some(Vec::new());
    }

    pub fn clear(&mut self, store: &FjallStore, database: u16) -> Result<(), Failure> {
        self.begin_generation(database)?;
        let of = self.database(database)?;
        for (partition, _) in std::mem::take(&mut of.view.flushed_below) {
            self.pending.set(key::of_partition(b'f', database, partition), None);
        }
        self.checkpoint.databases.remove(&database);
        self.set_checkpoint();
        self.begin_walk();
        self.commit(store)
    }

    fn set_checkpoint(&mut self) {
        let file = PositionFile {
            checkpoint: self.checkpoint.clone(),
            ..PositionFile::default()
        };
        let text = file.format().into_bytes();
        self.pending.set(key::CHECKPOINT.to_vec(), Some(text));
    }

    pub fn checkpoint(&mut self, store: &FjallStore, checkpoint: &Checkpoint) -> Result<(), Failure> {
        self.checkpoint = checkpoint.clone();
        self.set_checkpoint();
        self.commit(store)?;
        if self.last_flush.is_none_or(|last| last.elapsed() >= FLUSH_INTERVAL) {
            self.flush_memory(&store.engine)?;
            self.last_flush = Some(Instant::now());
        }
        Ok(())
    }

    /// Makes everything that was committed durable: only tables count after a restart.
    pub fn flush_memory(&mut self, engine: &Engine) -> Result<(), Failure> {
        let deadline = Instant::now() + FLUSH_PATIENCE;
        if engine.keyspace.rotate_memtable()? {
            while engine.keyspace.sealed_memtable_count() > 0 {
                if Instant::now() > deadline {
                    return Err(Failure::Timeout);
                }
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        Ok(())
    }

    /// Visits about `budget` keys of a walk and removes what is hidden. Returns true if there is
    /// more to do.
    pub fn sweep(&mut self, store: &FjallStore, budget: usize) -> Result<bool, Failure> {
        let Some(cursor) = self.walk.clone() else {
            return Ok(false);
        };
        let mut last = None;
        let from = (Bound::Excluded(cursor), Bound::Unbounded);
        let mut found = store.engine.keyspace.range::<Vec<u8>, _>(from);
        for guard in found.by_ref().take(budget) {
            let (key, value) = guard.into_inner()?;
            if matches!(key.first(), Some(b'e' | b'x')) {
                self.visit(&key, &value)?;
            }
            last = Some(key.to_vec());
        }
        let is_done = last.is_none() || found.next().is_none();
        drop(found);
        self.walk = last.filter(|_| !is_done);
        if is_done {
            self.pending.set(key::WALK.to_vec(), None);
        }
        self.commit(store)?;
        Ok(!is_done)
    }

    fn visit(&mut self, key: &[u8], value: &[u8]) -> Result<(), Failure> {
        let (database, generation) = key::owner(key).ok_or(Failure::Damaged("key"))?;
        let view = self.database(database)?.view.clone();
        if generation != view.generation {
            self.pending.set(key.to_vec(), None);
            return Ok(());
        }
        // The index changes with its entries.
        if key[0] == b'x' || view.flushed_below.is_empty() || self.keeps_hidden {
            return Ok(());
        }
        let hash = key::hash(key).ok_or(Failure::Damaged("key"))?;
        let (mut kept, mut kept_expiries) = (Vec::new(), Vec::new());
        let (mut hidden, mut hidden_expiries) = (Vec::new(), Vec::new());
        for record in Slot(value).records() {
            let (of, state) = record?;
            let meta = entry::decode(state)?.0;
            if view.hides(&meta) {
                hidden_expiries.extend(meta.expire_at);
                hidden.push(meta);
            } else {
                kept.push((of, state));
                kept_expiries.extend(meta.expire_at);
            }
        }
        if !hidden.is_empty() {
            let slot = slot::build(kept.into_iter());
            self.pending.set(key.to_vec(), (!slot.is_empty()).then_some(slot));
            hidden_expiries.retain(|expire_at| !kept_expiries.contains(expire_at));
            for expire_at in hidden_expiries {
                self.pending
                    .set(key::expiry(database, generation, expire_at, hash), None);
            }
        }
        for meta in hidden {
            self.database(database)?.count(&view, Some(&meta), None);
        }
        Ok(())
    }
}

/// Counts one partition, entry by entry.
fn count_anew(engine: &Engine, database: u16, view: &View, partition: u32) -> Result<KeyCount, Failure> {
    let [first, last] = [0, u64::MAX].map(|hash| key::entry(database, view.generation, hash));
    let mut count = KeyCount::default();
    for found in engine.keyspace.range(first..=last) {
        for record in Slot(&found.value()?).records() {
            let meta = entry::decode(record?.1)?.0;
            if meta.partition == partition {
                count.add(&meta, view.hides(&meta));
            }
        }
    }
    Ok(count)
}

impl DatabaseWriter {
    /// Counts a key's change from one state to another.
    fn count(&mut self, view: &View, old: Option<&Meta>, new: Option<&Meta>) {
        let is_same = |a: &Meta, b: &Meta| {
            a.partition == b.partition
                && a.expire_at.is_some() == b.expire_at.is_some()
                && view.hides(a) == view.hides(b)
        };
        if let Some((old, new)) = old.zip(new)
            && is_same(old, new)
        {
            self.counts.entry(new.partition).or_default().meet(new.offset);
            self.changed.insert(new.partition);
            return;
        }
        if let Some(old) = old {
            let count = self.counts.entry(old.partition).or_default();
            count.remove(old, view.hides(old));
        }
        if let Some(new) = new {
            let count = self.counts.entry(new.partition).or_default();
            count.add(new, view.hides(new));
        }
        for meta in old.into_iter().chain(new) {
            self.changed.insert(meta.partition);
        }
    }
}
