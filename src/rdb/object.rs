//! Values of every type, in every form.

use bytes::Bytes;

use super::source::{Reader, Source};
use super::{Object, Problem, VALKEY_9, form, packed, stream};
use crate::model::{Field, Fields, Items, Members, Scores};

const TWICE: Problem = Problem::Bad("an element stands there twice");
const ODD: Problem = Problem::Bad("an element has a part too few");

/// Reads the value that comes after the byte with its form. `version` is that of the payload or
/// file.
pub fn read<S: Source>(reader: &mut Reader<S>, of: u8, version: u16) -> Result<Object, Problem> {
    let object = match of {
        form::STRING => Object::String(reader.string()?),
        form::LIST => list(strings(reader, 1)?)?,
        form::LIST_ZIPLIST => list(reader.packed(packed::ziplist)?)?,
        form::LIST_QUICKLIST => list(quicklist(reader)?)?,
        form::LIST_QUICKLIST_2 => list(quicklist_2(reader)?)?,
        form::SET => set(strings(reader, 1)?)?,
        form::SET_INTSET => set(reader.packed(packed::intset)?)?,
        form::SET_LISTPACK => set(reader.packed(packed::listpack)?)?,
        form::SORTED_SET => sorted_set(reader, decimal_score)?,
        form::SORTED_SET_2 => sorted_set(reader, |reader| Ok(f64::from_le_bytes(reader.array()?)))?,
        form::SORTED_SET_ZIPLIST => sorted_set_of(&reader.packed(packed::ziplist)?)?,
        form::SORTED_SET_LISTPACK => sorted_set_of(&reader.packed(packed::listpack)?)?,
        form::HASH => hash(strings(reader, 2)?)?,
        form::HASH_ZIPMAP => hash(reader.packed(packed::zipmap)?)?,
        form::HASH_ZIPLIST => hash(reader.packed(packed::ziplist)?)?,
        form::HASH_LISTPACK => hash(reader.packed(packed::listpack)?)?,
        form::HASH_EXPIRING_EARLY if version >= VALKEY_9 => expiring_of_valkey(reader)?,
        form::HASH_EXPIRING_EARLY => expiring(reader, 1)?,
        form::HASH_EXPIRING => {
            let first = reader.time()?;
            expiring(reader, first)?
        }
        form::HASH_EXPIRING_LISTPACK_EARLY => expiring_of(reader.packed(packed::listpack)?)?,
        form::HASH_EXPIRING_LISTPACK => {
            // The first time at which a field expires.
            reader.time()?;
            expiring_of(reader.packed(packed::listpack)?)?
        }
        form::STREAM | form::STREAM_2 | form::STREAM_3 => Object::Stream(stream::read(reader, of)?),
        form::MODULE | form::MODULE_2 => return Err(Problem::Module),
        other => return Err(Problem::Unknown(other)),
    };
    Ok(object)
}

/// As many strings as a length says, times this.
fn strings<S: Source>(reader: &mut Reader<S>, times: u64) -> Result<Vec<Bytes>, Problem> {
    let count = reader.length()?;
    let mut strings = Vec::new();
    for _ in 0..count.saturating_mul(times) {
        strings.push(reader.string()?);
    }
    Ok(strings)
}

fn quicklist<S: Source>(reader: &mut Reader<S>) -> Result<Vec<Bytes>, Problem> {
    let mut items = Vec::new();
    for _ in 0..reader.length()? {
        items.append(&mut reader.packed(packed::ziplist)?);
    }
    Ok(items)
}

fn quicklist_2<S: Source>(reader: &mut Reader<S>) -> Result<Vec<Bytes>, Problem> {
    const ONE_ITEM: u64 = 1;
    const LISTPACK: u64 = 2;
    let mut items = Vec::new();
    for _ in 0..reader.length()? {
        match reader.length()? {
            ONE_ITEM => items.push(reader.string()?),
            LISTPACK => items.append(&mut reader.packed(packed::listpack)?),
            _ => return Err(Problem::Bad("a part of a list is in no known form")),
        }
    }
    Ok(items)
}

fn list(items: Vec<Bytes>) -> Result<Object, Problem> {
    match items.is_empty() {
        true => Err(Problem::Empty),
        false => Ok(Object::List(Items(items.into()))),
    }
}

fn set(members: Vec<Bytes>) -> Result<Object, Problem> {
    let mut set = Members::default();
    for member in members {
        if !set.0.insert(member) {
            return Err(TWICE);
        }
    }
    match set.0.is_empty() {
        true => Err(Problem::Empty),
        false => Ok(Object::Set(set)),
    }
}

/// Adds a member, which must be a new one.
fn add_score(scores: &mut Scores, member: Bytes, score: f64) -> Result<(), Problem> {
    if score.is_nan() {
        return Err(Problem::Bad("a score is not a number"));
    }
    match scores.0.insert(member, score) {
        Some(_) => Err(TWICE),
        None => Ok(()),
    }
}

fn in_order(mut scores: Scores) -> Result<Object, Problem> {
    if scores.0.is_empty() {
        return Err(Problem::Empty);
    }
    scores.sort();
    Ok(Object::SortedSet(scores))
}

fn sorted_set<S: Source>(
    reader: &mut Reader<S>,
    score: fn(&mut Reader<S>) -> Result<f64, Problem>,
) -> Result<Object, Problem> {
    let mut scores = Scores::default();
    for _ in 0..reader.length()? {
        let member = reader.string()?;
        add_score(&mut scores, member, score(reader)?)?;
    }
    in_order(scores)
}

/// Members and scores, one after the other.
fn sorted_set_of(parts: &[Bytes]) -> Result<Object, Problem> {
    let (pairs, []) = parts.as_chunks::<2>() else {
        return Err(ODD);
    };
    let mut scores = Scores::default();
    for [member, score] in pairs {
        add_score(&mut scores, member.clone(), parse_score(score)?)?;
    }
    in_order(scores)
}

/// A score as a byte with the length of its text, and the text.
fn decimal_score<S: Source>(reader: &mut Reader<S>) -> Result<f64, Problem> {
    match reader.byte()? {
        253 => Ok(f64::NAN),
        254 => Ok(f64::INFINITY),
        255 => Ok(f64::NEG_INFINITY),
        len => parse_score(&reader.source.take(usize::from(len))?),
    }
}

fn parse_score(text: &[u8]) -> Result<f64, Problem> {
    let score = str::from_utf8(text).ok().and_then(|text| text.parse().ok());
    score.ok_or(Problem::Bad("a score is not a number"))
}

/// Adds a field, which must be a new one. An expiry of 0 is none.
fn add_field(fields: &mut Fields, name: Bytes, value: Bytes, expire_at: u64) -> Result<(), Problem> {
    if i64::try_from(expire_at).is_err() {
        return Err(NO_TIME);
    }
    let expire_at = (expire_at > 0).then_some(expire_at);
    match fields.0.insert(name, Field { value, expire_at }) {
        Some(_) => Err(TWICE),
        None => Ok(()),
    }
}

const NO_TIME: Problem = Problem::Bad("the expiry of a field is no time");

fn not_empty(fields: Fields) -> Result<Object, Problem> {
    match fields.0.is_empty() {
        true => Err(Problem::Empty),
        false => Ok(Object::Hash(fields)),
    }
}

/// Names and values, one after the other.
fn hash(parts: Vec<Bytes>) -> Result<Object, Problem> {
    let (pairs, []) = parts.as_chunks::<2>() else {
        return Err(ODD);
    };
    let mut fields = Fields::default();
    for [name, value] in pairs {
        add_field(&mut fields, name.clone(), value.clone(), 0)?;
    }
    not_empty(fields)
}

/// Each field has an expiry, its name, and its value. An expiry is one more than the milliseconds
/// after `first`, or 0 for none.
fn expiring<S: Source>(reader: &mut Reader<S>, first: i64) -> Result<Object, Problem> {
    let first = u64::try_from(first).map_err(|_| NO_TIME)?;
    let mut fields = Fields::default();
    for _ in 0..reader.length()? {
        let expire_at = match reader.length()? {
            0 => 0,
            after => (after - 1).checked_add(first).ok_or(NO_TIME)?,
        };
        let (name, value) = (reader.string()?, reader.string()?);
        add_field(&mut fields, name, value, expire_at)?;
    }
    not_empty(fields)
}

/// Each field has a name, a value, and a time, which is -1 if it does not expire.
fn expiring_of_valkey<S: Source>(reader: &mut Reader<S>) -> Result<Object, Problem> {
    let mut fields = Fields::default();
    for _ in 0..reader.length()? {
        let (name, value) = (reader.string()?, reader.string()?);
        let expire_at = match reader.time()? {
            -1 => 0,
            at => u64::try_from(at).map_err(|_| NO_TIME)?,
        };
        add_field(&mut fields, name, value, expire_at)?;
    }
    not_empty(fields)
}

/// Names, values and times, one after the other.
fn expiring_of(parts: Vec<Bytes>) -> Result<Object, Problem> {
    let (triples, []) = parts.as_chunks::<3>() else {
        return Err(ODD);
    };
    let mut fields = Fields::default();
    for [name, value, at] in triples {
        let at = str::from_utf8(at).ok().and_then(|at| at.parse().ok());
        add_field(&mut fields, name.clone(), value.clone(), at.ok_or(NO_TIME)?)?;
    }
    not_empty(fields)
}
