//! Records out: a follower walks the segments with a reader of its own and waits at the end for
//! more.
//!
//! Compaction knows its position (see [`Registry`](super::Registry)): a tombstone that it has still
//! to read stays until it has read it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::Shared;
use super::frame::{Kind, RawRecord, Records};
use super::segment::{Frame, FrameReader, Segment, damage, unreadable};
use crate::log::{Follower, Group, Known, LogError, LogRecord, Positions, TopicPartition};
use crate::model::{Control, Payload, State, Value, function_of, is_control};

/// A poll ends once it has this many records or bytes; the last frame is taken whole.
const POLL_RECORDS: usize = 2048;
const POLL_BYTES: usize = 4 * 1024 * 1024;
/// Smaller values are copied, so that keeping such a value does not keep the bytes that were read
/// around it.
const SHARE_VALUE: usize = 128 * 1024;

pub struct EmbeddedFollower {
    shared: Arc<Shared>,
    reader: FrameReader,
    /// A poll ends once it has this many records.
    pub(super) poll_records: usize,
    /// Per database: records below this offset are not wanted.
    from: Vec<u64>,
    /// Next offset to read, over all databases; compaction looks at it.
    position: Arc<AtomicU64>,
    /// Upper half of the group ids, so that they differ from log to log.
    group_prefix: u128,
}

impl EmbeddedFollower {
    pub fn start(shared: Arc<Shared>, from: Vec<u64>) -> Result<Self, LogError> {
        let mut registry = shared.registry.lock();
        let end = *shared.end.lock();
        let purged_below = registry.meta.purged_below;
        for (database, &position) in from.iter().enumerate() {
            if position > end {
                return Err(LogError::PositionLost(format!(
                    "position {position} of database {database} is past the end of the log ({end})"
                )));
            }
            if position > 0 && position < purged_below {
                return Err(LogError::PositionLost(format!(
                    "deletions after position {position} of database {database} are no longer in the log (removed up \
                     to offset {purged_below})"
                )));
            }
        }
        let start = from.iter().copied().min().unwrap_or(end);
        let position = Arc::new(AtomicU64::new(start));
        registry.followers.retain(|follower| follower.strong_count() > 0);
        registry.followers.push(Arc::downgrade(&position));
        let group_prefix = (registry.meta.id >> 64) << 64;
        drop(registry);
        let segment = shared.segment_of(start);
        Ok(Self {
            reader: FrameReader::new(segment, start),
            shared,
            poll_records: POLL_RECORDS,
            from,
            position,
            group_prefix,
        })
    }

    fn position(&self) -> u64 {
        self.position.load(Ordering::Acquire)
    }

    /// Reads what there is, up to the bounds.
    fn read(&mut self, known: Known<'_>, out: &mut Vec<LogRecord>) -> Result<Advance, LogError> {
        let (start, enough) = (self.position(), out.len() + self.poll_records);
        let (mut bytes, mut passed) = (0, 0);
        while out.len() < enough && bytes < POLL_BYTES {
            match self.reader.next()? {
                Some(frame) => {
                    bytes += frame.body.len();
                    passed += self.take(&frame, known, out)?;
                    self.position.fetch_max(frame.header.end(), Ordering::AcqRel);
                }
                None if self.enter_next_segment()? => {}
                None => break,
            }
        }
        let moved = self.position() > start;
        Ok(Advance { moved, passed })
    }

    /// Returns false at the end of the log.
    fn enter_next_segment(&mut self) -> Result<bool, LogError> {
        let current = self.reader.segment().clone();
        let newest = self
            .shared
            .segments
            .read()
            .last()
            .is_some_and(|last| last.base <= current.base);
        if newest {
            return Ok(false);
        }
        if current.readable() > self.reader.at() {
            // The segment grew before the next one was begun.
            return Ok(true);
        }
        let end = current.compacted.map_or(self.reader.next_offset(), |c| c.end);
        let position = self.position.fetch_max(end, Ordering::AcqRel).max(end);
        let next = self.shared.segment_of(position);
        // Compaction may have merged the current segment with the next one.
        if Arc::ptr_eq(&next, &current) || (next.base < position && next.compacted.is_none()) {
            return Err(damage(
                &current.path,
                self.reader.at(),
                end,
                "its last frames are missing",
            ));
        }
        self.reader = FrameReader::new(next, position);
        Ok(true)
    }

    /// Takes the records of a frame; returns how many of them are known.
    fn take(&self, frame: &Frame, known: Known<'_>, out: &mut Vec<LogRecord>) -> Result<u64, LogError> {
        let (first, mut passed) = (out.len(), 0);
        // The current group: its first offset, and where its records begin in `out`.
        let mut group: Option<(u64, usize)> = None;
        for raw in Records::new(frame.header, &frame.body) {
            let raw = raw.map_err(|e| {
                out.truncate(first);
                unreadable(self.reader.segment(), &frame.header, e)
            })?;
            if group.map(|(id, _)| id) != raw.group {
                self.count_group(group, out);
                group = raw.group.map(|id| (id, out.len()));
            }
            let wanted = self
                .from
                .get(usize::from(raw.database))
                .is_some_and(|&from| raw.offset >= from);
            let at = TopicPartition {
                database: raw.database,
                partition: 0,
            };
            if wanted && raw.group.is_none() && known(at, raw.offset, raw.timestamp, raw.key) {
                passed += 1;
            } else if wanted {
                out.push(self.record(&raw, &frame.body));
            }
        }
        self.count_group(group, out);
        Ok(passed)
    }

    /// Writes into each record of a group how many of them there are.
    fn count_group(&self, group: Option<(u64, usize)>, out: &mut [LogRecord]) {
        let Some((_, first)) = group else { return };
        let members = &mut out[first..];
        let records = members.len() as u32;
        for group in members.iter_mut().filter_map(|member| member.group.as_mut()) {
            group.records = records;
        }
    }

    fn record(&self, raw: &RawRecord<'_>, body: &Bytes) -> LogRecord {
        let (key, payload) = match raw.kind {
            Kind::Value { value, .. } if function_of(raw.key).is_some() => {
                let (key, text) = key_and_value(raw.key, value, body);
                (key, Payload::Control(Control::Function(Some(text))))
            }
            Kind::Tombstone if function_of(raw.key).is_some() => (
                Bytes::copy_from_slice(raw.key),
                Payload::Control(Control::Function(None)),
            ),
            Kind::Value { .. } | Kind::Tombstone if is_control(raw.key) => {
                (Bytes::copy_from_slice(raw.key), Payload::UNKNOWN)
            }
            Kind::Value { of, value, expire_at } => {
                let (key, value) = key_and_value(raw.key, value, body);
                let value = Value::of_kept(of, value);
                (key, Payload::Key(Some(State { value, expire_at })))
            }
            Kind::Tombstone => (Bytes::copy_from_slice(raw.key), Payload::TOMBSTONE),
            Kind::Flush => (Bytes::copy_from_slice(raw.key), Payload::FLUSH),
        };
        LogRecord {
            at: TopicPartition {
                database: raw.database,
                partition: 0,
            },
            offset: raw.offset,
            timestamp: raw.timestamp,
            key,
            payload,
            group: raw.group.map(|first| Group {
                id: self.group_prefix | u128::from(first),
                records: 0,
            }),
        }
    }
}

/// The result of reading.
struct Advance {
    /// The position has moved.
    moved: bool,
    /// Records that were known.
    passed: u64,
}

fn key_and_value(key: &[u8], value: &[u8], body: &Bytes) -> (Bytes, Bytes) {
    if value.len() >= SHARE_VALUE.max(body.len() / 2) {
        return (Bytes::copy_from_slice(key), body.slice_ref(value));
    }
    let mut both = Vec::with_capacity(key.len() + value.len());
    both.extend_from_slice(key);
    both.extend_from_slice(value);
    let mut key_bytes = Bytes::from(both);
    let value_bytes = key_bytes.split_off(key.len());
    (key_bytes, value_bytes)
}

impl Follower for EmbeddedFollower {
    fn poll(&mut self, out: &mut Vec<LogRecord>, timeout: Duration) -> Result<(), LogError> {
        self.poll_news(&mut |_, _, _, _| false, out, timeout).map(drop)
    }

    fn poll_news(&mut self, known: Known<'_>, out: &mut Vec<LogRecord>, timeout: Duration) -> Result<u64, LogError> {
        let deadline = Instant::now() + timeout;
        let before = out.len();
        loop {
            let Advance { moved, passed } = self.read(known, out)?;
            if out.len() > before || passed > 0 {
                return Ok(passed);
            }
            if moved {
                continue;
            }
            let mut end = self.shared.end.lock();
            while *end <= self.position() {
                if self.shared.end_grown.wait_until(&mut end, deadline).timed_out() {
                    return Ok(0);
                }
            }
        }
    }

    fn positions(&self) -> Positions {
        let position = self.position();
        (0..)
            .zip(&self.from)
            .map(|(database, &from)| (TopicPartition { database, partition: 0 }, position.max(from)))
            .collect()
    }

    fn skipped(&self) -> u64 {
        0
    }
}

impl Shared {
    /// The segment that the offset is in, or would be.
    fn segment_of(&self, offset: u64) -> Arc<Segment> {
        let segments = self.segments.read();
        let after = segments.partition_point(|segment| segment.base <= offset);
        segments[after.saturating_sub(1)].clone()
    }
}
