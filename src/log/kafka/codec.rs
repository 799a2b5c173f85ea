//! Converts between a record and its key, value and headers in Kafka, as `docs/topic-format.md`
//! says. Pure: it knows no client.
//!
//! Reading never fails. A producer that wrote a header that cannot be understood still replaced the
//! old value. So such a record becomes [`Value::Unreadable`] with the reason.
#![cfg_attr(not(test), deny(clippy::wildcard_enum_match_arm))]

use std::borrow::Cow;

use bytes::Bytes;
use smallvec::SmallVec;

use crate::log::record::{FLUSH_KEY, HEADER_CONTROL, HEADER_EXPIRE_AT, HEADER_GROUP, HEADER_SPLIT, HEADER_TYPE};
use crate::log::{Record, TopicPartition};
use crate::model::{
    Collection, Control, Element, ElementName, FEATURES_KEY, Features, PASSED_KEY, Packed, Payload, Split, State, Type,
    Value, Version, function_of, is_reserved,
};

/// Longest piece of a foreign header that a reason quotes.
const QUOTED: usize = 40;
const TYPE_STRING: &[u8] = b"string";
const TYPE_ELEMENT: &[u8] = b"element";
const CONTROL_FLUSH: &[u8] = b"flush";
const CONTROL_FEATURES: &[u8] = b"features";
const CONTROL_FUNCTION: &[u8] = b"function";

/// A header's name and its ASCII value.
pub type Header = (&'static str, SmallVec<[u8; 48]>);

/// What is sent for a record.
#[derive(Debug, PartialEq, Eq)]
pub struct Wire<'a> {
    pub key: &'a [u8],
    /// `None` is Kafka's null: a tombstone.
    pub value: Option<Cow<'a, [u8]>>,
    pub headers: SmallVec<[Header; 2]>,
}

/// The atomic group that a batch is sent as.
pub struct Stamp {
    id: u128,
    /// How many of its records are in each partition.
    counts: Vec<(TopicPartition, u32)>,
}

impl Stamp {
    pub fn new(records: &[Record]) -> Stamp {
        let mut counts: Vec<(TopicPartition, u32)> = Vec::new();
        for record in records {
            match counts.iter_mut().find(|(at, _)| *at == record.to) {
                Some((_, count)) => *count += 1,
                None => counts.push((record.to, 1)),
            }
        }
        Stamp {
            id: rand::random(),
            counts,
        }
    }

    /// Bytes of the header (an upper estimate) beyond those of a group in one partition.
    pub fn extra_bytes<'t>(&self, topic: impl Fn(u16) -> &'t str) -> usize {
        const NUMBERS: usize = 24;
        match self.counts.len() {
            1 => 0,
            _ => self
                .counts
                .iter()
                .map(|(at, _)| topic(at.database).len() + NUMBERS)
                .sum(),
        }
    }

    /// The header's value for a record in this partition.
    pub fn header<'t>(&self, here: TopicPartition, topic: impl Fn(u16) -> &'t str) -> Vec<u8> {
        let count = |(at, count): &&(TopicPartition, u32)| (*at == here).then_some(*count);
        let mut text = format!(
            "{:032x} {}",
            self.id,
            self.counts.iter().find_map(|c| count(&c)).unwrap_or(0)
        );
        let mut separator = ' ';
        for (at, count) in self.counts.iter().filter(|(at, _)| *at != here) {
            text.push_str(&format!("{separator}{}/{}:{count}", topic(at.database), at.partition));
            separator = ',';
        }
        text.into_bytes()
    }
}

/// The atomic group that a record says it belongs to.
#[derive(Debug, PartialEq, Eq)]
pub struct GroupHeader {
    pub id: u128,
    /// Records in the partition of this one.
    pub here: u32,
    /// Records in other partitions: topic, partition, how many.
    pub elsewhere: Vec<(String, u32, u32)>,
}

/// What was understood of a record that was read.
#[derive(Debug, PartialEq, Eq)]
pub struct Decoded {
    pub payload: Payload,
    pub group: Option<GroupHeader>,
    /// There is a group header, but it makes no sense. The record is taken as one without a group.
    pub bad_group: bool,
}

/// `Err` for a record that only ever is read.
pub fn encode(record: &Record, group: Option<Vec<u8>>) -> Result<Wire<'_>, String> {
    let mut headers = SmallVec::new();
    let value = match &record.payload {
        Payload::Key(Some(state)) => {
            if let Some(at) = state.expire_at {
                headers.push((HEADER_EXPIRE_AT, decimal(at)));
            }
            let kept = state.value.kept();
            let (of, value) = kept.map_err(|reason| format!("an unreadable record cannot be written: {reason}"))?;
            if of != Type::String {
                headers.push((HEADER_TYPE, SmallVec::from_slice(of.name().as_bytes())));
            }
            match &state.value {
                Value::Split(split) => {
                    let version = split.version().to_string();
                    headers.push((HEADER_SPLIT, SmallVec::from_slice(version.as_bytes())));
                    Some(Cow::Owned(split.metadata().to_vec()))
                }
                Value::String(_) | Value::Packed(_) | Value::Element(_) | Value::Unreadable(_) => {
                    Some(Cow::Borrowed(value.as_ref()))
                }
            }
        }
        Payload::Key(None) => None,
        Payload::Control(Control::Flush) => {
            headers.push((HEADER_CONTROL, SmallVec::from_slice(CONTROL_FLUSH)));
            // Not null: compaction removes tombstones, and this record has to stay.
            Some(Cow::Borrowed(b"".as_slice()))
        }
        Payload::Control(Control::Features(features)) => {
            headers.push((HEADER_CONTROL, SmallVec::from_slice(CONTROL_FEATURES)));
            Some(Cow::Owned(features.to_string().into_bytes()))
        }
        Payload::Control(Control::Function(text)) => {
            if text.is_some() {
                headers.push((HEADER_CONTROL, SmallVec::from_slice(CONTROL_FUNCTION)));
            }
            text.as_ref().map(|text| Cow::Borrowed(text.as_ref()))
        }
        Payload::Control(Control::Passed) => None,
        Payload::Control(Control::Unknown) => {
            return Err("a control record that is not understood cannot be written".into());
        }
    };
    if let Some(group) = group {
        headers.push((HEADER_GROUP, SmallVec::from_vec(group)));
    }
    Ok(Wire {
        key: &record.key,
        value,
        headers,
    })
}

/// `headers` yields name and value as they came. Of several headers with the same name the last one
/// counts, as everywhere in Kafka.
pub fn decode<'h>(
    key: &[u8],
    value: Option<&[u8]>,
    headers: impl Iterator<Item = (&'h [u8], Option<&'h [u8]>)>,
) -> Decoded {
    let (mut expire_at, mut kind, mut split, mut group, mut control) = (None, None, None, None, None);
    for (name, value) in headers {
        let place = match name {
            _ if name == HEADER_EXPIRE_AT.as_bytes() => &mut expire_at,
            _ if name == HEADER_TYPE.as_bytes() => &mut kind,
            _ if name == HEADER_SPLIT.as_bytes() => &mut split,
            _ if name == HEADER_GROUP.as_bytes() => &mut group,
            _ if name == HEADER_CONTROL.as_bytes() => &mut control,
            _ => continue,
        };
        *place = Some(value.unwrap_or_default());
    }
    let understood = group.map(parse_group);
    let payload = match value {
        Some(_) if key == FLUSH_KEY && control == Some(CONTROL_FLUSH) => Payload::FLUSH,
        Some(value) if key == FEATURES_KEY && control == Some(CONTROL_FEATURES) => {
            Payload::Control(Control::Features(Features::parse(value)))
        }
        Some(value) if function_of(key).is_some() && control == Some(CONTROL_FUNCTION) => {
            Payload::Control(Control::Function(Some(Bytes::copy_from_slice(value))))
        }
        None if function_of(key).is_some() => Payload::Control(Control::Function(None)),
        Some(value) if ElementName::parse(key).is_some() => Payload::Key(Some(element(value, kind))),
        None if ElementName::parse(key).is_some() => Payload::TOMBSTONE,
        None if key == PASSED_KEY => Payload::PASSED,
        _ if is_reserved(key) => Payload::UNKNOWN,
        Some(value) => Payload::Key(state(value, expire_at, kind, split)),
        None => Payload::TOMBSTONE,
    };
    Decoded {
        payload,
        bad_group: understood == Some(None),
        group: understood.flatten(),
    }
}

/// The state that a record with an element's key gives.
fn element(value: &[u8], kind: Option<&[u8]>) -> State {
    match kind {
        Some(TYPE_ELEMENT) => match Element::parse(Bytes::copy_from_slice(value)) {
            Ok(element) => State {
                value: Value::Element(element),
                expire_at: None,
            },
            Err(problem) => State::unreadable(format!("an element of it cannot be read: {problem}")),
        },
        kind => unreadable(HEADER_TYPE, kind.unwrap_or_default(), "is not that of an element"),
    }
}

/// `None`: an empty collection, which is none.
fn state(value: &[u8], expire_at: Option<&[u8]>, kind: Option<&[u8]>, split: Option<&[u8]>) -> Option<State> {
    let of = match kind.filter(|kind| *kind != TYPE_STRING) {
        None => None,
        Some(kind) => match Collection::of_name(kind) {
            Some(of) => Some(of),
            None => return Some(unreadable(HEADER_TYPE, kind, "is not known to this version")),
        },
    };
    let expire_at = match expire_at.map(|text| parse_decimal(text).ok_or(text)) {
        None => None,
        Some(Ok(at)) => Some(at),
        Some(Err(text)) => {
            return Some(unreadable(HEADER_EXPIRE_AT, text, "is no time in milliseconds"));
        }
    };
    if let Some(text) = split {
        return Some(match (of, Version::parse(text)) {
            (Some(of), Some(version)) => match Split::check_bounds(of, value) {
                Ok(()) => State {
                    value: Value::Split(Split::new(of, version, value)),
                    expire_at,
                },
                Err(problem) => State::unreadable(problem),
            },
            (Some(_), None) => unreadable(HEADER_SPLIT, text, "is no version"),
            (None, _) => unreadable(HEADER_SPLIT, text, "stands on a string"),
        });
    }
    let value = Bytes::copy_from_slice(value);
    if of == Some(Collection::Stream) {
        return Some(State::unreadable(format!(
            "it is a stream without the header {HEADER_SPLIT}: a stream has a record for each entry"
        )));
    }
    let Some(of) = of else {
        return Some(State::string(value, expire_at));
    };
    match Packed::parse(of, &value) {
        Ok(packed) => packed.map(|packed| State {
            value: Value::Packed(packed),
            expire_at,
        }),
        Err(problem) => Some(State::unreadable(format!(
            "its value is no {} in MessagePack: {problem}",
            of.name()
        ))),
    }
}

fn unreadable(header: &str, value: &[u8], problem: &str) -> State {
    let quoted = value[..value.len().min(QUOTED)].escape_ascii();
    let rest = if value.len() > QUOTED { "…" } else { "" };
    State::unreadable(format!("header {header}: \"{quoted}{rest}\" {problem}"))
}

fn parse_group(text: &[u8]) -> Option<GroupHeader> {
    let text = std::str::from_utf8(text).ok()?;
    let mut parts = text.split(' ');
    let (id, here, elsewhere) = (parts.next()?, parts.next()?, parts.next());
    if id.len() != 32 || !id.bytes().all(|byte| byte.is_ascii_hexdigit()) || parts.next().is_some() {
        return None;
    }
    let number = |text: &str| u32::try_from(parse_decimal(text.as_bytes())?).ok();
    let entry = |entry: &str| {
        let (place, count) = entry.split_once(':')?;
        let (topic, partition) = place.split_once('/')?;
        let count = number(count).filter(|count| *count > 0)?;
        Some((topic.to_owned(), number(partition)?, count))
    };
    Some(GroupHeader {
        id: u128::from_str_radix(id, 16).ok()?,
        here: number(here).filter(|here| *here > 0)?,
        elsewhere: elsewhere.map_or(Some(Vec::new()), |list| list.split(',').map(entry).collect())?,
    })
}

/// ASCII digits only, and no more than fit Redis's signed 64-bit times.
fn parse_decimal(text: &[u8]) -> Option<u64> {
    if text.is_empty() || text.len() > 19 || !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let number: u64 = std::str::from_utf8(text).ok()?.parse().ok()?;
    (number <= i64::MAX as u64).then_some(number)
}

fn decimal(number: u64) -> SmallVec<[u8; 48]> {
    SmallVec::from_slice(itoa::Buffer::new().format(number).as_bytes())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::log::TopicPartition;
    use crate::model::{Field, Fields};

    fn read(key: &[u8], value: Option<&[u8]>, headers: &[(&str, Option<&str>)]) -> Decoded {
        decode(
            key,
            value,
            headers
                .iter()
                .map(|(name, value)| (name.as_bytes(), value.map(str::as_bytes))),
        )
    }

    fn value(text: &str, expire_at: Option<u64>) -> Payload {
        Payload::Key(Some(State::string(Bytes::copy_from_slice(text.as_bytes()), expire_at)))
    }

    fn reason(decoded: Decoded) -> String {
        match decoded.payload {
            Payload::Key(Some(State {
                value: Value::Unreadable(reason),
                ..
            })) => reason.to_string(),
            other => panic!("was understood: {other:?}"),
        }
    }

    #[test]
    fn a_record_of_any_other_producer_is_a_plain_string() {
        assert_eq!(read(b"k", Some(b"v"), &[]).payload, value("v", None));
        assert_eq!(
            read(b"k", Some(b"v"), &[("trace-id", Some("x"))]).payload,
            value("v", None)
        );
        assert_eq!(
            read(b"k", Some(b"v"), &[("redis-type", Some("string"))]).payload,
            value("v", None)
        );
        assert_eq!(read(b"k", Some(b""), &[]).payload, value("", None));
        assert_eq!(read(b"", Some(b"v"), &[]).payload, value("v", None));
    }

    #[test]
    fn null_is_a_tombstone_whatever_the_headers_say() {
        let headers = [("redis-type", Some("hash")), ("redis-expire-at", Some("soon"))];
        assert_eq!(read(b"k", None, &headers).payload, Payload::TOMBSTONE);
    }

    #[test]
    fn expiry_is_decimal_milliseconds() {
        let at = |text| read(b"k", Some(b"v"), &[("redis-expire-at", text)]);
        assert_eq!(at(Some("1700000000123")).payload, value("v", Some(1700000000123)));
        assert_eq!(at(Some("0")).payload, value("v", Some(0)));
        assert_eq!(
            at(Some("9223372036854775807")).payload,
            value("v", Some(i64::MAX as u64))
        );
        for bad in [
            "",
            " 1",
            "1 ",
            "+1",
            "-1",
            "1.5",
            "0x1",
            "9223372036854775808",
            "99999999999999999999",
            "١",
        ] {
            assert!(reason(at(Some(bad))).contains("redis-expire-at"), "{bad}");
        }
        assert!(reason(at(None)).contains("redis-expire-at"));
    }

    #[test]
    fn the_last_of_equal_headers_counts() {
        let headers = [("redis-expire-at", Some("1")), ("redis-expire-at", Some("2"))];
        assert_eq!(read(b"k", Some(b"v"), &headers).payload, value("v", Some(2)));
    }

    #[test]
    fn a_collection_that_is_empty_or_broken_replaces_what_was_there() {
        let hash = |value| read(b"k", Some(value), &[("redis-type", Some("hash"))]);
        assert_eq!(hash(b"\x80").payload, Payload::TOMBSTONE);
        let why = reason(hash(b"\x81"));
        assert_eq!(why, "its value is no hash in MessagePack: it ends too early");
        let Payload::Key(Some(State {
            value: Value::Packed(packed),
            ..
        })) = hash(b"\x81\xa1f\x01").payload
        else {
            panic!("no hash")
        };
        assert_eq!(packed.field(b"f").unwrap().unwrap().value, "1");
    }

    #[test]
    fn an_unknown_type_is_told_and_its_text_is_bounded() {
        let long = "x".repeat(5000);
        let text = reason(read(b"k", Some(b"v"), &[("redis-type", Some(&long))]));
        assert!(text.len() < 200, "{text}");
        let text = reason(read(b"k", Some(b"v"), &[("redis-type", Some("ha\r\nsh"))]));
        assert_eq!(text, r#"header redis-type: "ha\r\nsh" is not known to this version"#);
    }

    #[test]
    fn a_control_record_needs_both_key_and_header() {
        let control = [("redis-control", Some("flush"))];
        assert_eq!(read(FLUSH_KEY, Some(b""), &control).payload, Payload::FLUSH);
        assert_eq!(read(b"k", Some(b"v"), &control).payload, value("v", None));
        let later = [("redis-control", Some("later"))];
        for (value, headers) in [
            (Some(&b"v"[..]), &[][..]),
            (None, &control[..]),
            (Some(b""), &later[..]),
        ] {
            for key in [&FLUSH_KEY[..], b"\0highwater:"] {
                assert_eq!(read(key, value, headers).payload, Payload::UNKNOWN);
            }
        }
        assert_eq!(read(b"\0highwater", Some(b"v"), &[]).payload, value("v", None));
    }

    #[test]
    fn a_group_that_makes_no_sense_is_none() {
        let group = |text: &str| read(b"k", Some(b"v"), &[("redis-group", Some(text))]);
        let id = "000102030405060708090a0b0c0d0e0f";
        let good = group(&format!("{id} 12"));
        assert_eq!(
            good.group,
            Some(GroupHeader {
                id: 0x000102030405060708090a0b0c0d0e0f,
                here: 12,
                elsewhere: Vec::new(),
            })
        );
        assert!(!good.bad_group);
        let elsewhere = group(&format!("{id} 1 kv/3:2,kv.db1/0:7"))
            .group
            .expect("is good")
            .elsewhere;
        assert_eq!(elsewhere, [("kv".to_owned(), 3, 2), ("kv.db1".to_owned(), 0, 7)]);
        let bad = [
            String::new(),
            id.into(),
            format!("{id} "),
            format!("{id} 0"),
            format!("{id} 5000000000"),
            format!("{id}  1"),
            format!("+{} 1", &id[1..]),
            format!("{id} -1"),
            format!("{id} 1 "),
            format!("{id} 1 kv"),
            format!("{id} 1 kv/1:0"),
            format!("{id} 1 kv/1:1,"),
            format!("{id} 1 kv/1:1 2"),
            "é".repeat(30),
        ];
        for text in bad {
            let decoded = group(&text);
            assert!(decoded.group.is_none() && decoded.bad_group, "{text}");
            assert_eq!(decoded.payload, value("v", None));
        }
    }

    #[test]
    fn an_unreadable_record_is_never_written() {
        let record = Record {
            to: TopicPartition {
                database: 0,
                partition: 0,
            },
            key: Bytes::from_static(b"k"),
            payload: Payload::Key(Some(State::unreadable("why"))),
        };
        assert!(encode(&record, None).is_err());
    }

    fn payloads() -> impl Strategy<Value = (Vec<u8>, Payload)> {
        let bytes = || proptest::collection::vec(any::<u8>(), 0..200);
        let value = (bytes(), bytes(), proptest::option::of(0..=i64::MAX as u64))
            .prop_map(|(key, value, expire_at)| (key, Payload::string(value.into(), expire_at)));
        prop_oneof![
            value,
            bytes().prop_map(|key| (key, Payload::TOMBSTONE)),
            Just((FLUSH_KEY.to_vec(), Payload::FLUSH)),
            Just((PASSED_KEY.to_vec(), Payload::PASSED)),
            Just((
                FEATURES_KEY.to_vec(),
                Payload::Control(Control::Features(Features::parse(b"hash from-the-future"))),
            )),
            (
                proptest::collection::vec(any::<u8>(), 0..20),
                proptest::option::of(0..=i64::MAX as u64)
            )
                .prop_map(|(value, expire_at)| {
                    let fields = Fields(
                        [(
                            "f".into(),
                            Field {
                                value: value.into(),
                                expire_at,
                            },
                        )]
                        .into_iter()
                        .collect(),
                    );
                    let value = Value::Packed(fields.pack().expect("one field"));
                    (b"k".to_vec(), Payload::Key(Some(State { value, expire_at })))
                }),
        ]
    }

    #[test]
    fn a_batch_over_several_partitions_says_where_the_rest_is() {
        let record = |database, partition| Record {
            to: TopicPartition { database, partition },
            key: Bytes::from_static(b"k"),
            payload: Payload::TOMBSTONE,
        };
        let records = [record(0, 1), record(3, 0), record(0, 1), record(0, 2)];
        let stamp = Stamp::new(&records);
        let header = |record: &Record| {
            let text = stamp.header(record.to, |database| if database == 0 { "kv" } else { "kv.db3" });
            parse_group(&text).expect("makes sense")
        };
        let (first, second) = (header(&records[0]), header(&records[1]));
        assert_eq!(first.id, second.id);
        assert_eq!((first.here, second.here), (2, 1));
        assert_eq!(first.elsewhere, [("kv.db3".to_owned(), 0, 1), ("kv".to_owned(), 2, 1)]);
        assert_eq!(second.elsewhere, [("kv".to_owned(), 1, 2), ("kv".to_owned(), 2, 1)]);
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(
            (key, payload) in payloads(),
            group in proptest::option::of((any::<u128>(), 1..=u32::MAX)),
        ) {
            let header = group.map(|(id, here)| format!("{id:032x} {here}").into_bytes());
            let group = group.map(|(id, here)| GroupHeader { id, here, elsewhere: Vec::new() });
            let to = TopicPartition { database: 0, partition: 0 };
            let record = Record { to, key: key.into(), payload };
            let wire = encode(&record, header).expect("can be written");
            let sent = wire.key.len() + wire.value.as_deref().map_or(0, <[u8]>::len)
                + wire.headers.iter().map(|(name, value)| name.len() + value.len()).sum::<usize>();
            prop_assert!(sent <= record.size());
            let headers = wire.headers.iter().map(|(name, value)| (name.as_bytes(), Some(value.as_slice())));
            let decoded = decode(wire.key, wire.value.as_deref(), headers);
            prop_assert_eq!(decoded, Decoded { payload: record.payload.clone(), group, bad_group: false });
        }

        #[test]
        fn any_headers_are_read_without_a_panic(
            key in proptest::collection::vec(any::<u8>(), 0..20),
            value in proptest::option::of(proptest::collection::vec(any::<u8>(), 0..20)),
            headers in proptest::collection::vec(
                (
                    proptest::sample::select(vec![HEADER_EXPIRE_AT, HEADER_TYPE, HEADER_GROUP, HEADER_CONTROL, "x"]),
                    proptest::option::of(proptest::collection::vec(any::<u8>(), 0..60)),
                ),
                0..6,
            ),
        ) {
            let borrowed = headers.iter().map(|(name, value)| (name.as_bytes(), value.as_deref()));
            decode(&key, value.as_deref(), borrowed);
        }
    }
}
