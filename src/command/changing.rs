//! A collection that a command changes element by element: one record as a whole, or a record for
//! each element. What is small is one record. What grows beyond that is split.

use bytes::Bytes;

use super::data::{Whole, held_of};
use super::{Data, Fault};
use crate::database::Form;
use crate::database::hot::own;
use crate::database::transaction::MOST_ELEMENTS;
use crate::model::{Named, Names, Packed, Split};

pub struct Changing<'k, E> {
    key: &'k [u8],
    /// The key holds something, be it a collection without elements.
    exists: bool,
    form: Held<E>,
}

enum Held<E> {
    /// It is written whole if it has changed.
    Packed {
        whole: Whole<E>,
        /// Removed elements. One pass removes all of them before the collection is written:
        /// removing one by one would move what is behind it each time.
        gone: Names,
        is_changed: bool,
    },
    /// Each change is a record of its own.
    Split { split: Split, is_less: bool },
}

impl<'k, E: Named> Changing<'k, E> {
    /// The collection at a key, without what has expired; an empty one if the key is missing. The
    /// error of Redis if the key holds something else.
    pub fn read(data: &mut Data, key: &'k [u8]) -> Result<Self, Fault> {
        let entry = data.transaction.head(data.database, key)?;
        let whole = match &entry {
            None => Whole::default(),
            Some(entry) => match entry.collection(E::OF)? {
                Form::Split(split) if data.transaction.keeps_elements(data.database, key, split)? => {
                    let form = Held::Split {
                        split: split.clone(),
                        is_less: false,
                    };
                    let exists = true;
                    return Ok(Changing { key, exists, form });
                }
                // All its elements have gone. What comes now has another version, and no expiry.
                Form::Split(_) => Whole::default(),
                Form::Packed(_) => Whole {
                    elements: data.elements(key, entry)?,
                    expire_at: entry.meta.expire_at,
                },
            },
        };
        let form = Held::Packed {
            whole,
            gone: Names::default(),
            is_changed: false,
        };
        let exists = entry.is_some();
        Ok(Changing { key, exists, form })
    }

    /// True if it has no elements.
    pub fn is_empty(&self) -> bool {
        match &self.form {
            Held::Packed { whole, gone, .. } => whole.elements.len() == gone.len(),
            // Else it would have been read as an empty one.
            Held::Split { .. } => false,
        }
    }

    /// What the element of this name holds.
    pub fn get(&self, data: &mut Data, name: &[u8]) -> Result<Option<E::Held>, Fault> {
        match &self.form {
            Held::Packed { gone, .. } if gone.contains(name) => Ok(None),
            Held::Packed { whole, .. } => Ok(whole.elements.get(name)),
            Held::Split { split, .. } => {
                let element = data.transaction.element(data.database, self.key, split, name)?;
                held_of::<E>(self.key, element)
            }
        }
    }

    /// The names of elements at these places, which `places` picks: it gets how many there are. To
    /// be called before any are removed. What is written does not rest on the other elements.
    pub fn pick(&self, data: &mut Data, places: impl FnOnce(usize) -> Vec<usize>) -> Result<Vec<Bytes>, Fault> {
        match &self.form {
            Held::Packed { whole, .. } => {
                let places = places(whole.elements.len()).into_iter();
                Ok(places
                    .filter_map(|place| whole.elements.name_at(place).cloned())
                    .collect())
            }
            Held::Split { split, .. } => {
                let now = data.now();
                let tree = data.transaction.elements_to_pick(data.database, self.key, split)?;
                if tree.least_mark() > now {
                    let places = places(tree.len()).into_iter();
                    return Ok(places
                        .filter_map(|place| tree.nth(place))
                        .map(|held| own(&held.name))
                        .collect());
                }
                data.transaction.works(tree.len() * size_of::<usize>())?;
                let live: Vec<&[u8]> = tree
                    .iter()
                    .filter(|held| held.is_live(now))
                    .map(|held| &held.name[..])
                    .collect();
                Ok(places(live.len()).into_iter().map(|place| own(live[place])).collect())
            }
        }
    }

    /// Gives the element of this name something to hold, also if there was none.
    pub fn put(&mut self, data: &mut Data, name: &[u8], held: E::Held) {
        match &mut self.form {
            Held::Packed {
                whole,
                gone,
                is_changed,
            } => {
                *is_changed = true;
                gone.remove(name);
                whole.elements.put(name, held);
            }
            Held::Split { split, .. } => {
                let element = Some(E::element(&held));
                data.transaction
                    .put_element(data.database, self.key, split, name, element);
            }
        }
    }

    /// Removes an element, also one that cannot be read. Returns true if it was there.
    pub fn remove(&mut self, data: &mut Data, name: &[u8]) -> Result<bool, Fault> {
        let is_there = match &self.form {
            Held::Packed { .. } => self.get(data, name)?.is_some(),
            Held::Split { split, .. } => data.transaction.has_element(data.database, self.key, split, name)?,
        };
        if !is_there {
            return Ok(false);
        }
        match &mut self.form {
            Held::Packed { gone, is_changed, .. } => {
                *is_changed = true;
                gone.insert(own(name));
            }
            Held::Split { split, is_less } => {
                *is_less = true;
                data.transaction.put_element(data.database, self.key, split, name, None);
            }
        }
        Ok(true)
    }

    /// Removes elements. Returns how many were there.
    pub fn remove_all(&mut self, data: &mut Data, names: &[&[u8]]) -> Result<usize, Fault> {
        let mut removed = 0;
        for name in names {
            removed += usize::from(self.remove(data, name)?);
        }
        Ok(removed)
    }

    /// Writes what is not written yet. The key goes with its last element.
    pub fn write(self, data: &mut Data) -> Result<(), Fault> {
        match self.form {
            Held::Packed { is_changed: false, .. } => Ok(()),
            Held::Packed { mut whole, gone, .. } => {
                whole.elements.remove(&gone);
                // What did not exist before is not deleted.
                if self.exists || !whole.elements.is_empty() {
                    let is_contended = data.transaction.is_contended(data.database, self.key);
                    data.put_named(self.key, whole, is_contended);
                }
                Ok(())
            }
            Held::Split { split, is_less } => {
                if is_less && !data.transaction.keeps_elements(data.database, self.key, &split)? {
                    data.delete(self.key);
                }
                Ok(())
            }
        }
    }
}

impl Data<'_, '_> {
    /// Gives a key a collection: one record, or a record for each element if it is large or
    /// contended. An empty one deletes the key.
    pub fn put_named<E: Named>(&mut self, key: &[u8], mut whole: Whole<E>, is_contended: bool) {
        whole.elements.all_added();
        let is_contended = is_contended && whole.elements.len() > 1;
        match whole.elements.pack() {
            Some(packed) if self.is_to_split(&packed, whole.elements.len(), is_contended) => {
                self.put_split(key, whole);
            }
            packed => self.put_packed(key, packed, whole.expire_at),
        }
    }

    /// Stores a result, as SUNIONSTORE does: it replaces what the key held before, an expiry too.
    /// An empty result deletes the key, if it is there.
    pub fn store_result<E: Named>(&mut self, key: &[u8], elements: E) -> Result<(), Fault> {
        if !elements.is_empty() || self.exists(key)? {
            let expire_at = None;
            self.put_named(key, Whole { elements, expire_at }, false);
        }
        Ok(())
    }

    /// True if a collection is too large to be one record, or if other nodes write other elements
    /// of it: they would hinder each other again and again.
    pub(super) fn is_to_split(&self, packed: &Packed, elements: usize, is_contended: bool) -> bool {
        let (bytes, most) = self.config.packed_limits();
        let is_contended = is_contended && self.config.may_split();
        let is_large = packed.bytes().len() > bytes || elements > most;
        // What one transaction could not write stays one record.
        (is_contended || is_large) && elements <= MOST_ELEMENTS
    }

    /// Writes a collection with a record for each element, under a new version.
    fn put_split<E: Named>(&mut self, key: &[u8], whole: Whole<E>) {
        let database = self.database;
        let split = self.transaction.put_split(database, key, E::OF, b"", whole.expire_at);
        for (name, held) in whole.elements.into_elements() {
            let element = Some(E::element(&held));
            self.transaction.put_element(database, key, &split, &name, element);
        }
    }
}
