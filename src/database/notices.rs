//! What a write carries besides its records: events with the names that Redis gives them. The
//! commands name them ([`Notes`] tells what they did), and a write carries them ([`Notice`]) until
//! the log has it.

use bytes::Bytes;

use super::Transaction;
use super::write::Item;
use crate::model::home_key;

/// Missing keys of one command that are noted at most.
const MOST_MISSED: usize = 10_000;

/// An event of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    pub database: u16,
    pub key: Bytes,
    /// The class of the event: one of [`class`](crate::model::class).
    pub class: u32,
    pub name: &'static str,
}

/// A key that a command has written.
#[derive(Debug, PartialEq, Eq)]
pub struct Touched {
    pub database: u16,
    pub key: Bytes,
    /// It was written, not deleted.
    pub is_there: bool,
    /// It did not exist before, as far as this node knows.
    pub is_new: bool,
    /// The command set or removed its expiry besides writing it, and tells so.
    pub has_new_expiry: bool,
}

/// What one command did.
#[derive(Debug, Default)]
pub struct Notes {
    /// Each key once, in the order in which they were written first.
    pub touched: Vec<Touched>,
    /// Keys that were read and did not exist.
    pub missed: Vec<(u16, Bytes)>,
    /// Streams of which it has made a consumer, which is in no record.
    pub consumers_made: Vec<(u16, Bytes)>,
    /// Written keys are looked up: [`Touched::is_new`] is wanted.
    pub looks_for_new: bool,
}

impl Transaction<'_> {
    /// A record is about to be written.
    pub(super) fn note(&mut self, item: &Item) {
        let (database, key, is_there) = match item {
            Item::Key { database, key, state } => (*database, key.clone(), state.is_some()),
            Item::Element { database, key, .. } => (*database, key.slice_ref(home_key(key)), true),
            Item::Flush { .. } | Item::Tombstone { .. } | Item::Features { .. } | Item::Function { .. } => return,
        };
        let Some(mut notes) = self.notes.take() else {
            return;
        };
        let known = notes
            .touched
            .iter_mut()
            .rev()
            .find(|touched| touched.database == database && touched.key == key);
        match known {
            Some(touched) => touched.is_there = is_there,
            None => {
                // A key that cannot be read counts as one that was there.
                let is_new = notes.looks_for_new && is_there && !self.seems_to_exist(database, &key).unwrap_or(true);
                notes.touched.push(Touched {
                    database,
                    key,
                    is_there,
                    is_new,
                    has_new_expiry: false,
                });
            }
        }
        self.notes = Some(notes);
    }

    /// The command has removed the last element of this key, whose head stays for now.
    pub fn note_emptied(&mut self, database: u16, key: &[u8]) {
        let touched = self.notes.iter_mut().flat_map(|notes| &mut notes.touched);
        for touched in touched.filter(|touched| touched.database == database && touched.key == key) {
            touched.is_there = false;
        }
        self.service().emptied.note(database, key);
    }

    /// The command has set or removed the expiry of this key, which it has written. For commands
    /// whose arguments do not tell that.
    pub fn note_new_expiry(&mut self, database: u16, key: &[u8]) {
        let touched = self.notes.iter_mut().flat_map(|notes| &mut notes.touched);
        for touched in touched.filter(|touched| touched.database == database && touched.key == key) {
            touched.has_new_expiry = true;
        }
    }

    /// A consumer of a group of this stream is made.
    pub fn note_consumer_made(&mut self, database: u16, key: &[u8]) {
        if let Some(notes) = &mut self.notes {
            notes.consumers_made.push((database, Bytes::copy_from_slice(key)));
        }
    }

    /// True if events are wanted.
    pub fn is_noting(&self) -> bool {
        self.notes.is_some()
    }

    /// A key was read that does not exist.
    pub(super) fn note_missed(&mut self, database: u16, key: &[u8]) {
        if let Some(notes) = &mut self.notes
            && notes.missed.len() < MOST_MISSED
        {
            notes.missed.push((database, Bytes::copy_from_slice(key)));
        }
    }
}
