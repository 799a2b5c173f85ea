//! XINFO.

use super::entries::page;
use super::groups::{Consumer, consumers, no_group};
use super::view::{Stream, show_id};
use crate::command::args::{int, is, unknown_subcommand};
use crate::command::{Args, Data, Fault, Outcome, Reply};
use crate::model::{StreamGroup, StreamId, StreamPending};

type Fields = Vec<(Reply, Reply)>;

fn field(name: &'static str, value: Reply) -> (Reply, Reply) {
    (Reply::bulk(name), value)
}

fn number(value: usize) -> Reply {
    Reply::Int(value as i64)
}

fn optional(value: Option<i64>) -> Reply {
    value.map_or(Reply::Null, Reply::Int)
}

fn existing<'k>(data: &mut Data, key: &'k [u8]) -> Result<Stream<'k>, Fault> {
    Stream::read(data, key)?.ok_or_else(|| "ERR no such key".into())
}

pub(super) fn of_consumers(data: &mut Data, args: Args) -> Outcome {
    let (stream, group) = (existing(data, args[2])?, args[3]);
    if stream.group(group)?.is_none() {
        return Err(no_group(args[2], group));
    }
    let now = data.now();
    let of_consumers = consumers(data, &stream, group)?.into_iter().map(|(name, consumer)| {
        let inactive = consumer.active.map_or(-1, |at| now.saturating_sub(at) as i64);
        Reply::Map(vec![
            field("name", Reply::Bulk(name)),
            field("pending", number(consumer.pending.len())),
            field("idle", Reply::Int(now.saturating_sub(consumer.seen) as i64)),
            field("inactive", Reply::Int(inactive)),
        ])
    });
    Ok(Reply::Array(of_consumers.collect()))
}

pub(super) fn of_groups(data: &mut Data, args: Args) -> Outcome {
    let stream = existing(data, args[2])?;
    let mut shown = Vec::new();
    for (name, group) in stream.groups()? {
        let count = consumers(data, &stream, &name)?.len();
        shown.push(Reply::Map(vec![
            field("name", Reply::Bulk(name.clone())),
            field("consumers", number(count)),
            field("pending", number(stream.all_pending(&name)?.len())),
            field("last-delivered-id", show_id(group.last)),
            field("entries-read", optional(group.read)),
            field("lag", optional(stream.lag(&group)?)),
        ]));
    }
    Ok(Reply::Array(shown))
}

pub(super) fn of_stream(data: &mut Data, args: Args) -> Outcome {
    let stream = existing(data, args[2])?;
    let wrong = || unknown_subcommand("xinfo", args[1]);
    let count = match args[3..] {
        [] => None,
        [full] if is(full, "full") => Some(10),
        [full, word, count] if is(full, "full") && is(word, "count") => {
            Some(usize::try_from(int(count)?).unwrap_or(10))
        }
        _ => return Err(wrong()),
    };
    let mut fields = facts(data, &stream)?;
    let entries = stream.entries()?;
    let Some(count) = count else {
        fields.push(field("groups", number(stream.groups()?.len())));
        for (name, reverse) in [("first-entry", false), ("last-entry", true)] {
            let shown = stream.show(data, page(entries.clone(), Some(1), reverse), reverse)?;
            fields.push(field(name, shown.into_iter().next().unwrap_or(Reply::Null)));
        }
        return Ok(Reply::Map(fields));
    };
    let most = if count == 0 { usize::MAX } else { count };
    let shown = stream.show(data, page(entries, Some(most), false), false)?;
    fields.push(field("entries", Reply::Array(shown)));
    let mut groups = Vec::new();
    for (name, group) in stream.groups()? {
        groups.push(Reply::Map(whole_group(data, &stream, (&name, &group), most)?));
    }
    fields.push(field("groups", Reply::Array(groups)));
    Ok(Reply::Map(fields))
}

/// What XINFO STREAM tells with FULL and without.
fn facts(data: &mut Data, stream: &Stream) -> Result<Fields, Fault> {
    let last = stream.last()?;
    let length = stream.len()?;
    // As Redis would keep them, roughly.
    let blocks = (length as u64).div_ceil(data.config.stream_block());
    Ok(vec![
        field("length", number(length)),
        field("radix-tree-keys", Reply::Int(blocks as i64)),
        field("radix-tree-nodes", Reply::Int(blocks as i64 + 1)),
        field("last-generated-id", show_id(last.last)),
        field("max-deleted-entry-id", show_id(stream.max_deleted()?)),
        field("entries-added", Reply::Int(last.added as i64)),
        field(
            "recorded-first-entry-id",
            show_id(stream.first_id()?.unwrap_or(StreamId::MIN)),
        ),
    ])
}

fn whole_group(
    data: &mut Data,
    stream: &Stream,
    (name, group): (&[u8], &StreamGroup),
    most: usize,
) -> Result<Fields, Fault> {
    let places = stream.all_pending(name)?;
    let mut pending = Vec::new();
    for place in page(places.clone(), Some(most), false) {
        let entry = stream.pending_at(place)?;
        pending.push(Reply::Array(vec![
            show_id(entry.id),
            Reply::Bulk(entry.held.consumer),
            Reply::Int(entry.held.delivered as i64),
            Reply::Int(entry.held.count as i64),
        ]));
    }
    let of_consumers = consumers(data, stream, name)?;
    let of_consumers = of_consumers
        .into_iter()
        .map(|(name, consumer)| whole_consumer(Reply::Bulk(name), &consumer, most));
    Ok(vec![
        field("name", Reply::bulk(name)),
        field("last-delivered-id", show_id(group.last)),
        field("entries-read", optional(group.read)),
        field("lag", optional(stream.lag(group)?)),
        field("pel-count", number(places.len())),
        field("pending", Reply::Array(pending)),
        field("consumers", Reply::Array(of_consumers.collect())),
    ])
}

fn whole_consumer(name: Reply, consumer: &Consumer, most: usize) -> Reply {
    let pending = |(id, held): &(StreamId, StreamPending)| {
        Reply::Array(vec![
            show_id(*id),
            Reply::Int(held.delivered as i64),
            Reply::Int(held.count as i64),
        ])
    };
    let active = consumer.active.map_or(-1, |at| at as i64);
    Reply::Map(vec![
        field("name", name),
        field("seen-time", Reply::Int(consumer.seen as i64)),
        field("active-time", Reply::Int(active)),
        field("pel-count", number(consumer.pending.len())),
        field(
            "pending",
            Reply::Array(consumer.pending.iter().take(most).map(pending).collect()),
        ),
    ])
}
