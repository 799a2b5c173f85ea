//! Walks through a database's spaces in small steps, in the background: they count entries, and
//! remove what is hidden and what belongs to nothing.

use std::ops::Bound;

use super::Entries;
use super::meta::Row;
use super::spaces::{Spaces, View};
use super::writer::{DatabaseWriter, Writer, old_state};
use crate::store::engine::{Engine, Failure};
use crate::store::entry::{self, Head};

/// A pass over a database's spaces: entries (counting them, and removing the hidden ones unless
/// they are kept), then pieces and index entries that belong to no entry.
pub(super) struct Walk {
    stage: Stage,
    /// Everything up to this key has been visited in this stage.
    cursor: Vec<u8>,
    /// Whether entries are being counted (only in the first stage).
    pub counting: bool,
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

    /// Whether an entry is counted when the walk gets to it.
    pub fn will_count(&self, store_key: &[u8]) -> bool {
        self.counting && store_key > self.cursor.as_slice()
    }

    /// Goes on with the next stage. False if this was the last one.
    fn next_stage<E: Engine>(&mut self) -> bool {
        self.cursor.clear();
        self.counting = false;
        self.stage = match self.stage {
            // Pieces and index entries come and go with their entry.
            Stage::Entries if E::ATOMIC => return false,
            Stage::Entries => Stage::Pieces,
            Stage::Pieces => Stage::Expiry,
            Stage::Expiry => return false,
        };
        true
    }
}

impl<E: Engine> Writer<E> {
    pub fn begin_walk(&mut self, store: &Entries<E>, database: u16, counting: bool) -> Result<(), Failure> {
        let row = Row::Walk { database };
        row.set(&store.engine, &mut self.batch, &store.meta, &[u64::from(counting)])?;
        self.database(database)?.walk = Some(Walk::new(counting));
        Ok(())
    }

    /// Visits the next `budget` items of a database's walk, if there is one.
    pub fn walk_step(&mut self, store: &Entries<E>, database: u16, budget: usize) -> Result<(), Failure> {
        let view = store.database(database)?.view.load_full();
        let Some(mut walk) = self.database(database)?.walk.take() else {
            return Ok(());
        };
        self.mark_dirty(store)?;
        let was_counting = walk.counting;
        let keeps_hidden = self.keeps_hidden;
        let of = self
            .databases
            .get_mut(usize::from(database))
            .ok_or(Failure::NoSuchDatabase)?;
        let goes_on = match &view.spaces {
            Some(spaces) => Step {
                engine: &store.engine,
                batch: &mut self.batch,
                spaces,
                view: &view,
                of,
                keeps_hidden,
            }
            .take(&mut walk, budget)?,
            None => false,
        };
        let row = Row::Walk { database };
        if !goes_on {
            row.remove(&store.engine, &mut self.batch, &store.meta)?;
        } else {
            if was_counting && !walk.counting {
                row.set(&store.engine, &mut self.batch, &store.meta, &[0])?;
            }
            of.walk = Some(walk);
        }
        self.commit(store)
    }
}

/// What one step of a walk works on.
struct Step<'a, E: Engine> {
    engine: &'a E,
    batch: &'a mut E::Batch,
    spaces: &'a Spaces<E>,
    view: &'a View<E>,
    of: &'a mut DatabaseWriter,
    keeps_hidden: bool,
}

impl<E: Engine> Step<'_, E> {
    /// Returns whether the walk goes on.
    fn take(&mut self, walk: &mut Walk, budget: usize) -> Result<bool, Failure> {
        let (engine, spaces) = (self.engine, self.spaces);
        let space = match walk.stage {
            Stage::Entries => &spaces.entries,
            Stage::Pieces => &spaces.pieces,
            Stage::Expiry => &spaces.expiry,
        };
        let from = match walk.cursor.as_slice() {
            [] => Bound::Unbounded,
            cursor => Bound::Excluded(cursor),
        };
        let (mut visited, mut last) = (0, None);
        for found in engine.range(space, (from, Bound::Unbounded)).take(budget) {
            let (key, stored) = found?;
            match walk.stage {
                Stage::Entries => self.visit_entry(walk.counting, &key, &stored)?,
                Stage::Pieces => {
                    let (store_key, partition, offset, number) = entry::split_piece_key(&key)?;
                    let belongs = |head: &Head, pieces| {
                        head.meta.partition == partition && head.meta.offset == offset && number < pieces
                    };
                    self.remove_orphan(space, &key, store_key, belongs)?;
                }
                Stage::Expiry => {
                    let (due, store_key) = entry::split_expiry_key(&key)?;
                    self.remove_orphan(space, &key, store_key, |head, _| head.due == Some(due))?;
                }
            }
            visited += 1;
            last = Some(key);
        }
        if let Some(last) = last {
            walk.cursor = last.to_vec();
        }
        Ok(visited == budget || walk.next_stage::<E>())
    }

    fn visit_entry(&mut self, counting: bool, key: &[u8], stored: &[u8]) -> Result<(), Failure> {
        let (head, pieces) = old_state::<E>(stored)?;
        let meta = &head.meta;
        let is_hidden = self.view.hides(meta);
        let goes = is_hidden && !self.keeps_hidden;
        if counting || goes {
            let count = self.of.count_of(meta.partition);
            if counting {
                count.add(meta, is_hidden);
            }
            if goes {
                count.remove(meta, is_hidden);
            }
        }
        match goes {
            true => self.spaces.remove_entry(self.engine, self.batch, key, &head, pieces),
            false => Ok(()),
        }
    }

    /// Removes a piece or index entry unless it `belongs` to the current entry of its key.
    fn remove_orphan(
        &mut self,
        space: &E::Space,
        key: &[u8],
        store_key: &[u8],
        belongs: impl Fn(&Head, u32) -> bool,
    ) -> Result<(), Failure> {
        let belongs = match self.engine.get(&self.spaces.entries, store_key)? {
            Some(stored) => {
                let (head, pieces) = old_state::<E>(&stored)?;
                belongs(&head, pieces)
            }
            None => false,
        };
        match belongs {
            true => Ok(()),
            false => self.engine.remove(self.batch, space, key),
        }
    }
}
