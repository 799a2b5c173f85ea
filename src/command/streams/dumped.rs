//! Streams as DUMP and RESTORE have them.

use super::groups::{self, LOOKED_AT};
use super::view::{SHOWN, Stream};
use crate::command::{Data, Fault};
use crate::database::consumers::ConsumerNote;
use crate::model::{
    Collection, Element, ElementName, Entry, Split, StreamEntry, StreamHead, StreamId, StreamPart, max_deleted_element,
};
use crate::rdb;

/// The stream that was read at a key.
pub fn dumped(data: &mut Data, key: &[u8], entry: &Entry) -> Result<rdb::Stream, Fault> {
    let stream = Stream::of(data, key, entry)?;
    let mut dumped = rdb::Stream {
        entries: Vec::new(),
        // The entries that its bounds exclude stay behind.
        head: StreamHead {
            first: StreamId::MIN,
            ..stream.last()?
        },
        max_deleted: stream.max_deleted()?,
        groups: Vec::new(),
    };
    for place in stream.entries()? {
        let (id, entry) = stream.entry_at(place)?;
        let bytes: usize = entry.fields.iter().map(bytes::Bytes::len).sum();
        data.transaction.works(SHOWN + bytes)?;
        dumped.entries.push((id, entry.fields));
    }
    for (name, group) in stream.groups()? {
        let mut pending = Vec::new();
        for place in stream.all_pending(&name)? {
            data.transaction.works(LOOKED_AT)?;
            let entry = stream.pending_at(place)?;
            pending.push((entry.id, entry.held));
        }
        let consumers = groups::consumers(data, &stream, &name)?.into_iter();
        let consumers = consumers.map(|(name, of)| rdb::Consumer {
            name,
            seen: of.seen,
            active: of.active,
        });
        dumped.groups.push(rdb::Group {
            name,
            group,
            pending,
            consumers: consumers.collect(),
        });
    }
    Ok(dumped)
}

/// Gives a key a stream; `expire_at` in milliseconds since the epoch.
pub fn restore(data: &mut Data, key: &[u8], stream: rdb::Stream, expire_at: Option<u64>) -> Result<(), Fault> {
    let (head, database) = (stream.head, data.database);
    let split = data
        .transaction
        .put_split(database, key, Collection::Stream, &head.metadata(), expire_at);
    if stream.max_deleted != Default::default() {
        let element = max_deleted_element(stream.max_deleted);
        put(data, key, &split, &StreamPart::MaxDeleted, element)?;
    }
    // The newest entry counts as the one that was added last.
    let behind = (0..stream.entries.len() as u64).rev();
    for ((id, fields), behind) in stream.entries.iter().zip(behind) {
        let fields: Vec<&[u8]> = fields.iter().map(|part| &part[..]).collect();
        let element = StreamEntry::element(head.added.saturating_sub(behind), &fields);
        put(data, key, &split, &StreamPart::Entry(*id), element)?;
    }
    for rdb::Group {
        name,
        group,
        pending,
        consumers,
    } in stream.groups
    {
        put(data, key, &split, &StreamPart::Group(&name), group.element())?;
        for (id, held) in pending {
            put(data, key, &split, &StreamPart::Pending(&name, id), held.element())?;
        }
        let group = (database, ElementName::prefix(key, split.version()), name);
        for rdb::Consumer { name, seen, active } in consumers {
            let seen = [(seen, false)].into_iter().chain(active.map(|active| (active, true)));
            for (at, active) in seen {
                let consumer = name.clone();
                let note = ConsumerNote::Seen { consumer, at, active };
                data.transaction.note_consumer(&group, note);
            }
        }
    }
    Ok(())
}

fn put(data: &mut Data, key: &[u8], split: &Split, part: &StreamPart, element: Element) -> Result<(), Fault> {
    let (sub_key, element) = (part.sub_key(), Some(element));
    data.transaction
        .put_element(data.database, key, split, &sub_key, element);
    data.transaction.check_size()
}
