//! A set: an array of its members.

use bytes::Bytes;
use indexmap::IndexSet;

use super::{Collection, Packed, at_end, part_of, room};
use crate::model::msgpack::{Problem, Reader, put_array, put_bytes};

/// The members of a set, in the order in which they came.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Members(pub IndexSet<Bytes, foldhash::fast::RandomState>);

impl Members {
    /// `None` if there is no member.
    pub fn pack(&self) -> Option<Packed> {
        if self.0.is_empty() {
            return None;
        }
        let bytes: usize = self.0.iter().map(|member| member.len() + 5).sum();
        let mut out = Vec::with_capacity(bytes + 5);
        put_array(self.0.len(), &mut out);
        self.0.iter().for_each(|member| put_bytes(member, &mut out));
        Some(Packed::kept(Collection::Set, out.into()))
    }
}

pub(super) fn read(bytes: &Bytes) -> Result<Members, Problem> {
    let mut reader = Reader::new(bytes);
    let len = reader.array()?;
    let mut members = IndexSet::with_capacity_and_hasher(room(len, &reader), Default::default());
    for _ in 0..len {
        members.insert(part_of(bytes, reader.bytes()?));
    }
    at_end(&reader)?;
    Ok(Members(members))
}

/// Whether this is a member.
pub(super) fn contains(bytes: &Bytes, wanted: &[u8]) -> Result<bool, Problem> {
    let mut reader = Reader::new(bytes);
    for _ in 0..reader.array()? {
        if *reader.bytes()? == *wanted {
            return Ok(true);
        }
    }
    Ok(false)
}
