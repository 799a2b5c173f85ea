//! A hash: a map from field to value, or to `[value, expiry]` for a field that expires.

use bytes::Bytes;
use indexmap::IndexMap;

use super::{Collection, Packed, at_end, part_of, room};
use crate::model::msgpack::{Number, Problem, Reader, put_array, put_bytes, put_map, put_unsigned};

/// A field's value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Field {
    pub value: Bytes,
    /// Absolute, milliseconds since the epoch.
    pub expire_at: Option<u64>,
}

impl Field {
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
