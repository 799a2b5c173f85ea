//! Groups of consumers: XGROUP, XACK, XPENDING.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::ids;
use super::view::{Reach, Stream, show_id};
use crate::command::args::{SYNTAX, int, is, unknown_subcommand};
use crate::command::{Args, Data, Fault, Outcome, Reply};
use crate::database::consumers::ConsumerNote;
use crate::database::hot::own;
use crate::model::{StreamGroup, StreamId, StreamPart, StreamPending};

/// What it costs to look at a pending entry, as bytes to go through.
pub(super) const LOOKED_AT: usize = 100;

const NO_KEY: &str = "ERR The XGROUP subcommand requires the key to exist. Note that for CREATE you may want to use \
    the MKSTREAM option to create an empty stream automatically.";

/// The error for a group of a stream that is not there.
pub(super) fn no_group(key: &[u8], group: &[u8]) -> Fault {
    let (key, group) = (as_c_text(key), as_c_text(group));
    Fault::error(
        [
            b"NOGROUP No such consumer group '",
            group,
            b"' for key name '",
            key,
            b"'",
        ]
        .concat(),
    )
}

/// As far as Redis shows it in an error: a zero byte ends it.
pub(super) fn as_c_text(bytes: &[u8]) -> &[u8] {
    bytes.split(|byte| *byte == 0).next().unwrap_or(bytes)
}

/// The error for a stream, or a group of it, that is not there.
pub(super) fn no_key_or_group(key: &[u8], group: &[u8], end: &[u8]) -> Fault {
    let (key, group) = (as_c_text(key), as_c_text(group));
    let parts = [
        b"NOGROUP No such key '",
        key,
        b"' or consumer group '",
        group,
        b"'",
        end,
    ];
    Fault::error(parts.concat())
}

/// The options of XGROUP CREATE and XGROUP SETID.
struct GroupOptions {
    make: bool,
    read: Option<i64>,
}

impl GroupOptions {
    fn parse(args: Args, is_create: bool) -> Result<Self, Fault> {
        let mut options = GroupOptions {
            make: false,
            read: None,
        };
        let mut rest = args[5..].iter();
        while let Some(option) = rest.next() {
            if is_create && is(option, "mkstream") {
                options.make = true;
                continue;
            }
            match rest.next() {
                Some(value) if is(option, "entriesread") => {
                    options.read = match int(value)? {
                        -1 => None,
                        read @ 0.. => Some(read),
                        _ => return Err("ERR value for ENTRIESREAD must be positive or -1".into()),
                    };
                }
                _ => return Err(unknown_subcommand("xgroup", args[1])),
            }
        }
        Ok(options)
    }
}

pub(super) fn create(data: &mut Data, args: Args) -> Outcome {
    let (key, name) = (args[2], args[3]);
    let options = GroupOptions::parse(args, true)?;
    let found = Stream::change(data, key)?;
    if found.is_none() && !options.make {
        return Err(NO_KEY.into());
    }
    if args.len() > 8 {
        return Err(unknown_subcommand("xgroup", args[1]));
    }
    let last = match (args[4], &found) {
        (b"$", Some(stream)) => stream.last_to_rest_on(data)?.last,
        (b"$", None) => StreamId::MIN,
        (id, _) => ids::strict(id, 0)?,
    };
    let stream = match found {
        Some(stream) => stream,
        None => Stream::create(data, key),
    };
    if stream.group_to_change(data, name)?.is_some() {
        return Err("BUSYGROUP Consumer Group name already exists".into());
    }
    let group = StreamGroup {
        last,
        read: options.read,
    };
    stream.put(data, &StreamPart::Group(name), Some(group.element()))?;
    Ok(Reply::Ok)
}

pub(super) fn set_id(data: &mut Data, args: Args) -> Outcome {
    let options = GroupOptions::parse(args, false)?;
    let stream = existing(data, args[2])?;
    if stream.group_to_change(data, args[3])?.is_none() {
        return Err(no_group(args[2], args[3]));
    }
    if !matches!(args.len(), 5 | 7) {
        return Err(unknown_subcommand("xgroup", args[1]));
    }
    let last = match args[4] {
        b"$" => stream.last_to_rest_on(data)?.last,
        id => ids::loose(id, 0)?,
    };
    let group = StreamGroup {
        last,
        read: options.read,
    };
    stream.put(data, &StreamPart::Group(args[3]), Some(group.element()))?;
    Ok(Reply::Ok)
}

/// The stream of an XGROUP command that makes none.
fn existing<'k>(data: &mut Data, key: &'k [u8]) -> Result<Stream<'k>, Fault> {
    Stream::change(data, key)?.ok_or_else(|| NO_KEY.into())
}

pub(super) fn destroy(data: &mut Data, args: Args) -> Outcome {
    let (stream, name) = (existing(data, args[2])?, args[3]);
    if stream.group_to_change(data, name)?.is_none() {
        return Ok(Reply::Int(0));
    }
    for place in stream.all_pending(name)? {
        data.transaction.works(LOOKED_AT)?;
        let id = stream.pending_at(place)?.id;
        stream.put(data, &StreamPart::Pending(name, id), None)?;
    }
    stream.put(data, &StreamPart::Group(name), None)?;
    let group = stream.group_name(data.database, name);
    data.transaction.note_consumer(&group, ConsumerNote::GroupGone);
    Ok(Reply::Int(1))
}

/// The stream and its group, for a command about a consumer.
fn stream_with_group<'k>(data: &mut Data, args: Args<'k>) -> Result<Stream<'k>, Fault> {
    let stream = existing(data, args[2])?;
    match stream.has_group(data, args[3])? {
        true => Ok(stream),
        false => Err(no_group(args[2], args[3])),
    }
}

pub(super) fn create_consumer(data: &mut Data, args: Args) -> Outcome {
    let stream = stream_with_group(data, args)?;
    let known = is_known(data, &stream, args[3], args[4])?;
    if !known {
        note_seen(data, &stream, (args[3], args[4]), false)?;
    }
    Ok(Reply::Int(i64::from(!known)))
}

fn is_known(data: &mut Data, stream: &Stream, group: &[u8], consumer: &[u8]) -> Result<bool, Fault> {
    let name = stream.group_name(data.database, group);
    Ok(
        data.transaction.has_seen_consumer(&name, consumer)
            || with_pending(data, stream, group)?.contains_key(consumer),
    )
}

/// Notes that a consumer has asked for entries, and the event if it is a new one.
pub(super) fn note_seen(
    data: &mut Data,
    stream: &Stream,
    (group, consumer): (&[u8], &[u8]),
    active: bool,
) -> Result<(), Fault> {
    if data.transaction.is_noting() && !is_known(data, stream, group, consumer)? {
        data.transaction.note_consumer_made(data.database, stream.key);
    }
    let group = stream.group_name(data.database, group);
    let (consumer, at) = (own(consumer), data.now());
    let note = ConsumerNote::Seen { consumer, at, active };
    data.transaction.note_consumer(&group, note);
    Ok(())
}

/// The stream has a new version. What this node knows of its consumers stays.
pub(super) fn carry_consumers(data: &mut Data, old: &Stream, new: &Stream) -> Result<(), Fault> {
    for (name, _) in old.groups()? {
        let seen = data.transaction.consumers(&old.group_name(data.database, &name));
        let group = new.group_name(data.database, &name);
        for (consumer, known) in seen.iter() {
            data.transaction.works(LOOKED_AT)?;
            for (at, active) in [(Some(known.seen), false), (known.active, true)] {
                let Some(at) = at else { continue };
                let consumer = consumer.clone();
                let note = ConsumerNote::Seen { consumer, at, active };
                data.transaction.note_consumer(&group, note);
            }
        }
    }
    Ok(())
}

pub(super) fn delete_consumer(data: &mut Data, args: Args) -> Outcome {
    let stream = stream_with_group(data, args)?;
    let (group, consumer) = (args[3], args[4]);
    let mut removed = 0;
    for place in stream.all_pending(group)? {
        data.transaction.works(LOOKED_AT)?;
        let pending = stream.pending_at(place)?;
        if pending.held.consumer != consumer {
            continue;
        }
        // Another node may have given it to somebody else.
        stream.pending_to_change(data, group, pending.id)?;
        stream.put(data, &StreamPart::Pending(group, pending.id), None)?;
        removed += 1;
    }
    // Those that others have just taken from it are not counted.
    stream.depend_on_all(data)?;
    let name = stream.group_name(data.database, group);
    let gone = ConsumerNote::Gone {
        consumer: own(consumer),
    };
    data.transaction.note_consumer(&name, gone);
    Ok(Reply::Int(removed))
}

/// What is known of a consumer.
#[derive(Default)]
pub(super) struct Consumer {
    pub pending: Vec<(StreamId, StreamPending)>,
    /// When it asked for entries, and was given some; milliseconds since the epoch.
    pub seen: u64,
    pub active: Option<u64>,
}

/// The consumers of a group: those with pending entries, and those that this node has seen.
pub(super) fn consumers(data: &mut Data, stream: &Stream, group: &[u8]) -> Result<BTreeMap<Bytes, Consumer>, Fault> {
    let mut consumers = with_pending(data, stream, group)?;
    let seen = data.transaction.consumers(&stream.group_name(data.database, group));
    for (name, seen) in seen.iter() {
        let consumer = consumers.entry(name.clone()).or_default();
        consumer.seen = consumer.seen.max(seen.seen);
        consumer.active = consumer.active.max(seen.active);
    }
    Ok(consumers)
}

/// The consumers of a group that have pending entries.
fn with_pending(data: &mut Data, stream: &Stream, group: &[u8]) -> Result<BTreeMap<Bytes, Consumer>, Fault> {
    let mut consumers: BTreeMap<Bytes, Consumer> = BTreeMap::new();
    for place in stream.all_pending(group)? {
        data.transaction.works(LOOKED_AT)?;
        let pending = stream.pending_at(place)?;
        let consumer = consumers.entry(pending.held.consumer.clone()).or_default();
        consumer.seen = consumer.seen.max(pending.held.delivered);
        consumer.active = consumer.active.max(Some(pending.held.delivered));
        consumer.pending.push((pending.id, pending.held));
    }
    Ok(consumers)
}

pub(super) fn xack(data: &mut Data, args: Args) -> Outcome {
    let (key, group) = (args[1], args[2]);
    let stream = Stream::change_from(data, key, Reach::Groups)?;
    let stream = match stream {
        Some(stream) if stream.has_group(data, group)? => stream,
        _ => return Ok(Reply::Int(0)),
    };
    let ids = args[3..].iter().map(|id| ids::strict(id, 0));
    let ids: Vec<StreamId> = ids.collect::<Result<_, _>>()?;
    let mut acknowledged = 0;
    for id in ids {
        let part = StreamPart::Pending(group, id);
        if stream.rest_on(data, &part)?.is_some() {
            stream.put(data, &part, None)?;
            acknowledged += 1;
        }
    }
    Ok(Reply::Int(acknowledged))
}

/// A part of the pending entries, as XPENDING is asked for it.
struct Part<'a> {
    idle: u64,
    first: StreamId,
    last: StreamId,
    count: usize,
    consumer: Option<&'a [u8]>,
}

impl<'a> Part<'a> {
    /// `None`: a summary is wanted.
    fn parse(args: Args<'a>) -> Result<Option<Self>, Fault> {
        if args.len() == 3 {
            return Ok(None);
        }
        if !(6..=9).contains(&args.len()) {
            return Err(SYNTAX.into());
        }
        let (mut idle, mut rest) = (0, &args[3..]);
        if is(args[3], "idle") {
            idle = u64::try_from(int(args[4])?).unwrap_or(0);
            if args.len() < 8 {
                return Err(SYNTAX.into());
            }
            rest = &args[5..];
        }
        let count = usize::try_from(int(rest[2])?).unwrap_or(0);
        Ok(Some(Part {
            idle,
            first: ids::start(rest[0])?,
            last: ids::end(rest[1])?,
            count,
            consumer: rest.get(3).copied(),
        }))
    }
}

pub(super) fn xpending(data: &mut Data, args: Args) -> Outcome {
    let part = Part::parse(args)?;
    let (key, group) = (args[1], args[2]);
    let stream = match Stream::read(data, key)? {
        Some(stream) if stream.group(group)?.is_some() => stream,
        _ => return Err(no_key_or_group(key, group, b"")),
    };
    match part {
        None => summary(data, &stream, group),
        Some(part) => listing(data, &stream, group, &part),
    }
}

fn summary(data: &mut Data, stream: &Stream, group: &[u8]) -> Outcome {
    let places = stream.all_pending(group)?;
    if places.is_empty() {
        return Ok(Reply::Array(vec![
            Reply::Int(0),
            Reply::Null,
            Reply::Null,
            Reply::NullArray,
        ]));
    }
    let [first, last] = [places.start, places.end - 1].map(|place| stream.pending_at(place));
    let of_consumers = with_pending(data, stream, group)?.into_iter();
    let of_consumers = of_consumers.map(|(name, consumer)| {
        let count = consumer.pending.len().to_string();
        Reply::Array(vec![Reply::Bulk(name), Reply::bulk(count)])
    });
    Ok(Reply::Array(vec![
        Reply::Int(places.len() as i64),
        show_id(first?.id),
        show_id(last?.id),
        Reply::Array(of_consumers.collect()),
    ]))
}

fn listing(data: &mut Data, stream: &Stream, group: &[u8], part: &Part) -> Outcome {
    let now = data.now();
    let mut shown = Vec::new();
    for place in stream.pending_places(group, part.first, part.last)? {
        if shown.len() >= part.count {
            break;
        }
        data.transaction.works(LOOKED_AT)?;
        let pending = stream.pending_at(place)?;
        let idle = now.saturating_sub(pending.held.delivered);
        if idle < part.idle || part.consumer.is_some_and(|consumer| consumer != pending.held.consumer) {
            continue;
        }
        shown.push(Reply::Array(vec![
            show_id(pending.id),
            Reply::Bulk(pending.held.consumer),
            Reply::Int(idle as i64),
            Reply::Int(pending.held.count as i64),
        ]));
    }
    Ok(Reply::Array(shown))
}
