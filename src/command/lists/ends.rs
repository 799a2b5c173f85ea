//! Commands on the ends of a list: pushing, taking out, moving.

use std::collections::VecDeque;

use bytes::Bytes;

use super::array;
use super::view::List;
use crate::command::args::{SYNTAX, count_of, is, wrong_arity};
use crate::command::blocking::Look;
use crate::command::collections::Pops;
use crate::command::{Args, Data, Fault, Outcome, Reply};

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

    pub(super) fn push(self, items: &mut VecDeque<Bytes>, item: Bytes) {
        match self {
            End::Left => items.push_front(item),
            End::Right => items.push_back(item),
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
    let mut list = List::at_ends(data, args[1])?;
    if !creates {
        if list.is_empty() {
            list.rest_on_none(data)?;
            return Ok(Reply::Int(0));
        }
        list.rest_on_an_item(data);
    }
    list.push(data, to, &args[2..])?;
    let len = list.len();
    list.write(data)?;
    Ok(Reply::Int(len as i64))
}

// ---- taking out ----

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
    let mut list = List::at_ends(data, args[1])?;
    if list.is_empty() {
        list.rest_on_none(data)?;
        return Ok(match count {
            Some(_) => Reply::NullArray,
            None => Reply::Null,
        });
    }
    let taken = list.pop(data, from, count.unwrap_or(1))?;
    list.write(data)?;
    Ok(match count {
        Some(_) => array(taken),
        None => taken.into_iter().next().into(),
    })
}

/// Takes up to so many items out; nothing if the list is missing. They come in the order in which
/// they are taken.
pub(super) fn take_some(data: &mut Data, key: &[u8], count: usize, from: End) -> Result<Vec<Bytes>, Fault> {
    let mut list = List::at_ends(data, key)?;
    let taken = list.pop(data, from, count)?;
    list.write(data)?;
    Ok(taken)
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
    let mut list = match List::at_ends(data, source) {
        Err(fault) if look.passes_over(&fault) => return Ok(None),
        list => list?,
    };
    let Some(item) = list.pop(data, from, 1)?.pop() else {
        return Ok(None);
    };
    if source == target {
        list.push(data, to, &[&item])?;
    } else {
        let mut other = List::at_ends(data, target)?;
        other.push(data, to, &[&item])?;
        other.write(data)?;
    }
    list.write(data)?;
    Ok(Some(Reply::Bulk(item)))
}
