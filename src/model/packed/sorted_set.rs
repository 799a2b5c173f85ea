//! A sorted set: a map from member to score.

use std::cmp::Ordering;

use bytes::Bytes;
use indexmap::IndexMap;

use super::{Collection, Packed, at_end, part_of, room};
use crate::model::msgpack::{Number, Problem, Reader, put_bytes, put_float, put_map};

/// The members of a sorted set with their scores, which are never NaN.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Scores(pub IndexMap<Bytes, f64, foldhash::fast::RandomState>);

/// The order of a sorted set: by score, then by the member's bytes.
pub fn order((a, a_score): (&[u8], f64), (b, b_score): (&[u8], f64)) -> Ordering {
    let by_score = a_score.partial_cmp(&b_score).unwrap_or(Ordering::Equal);
    by_score.then_with(|| a.cmp(b))
}

impl Scores {
    /// Brings the members into the order of a sorted set.
    pub fn sort(&mut self) {
        self.0
            .sort_unstable_by(|a, a_score, b, b_score| order((a, *a_score), (b, *b_score)));
    }

    /// `None` if there is no member. They are in their order already, see [`Scores::sort`].
    pub fn pack(&self) -> Option<Packed> {
        debug_assert!(self.is_sorted());
        if self.0.is_empty() {
            return None;
        }
        let bytes: usize = self.0.keys().map(|member| member.len() + 5 + 9).sum();
        let mut out = Vec::with_capacity(bytes + 5);
        put_map(self.0.len(), &mut out);
        for (member, score) in &self.0 {
            put_bytes(member, &mut out);
            // Minus zero becomes zero, as in the small sorted sets of Redis.
            put_float(*score + 0.0, &mut out);
        }
        Some(Packed::kept(Collection::SortedSet, out.into()))
    }

    fn is_sorted(&self) -> bool {
        let both = self.0.iter().zip(self.0.iter().skip(1));
        both.into_iter()
            .all(|((a, a_score), (b, b_score))| order((a, *a_score), (b, *b_score)).is_lt())
    }
}

pub(super) fn read(bytes: &Bytes) -> Result<Scores, Problem> {
    let mut reader = Reader::new(bytes);
    let len = reader.map()?;
    let mut scores = IndexMap::with_capacity_and_hasher(room(len, &reader), Default::default());
    for _ in 0..len {
        let member = part_of(bytes, reader.bytes()?);
        scores.insert(member, score(&mut reader)?);
    }
    at_end(&reader)?;
    let mut scores = Scores(scores);
    if !scores.is_sorted() {
        scores.sort();
    }
    Ok(scores)
}

fn score(reader: &mut Reader<'_>) -> Result<f64, Problem> {
    match reader.number()? {
        Number::Unsigned(score) => Ok(score as f64),
        Number::Signed(score) => Ok(score as f64),
        Number::Float(score) if score.is_nan() => Err("a score is not a number"),
        Number::Float(score) => Ok(score),
    }
}

/// One member's score, in a sorted set in which no member stands twice.
pub(super) fn find(bytes: &Bytes, wanted: &[u8]) -> Result<Option<f64>, Problem> {
    let mut reader = Reader::new(bytes);
    for _ in 0..reader.map()? {
        let is_it = *reader.bytes()? == *wanted;
        let score = score(&mut reader)?;
        if is_it {
            return Ok(Some(score));
        }
    }
    Ok(None)
}
