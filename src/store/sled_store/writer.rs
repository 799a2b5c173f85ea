//! The only code that changes the store: applies changes, keeps the counts, and walks the trees in
//! the background.
//!
//! The order of single writes matters, because a crash keeps a prefix of them. A mark that says
//! "changed since checkpoint N" comes before the first change, pieces before their head, an index
//! entry before its entry. What is superseded is removed last. So a crash can leave pieces and
//! index entries that nothing points to, but never a head without them. The walk after an unclean
//! stop removes those leftovers.
#![deny(clippy::wildcard_enum_match_arm)]

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::{Failure, Mark, SledStore, Trees, View, get_mark, set_mark};
use crate::model::{Change, Control, Meta, Payload, State};
use crate::store::checkpoint::KeyCount;
use crate::store::entry::{self, Body, PIECE_BYTES};

pub(super) struct Writer {
    databases: Vec<DatabaseWriter>,
    /// Number of the last checkpoint.
    pub number: u64,
    /// Whether the engine has the mark that something changed since.
    dirty: bool,
    /// See [`Options::keeps_hidden`](crate::store::Options::keeps_hidden).
    keeps_hidden: bool,
    /// Generations to be dropped once no reader holds them.
    retired: Vec<Arc<Trees>>,
    encoded: Vec<u8>,
}

/// What the writer knows about one database.
#[derive(Default)]
pub(super) struct DatabaseWriter {
    pub generation: u64,
    /// The counts of each partition. While a walk counts, only of what it has passed.
    pub counts: BTreeMap<u32, KeyCount>,
    pub walk: Option<Walk>,
}

/// A pass over a database's trees in small steps: entries (counting them, and removing the hidden
/// ones unless they are kept), then pieces and index entries that belong to no entry.
pub(super) struct Walk {
    stage: Stage,
    /// Everything up to this key has been visited in this stage.
    cursor: Vec<u8>,
    /// Whether entries are being counted (only in the first stage).
    counting: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    Entries,
    Pieces,
    Expiry,
}

impl Walk {
    pub fn new(counting: bool) -> Walk {
        Walk {
            stage: Stage::Entries,
            cursor: Vec::new(),
            counting,
        }
    }
}

impl DatabaseWriter {
    fn is_counting(&self) -> bool {
        self.walk.as_ref().is_some_and(|walk| walk.counting)
    }

    /// Counts a key's change from one state to another.
    fn count(&mut self, view: &View, store_key: &[u8], old: Option<&Meta>, new: Option<&Meta>) {
        // What a counting walk has not passed yet is counted when the walk gets there.
        if self
            .walk
            .as_ref()
            .is_some_and(|walk| walk.counting && store_key > walk.cursor.as_slice())
        {
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
    }
}

impl Writer {
    pub fn new(databases: Vec<DatabaseWriter>, number: u64, keeps_hidden: bool, retired: Vec<Arc<Trees>>) -> Writer {
        Writer {
            databases,
            number,
            dirty: false,
            keeps_hidden,
            retired,
            encoded: Vec::new(),
        }
    }

    pub fn apply(&mut self, store: &SledStore, changes: &[Change]) -> Result<(), Failure> {
        if changes.is_empty() {
            return Ok(());
        }
        self.mark_dirty(store)?;
        // A flush replaces the view.
        let is_flush = |change: &Change| change.payload == Payload::FLUSH;
        let same_view = |a: &Change, b: &Change| a.database == b.database && !is_flush(a) && !is_flush(b);
        for changes in changes.chunk_by(same_view) {
            let view = self.view_for(store, changes)?;
            for change in changes {
                match &change.payload {
                    Payload::Key(Some(state)) => self.put(change, &view, state)?,
                    Payload::Key(None) => self.delete(change, &view)?,
                    Payload::Control(Control::Flush) => self.flush(store, change, &view)?,
                    Payload::Control(Control::Features(_) | Control::Unknown) => {}
                }
            }
        }
        for (database, _) in self.databases.iter().enumerate() {
            self.publish_counts(store, database);
        }
        store.closer.note_length()
    }

    /// Called before the first change after a checkpoint: marks the counts of the position file as
    /// outdated, for a later start.
    fn mark_dirty(&mut self, store: &SledStore) -> Result<(), Failure> {
        if !self.dirty {
            set_mark(&store.meta, &Mark::Dirty, self.number)?;
            self.dirty = true;
        }
        Ok(())
    }

    pub fn checkpointed(&mut self, number: u64) {
        self.number = number;
        self.dirty = false;
    }

    /// The counts of the databases that are not being counted.
    pub fn known_counts(&self) -> BTreeMap<u16, BTreeMap<u32, KeyCount>> {
        let known = self
            .databases
            .iter()
            .enumerate()
            .filter(|(_, database)| !database.is_counting());
        known
            .map(|(index, database)| (index as u16, database.counts.clone()))
            .collect()
    }

    /// Lets readers see the counts.
    pub fn publish_counts(&self, store: &SledStore, database: usize) {
        let (Some(counted), Some(seen)) = (self.databases.get(database), store.databases.get(database)) else {
            return;
        };
        let sum = |number: fn(&KeyCount) -> u64| counted.counts.values().map(number).sum::<u64>();
        seen.keys.store(sum(|count| count.keys), Ordering::Relaxed);
        seen.expiring.store(sum(|count| count.expiring), Ordering::Relaxed);
        seen.hidden.store(sum(|count| count.hidden), Ordering::Relaxed);
        seen.counted.store(!counted.is_counting(), Ordering::Release);
    }

    /// The view of the database of these changes, with trees if a value is to be written.
    fn view_for(&mut self, store: &SledStore, changes: &[Change]) -> Result<Arc<View>, Failure> {
        let database = changes[0].database;
        let view = store.database(database)?.view.load_full();
        let is_put = |change: &Change| change.payload.state().is_some();
        if view.trees.is_none() && changes.iter().any(is_put) {
            return self.create_trees(store, database);
        }
        Ok(view)
    }

    fn put(&mut self, change: &Change, view: &View, state: &State) -> Result<(), Failure> {
        let meta = change.meta(state);
        if view.hides(&meta) && !self.keeps_hidden {
            // A record from before a flush that is already known, read again: it supersedes older
            // ones, and is hidden.
            return self.delete(change, view);
        }
        let Some(trees) = &view.trees else {
            return Err(Failure::Damaged("view, it has no trees"));
        };
        let store_key = entry::store_key(&change.key);
        let body = Body::of(&state.value);
        // Pieces and index come before their entry. So with those it has to be known first whether
        // the record is outdated. Without them the insert shows it, for half the price: an outdated
        // record comes only when the log is read again after a crash, while no commands are served.
        if (body.pieces() > 0 || meta.expire_at.is_some())
            && let Some(old) = trees.entries.get(&store_key)?
            && is_outdated(change, &old_state(&old)?.0)
        {
            return Ok(());
        }
        if let (Body::Cut(..), Ok((_, value))) = (&body, state.value.kept()) {
            for (number, piece) in (0u32..).zip(value.chunks(PIECE_BYTES)) {
                trees
                    .pieces
                    .insert(entry::piece_key(&store_key, meta.partition, meta.offset, number), piece)?;
            }
        }
        if let Some(expire_at) = meta.expire_at {
            trees.expiry.insert(entry::expiry_key(expire_at, &store_key), &[])?;
        }
        entry::encode(&meta, &body, &mut self.encoded);
        let replaced = trees.entries.insert(&store_key, self.encoded.as_slice())?;
        let old = replaced.as_ref().map(|stored| old_state(stored)).transpose()?;
        if let (Some(stored), Some((old, pieces))) = (&replaced, &old) {
            if is_outdated(change, old) {
                trees.entries.insert(&store_key, stored)?;
                return Ok(());
            }
            if meta.expire_at != old.expire_at {
                remove_expiry(trees, &store_key, old)?;
            }
            remove_pieces(trees, &store_key, old, *pieces)?;
        }
        let old = old.as_ref().map(|(old, _)| old);
        self.database(change.database)?
            .count(view, &store_key, old, Some(&meta));
        Ok(())
    }

    fn delete(&mut self, change: &Change, view: &View) -> Result<(), Failure> {
        let Some(trees) = &view.trees else {
            return Ok(());
        };
        let store_key = entry::store_key(&change.key);
        let Some(stored) = trees.entries.get(&store_key)? else {
            return Ok(());
        };
        let (old, pieces) = old_state(&stored)?;
        // A hidden entry waits for the tombstone of its own partition.
        if is_outdated(change, &old) || view.hides(&old) && old.partition != change.partition {
            return Ok(());
        }
        remove_entry(trees, &store_key, &old, pieces)?;
        self.database(change.database)?
            .count(view, &store_key, Some(&old), None);
        Ok(())
    }

    fn flush(&mut self, store: &SledStore, change: &Change, view: &Arc<View>) -> Result<(), Failure> {
        let Change {
            database,
            partition,
            offset,
            ..
        } = *change;
        if offset <= view.flushed_below(partition) {
            return Ok(());
        }
        set_mark(&store.meta, &Mark::FlushedBelow { database, partition }, offset)?;
        let mut hiding = View::clone(view);
        hiding.flushed_below.retain(|(of, _)| *of != partition);
        hiding.flushed_below.push((partition, offset));
        store.database(database)?.view.store(Arc::new(hiding));

        let keeps_hidden = self.keeps_hidden;
        let flushed = self.database(database)?;
        let count = flushed.counts.get(&partition).copied().unwrap_or_default();
        let Some(hidden) = count.hidden_below(offset).filter(|_| !flushed.is_counting()) else {
            flushed.counts.clear();
            return self.begin_walk(store, database, true);
        };
        flushed.counts.insert(partition, hidden);
        if keeps_hidden {
            return Ok(());
        }
        if flushed.counts.values().all(|count| count.keys == 0) {
            self.begin_generation(store, database)
        } else {
            self.begin_walk(store, database, false)
        }
    }

    fn begin_walk(&mut self, store: &SledStore, database: u16, counting: bool) -> Result<(), Failure> {
        set_mark(&store.meta, &Mark::Walk { database }, 1)?;
        self.database(database)?.walk = Some(Walk::new(counting));
        Ok(())
    }

    /// Leaves behind all entries of a database; none of them is visible any more.
    fn begin_generation(&mut self, store: &SledStore, database: u16) -> Result<(), Failure> {
        let of = self.database(database)?;
        of.generation += 1;
        of.counts.clear();
        of.walk = None;
        set_mark(&store.meta, &Mark::Generation { database }, of.generation)?;
        store.meta.remove(Mark::Walk { database }.key())?;
        let view = &store.database(database)?.view;
        let empty = View {
            trees: None,
            flushed_below: view.load().flushed_below.clone(),
        };
        let left = view.swap(Arc::new(empty));
        self.retired.extend(left.trees.clone());
        Ok(())
    }

    pub fn clear(&mut self, store: &SledStore, database: u16) -> Result<(), Failure> {
        store.database(database)?;
        // The position goes first: after a crash the emptied database must not be taken for one
        // that has reached its position.
        store.closer.write_position(|position| {
            let mut without = position.clone();
            without.checkpoint.databases.remove(&database);
            without
        })?;
        self.mark_dirty(store)?;
        self.begin_generation(store, database)?;
        let view = store.database(database)?.view.load_full();
        for (partition, _) in &view.flushed_below {
            store.meta.remove(
                Mark::FlushedBelow {
                    database,
                    partition: *partition,
                }
                .key(),
            )?;
        }
        store.database(database)?.view.store(Arc::new(View::default()));
        self.publish_counts(store, usize::from(database));
        Ok(())
    }

    fn create_trees(&mut self, store: &SledStore, database: u16) -> Result<Arc<View>, Failure> {
        let generation = self.database(database)?.generation;
        let trees = Arc::new(Trees::open(&store.db, database, generation)?);
        let current = &store.database(database)?.view;
        let view = Arc::new(View {
            trees: Some(trees),
            flushed_below: current.load().flushed_below.clone(),
        });
        current.store(Arc::clone(&view));
        Ok(view)
    }

    fn database(&mut self, database: u16) -> Result<&mut DatabaseWriter, Failure> {
        self.databases
            .get_mut(usize::from(database))
            .ok_or(Failure::NoSuchDatabase)
    }

    /// One step of background work. Returns whether there is more to do.
    pub fn sweep(&mut self, store: &SledStore, budget: usize) -> Result<bool, Failure> {
        store.closer.note_length()?;
        if let Some(database) = self.databases.iter().position(|database| database.walk.is_some()) {
            self.walk_step(store, database as u16, budget)?;
        } else if let Some(trees) = self.retired.pop() {
            // A reader may still hold a view of these trees.
            if Arc::strong_count(&trees) > 1 {
                self.retired.insert(0, trees);
            } else {
                trees.drop_from(&store.db)?;
            }
        }
        Ok(!self.retired.is_empty() || self.databases.iter().any(|database| database.walk.is_some()))
    }

    /// Visits the next `budget` items of a database's walk, if there is one.
    pub fn walk_step(&mut self, store: &SledStore, database: u16, budget: usize) -> Result<(), Failure> {
        let view = store.database(database)?.view.load_full();
        let keeps_hidden = self.keeps_hidden;
        let of = self.database(database)?;
        let Some(mut walk) = of.walk.take() else {
            return Ok(());
        };
        let done = match &view.trees {
            Some(trees) => walk_trees(&mut walk, keeps_hidden, &view, trees, &mut of.counts, budget)?,
            None => true,
        };
        if done {
            store.meta.remove(Mark::Walk { database }.key())?;
        } else {
            of.walk = Some(walk);
        }
        self.publish_counts(store, usize::from(database));
        Ok(())
    }
}

/// Only a higher offset of the same partition replaces an entry. A record of another partition
/// always does: copies of a key in several partitions are not kept apart.
fn is_outdated(change: &Change, old: &Meta) -> bool {
    old.partition == change.partition && old.offset >= change.offset
}

/// Decodes an entry of the store: its meta, and its number of pieces.
fn old_state(stored: &[u8]) -> Result<(Meta, u32), Failure> {
    let (meta, body) = entry::decode(stored)?;
    Ok((meta, body.pieces()))
}

fn remove_entry(trees: &Trees, store_key: &[u8], meta: &Meta, pieces: u32) -> Result<(), Failure> {
    trees.entries.remove(store_key)?;
    remove_expiry(trees, store_key, meta)?;
    remove_pieces(trees, store_key, meta, pieces)
}

fn remove_expiry(trees: &Trees, store_key: &[u8], meta: &Meta) -> Result<(), Failure> {
    if let Some(expire_at) = meta.expire_at {
        trees.expiry.remove(entry::expiry_key(expire_at, store_key))?;
    }
    Ok(())
}

fn remove_pieces(trees: &Trees, store_key: &[u8], meta: &Meta, pieces: u32) -> Result<(), Failure> {
    for piece in 0..pieces {
        trees
            .pieces
            .remove(entry::piece_key(store_key, meta.partition, meta.offset, piece))?;
    }
    Ok(())
}

/// One step of a walk. Returns whether all stages are done.
fn walk_trees(
    walk: &mut Walk,
    keeps_hidden: bool,
    view: &View,
    trees: &Trees,
    counts: &mut BTreeMap<u32, KeyCount>,
    budget: usize,
) -> Result<bool, Failure> {
    let tree = match walk.stage {
        Stage::Entries => &trees.entries,
        Stage::Pieces => &trees.pieces,
        Stage::Expiry => &trees.expiry,
    };
    let after = Bound::Excluded(walk.cursor.as_slice());
    let from = if walk.cursor.is_empty() {
        Bound::Unbounded
    } else {
        after
    };
    let mut visited = 0;
    let mut last = None;
    for found in tree.range::<&[u8], _>((from, Bound::Unbounded)).take(budget) {
        let (key, stored) = found?;
        match walk.stage {
            Stage::Entries => {
                let (meta, pieces) = old_state(&stored)?;
                let (is_hidden, count) = (view.hides(&meta), counts.entry(meta.partition).or_default());
                if walk.counting {
                    count.add(&meta, is_hidden);
                }
                if is_hidden && !keeps_hidden {
                    remove_entry(trees, &key, &meta, pieces)?;
                    count.remove(&meta, is_hidden);
                }
            }
            Stage::Pieces => {
                let (store_key, partition, offset, number) = entry::split_piece_key(&key)?;
                let belongs =
                    |meta: &Meta, pieces| meta.partition == partition && meta.offset == offset && number < pieces;
                remove_orphan(trees, tree, &key, store_key, belongs)?;
            }
            Stage::Expiry => {
                let (expire_at, store_key) = entry::split_expiry_key(&key)?;
                remove_orphan(trees, tree, &key, store_key, |meta, _| {
                    meta.expire_at == Some(expire_at)
                })?;
            }
        }
        visited += 1;
        last = Some(key);
    }
    if let Some(last) = last {
        walk.cursor = last.to_vec();
    }
    if visited < budget {
        walk.cursor.clear();
        walk.counting = false;
        walk.stage = match walk.stage {
            Stage::Entries => Stage::Pieces,
            Stage::Pieces => Stage::Expiry,
            Stage::Expiry => return Ok(true),
        };
    }
    Ok(false)
}

/// Removes a piece or index entry unless it `belongs` to the current entry of its key.
fn remove_orphan(
    trees: &Trees,
    tree: &sled::Tree,
    key: &[u8],
    store_key: &[u8],
    belongs: impl Fn(&Meta, u32) -> bool,
) -> Result<(), Failure> {
    let belongs = match trees.entries.get(store_key)? {
        Some(stored) => {
            let (meta, pieces) = old_state(&stored)?;
            belongs(&meta, pieces)
        }
        None => false,
    };
    if !belongs {
        tree.remove(key)?;
    }
    Ok(())
}

/// The state of a database's writer, as found in the engine.
pub(super) fn recover_database(
    meta: &sled::Tree,
    database: u16,
    counts: Option<BTreeMap<u32, KeyCount>>,
) -> Result<DatabaseWriter, Failure> {
    let unfinished_walk = get_mark(meta, &Mark::Walk { database })?.is_some();
    let walk = match counts {
        None => Some(Walk::new(true)),
        Some(_) if unfinished_walk => Some(Walk::new(false)),
        Some(_) => None,
    };
    let generation = get_mark(meta, &Mark::Generation { database })?.unwrap_or(0);
    Ok(DatabaseWriter {
        generation,
        counts: counts.unwrap_or_default(),
        walk,
    })
}
