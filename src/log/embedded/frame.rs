//! The bytes of a frame: the unit that is in the log as a whole or not at all.
//!
//! A frame is a header and a body of records. It holds one or more whole batches: a group never
//! spans frames. All checksums start from the segment's salt. So bytes of another segment (say, a
//! copy of a log that a client stored as a value) never pass for a frame of this one.
//!
//! Header, little endian:
//! ```text
//!  0 magic        4      16 base offset   8     40 reserved   4
//!  4 body length  4      24 durable       8     44 header crc 4
//!  8 span         4      32 timestamp     8
//! 12 body crc     4
//! ```
//! The frame stands for the offsets `base..base + span`; after compaction some of them have no
//! record any more. `durable`: when the frame was written, everything below this offset was known
//! to be on the disk. With it recovery tells a write that was never finished from damage to data
//! that was once safe.
//!
//! Record: `flags, offset - base, timestamp - frame's (zigzag), database, [offset - group's first],
//! [type], [expiry], key length, [value length], key, value`; numbers are LEB128, fields in
//! brackets depend on the flags.
//!
//! This module does no I/O.
#![deny(clippy::wildcard_enum_match_arm)]

use crate::log::Record;
use crate::model::{Control, Payload, Type};

pub const HEADER_LEN: usize = 48;
pub const MAGIC: [u8; 4] = *b"hwF\x01";
/// Largest body; batches whose frame would be larger are refused.
pub const MAX_BODY: usize = u32::MAX as usize - HEADER_LEN;
/// A frame takes in more batches until its body has this size.
pub const FRAME_TARGET: usize = 64 * 1024;

const KIND_MASK: u8 = 0b0000_0011;
const KIND_VALUE: u8 = 0;
const KIND_TOMBSTONE: u8 = 1;
const KIND_FLUSH: u8 = 2;
const HAS_EXPIRY: u8 = 0b0000_0100;
const IN_GROUP: u8 = 0b0000_1000;
/// The value is no string: its [`Type::number`] follows.
const HAS_TYPE: u8 = 0b0001_0000;
/// A further flag, like a further [`Type`], needs a new format of the log: see [`super::meta`].
const KNOWN_FLAGS: u8 = KIND_MASK | HAS_EXPIRY | IN_GROUP | HAS_TYPE;

/// The most bytes of a record beside key and value.
pub const RECORD_OVERHEAD: usize = 2 + 7 * 10;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameHeader {
    pub body_len: u32,
    pub span: u32,
    pub base: u64,
    pub durable: u64,
    pub timestamp: i64,
    pub body_crc: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind<'a> {
    Value {
        of: Type,
        value: &'a [u8],
        expire_at: Option<u64>,
    },
    Tombstone,
    Flush,
}

/// A record within a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RawRecord<'a> {
    pub offset: u64,
    pub timestamp: i64,
    pub database: u16,
    /// Offset of the group's first record.
    pub group: Option<u64>,
    pub key: &'a [u8],
    pub kind: Kind<'a>,
}

/// The body is not one that a writer of this format writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("malformed record")]
pub struct Malformed;

pub fn checksum(salt: u32, bytes: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new_with_initial(salt);
    hasher.update(bytes);
    hasher.finalize()
}

impl FrameHeader {
    /// The offset after the frame.
    pub fn end(&self) -> u64 {
        self.base + u64::from(self.span)
    }

    /// Header and body, bytes.
    pub fn frame_len(&self) -> u64 {
        HEADER_LEN as u64 + u64::from(self.body_len)
    }

    /// `None` if this is not a header of a segment with this salt.
    pub fn decode(bytes: &[u8; HEADER_LEN], salt: u32) -> Option<Self> {
        let u32_at = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("4 bytes"));
        let u64_at = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("8 bytes"));
        if bytes[..4] != MAGIC || checksum(salt, &bytes[..44]) != u32_at(44) {
            return None;
        }
        let header = Self {
            body_len: u32_at(4),
            span: u32_at(8),
            base: u64_at(16),
            durable: u64_at(24),
            timestamp: u64_at(32) as i64,
            body_crc: u32_at(12),
        };
        header.base.checked_add(u64::from(header.span)).map(|_| header)
    }

    fn encode(&self, salt: u32) -> [u8; HEADER_LEN] {
        let mut bytes = [0; HEADER_LEN];
        bytes[..4].copy_from_slice(&MAGIC);
        bytes[4..8].copy_from_slice(&self.body_len.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.span.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.body_crc.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.base.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.durable.to_le_bytes());
        bytes[32..40].copy_from_slice(&self.timestamp.to_le_bytes());
        let crc = checksum(salt, &bytes[..44]);
        bytes[44..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }
}

impl<'a> RawRecord<'a> {
    /// `None` for a payload that is only ever read.
    pub fn of(record: &'a Record, offset: u64, timestamp: i64, group: Option<u64>) -> Option<Self> {
        let kind = match &record.payload {
            Payload::Key(Some(state)) => {
                let (of, value) = state.value.kept().ok()?;
                Kind::Value {
                    of,
                    value,
                    expire_at: state.expire_at,
                }
            }
            Payload::Key(None) => Kind::Tombstone,
            Payload::Control(Control::Flush) => Kind::Flush,
            Payload::Control(Control::Function(Some(text))) => Kind::Value {
                of: Type::String,
                value: text,
                expire_at: None,
            },
            Payload::Control(Control::Function(None)) => Kind::Tombstone,
            // One version writes and reads this log: a feature that it does not know is a flag.
            Payload::Control(Control::Features(_) | Control::Passed | Control::Unknown) => return None,
        };
        Some(Self {
            offset,
            timestamp,
            database: record.to.database,
            group,
            key: &record.key,
            kind,
        })
    }
}

/// Appends one frame to a buffer.
pub struct FrameBuilder {
    start: usize,
    base: u64,
    timestamp: i64,
}

impl FrameBuilder {
    pub fn begin(out: &mut Vec<u8>, base: u64, timestamp: i64) -> Self {
        let start = out.len();
        out.resize(start + HEADER_LEN, 0);
        Self { start, base, timestamp }
    }

    pub fn base(&self) -> u64 {
        self.base
    }

    pub fn body_len(&self, out: &[u8]) -> usize {
        out.len() - self.start - HEADER_LEN
    }

    /// Records come in ascending order of their offsets.
    pub fn push(&self, out: &mut Vec<u8>, record: &RawRecord<'_>) {
        let (mut flags, of, expire_at, value) = match record.kind {
            Kind::Value { of, value, expire_at } => (KIND_VALUE, of, expire_at, Some(value)),
            Kind::Tombstone => (KIND_TOMBSTONE, Type::String, None, None),
            Kind::Flush => (KIND_FLUSH, Type::String, None, None),
        };
        flags |= if of == Type::String { 0 } else { HAS_TYPE };
        flags |= if expire_at.is_some() { HAS_EXPIRY } else { 0 };
        flags |= if record.group.is_some() { IN_GROUP } else { 0 };
        out.push(flags);
        put_number(out, record.offset - self.base);
        put_number(out, zigzag(record.timestamp.wrapping_sub(self.timestamp)));
        put_number(out, u64::from(record.database));
        if let Some(first) = record.group {
            put_number(out, record.offset - first);
        }
        if of != Type::String {
            out.push(of.number());
        }
        if let Some(expire_at) = expire_at {
            put_number(out, expire_at);
        }
        put_number(out, record.key.len() as u64);
        if let Some(value) = value {
            put_number(out, value.len() as u64);
        }
        out.extend_from_slice(record.key);
        out.extend_from_slice(value.unwrap_or_default());
    }

    /// `end` is the offset after the frame; the caller keeps the span and the body within 32 bits.
    pub fn finish(self, out: &mut [u8], end: u64, durable: u64, salt: u32) {
        let (header, body) = out[self.start..].split_at_mut(HEADER_LEN);
        let frame = FrameHeader {
            body_len: u32::try_from(body.len()).expect("the caller keeps the body below MAX_BODY"),
            span: u32::try_from(end - self.base).expect("the caller keeps the span within 32 bits"),
            base: self.base,
            durable,
            timestamp: self.timestamp,
            body_crc: checksum(salt, body),
        };
        header.copy_from_slice(&frame.encode(salt));
    }
}

/// Walks the records of a body whose checksum was found right.
pub struct Records<'a> {
    header: FrameHeader,
    rest: &'a [u8],
}

impl<'a> Records<'a> {
    pub fn new(header: FrameHeader, body: &'a [u8]) -> Self {
        Self { header, rest: body }
    }

    fn byte(&mut self) -> Result<u8, Malformed> {
        let (&first, rest) = self.rest.split_first().ok_or(Malformed)?;
        self.rest = rest;
        Ok(first)
    }

    fn number(&mut self) -> Result<u64, Malformed> {
        let mut number = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            let bits = u64::from(byte & 0x7f);
            if shift == 63 && bits > 1 {
                return Err(Malformed);
            }
            number |= bits << shift;
            if byte & 0x80 == 0 {
                return Ok(number);
            }
        }
        Err(Malformed)
    }

    fn length(&mut self) -> Result<usize, Malformed> {
        usize::try_from(self.number()?).map_err(|_| Malformed)
    }

    fn bytes(&mut self, len: usize) -> Result<&'a [u8], Malformed> {
        let (bytes, rest) = self.rest.split_at_checked(len).ok_or(Malformed)?;
        self.rest = rest;
        Ok(bytes)
    }

    fn record(&mut self) -> Result<RawRecord<'a>, Malformed> {
        let flags = self.byte()?;
        if flags & !KNOWN_FLAGS != 0 {
            return Err(Malformed);
        }
        let offset = self
            .header
            .base
            .checked_add(self.number()?)
            .filter(|&o| o < self.header.end());
        let offset = offset.ok_or(Malformed)?;
        let timestamp = self.header.timestamp.wrapping_add(unzigzag(self.number()?));
        let database = u16::try_from(self.number()?).map_err(|_| Malformed)?;
        let group = match flags & IN_GROUP {
            0 => None,
            _ => Some(offset.checked_sub(self.number()?).ok_or(Malformed)?),
        };
        let of = match flags & HAS_TYPE {
            0 => Type::String,
            _ => Type::of_number(self.byte()?).ok_or(Malformed)?,
        };
        let expire_at = match flags & HAS_EXPIRY {
            0 => None,
            _ => Some(self.number()?),
        };
        let key_len = self.length()?;
        let kind = flags & KIND_MASK;
        let value_len = if kind == KIND_VALUE { self.length()? } else { 0 };
        let key = self.bytes(key_len)?;
        let kind = match kind {
            KIND_VALUE => Kind::Value {
                of,
                value: self.bytes(value_len)?,
                expire_at,
            },
            KIND_TOMBSTONE => Kind::Tombstone,
            KIND_FLUSH => Kind::Flush,
            _ => return Err(Malformed),
        };
        Ok(RawRecord {
            offset,
            timestamp,
            database,
            group,
            key,
            kind,
        })
    }
}

impl<'a> Iterator for Records<'a> {
    type Item = Result<RawRecord<'a>, Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let record = self.record();
        if record.is_err() {
            self.rest = &[];
        }
        Some(record)
    }
}

fn put_number(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

fn zigzag(number: i64) -> u64 {
    ((number << 1) ^ (number >> 63)) as u64
}

fn unzigzag(number: u64) -> i64 {
    (number >> 1) as i64 ^ -((number & 1) as i64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A version that adds to this raises the format of `meta` before it writes the first one.
    #[test]
    fn what_a_record_can_hold_belongs_to_format_1() {
        assert_eq!(KNOWN_FLAGS, 0b0001_1111);
        let types = (0..=u8::MAX).filter(|number| Type::of_number(*number).is_some());
        assert_eq!(types.collect::<Vec<_>>(), [0, 1, 2, 3, 4, 5, 7, 9, 10, 11, 12, 13]);
    }

    #[derive(Clone, Debug)]
    struct Owned {
        gap: u64,
        timestamp: i64,
        database: u16,
        in_group: bool,
        key: Vec<u8>,
        value: Option<Vec<u8>>,
        expire_at: Option<u64>,
        flush: bool,
    }

    prop_compose! {
        fn owned()(
            gap in 0u64..300, timestamp in any::<i64>(), database in any::<u16>(), in_group in any::<bool>(),
            key in prop::collection::vec(any::<u8>(), 0..200),
            value in prop::option::of(prop::collection::vec(any::<u8>(), 0..300)),
            expire_at in prop::option::of(any::<u64>()), flush in any::<bool>(),
        ) -> Owned {
            Owned { gap, timestamp, database, in_group, key, value, expire_at, flush }
        }
    }

    /// The records, and the offset after them.
    fn raw(owned: &[Owned], base: u64) -> (Vec<RawRecord<'_>>, u64) {
        let mut next = base;
        let records = owned
            .iter()
            .map(|o| {
                let offset = next + o.gap;
                next = offset + 1;
                let kind = match &o.value {
                    Some(value) => Kind::Value {
                        of: Type::of_number(value.first().map_or(0, |byte| byte % 4)).expect("four types"),
                        value,
                        expire_at: o.expire_at,
                    },
                    None if o.flush => Kind::Flush,
                    None => Kind::Tombstone,
                };
                RawRecord {
                    offset,
                    timestamp: o.timestamp,
                    database: o.database,
                    group: o.in_group.then_some(base),
                    key: &o.key,
                    kind,
                }
            })
            .collect();
        (records, next)
    }

    proptest! {
        #[test]
        fn what_was_encoded_is_decoded(
            owned in prop::collection::vec(owned(), 0..20), base in 0u64..1 << 60, timestamp in any::<i64>(),
            durable in any::<u64>(), salt in any::<u32>(), before in 0usize..5,
        ) {
            let (records, end) = raw(&owned, base);
            let mut out = vec![9; before];
            let frame = FrameBuilder::begin(&mut out, base, timestamp);
            for record in &records {
                frame.push(&mut out, record);
            }
            frame.finish(&mut out, end, durable, salt);
            let bytes = &out[before..];
            let header_bytes: &[u8; HEADER_LEN] = bytes[..HEADER_LEN].try_into().expect("long enough");
            let header = FrameHeader::decode(header_bytes, salt).expect("a header");
            prop_assert_eq!((header.base, header.end(), header.durable), (base, end, durable));
            prop_assert_eq!(header.frame_len(), bytes.len() as u64);
            prop_assert_eq!(header.body_crc, checksum(salt, &bytes[HEADER_LEN..]));
            prop_assert_eq!(FrameHeader::decode(header_bytes, salt ^ 1), None);
            let decoded: Result<Vec<_>, _> = Records::new(header, &bytes[HEADER_LEN..]).collect();
            prop_assert_eq!(decoded.expect("well formed"), records);
        }

        #[test]
        fn any_body_is_decoded_or_refused(body in prop::collection::vec(any::<u8>(), 0..300), base in any::<u64>()) {
            let header = FrameHeader {
                body_len: body.len() as u32, span: 0, base, durable: 0, timestamp: 0, body_crc: 0,
            };
            prop_assert!(Records::new(header, &body).count() <= body.len());
        }
    }
}
