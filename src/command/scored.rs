//! A sorted set that a command changes member by member: one record as a whole, or a record for
//! each member. What is small is one record. What grows beyond that is split.

use super::data::Whole;
use super::{Data, Fault};
use crate::database::Form;
use crate::database::hot::own;
use crate::database::transaction::score_of;
use crate::model::{Collection, Element, Elements, Scores, Split};

pub struct Scored<'k> {
    key: &'k [u8],
    form: Held,
}

enum Held {
    /// It is written whole if it has changed.
    Packed { whole: Whole<Scores>, is_changed: bool },
    /// Each change is a record of its own.
    Split { split: Split, is_less: bool },
}

impl<'k> Scored<'k> {
    /// The sorted set at a key; an empty one if the key is missing. The error of Redis if the key
    /// holds something else.
    pub fn read(data: &mut Data, key: &'k [u8]) -> Result<Scored<'k>, Fault> {
        let entry = data.head(key)?;
        let whole = match &entry {
            None => Whole::default(),
            Some(entry) => match entry.collection(Collection::SortedSet)? {
                Form::Split(split) if data.transaction.keeps_elements(data.database, key, split)? => {
                    let form = Held::Split {
                        split: split.clone(),
                        is_less: false,
                    };
                    return Ok(Scored { key, form });
                }
                // All its members have gone. What comes now has another version, and no expiry.
                Form::Split(_) => Whole::default(),
                Form::Packed(_) => Whole {
                    elements: data.elements(key, entry)?,
                    expire_at: entry.meta.expire_at,
                },
            },
        };
        let form = Held::Packed {
            whole,
            is_changed: false,
        };
        Ok(Scored { key, form })
    }

    pub fn get(&self, data: &mut Data, member: &[u8]) -> Result<Option<f64>, Fault> {
        match &self.form {
            Held::Packed { whole, .. } => Ok(whole.elements.0.get(member).copied()),
            Held::Split { split, .. } => {
                let element = data.transaction.element(data.database, self.key, split, member)?;
                element.map(|element| score_of(self.key, &element)).transpose()
            }
        }
    }

    pub fn put(&mut self, data: &mut Data, member: &[u8], score: f64) {
        match &mut self.form {
            Held::Packed { whole, is_changed } => {
                *is_changed = true;
                match whole.elements.0.get_mut(member) {
                    Some(known) => *known = score,
                    None => drop(whole.elements.0.insert(own(member), score)),
                }
            }
            Held::Split { split, .. } => {
                let element = Some(element(score));
                data.transaction
                    .put_element(data.database, self.key, split, member, element);
            }
        }
    }

    /// Removes members. Returns how many were there.
    pub fn remove(&mut self, data: &mut Data, members: &[&[u8]]) -> Result<usize, Fault> {
        match &mut self.form {
            Held::Packed { whole, is_changed } => {
                let removed = whole.elements.remove_all(members);
                *is_changed |= removed > 0;
                Ok(removed)
            }
            Held::Split { split, is_less } => {
                let mut removed = 0;
                for member in members {
                    let transaction = &mut data.transaction;
                    if transaction.element(data.database, self.key, split, member)?.is_some() {
                        transaction.put_element(data.database, self.key, split, member, None);
                        removed += 1;
                    }
                }
                *is_less |= removed > 0;
                Ok(removed)
            }
        }
    }

    /// Writes what is not written yet. The key goes with its last member.
    pub fn write(self, data: &mut Data) -> Result<(), Fault> {
        match self.form {
            Held::Packed { is_changed: false, .. } => {}
            Held::Packed { mut whole, .. } => {
                whole.elements.sort();
                data.put_scores(self.key, whole);
            }
            Held::Split { split, is_less } => {
                if is_less && !data.transaction.keeps_elements(data.database, self.key, &split)? {
                    data.delete(self.key);
                }
            }
        }
        Ok(())
    }
}

fn element(score: f64) -> Element {
    // Minus zero becomes zero, as in packed sorted sets.
    Element::new(&(score + 0.0).to_be_bytes(), None)
}

impl Data<'_, '_> {
    /// Stores a sorted set that is a result: it replaces what the key held before, an expiry too.
    /// An empty result deletes the key, if it is there.
    pub fn store_scores(&mut self, key: &[u8], elements: Scores) -> Result<(), Fault> {
        if elements.0.is_empty() {
            if self.exists(key)? {
                self.delete(key);
            }
            return Ok(());
        }
        let expire_at = None;
        self.put_scores(key, Whole { elements, expire_at });
        Ok(())
    }

    /// Gives a key a sorted set, in its order: as one record, or split if it is large.
    pub fn put_scores(&mut self, key: &[u8], whole: Whole<Scores>) {
        let packed = whole.elements.pack();
        let Some(_) = packed
            .as_ref()
            .filter(|packed| self.is_to_split(packed, whole.elements.0.len()))
        else {
            self.put_packed(key, packed, whole.expire_at);
            return;
        };
        let database = self.database;
        let split = self
            .transaction
            .put_split(database, key, Scores::OF, b"", whole.expire_at);
        for (member, score) in whole.elements.0 {
            let element = Some(element(score));
            self.transaction.put_element(database, key, &split, &member, element);
        }
    }
}
