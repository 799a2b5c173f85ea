//! How a key and its state are kept in an engine. Pure functions. Decoding validates, so damaged
//! bytes are an error and never a wrong value.
#![deny(clippy::wildcard_enum_match_arm)]

use std::sync::Arc;

use bytes::Bytes;
use smallvec::SmallVec;

use crate::model::{ElementName, Meta, Split, Type, Value};
use crate::store::key_hash;

/// A length above this in the head of an entry is damage.
const MAX_VALUE_BYTES: u64 = u32::MAX as u64;

/// Stored bytes that cannot be what was written, with the name of what is damaged.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Damaged(pub &'static str);

const HAS_EXPIRY: u8 = 0x08;
/// Something is due at another time than the key's expiry, see [`Head::due`].
const HAS_DUE: u8 = 0x80;
const KIND_MASK: u8 = 0x07;
const KIND_INLINE: u8 = 1;
const KIND_CUT: u8 = 2;
const KIND_UNREADABLE: u8 = 3;
/// The head of a split collection, inline. Of its type's number the highest bit is left out.
const KIND_HEAD: u8 = 4;
const HEAD_TYPES: u8 = 8;
/// The [`Type::number`], in these bits.
const TYPE_SHIFT: u32 = 4;
const TYPE_MASK: u8 = 0x70;

pub(super) type KeyBuf = SmallVec<[u8; 64]>;

/// Key in the space of entries: `hash(key) ‖ key`.
pub(super) fn store_key(key: &[u8]) -> KeyBuf {
    let mut stored = KeyBuf::with_capacity(8 + key.len());
    stored.extend_from_slice(&key_hash(key).to_be_bytes());
    stored.extend_from_slice(key);
    stored
}

/// Key in the space of elements: the hash of the user's key, then the record's key without what all
/// of them begin with. `None` if it is no element's. With the name of a collection's elements up to
/// the version ([`ElementName::prefix`]), it is what their keys begin with.
pub(super) fn element_key(record_key: &[u8]) -> Option<KeyBuf> {
    let name = ElementName::parse(record_key)?;
    let mut stored = KeyBuf::with_capacity(record_key.len());
    stored.extend_from_slice(&key_hash(name.key).to_be_bytes());
    stored.extend_from_slice(ElementName::own_part(record_key));
    Some(stored)
}

/// The record's key of a key in the space of elements.
pub(super) fn record_key(element_key: &[u8]) -> Result<Bytes, Damaged> {
    let rest = element_key.get(8..).ok_or(Damaged("key of an element"))?;
    ElementName::from_own_part(rest).ok_or(Damaged("key of an element"))
}

/// The hash and the user's key of a key in the space of entries.
pub(super) fn split_store_key(stored: &[u8]) -> Result<(u64, &[u8]), Damaged> {
    let (hash, key) = stored.split_first_chunk::<8>().ok_or(Damaged("key"))?;
    Ok((u64::from_be_bytes(*hash), key))
}

/// Key in the expiry index: `due ‖ hash ‖ key`, so that the earliest comes first.
pub(super) fn expiry_key(due: u64, store_key: &[u8]) -> KeyBuf {
    let mut index = KeyBuf::with_capacity(8 + store_key.len());
    index.extend_from_slice(&due.to_be_bytes());
    index.extend_from_slice(store_key);
    index
}

pub(super) fn split_expiry_key(index: &[u8]) -> Result<(u64, &[u8]), Damaged> {
    let (due, store_key) = index.split_first_chunk::<8>().ok_or(Damaged("expiry index"))?;
    Ok((u64::from_be_bytes(*due), store_key))
}

/// What follows the store key in the key of a piece: partition, offset, number of the piece. The
/// place of the record names its pieces, so those of two versions never mix. The length is fixed,
/// so no other key's pieces match.
pub(super) const PIECE_SUFFIX: usize = 4 + 8 + 4;

pub(super) fn piece_key(store_key: &[u8], partition: u32, offset: u64, piece: u32) -> KeyBuf {
    let mut key = KeyBuf::with_capacity(store_key.len() + PIECE_SUFFIX);
    key.extend_from_slice(store_key);
    key.extend_from_slice(&partition.to_be_bytes());
    key.extend_from_slice(&offset.to_be_bytes());
    key.extend_from_slice(&piece.to_be_bytes());
    key
}

/// The store key, partition, offset and number of a piece.
pub(super) fn split_piece_key(key: &[u8]) -> Result<(&[u8], u32, u64, u32), Damaged> {
    let split = || {
        let (rest, piece) = key.split_last_chunk::<4>()?;
        let (rest, offset) = rest.split_last_chunk::<8>()?;
        let (store_key, partition) = rest.split_last_chunk::<4>()?;
        Some((
            store_key,
            u32::from_be_bytes(*partition),
            u64::from_be_bytes(*offset),
            u32::from_be_bytes(*piece),
        ))
    };
    split().ok_or(Damaged("key of a piece"))
}

/// What an entry says of its key besides the value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Head {
    pub meta: Meta,
    /// When something is to be removed, milliseconds since the epoch: the key, or fields of its
    /// hash. The expiry index has this time.
    pub due: Option<u64>,
}

impl Head {
    pub fn new(meta: Meta, value: &Value) -> Head {
        let due = meta.expire_at.into_iter().chain(value.due()).min();
        Head { meta, due }
    }
}

/// What an entry holds besides its [`Head`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Body<'a> {
    Inline(Type, &'a [u8]),
    /// The length of what is kept; its bytes are in pieces.
    Cut(Type, usize),
    Unreadable(&'a str),
}

impl Body<'_> {
    /// How a value is kept where longer ones are cut into pieces of `piece_bytes`.
    pub fn of(value: &Value, piece_bytes: usize) -> Body<'_> {
        match value.kept() {
            Ok((of, bytes)) if bytes.len() > piece_bytes => Body::Cut(of, bytes.len()),
            Ok((of, bytes)) => Body::Inline(of, bytes),
            Err(reason) => Body::Unreadable(reason),
        }
    }

    /// The split collection of which this is the head.
    pub fn split(&self) -> Option<Split> {
        match self {
            Body::Inline(Type::Split(of), bytes) => Split::kept(*of, Bytes::copy_from_slice(bytes)),
            Body::Inline(..) | Body::Cut(..) | Body::Unreadable(_) => None,
        }
    }

    /// How many pieces the value was cut into.
    pub fn pieces(&self, piece_bytes: usize) -> u32 {
        match self {
            Body::Cut(_, length) => u32::try_from(length.div_ceil(piece_bytes)).unwrap_or(u32::MAX),
            Body::Inline(..) | Body::Unreadable(_) => 0,
        }
    }
}

pub(super) fn encode(Head { meta, due }: &Head, body: &Body<'_>, out: &mut Vec<u8>) {
    out.clear();
    let other_due = due.filter(|_| *due != meta.expire_at);
    let kind = match body {
        Body::Inline(of @ Type::Split(_), _) => KIND_HEAD | (of.number() & !HEAD_TYPES) << TYPE_SHIFT,
        Body::Inline(of, _) => KIND_INLINE | of.number() << TYPE_SHIFT,
        Body::Cut(of, _) => KIND_CUT | of.number() << TYPE_SHIFT,
        Body::Unreadable(_) => KIND_UNREADABLE,
    };
    let has_expiry = if meta.expire_at.is_some() { HAS_EXPIRY } else { 0 };
    let has_due = if other_due.is_some() { HAS_DUE } else { 0 };
    out.push(kind | has_expiry | has_due);
    put_varint(u64::from(meta.partition), out);
    put_varint(meta.offset, out);
    put_varint(zigzag(meta.timestamp), out);
    for time in [meta.expire_at, other_due].into_iter().flatten() {
        put_varint(time, out);
    }
    match body {
        Body::Inline(_, bytes) => out.extend_from_slice(bytes),
        Body::Cut(_, length) => put_varint(*length as u64, out),
        Body::Unreadable(reason) => out.extend_from_slice(reason.as_bytes()),
    }
}

pub(super) fn decode(stored: &[u8]) -> Result<(Head, Body<'_>), Damaged> {
    try_decode(stored).ok_or(Damaged("entry"))
}

fn try_decode(stored: &[u8]) -> Option<(Head, Body<'_>)> {
    let (&flags, mut rest) = stored.split_first()?;
    let head = if flags & KIND_MASK == KIND_HEAD { HEAD_TYPES } else { 0 };
    let of = Type::of_number(head | (flags & TYPE_MASK) >> TYPE_SHIFT)?;
    let meta = Meta {
        partition: u32::try_from(take_varint(&mut rest)?).ok()?,
        offset: take_varint(&mut rest)?,
        timestamp: unzigzag(take_varint(&mut rest)?),
        expire_at: if flags & HAS_EXPIRY != 0 {
            Some(take_varint(&mut rest)?)
        } else {
            None
        },
    };
    let due = match flags & HAS_DUE {
        0 => meta.expire_at,
        _ => Some(take_varint(&mut rest)?),
    };
    let body = match flags & KIND_MASK {
        KIND_INLINE | KIND_HEAD => Body::Inline(of, rest),
        KIND_CUT => {
            let length = take_varint(&mut rest)?;
            if length > MAX_VALUE_BYTES || !rest.is_empty() {
                return None;
            }
            Body::Cut(of, usize::try_from(length).ok()?)
        }
        KIND_UNREADABLE => Body::Unreadable(std::str::from_utf8(rest).ok()?),
        _ => return None,
    };
    Some((Head { meta, due }, body))
}

/// The value of an entry that is not cut.
pub(super) fn uncut_value(body: &Body<'_>) -> Option<Value> {
    match body {
        Body::Inline(of, bytes) => Some(Value::of_kept(*of, Bytes::copy_from_slice(bytes))),
        Body::Unreadable(reason) => Some(Value::Unreadable(Arc::from(*reason))),
        Body::Cut(..) => None,
    }
}

/// LEB128: seven bits a byte, the lowest first.
fn put_varint(mut number: u64, out: &mut Vec<u8>) {
    while number >= 0x80 {
        out.push((number as u8) | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

fn take_varint(input: &mut &[u8]) -> Option<u64> {
    let mut number = 0u64;
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = input.split_first()?;
        *input = rest;
        let bits = u64::from(byte & 0x7f);
        if shift == 63 && bits > 1 {
            return None;
        }
        number |= bits << shift;
        if byte & 0x80 == 0 {
            return Some(number);
        }
    }
    None
}

/// Maps small numbers of either sign to small unsigned ones.
fn zigzag(number: i64) -> u64 {
    ((number << 1) ^ (number >> 63)) as u64
}

fn unzigzag(number: u64) -> i64 {
    ((number >> 1) as i64) ^ -((number & 1) as i64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Collection;

    #[test]
    fn entries_survive_a_round_trip() {
        let mut out = Vec::new();
        for (partition, offset, timestamp, expire_at) in [
            (0, 0, 0, None),
            (1, 127, -1, Some(0)),
            (u32::MAX, u64::MAX, i64::MIN, Some(u64::MAX)),
            (7, 1 << 40, i64::MAX, Some(1_700_000_000_000)),
        ] {
            let meta = Meta {
                partition,
                offset,
                timestamp,
                expire_at,
            };
            for body in [
                Body::Inline(Type::String, b""),
                Body::Inline(Type::Collection(Collection::SortedSet), b"\0\xff"),
                Body::Inline(Type::Split(Collection::Hash), b"version more"),
                Body::Inline(Type::Element, b"\x01\0v"),
                Body::Cut(Type::Collection(Collection::Hash), 512 << 20),
                Body::Unreadable("why"),
            ] {
                for due in [expire_at, Some(7)] {
                    let head = Head { meta, due };
                    encode(&head, &body, &mut out);
                    assert_eq!(decode(&out).unwrap(), (head, body));
                }
            }
        }
    }

    #[test]
    fn nonsense_is_an_error() {
        let too_long = [KIND_CUT, 0, 0, 0, 0x80, 0x80, 0x80, 0x80, 0x10];
        for bad in [
            &[][..],
            &[0],
            &[KIND_INLINE],
            &[KIND_INLINE, 0x80],
            &[0x80, 0, 0, 0, 0],
            &[KIND_INLINE | HAS_DUE, 0, 0, 0],
            &[0x61, 0, 0, 0],
            &[7, 0, 0, 0],
            &too_long,
        ] {
            assert!(decode(bad).is_err(), "{bad:?}");
        }
        assert!(
            decode(&[
                KIND_INLINE,
                0,
                0xff,
                0xff,
                0xff,
                0xff,
                0xff,
                0xff,
                0xff,
                0xff,
                0xff,
                0x7f,
                0
            ])
            .is_err()
        );
    }

    #[test]
    fn keys_split_into_what_they_were_made_of() {
        let stored = store_key(b"k\0");
        assert_eq!(split_store_key(&stored).unwrap(), (key_hash(b"k\0"), &b"k\0"[..]));
        assert_eq!(split_expiry_key(&expiry_key(9, &stored)).unwrap(), (9, &stored[..]));
        assert_eq!(
            split_piece_key(&piece_key(&stored, 1, 2, 3)).unwrap(),
            (&stored[..], 1, 2, 3)
        );
    }
}
