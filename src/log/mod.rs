//! The log: where the data lives. One small trait, two implementations ([`kafka`], [`embedded`]).
//!
//! The log knows databases only as numbers (each is a topic) and records only as keys with a
//! payload; it knows nothing of RESP, of the store, or of what a command means.
//!
//! Words: one *produces* a record and *follows* the log; an *offset* is a record's place in its
//! partition, a *position* is the next offset to read. Offsets have gaps (compaction, Kafka's own
//! control records).

pub mod broadcast;
pub mod embedded;
pub mod kafka;
pub mod record;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use smallvec::SmallVec;

pub use record::{Group, LogRecord, Record};

use crate::model::Span;

/// One partition of one database's topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TopicPartition {
    pub database: u16,
    pub partition: u32,
}

/// Per partition: the next offset to read.
pub type Positions = BTreeMap<TopicPartition, u64>;

/// The newest record that was read of a partition. By its epoch the log tells whether that record
/// is still there, or whether the log was cut below it and has other records there now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    pub offset: u64,
    /// The epoch of the partition leader that took the record in.
    pub epoch: i32,
}

pub type Marks = BTreeMap<TopicPartition, Mark>;

/// What the log is, per existing database. A store that was filled from another identity is not
/// this log's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicIdentity {
    /// The topic's name (Kafka) or the database's name (embedded), for people.
    pub topic: String,
    /// Changes when the topic is deleted and created again, even under the same name.
    pub id: String,
    pub partitions: u32,
    /// How keys are spread over the partitions: by what function of the key.
    pub partitioner: &'static str,
    /// Neither SET nor DEL is allowed (`--database N=topic,readonly`).
    pub read_only: bool,
    /// Where each partition begins, if any begins after 0: somebody deleted the records before.
    /// Empty for a read-only topic.
    pub starts: Vec<u64>,
}

/// Records that are produced together. More than one record is an atomic group: all or none take
/// effect, also after a crash. Every log stamps them with one [`Group`], so that followers apply
/// them at once.
pub struct Batch {
    pub records: SmallVec<[Record; 1]>,
    /// What must still hold when the records take effect. `None`: they hold whatever else
    /// is in the log.
    pub condition: Option<Condition>,
    pub completion: Arc<dyn Completion>,
}

/// What a batch rests on. On a log with one writer the epoch says all of it. On a log with many
/// writers, the batch answers [`ProduceError::Stale`] if another writer came in between.
#[derive(Default)]
pub struct Condition {
    pub reads: Vec<Read>,
    /// For a batch of several records: its keys that were not read. Nobody else may write one of
    /// these keys between the batch's records. If the records stand together, with nothing between
    /// them, that is certain, and these keys are not checked.
    pub written: Vec<Read>,
    /// Batches produced before this one that it was computed on, or has to come after. If one of
    /// them failed, this batch is stale.
    pub rests_on: SmallVec<[Arc<dyn Completion>; 2]>,
}

/// What the writer knew of a key that its batch was computed on, or that is written with others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Read {
    pub at: TopicPartition,
    /// Of the record. `None`: all keys of the partition. The name of an element without a sub-key
    /// stands for all elements of its collection.
    pub key: Option<Bytes>,
    /// With the name of a collection: only those elements that are written here, and not those that
    /// are removed.
    pub added: Option<Span>,
    /// Every record of the key below this offset was known, except those of the batches that the
    /// condition rests on.
    pub known: u64,
}

/// Called exactly once per batch, from any thread. It must be quick and must not block.
pub trait Completion: Send + Sync {
    /// `Ok` has one entry per record, in the order of [`Batch::records`].
    fn complete(self: Arc<Self>, outcome: Result<&[Appended], ProduceError>);

    /// Prefetch hint, given before a batch of [`Completion::complete`] calls: the completion may
    /// prefetch the memory that it is going to read. It is given to each completion of the batch in
    /// turn, then once more to each of them.
    fn prefetch(&self, _again: bool) {}

    /// True once it was completed with an error. Only asked of those in [`Condition::rests_on`].
    fn has_failed(&self) -> bool {
        false
    }
}

/// How many completions are prefetched at once.
pub const PREFETCHED: usize = 32;

/// Gives all these completions the prefetch hint. They are completed next, one after the other.
pub fn prefetch_all<'c>(completions: impl Iterator<Item = &'c Arc<dyn Completion>> + Clone) {
    for again in [false, true] {
        completions.clone().for_each(|completion| completion.prefetch(again));
    }
}

/// Where the log put a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Appended {
    pub at: TopicPartition,
    pub offset: u64,
    /// Milliseconds since the epoch, as the log stamped it.
    pub timestamp: i64,
}

/// Where an acknowledged record is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Durability {
    /// On this many machines, or more.
    pub copies: u32,
    /// On this machine's disk, fsynced.
    pub on_disk_here: bool,
}

impl Default for Durability {
    fn default() -> Self {
        Durability {
            copies: 1,
            on_disk_here: false,
        }
    }
}

/// Why a batch was not acknowledged. [`NotWritten`](Self::NotWritten) and
/// [`Uncertain`](Self::Uncertain) must never be confused: a client retries the first freely.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProduceError {
    /// Certainly no record of the batch is in the log, nor will be.
    #[error("NOTWRITTEN {0}")]
    NotWritten(String),
    /// It may be in the log, in part or whole, or may still arrive.
    #[error("UNCERTAIN {0}")]
    Uncertain(String),
    /// What the batch rested on did not hold: an older [`Log::epoch`], or its [`Condition`].
    /// Nothing was written. The caller computes it again and produces the result, once everything
    /// up to `after` (a place in the log, if given) has been applied here.
    #[error("NOTWRITTEN what the write rested on has changed")]
    Stale { after: Option<(TopicPartition, u64)> },
}

/// An error of any other call. The text has the cause and what to do about it.
#[derive(Clone, Debug, thiserror::Error)]
pub enum LogError {
    #[error("{0}")]
    Failed(String),
    /// The log does not answer now. It may answer later.
    #[error("{0}")]
    Unreachable(String),
    /// The position is no longer, or not yet, in the log (or the log was truncated). The local
    /// store cannot be continued from there and must be rebuilt.
    #[error("{0}")]
    PositionLost(String),
    /// The topic was deleted, recreated, or got more partitions.
    #[error("{0}")]
    IdentityChanged(String),
}

/// The log does not answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outage {
    /// What cannot be done, and why.
    pub cause: String,
    pub since: SystemTime,
}

/// What a log counts besides records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogCounts {
    /// Nothing.
    None,
    /// How groups of conditional writes ended, each a transaction of Kafka.
    Kafka {
        committed: u64,
        /// Aborted since another writer came first.
        conflicts: u64,
        /// Aborted for other reasons, or never begun.
        failed: u64,
        /// It is not known how the commit ended.
        uncertain: u64,
    },
    Embedded {
        disk_bytes: u64,
        segments: u64,
        compactions: u64,
        fsyncs: u64,
    },
}

/// The shape of both logs. Methods that say *blocking* do I/O and are called off the async workers.
pub trait Log: Send + Sync + 'static {
    /// For people: `kafka 127.0.0.1:9092 topic kv` or `embedded log in ./data/log`.
    fn describe(&self) -> String;

    /// `kafka` or `embedded`.
    fn kind(&self) -> &'static str;

    /// The database's topic, or `None` while it does not exist. Cheap.
    fn identity(&self, database: u16) -> Option<TopicIdentity>;

    /// Creates the database's topic if need be. Blocking.
    fn create(&self, database: u16) -> Result<(), LogError>;

    /// The home partition of a record with this key: that of the user's key. Cheap; the database
    /// exists.
    fn partition(&self, database: u16, key: &[u8]) -> u32;

    /// Largest key + value + headers of one record, bytes.
    fn max_record_bytes(&self, database: u16) -> usize;

    /// How long the log keeps tombstones (`delete.retention.ms`). A store that was away for longer
    /// may have missed deletes. `None`: the log itself reports that ([`LogError::PositionLost`]).
    fn tombstone_retention(&self, _database: u16) -> Option<Duration> {
        None
    }

    /// Where an acknowledged record of the database is kept. Cheap.
    fn durability(&self, _database: u16) -> Durability {
        Durability::default()
    }

    /// True if a batch that fails takes every batch produced after it down with it (or they answer
    /// [`ProduceError::Stale`]). A command may then be computed on any version that is not
    /// acknowledged yet. Other logs chain only batches with a [`Condition`].
    fn chains(&self) -> bool;

    /// Grows each time a batch fails on a log that [chains](Log::chains); always 0 on other logs.
    /// Read it *before* reading the versions that a command is computed on.
    fn epoch(&self) -> u64;

    /// Takes the batch in and returns at once. Batches of one caller that share a key, produced one
    /// after the other, keep their order. If the queue is full or the log is closed, the batch is
    /// completed with `NotWritten`.
    fn produce(&self, batch: Batch, epoch: u64);

    /// The end of the log of every partition of every existing database, also of those that
    /// appeared since. The end is the high watermark: the offset after the newest record. Blocking.
    fn ends(&self, timeout: Duration) -> Result<Positions, LogError>;

    /// Looks for databases that appeared since the log last looked by itself. Blocking.
    fn look(&self, _timeout: Duration) -> Result<(), LogError> {
        Ok(())
    }

    /// Starts reading every partition of every existing database, from the given positions. A
    /// partition that is missing there is read from the start of the log. Databases that appear
    /// later are followed from their start; no further call is needed.
    fn follow(&self, from: &Positions) -> Result<Box<dyn Follower>, LogError>;

    /// The same as [`Log::follow`] for positions whose marks are known. It answers
    /// [`LogError::PositionLost`] also if the log was cut below them and has grown again since.
    fn follow_marked(&self, from: &Positions, _marks: &Marks) -> Result<Box<dyn Follower>, LogError> {
        self.follow(from)
    }

    /// Why a database may hold more than this node can read. Cheap.
    fn incomplete(&self, _database: u16) -> Option<String> {
        None
    }

    /// True if records of the database can vanish from its topic without a later record of their
    /// key. Cheap.
    fn loses_records(&self, _database: u16) -> bool {
        false
    }

    /// Why nothing may be written to a database for now. Cheap.
    fn refuses_writes(&self, _database: u16) -> Option<String> {
        None
    }

    /// Why and since when the log does not answer; `None` while it does. Cheap.
    fn outage(&self) -> Option<Outage> {
        None
    }

    /// What keeps the newest records of this partition from being read, though they are in the log.
    /// With `None`, the same for any partition, if it has lasted for some seconds. Cheap.
    fn held_up(&self, _at: Option<TopicPartition>) -> Option<String> {
        None
    }

    /// For metrics. Cheap.
    fn counts(&self) -> LogCounts {
        LogCounts::None
    }

    /// Stops taking batches in and waits for those under way. Blocking.
    fn close(&self, timeout: Duration);
}

/// Whether the reader of the log knows the record at this place, with this timestamp and key.
pub type Known<'a> = &'a mut dyn FnMut(TopicPartition, u64, i64, &[u8]) -> bool;

/// Reads the log; owned by the one thread that applies it.
pub trait Follower: Send {
    /// Appends the records that have come to `out` (at most some thousand), and waits up to
    /// `timeout` when there are none. Records of one partition come in order. Records of one group
    /// stand together where the log can say so.
    fn poll(&mut self, out: &mut Vec<LogRecord>, timeout: Duration) -> Result<(), LogError>;

    /// The same, but records that `known` returns true for need not be given. Returns how many were
    /// not. Records of a group are given in any case.
    fn poll_news(&mut self, known: Known<'_>, out: &mut Vec<LogRecord>, timeout: Duration) -> Result<u64, LogError>;

    /// The next offset per partition, past gaps. It reaches [`Log::ends`] when everything is read.
    fn positions(&self) -> Positions;

    /// True once the log has confirmed every position that this follower was started with.
    fn is_confirmed(&self) -> bool {
        true
    }

    /// The newest records that were read, where the log has epochs.
    fn marks(&self) -> Marks {
        Marks::new()
    }

    /// Records passed over because they have no key.
    fn skipped(&self) -> u64;
}
