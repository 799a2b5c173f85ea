//! Split collections: a *head* record under the user's key, and one record for each element. So a
//! write of one element is one small record. `docs/topic-format.md` is the contract.
//!
//! The head names a *version*, and so does the name of each element's record. Elements of another
//! version than the head's do not exist. So one record (a tombstone, a string, a head with another
//! version) ends a collection of any size. What is left of it are *orphans*.

use std::fmt;

use bytes::{BufMut, Bytes, BytesMut};

use super::msgpack::Problem;
use super::{Collection, RESERVED};

/// What the record keys of elements begin with.
const ELEMENT: &[u8; 12] = b"\0highwater:e";
/// First byte of an element's value: how the rest is read.
const CODEC: u8 = 1;
const HAS_EXPIRY: u8 = 1;

/// Tells the collections apart that one key has held: the time of its making (milliseconds since
/// the epoch, 6 bytes), and 6 random bytes. It is no counter: when a head's tombstone has been
/// compacted away, nobody remembers the last number.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Version([u8; Version::BYTES]);

impl Version {
    pub const BYTES: usize = 12;

    /// A new one, made at this time (milliseconds since the epoch).
    pub fn new(now: u64) -> Version {
        let mut bytes: [u8; Version::BYTES] = rand::random();
        bytes[..6].copy_from_slice(&now.to_be_bytes()[2..]);
        Version(bytes)
    }

    /// As the header `redis-split` has it: 24 hex digits in lower case.
    pub fn parse(text: &[u8]) -> Option<Version> {
        let (pairs, []) = text.as_chunks::<2>() else {
            return None;
        };
        let pairs: &[[u8; 2]; Version::BYTES] = pairs.try_into().ok()?;
        let digit = |digit: u8| match digit {
            b'0'..=b'9' => Some(digit - b'0'),
            b'a'..=b'f' => Some(digit - b'a' + 10),
            _ => None,
        };
        let mut bytes = [0; Version::BYTES];
        for (byte, [high, low]) in bytes.iter_mut().zip(pairs) {
            *byte = digit(*high)? << 4 | digit(*low)?;
        }
        Some(Version(bytes))
    }

    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The state of a key that holds a split collection: what its head says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Split {
    of: Collection,
    /// The version, then the head's value: what the type keeps there (only streams do), and the
    /// [`Bounds`](super::Bounds).
    bytes: Bytes,
}

impl Split {
    pub fn new(of: Collection, version: Version, metadata: &[u8]) -> Split {
        let mut bytes = BytesMut::with_capacity(Version::BYTES + metadata.len());
        bytes.put_slice(&version.0);
        bytes.put_slice(metadata);
        let bytes = bytes.freeze();
        Split { of, bytes }
    }

    /// What [`Split::bytes`] gave, as it comes back from memory or the store. `None` for bytes that
    /// it cannot have given.
    pub fn kept(of: Collection, bytes: Bytes) -> Option<Split> {
        let metadata = bytes.get(Version::BYTES..)?;
        Split::check_bounds(of, metadata).ok()?;
        Some(Split { of, bytes })
    }

    pub fn of(&self) -> Collection {
        self.of
    }

    pub fn version(&self) -> Version {
        let mut version = [0; Version::BYTES];
        version.copy_from_slice(&self.bytes[..Version::BYTES]);
        Version(version)
    }

    /// The head's value in the topic.
    pub fn metadata(&self) -> Bytes {
        self.bytes.slice(Version::BYTES..)
    }

    pub(super) fn metadata_bytes(&self) -> &[u8] {
        &self.bytes[Version::BYTES..]
    }

    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }
}

/// The name of an element's record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ElementName<'k> {
    /// The user's key, which the head has.
    pub key: &'k [u8],
    pub version: Version,
    /// Of a hash the field, of a set or a sorted set the member, of a list the item's
    /// [`order_key`](super::order_key), of a stream its [`StreamPart`](super::StreamPart).
    pub sub_key: &'k [u8],
}

impl<'k> ElementName<'k> {
    /// The parts of a record's key; `None` if it is not the key of an element's record.
    pub fn parse(record_key: &'k [u8]) -> Option<ElementName<'k>> {
        let (len, rest) = length(record_key.strip_prefix(ELEMENT)?)?;
        let (key, rest) = rest.split_at_checked(len)?;
        let (version, sub_key) = rest.split_first_chunk()?;
        Some(ElementName {
            key,
            version: Version(*version),
            sub_key,
        })
    }

    /// What the record keys of a collection's elements begin with.
    pub fn prefix(key: &[u8], version: Version) -> Bytes {
        let sub_key = b"";
        ElementName { key, version, sub_key }.record_key()
    }

    /// A record's key without what all such keys begin with.
    pub fn own_part(record_key: &[u8]) -> &[u8] {
        &record_key[ELEMENT.len()..]
    }

    /// The record's key that has this own part.
    pub fn from_own_part(part: &[u8]) -> Option<Bytes> {
        let record_key = Bytes::from([&ELEMENT[..], part].concat());
        ElementName::parse(&record_key).is_some().then_some(record_key)
    }

    /// The record's key: `\0highwater:e`, length of the user's key (LEB128), the user's key, the
    /// version, the sub-key.
    pub fn record_key(&self) -> Bytes {
        let mut record_key = BytesMut::with_capacity(self.key.len() + self.sub_key.len() + 32);
        record_key.put_slice(ELEMENT);
        put_length(self.key.len(), &mut record_key);
        record_key.put_slice(self.key);
        record_key.put_slice(&self.version.0);
        record_key.put_slice(self.sub_key);
        record_key.freeze()
    }
}

pub(super) fn put_length(mut len: usize, out: &mut impl BufMut) {
    while len >= 0x80 {
        out.put_u8(len as u8 | 0x80);
        len >>= 7;
    }
    out.put_u8(len as u8);
}

/// A length in LEB128, in its shortest form.
pub(super) fn length(bytes: &[u8]) -> Option<(usize, &[u8])> {
    let mut length = 0;
    for (place, byte) in bytes.iter().enumerate().take(5) {
        length |= usize::from(byte & 0x7f) << (7 * place);
        if byte & 0x80 == 0 {
            let is_shortest = place == 0 || *byte != 0;
            return is_shortest.then(|| (length, &bytes[place + 1..]));
        }
    }
    None
}

/// The user's key that decides a record's home partition: that of an element's collection, else the
/// record's own key.
pub fn home_key(record_key: &[u8]) -> &[u8] {
    ElementName::parse(record_key).map_or(record_key, |name| name.key)
}

/// The first 8 bytes of a sub-key as a number. The order of these numbers is that of the sub-keys,
/// but for those that are equal in them.
pub fn place_of(sub_key: &[u8]) -> u64 {
    let mut bytes = [0; 8];
    let len = sub_key.len().min(8);
    bytes[..len].copy_from_slice(&sub_key[..len]);
    u64::from_be_bytes(bytes)
}

/// Sub-keys from one [`place_of`] to another, both included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Span {
    pub from: u64,
    pub to: u64,
}

impl Span {
    pub const ALL: Span = Span { from: 0, to: u64::MAX };

    /// Up to this sub-key.
    pub fn up_to(sub_key: &[u8]) -> Span {
        Span {
            to: place_of(sub_key),
            ..Span::ALL
        }
    }

    /// From this sub-key on.
    pub fn since(sub_key: &[u8]) -> Span {
        Span {
            from: place_of(sub_key),
            ..Span::ALL
        }
    }
}

/// True for the record keys that clients do not see and that a flush does not hide.
pub fn is_control(record_key: &[u8]) -> bool {
    record_key.starts_with(RESERVED) && ElementName::parse(record_key).is_none()
}

/// What an element's record holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Element {
    /// As the topic has it.
    bytes: Bytes,
}

impl Element {
    /// `expire_at`: of a hash field, absolute, milliseconds since the epoch.
    pub fn new(payload: &[u8], expire_at: Option<u64>) -> Element {
        let mut bytes = BytesMut::with_capacity(2 + 8 + payload.len());
        bytes.put_u8(CODEC);
        match expire_at {
            Some(at) => {
                bytes.put_u8(HAS_EXPIRY);
                bytes.put_u64(at);
            }
            None => bytes.put_u8(0),
        }
        bytes.put_slice(payload);
        Element { bytes: bytes.freeze() }
    }

    /// Reads a record's value.
    pub fn parse(bytes: Bytes) -> Result<Element, Problem> {
        let [codec, flags, rest @ ..] = &bytes[..] else {
            return Err("it ends too early");
        };
        if *codec != CODEC {
            return Err("its codec version is not known to this version");
        }
        match flags {
            0 => Ok(Element { bytes }),
            &HAS_EXPIRY => match rest.first_chunk() {
                Some(at) if i64::try_from(u64::from_be_bytes(*at)).is_ok() => Ok(Element { bytes }),
                Some(_) => Err("its expiry is no time in milliseconds"),
                None => Err("it ends too early"),
            },
            _ => Err("it has flags that are not known to this version"),
        }
    }

    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    pub fn expire_at(&self) -> Option<u64> {
        let at = self.bytes[2..].first_chunk()?;
        (self.bytes[1] == HAS_EXPIRY).then(|| u64::from_be_bytes(*at))
    }

    /// The score of a sorted set's member: a double, big endian.
    pub fn score(&self) -> Result<f64, Problem> {
        let payload = self.payload();
        let bytes = payload[..]
            .try_into()
            .map_err(|_| "a score has another length than 8 bytes")?;
        match f64::from_be_bytes(bytes) {
            score if score.is_nan() => Err("a score is not a number"),
            // Minus zero is zero, as in packed sorted sets.
            score => Ok(score + 0.0),
        }
    }

    /// Of a hash the value, of a list the item, of a sorted set the score, of a set nothing; of a
    /// stream see [`stream`](super::stream).
    pub fn payload(&self) -> Bytes {
        let start = if self.bytes[1] == HAS_EXPIRY { 10 } else { 2 };
        self.bytes.slice(start..)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_name_is_read_as_it_was_written(
            key in prop::collection::vec(any::<u8>(), 0..300),
            sub_key in prop::collection::vec(any::<u8>(), 0..50),
            now in 0u64..1 << 48,
        ) {
            let version = Version::new(now);
            let name = ElementName { key: &key, version, sub_key: &sub_key };
            let record_key = name.record_key();
            prop_assert_eq!(ElementName::parse(&record_key), Some(name));
            prop_assert_eq!(home_key(&record_key), &key[..]);
            prop_assert!(!is_control(&record_key));
            prop_assert_eq!(Version::parse(version.to_string().as_bytes()), Some(version));
        }

        #[test]
        fn any_key_is_a_name_of_one_form_or_none(rest in prop::collection::vec(any::<u8>(), 0..40)) {
            let record_key = [&ELEMENT[..], &rest].concat();
            match ElementName::parse(&record_key) {
                Some(name) => prop_assert_eq!(name.record_key(), record_key),
                None => prop_assert!(is_control(&record_key)),
            }
        }

        #[test]
        fn an_element_is_read_as_it_was_written(
            payload in prop::collection::vec(any::<u8>(), 0..50),
            expire_at in prop::option::of(0u64..1 << 63),
        ) {
            let element = Element::new(&payload, expire_at);
            let read = Element::parse(element.bytes().clone()).expect("it is well formed");
            prop_assert_eq!(read.expire_at(), expire_at);
            prop_assert_eq!(read.payload(), payload);
            prop_assert_eq!(read, element);
        }

        #[test]
        fn any_bytes_are_an_element_or_a_problem(bytes in prop::collection::vec(any::<u8>(), 0..20)) {
            if let Ok(element) = Element::parse(bytes.clone().into()) {
                let written = Element::new(&element.payload(), element.expire_at());
                prop_assert_eq!(written.bytes(), &bytes);
            }
        }
    }

    #[test]
    fn versions_begin_with_the_time_and_differ() {
        let [a, b] = [0, 0].map(|_| Version::new(0x0102_0304_0506));
        assert_eq!(a.as_bytes()[..6], [1, 2, 3, 4, 5, 6]);
        assert_ne!(a, b);
        for bad in [
            "",
            "0",
            &"0".repeat(23),
            &"0".repeat(26),
            &"A".repeat(24),
            &"g".repeat(24),
        ] {
            assert_eq!(Version::parse(bad.as_bytes()), None, "{bad}");
        }
    }

    #[test]
    fn the_shortest_length_is_the_only_one() {
        for bad in [&b"\x80\x00"[..], b"\x81\x80\x00k", b"\xff\xff\xff\xff\xff\x01", b"\x80"] {
            let record_key = [&ELEMENT[..], bad, &[0; 40]].concat();
            assert_eq!(ElementName::parse(&record_key), None, "{bad:?}");
        }
        // Too short for a version.
        assert_eq!(ElementName::parse(b"\0highwater:e\x01k01234567890"), None);
    }

    /// What `docs/topic-format.md` shows.
    #[test]
    fn the_examples_of_the_documentation_are_right() {
        let version = Version::parse(b"018bcfe56800a1b2c3d4e5f6").expect("a version");
        let name = ElementName {
            key: b"h",
            version,
            sub_key: b"f",
        };
        let key = b"\x00\x68\x69\x67\x68\x77\x61\x74\x65\x72\x3a\x65\x01\x68\x01\x8b\xcf\xe5\x68\x00\xa1\xb2\xc3\xd4\xe5\xf6\x66";
        assert_eq!(name.record_key()[..], key[..]);
        assert_eq!(Element::new(b"v", None).bytes()[..], *b"\x01\x00\x76");
        assert_eq!(
            Element::new(b"v", Some(1_799_999_593_472)).bytes()[..],
            *b"\x01\x01\x00\x00\x01\xa3\x18\x56\x1c\x00\x76"
        );
        assert_eq!(Element::new(&1.5f64.to_be_bytes(), None).score(), Ok(1.5));
    }
}
