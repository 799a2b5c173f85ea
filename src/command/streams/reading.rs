//! XREAD and XREADGROUP, which may wait for entries.

use std::time::Duration;

use bytes::Bytes;

use super::entries::page;
use super::groups::{no_key_or_group, note_seen};
use super::ids;
use super::view::{Reach, Stream, show_entry, show_id};
use crate::command::args::{SYNTAX, int, is, parse_int};
use crate::command::blocking::{Asked, Blocking, Look};
use crate::command::{Args, Data, Fault, Reply};
use crate::database::hot::own;
use crate::database::now_ms;
use crate::model::{Collection, StreamId, StreamPart, StreamPending};

/// The most entries that a client gets that has waited and named no COUNT.
const AFTER_WAITING: usize = 1_000;
/// The most entries that XREADGROUP gives at once. Each is a record, and a write has a bound.
const MOST_GIVEN: usize = 10_000;

const UNBALANCED: &str = "ERR Unbalanced XREAD list of streams: for each stream key an ID or '$' must be specified.";
const NO_DOLLAR: &str = "ERR The $ ID is meaningless in the context of XREADGROUP: you want to read the history of \
    this consumer by specifying a proper ID, or use the > ID to get new messages. The $ ID would just return an \
    empty result set.";
const NO_GREATER: &str =
    "ERR The > ID can be specified only when calling XREADGROUP using the GROUP <group> <consumer> option.";

pub(super) static XREAD: Blocking = Blocking {
    of: Collection::Stream,
    asks: |args| Request::parse(args, false)?.asked(),
    take: |data, args, look| read(data, &Request::parse(args, false)?, look),
    nothing: Reply::NullArray,
};

pub(super) static XREADGROUP: Blocking = Blocking {
    of: Collection::Stream,
    asks: |args| Request::parse(args, true)?.asked(),
    take: |data, args, look| read_group(data, &Request::parse(args, true)?, look),
    nothing: Reply::NullArray,
};

struct Request<'a> {
    /// It waits, for so long at most.
    block: Option<Option<Duration>>,
    count: Option<usize>,
    keys: Args<'a>,
    ids: Args<'a>,
    group: &'a [u8],
    consumer: &'a [u8],
    no_ack: bool,
}

impl<'a> Request<'a> {
    fn parse(args: Args<'a>, is_group: bool) -> Result<Self, Fault> {
        let mut request = Request {
            block: None,
            count: None,
            keys: &[],
            ids: &[],
            group: b"",
            consumer: b"",
            no_ack: false,
        };
        let (mut at, mut has_group) = (1, false);
        let streams = loop {
            let Some(word) = args.get(at) else {
                return Err(SYNTAX.into());
            };
            let rest = &args[at + 1..];
            match rest {
                [value, ..] if is(word, "block") => {
                    request.block = Some(timeout(value)?);
                    at += 1;
                }
                [value, ..] if is(word, "count") => {
                    request.count = Some(usize::try_from(int(value)?).unwrap_or(0)).filter(|count| *count > 0);
                    at += 1;
                }
                [_, ..] if is(word, "streams") => break rest,
                [group, consumer, ..] if is(word, "group") => {
                    if !is_group {
                        return Err(only_for_groups("GROUP"));
                    }
                    (request.group, request.consumer, has_group) = (group, consumer, true);
                    at += 2;
                }
                _ if is(word, "noack") => {
                    if !is_group {
                        return Err(only_for_groups("NOACK"));
                    }
                    request.no_ack = true;
                }
                _ => return Err(SYNTAX.into()),
            }
            at += 1;
        };
        if !streams.len().is_multiple_of(2) {
            return Err(UNBALANCED.into());
        }
        if is_group && !has_group {
            return Err("ERR Missing GROUP option for XREADGROUP".into());
        }
        (request.keys, request.ids) = streams.split_at(streams.len() / 2);
        Ok(request)
    }

    fn asked(&self) -> Result<Asked<'a>, Fault> {
        Ok(Asked {
            keys: self.keys,
            timeout: self.block.flatten(),
            waits: self.block.is_some(),
        })
    }

    /// The places of its keys, the one that has changed before the others.
    fn places(&self, look: &Look) -> Vec<usize> {
        let ready = |place: &usize| look.ready.as_ref().is_some_and(|ready| *ready == self.keys[*place]);
        let mut places: Vec<usize> = (0..self.keys.len()).collect();
        places.sort_by_key(|place| !ready(place));
        places
    }

    fn most(&self, look: &Look) -> Option<usize> {
        self.count.or(look.has_waited.then_some(AFTER_WAITING))
    }
}

fn only_for_groups(option: &str) -> Fault {
    Fault::error(format!(
        "ERR The {option} option is only supported by XREADGROUP. You called XREAD instead."
    ))
}

/// A timeout in milliseconds. 0: as long as it takes.
fn timeout(argument: &[u8]) -> Result<Option<Duration>, Fault> {
    let milliseconds = parse_int(argument).ok_or("ERR timeout is not an integer or out of range")?;
    match u64::try_from(milliseconds) {
        Err(_) => Err("ERR timeout is negative".into()),
        Ok(0) => Ok(None),
        Ok(more) if more > i64::MAX as u64 - now_ms() => Err("ERR timeout is out of range".into()),
        Ok(more) => Ok(Some(Duration::from_millis(more))),
    }
}

/// The entries of each key that has some.
type Found = Vec<(Reply, Reply)>;

fn reply(found: Found) -> Option<Reply> {
    (!found.is_empty()).then_some(Reply::Streams(found))
}

fn read(data: &mut Data, request: &Request, look: &Look) -> Result<Option<Reply>, Fault> {
    let from = match look.resolved.get() {
        Some(ids) => ids.clone(),
        None => {
            let ids = last_known(data, request)?;
            look.resolved.get_or_init(|| ids).clone()
        }
    };
    let mut found = Found::new();
    for place in request.places(look) {
        let key = request.keys[place];
        let Some(first) = from[place].next() else {
            continue;
        };
        let stream = match Stream::read_from(data, key, Reach::From(first)) {
            Ok(Some(stream)) => stream,
            Ok(None) => continue,
            Err(fault) if look.passes_over(&fault) => continue,
            Err(fault) => return Err(fault),
        };
        let places = page(stream.between(first, StreamId::MAX)?, request.most(look), false);
        if places.is_empty() {
            continue;
        }
        found.push((Reply::bulk(key), Reply::Array(stream.show(data, places, false)?)));
        if look.has_waited {
            break;
        }
    }
    Ok(reply(found))
}

/// The ids that XREAD names; `$` is the last one at present.
fn last_known(data: &mut Data, request: &Request) -> Result<Vec<StreamId>, Fault> {
    let mut ids = Vec::with_capacity(request.ids.len());
    for (key, id) in request.keys.iter().zip(request.ids) {
        let stream = Stream::read_from(data, key, Reach::Newest)?;
        ids.push(match *id {
            b"$" => stream.map_or(Ok(StreamId::MIN), |stream| Ok::<_, Fault>(stream.last()?.last))?,
            b">" => return Err(NO_GREATER.into()),
            id => ids::strict(id, 0)?,
        });
    }
    Ok(ids)
}

/// What XREADGROUP wants of a key: `None` for what no consumer was given yet, else the consumer's
/// own entries behind this id.
type Wanted<'k> = (Stream<'k>, Option<StreamId>);

fn read_group(data: &mut Data, request: &Request, look: &Look) -> Result<Option<Reply>, Fault> {
    let mut wanted: Vec<Option<Wanted>> = Vec::with_capacity(request.keys.len());
    for (key, id) in request.keys.iter().zip(request.ids) {
        let stream = stream_with_group(data, key, request.group, look)?;
        let id = match *id {
            b"$" => return Err(NO_DOLLAR.into()),
            b">" => None,
            id => Some(ids::strict(id, 0)?).filter(|id| *id < StreamId::MAX),
        };
        wanted.push(Some((stream, id)));
    }
    let (mut found, mut left) = (Found::new(), MOST_GIVEN);
    for place in request.places(look) {
        // A key that is named twice is read twice.
        let Some((mut stream, id)) = wanted[place].take() else {
            continue;
        };
        stream.refresh(data)?;
        let entries = match id {
            Some(id) => Some(history(data, &stream, request, (id, left))?),
            None => deliver(data, &stream, request, (look, left))?,
        };
        note_seen(data, &stream, (request.group, request.consumer), entries.is_some())?;
        if let Some(entries) = entries {
            left -= entries.len();
            found.push((Reply::bulk(request.keys[place]), Reply::Array(entries)));
            if look.has_waited || left == 0 {
                break;
            }
        }
    }
    Ok(reply(found))
}

fn stream_with_group<'k>(data: &mut Data, key: &'k [u8], group: &[u8], look: &Look) -> Result<Stream<'k>, Fault> {
    const GONE: &str = "UNBLOCKED the stream key no longer exists";
    let stream = match Stream::change(data, key) {
        Ok(Some(stream)) => stream,
        Ok(None) if look.has_waited => return Err(GONE.into()),
        Ok(None) => return Err(no_such_group(key, group)),
        Err(fault) if look.passes_over(&fault) => return Err(GONE.into()),
        Err(fault) => return Err(fault),
    };
    match stream.group_to_change(data, group)? {
        Some(_) => Ok(stream),
        None if look.has_waited => Err("NOGROUP the consumer group this client was blocked on no longer exists".into()),
        None => Err(no_such_group(key, group)),
    }
}

fn no_such_group(key: &[u8], group: &[u8]) -> Fault {
    no_key_or_group(key, group, b" in XREADGROUP with GROUP option")
}

/// Gives the consumer at most `left` entries that no consumer of the group was given. `None`: there
/// are none.
fn deliver(
    data: &mut Data,
    stream: &Stream,
    request: &Request,
    (look, left): (&Look, usize),
) -> Result<Option<Vec<Reply>>, Fault> {
    let Some(mut group) = stream.group_to_change(data, request.group)? else {
        return Ok(None);
    };
    let Some(first) = group.last.next() else {
        return Ok(None);
    };
    let most = request.most(look).unwrap_or(left).min(left);
    let places = page(stream.between(first, StreamId::MAX)?, Some(most), false);
    if places.is_empty() {
        // Perhaps others remove entries just now, and fail.
        stream.depend_on_all(data)?;
        return Ok(None);
    }
    let added = stream.last()?.added;
    let mut shown = Vec::with_capacity(places.len());
    for place in places {
        let (id, entry) = stream.entry_at(place)?;
        // What is given rests on the entry being there.
        stream.rest_on(data, &StreamPart::Entry(id))?;
        group.read = match group.read {
            Some(read) if !stream.has_gaps_from(id)? => Some(read.wrapping_add(1)),
            _ if added > 0 => stream.read_up_to(id)?,
            read => read,
        };
        group.last = id;
        shown.push(show_entry(data, id, entry)?);
        if !request.no_ack {
            let pending = StreamPending {
                delivered: data.now(),
                count: 1,
                consumer: own(request.consumer),
            };
            stream.put(data, &StreamPart::Pending(request.group, id), Some(pending.element()))?;
        }
    }
    stream.put(data, &StreamPart::Group(request.group), Some(group.element()))?;
    Ok(Some(shown))
}

/// At most `left` entries behind an id that the consumer was given and has not acknowledged. They
/// count as given once more.
fn history(
    data: &mut Data,
    stream: &Stream,
    request: &Request,
    (after, left): (StreamId, usize),
) -> Result<Vec<Reply>, Fault> {
    let most = request.count.unwrap_or(left).min(left);
    let mut shown = Vec::new();
    let first = after.next().unwrap_or(StreamId::MAX);
    for place in stream.pending_places(request.group, first, StreamId::MAX)? {
        data.transaction.works(size_of::<StreamPending>())?;
        let pending = stream.pending_at(place)?;
        if pending.held.consumer != request.consumer {
            continue;
        }
        let part = StreamPart::Pending(request.group, pending.id);
        stream.rest_on(data, &part)?;
        shown.push(match stream.entry(pending.id)? {
            None => Reply::Array(vec![show_id(pending.id), Reply::NullArray]),
            Some(entry) => {
                let again = StreamPending {
                    delivered: data.now(),
                    count: pending.held.count.saturating_add(1),
                    consumer: Bytes::copy_from_slice(request.consumer),
                };
                stream.put(data, &part, Some(again.element()))?;
                show_entry(data, pending.id, entry)?
            }
        });
        if shown.len() == most {
            break;
        }
    }
    if shown.is_empty() {
        stream.depend_on_all(data)?;
    }
    Ok(shown)
}
