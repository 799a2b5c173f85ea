//! Commands about entries: XADD, XDEL, XLEN, XRANGE, XREVRANGE, XSETID, XTRIM.

use std::collections::BTreeSet;
use std::ops::Range;

use super::deleting::References;
use super::groups::carry_consumers;
use super::ids::{self, NewId};
use super::view::{Reach, Stream, show_id};
use crate::command::args::{SYNTAX, int, is, wrong_arity};
use crate::command::{Args, Data, Fault, Outcome, Reply};
use crate::model::{BOUNDS, StreamEntry, StreamHead, StreamId, StreamPart, max_deleted_element};

/// What it costs to remove an entry, as bytes to go through.
const REMOVED: usize = 200;
/// A trim of more entries than this is one record, the head, which says which id is the first. On
/// Kafka such a trim conflicts with XADD on other nodes, one of fewer entries does not. While
/// `max-features` holds bounds back, each entry gets a tombstone.
const MOST_SINGLY: usize = 200;
/// An approximate trim without LIMIT removes at most so many blocks, and at most so many entries.
const BLOCKS: u64 = 100;
const MOST_APPROXIMATE: u64 = 1_000_000;

/// Which entries XADD and XTRIM keep.
#[derive(Clone, Copy)]
enum Keep {
    Newest(u64),
    From(StreamId),
}

struct Trim {
    keep: Keep,
    /// Whole blocks only.
    approximate: bool,
    /// The most entries that are removed; 0: as many as there are.
    limit: u64,
    references: References,
}

/// The options of XADD and XTRIM.
struct Options {
    trim: Option<Trim>,
    no_stream: bool,
    /// Of XADD: where the id stands, and what it says.
    id: Option<(usize, NewId)>,
}

impl Options {
    fn parse(args: Args, is_add: bool, block: u64) -> Result<Options, Fault> {
        let (mut keep, mut approximate, mut limit, mut references) = (None, false, None, None);
        let mut options = Options {
            trim: None,
            no_stream: false,
            id: None,
        };
        let mut at = 2;
        while let Some(word) = args.get(at) {
            let more = args.len() - 1 - at;
            if is_add && *word == b"*" {
                options.id = Some((at, NewId::Auto));
                break;
            } else if (is(word, "maxlen") || is(word, "minid")) && more > 0 {
                if keep.is_some() {
                    return Err(
                        "ERR syntax error, MAXLEN and MINID options at the same time are not compatible".into(),
                    );
                }
                approximate = more >= 2 && args[at + 1] == b"~";
                at += usize::from(more >= 2 && matches!(args[at + 1], b"~" | b"="));
                at += 1;
                keep = Some(match is(word, "maxlen") {
                    true => Keep::Newest(
                        u64::try_from(int(args[at])?).map_err(|_| "ERR The MAXLEN argument must be >= 0.")?,
                    ),
                    false => Keep::From(ids::strict(args[at], 0)?),
                });
            } else if is(word, "limit") && more > 0 {
                at += 1;
                limit = Some(u64::try_from(int(args[at])?).map_err(|_| "ERR The LIMIT argument must be >= 0.")?);
            } else if let Some(found) = References::parse(word) {
                if references.replace(found).is_some() {
                    return Err(SYNTAX.into());
                }
            } else if is_add && is(word, "nomkstream") {
                options.no_stream = true;
            } else if is_add {
                options.id = Some((at, ids::new_id(word)?));
                break;
            } else {
                return Err(SYNTAX.into());
            }
            at += 1;
        }
        if limit.is_some_and(|limit| limit > 0) && keep.is_none() {
            return Err("ERR syntax error, LIMIT cannot be used without specifying a trimming strategy".into());
        }
        if !is_add && keep.is_none() {
            return Err("ERR syntax error, XTRIM must be called with a trimming strategy".into());
        }
        if limit.is_some() && !approximate {
            return Err("ERR syntax error, LIMIT cannot be used without the special ~ option".into());
        }
        let usual = || match approximate {
            true => block.saturating_mul(BLOCKS).min(MOST_APPROXIMATE),
            false => 0,
        };
        let limit = limit.unwrap_or_else(usual);
        options.trim = keep.map(|keep| Trim {
            keep,
            approximate,
            limit,
            references: references.unwrap_or(References::Keep),
        });
        Ok(options)
    }
}

pub(super) fn xadd(data: &mut Data, args: Args) -> Outcome {
    let options = Options::parse(args, true, data.config.stream_block())?;
    let Some((at, id)) = options.id else {
        return Err(wrong_arity("xadd"));
    };
    let fields = &args[at + 1..];
    if fields.is_empty() || !fields.len().is_multiple_of(2) {
        return Err(wrong_arity("xadd"));
    }
    if id == NewId::Given(StreamId::MIN) {
        return Err("ERR The ID specified in XADD must be greater than 0-0".into());
    }
    // To trim, it has to know which entries are there.
    let reach = options.trim.as_ref().map_or(Reach::Newest, |_| Reach::All);
    let found = Stream::change_from(data, args[1], reach)?;
    if found.is_none() && options.no_stream {
        return Ok(Reply::Null);
    }
    let last = match &found {
        Some(stream) => stream.last_to_rest_on(data)?,
        None => StreamHead::default(),
    };
    if last.last == StreamId::MAX {
        return Err("ERR The stream has exhausted the last possible ID, unable to add more items".into());
    }
    let id = next_id(id, last.last, data.now())?;
    let mut stream = match found {
        Some(stream) => stream,
        None => Stream::create(data, args[1]),
    };
    data.transaction
        .rests_on_last_entry(data.database, stream.key, &stream.split);
    let entry = StreamEntry::element(last.added.saturating_add(1), fields);
    stream.put(data, &StreamPart::Entry(id), Some(entry))?;
    if let Some(trim) = &options.trim {
        stream.refresh(data)?;
        remove_oldest(data, &mut stream, trim)?;
    }
    Ok(show_id(id))
}

/// The id that XADD gives, which must be higher than the last one.
fn next_id(wanted: NewId, last: StreamId, now: u64) -> Result<StreamId, Fault> {
    let next = match wanted {
        NewId::Auto if now > last.ms => Some(StreamId { ms: now, seq: 0 }),
        NewId::Auto => last.next(),
        NewId::AutoSeq(ms) if ms == last.ms => last.next().filter(|next| next.ms == ms),
        NewId::AutoSeq(ms) => Some(StreamId { ms, seq: 0 }),
        NewId::Given(id) => Some(id),
    };
    next.filter(|next| *next > last)
        .ok_or_else(|| "ERR The ID specified in XADD is equal or smaller than the target stream top item".into())
}

pub(super) fn xtrim(data: &mut Data, args: Args) -> Outcome {
    let options = Options::parse(args, false, data.config.stream_block())?;
    let (Some(mut stream), Some(trim)) = (Stream::change(data, args[1])?, &options.trim) else {
        return Ok(Reply::Int(0));
    };
    let removed = remove_oldest(data, &mut stream, trim)?;
    if removed == 0 {
        // Perhaps others remove them just now.
        stream.depend_on_all(data)?;
    }
    Ok(Reply::Int(removed as i64))
}

/// Removes what is not to be kept. Returns how many entries that were.
fn remove_oldest(data: &mut Data, stream: &mut Stream, trim: &Trim) -> Result<usize, Fault> {
    let entries = stream.entries()?;
    let surplus = match trim.keep {
        Keep::Newest(count) => entries
            .len()
            .saturating_sub(usize::try_from(count).unwrap_or(usize::MAX)),
        Keep::From(id) => stream.between(StreamId::MIN, id)?.len() - usize::from(stream.entry(id)?.is_some()),
    };
    let count = match trim.approximate {
        true => whole_blocks(data, stream, surplus, trim.limit)?,
        false => surplus,
    };
    if count == 0 {
        return Ok(0);
    }
    if trim.references == References::Acked {
        return remove_acknowledged(data, stream, trim, (surplus, count));
    }
    let last = stream.last_to_rest_on(data)?;
    // Another node that removes the oldest entries at the same time must not count them too.
    stream.rest_on(data, &StreamPart::Entry(stream.id_at(entries.start)?))?;
    // The first id that stays. No entry can have a lower one any more.
    let first = match count == entries.len() {
        false => Some(stream.id_at(entries.start + count)?),
        true => last.last.next(),
    };
    if trim.references == References::Delete {
        let groups = References::Delete.groups(data, stream)?;
        for place in entries.start..entries.start + count {
            data.transaction.works(REMOVED)?;
            let id = stream.id_at(place)?;
            References::Delete.release(data, stream, (&groups, id))?;
        }
    }
    let may_bound = count > MOST_SINGLY && data.config.may_use(BOUNDS);
    if let Some(first) = first.filter(|_| may_bound) {
        stream.put_head(data, StreamHead { first, ..last });
        return Ok(count);
    }
    for place in entries.start..entries.start + count {
        data.transaction.works(REMOVED)?;
        let id = stream.id_at(place)?;
        stream.put(data, &StreamPart::Entry(id), None)?;
    }
    if count == entries.len() {
        // The newest one goes, which knew the last id.
        stream.put_head(data, last);
    }
    Ok(count)
}

/// Removes the oldest entries that no group has to deliver or to hear of, until nothing is surplus.
/// An approximate trim looks only at the first `count` entries.
fn remove_acknowledged(
    data: &mut Data,
    stream: &mut Stream,
    trim: &Trim,
    (surplus, count): (usize, usize),
) -> Result<usize, Fault> {
    let entries = stream.entries()?;
    let looked_at = match trim.keep {
        Keep::Newest(_) if !trim.approximate => entries.len(),
        _ => count,
    };
    let groups = References::Acked.groups(data, stream)?;
    let mut ids = BTreeSet::new();
    for place in entries.clone().take(looked_at) {
        if ids.len() == surplus {
            break;
        }
        data.transaction.works(REMOVED)?;
        let id = stream.id_at(place)?;
        // Another node that removes it at the same time must not count it too.
        stream.rest_on(data, &StreamPart::Entry(id))?;
        if References::Acked.release(data, stream, (&groups, id))? {
            ids.insert(id);
        }
    }
    let last = stream.last_to_rest_on(data)?;
    for id in &ids {
        stream.put(data, &StreamPart::Entry(*id), None)?;
    }
    if !ids.is_empty() && ids.last().copied() == stream.newest_id()? {
        // It knew the last id.
        stream.put_head(data, last);
    }
    Ok(ids.len())
}

/// How many of the surplus entries are in blocks that go as a whole.
fn whole_blocks(data: &mut Data, stream: &Stream, surplus: usize, limit: u64) -> Result<usize, Fault> {
    let (entries, block) = (stream.entries()?, data.config.stream_block());
    let most = match limit {
        0 => surplus,
        limit => surplus.min(usize::try_from(limit).unwrap_or(usize::MAX)),
    };
    let block_of = |place: usize| Ok::<u64, Fault>(stream.ordinal_at(place)?.saturating_sub(1) / block);
    let mut whole = 0;
    while whole < most {
        data.transaction.works(REMOVED)?;
        let this = block_of(entries.start + whole)?;
        // Entries of a block stand side by side, at most so many.
        let widest = usize::try_from(block).unwrap_or(usize::MAX);
        let (mut low, mut high) = (whole + 1, entries.len().min(whole.saturating_add(widest)));
        while low < high {
            let middle = low + (high - low) / 2;
            match block_of(entries.start + middle)? == this {
                true => low = middle + 1,
                false => high = middle,
            }
        }
        if low > most {
            break;
        }
        whole = low;
    }
    Ok(whole)
}

pub(super) fn xdel(data: &mut Data, args: Args) -> Outcome {
    let Some(mut stream) = Stream::change(data, args[1])? else {
        return Ok(Reply::Int(0));
    };
    let ids = args[2..].iter().map(|argument| ids::strict(argument, 0));
    let ids: BTreeSet<StreamId> = ids.collect::<Result<_, _>>()?;
    Ok(Reply::Int(delete(data, &mut stream, &ids)? as i64))
}

/// Removes entries. Returns how many were there.
pub(super) fn delete(data: &mut Data, stream: &mut Stream, ids: &BTreeSet<StreamId>) -> Result<usize, Fault> {
    let last = stream.last_to_rest_on(data)?;
    let newest = stream.newest_id()?;
    let (mut count, mut highest) = (0, StreamId::MIN);
    for id in ids {
        let part = StreamPart::Entry(*id);
        if stream.rest_on(data, &part)?.is_some() {
            stream.put(data, &part, None)?;
            count += 1;
            highest = highest.max(*id);
        }
    }
    if count > 0 && highest > stream.max_deleted()? {
        let element = max_deleted_element(highest);
        stream.put(data, &StreamPart::MaxDeleted, Some(element))?;
    }
    if count > 0 && newest == Some(highest) {
        // It knew the last id.
        stream.put_head(data, last);
    }
    Ok(count)
}

pub(super) fn xlen(data: &mut Data, args: Args) -> Outcome {
    match Stream::read(data, args[1])? {
        Some(stream) => Ok(Reply::Int(stream.len()? as i64)),
        None => Ok(Reply::Int(0)),
    }
}

pub(super) fn xrange(data: &mut Data, args: Args) -> Outcome {
    range(data, args, (args[2], args[3]), false)
}

pub(super) fn xrevrange(data: &mut Data, args: Args) -> Outcome {
    range(data, args, (args[3], args[2]), true)
}

fn range(data: &mut Data, args: Args, (start, end): (&[u8], &[u8]), reverse: bool) -> Outcome {
    let (start, end) = (ids::start(start)?, ids::end(end)?);
    let mut count = None;
    let mut options = args[4..].iter();
    while let Some(option) = options.next() {
        match options.next() {
            Some(value) if is(option, "count") => count = Some(usize::try_from(int(value)?).unwrap_or(0)),
            _ => return Err(SYNTAX.into()),
        }
    }
    let Some(stream) = Stream::read(data, args[1])? else {
        return Ok(Reply::Array(Vec::new()));
    };
    if count == Some(0) {
        return Ok(Reply::NullArray);
    }
    let places = page(stream.between(start, end)?, count, reverse);
    Ok(Reply::Array(stream.show(data, places, reverse)?))
}

/// The first of these places, or the last ones by `reverse`: at most so many.
pub(super) fn page(places: Range<usize>, count: Option<usize>, reverse: bool) -> Range<usize> {
    let len = places.len().min(count.unwrap_or(usize::MAX));
    match reverse {
        true => places.end - len..places.end,
        false => places.start..places.start + len,
    }
}

pub(super) fn xsetid(data: &mut Data, args: Args) -> Outcome {
    let id = ids::strict(args[2], 0)?;
    let (mut added, mut deleted) = (None, None);
    let mut options = args[3..].iter();
    while let Some(option) = options.next() {
        match options.next() {
            Some(value) if is(option, "entriesadded") => {
                let count = u64::try_from(int(value)?).map_err(|_| "ERR entries_added must be positive")?;
                added = Some(count);
            }
            Some(value) if is(option, "maxdeletedid") => {
                let highest = ids::strict(value, 0)?;
                if highest > id {
                    return Err(
                        "ERR The ID specified in XSETID is smaller than the provided max_deleted_entry_id".into(),
                    );
                }
                deleted = Some(highest);
            }
            _ => return Err(SYNTAX.into()),
        }
    }
    let mut stream = Stream::change(data, args[1])?.ok_or("ERR no such key")?;
    let last = stream.last_to_rest_on(data)?;
    data.transaction
        .rests_on_last_entry(data.database, stream.key, &stream.split);
    if let Some(newest) = stream.newest_id()? {
        if id < newest {
            return Err("ERR The ID specified in XSETID is smaller than the target stream top item".into());
        }
        let length = stream.len()? as u64;
        if added.is_some_and(|added| added < length) {
            return Err("ERR The entries_added specified in XSETID is smaller than the target stream length".into());
        }
    }
    if let Some(deleted) = deleted.filter(|deleted| *deleted != StreamId::MIN) {
        let element = max_deleted_element(deleted);
        stream.put(data, &StreamPart::MaxDeleted, Some(element))?;
    }
    let added = added.unwrap_or(last.added);
    let mut first = last.first;
    if id < last.last {
        // Lower ids than the stream has had need a new version: what was trimmed may be below a
        // bound, and memory may have only entries behind the newest one that there was.
        let database = data.database;
        let head = data.transaction.head(database, stream.key)?.ok_or("ERR no such key")?;
        let taken = data.transaction.take(database, stream.key, head)?;
        data.transaction.give(database, stream.key, taken)?;
        let renewed = Stream::change(data, stream.key)?.ok_or("ERR no such key")?;
        carry_consumers(data, &stream, &renewed)?;
        stream = renewed;
        first = StreamId::MIN;
    }
    stream.put_head(data, StreamHead { last: id, added, first });
    Ok(Reply::Ok)
}
