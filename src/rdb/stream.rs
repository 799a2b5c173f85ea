//! Streams. Entries stand in listpacks, each with the id of its first entry. Groups, pending
//! entries and consumers follow.

use std::collections::{HashMap, HashSet};

use bytes::{BufMut, Bytes, BytesMut};

use super::source::{Reader, Source};
use super::writing::{put_length, put_string};
use super::{Problem, form, packed};
use crate::model::{StreamGroup, StreamHead, StreamId, StreamPending};

/// A stream with everything that belongs to it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stream {
    /// In the order of their ids. A field, its value, the next field, …
    pub entries: Vec<(StreamId, Vec<Bytes>)>,
    pub head: StreamHead,
    /// The highest id that XDEL has removed.
    pub max_deleted: StreamId,
    pub groups: Vec<Group>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    pub name: Bytes,
    pub group: StreamGroup,
    pub pending: Vec<(StreamId, StreamPending)>,
    /// All consumers, also those without pending entries.
    pub consumers: Vec<Consumer>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Consumer {
    pub name: Bytes,
    /// When it asked for entries last, milliseconds since the epoch.
    pub seen: u64,
    /// When it was given entries last, if that is known.
    pub active: Option<u64>,
}

/// Flags of an entry in a listpack.
mod flags {
    pub const DELETED: i64 = 1;
    /// It has the fields of the first entry.
    pub const SAME_FIELDS: i64 = 2;
}

const BROKEN: Problem = Problem::Bad("the entries of a stream are damaged");

// ---- reading ----

pub fn read<S: Source>(reader: &mut Reader<S>, of: u8) -> Result<Stream, Problem> {
    let mut stream = Stream::default();
    for _ in 0..reader.length()? {
        let first: [u8; 16] = reader.string()?[..].try_into().map_err(|_| BROKEN)?;
        let parts = reader.packed(packed::listpack)?;
        read_entries(&mut stream.entries, parse_id(&first), &parts)?;
    }
    let length = reader.length()?;
    stream.head.last = id(reader)?;
    if of == form::STREAM {
        stream.head.added = length;
    } else {
        // The first id, which the entries have too.
        id(reader)?;
        stream.max_deleted = id(reader)?;
        stream.head.added = reader.length()?;
    }
    let are_right = stream.entries.is_sorted_by(|(one, _), (next, _)| one < next)
        && stream.entries.len() as u64 == length
        && stream
            .entries
            .last()
            .is_none_or(|(newest, _)| *newest <= stream.head.last);
    if !are_right {
        return Err(BROKEN);
    }
    let mut known = HashSet::new();
    for _ in 0..reader.length()? {
        let group = read_group(reader, of, &stream)?;
        if !known.insert(group.name.clone()) {
            return Err(TWICE);
        }
        stream.groups.push(group);
    }
    Ok(stream)
}

fn id<S: Source>(reader: &mut Reader<S>) -> Result<StreamId, Problem> {
    let (ms, seq) = (reader.length()?, reader.length()?);
    Ok(StreamId { ms, seq })
}

fn parse_id(bytes: &[u8; 16]) -> StreamId {
    let both = u128::from_be_bytes(*bytes);
    StreamId {
        ms: (both >> 64) as u64,
        seq: both as u64,
    }
}

/// Takes the parts of a listpack one by one.
struct Parts<'p>(std::slice::Iter<'p, Bytes>);

impl Parts<'_> {
    fn next(&mut self) -> Result<Bytes, Problem> {
        self.0.next().cloned().ok_or(BROKEN)
    }

    fn integer(&mut self) -> Result<i64, Problem> {
        let text = self.next()?;
        let number = str::from_utf8(&text).ok().and_then(|text| text.parse().ok());
        number.ok_or(BROKEN)
    }

    fn count(&mut self) -> Result<usize, Problem> {
        usize::try_from(self.integer()?).map_err(|_| BROKEN)
    }
}

/// The first parts are: how many entries there are, how many were deleted, the number of fields of
/// the first entry, their names, 0. Each entry follows: its flags, its id after the first one, the
/// number of its fields with their names if they are others, values, the number of its parts.
fn read_entries(entries: &mut Vec<(StreamId, Vec<Bytes>)>, first: StreamId, parts: &[Bytes]) -> Result<(), Problem> {
    let mut rest = Parts(parts.iter());
    let (live, deleted) = (rest.count()?, rest.count()?);
    let count = rest.count()?;
    let names = parts.get(3..).and_then(|after| after.get(..count)).ok_or(BROKEN)?;
    rest.0 = parts[3 + count..].iter();
    if rest.integer()? != 0 {
        return Err(BROKEN);
    }
    let (mut found_live, mut found_deleted) = (0, 0);
    while rest.0.len() > 0 {
        let before = rest.0.len();
        let flags = rest.integer()?;
        let id = StreamId {
            ms: first.ms.wrapping_add_signed(rest.integer()?),
            seq: first.seq.wrapping_add_signed(rest.integer()?),
        };
        let mut fields = Vec::new();
        if flags & flags::SAME_FIELDS != 0 {
            for name in names {
                fields.extend([name.clone(), rest.next()?]);
            }
        } else {
            for _ in 0..rest.count()? {
                fields.extend([rest.next()?, rest.next()?]);
            }
        }
        if rest.count()? != before - rest.0.len() - 1 {
            return Err(BROKEN);
        }
        if flags & flags::DELETED == 0 {
            entries.push((id, fields));
            found_live += 1;
        } else {
            found_deleted += 1;
        }
    }
    match (found_live, found_deleted) == (live, deleted) {
        true => Ok(()),
        false => Err(BROKEN),
    }
}

const TWICE: Problem = Problem::Bad("a group, a consumer or a pending entry of a stream stands there twice");
const NOBODY: Problem = Problem::Bad("a pending entry of a stream is of no consumer, or of no group");

fn read_group<S: Source>(reader: &mut Reader<S>, of: u8, stream: &Stream) -> Result<Group, Problem> {
    let (name, last) = (reader.string()?, id(reader)?);
    let read = match of {
        form::STREAM => read_up_to(stream, last),
        _ => Some(reader.length()? as i64).filter(|read| *read >= 0),
    };
    let mut pending = Vec::new();
    let mut places = HashMap::new();
    for _ in 0..reader.length()? {
        reader.keep(0)?;
        let id = parse_id(&reader.array()?);
        let held = StreamPending {
            delivered: millis(reader.time()?),
            count: reader.length()?,
            consumer: Bytes::new(),
        };
        if places.insert(id, pending.len()).is_some() {
            return Err(TWICE);
        }
        pending.push((id, held));
    }
    let mut consumers: Vec<Consumer> = Vec::new();
    let mut known = HashSet::new();
    for _ in 0..reader.length()? {
        let name = reader.string()?;
        let seen = millis(reader.time()?);
        let active = match of {
            form::STREAM_3 => u64::try_from(reader.time()?).ok(),
            _ => Some(seen),
        };
        if !known.insert(name.clone()) {
            return Err(TWICE);
        }
        for _ in 0..reader.length()? {
            let place = places.remove(&parse_id(&reader.array()?)).ok_or(NOBODY)?;
            pending[place].1.consumer = name.clone();
        }
        consumers.push(Consumer { name, seen, active });
    }
    if !places.is_empty() {
        return Err(NOBODY);
    }
    let group = StreamGroup { last, read };
    Ok(Group {
        name,
        group,
        pending,
        consumers,
    })
}

/// A time that cannot be is one long ago.
fn millis(time: i64) -> u64 {
    u64::try_from(time).unwrap_or(0)
}

/// How many entries a group has read whose last id is this, if that can be said: before Redis 7.0
/// nobody counted them.
fn read_up_to(stream: &Stream, last: StreamId) -> Option<i64> {
    let added = stream.head.added as i64;
    let first = stream.entries.first().map(|(first, _)| *first);
    match first {
        None => Some(added),
        Some(_) if last == stream.head.last => Some(added),
        Some(first) if last < first => Some(0),
        Some(first) if last == first => Some(1),
        Some(_) => None,
    }
}

// ---- writing ----

/// Writes a stream in the form of Redis 7.0.
pub fn put(stream: &Stream, out: &mut BytesMut) {
    /// As Redis has them by default.
    const MOST_ENTRIES: usize = 100;
    const MOST_BYTES: usize = 4096;
    let mut listpacks: Vec<(StreamId, Listpack)> = Vec::new();
    let mut entries = &stream.entries[..];
    while let Some((first, fields)) = entries.first() {
        let mut bytes = 0;
        let fits = |(_, fields): &&(StreamId, Vec<Bytes>)| {
            bytes += fields.iter().map(Bytes::len).sum::<usize>();
            bytes <= MOST_BYTES
        };
        let count = entries.iter().take(MOST_ENTRIES).take_while(fits).count().max(1);
        let (these, rest) = entries.split_at(count);
        listpacks.push((*first, listpack_of(*first, fields, these)));
        entries = rest;
    }
    put_length(out, listpacks.len() as u64);
    for (first, listpack) in listpacks {
        put_string(out, &raw(first));
        put_string(out, &listpack.finish());
    }
    put_length(out, stream.entries.len() as u64);
    let first = stream.entries.first().map_or(StreamId::MIN, |(first, _)| *first);
    for id in [stream.head.last, first, stream.max_deleted] {
        put_id(out, id);
    }
    put_length(out, stream.head.added);
    put_length(out, stream.groups.len() as u64);
    stream.groups.iter().for_each(|group| put_group(out, group));
}

fn put_id(out: &mut BytesMut, id: StreamId) {
    put_length(out, id.ms);
    put_length(out, id.seq);
}

fn raw(id: StreamId) -> [u8; 16] {
    (u128::from(id.ms) << 64 | u128::from(id.seq)).to_be_bytes()
}

fn put_group(
    out: &mut BytesMut,
    Group {
        name,
        group,
        pending,
        consumers,
    }: &Group,
) {
    put_string(out, name);
    put_id(out, group.last);
    put_length(out, group.read.unwrap_or(-1) as u64);
    put_length(out, pending.len() as u64);
    let mut of_consumers: HashMap<&Bytes, Vec<StreamId>> = HashMap::new();
    for (id, held) in pending {
        out.put_slice(&raw(*id));
        out.put_u64_le(held.delivered);
        put_length(out, held.count);
        of_consumers.entry(&held.consumer).or_default().push(*id);
    }
    put_length(out, consumers.len() as u64);
    for Consumer { name, seen, .. } in consumers {
        put_string(out, name);
        out.put_u64_le(*seen);
        let ids = of_consumers.remove(name).unwrap_or_default();
        put_length(out, ids.len() as u64);
        ids.iter().for_each(|id| out.put_slice(&raw(*id)));
    }
}

/// A listpack with these entries; `fields` are those of the first one.
fn listpack_of(first: StreamId, fields: &[Bytes], entries: &[(StreamId, Vec<Bytes>)]) -> Listpack {
    let names = |fields: &'_ [Bytes]| -> Vec<Bytes> { fields.iter().step_by(2).cloned().collect() };
    let first_names = names(fields);
    let mut out = Listpack::default();
    out.integer(entries.len() as i64);
    out.integer(0);
    out.integer(first_names.len() as i64);
    first_names.iter().for_each(|name| out.text(name));
    out.integer(0);
    for (id, fields) in entries {
        let before = out.count;
        let are_same = names(fields) == first_names;
        out.integer(if are_same { flags::SAME_FIELDS } else { 0 });
        out.integer(id.ms.wrapping_sub(first.ms) as i64);
        out.integer(id.seq.wrapping_sub(first.seq) as i64);
        if are_same {
            fields.iter().skip(1).step_by(2).for_each(|value| out.text(value));
        } else {
            out.integer(fields.len() as i64 / 2);
            fields.iter().for_each(|part| out.text(part));
        }
        out.integer((out.count - before) as i64);
    }
    out
}

/// A listpack that is being written.
#[derive(Default)]
struct Listpack {
    entries: Vec<u8>,
    count: usize,
}

impl Listpack {
    fn integer(&mut self, number: i64) {
        let start = self.entries.len();
        match number {
            0..=127 => self.entries.push(number as u8),
            -4096..=4095 => self.entries.put_u16(0xc000 | (number as u16 & 0x1fff)),
            _ => match (i16::try_from(number), i32::try_from(number)) {
                (Ok(number), _) => {
                    self.entries.push(0xf1);
                    self.entries.put_i16_le(number);
                }
                (_, Ok(number)) => {
                    self.entries.push(0xf3);
                    self.entries.put_i32_le(number);
                }
                _ => {
                    self.entries.push(0xf4);
                    self.entries.put_i64_le(number);
                }
            },
        }
        self.end(start);
    }

    fn text(&mut self, text: &[u8]) {
        let start = self.entries.len();
        match text.len() {
            len @ 0..64 => self.entries.push(0x80 | len as u8),
            len @ 64..4096 => self.entries.put_u16(0xe000 | len as u16),
            len => {
                self.entries.push(0xf0);
                self.entries.put_u32_le(len as u32);
            }
        }
        self.entries.extend_from_slice(text);
        self.end(start);
    }

    fn end(&mut self, start: usize) {
        let (back, len) = packed::back_length(self.entries.len() - start);
        self.entries.extend_from_slice(&back[..len]);
        self.count += 1;
    }

    fn finish(self) -> Vec<u8> {
        let mut all = Vec::with_capacity(self.entries.len() + 7);
        all.put_u32_le(self.entries.len() as u32 + 7);
        all.put_u16_le(u16::try_from(self.count).unwrap_or(u16::MAX));
        all.extend_from_slice(&self.entries);
        all.push(0xff);
        all
    }
}
