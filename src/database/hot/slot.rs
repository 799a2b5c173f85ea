//! The state of one key in memory: its place in the log, key and value in one block, with a value
//! of up to a kilobyte inside.
#![deny(clippy::wildcard_enum_match_arm)]

use bytes::Bytes;

use super::At;
use super::table::Hashed;
use crate::model::{Entry, Meta, Type, Value};

/// What a slot costs besides its block, bytes (measured roughly: its place in the table, allocator
/// rounding).
pub(super) const BESIDE_BLOCK: usize = 48;

/// What a slot costs besides its key and value, bytes.
pub const SLOT_OVERHEAD: usize = BESIDE_BLOCK + Header::SHORT;

/// Values of up to this many bytes are copied for each reader. Larger ones are shared.
pub const INLINE: usize = 1_024;

/// The place of a key of which no record is known.
pub(super) const NEVER: At = At {
    partition: 0,
    offset: 0,
};

/// The committed state of one key.
pub(super) struct Slot {
    pub(super) body: Body,
    /// The key's hash; see [`HotTier::hash`].
    pub(super) hash: u32,
    /// The key does not exist.
    pub(super) absent: bool,
    /// The store does not have it yet.
    pub(super) unstored: bool,
    /// Its name is in [`Shard::unstored`].
    pub(super) named: bool,
    /// It was read since the eviction hand last passed.
    pub(super) touched: bool,
}

/// A block is the place in the log, timestamp, expiry and length of the key ([`Header`]), then the
/// key.
pub(super) enum Body {
    /// A block, and after it the value, if there is one.
    Inline(Box<[u8]>),
    /// A block, and a large value.
    Apart(Box<(Box<[u8]>, Value)>),
}

/// A million keys need up to two million of these.
const _: () = assert!(size_of::<Option<Slot>>() == 24);

/// The beginning of a slot's block, in one of two forms:
///
/// - short, if the numbers are as small as they nearly always are: 0, or 1 if there is an expiry;
///   length of the key (1 byte), partition (1), offset (6), timestamp (6), expiry (6);
/// - long: 2; partition (4), offset (8), timestamp (8), expiry (8), length of the key (4).
///
/// The first byte's upper half is the type of an inline value ([`Type::number`]).
pub(super) struct Header {
    pub(super) of: Type,
    pub(super) at: At,
    pub(super) timestamp: i64,
    pub(super) expire_at: Option<u64>,
    pub(super) key_len: usize,
}

impl Hashed for Slot {
    fn hash(&self) -> u32 {
        self.hash
    }

    fn behind(&self) -> &[u8] {
        match &self.body {
            Body::Inline(block) => block,
            // The address of the block is not in the slot.
            Body::Apart(_) => &[],
        }
    }
}

impl Slot {
    pub(super) fn new(hash: u32, key: &[u8], at: At, entry: Option<&Entry>) -> Slot {
        let mut slot = Slot {
            body: Body::Inline(Box::default()),
            hash,
            absent: true,
            unstored: false,
            named: false,
            touched: false,
        };
        slot.set(key, at, entry);
        slot
    }

    pub(super) fn set(&mut self, key: &[u8], at: At, entry: Option<&Entry>) {
        let value = entry.map(|entry| &entry.value);
        let (of, inline, apart): (_, &[u8], _) = match value.map(Value::kept) {
            Some(Ok((of, value))) if value.len() <= INLINE => (of, value, None),
            _ => (Type::String, &[], value),
        };
        let header = Header {
            of,
            at,
            timestamp: entry.map_or(0, |entry| entry.meta.timestamp),
            expire_at: entry.and_then(|entry| entry.meta.expire_at),
            key_len: key.len(),
        };
        let len = header.len() + key.len() + inline.len();
        let mut block = match std::mem::replace(&mut self.body, Body::Inline(Box::default())) {
            Body::Inline(block) => block,
            Body::Apart(apart) => apart.0,
        };
        if block.len() != len {
            block = vec![0; len].into_boxed_slice();
        }
        header.write(&mut block);
        let (of_key, of_value) = block[header.len()..].split_at_mut(key.len());
        of_key.copy_from_slice(key);
        of_value.copy_from_slice(inline);
        self.absent = entry.is_none();
        self.body = match apart {
            None => Body::Inline(block),
            Some(value) => Body::Apart(Box::new((block, value.clone()))),
        };
    }

    pub(super) fn block(&self) -> &[u8] {
        match &self.body {
            Body::Inline(block) => block,
            Body::Apart(apart) => &apart.0,
        }
    }

    pub(super) fn header(&self) -> Header {
        Header::read(self.block())
    }

    pub(super) fn at(&self) -> At {
        self.header().at
    }

    pub(super) fn key(&self) -> &[u8] {
        let block = self.block();
        let (start, len) = Header::key_of(block);
        &block[start..][..len]
    }

    pub(super) fn entry(&self) -> Option<Entry> {
        let header = self.header();
        let value = match &self.body {
            _ if self.absent => return None,
            Body::Inline(block) => Value::of_kept(header.of, own(&block[header.len() + header.key_len..])),
            Body::Apart(apart) => apart.1.clone(),
        };
        let meta = Meta {
            partition: header.at.partition,
            offset: header.at.offset,
            timestamp: header.timestamp,
            expire_at: header.expire_at,
        };
        Some(Entry { meta, value })
    }

    /// True if the known state is from this place in the log or a later one.
    pub(super) fn is_from(&self, place: Option<At>) -> bool {
        let at = self.at();
        place.is_some_and(|place| at.partition == place.partition && at.offset >= place.offset)
    }

    /// Bytes.
    pub(super) fn weight(&self) -> usize {
        let apart = match &self.body {
            Body::Apart(apart) => apart.1.bytes(),
            Body::Inline(_) => 0,
        };
        BESIDE_BLOCK + self.block().len() + apart
    }
}

impl Header {
    /// Bytes of the short form without an expiry, with one, and of the long form.
    pub(super) const SHORT: usize = 15;
    pub(super) const SHORT_WITH_EXPIRY: usize = 21;
    pub(super) const LONG: usize = 33;
    /// The bits of the first byte that say which form it is.
    pub(super) const FORM: u8 = 0x0f;
    /// In place of an expiry, in the long form.
    pub(super) const NONE: u64 = u64::MAX;

    pub(super) fn form(&self) -> u8 {
        let is_short = self.key_len <= 0xff
            && self.at.partition <= 0xff
            && (self.at.offset | self.timestamp as u64 | self.expire_at.unwrap_or(0)) < 1 << 48;
        match is_short {
            true => u8::from(self.expire_at.is_some()),
            false => 2,
        }
    }

    pub(super) fn len(&self) -> usize {
        [Header::SHORT, Header::SHORT_WITH_EXPIRY, Header::LONG][usize::from(self.form())]
    }

    /// Where the key stands in a block, and how long it is.
    pub(super) fn key_of(block: &[u8]) -> (usize, usize) {
        match block[0] & Header::FORM {
            0 => (Header::SHORT, usize::from(block[1])),
            1 => (Header::SHORT_WITH_EXPIRY, usize::from(block[1])),
            _ => (Header::LONG, u32::from_le_bytes(part(block, 29)) as usize),
        }
    }

    pub(super) fn read(block: &[u8]) -> Header {
        let (_, key_len) = Header::key_of(block);
        // Reads eight bytes, of which the first two belong to the field before and are shifted out:
        // there may be no bytes after these six.
        let six = |at: usize| u64::from_le_bytes(part(block, at - 2)) >> 16;
        let eight = |at| u64::from_le_bytes(part(block, at));
        // A number that is no type's is never written.
        let of = Type::of_number(block[0] >> 4).unwrap_or(Type::String);
        match block[0] & Header::FORM {
            2 => Header {
                of,
                at: At {
                    partition: u32::from_le_bytes(part(block, 1)),
                    offset: eight(5),
                },
                timestamp: eight(13) as i64,
                expire_at: Some(eight(21)).filter(|expiry| *expiry != Header::NONE),
                key_len,
            },
            form => Header {
                of,
                at: At {
                    partition: u32::from(block[2]),
                    offset: six(3),
                },
                timestamp: six(9) as i64,
                expire_at: (form == 1).then(|| six(15)),
                key_len,
            },
        }
    }

    pub(super) fn write(&self, block: &mut [u8]) {
        let form = self.form();
        block[0] = form | self.of.number() << 4;
        if form == 2 {
            block[1..5].copy_from_slice(&self.at.partition.to_le_bytes());
            block[5..13].copy_from_slice(&self.at.offset.to_le_bytes());
            block[13..21].copy_from_slice(&self.timestamp.to_le_bytes());
            block[21..29].copy_from_slice(&self.expire_at.unwrap_or(Header::NONE).to_le_bytes());
            block[29..33].copy_from_slice(&(self.key_len as u32).to_le_bytes());
            return;
        }
        let mut six = |at: usize, number: u64| block[at..at + 6].copy_from_slice(&number.to_le_bytes()[..6]);
        six(3, self.at.offset);
        six(9, self.timestamp as u64);
        if let Some(expire_at) = self.expire_at {
            six(15, expire_at);
        }
        block[1] = self.key_len as u8;
        block[2] = self.at.partition as u8;
    }
}

/// Some bytes of a header.
fn part<const N: usize>(block: &[u8], at: usize) -> [u8; N] {
    let mut part = [0; N];
    part.copy_from_slice(&block[at..at + N]);
    part
}

/// A copy of these bytes alone. A slice of a read buffer would keep the whole buffer alive.
pub fn own(bytes: &[u8]) -> Bytes {
    Bytes::copy_from_slice(bytes)
}
