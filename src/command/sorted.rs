//! A sorted set that a command reads, in its order: one that is one record, or one with a record
//! for each member. Of the second nothing is copied: a page of it costs no more than its members.

use std::ops::Range;

use bytes::Bytes;

use super::{Data, Fault};
use crate::database::hot::own;
use crate::database::transaction::{element_of, score_of};
use crate::database::{Form, Held, Indexed, Order, Ranked};
use crate::model::{Collection, Entry, PlaceOf, Scores, Tree};

/// What it costs to answer a member of a split set, as bytes to go through.
const SHOWN: usize = 100;

pub enum Sorted {
    /// Taken apart.
    Packed(Scores),
    /// In [`Order::Score`]. All members can be read, and none has expired.
    Split(Indexed),
}

impl Sorted {
    fn ordered(&self) -> Option<&Tree<Ranked>> {
        match self {
            Sorted::Packed(_) => None,
            Sorted::Split(indexed) => indexed.in_order(Order::Score),
        }
    }

    pub fn len(&self) -> usize {
        match self {
            Sorted::Packed(scores) => scores.0.len(),
            Sorted::Split(indexed) => indexed.by_name().len(),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// A member's score.
    pub fn score(&self, member: &[u8]) -> Option<f64> {
        match self {
            Sorted::Packed(scores) => scores.0.get(member).copied(),
            Sorted::Split(indexed) => Some(indexed.ranked(Order::Score, member)?.score),
        }
    }

    /// A member's place, counted from the lowest one, and its score.
    pub fn place(&self, member: &[u8]) -> Option<(usize, f64)> {
        match self {
            Sorted::Packed(scores) => {
                let (place, _, score) = scores.0.get_full(member)?;
                Some((place, *score))
            }
            Sorted::Split(indexed) => {
                let ranked = indexed.ranked(Order::Score, member)?;
                Some((self.ordered()?.rank(PlaceOf(&ranked)), ranked.score))
            }
        }
    }

    /// How many members at the beginning are as `is_before` says. No member after them may be.
    pub fn partition_point(&self, is_before: impl Fn(&[u8], f64) -> bool) -> usize {
        match self {
            Sorted::Packed(scores) => scores
                .0
                .partition_point(|member: &Bytes, score| is_before(member, *score)),
            Sorted::Split(_) => self.ordered().map_or(0, |ordered| {
                ordered.rank(|ranked: &Ranked| match is_before(&ranked.name, ranked.score) {
                    true => std::cmp::Ordering::Less,
                    false => std::cmp::Ordering::Greater,
                })
            }),
        }
    }

    /// The members at these places.
    pub fn iter(&self, places: Range<usize>) -> impl DoubleEndedIterator<Item = (&[u8], f64)> {
        let packed = match self {
            Sorted::Packed(scores) => scores.0.get_range(places.clone()),
            Sorted::Split(_) => None,
        };
        let packed = packed.into_iter().flatten();
        let split = self
            .ordered()
            .into_iter()
            .flat_map(move |ordered| ordered.range(places.clone()));
        packed
            .map(|(member, score)| (&member[..], *score))
            .chain(split.map(|ranked| (&ranked.name[..], ranked.score)))
    }

    /// The member at a place.
    pub fn at(&self, place: usize) -> Option<(Bytes, f64)> {
        match self {
            Sorted::Packed(scores) => scores
                .0
                .get_index(place)
                .map(|(member, score)| (member.clone(), *score)),
            Sorted::Split(_) => {
                let ranked = self.ordered()?.nth(place)?;
                Some((own(&ranked.name), ranked.score))
            }
        }
    }

    /// The members at these places, or from the last to the first of them.
    pub fn members(&self, data: &mut Data, places: Range<usize>, reverse: bool) -> Result<Vec<(Bytes, f64)>, Fault> {
        let members = match self {
            Sorted::Packed(scores) => {
                let members = scores.0.get_range(places).into_iter().flatten();
                let mut members: Vec<(Bytes, f64)> = members.map(|(member, score)| (member.clone(), *score)).collect();
                if reverse {
                    members.reverse();
                }
                members
            }
            Sorted::Split(_) => {
                data.transaction.works(SHOWN * places.len())?;
                let members = self.iter(places).map(|(member, score)| (own(member), score));
                match reverse {
                    true => members.rev().collect(),
                    false => members.collect(),
                }
            }
        };
        Ok(members)
    }
}

impl Data<'_, '_> {
    /// The sorted set at a key: an empty one if the key is missing. The error of Redis if the key
    /// holds something else.
    pub fn sorted(&mut self, key: &[u8]) -> Result<Sorted, Fault> {
        match self.get(key)? {
            Some(entry) => self.sorted_of(key, &entry),
            None => Ok(Sorted::Packed(Scores::default())),
        }
    }

    /// The sorted set that was read at a key.
    pub fn sorted_of(&mut self, key: &[u8], entry: &Entry) -> Result<Sorted, Fault> {
        let Form::Split(split) = entry.collection(Collection::SortedSet)? else {
            return Ok(Sorted::Packed(self.elements(key, entry)?));
        };
        let indexed = self
            .transaction
            .elements_in_order(self.database, key, split, (Order::Score, b""))?;
        if indexed.by_name().least_mark() <= self.now() {
            // Only another producer gives members an expiry.
            return Ok(Sorted::Packed(self.elements(key, entry)?));
        }
        let ordered = indexed.in_order(Order::Score);
        let last = ordered.and_then(|ordered| ordered.nth(ordered.len().checked_sub(1)?));
        if let Some(last) = last.filter(|last| !last.is_readable())
            && let Some(held) = indexed.by_name().get(Held::named(&last.name))
        {
            score_of(key, element_of(key, held)?)?;
        }
        Ok(Sorted::Split(indexed))
    }

    /// Removes the members at some places of the sorted set at a key, and returns them, or returns
    /// them from the last to the first. The key goes with its last member. An empty set if the key
    /// is missing; the error of Redis if it holds something else.
    pub fn take_members(
        &mut self,
        key: &[u8],
        places: impl FnOnce(&Sorted) -> Range<usize>,
        reverse: bool,
    ) -> Result<Vec<(Bytes, f64)>, Fault> {
        let Some(entry) = self.transaction.head(self.database, key)? else {
            return Ok(Vec::new());
        };
        let sorted = self.sorted_of(key, &entry)?;
        let places = places(&sorted);
        let taken = sorted.members(self, places.clone(), reverse)?;
        if taken.is_empty() {
            return Ok(taken);
        }
        match (entry.collection(Collection::SortedSet)?, sorted) {
            (Form::Packed(_), Sorted::Packed(mut scores)) => {
                scores.0.drain(places);
                self.put_packed(key, scores.pack(), entry.meta.expire_at);
            }
            (Form::Split(split), _) => {
                for (member, _) in &taken {
                    self.transaction.put_element(self.database, key, split, member, None);
                }
                if !self.transaction.keeps_elements(self.database, key, split)? {
                    self.delete(key);
                }
            }
            (Form::Packed(_), Sorted::Split(_)) => unreachable!("what is packed is not split"),
        }
        Ok(taken)
    }
}
