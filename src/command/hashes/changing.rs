//! A hash that a command changes field by field: one record as a whole, or a record for each field.
//! What is small is one record. What grows beyond that is split.

use bytes::Bytes;

use crate::command::data::Whole;
use crate::command::{Data, Fault};
use crate::database::Form;
use crate::database::hot::own;
use crate::database::transaction::MOST_ELEMENTS;
use crate::model::{Collection, Element, Field, Fields, Packed, Split};

pub struct Hash<'k> {
    key: &'k [u8],
    /// The key holds something, be it a hash without fields.
    exists: bool,
    form: Held,
}

/// The expiry of a field that this command has removed. One pass removes all of them before the
/// hash is written: removing one by one would move what is behind it each time.
const GONE: Option<u64> = Some(0);

enum Held {
    /// It is written whole if it has changed.
    Packed { whole: Whole<Fields>, is_changed: bool },
    /// Each change is a record of its own.
    Split { split: Split, is_less: bool },
}

impl<'k> Hash<'k> {
    /// The hash at a key, without what has expired; an empty one if the key is missing. The error
    /// of Redis if the key holds something else.
    pub fn read(data: &mut Data, key: &'k [u8]) -> Result<Hash<'k>, Fault> {
        let entry = data.transaction.head(data.database, key)?;
        let whole = match &entry {
            None => Whole::default(),
            Some(entry) => match entry.collection(Collection::Hash)? {
                Form::Split(split) if data.transaction.keeps_elements(data.database, key, split)? => {
                    let form = Held::Split {
                        split: split.clone(),
                        is_less: false,
                    };
                    let exists = true;
                    return Ok(Hash { key, exists, form });
                }
                // All its fields have gone. What comes now has another version, and no expiry.
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
        let exists = entry.is_some();
        Ok(Hash { key, exists, form })
    }

    pub fn get(&self, data: &mut Data, name: &[u8]) -> Result<Option<Field>, Fault> {
        match &self.form {
            Held::Packed { whole, .. } => {
                let field = whole.elements.0.get(name);
                Ok(field.filter(|field| field.expire_at != GONE).cloned())
            }
            Held::Split { split, .. } => {
                let element = data.transaction.element(data.database, self.key, split, name)?;
                Ok(element.as_ref().map(Field::of))
            }
        }
    }

    /// Sets a field. Returns true if it is new.
    pub fn put(&mut self, data: &mut Data, name: &[u8], field: Field) -> Result<bool, Fault> {
        let is_new = self.get(data, name)?.is_none();
        match &mut self.form {
            Held::Packed { whole, is_changed } => {
                *is_changed = true;
                match whole.elements.0.get_mut(name) {
                    Some(known) => *known = field,
                    None => drop(whole.elements.0.insert(own(name), field)),
                }
            }
            Held::Split { split, .. } => {
                let element = Element::new(&field.value, field.expire_at);
                data.transaction
                    .put_element(data.database, self.key, split, name, Some(element));
            }
        }
        Ok(is_new)
    }

    /// Removes fields. Returns how many were there.
    pub fn remove(&mut self, data: &mut Data, names: &[&[u8]]) -> Result<usize, Fault> {
        match &mut self.form {
            Held::Packed { whole, is_changed } => {
                let mut removed = 0;
                for name in names {
                    let field = whole.elements.0.get_mut(*name);
                    if let Some(field) = field.filter(|field| field.expire_at != GONE) {
                        field.expire_at = GONE;
                        removed += 1;
                    }
                }
                *is_changed |= removed > 0;
                Ok(removed)
            }
            Held::Split { split, is_less } => {
                let mut removed = 0;
                for name in names {
                    let transaction = &mut data.transaction;
                    if transaction.element(data.database, self.key, split, name)?.is_some() {
                        transaction.put_element(data.database, self.key, split, name, None);
                        removed += 1;
                    }
                }
                *is_less |= removed > 0;
                Ok(removed)
            }
        }
    }

    /// Writes what is not written yet. The key goes with its last field.
    pub fn write(self, data: &mut Data) -> Result<(), Fault> {
        match self.form {
            Held::Packed { is_changed: false, .. } => Ok(()),
            Held::Packed { mut whole, .. } => {
                let fields = &mut whole.elements.0;
                if fields.values().any(|field| field.expire_at == GONE) {
                    fields.retain(|_, field| field.expire_at != GONE);
                }
                match whole.elements.pack() {
                    Some(packed) if data.is_to_split(&packed, whole.elements.0.len()) => {
                        write_split(data, self.key, whole);
                    }
                    // What did not exist before is not deleted.
                    None if !self.exists => {}
                    packed => data.put_packed(self.key, packed, whole.expire_at),
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

/// Writes a hash with a record for each field, under a new version.
fn write_split(data: &mut Data, key: &[u8], whole: Whole<Fields>) {
    let database = data.database;
    let split = data
        .transaction
        .put_split(database, key, Collection::Hash, b"", whole.expire_at);
    for (name, field) in whole.elements.0 {
        let element = Element::new(&field.value, field.expire_at);
        data.transaction
            .put_element(database, key, &split, &name, Some(element));
    }
}

/// A field that does not expire by itself.
pub fn lasting(value: Bytes) -> Field {
    let expire_at = None;
    Field { value, expire_at }
}

impl Data<'_, '_> {
    /// True if a collection is too large to be one record.
    pub(in crate::command) fn is_to_split(&self, packed: &Packed, elements: usize) -> bool {
        let (bytes, most) = self.config.packed_limits();
        // What one transaction could not write stays one record.
        (packed.bytes().len() > bytes || elements > most) && elements <= MOST_ELEMENTS
    }
}
