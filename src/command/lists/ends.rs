//! Commands on the ends of a list: pushing, taking out, moving.

use std::collections::VecDeque;

use bytes::Bytes;

use super::array;
use crate::command::args::{SYNTAX, count_of, is, wrong_arity};
use crate::command::blocking::Look;
use crate::command::collections::Pops;
use crate::command::data::Whole;
use crate::command::{Args, Data, Fault, Outcome, Reply};
use crate::database::hot::own;
use crate::model::Items;

#[derive(Clone, Copy)]
pub(super) enum End {
    Left,
    Right,
}

impl End {
    pub(super) fn of(word: &[u8]) -> Option<End> {
        match () {
            () if is(word, "left") => Some(End::Left),
            () if is(word, "right") => Some(End::Right),
            () => None,
        }
    }

    fn push(self, items: &mut VecDeque<Bytes>, item: Bytes) {
        match self {
            End::Left => items.push_front(item),
            End::Right => items.push_back(item),
        }
    }

    fn pop(self, items: &mut VecDeque<Bytes>) -> Option<Bytes> {
        match self {
            End::Left => items.pop_front(),
            End::Right => items.pop_back(),
        }
    }
}

// ---- pushing ----

pub(super) fn lpush(data: &mut Data, args: Args) -> Outcome {
    push(data, args, End::Left, true)
}

pub(super) fn rpush(data: &mut Data, args: Args) -> Outcome {
    push(data, args, End::Right, true)
}

pub(super) fn lpushx(data: &mut Data, args: Args) -> Outcome {
    push(data, args, End::Left, false)
}

pub(super) fn rpushx(data: &mut Data, args: Args) -> Outcome {
    push(data, args, End::Right, false)
}

fn push(data: &mut Data, args: Args, to: End, creates: bool) -> Outcome {
    let mut list: Whole<Items> = data.collection(args[1])?;
    let items = &mut list.elements.0;
    if items.is_empty() && !creates {
        return Ok(Reply::Int(0));
    }
    for item in &args[2..] {
        to.push(items, own(item));
    }
    let len = items.len();
    data.put_collection(args[1], list);
    Ok(Reply::Int(len as i64))
}

// ---- taking out ----

/// Takes up to so many items out of a list that has some. They come in the order in which they are
/// taken.
fn take(data: &mut Data, key: &[u8], mut list: Whole<Items>, count: usize, from: End) -> Vec<Bytes> {
    let items = &mut list.elements.0;
    let count = count.min(items.len());
    let taken = match from {
        End::Left => items.drain(..count).collect(),
        End::Right => items.drain(items.len() - count..).rev().collect(),
    };
    if count > 0 {
        data.put_collection(key, list);
    }
    taken
}

pub(super) fn lpop(data: &mut Data, args: Args) -> Outcome {
    pop(data, args, "lpop", End::Left)
}

pub(super) fn rpop(data: &mut Data, args: Args) -> Outcome {
    pop(data, args, "rpop", End::Right)
}

fn pop(data: &mut Data, args: Args, command: &str, from: End) -> Outcome {
    let count = match args[2..] {
        [] => None,
        [count] => Some(count_of(count, 0, "ERR value is out of range, must be positive")?),
        _ => return Err(wrong_arity(command)),
    };
    let list: Whole<Items> = data.collection(args[1])?;
    if list.elements.0.is_empty() {
        return Ok(match count {
            Some(_) => Reply::NullArray,
            None => Reply::Null,
        });
    }
    let taken = take(data, args[1], list, count.unwrap_or(1), from);
    Ok(match count {
        Some(_) => array(taken),
        None => taken.into_iter().next().into(),
    })
}

/// As [`take`]; nothing if the list is missing.
pub(super) fn take_some(data: &mut Data, key: &[u8], count: usize, from: End) -> Result<Vec<Bytes>, Fault> {
    let list: Whole<Items> = data.collection(key)?;
    Ok(take(data, key, list, count, from))
}

pub(super) fn lmpop(data: &mut Data, args: Args) -> Outcome {
    let taken = pop_first(data, &Pops::parse(args, End::of)?, &Look::default())?;
    Ok(taken.unwrap_or(Reply::NullArray))
}

/// What LMPOP and BLMPOP do; `None` if there are no items.
pub(super) fn pop_first(data: &mut Data, pops: &Pops<End>, look: &Look) -> Result<Option<Reply>, Fault> {
    let taken = look.first(pops.keys, |key| take_some(data, key, pops.count, pops.from))?;
    Ok(taken.map(|(key, taken)| Reply::Array(vec![Reply::bulk(key), array(taken)])))
}

// ---- moving ----

pub(super) fn lmove(data: &mut Data, args: Args) -> Outcome {
    let (from, to) = ends_of(args)?;
    let moved = shift(data, (args[1], from), (args[2], to), &Look::default())?;
    Ok(moved.unwrap_or(Reply::Null))
}

/// The ends that LMOVE and BLMOVE take from and push to.
pub(super) fn ends_of(args: Args) -> Result<(End, End), Fault> {
    let end = |word| End::of(word).ok_or_else(|| Fault::from(SYNTAX));
    Ok((end(args[3])?, end(args[4])?))
}

pub(super) fn rpoplpush(data: &mut Data, args: Args) -> Outcome {
    let moved = shift(data, (args[1], End::Right), (args[2], End::Left), &Look::default())?;
    Ok(moved.unwrap_or(Reply::Null))
}

/// Moves one item between two ends, which may be of one list. `None` if there is no item.
pub(super) fn shift(
    data: &mut Data,
    (source, from): (&[u8], End),
    (target, to): (&[u8], End),
    look: &Look,
) -> Result<Option<Reply>, Fault> {
    let mut list: Whole<Items> = match data.collection(source) {
        Err(fault) if look.passes_over(&fault) => return Ok(None),
        list => list?,
    };
    let Some(item) = from.pop(&mut list.elements.0) else {
        return Ok(None);
    };
    if source == target {
        to.push(&mut list.elements.0, item.clone());
    } else {
        let mut other: Whole<Items> = data.collection(target)?;
        to.push(&mut other.elements.0, item.clone());
        data.put_collection(target, other);
    }
    data.put_collection(source, list);
    Ok(Some(Reply::Bulk(item)))
}
