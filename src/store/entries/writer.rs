//! The only code that changes the store: applies changes and keeps the counts.
//!
//! The order of writes matters, because a crash may keep a beginning of them (unless
//! [`Engine::ATOMIC`]). [`Row::Dirty`] comes before the first change after a checkpoint, pieces
//! before their head, an index entry before its entry. What is superseded is removed last. So a
//! crash can leave pieces and index entries that nothing points to, but never a head without them.
//! The walk after an unclean stop removes those leftovers.
#![deny(clippy::wildcard_enum_match_arm)]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;

use super::Entries;
use super::meta::{KeyCount, Row};
use super::spaces::{Spaces, View};
use super::walk::Walk;
use crate::model::{Change, Control, ElementName, Meta, Payload, Split, State, SubKeys, Version, as_range};
use crate::store::Checkpoint;
use crate::store::engine::{Engine, Failure};
use crate::store::entry::{self, Body, Head};

pub(super) struct Writer<E: Engine> {
    pub databases: Vec<DatabaseWriter>,
    pub batch: E::Batch,
    /// As the engine's note has it.
    pub checkpoint: Checkpoint,
    /// Whether the engine has [`Row::Dirty`].
    pub dirty: bool,
    /// See [`Options::keeps_hidden`](crate::store::Options::keeps_hidden).
    pub keeps_hidden: bool,
    /// Generations to be dropped once no reader holds them.
    pub retired: Vec<Arc<Spaces<E>>>,
    pub encoded: Vec<u8>,
    /// The head that was last looked up, in this call of [`Writer::apply`].
    pub looked_up: Option<LookedUp>,
}

/// The head of a collection as it was before some of its elements came.
pub(super) struct LookedUp {
    database: u16,
    /// What the record keys of its elements begin with.
    collection: Bytes,
    head: Option<Split>,
    /// It is noted that it has elements that are not there by this head.
    noted: bool,
}

/// What the writer knows about one database.
#[derive(Default)]
pub(super) struct DatabaseWriter {
    pub generation: u64,
    /// The counts of each partition. While a walk counts, only of what it has passed.
    pub counts: BTreeMap<u32, KeyCount>,
    /// Partitions whose counts in the engine are outdated.
    pub changed: BTreeSet<u32>,
    pub walk: Option<Walk>,
}

impl DatabaseWriter {
    fn is_counting(&self) -> bool {
        self.walk.as_ref().is_some_and(|walk| walk.counting)
    }

    /// The counts of a partition, to be changed.
    pub fn count_of(&mut self, partition: u32) -> &mut KeyCount {
        self.changed.insert(partition);
        self.counts.entry(partition).or_default()
    }

    pub fn forget_counts(&mut self) {
        self.changed.extend(std::mem::take(&mut self.counts).into_keys());
    }

    /// Counts a key's change from one state to another.
    fn count<E: Engine>(&mut self, view: &View<E>, store_key: &[u8], old: Option<&Meta>, new: Option<&Meta>) {
        if self.walk.as_ref().is_some_and(|walk| walk.will_count(store_key)) {
            return;
        }
        if let Some(old) = old {
            self.count_of(old.partition).remove(old, view.hides(old));
        }
        if let Some(new) = new {
            self.count_of(new.partition).add(new, view.hides(new));
        }
    }
}

impl<E: Engine> Writer<E> {
    pub fn apply(&mut self, store: &Entries<E>, changes: &[Change]) -> Result<(), Failure> {
        if changes.is_empty() {
            return Ok(());
        }
        self.mark_dirty(store)?;
        self.looked_up = None;
        // A flush replaces the view.
        let is_flush = |change: &Change| change.payload == Payload::FLUSH;
        let same_view = |a: &Change, b: &Change| a.database == b.database && !is_flush(a) && !is_flush(b);
        for changes in changes.chunk_by(same_view) {
            let view = self.view_for(store, changes)?;
            for change in changes {
                match &change.payload {
                    Payload::Key(Some(state)) => self.put(&store.engine, change, &view, state)?,
                    Payload::Key(None) => self.delete(&store.engine, change, &view)?,
                    Payload::Control(Control::Flush) => self.flush(store, change, &view)?,
                    Payload::Control(
                        Control::Features(_) | Control::Function(_) | Control::Passed | Control::Unknown,
                    ) => {}
                }
                if E::is_full(&self.batch) {
                    self.commit(store)?;
                }
            }
        }
        self.commit(store)
    }

    /// Called before the first change after a checkpoint: marks the counts in the engine as
    /// outdated, for a later start.
    pub fn mark_dirty(&mut self, store: &Entries<E>) -> Result<(), Failure> {
        if !E::ATOMIC && !self.dirty {
            Row::Dirty.set(&store.engine, &mut self.batch, &store.meta, &[])?;
            self.dirty = true;
        }
        Ok(())
    }

    /// Commits the batch, then lets readers see the counts. Where batches are atomic, each has the
    /// counts as they are after it.
    pub fn commit(&mut self, store: &Entries<E>) -> Result<(), Failure> {
        if E::ATOMIC {
            self.set_counts(store)?;
        }
        store.engine.commit(&mut self.batch)?;
        self.publish(store);
        Ok(())
    }

    /// Writes the counts that have changed. A database that is being counted has none.
    fn set_counts(&mut self, store: &Entries<E>) -> Result<(), Failure> {
        for (database, of) in (0u16..).zip(&mut self.databases) {
            if of.is_counting() {
                continue;
            }
            for partition in std::mem::take(&mut of.changed) {
                let row = Row::Count { database, partition };
                match of.counts.get(&partition) {
                    Some(count) => row.set(&store.engine, &mut self.batch, &store.meta, &count.numbers())?,
                    None => row.remove(&store.engine, &mut self.batch, &store.meta)?,
                }
            }
        }
        Ok(())
    }

    pub fn publish(&self, store: &Entries<E>) {
        for (counted, seen) in self.databases.iter().zip(&store.databases) {
            let sum = |number: fn(&KeyCount) -> u64| counted.counts.values().map(number).sum::<u64>();
            seen.keys.store(sum(|count| count.keys), Ordering::Relaxed);
            seen.expiring.store(sum(|count| count.expiring), Ordering::Relaxed);
            seen.hidden.store(sum(|count| count.hidden), Ordering::Relaxed);
            seen.counted.store(!counted.is_counting(), Ordering::Release);
        }
    }

    pub fn checkpoint(&mut self, store: &Entries<E>, checkpoint: &Checkpoint) -> Result<(), Failure> {
        self.set_counts(store)?;
        if self.dirty {
            // Whatever is being counted has [`Row::Walk`], so it will be counted again.
            Row::Dirty.remove(&store.engine, &mut self.batch, &store.meta)?;
            self.dirty = false;
        }
        self.checkpoint = checkpoint.clone();
        store.engine.checkpoint(&mut self.batch, &checkpoint.format())
    }

    /// The view of the database of these changes, with spaces if a value is to be written.
    fn view_for(&mut self, store: &Entries<E>, changes: &[Change]) -> Result<Arc<View<E>>, Failure> {
        let database = changes[0].database;
        let view = store.database(database)?.view.load_full();
        let is_put = |change: &Change| change.payload.state().is_some();
        if view.spaces.is_none() && changes.iter().any(is_put) {
            return self.create_spaces(store, database);
        }
        Ok(view)
    }

    fn put(&mut self, engine: &E, change: &Change, view: &View<E>, state: &State) -> Result<(), Failure> {
        let meta = change.meta(state);
        if view.hides(&meta) && !self.keeps_hidden {
            // A record from before a flush that is already known, read again: it supersedes older
            // ones, and is hidden.
            return self.delete(engine, change, view);
        }
        let Some(spaces) = &view.spaces else {
            return Err(Failure::damaged("view, it has no spaces"));
        };
        let head = Head::new(meta, &state.value);
        let place = spaces.place(&change.key);
        let body = Body::of(&state.value, E::PIECE_BYTES);
        // Pieces and index come before their entry. So with those it has to be known first whether
        // the record is outdated. Without them `replace` shows it, on sled for half the price: an
        // outdated record comes only when the log is read again after a crash, while no commands
        // are served.
        let look_first = body.pieces(E::PIECE_BYTES) > 0 || head.due.is_some();
        let mut found = None;
        if look_first {
            found = engine.get_in(&self.batch, place.space, &place.key)?;
            if let Some(old) = &found
                && is_outdated(change, &Old::of::<E>(old)?.head.meta)
            {
                return Ok(());
            }
            spaces.set_parts(engine, &mut self.batch, &place.key, &head, state)?;
        }
        entry::encode(&head, &body, &mut self.encoded);
        if look_first {
            engine.set(&mut self.batch, place.space, &place.key, &self.encoded)?;
        } else {
            found = engine.replace(&mut self.batch, place.space, &place.key, &self.encoded)?;
        }
        let old = found.as_deref().map(Old::of::<E>).transpose()?;
        if let (Some(stored), Some(old)) = (&found, &old) {
            if is_outdated(change, &old.head.meta) {
                return engine.set(&mut self.batch, place.space, &place.key, stored);
            }
            if head.due != old.head.due {
                spaces.remove_expiry(engine, &mut self.batch, &place.key, &old.head)?;
            }
            spaces.remove_pieces(engine, &mut self.batch, &place.key, &old.head.meta, old.pieces)?;
            let same = |old: &Split, new: &Split| old.version() == new.version() && old.bounds() == new.bounds();
            if let Some(before) = &old.split
                && !body.split().is_some_and(|now| same(before, &now))
            {
                self.orphaned(engine, spaces, change, old)?;
            }
        }
        if !place.is_element {
            let old = old.as_ref().map(|old| &old.head.meta);
            self.database(change.database)?
                .count(view, &place.key, old, Some(&meta));
        } else if old.is_none() {
            self.note_garbage(engine, spaces, change)?;
        }
        Ok(())
    }

    /// Notes the collection of a new element, if the head is not here or excludes the element: that
    /// may have been so before it came here.
    fn note_garbage(&mut self, engine: &E, spaces: &Spaces<E>, change: &Change) -> Result<(), Failure> {
        let Some(name) = ElementName::parse(&change.key) else {
            return Ok(());
        };
        let collection = change.key.slice(..change.key.len() - name.sub_key.len());
        // Elements of one collection come side by side.
        let is_it = |of: &LookedUp| of.database == change.database && of.collection == collection;
        let mut looked_up = match self.looked_up.take().filter(is_it) {
            Some(looked_up) => looked_up,
            None => LookedUp {
                database: change.database,
                head: spaces.head(engine, &self.batch, name.key, name.version)?,
                collection,
                noted: false,
            },
        };
        let is_there = |head: &Split| !head.excludes(name.sub_key);
        if !looked_up.noted
            && !looked_up.head.as_ref().is_some_and(is_there)
            && let Some(row) = entry::element_key(&looked_up.collection)
        {
            engine.set(&mut self.batch, &spaces.orphans, &row, &[])?;
            looked_up.noted = true;
        }
        self.looked_up = Some(looked_up);
        Ok(())
    }

    /// Notes that a head is no more, or another one: its elements, or some of them, are orphans.
    fn orphaned(&mut self, engine: &E, spaces: &Spaces<E>, change: &Change, old: &Old) -> Result<(), Failure> {
        let Some(split) = &old.split else {
            return Ok(());
        };
        let prefix = ElementName::prefix(&change.key, split.version());
        match entry::element_key(&prefix) {
            Some(prefix) => engine.set(&mut self.batch, &spaces.orphans, &prefix, &[]),
            None => Ok(()),
        }
    }

    fn delete(&mut self, engine: &E, change: &Change, view: &View<E>) -> Result<(), Failure> {
        let Some(spaces) = &view.spaces else {
            return Ok(());
        };
        let place = spaces.place(&change.key);
        let Some(stored) = engine.get_in(&self.batch, place.space, &place.key)? else {
            return Ok(());
        };
        let old = Old::of::<E>(&stored)?;
        // A hidden entry waits for the tombstone of its own partition.
        let meta = &old.head.meta;
        if is_outdated(change, meta) || view.hides(meta) && meta.partition != change.partition {
            return Ok(());
        }
        self.orphaned(engine, spaces, change, &old)?;
        spaces.remove_entry(engine, &mut self.batch, place.space, &place.key, &old.head, old.pieces)?;
        if !place.is_element {
            self.database(change.database)?
                .count(view, &place.key, Some(meta), None);
        }
        Ok(())
    }

    fn flush(&mut self, store: &Entries<E>, change: &Change, view: &Arc<View<E>>) -> Result<(), Failure> {
        let Change {
            database,
            partition,
            offset,
            ..
        } = *change;
        if offset <= view.flushed_below(partition) {
            return Ok(());
        }
        Row::FlushedBelow { database, partition }.set(&store.engine, &mut self.batch, &store.meta, &[offset])?;
        let mut hiding = View::clone(view);
        hiding.flushed_below.retain(|(of, _)| *of != partition);
        hiding.flushed_below.push((partition, offset));
        store.database(database)?.view.store(Arc::new(hiding));

        let keeps_hidden = self.keeps_hidden;
        let flushed = self.database(database)?;
        let count = flushed.counts.get(&partition).copied().unwrap_or_default();
        let Some(hidden) = count.hidden_below(offset).filter(|_| !flushed.is_counting()) else {
            flushed.forget_counts();
            return self.begin_walk(store, database, true);
        };
        *flushed.count_of(partition) = hidden;
        if keeps_hidden {
            return Ok(());
        }
        if flushed.counts.values().all(|count| count.keys == 0) {
            self.begin_generation(store, database)
        } else {
            self.begin_walk(store, database, false)
        }
    }

    /// Leaves behind all entries of a database; none of them is visible any more.
    fn begin_generation(&mut self, store: &Entries<E>, database: u16) -> Result<(), Failure> {
        let of = self.database(database)?;
        of.generation += 1;
        of.forget_counts();
        of.walk = None;
        let generation = of.generation;
        Row::Generation { database }.set(&store.engine, &mut self.batch, &store.meta, &[generation])?;
        Row::Walk { database }.remove(&store.engine, &mut self.batch, &store.meta)?;
        let view = &store.database(database)?.view;
        let empty = View {
            spaces: None,
            flushed_below: view.load().flushed_below.clone(),
        };
        let left = view.swap(Arc::new(empty));
        self.retired.extend(left.spaces.clone());
        Ok(())
    }

    pub fn clear(&mut self, store: &Entries<E>, database: u16) -> Result<(), Failure> {
        store.database(database)?;
        // The position goes first: after a crash the emptied database must not be taken for one
        // that has reached its position.
        self.checkpoint.databases.remove(&database);
        store.engine.set_note(&mut self.batch, &self.checkpoint.format())?;
        self.mark_dirty(store)?;
        self.begin_generation(store, database)?;
        let view = store.database(database)?.view.load_full();
        for &(partition, _) in &view.flushed_below {
            Row::FlushedBelow { database, partition }.remove(&store.engine, &mut self.batch, &store.meta)?;
        }
        store.database(database)?.view.store(Arc::new(View::default()));
        self.commit(store)
    }

    fn create_spaces(&mut self, store: &Entries<E>, database: u16) -> Result<Arc<View<E>>, Failure> {
        let generation = self.database(database)?.generation;
        let spaces = Arc::new(Spaces::open(&store.engine, &mut self.batch, database, generation)?);
        let current = &store.database(database)?.view;
        let view = Arc::new(View {
            spaces: Some(spaces),
            flushed_below: current.load().flushed_below.clone(),
        });
        current.store(Arc::clone(&view));
        Ok(view)
    }

    pub fn database(&mut self, database: u16) -> Result<&mut DatabaseWriter, Failure> {
        self.databases
            .get_mut(usize::from(database))
            .ok_or(Failure::NoSuchDatabase)
    }

    /// See [`Store::sweep_orphans`](crate::store::Store::sweep_orphans).
    pub fn sweep_orphans(
        &mut self,
        store: &Entries<E>,
        database: u16,
        (key, version): (&[u8], Version),
        gone: bool,
        budget: usize,
    ) -> Result<bool, Failure> {
        let engine = &store.engine;
        let view = store.database(database)?.view.load_full();
        let row = entry::element_key(&ElementName::prefix(key, version));
        let (Some(spaces), Some(row)) = (&view.spaces, row) else {
            return Ok(false);
        };
        // Only what the head excludes that is here: a digest is made of what is here.
        let head = spaces.head(engine, &self.batch, key, version)?;
        let (mut is_left, mut removed) = (!gone && head.is_none(), 0);
        let garbage = if is_left { Vec::new() } else { garbage(head.as_ref()) };
        'garbage: for range in garbage {
            let range = range.behind(&row);
            for found in engine.range(&spaces.elements, as_range(&range)) {
                let (key, stored) = found?;
                if !key.starts_with(&row) {
                    break;
                }
                is_left = self.keeps_hidden || removed == budget;
                if is_left {
                    break 'garbage;
                }
                self.mark_dirty(store)?;
                let old = Old::of::<E>(&stored)?;
                spaces.remove_entry(engine, &mut self.batch, &spaces.elements, &key, &old.head, old.pieces)?;
                removed += 1;
            }
        }
        if !is_left {
            self.mark_dirty(store)?;
            engine.remove(&mut self.batch, &spaces.orphans, &row)?;
        }
        self.commit(store)?;
        Ok(is_left && removed > 0)
    }

    /// One step of background work. Returns whether there is more to do.
    pub fn sweep(&mut self, store: &Entries<E>, budget: usize) -> Result<bool, Failure> {
        if let Some(database) = self.databases.iter().position(|database| database.walk.is_some()) {
            self.walk_step(store, database as u16, budget)?;
        } else {
            if let Some(spaces) = self.retired.pop() {
                // A reader may still hold a view of these spaces.
                let is_free = Arc::strong_count(&spaces) == 1;
                if !is_free || !spaces.drop_from(&store.engine, &mut self.batch, budget)? {
                    self.retired.insert(0, spaces);
                }
            }
            self.commit(store)?;
        }
        Ok(!self.retired.is_empty() || self.databases.iter().any(|database| database.walk.is_some()))
    }
}

/// The sub-keys of a collection whose elements do not exist, by its head.
pub(super) fn garbage(head: Option<&Split>) -> Vec<SubKeys> {
    match head {
        Some(split) => split.excluded().collect(),
        None => vec![SubKeys::all()],
    }
}

/// Only a higher offset of the same partition replaces an entry. A record of another partition
/// always does: copies of a key in several partitions are not kept apart.
fn is_outdated(change: &Change, old: &Meta) -> bool {
    old.partition == change.partition && old.offset >= change.offset
}

/// What the writer has to know of an entry that it replaces or removes.
pub(super) struct Old {
    pub head: Head,
    pub pieces: u32,
    /// If it is the head of a split collection.
    pub split: Option<Split>,
}

impl Old {
    pub fn of<E: Engine>(stored: &[u8]) -> Result<Old, Failure> {
        let (head, body) = entry::decode(stored)?;
        Ok(Old {
            head,
            pieces: body.pieces(E::PIECE_BYTES),
            split: body.split(),
        })
    }
}
