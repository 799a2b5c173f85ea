//! The position file: how far the store is. Written after the store's data is durable, so a position never runs
//! ahead of its data; a store that does not match its file is rebuilt.

use std::collections::BTreeMap;

/// How far the store is, per database.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Checkpoint {
    pub databases: BTreeMap<u16, DatabaseCheckpoint>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DatabaseCheckpoint {
    /// What log this database was filled from, opaque here (cluster id, topic id, partition count).
    pub source: String,
    pub partitions: BTreeMap<u32, PartitionPosition>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PartitionPosition {
    /// Last applied offset + 1.
    pub next_offset: u64,
    /// Milliseconds since the epoch: the store holds everything that the log held at this time.
    pub as_of: u64,
}
