//! Lists: <https://redis.io/docs/latest/commands/?group=list>. What works on the ends of a list is
//! in [`ends`], what waits for items in [`blocking`], how a list is read and changed in [`view`];
//! this file has the other rows, and what works on items by their place or their value.

pub mod blocking;
mod ends;
#[cfg(test)]
mod tests;
mod view;

use std::ops::Range;

use bytes::Bytes;

use super::args::{NOT_AN_INTEGER, SYNTAX, count_of, int, is, parse_int};
use super::key_specs::access::{self, READS};
use super::{Args, Command, Data, Fault, KeySpec, Outcome, Reply, Run, flag};
use crate::model::Collection;
use crate::model::order_key::Near;
use view::List;

/// What the rows have in common.
const ROW: Command = Command {
    categories: &["list"],
    group: "list",
    complexity: "O(N), N being the number of items of the list.",
    ..Command::DEFAULT
};

const READ: &[KeySpec] = &[KeySpec::at(1, READS)];
const LOOK: &[KeySpec] = &[KeySpec::at(1, access::RO)];
const ADD: &[KeySpec] = &[KeySpec::at(1, access::RW | access::INSERT)];
const REMOVE: &[KeySpec] = &[KeySpec::at(1, access::RW | access::DELETE)];
const TAKE: u16 = access::RW | access::ACCESS | access::DELETE;
const MOVE: &[KeySpec] = &[KeySpec::at(1, TAKE), KeySpec::at(2, access::RW | access::INSERT)];
const GROWS: u32 = flag::WRITE | flag::DENYOOM;
const GROWS_FAST: u32 = GROWS | flag::FAST;

pub static COMMANDS: &[Command] = &[
    Command {
        name: "lindex",
        arity: 3,
        flags: flag::READONLY,
        keys: READ,
        summary: "Returns the item at a place.",
        run: Run::Data(lindex),
        ..ROW
    },
    Command {
        name: "linsert",
        arity: 5,
        flags: GROWS,
        keys: ADD,
        since: "2.2.0",
        summary: "Inserts an item beside another.",
        run: Run::Data(linsert),
        ..ROW
    },
    Command {
        name: "llen",
        arity: 2,
        flags: flag::READONLY | flag::FAST,
        keys: LOOK,
        complexity: "O(1)",
        summary: "Returns the number of items.",
        run: Run::Data(llen),
        ..ROW
    },
    Command {
        name: "lmove",
        arity: 5,
        flags: GROWS,
        keys: MOVE,
        since: "6.2.0",
        summary: "Moves an item from an end of a list to an end of another.",
        run: Run::Data(ends::lmove),
        ..ROW
    },
    Command {
        name: "lmpop",
        arity: -4,
        flags: flag::WRITE | flag::MOVABLEKEYS,
        keys: &[KeySpec::counted(1, TAKE)],
        since: "7.0.0",
        summary: "Takes items out of the first list that has some.",
        run: Run::Data(ends::lmpop),
        ..ROW
    },
    Command {
        name: "lpop",
        arity: -2,
        flags: flag::WRITE | flag::FAST,
        keys: &[KeySpec::at(1, TAKE)],
        summary: "Takes out the first items.",
        run: Run::Data(ends::lpop),
        ..ROW
    },
    Command {
        name: "lpos",
        arity: -3,
        flags: flag::READONLY,
        keys: READ,
        since: "6.0.6",
        summary: "Tells at which places an item stands.",
        run: Run::Data(lpos),
        ..ROW
    },
    Command {
        name: "lpush",
        arity: -3,
        flags: GROWS_FAST,
        keys: ADD,
        summary: "Puts items in front of all others.",
        run: Run::Data(ends::lpush),
        ..ROW
    },
    Command {
        name: "lpushx",
        arity: -3,
        flags: GROWS_FAST,
        keys: ADD,
        since: "2.2.0",
        summary: "Puts items in front of all others if the list exists.",
        run: Run::Data(ends::lpushx),
        ..ROW
    },
    Command {
        name: "lrange",
        arity: 4,
        flags: flag::READONLY,
        keys: READ,
        summary: "Returns a range of items.",
        run: Run::Data(lrange),
        ..ROW
    },
    Command {
        name: "lrem",
        arity: 4,
        flags: flag::WRITE,
        keys: REMOVE,
        summary: "Removes items that are equal to a value.",
        run: Run::Data(lrem),
        ..ROW
    },
    Command {
        name: "lset",
        arity: 4,
        flags: GROWS,
        keys: &[KeySpec::at(1, access::RW | access::UPDATE)],
        summary: "Replaces the item at a place.",
        run: Run::Data(lset),
        ..ROW
    },
    Command {
        name: "ltrim",
        arity: 4,
        flags: flag::WRITE,
        keys: REMOVE,
        summary: "Removes all items outside of a range.",
        run: Run::Data(ltrim),
        ..ROW
    },
    Command {
        name: "rpop",
        arity: -2,
        flags: flag::WRITE | flag::FAST,
        keys: &[KeySpec::at(1, TAKE)],
        summary: "Takes out the last items.",
        run: Run::Data(ends::rpop),
        ..ROW
    },
    Command {
        name: "rpoplpush",
        arity: 3,
        flags: GROWS,
        keys: MOVE,
        since: "1.2.0",
        summary: "Moves the last item to the front of another list.",
        run: Run::Data(ends::rpoplpush),
        ..ROW
    },
    Command {
        name: "rpush",
        arity: -3,
        flags: GROWS_FAST,
        keys: ADD,
        summary: "Puts items after all others.",
        run: Run::Data(ends::rpush),
        ..ROW
    },
    Command {
        name: "rpushx",
        arity: -3,
        flags: GROWS_FAST,
        keys: ADD,
        since: "2.2.0",
        summary: "Puts items after all others if the list exists.",
        run: Run::Data(ends::rpushx),
        ..ROW
    },
];

fn array(items: impl IntoIterator<Item = Bytes>) -> Reply {
    Reply::Array(items.into_iter().map(Reply::Bulk).collect())
}

/// The place that an index names in a list of this length. A negative index counts from the end.
/// `None` if the list has no such place.
fn place(index: i64, len: usize) -> Option<usize> {
    let distance = usize::try_from(index.unsigned_abs()).ok()?;
    let place = match index {
        0.. => Some(distance),
        _ => len.checked_sub(distance),
    };
    place.filter(|place| *place < len)
}

/// The range from `start` to `stop`, both included, in a list of this length. Negative numbers
/// count from the end. An empty range begins at 0.
fn range(start: i64, stop: i64, len: usize) -> Range<usize> {
    let len = len as i64;
    let from_front = |index: i64| if index < 0 { len + index } else { index };
    let (start, stop) = (from_front(start).max(0), from_front(stop).min(len - 1));
    match start <= stop {
        true => start as usize..stop as usize + 1,
        false => 0..0,
    }
}

fn llen(data: &mut Data, args: Args) -> Outcome {
    let len = data.collection_len(args[1], Collection::List)?;
    Ok(Reply::Int(len as i64))
}

fn lindex(data: &mut Data, args: Args) -> Outcome {
    let list = List::read(data, args[1])?;
    // As in Redis, the index of what does not exist is not read.
    if list.is_empty() {
        return Ok(Reply::Null);
    }
    match place(int(args[2])?, list.len()) {
        Some(place) => Ok(Reply::Bulk(list.at(data, place)?)),
        None => Ok(Reply::Null),
    }
}

fn lrange(data: &mut Data, args: Args) -> Outcome {
    let (start, stop) = (int(args[2])?, int(args[3])?);
    let list = List::read(data, args[1])?;
    let range = range(start, stop, list.len());
    Ok(array(list.items(data, range)?))
}

fn lset(data: &mut Data, args: Args) -> Outcome {
    let mut list = List::read(data, args[1])?;
    if list.is_empty() {
        return Err("ERR no such key".into());
    }
    let place = place(int(args[2])?, list.len()).ok_or("ERR index out of range")?;
    list.set(data, place, args[3])?;
    list.write(data)?;
    Ok(Reply::Ok)
}

fn linsert(data: &mut Data, args: Args) -> Outcome {
    // An item that is put beside the same one again and again has the most room at its other side.
    let near = match () {
        () if is(args[2], "before") => Near::Lower,
        () if is(args[2], "after") => Near::Upper,
        () => return Err(SYNTAX.into()),
    };
    let mut list = List::read(data, args[1])?;
    if list.is_empty() {
        return Ok(Reply::Int(0));
    }
    let Some(pivot) = find(data, &list, 0..list.len(), args[3])? else {
        return Ok(Reply::Int(-1));
    };
    list.insert(data, pivot, near, args[4])?;
    let len = list.len();
    list.write(data)?;
    Ok(Reply::Int(len as i64))
}

/// The first of these places whose item is equal to this one.
fn find(
    data: &mut Data,
    list: &List,
    places: impl IntoIterator<Item = usize>,
    item: &[u8],
) -> Result<Option<usize>, Fault> {
    for place in places {
        if list.at(data, place)? == item {
            return Ok(Some(place));
        }
    }
    Ok(None)
}

fn lrem(data: &mut Data, args: Args) -> Outcome {
    let count = int(args[2])?;
    let mut list = List::read(data, args[1])?;
    let most = match usize::try_from(count.unsigned_abs()) {
        Ok(0) | Err(_) => usize::MAX,
        Ok(most) => most,
    };
    let len = list.len();
    // A negative count removes the last ones.
    let nth = |nth: usize| if count < 0 { len - 1 - nth } else { nth };
    let (mut equal, mut next) = (Vec::new(), 0);
    while equal.len() < most
        && let Some(found) = find(data, &list, (next..len).map(nth), args[3])?
    {
        equal.push(found);
        next = nth(found) + 1;
    }
    equal.sort_unstable();
    list.remove_each(data, &equal)?;
    list.write(data)?;
    Ok(Reply::Int(equal.len() as i64))
}

fn ltrim(data: &mut Data, args: Args) -> Outcome {
    let (start, stop) = (int(args[2])?, int(args[3])?);
    let mut list = List::read(data, args[1])?;
    let range = range(start, stop, list.len());
    list.keep(data, range)?;
    list.write(data)?;
    Ok(Reply::Ok)
}

/// What LPOS looks for.
struct Search {
    /// Matches before this one are passed over; the first one is 1.
    rank: usize,
    from_end: bool,
    /// Most matches that are wanted; `None`: one, and not as an array.
    count: Option<usize>,
    /// Most items that are compared.
    most: usize,
}

impl Search {
    fn parse(options: Args) -> Result<Self, Fault> {
        let mut search = Search {
            rank: 1,
            from_end: false,
            count: None,
            most: usize::MAX,
        };
        // 0: no limit.
        let limit = |argument, error| {
            let limit = count_of(argument, 0, error)?;
            Ok::<_, Fault>(if limit == 0 { usize::MAX } else { limit })
        };
        for option in options.chunks(2) {
            match *option {
                [word, rank] if is(word, "rank") => {
                    let rank = rank_of(rank)?;
                    search.rank = usize::try_from(rank.unsigned_abs()).unwrap_or(usize::MAX);
                    search.from_end = rank < 0;
                }
                [word, count] if is(word, "count") => search.count = Some(limit(count, "ERR COUNT can't be negative")?),
                [word, most] if is(word, "maxlen") => search.most = limit(most, "ERR MAXLEN can't be negative")?,
                _ => return Err(SYNTAX.into()),
            }
        }
        Ok(search)
    }
}

fn rank_of(argument: &[u8]) -> Result<i64, Fault> {
    match parse_int(argument) {
        None => Err(NOT_AN_INTEGER.into()),
        Some(i64::MIN) => {
            Err("ERR value is out of range, value must between -9223372036854775807 and 9223372036854775807".into())
        }
        Some(0) => Err(
            "ERR RANK can't be zero: use 1 to start from the first match, 2 from the second ... or use negative to start from the end of the list"
                .into(),
        ),
        Some(rank) => Ok(rank),
    }
}

fn lpos(data: &mut Data, args: Args) -> Outcome {
    let search = Search::parse(&args[3..])?;
    let list = List::read(data, args[1])?;
    let len = list.len();
    let mut places = (0..len.min(search.most)).map(|nth| if search.from_end { len - 1 - nth } else { nth });
    let (mut found, mut to_pass) = (Vec::new(), search.rank - 1);
    let most = search.count.unwrap_or(1);
    while found.len() < most
        && let Some(place) = find(data, &list, &mut places, args[2])?
    {
        match to_pass {
            0 => found.push(Reply::Int(place as i64)),
            _ => to_pass -= 1,
        }
    }
    Ok(match search.count {
        None => found.pop().unwrap_or(Reply::Null),
        Some(_) => Reply::Array(found),
    })
}
