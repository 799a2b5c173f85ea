//! Which records go: the newest record of each key, as far as the map knows it, against all records
//! of a segment.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;

use rustc_hash::FxBuildHasher;

use super::{Stop, check_stop, records};
use crate::log::embedded::Shared;
use crate::log::embedded::frame::{Kind, RawRecord};
use crate::log::embedded::segment::{FrameReader, Segment};
use crate::model::{ElementName, Split, Type, Version, is_control};
use bytes::Bytes;

/// Which records go.
pub(super) struct Rule {
    /// 128 bits of two keyed hashes stand for database and key. SipHash is a hash that no client
    /// can make collide.
    hasher: RandomState,
    seed: u64,
    newest: HashMap<[u64; 2], u64, FxBuildHasher>,
    /// Of the keys whose newest record is the head of a split collection: its version. Elements
    /// before that record go if they are of another version.
    heads: HashMap<[u64; 2], Version, FxBuildHasher>,
    /// Those of these heads that exclude elements of their own version.
    bounded: HashMap<[u64; 2], Split, FxBuildHasher>,
    /// Per database: the newest flush marker among the new records.
    flushed: HashMap<u16, u64>,
    /// The map knows every record from the last pass up to here; records from here on are not
    /// judged.
    pub(super) covered: u64,
    /// Tombstones and markers below this offset go.
    pub(super) purge_below: u64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Keep,
    /// Kept only because it is too early to remove it.
    KeepDeletion,
    Hidden,
    Purge,
}

impl Rule {
    /// Reads the records since the last pass, as far as the map has room.
    pub(super) fn gather(shared: &Shared, segments: &[Arc<Segment>], from: u64, end: u64) -> Result<Self, Stop> {
        let mut rule = Self {
            hasher: RandomState::new(),
            seed: rand::random(),
            newest: HashMap::default(),
            heads: HashMap::default(),
            bounded: HashMap::default(),
            flushed: HashMap::new(),
            covered: end,
            purge_below: 0,
        };
        let first = segments
            .partition_point(|segment| segment.base <= from)
            .saturating_sub(1);
        for segment in segments.iter().skip(first) {
            let mut reader = FrameReader::new(segment.clone(), from);
            while let Some(frame) = reader.next()? {
                check_stop(shared)?;
                for record in records(segment, &frame) {
                    let record = record?;
                    if record.offset >= from && !rule.add(&record, shared.options.compaction.max_keys) {
                        rule.covered = record.offset;
                        return Ok(rule);
                    }
                }
            }
        }
        Ok(rule)
    }

    /// Adds a record; returns false if the map is full.
    fn add(&mut self, record: &RawRecord<'_>, max_keys: usize) -> bool {
        if record.kind == Kind::Flush {
            self.flushed.insert(record.database, record.offset);
            return true;
        }
        let name = self.name(record.database, record.key);
        if self.newest.len() >= max_keys && !self.newest.contains_key(&name) {
            return false;
        }
        self.newest.insert(name, record.offset);
        if !self.heads.is_empty() {
            self.heads.remove(&name);
            self.bounded.remove(&name);
        }
        if let Kind::Value {
            of: Type::Split(of),
            value,
            ..
        } = record.kind
            && let Some(split) = Split::kept(of, Bytes::copy_from_slice(value))
        {
            self.heads.insert(name, split.version());
            if !split.bounds().is_none() {
                self.bounded.insert(name, split);
            }
        }
        true
    }

    fn name(&self, database: u16, key: &[u8]) -> [u64; 2] {
        let seed = self.seed ^ u64::from(database);
        let keyed = self.hasher.hash_one((database, key));
        [keyed, xxhash_rust::xxh3::xxh3_64_with_seed(key, seed)]
    }

    /// True for an element that a later record of the user's key has ended: it is no head, or one
    /// of another version, or one that excludes the element.
    fn is_orphan(&self, record: &RawRecord<'_>) -> bool {
        let Some(element) = ElementName::parse(record.key) else {
            return false;
        };
        let name = self.name(record.database, element.key);
        self.newest.get(&name).is_some_and(|newest| record.offset < *newest)
            && match self.heads.get(&name) {
                Some(version) if *version == element.version => {
                    let split = self.bounded.get(&name);
                    split.is_some_and(|split| split.excludes(element.sub_key))
                }
                _ => true,
            }
    }

    fn judge(&self, record: &RawRecord<'_>) -> Verdict {
        if record.offset >= self.covered {
            return Verdict::Keep;
        }
        let is_flush = record.kind == Kind::Flush;
        if (is_flush || !is_control(record.key))
            && self
                .flushed
                .get(&record.database)
                .is_some_and(|&flush| record.offset < flush)
        {
            return Verdict::Hidden;
        }
        if matches!(record.kind, Kind::Value { .. } | Kind::Tombstone)
            && self
                .newest
                .get(&self.name(record.database, record.key))
                .is_some_and(|&newest| record.offset < newest)
        {
            return Verdict::Hidden;
        }
        if self.is_orphan(record) {
            return Verdict::Hidden;
        }
        match record.kind {
            Kind::Value { .. } => Verdict::Keep,
            Kind::Tombstone | Kind::Flush if record.offset < self.purge_below => Verdict::Purge,
            Kind::Tombstone | Kind::Flush => Verdict::KeepDeletion,
        }
    }
}

/// What a segment would be after the pass.
#[derive(Default)]
pub(super) struct Looked {
    /// Bytes of the frames now, and (an estimate) of those that stay.
    pub(super) bytes: u64,
    pub(super) left: u64,
    pub(super) dropped: u64,
    pub(super) purged: u64,
    pub(super) kept_deletions: u64,
    /// One bit per record, in order: whether it goes.
    goes: Vec<u64>,
    records: usize,
}

impl Looked {
    fn note(&mut self, record: &RawRecord<'_>, verdict: Verdict) {
        if self.records.is_multiple_of(64) {
            self.goes.push(0);
        }
        match verdict {
            Verdict::Keep => self.left += record_bytes(record),
            Verdict::KeepDeletion => {
                self.left += record_bytes(record);
                self.kept_deletions += record_bytes(record);
            }
            Verdict::Hidden | Verdict::Purge => {
                self.goes[self.records / 64] |= 1 << (self.records % 64);
                self.dropped += 1;
            }
        }
        self.purged += u64::from(verdict == Verdict::Purge);
        self.records += 1;
    }

    pub(super) fn goes(&self, record: usize) -> bool {
        self.goes
            .get(record / 64)
            .is_some_and(|bits| bits & 1 << (record % 64) != 0)
    }
}

pub(super) fn look(shared: &Shared, segments: &[Arc<Segment>], rule: &Rule) -> Result<Vec<Looked>, Stop> {
    let mut all = Vec::with_capacity(segments.len());
    for segment in segments {
        let mut looked = Looked {
            bytes: segment.readable(),
            ..Looked::default()
        };
        let mut reader = FrameReader::new(segment.clone(), 0);
        while let Some(frame) = reader.next()? {
            check_stop(shared)?;
            for record in records(segment, &frame) {
                let record = record?;
                looked.note(&record, rule.judge(&record));
            }
        }
        all.push(looked);
    }
    Ok(all)
}

fn record_bytes(record: &RawRecord<'_>) -> u64 {
    const ABOUT: usize = 12;
    let value = match record.kind {
        Kind::Value { value, .. } => value.len(),
        _ => 0,
    };
    (record.key.len() + value + ABOUT) as u64
}
