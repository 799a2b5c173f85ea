//! The local store: a disposable view of the log, from which reads are answered.
//!
//! One trait, [`Store`]. sled is the default engine ([`sled_store`]), [`fjall_store`] another. The
//! store knows nothing of the log beyond the numbers it is given (database, partition, offset), and
//! nothing of RESP. Only the applier (`database::applier`) changes it.
//!
//! Keys are kept as `hash(key) ‖ key`, so [`Store::scan`] goes in hash order and a SCAN cursor is a
//! hash: stateless, and valid across restarts.

pub mod checkpoint;
mod entry;
pub mod fjall_store;
mod renewing;
pub mod sled_store;
#[cfg(test)]
mod tests;

use std::any::Any;
use std::path::Path;
use std::sync::Arc;
use std::{fs, io};

use bytes::Bytes;

use crate::model::{Change, Entry, Meta};
use crate::room::{KEPT_BY_STORE, Room};
use crate::supervise;

pub use checkpoint::{Checkpoint, DatabaseCheckpoint, PartitionPosition};

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
pub enum Engine {
    Sled,
    Fjall,
}

#[derive(Clone, Debug)]
pub struct Options {
    /// Bound of the engine's page cache. Its own structures come on top: about as much again at
    /// small sizes.
    pub cache_bytes: u64,
    /// Number of databases. Higher numbers are refused.
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
pub fn open(engine: Engine, directory: &Path, options: &Options) -> Result<Opened, StoreError> {
    renewing::Renewing::open(engine, directory, options)
}

fn open_engine(engine: Engine, directory: &Path, options: &Options) -> Result<Opened, StoreError> {
    let (other, of_other) = match engine {
        Engine::Sled => ("fjall", &[fjall_store::DIRECTORY][..]),
        Engine::Fjall => ("sled", &sled_store::FILES[..]),
    };
    let mut replaced = None;
    for name in of_other {
        let path = directory.join(name);
        match fs::metadata(&path) {
            Ok(found) if found.is_dir() => remove_directory(&path)?,
            Ok(_) => fs::remove_file(&path).map_err(|cause| io_error("remove", &path, cause))?,
            Err(_) => continue,
        }
        replaced = Some(format!("it was kept by {other}"));
    }
    let opened = match engine {
        Engine::Sled => sled_store::SledStore::open(directory, options)?.erased(),
        Engine::Fjall => fjall_store::FjallStore::open(directory, options)?,
    };
    Ok(Opened {
        rebuilt: opened.rebuilt.or(replaced),
        ..opened
    })
}

impl<S: Store> Opened<S> {
    /// For callers to which the engine does not matter.
    pub fn erased(self) -> Opened {
        Opened {
            store: self.store,
            checkpoint: self.checkpoint,
            rebuilt: self.rebuilt,
        }
    }
}

/// Whether an error comes from where the process runs, rather than from the contents of the files.
fn is_environment(error: &io::Error) -> bool {
    use io::ErrorKind::{PermissionDenied, QuotaExceeded, ReadOnlyFilesystem, StorageFull};
    matches!(
        error.kind(),
        PermissionDenied | ReadOnlyFilesystem | StorageFull | QuotaExceeded
    ) || matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE | libc::ENOMEM))
}

/// Whether an error says that a file is shorter than it was, or missing.
fn is_gone(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::NotFound)
}

fn io_error(doing: &'static str, path: &Path, cause: io::Error) -> StoreError {
    StoreError::Io {
        doing,
        path: path.display().to_string(),
        cause,
    }
}

fn remove_directory(directory: &Path) -> Result<(), StoreError> {
    match fs::remove_dir_all(directory) {
        Err(cause) if cause.kind() != io::ErrorKind::NotFound => Err(io_error("remove", directory, cause)),
        _ => Ok(()),
    }
}

fn panic_text(panic: &(dyn Any + Send)) -> String {
    const ENOUGH: usize = 120;
    let first_line = supervise::panic_text(panic).lines().next().unwrap_or_default();
    format!(
        "engine panicked: {}",
        first_line.chars().take(ENOUGH).collect::<String>()
    )
}

/// An engine writes its data more than once: to its journal, to a new place for a whole page, and
/// when it tidies up.
const OFTEN_WRITTEN: u64 = 4;

/// The reason if the directory's disk has no room for changes of so many bytes and for what the
/// engine has yet to write.
fn lacks_room(directory: &Path, bytes: u64, unwritten: u64) -> Option<String> {
    // If the disk does not say how much room it has, a write will fail when it is full.
    let room = Room::of(directory).ok()?;
    room.refusal(
        directory,
        bytes.saturating_mul(OFTEN_WRITTEN).saturating_add(unwritten),
        KEPT_BY_STORE,
    )
}

/// Bytes of all files under a directory. Files come and go meanwhile; what cannot be read counts as
/// nothing.
fn directory_bytes(directory: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(directory) else {
        return 0;
    };
    let bytes_of = |entry: fs::DirEntry| match entry.metadata() {
        Ok(metadata) if metadata.is_dir() => directory_bytes(&entry.path()),
        Ok(metadata) => metadata.len(),
        Err(_) => 0,
    };
    entries.flatten().map(bytes_of).sum()
}
