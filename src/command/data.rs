//! What a command about data works with: keys and values, and the settings that its reply depends
//! on. It does not know which client asks. So it can be computed again later, and as a part of
//! EXEC.

use bytes::Bytes;

use super::{Fault, Transaction};
use crate::config::Config;
use crate::database::hot::own;
use crate::database::transaction::element_of;
use crate::database::{Form, Held, Order, Wait};
use crate::model::{Collection, Element, Elements, Entry, Named, Packed, State, Tree, Value};

/// A collection that a command changes. The key's expiry stays.
#[derive(Default)]
pub struct Whole<E> {
    pub elements: E,
    pub expire_at: Option<u64>,
}

/// One command's view of the data.
pub struct Data<'d, 't> {
    /// Reads and writes of all databases. Nothing is written before the command has ended.
    pub transaction: &'d mut Transaction<'t>,
    /// The selected database. All functions here work on it.
    pub database: u16,
    /// Settings that a reply depends on: `proto-max-bulk-len`, the eviction policy.
    pub config: &'d Config,
}

/// A string that a command changes. Its expiry stays.
#[derive(Default)]
pub struct CurrentString {
    pub value: Bytes,
    pub expire_at: Option<u64>,
}

impl Data<'_, '_> {
    /// The time that the command sees, milliseconds since the epoch: the same all through EXEC.
    pub fn now(&self) -> u64 {
        self.transaction.now
    }

    /// What a key holds; `None` if it is missing or expired.
    pub fn get(&mut self, key: &[u8]) -> Result<Option<Entry>, Fault> {
        self.transaction.get(self.database, key)
    }

    /// As [`Data::get`], but counts as a keyspace hit or miss in a command that writes too.
    pub fn read(&mut self, key: &[u8]) -> Result<Option<Entry>, Fault> {
        self.transaction.read(self.database, key)
    }

    /// For a command that tells of a key's record: waits for the connection's own write of the key,
    /// if that is under way.
    pub fn await_record(&mut self, key: &[u8]) -> Result<(), Fault> {
        self.transaction.looks();
        if self.transaction.sees_pending()
            && let Some(write) = self.transaction.service().read(self.database, key, true)?.depends
            && write.outcome().is_none()
        {
            return Err(Fault::Wait(Wait::Write(write)));
        }
        Ok(())
    }

    /// A key's string; the error of Redis if it holds something else.
    pub fn get_string(&mut self, key: &[u8]) -> Result<Option<Bytes>, Fault> {
        self.transaction.get_string(self.database, key)
    }

    /// As [`Data::get_string`], but counts as a keyspace hit or miss in a command that writes too.
    pub fn read_string(&mut self, key: &[u8]) -> Result<Option<Bytes>, Fault> {
        self.transaction.read_string(self.database, key)
    }

    /// What one element of the collection at a key holds, unless it has expired.
    pub fn one<E: Named>(&mut self, key: &[u8], name: &[u8]) -> Result<Option<E::Held>, Fault> {
        match self.transaction.head(self.database, key)? {
            Some(entry) => self.one_of::<E>(key, &entry, name),
            None => Ok(None),
        }
    }

    /// As [`Data::one`], of the collection that was read at a key: found in a packed one, or read
    /// from its own record. The error of Redis if the key holds something else.
    pub fn one_of<E: Named>(&mut self, key: &[u8], entry: &Entry, name: &[u8]) -> Result<Option<E::Held>, Fault> {
        match entry.collection(E::OF)? {
            Form::Packed(packed) => {
                self.transaction.works(packed.bytes().len())?;
                let found = E::find(packed, name).map_err(|problem| entry.unreadable(problem))?;
                let now = self.now();
                Ok(found.filter(|held| E::is_live(held, now)))
            }
            Form::Split(split) => {
                let element = self.transaction.element(self.database, key, split, name)?;
                held_of::<E>(key, element)
            }
        }
    }

    /// As [`Data::one`], for several elements. A packed collection is taken apart once.
    pub fn several<E: Named>(&mut self, key: &[u8], names: &[&[u8]]) -> Result<Vec<Option<E::Held>>, Fault> {
        let Some(entry) = self.transaction.head(self.database, key)? else {
            return Ok(vec![None; names.len()]);
        };
        match entry.collection(E::OF)? {
            Form::Packed(_) => {
                let elements: E = self.elements(key, &entry)?;
                Ok(names.iter().map(|name| elements.get(name)).collect())
            }
            Form::Split(split) => {
                let elements = self.transaction.some_elements(self.database, key, split, names)?;
                elements.into_iter().map(|element| held_of::<E>(key, element)).collect()
            }
        }
    }

    /// The elements of a split collection at a key, also those that have expired. `None` if the
    /// collection is one record, or the key is missing. The error of Redis if the key holds
    /// something else.
    pub fn split(&mut self, key: &[u8], of: Collection) -> Result<Option<Tree<Held>>, Fault> {
        let Some(entry) = self.transaction.head(self.database, key)? else {
            return Ok(None);
        };
        match entry.collection(of)? {
            Form::Packed(_) => Ok(None),
            Form::Split(split) => self.transaction.elements(self.database, key, split).map(Some),
        }
    }

    /// As [`Data::split`], if no element expires by itself before this time.
    pub fn lasting_split(&mut self, key: &[u8], of: Collection) -> Result<Option<Tree<Held>>, Fault> {
        let now = self.now();
        let tree = self.split(key, of)?;
        Ok(tree.filter(|tree| tree.least_mark() > now))
    }

    /// How many elements the collection at a key has; 0 if the key is missing. The error of Redis
    /// if the key holds something else.
    pub fn collection_len(&mut self, key: &[u8], of: Collection) -> Result<usize, Fault> {
        match self.transaction.head(self.database, key)? {
            Some(entry) => self.len_of(key, &entry, of),
            None => Ok(0),
        }
    }

    /// How many elements the collection has that was read at a key.
    pub fn len_of(&mut self, key: &[u8], entry: &Entry, of: Collection) -> Result<usize, Fault> {
        let now = self.now();
        match entry.collection(of)? {
            Form::Packed(packed) => {
                if of == Collection::Hash {
                    // Fields can expire, so a hash is looked through.
                    self.transaction.works(packed.bytes().len())?;
                }
                packed.len(now).map_err(|problem| entry.unreadable(problem))
            }
            Form::Split(split) => {
                let all = self.transaction.elements(self.database, key, split)?;
                if all.least_mark() > now {
                    return Ok(all.len());
                }
                self.transaction.works(all.len() * size_of::<u64>())?;
                Ok(all.iter().filter(|held| held.is_live(now)).count())
            }
        }
    }

    /// The collection at a key, without what has expired; an empty one if the key is missing. The
    /// error of Redis if the key holds something else.
    pub fn collection<E: Elements>(&mut self, key: &[u8]) -> Result<Whole<E>, Fault> {
        let Some(entry) = self.get(key)? else {
            return Ok(Whole::default());
        };
        Ok(Whole {
            elements: self.elements(key, &entry)?,
            expire_at: entry.meta.expire_at,
        })
    }

    /// The elements of a collection that was read, without what has expired. The error of Redis if
    /// it is something else.
    pub fn elements<E: Elements>(&mut self, key: &[u8], entry: &Entry) -> Result<E, Fault> {
        let now = self.now();
        match entry.collection(E::OF)? {
            Form::Packed(packed) => {
                self.transaction.works(packed.bytes().len())?;
                let mut elements = E::unpack(packed).map_err(|problem| entry.unreadable(problem))?;
                elements.forget_expired(now);
                Ok(elements)
            }
            Form::Split(split) => {
                let order = E::IN_ORDER.then_some(Order::Name);
                let all = self.transaction.all_of(self.database, key, split, (order, b""))?;
                self.transaction.works(all.by_name().len() * size_of::<Held>())?;
                let mut elements = E::default();
                let is_there = |held: &&Held| held.is_live(now) && !split.excludes(&held.name);
                for held in all.iter(order).filter(is_there) {
                    let added = elements.add(own(&held.name), element_of(key, held)?);
                    added.map_err(|problem| Fault::unreadable_element(key, problem))?;
                }
                elements.all_added();
                Ok(elements)
            }
        }
    }

    /// Gives a key a collection as one record, or deletes the key.
    pub fn put_packed(&mut self, key: &[u8], packed: Option<Packed>, expire_at: Option<u64>) {
        match packed.map(Value::Packed) {
            Some(value) => self.put(key, State { value, expire_at }),
            None => self.delete(key),
        }
    }

    /// A string that a command changes; `None` if the key is missing.
    pub fn current_string(&mut self, key: &[u8]) -> Result<Option<CurrentString>, Fault> {
        let Some(entry) = self.get(key)? else {
            return Ok(None);
        };
        Ok(Some(CurrentString {
            value: entry.string()?,
            expire_at: entry.meta.expire_at,
        }))
    }

    /// As [`Data::current_string`], but a missing key is an empty string.
    pub fn current_string_or_empty(&mut self, key: &[u8]) -> Result<CurrentString, Fault> {
        Ok(self.current_string(key)?.unwrap_or_default())
    }

    /// Whether there is something under this key.
    pub fn exists(&mut self, key: &[u8]) -> Result<bool, Fault> {
        self.transaction.exists(self.database, key)
    }

    /// Gives a key a state.
    pub fn put(&mut self, key: &[u8], state: State) {
        self.transaction.put(self.database, key, state);
    }

    /// Gives a key a string; `expire_at` in milliseconds since the epoch.
    pub fn set(&mut self, key: &[u8], value: Bytes, expire_at: Option<u64>) {
        self.transaction.set(self.database, key, value, expire_at);
    }

    /// Deletes a key.
    pub fn delete(&mut self, key: &[u8]) {
        self.transaction.delete(self.database, key);
    }
}

/// What an element of the split collection at a key holds.
pub fn held_of<E: Named>(key: &[u8], element: Option<Element>) -> Result<Option<E::Held>, Fault> {
    let held = element.map(|element| E::of(&element)).transpose();
    held.map_err(|problem| Fault::unreadable_element(key, problem))
}

/// A copy, padded with zero bytes to at least this length.
pub fn zero_padded(value: &[u8], length: usize) -> Vec<u8> {
    let mut padded = vec![0; value.len().max(length)];
    padded[..value.len()].copy_from_slice(value);
    padded
}
