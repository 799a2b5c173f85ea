//! Streams: what the records of a stream say. A stream has no packed form. It is a split collection
//! with elements of several sorts, which the first byte of the sub-key tells apart: entries,
//! groups, entries that a group has delivered and that are not acknowledged yet, and the highest id
//! that XDEL has removed. `docs/topic-format.md` is the contract.
//!
//! Each entry carries its ordinal: how many entries had been added to the stream with it. So the
//! last id and the number of entries added come from the newest entry, and only what removes that
//! one writes them into the head.

use std::fmt;

use bytes::{BufMut, Bytes};

use super::msgpack::{Problem, Reader, put_array, put_bytes};
use super::packed::{part_of, room};
use super::{Bounds, Element, Span, Split, place_of};

/// The id of an entry: a time in milliseconds, and a number that tells entries of one time apart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StreamId {
    pub ms: u64,
    pub seq: u64,
}

impl StreamId {
    pub const MIN: StreamId = StreamId { ms: 0, seq: 0 };
    pub const MAX: StreamId = StreamId {
        ms: u64::MAX,
        seq: u64::MAX,
    };
    const BYTES: usize = 16;

    /// The lowest id that is higher.
    pub fn next(self) -> Option<StreamId> {
        match self.seq.checked_add(1) {
            Some(seq) => Some(StreamId { seq, ..self }),
            None => self.ms.checked_add(1).map(|ms| StreamId { ms, seq: 0 }),
        }
    }

    /// The highest id that is lower.
    pub fn previous(self) -> Option<StreamId> {
        match self.seq.checked_sub(1) {
            Some(seq) => Some(StreamId { seq, ..self }),
            None => self.ms.checked_sub(1).map(|ms| StreamId { ms, seq: u64::MAX }),
        }
    }

    fn put(self, out: &mut Vec<u8>) {
        out.put_u64(self.ms);
        out.put_u64(self.seq);
    }

    fn split_from(bytes: &[u8]) -> Option<(StreamId, &[u8])> {
        let (ms, rest) = bytes.split_first_chunk()?;
        let (seq, rest) = rest.split_first_chunk()?;
        let id = StreamId {
            ms: u64::from_be_bytes(*ms),
            seq: u64::from_be_bytes(*seq),
        };
        Some((id, rest))
    }
}

/// As clients see it.
impl fmt::Display for StreamId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.ms, self.seq)
    }
}

/// What an element of a stream is, by its sub-key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StreamPart<'k> {
    /// The highest id that XDEL has removed.
    MaxDeleted,
    Entry(StreamId),
    Group(&'k [u8]),
    /// An entry that this group has delivered and that is not acknowledged.
    Pending(&'k [u8], StreamId),
}

const MAX_DELETED: u8 = b'd';
const ENTRY: u8 = b'e';
const GROUP: u8 = b'g';
const PENDING: u8 = b'p';

impl<'k> StreamPart<'k> {
    /// What the sub-keys of all entries begin with, and what comes behind them.
    pub const ENTRIES: (&'static [u8], &'static [u8]) = (&[ENTRY], &[ENTRY + 1]);
    /// The same of groups.
    pub const GROUPS: (&'static [u8], &'static [u8]) = (&[GROUP], &[GROUP + 1]);

    /// Where entries are.
    pub fn span_of_entries() -> Span {
        Span {
            from: place_of(&[ENTRY]),
            to: place_of(&[ENTRY + 1]) - 1,
        }
    }

    /// True for the sub-key of an entry.
    pub fn is_entry(sub_key: &[u8]) -> bool {
        sub_key.first() == Some(&ENTRY) && sub_key.len() == 1 + StreamId::BYTES
    }

    /// Of a pending entry: `p`, the length of the group's name (4 bytes), the name, the id.
    pub fn sub_key(&self) -> Vec<u8> {
        let mut sub_key = Vec::with_capacity(24);
        match self {
            StreamPart::MaxDeleted => sub_key.push(MAX_DELETED),
            StreamPart::Entry(id) => {
                sub_key.push(ENTRY);
                id.put(&mut sub_key);
            }
            StreamPart::Group(name) => {
                sub_key.push(GROUP);
                sub_key.extend_from_slice(name);
            }
            StreamPart::Pending(group, id) => {
                sub_key.push(PENDING);
                sub_key.put_u32(group.len() as u32);
                sub_key.extend_from_slice(group);
                id.put(&mut sub_key);
            }
        }
        sub_key
    }

    pub fn parse(sub_key: &'k [u8]) -> Result<StreamPart<'k>, Problem> {
        const LENGTH: Problem = "the name of an element of a stream has another length";
        let (sort, rest) = sub_key.split_first().ok_or(LENGTH)?;
        match *sort {
            MAX_DELETED if rest.is_empty() => Ok(StreamPart::MaxDeleted),
            MAX_DELETED => Err(LENGTH),
            ENTRY => match StreamId::split_from(rest) {
                Some((id, [])) => Ok(StreamPart::Entry(id)),
                _ => Err(LENGTH),
            },
            GROUP => Ok(StreamPart::Group(rest)),
            PENDING => {
                let (length, rest) = rest.split_first_chunk().ok_or(LENGTH)?;
                let length = u32::from_be_bytes(*length) as usize;
                let (group, id) = rest.split_at_checked(length).ok_or(LENGTH)?;
                match StreamId::split_from(id) {
                    Some((id, [])) => Ok(StreamPart::Pending(group, id)),
                    _ => Err(LENGTH),
                }
            }
            _ => Err("an element of a stream is of a sort that is not known to this version"),
        }
    }
}

/// What the head of a stream says. It counts while no entry with a higher id is there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StreamHead {
    /// The highest id that the stream has had.
    pub last: StreamId,
    /// How many entries were added, with that one.
    pub added: u64,
    /// The lowest id that an entry can have. What is lower was trimmed.
    pub first: StreamId,
}

impl StreamHead {
    /// Bytes of the last id and the number of entries. [`Bounds`](super::Bounds) come behind.
    pub(super) const BYTES: usize = StreamId::BYTES + 8;

    /// As the head's record has it. A stream that never had an entry has an empty value.
    pub fn metadata(&self) -> Vec<u8> {
        let mut metadata = Vec::new();
        if *self != StreamHead::default() {
            self.last.put(&mut metadata);
            metadata.put_u64(self.added);
        }
        if self.first != StreamId::MIN {
            let low = &StreamPart::Entry(self.first).sub_key();
            Bounds { low, high: None }.put(&mut metadata);
        }
        metadata
    }

    /// What the head of a stream says.
    pub fn of(split: &Split) -> Result<StreamHead, Problem> {
        let metadata = split.metadata();
        if metadata.is_empty() {
            return Ok(StreamHead::default());
        }
        let (last, rest) = StreamId::split_from(&metadata).ok_or("its head has another length")?;
        let added = rest.first_chunk().ok_or("its head has another length")?;
        let Bounds { low, high } = split.bounds();
        let first = match (low, high) {
            (b"", None) => StreamId::MIN,
            (low, None) => match StreamPart::parse(low) {
                Ok(StreamPart::Entry(first)) => first,
                _ => return Err("the bound in its head is no entry"),
            },
            (_, Some(_)) => return Err("its head has an upper bound"),
        };
        Ok(StreamHead {
            last,
            added: u64::from_be_bytes(*added),
            first,
        })
    }
}

/// The highest id that XDEL has removed, as its record has it.
pub fn max_deleted_element(id: StreamId) -> Element {
    let mut payload = Vec::with_capacity(StreamId::BYTES);
    id.put(&mut payload);
    Element::new(&payload, None)
}

pub fn max_deleted_of(element: &Element) -> Result<StreamId, Problem> {
    match StreamId::split_from(&payload_of(element)?) {
        Some((id, [])) => Ok(id),
        _ => Err("the highest removed id has another length"),
    }
}

/// What an entry holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamEntry {
    /// How many entries had been added with it.
    pub ordinal: u64,
    /// A field, its value, the next field, …
    pub fields: Vec<Bytes>,
}

impl StreamEntry {
    /// The record: the ordinal (8 bytes), then an array of fields and values in MessagePack.
    pub fn element(ordinal: u64, fields: &[&[u8]]) -> Element {
        let bytes: usize = fields.iter().map(|part| part.len() + 5).sum();
        let mut payload = Vec::with_capacity(8 + 5 + bytes);
        payload.put_u64(ordinal);
        put_array(fields.len(), &mut payload);
        fields.iter().for_each(|part| put_bytes(part, &mut payload));
        Element::new(&payload, None)
    }

    pub fn of(element: &Element) -> Result<StreamEntry, Problem> {
        let payload = payload_of(element)?;
        let ordinal = ordinal_in(&payload)?;
        let packed = payload.slice(8..);
        let mut reader = Reader::new(&packed);
        let len = reader.array()?;
        if !len.is_multiple_of(2) {
            return Err("an entry has a field without a value");
        }
        let mut fields = Vec::with_capacity(room(len, &reader));
        for _ in 0..len {
            fields.push(part_of(&packed, reader.bytes()?));
        }
        match reader.is_at_end() {
            true => Ok(StreamEntry { ordinal, fields }),
            false => Err("bytes follow after its end"),
        }
    }

    /// The ordinal alone.
    pub fn ordinal_of(element: &Element) -> Result<u64, Problem> {
        ordinal_in(&payload_of(element)?)
    }
}

fn ordinal_in(payload: &[u8]) -> Result<u64, Problem> {
    let ordinal = payload.first_chunk().ok_or("it ends too early")?;
    Ok(u64::from_be_bytes(*ordinal))
}

/// A group of consumers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StreamGroup {
    /// The last entry that it has delivered.
    pub last: StreamId,
    /// How many entries it has read, if that is known.
    pub read: Option<i64>,
}

impl StreamGroup {
    /// The record: the last id (16 bytes), and the number of entries (8 bytes) if it is known.
    pub fn element(&self) -> Element {
        let mut payload = Vec::with_capacity(StreamId::BYTES + 8);
        self.last.put(&mut payload);
        if let Some(read) = self.read {
            payload.put_i64(read);
        }
        Element::new(&payload, None)
    }

    pub fn of(element: &Element) -> Result<StreamGroup, Problem> {
        let payload = payload_of(element)?;
        let (last, rest) = StreamId::split_from(&payload).ok_or("it ends too early")?;
        let read = match rest {
            [] => None,
            count => match count.try_into() {
                Ok(count) => Some(i64::from_be_bytes(count)),
                Err(_) => return Err("a group's record has another length"),
            },
        };
        Ok(StreamGroup { last, read })
    }
}

/// An entry that a group has delivered and that is not acknowledged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamPending {
    /// When it was delivered last, milliseconds since the epoch.
    pub delivered: u64,
    /// How often it was delivered.
    pub count: u64,
    pub consumer: Bytes,
}

impl StreamPending {
    /// The record: the time (8 bytes), the count (8 bytes), the consumer's name.
    pub fn element(&self) -> Element {
        let mut payload = Vec::with_capacity(16 + self.consumer.len());
        payload.put_u64(self.delivered);
        payload.put_u64(self.count);
        payload.extend_from_slice(&self.consumer);
        Element::new(&payload, None)
    }

    pub fn of(element: &Element) -> Result<StreamPending, Problem> {
        let payload = payload_of(element)?;
        let two = StreamId::split_from(&payload).map(|(two, _)| (two.ms, two.seq));
        let (delivered, count) = two.ok_or("it ends too early")?;
        let consumer = payload.slice(16..);
        Ok(StreamPending {
            delivered,
            count,
            consumer,
        })
    }
}

/// Elements of streams do not expire.
fn payload_of(element: &Element) -> Result<Bytes, Problem> {
    match element.expire_at() {
        Some(_) => Err("an element of a stream does not expire"),
        None => Ok(element.payload()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::model::{Collection, Version};

    fn id() -> impl Strategy<Value = StreamId> {
        let part = || prop_oneof![any::<u64>(), 0..3u64, u64::MAX - 2..=u64::MAX];
        (part(), part()).prop_map(|(ms, seq)| StreamId { ms, seq })
    }

    /// `None`: its bounds cannot be read.
    fn head_of(metadata: &[u8]) -> Option<Result<StreamHead, Problem>> {
        Split::check_bounds(Collection::Stream, metadata).ok()?;
        let split = Split::new(Collection::Stream, Version::new(0), metadata);
        Some(StreamHead::of(&split))
    }

    fn bytes(most: usize) -> impl Strategy<Value = Vec<u8>> {
        prop::collection::vec(any::<u8>(), 0..most)
    }

    proptest! {
        #[test]
        fn what_was_written_comes_back(
            (id, other) in (id(), id()), name in bytes(300), consumer in bytes(40), ordinal in any::<u64>(),
            pairs in prop::collection::vec((bytes(40), bytes(40)), 0..20),
            read in prop::option::of(any::<i64>()), count in any::<u64>(), delivered in any::<u64>(),
        ) {
            for part in [
                StreamPart::MaxDeleted,
                StreamPart::Entry(id),
                StreamPart::Group(&name),
                StreamPart::Pending(&name, id),
            ] {
                let sub_key = part.sub_key();
                prop_assert_eq!(StreamPart::parse(&sub_key), Ok(part));
            }
            let [one, two] = [id, other].map(|id| StreamPart::Entry(id).sub_key());
            prop_assert_eq!(one.cmp(&two), id.cmp(&other), "sub-keys are in the order of the ids");
            prop_assert!(StreamPart::is_entry(&one));
            let fields: Vec<&[u8]> = pairs.iter().flat_map(|(field, value)| [&field[..], &value[..]]).collect();
            let element = StreamEntry::element(ordinal, &fields);
            let entry = StreamEntry::of(&element).expect("it is well formed");
            prop_assert_eq!(entry.ordinal, ordinal);
            prop_assert_eq!(StreamEntry::ordinal_of(&element), Ok(ordinal));
            prop_assert!(entry.fields.iter().eq(fields.iter()));
            let group = StreamGroup { last: id, read };
            prop_assert_eq!(StreamGroup::of(&group.element()), Ok(group));
            let pending = StreamPending { delivered, count, consumer: consumer.into() };
            prop_assert_eq!(StreamPending::of(&pending.element()), Ok(pending));
            prop_assert_eq!(max_deleted_of(&max_deleted_element(id)), Ok(id));
            let head = StreamHead { last: id, added: ordinal, first: other };
            prop_assert_eq!(head_of(&head.metadata()), Some(Ok(head)));
        }

        #[test]
        fn any_bytes_are_read_or_a_problem(bytes in bytes(60), expire_at in prop::option::of(0u64..9)) {
            if let Ok(part) = StreamPart::parse(&bytes) {
                prop_assert_eq!(part.sub_key(), &bytes[..]);
            }
            if let Some(Ok(head)) = head_of(&bytes) {
                prop_assert!([0, 24, 42].contains(&bytes.len()));
                prop_assert_eq!(head_of(&head.metadata()), Some(Ok(head)));
            }
            let element = Element::new(&bytes, expire_at);
            let read = [
                StreamEntry::of(&element).is_ok(),
                StreamGroup::of(&element).is_ok(),
                StreamPending::of(&element).is_ok(),
                max_deleted_of(&element).is_ok(),
            ];
            prop_assert!(expire_at.is_none() || read == [false; 4]);
        }

        #[test]
        fn ids_have_neighbours(id in id()) {
            prop_assert!(id.next().is_none_or(|next| next > id && next.previous() == Some(id)));
            prop_assert!(id.previous().is_none_or(|previous| previous < id && previous.next() == Some(id)));
            prop_assert_eq!(id.next().is_none(), id == StreamId::MAX);
            prop_assert_eq!(id.previous().is_none(), id == StreamId::MIN);
        }
    }

    #[test]
    fn announced_lengths_allocate_nothing() {
        let payload = [&0u64.to_be_bytes()[..], b"\xdd\xff\xff\xff\xfe\xa1f"].concat();
        assert!(StreamEntry::of(&Element::new(&payload, None)).is_err());
    }

    /// What `docs/topic-format.md` shows.
    #[test]
    fn the_examples_of_the_documentation_are_right() {
        let id = StreamId { ms: 1, seq: 2 };
        let one_two = b"\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0\x02";
        let (entry, pending) = (StreamPart::Entry(id), StreamPart::Pending(b"g", id));
        assert_eq!(entry.sub_key(), [b"e", &one_two[..]].concat());
        assert_eq!(StreamPart::Group(b"g").sub_key(), b"gg");
        assert_eq!(pending.sub_key(), [b"p\0\0\0\x01g", &one_two[..]].concat());
        assert_eq!(StreamPart::MaxDeleted.sub_key(), b"d");
        let element = StreamEntry::element(7, &[b"f", b"v"]);
        assert_eq!(element.bytes()[..], *b"\x01\0\0\0\0\0\0\0\0\x07\x92\xa1f\xa1v");
        let group = StreamGroup {
            last: id,
            read: Some(7),
        };
        assert_eq!(
            group.element().bytes()[..],
            [b"\x01\0", &one_two[..], b"\0\0\0\0\0\0\0\x07"].concat()
        );
        let pending = StreamPending {
            delivered: 1_799_999_593_472,
            count: 1,
            consumer: Bytes::from_static(b"c"),
        };
        assert_eq!(
            pending.element().bytes()[..],
            *b"\x01\0\0\0\x01\xa3\x18\x56\x1c\0\0\0\0\0\0\0\0\x01c"
        );
        let mut head = StreamHead {
            last: id,
            added: 7,
            first: StreamId::MIN,
        };
        let metadata = [&one_two[..], b"\0\0\0\0\0\0\0\x07"].concat();
        assert_eq!(head.metadata(), metadata);
        head.first = id;
        assert_eq!(head.metadata(), [&metadata, &b"\x11e"[..], one_two].concat());
    }
}
