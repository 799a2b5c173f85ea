//! Lists: <https://redis.io/docs/latest/commands/?group=list>. What works on the ends of a list is
//! in [`ends`], what waits for items in [`blocking`]; this file has the other rows, and what works
//! on items by their place or their value.

pub mod blocking;
mod ends;

use std::collections::VecDeque;
use std::ops::Range;

use bytes::Bytes;

use super::args::{NOT_AN_INTEGER, SYNTAX, count_of, int, is, parse_int};
use super::data::Whole;
use super::key_specs::access::{self, READS};
use super::{Args, Command, Data, Fault, KeySpec, Outcome, Reply, Run, flag};
use crate::database::hot::own;
use crate::model::{Collection, Items};

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

fn items(data: &mut Data, key: &[u8]) -> Result<VecDeque<Bytes>, Fault> {
    let whole: Whole<Items> = data.collection(key)?;
    Ok(whole.elements.0)
}

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
    let items = items(data, args[1])?;
    // As in Redis, the index of what does not exist is not read.
    if items.is_empty() {
        return Ok(Reply::Null);
    }
    let place = place(int(args[2])?, items.len());
    Ok(place.map(|place| items[place].clone()).into())
}

fn lrange(data: &mut Data, args: Args) -> Outcome {
    let (start, stop) = (int(args[2])?, int(args[3])?);
    let items = items(data, args[1])?;
    let range = range(start, stop, items.len());
    Ok(array(items.range(range).cloned()))
}

fn lset(data: &mut Data, args: Args) -> Outcome {
    let mut list: Whole<Items> = data.collection(args[1])?;
    let items = &mut list.elements.0;
    if items.is_empty() {
        return Err("ERR no such key".into());
    }
    let place = place(int(args[2])?, items.len()).ok_or("ERR index out of range")?;
    items[place] = own(args[3]);
    data.put_collection(args[1], list);
    Ok(Reply::Ok)
}

fn linsert(data: &mut Data, args: Args) -> Outcome {
    let behind = match () {
        () if is(args[2], "before") => 0,
        () if is(args[2], "after") => 1,
        () => return Err(SYNTAX.into()),
    };
    let mut list: Whole<Items> = data.collection(args[1])?;
    let items = &mut list.elements.0;
    if items.is_empty() {
        return Ok(Reply::Int(0));
    }
    let Some(pivot) = items.iter().position(|item| item == args[3]) else {
        return Ok(Reply::Int(-1));
    };
    items.insert(pivot + behind, own(args[4]));
    let len = items.len();
    data.put_collection(args[1], list);
    Ok(Reply::Int(len as i64))
}

fn lrem(data: &mut Data, args: Args) -> Outcome {
    let count = int(args[2])?;
    let mut list: Whole<Items> = data.collection(args[1])?;
    let items = &mut list.elements.0;
    let equal = items.iter().filter(|item| *item == args[3]).count();
    let removed = match usize::try_from(count.unsigned_abs()) {
        Ok(most @ 1..) => equal.min(most),
        _ => equal,
    };
    // A negative count removes the last ones.
    let kept = if count < 0 { equal - removed } else { 0 };
    let mut met = 0;
    items.retain(|item| {
        if item != args[3] {
            return true;
        }
        met += 1;
        !(kept + 1..=kept + removed).contains(&met)
    });
    if removed > 0 {
        data.put_collection(args[1], list);
    }
    Ok(Reply::Int(removed as i64))
}

fn ltrim(data: &mut Data, args: Args) -> Outcome {
    let (start, stop) = (int(args[2])?, int(args[3])?);
    let mut list: Whole<Items> = data.collection(args[1])?;
    let items = &mut list.elements.0;
    let range = range(start, stop, items.len());
    if range.len() < items.len() {
        items.truncate(range.end);
        items.drain(..range.start);
        data.put_collection(args[1], list);
    }
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
    let items = items(data, args[1])?;
    let len = items.len();
    let places = (0..len.min(search.most)).map(|nth| if search.from_end { len - 1 - nth } else { nth });
    let matches = places.filter(|place| items[*place] == args[2]).skip(search.rank - 1);
    let mut found = matches.map(|place| Reply::Int(place as i64));
    Ok(match search.count {
        None => found.next().unwrap_or(Reply::Null),
        Some(count) => Reply::Array(found.take(count).collect()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_and_ranges_are_those_of_redis() {
        for (index, expected) in [
            (0, Some(0)),
            (4, Some(4)),
            (5, None),
            (-1, Some(4)),
            (-5, Some(0)),
            (-6, None),
            (i64::MAX, None),
            (i64::MIN, None),
        ] {
            assert_eq!(place(index, 5), expected, "{index}");
        }
        for (start, stop, expected) in [
            (0, -1, 0..5),
            (1, 2, 1..3),
            (-3, -2, 2..4),
            (-9, 0, 0..1),
            (-9, -6, 0..0),
            (3, 2, 0..0),
            (5, 9, 0..0),
            (i64::MIN, i64::MAX, 0..5),
            (i64::MAX, i64::MIN, 0..0),
        ] {
            assert_eq!(range(start, stop, 5), expected, "{start} {stop}");
        }
        assert_eq!(place(0, 0), None);
        assert_eq!(range(0, -1, 0), 0..0);
    }
}
