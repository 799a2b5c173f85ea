//! The local store: a disposable view of the log, from which reads are answered.
//!
//! Users of the store know the trait [`Store`]. [`entries`] implements it, once for all engines. An
//! engine has ordered maps of bytes ([`engine`]): [`sled_engine`] by default, or [`fjall_engine`].
//! The store knows nothing of the log beyond the numbers it is given (database, partition, offset),
//! and nothing of RESP. Only the applier (`database::applier`) changes it.
//!
//! Keys are kept as `hash(key) ‖ key`, so [`Store::scan`] goes in hash order and a SCAN cursor is a
//! hash: stateless, and valid across restarts.

pub mod checkpoint;
mod engine;
mod entries;
mod entry;
mod files;
mod fjall_engine;
mod renewing;
mod sled_engine;
#[cfg(test)]
mod tests;

use std::any::Any;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;

use crate::model::{Change, Entry, Meta, Version};
use crate::supervise;
use engine::Engine;
use files::{io_error, remove_directory};
use fjall_engine::FjallEngine;
use sled_engine::SledEngine;

pub use checkpoint::{Checkpoint, DatabaseCheckpoint, PartitionPosition};
pub use files::directory_bytes;

/// Stable 64-bit hash of a key (XXH3,
/// <https://github.com/Cyan4973/xxHash/blob/dev/doc/xxhash_spec.md>). It is the order of the store
/// and the meaning of a SCAN cursor: if it changes, the store must be rebuilt.
pub fn key_hash(key: &[u8]) -> u64 {
    xxhash_rust::xxh3::xxh3_64(key)
}

#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("store {doing}: {cause}")]
    Engine { doing: &'static str, cause: String },
    /// What is on disk is not what was written: none of it can be trusted, see [`Store::renew`].
    #[error("store {doing}: {cause}")]
    Damaged { doing: &'static str, cause: String },
    /// See [`Store::get_up_to`].
    #[error("store: the value is larger than the caller wants to read")]
    Larger,
    #[error("store {doing} {path}: {cause}")]
    Io {
        doing: &'static str,
        path: String,
        cause: std::io::Error,
    },
}

/// A key found by [`Store::scan`]. The value is not read.
pub struct Scanned<'a> {
    pub key: &'a [u8],
    pub meta: Meta,
}

/// What a store engine does. Reads may come from any thread at any time, `apply` and `checkpoint`
/// from one thread.
pub trait Store: Send + Sync + 'static {
    fn get(&self, database: u16, key: &[u8]) -> Result<Option<Entry>, StoreError> {
        self.get_up_to(database, key, usize::MAX)
    }

    /// As [`Store::get`], for a caller that has no time for a value of more than `most` bytes. An
    /// engine that knows the length before it reads such a value refuses with
    /// [`StoreError::Larger`].
    fn get_up_to(&self, database: u16, key: &[u8], most: usize) -> Result<Option<Entry>, StoreError>;

    /// Visits at least `at_least` visible keys in hash order, from the first key whose hash is at
    /// least `from`. All keys of one hash are visited together. Fewer are visited at the end, or
    /// where very many entries are hidden. Returns the hash to continue from, or `None` at the end.
    /// Expired keys are visited too.
    fn scan(
        &self,
        database: u16,
        from: u64,
        at_least: usize,
        visit: &mut dyn FnMut(Scanned<'_>),
    ) -> Result<Option<u64>, StoreError>;

    /// Visits up to `at_most` elements of a split collection, given by the user's key and its
    /// version, in the order of their sub-keys, from this sub-key on. Returns the sub-key to
    /// continue from, or `None` at the end. Elements without a head are visited too.
    fn elements(
        &self,
        database: u16,
        of: (&[u8], Version),
        from: &[u8],
        at_most: usize,
        visit: &mut dyn FnMut(&[u8], Entry),
    ) -> Result<Option<Bytes>, StoreError>;

    /// The highest sub-key of such a collection within a range, whose end is excluded.
    fn highest_element(
        &self,
        database: u16,
        of: (&[u8], Version),
        range: (&[u8], &[u8]),
    ) -> Result<Option<Bytes>, StoreError>;

    /// Up to `limit` split collections with elements here that have no head, or that the head
    /// excludes: the user's key and the version. The head has gone, or is on its way, or has
    /// bounds.
    fn orphans(&self, database: u16, limit: usize) -> Result<Vec<(Bytes, Version)>, StoreError>;

    /// Visits up to `at_most` elements of such a collection that do not exist by the head that is
    /// here, also those that a flush has hidden: the sub-key, and the record's place.
    fn orphaned(
        &self,
        database: u16,
        of: (&[u8], Version),
        at_most: usize,
        visit: &mut dyn FnMut(&[u8], Meta),
    ) -> Result<(), StoreError>;

    /// Removes up to `budget` of these elements, where nothing else is going to remove them (see
    /// [`Options::keeps_hidden`]). The collection is no longer listed once it has none. If it is
    /// not `gone` and has no head here, its head is on its way to the store, and nothing is
    /// removed. Returns true if there is more to be done now.
    fn sweep_orphans(&self, database: u16, of: (&[u8], Version), gone: bool, budget: usize)
    -> Result<bool, StoreError>;

    /// As [`Store::scan`], for entries that a flush has hidden.
    fn scan_hidden(
        &self,
        database: u16,
        from: u64,
        at_least: usize,
        visit: &mut dyn FnMut(Scanned<'_>),
    ) -> Result<Option<u64>, StoreError>;

    /// Applies changes in order. An entry is only replaced by one with a higher offset of the same
    /// partition; applying twice is harmless. A hidden entry is only removed by a record of its own
    /// partition, or when its key gets a value.
    ///
    /// A flush hides every entry of its database and partition with a lower offset at once. The
    /// space is freed in the background, or when the tombstones of those entries come
    /// ([`Options::keeps_hidden`]).
    fn apply(&self, changes: &[Change]) -> Result<(), StoreError>;

    /// True if nothing was ever written to the database, or it was cleared since.
    fn is_empty(&self, database: u16) -> Result<bool, StoreError>;

    /// Number of visible keys, including expired ones that have no tombstone yet. O(1), except
    /// after an unclean stop, when the first call may have to count.
    fn count(&self, database: u16) -> Result<u64, StoreError>;

    /// Number of visible keys with an expiry. O(1) like [`Store::count`].
    fn count_expiring(&self, database: u16) -> Result<u64, StoreError>;

    /// Number of entries that a flush has hidden and that still exist. O(1) like [`Store::count`].
    fn count_hidden(&self, database: u16) -> Result<u64, StoreError>;

    /// Up to `limit` keys whose expiry is at or before `now` (milliseconds since the epoch),
    /// earliest first.
    fn expired(&self, database: u16, now: u64, limit: usize) -> Result<Vec<Bytes>, StoreError>;

    /// As [`Store::expired`], and also keys of hashes with fields that are to be removed
    /// ([`Value::due`](crate::model::Value::due)), and the record keys of elements that have
    /// expired. Nothing but these keys is looked at.
    fn due(&self, database: u16, now: u64, limit: usize) -> Result<Vec<Bytes>, StoreError>;

    /// Makes everything applied so far durable (flush and fsync), then the checkpoint file itself.
    fn checkpoint(&self, checkpoint: &Checkpoint) -> Result<(), StoreError>;

    /// Removes all entries of a database whose topic is another one now, before it is filled again.
    fn clear(&self, database: u16) -> Result<(), StoreError>;

    /// Background work for the applying thread when it has nothing else to do. Looks at about
    /// `budget` entries to free those that flushes have hidden (unless the store
    /// [keeps](Options::keeps_hidden) them), and the like. Returns true if there is more to do.
    fn sweep(&self, budget: usize) -> Result<bool, StoreError>;

    /// Bytes on disk.
    fn disk_bytes(&self) -> u64;

    /// The reason if the disk has no room to apply about so many bytes more. Called before the
    /// engine writes: most engines do not survive a full disk.
    fn lacks_room(&self, bytes: u64) -> Option<String>;

    /// The damage that was found, if any. From then on every call fails with
    /// [`StoreError::Damaged`].
    fn damage(&self) -> Option<String>;

    /// Throws away the damaged data and starts empty. The caller sees to it that no read is
    /// answered from the empty store.
    fn renew(&self) -> Result<(), StoreError> {
        Err(StoreError::Engine {
            doing: "begin anew",
            cause: "it is done by the next start".into(),
        })
    }
}

/// The engine that keeps the entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EngineKind {
    Sled,
    Fjall,
}

#[derive(Clone, Debug)]
pub struct Options {
    /// Bound of the engine's page cache. Its own structures come on top: about as much again at
    /// small sizes.
    pub cache_bytes: u64,
    /// Number of databases. Higher numbers are refused. A store that was kept for another number
    /// of databases is rebuilt: what a database's number means may depend on it.
    pub databases: u16,
    /// What a flush has hidden stays until its tombstone comes, so that the writer of those
    /// tombstones finds it ([`Store::scan_hidden`]).
    pub keeps_hidden: bool,
}

/// After passing so many entries a scan returns, even with fewer keys than it was asked for.
const PASSED: usize = 10_000;

pub struct Opened<S: ?Sized = dyn Store> {
    pub store: Arc<S>,
    /// How far the store is. Empty if there was nothing usable.
    pub checkpoint: Checkpoint,
    /// Why an existing store could not be used and is rebuilt.
    pub rebuilt: Option<String>,
}

/// Opens the store in `directory`, or an empty one if there is none of this engine that can be
/// trusted. What another engine kept there is removed.
pub fn open(engine: EngineKind, directory: &Path, options: &Options) -> Result<Opened, StoreError> {
    renewing::Renewing::open(engine, directory, options)
}

fn open_engine(kind: EngineKind, directory: &Path, options: &Options) -> Result<Opened, StoreError> {
    match kind {
        EngineKind::Sled => {
            let replaced = remove_other::<FjallEngine>(directory)?;
            Ok(entries::open::<SledEngine>(directory, options)?.erased(replaced))
        }
        EngineKind::Fjall => {
            let replaced = remove_other::<SledEngine>(directory)?;
            Ok(entries::open::<FjallEngine>(directory, options)?.erased(replaced))
        }
    }
}

/// Removes what another engine kept in the directory. Returns why the store is rebuilt then.
fn remove_other<E: Engine>(directory: &Path) -> Result<Option<String>, StoreError> {
    let mut replaced = None;
    for name in E::FILES.iter().chain([&E::NAME]) {
        let path = directory.join(name);
        match fs::metadata(&path) {
            Ok(found) if found.is_dir() => remove_directory(&path)?,
            Ok(_) => fs::remove_file(&path).map_err(|cause| io_error("remove", &path, cause))?,
            Err(_) => continue,
        }
        replaced = Some(format!("it was kept by {}", E::NAME));
    }
    Ok(replaced)
}

impl<S: Store> Opened<S> {
    /// For callers to which the engine does not matter. `replaced`: what is to be said if the store
    /// is new.
    fn erased(self, replaced: Option<String>) -> Opened {
        Opened {
            store: self.store,
            checkpoint: self.checkpoint,
            rebuilt: self.rebuilt.or(replaced),
        }
    }
}

/// Waits until no engine has a store open in this directory. An engine that was dropped has written
/// everything then.
pub fn wait_until_closed(directory: &Path) -> Result<(), StoreError> {
    [SledEngine::lock_file(directory), FjallEngine::lock_file(directory)]
        .iter()
        .filter(|lock| lock.exists())
        .try_for_each(|lock| files::wait_for_lock(lock))
}

fn panic_text(panic: &(dyn Any + Send)) -> String {
    const ENOUGH: usize = 120;
    let first_line = supervise::panic_text(panic).lines().next().unwrap_or_default();
    format!(
        "engine panicked: {}",
        first_line.chars().take(ENOUGH).collect::<String>()
    )
}
