//! The record: the public contract that any other producer or consumer of the topic can rely on.
//! Its description for people is `docs/topic-format.md`.

use bytes::Bytes;

use super::TopicPartition;
use crate::model::Payload;

/// Header with the absolute expiry: milliseconds since the epoch, ASCII decimal.
pub const HEADER_EXPIRE_AT: &str = "redis-expire-at";
/// Header with the value's type; absent means `string`.
pub const HEADER_TYPE: &str = "redis-type";
/// Header of the head of a split collection: its version, as 24 hex digits.
pub const HEADER_SPLIT: &str = "redis-split";
/// Header with the atomic group: `<id> <records>`. The id is 32 hex digits; then comes how many
/// records of the group are in this partition, in ASCII decimal. If the group has records in other
/// partitions, ` <topic>/<partition>:<records>,…` follows, with each of those.
pub const HEADER_GROUP: &str = "redis-group";
/// Header that, together with a key of [`FLUSH_KEY`], marks a control record.
pub const HEADER_CONTROL: &str = "redis-control";
/// Key of the flush marker.
pub const FLUSH_KEY: &[u8; 16] = b"\0highwater:flush";

/// Upper estimate of the bytes that a record's headers take.
pub const HEADER_BYTES: usize = 160;

/// How this version reads records. It grows when a record is taken for something else than before:
/// a local store that another version filled is then rebuilt.
pub const READS: u32 = 6;

/// A record to be produced.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    pub to: TopicPartition,
    pub key: Bytes,
    pub payload: Payload,
}

/// The atomic group a record belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Group {
    pub id: u128,
    /// How many records of the group its follower reads, in all partitions together.
    pub records: u32,
}

/// A record that was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogRecord {
    pub at: TopicPartition,
    pub offset: u64,
    /// Milliseconds since the epoch.
    pub timestamp: i64,
    pub key: Bytes,
    pub payload: Payload,
    pub group: Option<Group>,
}

impl Record {
    /// Bytes of key, value and headers, as [`super::Log::max_record_bytes`] counts them (an upper
    /// estimate).
    pub fn size(&self) -> usize {
        self.key.len() + self.payload.bytes() + HEADER_BYTES
    }
}
