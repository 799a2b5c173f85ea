//! fjall behind the [`Store`](super::Store) trait. The reasons for its design, with figures, are in
//! `docs/decisions/store-fjall.md`.
//!
//! One keyspace holds everything. Every change is committed in one atomic batch with the counts and
//! watermarks that go with it. So if a crash takes away some of the newest batches, the rest is
//! whole: the state as it was after some batch, with the checkpoint of that time. [`files`] makes
//! sure that what remains is such a beginning, and nothing else.
//!
//! | key (numbers big-endian) | value |
//! |---|---|
//! | `e` database generation hash | all keys of that hash with their states, see [`Slot`] |
//! | `x` database generation expiry hash | nothing: the expiry index |
//! | `c` database partition | visible keys, those with an expiry, hidden entries |
//! | `f` database partition | entries with a lower offset are hidden |
//! | `g` database | the generation that counts |
//! | `p`, `v`, `w` | checkpoint; format; a walk is not finished |

mod files;
mod slot;
#[cfg(test)]
mod tests;
mod writer;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use arc_swap::ArcSwap;
use bytes::Bytes;
use parking_lot::Mutex;

use super::entry::{self, Damaged};
use super::{Change, Checkpoint, Entry, Meta, Opened, Options, PASSED, Scanned, Store, StoreError, is_gone, key_hash};
use slot::Slot;
use writer::Writer;

pub(super) use files::DIRECTORY;

/// How much the engine holds in memory before it writes a table, by default.
const MEMTABLE: u64 = 64 << 20;

/// The store on fjall. Dropping it makes everything durable and closes the engine.
pub struct FjallStore {
    databases: Vec<Database>,
    writer: Mutex<Writer>,
    engine: Engine,
    /// Why the engine cannot be trusted any more; set once.
    broken: OnceLock<String>,
    directory: PathBuf,
}

#[derive(Clone)]
struct Engine {
    keyspace: fjall::Keyspace,
    db: fjall::Database,
}

/// What readers see of one Redis database.
#[derive(Default)]
struct Database {
    view: ArcSwap<View>,
    keys: AtomicU64,
    expiring: AtomicU64,
    hidden: AtomicU64,
}

#[derive(Clone, Default, PartialEq)]
struct View {
    /// Keys of another generation are not visible.
    generation: u32,
    /// Per partition: entries with a lower offset are hidden.
    flushed_below: Vec<(u32, u64)>,
}

/// What can go wrong inside the engine's calls.
enum Failure {
    Engine(fjall::Error),
    Damaged(&'static str),
    NoSuchDatabase,
    Timeout,
}

impl From<fjall::Error> for Failure {
    fn from(error: fjall::Error) -> Self {
        Failure::Engine(error)
    }
}

impl From<Damaged> for Failure {
    fn from(Damaged(what): Damaged) -> Self {
        Failure::Damaged(what)
    }
}

/// Keys in the engine.
mod key {
    pub fn entry(database: u16, generation: u32, hash: u64) -> Vec<u8> {
        let (database, generation) = (database.to_be_bytes(), generation.to_be_bytes());
        [&b"e"[..], &database, &generation, &hash.to_be_bytes()].concat()
    }

    pub fn expiry(database: u16, generation: u32, expire_at: u64, hash: u64) -> Vec<u8> {
        let (database, generation) = (database.to_be_bytes(), generation.to_be_bytes());
        [
            &b"x"[..],
            &database,
            &generation,
            &expire_at.to_be_bytes(),
            &hash.to_be_bytes(),
        ]
        .concat()
    }

    pub fn of_partition(tag: u8, database: u16, partition: u32) -> Vec<u8> {
        [&[tag][..], &database.to_be_bytes(), &partition.to_be_bytes()].concat()
    }

    pub fn generation(database: u16) -> Vec<u8> {
        [&b"g"[..], &database.to_be_bytes()].concat()
    }

    pub const CHECKPOINT: &[u8] = b"p";
    pub const FORMAT: &[u8] = b"v";
    pub const WALK: &[u8] = b"w";

    /// Database and generation of an entry or of one in the index.
    pub fn owner(key: &[u8]) -> Option<(u16, u32)> {
        let (database, rest) = key.get(1..)?.split_first_chunk::<2>()?;
        let generation = rest.first_chunk::<4>()?;
        Some((u16::from_be_bytes(*database), u32::from_be_bytes(*generation)))
    }

    /// The last eight bytes: the hash.
    pub fn hash(key: &[u8]) -> Option<u64> {
        key.last_chunk::<8>().map(|hash| u64::from_be_bytes(*hash))
    }
}

impl View {
    fn hides(&self, meta: &Meta) -> bool {
        meta.offset < self.flushed_below(meta.partition)
    }

    fn flushed_below(&self, partition: u32) -> u64 {
        let of_partition = self.flushed_below.iter().find(|(of, _)| *of == partition);
        of_partition.map_or(0, |(_, offset)| *offset)
    }
}

impl Engine {
    fn slot(&self, key: &[u8]) -> Result<Option<fjall::Slice>, Failure> {
        Ok(self.keyspace.get(key)?)
    }
}

impl FjallStore {
    /// Opens the store in `directory`, or an empty one if there is none that can be trusted.
    pub fn open(directory: &Path, options: &Options) -> Result<Opened, StoreError> {
        files::open(directory, options)
    }

    fn database(&self, database: u16) -> Result<&Database, Failure> {
        self.databases.get(usize::from(database)).ok_or(Failure::NoSuchDatabase)
    }

    /// Calls into the engine. A panic or damage ends all use of the store.
    fn call<T>(&self, doing: &'static str, call: impl FnOnce() -> Result<T, Failure>) -> Result<T, StoreError> {
        if let Some(reason) = self.broken.get() {
            return Err(StoreError::Damaged {
                doing,
                cause: reason.clone(),
            });
        }
        let other = |cause| Err(StoreError::Engine { doing, cause });
        let damage = match catch_unwind(AssertUnwindSafe(call)) {
            Ok(Ok(done)) => return Ok(done),
            Ok(Err(Failure::NoSuchDatabase)) => return other("no such database".into()),
            Ok(Err(Failure::Timeout)) => return other("the engine did not write its memory to disk in time".into()),
            Ok(Err(Failure::Engine(error))) if files::is_io(&error) => return other(error.to_string()),
            Ok(Err(Failure::Engine(error))) => error.to_string(),
            Ok(Err(Failure::Damaged(what))) => format!("damaged {what}"),
            Err(panic) => super::panic_text(panic.as_ref()),
        };
        let cause = self.give_up(damage);
        Err(StoreError::Damaged { doing, cause })
    }

    /// Ends all use of the store. The next open starts with an empty one.
    fn give_up(&self, damage: String) -> String {
        let cause = match files::mark_broken(&self.directory) {
            Err(error) if !is_gone(&error) => {
                format!("{damage}; delete the store's directory (a mark in it: {error})")
            }
            _ => damage,
        };
        self.broken.get_or_init(|| cause).clone()
    }

    fn try_get(&self, database: u16, key: &[u8]) -> Result<Option<Entry>, Failure> {
        let view = self.database(database)?.view.load();
        let stored = self
            .engine
            .slot(&key::entry(database, view.generation, key_hash(key)))?;
        let Some(state) = stored
            .as_deref()
            .map(|slot| Slot(slot).find(key))
            .transpose()?
            .flatten()
        else {
            return Ok(None);
        };
        let (meta, body) = entry::decode(state)?;
        if view.hides(&meta) {
            return Ok(None);
        }
        let value = entry::uncut_value(&body).ok_or(Failure::Damaged("entry"))?;
        Ok(Some(Entry { meta, value }))
    }

    fn try_scan(
        &self,
        database: u16,
        hidden: bool,
        from: u64,
        at_least: usize,
        visit: &mut dyn FnMut(Scanned<'_>),
    ) -> Result<Option<u64>, Failure> {
        let view = self.database(database)?.view.load_full();
        let (first, last) = (
            key::entry(database, view.generation, from),
            key::entry(database, view.generation, u64::MAX),
        );
        let mut visited = 0;
        for (passed, found) in self.engine.keyspace.range(first..=last).enumerate() {
            let (stored_key, slot) = found.into_inner()?;
            if visited >= at_least || passed >= PASSED {
                return Ok(Some(key::hash(&stored_key).ok_or(Failure::Damaged("key"))?));
            }
            for record in Slot(&slot).records() {
                let (key, state) = record?;
                let (meta, _) = entry::decode(state)?;
                if view.hides(&meta) == hidden {
                    visit(Scanned { key, meta });
                    visited += 1;
                }
            }
        }
        Ok(None)
    }

    fn try_expired(&self, database: u16, now: u64, limit: usize) -> Result<Vec<Bytes>, Failure> {
        let view = self.database(database)?.view.load_full();
        let (first, last) = (
            key::expiry(database, view.generation, 0, 0),
            key::expiry(database, view.generation, now, u64::MAX),
        );
        let mut keys = Vec::new();
        for found in self.engine.keyspace.range(first..=last) {
            let index = found.key()?;
            let (hash, expire_at) = (key::hash(&index), index.get(7..15).and_then(<[u8]>::first_chunk::<8>));
            let (Some(hash), Some(expire_at)) = (hash, expire_at) else {
                return Err(Failure::Damaged("expiry index"));
            };
            let expire_at = Some(u64::from_be_bytes(*expire_at));
            let slot = self.engine.slot(&key::entry(database, view.generation, hash))?;
            for record in slot.iter().flat_map(|slot| Slot(slot).records()) {
                let (key, state) = record?;
                let (meta, _) = entry::decode(state)?;
                if meta.expire_at == expire_at && !view.hides(&meta) {
                    if keys.len() >= limit {
                        return Ok(keys);
                    }
                    keys.push(Bytes::copy_from_slice(key));
                }
            }
        }
        Ok(keys)
    }
}

impl Store for FjallStore {
    fn get_up_to(&self, database: u16, key: &[u8], _: usize) -> Result<Option<Entry>, StoreError> {
        self.call("get", || self.try_get(database, key))
    }

    fn scan(
        &self,
        database: u16,
        from: u64,
        at_least: usize,
        visit: &mut dyn FnMut(Scanned<'_>),
    ) -> Result<Option<u64>, StoreError> {
        self.call("scan", || self.try_scan(database, false, from, at_least, visit))
    }

    fn scan_hidden(
        &self,
        database: u16,
        from: u64,
        at_least: usize,
        visit: &mut dyn FnMut(Scanned<'_>),
    ) -> Result<Option<u64>, StoreError> {
        self.call("scan", || self.try_scan(database, true, from, at_least, visit))
    }

    fn apply(&self, changes: &[Change]) -> Result<(), StoreError> {
        self.call("apply", || self.writer.lock().apply(self, changes))
    }

    fn count(&self, database: u16) -> Result<u64, StoreError> {
        self.call("count", || Ok(self.database(database)?.keys.load(Ordering::Relaxed)))
    }

    fn count_expiring(&self, database: u16) -> Result<u64, StoreError> {
        self.call("count", || {
            Ok(self.database(database)?.expiring.load(Ordering::Relaxed))
        })
    }

    fn count_hidden(&self, database: u16) -> Result<u64, StoreError> {
        self.call("count", || Ok(self.database(database)?.hidden.load(Ordering::Relaxed)))
    }

    fn expired(&self, database: u16, now: u64, limit: usize) -> Result<Vec<Bytes>, StoreError> {
        self.call("find expired keys", || self.try_expired(database, now, limit))
    }

    fn checkpoint(&self, checkpoint: &Checkpoint) -> Result<(), StoreError> {
        self.call("checkpoint", || self.writer.lock().checkpoint(self, checkpoint))
    }

    fn clear(&self, database: u16) -> Result<(), StoreError> {
        self.call("clear", || self.writer.lock().clear(self, database))
    }

    fn sweep(&self, budget: usize) -> Result<bool, StoreError> {
        self.call("sweep", || self.writer.lock().sweep(self, budget))
    }

    fn disk_bytes(&self) -> u64 {
        super::directory_bytes(&self.directory)
    }

    fn lacks_room(&self, bytes: u64) -> Option<String> {
        super::lacks_room(&self.directory, bytes, MEMTABLE)
    }

    fn damage(&self) -> Option<String> {
        self.broken.get().cloned()
    }
}

impl Drop for FjallStore {
    fn drop(&mut self) {
        let flushed = self.call("close", || self.writer.lock().flush_memory(&self.engine));
        if let (Err(error), None) = (flushed, self.broken.get()) {
            // Harmless: the next start reads more of the log again.
            tracing::warn!(%error, "the store could not be closed in order");
        }
    }
}
