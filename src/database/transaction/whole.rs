//! A command of EXEC or of a script that fails writes nothing, while the others of its transaction
//! go on. So what it has written is taken back.

use bytes::Bytes;

use super::elements::SeenAll;
use super::{LINEAR, Transaction};
use crate::database::fault::Fault;
use crate::database::write::Item;

/// What a transaction was like before a command, as far as the command changes it.
#[derive(Default)]
pub(super) struct Undo {
    items: usize,
    bytes: usize,
    elements: usize,
    begun: usize,
    notices: usize,
    consumer_notes: usize,
    /// Items that stood there before, in the order in which they were replaced.
    replaced: Vec<(usize, Item)>,
    /// Collections whose elements it has changed; `None`: they were not read before.
    trees: Vec<((u16, Bytes), Option<SeenAll>)>,
}

impl Undo {
    pub fn replaced(&mut self, place: usize, old: Item) {
        if place < self.items {
            self.replaced.push((place, old));
        }
    }

    /// The elements of a collection are about to be changed.
    pub fn changes(&mut self, collection: &(u16, Bytes), all: &SeenAll) {
        if !self.trees.iter().any(|(of, _)| of == collection) {
            self.trees.push((collection.clone(), Some(all.clone())));
        }
    }

    /// A collection was read whole after this command has written elements of it.
    pub fn read_whole(&mut self, collection: &(u16, Bytes)) {
        if !self.trees.iter().any(|(of, _)| of == collection) {
            self.trees.push((collection.clone(), None));
        }
    }
}

impl Transaction<'_> {
    /// Computes one of several commands. If it answers an error, nothing of it is written.
    pub fn whole<T>(&mut self, command: impl FnOnce(&mut Self) -> Result<T, Fault>) -> Result<T, Fault> {
        self.undo = Some(Undo {
            items: self.items.len(),
            bytes: self.bytes,
            elements: self.elements,
            begun: self.begun.len(),
            notices: self.notices.len(),
            consumer_notes: self.consumer_notes.len(),
            ..Undo::default()
        });
        let result = command(self);
        let undo = self.undo.take();
        if let (Err(Fault::Error(_)), Some(undo)) = (&result, undo) {
            self.take_back(undo);
        }
        result
    }

    fn take_back(&mut self, undo: Undo) {
        // Else the maps of its own writes are not in use.
        let are_mapped = self.items.len() > LINEAR;
        let written: Vec<Item> = self.items.drain(undo.items..).collect();
        for item in written {
            if let Some((database, key)) = item.name() {
                self.places.remove(&(database, key.clone()));
            }
            if are_mapped {
                self.count_own(&item, false);
            }
        }
        for (place, old) in undo.replaced.into_iter().rev() {
            if are_mapped {
                self.count_own(&old, true);
            }
            let new = std::mem::replace(&mut self.items[place], old);
            if are_mapped {
                self.count_own(&new, false);
            }
        }
        self.bytes = undo.bytes;
        self.elements = undo.elements;
        self.begun.truncate(undo.begun);
        self.notices.truncate(undo.notices);
        self.consumer_notes.truncate(undo.consumer_notes);
        for (collection, before) in undo.trees {
            match before {
                Some(all) => drop(self.trees.insert(collection, all)),
                None => drop(self.trees.remove(&collection)),
            }
        }
    }
}
