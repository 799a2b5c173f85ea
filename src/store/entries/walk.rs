//! Walks through a database's spaces in small steps, in the background: they count entries, and
//! remove what is hidden and what belongs to nothing.

use std::ops::Bound;

use super::Entries;
use super::meta::Row;
use super::spaces::{Spaces, View};
use super::writer::{DatabaseWriter, Old, Writer};
use crate::model::{ElementName, Version};
use crate::store::engine::{Engine, Failure};
use crate::store::entry::{self, Head};

/// A pass over a database's spaces: entries (counting them, and removing the hidden ones unless
/// they are kept), then elements (in the same way, and noting those without a head), then pieces
/// and index entries that belong to no entry.
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
    Elements,
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
            Stage::Entries => Stage::Elements,
            // Pieces and index entries come and go with their entry.
            Stage::Elements if E::ATOMIC => return false,
            Stage::Elements => Stage::Pieces,
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
            Stage::Elements => &spaces.elements,
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
                Stage::Elements => self.visit_element(&key, &stored)?,
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
        let Old { head, pieces, split } = Old::of::<E>(stored)?;
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
        if !goes {
            return Ok(());
        }
        if let Some(split) = split {
            let (_, user_key) = entry::split_store_key(key)?;
            self.note_orphans(user_key, split.version())?;
        }
        let entries = &self.spaces.entries;
        self.spaces
            .remove_entry(self.engine, self.batch, entries, key, &head, pieces)
    }

    /// After a crash the note about orphans can be missing.
    fn visit_element(&mut self, key: &[u8], stored: &[u8]) -> Result<(), Failure> {
        let Old { head, pieces, .. } = Old::of::<E>(stored)?;
        let elements = &self.spaces.elements;
        if self.view.hides(&head.meta) && !self.keeps_hidden {
            return self
                .spaces
                .remove_entry(self.engine, self.batch, elements, key, &head, pieces);
        }
        let record_key = entry::record_key(key)?;
        let Some(name) = ElementName::parse(&record_key) else {
            return Ok(());
        };
        let head = self.spaces.head(self.engine, self.batch, name.key, name.version)?;
        match head.is_some_and(|head| !head.excludes(name.sub_key)) {
            true => Ok(()),
            false => self.note_orphans(name.key, name.version),
        }
    }

    fn note_orphans(&mut self, key: &[u8], version: Version) -> Result<(), Failure> {
        match entry::element_key(&ElementName::prefix(key, version)) {
            Some(prefix) => self.engine.set(self.batch, &self.spaces.orphans, &prefix, &[]),
            None => Ok(()),
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
        for of in [&self.spaces.entries, &self.spaces.elements] {
            if let Some(stored) = self.engine.get(of, store_key)? {
                let Old { head, pieces, .. } = Old::of::<E>(&stored)?;
                if belongs(&head, pieces) {
                    return Ok(());
                }
            }
        }
        self.engine.remove(self.batch, space, key)
    }
}
