//! What a command about data works with: keys and values, and the settings that its reply depends
//! on. It does not know which client asks. So it can be computed again later, and as a part of
//! EXEC.

use bytes::Bytes;

use super::{Fault, Transaction};
use crate::config::Config;
use crate::model::{Collection, Elements, Entry, Packed, State, Value};

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

    /// A key's string; the error of Redis if it holds something else.
    pub fn get_string(&mut self, key: &[u8]) -> Result<Option<Bytes>, Fault> {
        self.transaction.get_string(self.database, key)
    }

    /// As [`Data::get_string`], but counts as a keyspace hit or miss in a command that writes too.
    pub fn read_string(&mut self, key: &[u8]) -> Result<Option<Bytes>, Fault> {
        self.transaction.read_string(self.database, key)
    }

    /// The collection at a key, as it is kept: for a command that looks at a few elements. The
    /// error of Redis if the key holds something else.
    pub fn packed(&mut self, key: &[u8], of: Collection) -> Result<Option<Packed>, Fault> {
        let entry = self.get(key)?;
        entry.map(|entry| entry.packed(of).cloned()).transpose()
    }

    /// How many elements the collection at a key has; 0 if the key is missing. The error of Redis
    /// if the key holds something else.
    pub fn collection_len(&mut self, key: &[u8], of: Collection) -> Result<usize, Fault> {
        let now = self.now();
        let Some(entry) = self.get(key)? else {
            return Ok(0);
        };
        let packed = entry.packed(of)?;
        if of == Collection::Hash {
            // Fields can expire, so a hash is looked through.
            self.transaction.works(packed.bytes().len())?;
        }
        packed.len(now).map_err(|problem| entry.unreadable(problem))
    }

    /// The collection at a key, without what has expired; an empty one if the key is missing. The
    /// error of Redis if the key holds something else.
    pub fn collection<E: Elements>(&mut self, key: &[u8]) -> Result<Whole<E>, Fault> {
        let Some(entry) = self.get(key)? else {
            return Ok(Whole::default());
        };
        Ok(Whole {
            elements: self.elements(&entry)?,
            expire_at: entry.meta.expire_at,
        })
    }

    /// The elements of a collection that was read, without what has expired. The error of Redis if
    /// it is something else.
    pub fn elements<E: Elements>(&mut self, entry: &Entry) -> Result<E, Fault> {
        let packed = entry.packed(E::OF)?;
        self.transaction.works(packed.bytes().len())?;
        let mut elements = E::unpack(packed).map_err(|problem| entry.unreadable(problem))?;
        elements.forget_expired(self.now());
        Ok(elements)
    }

    /// Gives a key a collection. An empty one deletes the key.
    pub fn put_collection<E: Elements>(&mut self, key: &[u8], whole: Whole<E>) {
        match whole.elements.pack() {
            Some(packed) => self.put(
                key,
                State {
                    value: Value::Packed(packed),
                    expire_at: whole.expire_at,
                },
            ),
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

    /// Stores a result, as SUNIONSTORE does: it replaces what the key held before, an expiry too.
    /// An empty result deletes the key, if it is there.
    pub fn store_result<E: Elements>(&mut self, key: &[u8], elements: E) -> Result<(), Fault> {
        match elements.pack() {
            Some(packed) => self.put(
                key,
                State {
                    value: Value::Packed(packed),
                    expire_at: None,
                },
            ),
            None if self.exists(key)? => self.delete(key),
            None => {}
        }
        Ok(())
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

/// A copy, padded with zero bytes to at least this length.
pub fn zero_padded(value: &[u8], length: usize) -> Vec<u8> {
    let mut padded = vec![0; value.len().max(length)];
    padded[..value.len()].copy_from_slice(value);
    padded
}
