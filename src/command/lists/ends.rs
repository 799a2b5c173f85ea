//! Commands on the ends of a list: pushing, taking out, moving.

use std::collections::VecDeque;

use bytes::Bytes;

use super::array;
use crate::command::args::{SYNTAX, count_of, is, wrong_arity};
use crate::command::collections::Pops;
use crate::command::data::Whole;
use crate::command::{Args, Data, Fault, Outcome, Reply};
use crate::database::hot::own;
use crate::model::Items;

#[derive(Clone, Copy)]
enum End {
    Left,
    Right,
}

impl End {
    fn of(word: &[u8]) -> Option<End> {
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

pub(super) fn lmpop(data: &mut Data, args: Args) -> Outcome {
    let pops = Pops::parse(args, End::of)?;
    for key in pops.keys {
        let list: Whole<Items> = data.collection(key)?;
        if list.elements.0.is_empty() {
            continue;
        }
        let taken = take(data, key, list, pops.count, pops.from);
        return Ok(Reply::Array(vec![Reply::bulk(key), array(taken)]));
    }
    Ok(Reply::NullArray)
}

// ---- moving ----

pub(super) fn lmove(data: &mut Data, args: Args) -> Outcome {
    let end = |word| End::of(word).ok_or_else(|| Fault::from(SYNTAX));
    let (from, to) = (end(args[3])?, end(args[4])?);
    shift(data, (args[1], from), (args[2], to))
}

pub(super) fn rpoplpush(data: &mut Data, args: Args) -> Outcome {
    shift(data, (args[1], End::Right), (args[2], End::Left))
}

/// Moves one item between two ends, which may be of one list.
fn shift(data: &mut Data, (source, from): (&[u8], End), (target, to): (&[u8], End)) -> Outcome {
    let mut list: Whole<Items> = data.collection(source)?;
    let Some(item) = from.pop(&mut list.elements.0) else {
        return Ok(Reply::Null);
    };
    if source == target {
        to.push(&mut list.elements.0, item.clone());
    } else {
        let mut other: Whole<Items> = data.collection(target)?;
        to.push(&mut other.elements.0, item.clone());
        data.put_collection(target, other);
    }
    data.put_collection(source, list);
    Ok(Reply::Bulk(item))
}
