//! The local store: a disposable view of the log, from which reads are answered.
//!
//! One trait, [`Store`]; sled is the default engine ([`sled_store`]). The store knows nothing of the log beyond the
//! numbers it is given (database, partition, offset) and nothing of RESP. Only the applier (`database::applier`) changes it.
//!
//! Keys are kept as `hash(key) ‖ key`, so that [`Store::scan`] walks in hash order and a SCAN cursor is a hash:
//! stateless, valid across restarts.

pub mod checkpoint;
pub mod sled_store;

use bytes::Bytes;

pub use checkpoint::{Checkpoint, DatabaseCheckpoint, PartitionPosition};

/// Stable 64-bit hash of a key (XXH3, <https://github.com/Cyan4973/xxHash/blob/dev/doc/xxhash_spec.md>).
/// It is the order of the store and the meaning of a SCAN cursor: changing it means a rebuild.
pub fn key_hash(key: &[u8]) -> u64 {
    xxhash_rust::xxh3::xxh3_64(key)
}

/// What is known of a key besides its value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Meta {
    pub partition: u32,
    pub offset: u64,
    /// Milliseconds since the epoch, as the log has it.
    pub timestamp: i64,
    /// Absolute expiry, milliseconds since the epoch.
    pub expire_at: Option<u64>,
}

/// A key's state as the log has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub meta: Meta,
    pub value: Value,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    String(Bytes),
    /// The record could not be understood: reading the key answers this reason.
    Unreadable(std::sync::Arc<str>),
}

/// One applied record.
#[derive(Clone, Debug)]
pub struct Change {
    pub database: u16,
    pub partition: u32,
    pub offset: u64,
    pub kind: ChangeKind,
}

#[derive(Clone, Debug)]
pub enum ChangeKind {
    Put {
        key: Bytes,
        entry: Entry,
    },
    Delete {
        key: Bytes,
    },
    /// Hides every entry of this database and partition with a lower offset, at once; the space is freed in the background.
    Flush,
}

#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("store {doing}: {cause}")]
    Engine { doing: &'static str, cause: String },
    #[error("store {doing} {path}: {cause}")]
    Io {
        doing: &'static str,
        path: String,
        cause: std::io::Error,
    },
}

/// A key met by [`Store::scan`]; the value is not read.
pub struct Scanned<'a> {
    pub key: &'a [u8],
    pub meta: Meta,
}

/// The shape of a store engine. Reads may come from any thread at any time; `apply` and `checkpoint` from one thread.
pub trait Store: Send + Sync + 'static {
    fn get(&self, database: u16, key: &[u8]) -> Result<Option<Entry>, StoreError>;

    /// Visits at least `at_least` visible keys (fewer only at the end) in hash order from the first key whose hash is
    /// at least `from`, all keys of one hash together. Returns the hash to continue from, or `None` at the end.
    /// Expired keys are visited too.
    fn scan(
        &self,
        database: u16,
        from: u64,
        at_least: usize,
        visit: &mut dyn FnMut(Scanned<'_>),
    ) -> Result<Option<u64>, StoreError>;

    /// Applies changes in order. An entry is only replaced by one with a higher offset of the same partition;
    /// applying twice is harmless.
    fn apply(&self, changes: &[Change]) -> Result<(), StoreError>;

    /// Number of visible keys (expired ones that have no tombstone yet included). O(1), except after an unclean stop,
    /// when the first call may have to count.
    fn count(&self, database: u16) -> Result<u64, StoreError>;

    /// Number of visible keys with an expiry. O(1) like [`Store::count`].
    fn count_expiring(&self, database: u16) -> Result<u64, StoreError>;

    /// Up to `limit` keys whose expiry is at or before `now` (milliseconds since the epoch), earliest first.
    fn expired(&self, database: u16, now: u64, limit: usize) -> Result<Vec<Bytes>, StoreError>;

    /// Makes everything applied so far durable (flush and fsync), then the checkpoint file itself.
    fn checkpoint(&self, checkpoint: &Checkpoint) -> Result<(), StoreError>;

    /// Removes all entries of a database (its topic is another one now), before it is filled anew.
    fn clear(&self, database: u16) -> Result<(), StoreError>;

    /// Background work for the applying thread when it has nothing else to do: looks at about `budget` entries to free what
    /// flushes have hidden, and the like. True if there is more to do.
    fn sweep(&self, budget: usize) -> Result<bool, StoreError>;

    /// Bytes on disk.
    fn disk_bytes(&self) -> u64;
}
