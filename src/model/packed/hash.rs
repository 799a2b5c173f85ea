//! A hash: a map from field to value, or to `[value, expiry]` for a field that expires.

use bytes::Bytes;
use indexmap::IndexMap;

use super::{Collection, Packed, at_end, part_of, room};
use crate::model::Element;
use crate::model::msgpack::{Number, Problem, Reader, put_array, put_bytes, put_map, put_unsigned};

/// A field's value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Field {
    pub value: Bytes,
    /// Absolute, milliseconds since the epoch.
    pub expire_at: Option<u64>,
}

impl Field {
    /// The field that has an own record.
    pub fn of(element: &Element) -> Field {
        Field {
            value: element.payload(),
            expire_at: element.expire_at(),
        }
    }

    pub fn is_live(&self, now: u64) -> bool {
        self.expire_at.is_none_or(|at| at > now)
    }
}

/// The fields of a hash, in the order in which they came.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fields(pub IndexMap<Bytes, Field, foldhash::fast::RandomState>);

impl Fields {
    /// `None` if there is no field.
    pub fn pack(&self) -> Option<Packed> {
        if self.0.is_empty() {
            return None;
        }
        // A header of at most five bytes each, and a time of nine.
        let bytes: usize = self
            .0
            .iter()
            .map(|(name, field)| name.len() + field.value.len() + 20)
            .sum();
        let mut out = Vec::with_capacity(bytes + 5);
        put_map(self.0.len(), &mut out);
        for (name, field) in &self.0 {
            put_bytes(name, &mut out);
            if let Some(at) = field.expire_at {
                put_array(2, &mut out);
                put_bytes(&field.value, &mut out);
                put_unsigned(at, &mut out);
            } else {
                put_bytes(&field.value, &mut out);
            }
        }
        Some(Packed::kept(Collection::Hash, out.into()))
    }
}

pub(super) fn read(bytes: &Bytes) -> Result<Fields, Problem> {
    let mut reader = Reader::new(bytes);
    let len = reader.map()?;
    let mut fields = IndexMap::with_capacity_and_hasher(room(len, &reader), Default::default());
    for _ in 0..len {
        let name = part_of(bytes, reader.bytes()?);
        let (value, expire_at) = value(&mut reader)?;
        let value = part_of(bytes, value);
        fields.insert(name, Field { value, expire_at });
    }
    at_end(&reader)?;
    Ok(Fields(fields))
}

fn value<'a>(reader: &mut Reader<'a>) -> Result<(std::borrow::Cow<'a, [u8]>, Option<u64>), Problem> {
    if !reader.is_array() {
        return Ok((reader.bytes()?, None));
    }
    if reader.array()? != 2 {
        return Err("a field's value is an array of another length than 2");
    }
    let value = reader.bytes()?;
    match reader.number()? {
        Number::Unsigned(at) if i64::try_from(at).is_ok() => Ok((value, Some(at))),
        Number::Unsigned(_) | Number::Signed(_) | Number::Float(_) => {
            Err("a field's expiry is no time in milliseconds")
        }
    }
}

/// One field of a hash in which no name stands twice.
pub(super) fn find(bytes: &Bytes, wanted: &[u8]) -> Result<Option<Field>, Problem> {
    let mut reader = Reader::new(bytes);
    for _ in 0..reader.map()? {
        let is_it = *reader.bytes()? == *wanted;
        let (value, expire_at) = value(&mut reader)?;
        if is_it {
            let value = part_of(bytes, value);
            return Ok(Some(Field { value, expire_at }));
        }
    }
    Ok(None)
}

/// While fields expire one after the other, a hash is written again at most once in a millisecond
/// for each so many bytes that it has: at 64 KB a second.
const BYTES_A_MILLISECOND: u64 = 64;

/// When fields that have expired are to be removed: a while after the first one has expired, or
/// when the last one has and with it the whole hash.
pub(super) fn due(bytes: &[u8]) -> Option<u64> {
    /// How a value with an expiry begins: an array of two.
    const PAIR: u8 = 0x92;
    // Where this byte does not occur, no field expires. The search is much faster than reading.
    if !bytes.contains(&PAIR) {
        return None;
    }
    // Of what cannot be read nothing is removed. Commands on the key answer why.
    let (first, last) = first_and_last_expiry(bytes).ok()??;
    let delay = bytes.len() as u64 / BYTES_A_MILLISECOND;
    Some(first.saturating_add(delay).min(last))
}

/// When the first field expires, and when the last one does: never (`u64::MAX`) if one does not
/// expire. `None` if no field expires.
fn first_and_last_expiry(bytes: &[u8]) -> Result<Option<(u64, u64)>, Problem> {
    let mut reader = Reader::new(bytes);
    let (mut first, mut last) = (u64::MAX, 0);
    for _ in 0..reader.map()? {
        reader.bytes()?;
        let at = value(&mut reader)?.1.unwrap_or(u64::MAX);
        (first, last) = (first.min(at), last.max(at));
    }
    Ok((first < u64::MAX).then_some((first, last)))
}

/// Counts fields that are there at this time, up to `most`.
pub(super) fn count(mut reader: Reader<'_>, now: u64, most: usize) -> Result<usize, Problem> {
    let mut live = 0;
    for _ in 0..reader.map()? {
        reader.bytes()?;
        live += usize::from(value(&mut reader)?.1.is_none_or(|at| at > now));
        if live >= most {
            break;
        }
    }
    Ok(live)
}
