//! Sets: <https://redis.io/docs/latest/commands/?group=set>.

use bytes::Bytes;

use super::args::{SYNTAX, is, parse_int};
use super::changing::Changing;
use super::collections::{RandomCount, Scan, distinct, nothing_scanned};
use super::key_specs::access::{self, READS, SETS};
use super::{Args, Command, Data, Fault, KeySpec, Outcome, Reply, Run, flag};
use crate::database::Wait;
use crate::database::hot::own;
use crate::model::{Collection, Members};

const FAST_READ: u32 = flag::READONLY | flag::FAST;

/// What the rows have in common.
const ROW: Command = Command {
    categories: &["set"],
    group: "set",
    complexity: "O(N), N being the number of members of the sets.",
    ..Command::DEFAULT
};

const READ: &[KeySpec] = &[KeySpec::at(1, READS)];
const LOOK: &[KeySpec] = &[KeySpec::at(1, access::RO)];
const READ_ALL: &[KeySpec] = &[KeySpec::from(1, READS)];
const STORE: &[KeySpec] = &[KeySpec::at(1, SETS), KeySpec::from(2, READS)];

pub static COMMANDS: &[Command] = &[
    Command {
        name: "sadd",
        arity: -3,
        flags: flag::WRITE | flag::DENYOOM | flag::FAST,
        keys: &[KeySpec::at(1, access::RW | access::INSERT)],
        summary: "Adds members.",
        run: Run::Data(sadd),
        ..ROW
    },
    Command {
        name: "scard",
        arity: 2,
        flags: FAST_READ,
        keys: LOOK,
        complexity: "O(1)",
        summary: "Returns the number of members.",
        run: Run::Data(scard),
        ..ROW
    },
    Command {
        name: "sdiff",
        arity: -2,
        flags: flag::READONLY,
        keys: READ_ALL,
        summary: "Returns the members of the first set that no other set has.",
        run: Run::Data(sdiff),
        ..ROW
    },
    Command {
        name: "sdiffstore",
        arity: -3,
        flags: flag::WRITE | flag::DENYOOM,
        keys: STORE,
        summary: "Stores the members of the first set that no other set has.",
        run: Run::Data(sdiffstore),
        ..ROW
    },
    Command {
        name: "sinter",
        arity: -2,
        flags: flag::READONLY,
        keys: READ_ALL,
        summary: "Returns the members that all sets have.",
        run: Run::Data(sinter),
        ..ROW
    },
    Command {
        name: "sintercard",
        arity: -3,
        flags: flag::READONLY | flag::MOVABLEKEYS,
        keys: &[KeySpec::counted(1, READS)],
        since: "7.0.0",
        summary: "Counts the members that all sets have.",
        run: Run::Data(sintercard),
        ..ROW
    },
    Command {
        name: "sinterstore",
        arity: -3,
        flags: flag::WRITE | flag::DENYOOM,
        keys: &[KeySpec::at(1, access::RW | access::UPDATE), KeySpec::from(2, READS)],
        summary: "Stores the members that all sets have.",
        run: Run::Data(sinterstore),
        ..ROW
    },
    Command {
        name: "sismember",
        arity: 3,
        flags: FAST_READ,
        keys: LOOK,
        summary: "Tells whether something is a member.",
        run: Run::Data(sismember),
        ..ROW
    },
    Command {
        name: "smembers",
        arity: 2,
        flags: flag::READONLY,
        keys: READ,
        summary: "Returns all members.",
        run: Run::Data(smembers),
        ..ROW
    },
    Command {
        name: "smismember",
        arity: -3,
        flags: FAST_READ,
        keys: READ,
        since: "6.2.0",
        summary: "Tells of several whether they are members.",
        run: Run::Data(smismember),
        ..ROW
    },
    Command {
        name: "smove",
        arity: 4,
        flags: flag::WRITE | flag::FAST,
        keys: &[
            KeySpec::at(1, access::RW | access::ACCESS | access::DELETE),
            KeySpec::at(2, access::RW | access::INSERT),
        ],
        summary: "Moves a member to another set.",
        run: Run::Data(smove),
        ..ROW
    },
    Command {
        name: "spop",
        arity: -2,
        flags: flag::WRITE | flag::FAST,
        keys: &[KeySpec::at(1, access::RW | access::ACCESS | access::DELETE)],
        summary: "Takes out members picked at random.",
        run: Run::Data(spop),
        ..ROW
    },
    Command {
        name: "srandmember",
        arity: -2,
        flags: flag::READONLY,
        keys: READ,
        summary: "Returns members picked at random.",
        run: Run::Data(srandmember),
        ..ROW
    },
    Command {
        name: "srem",
        arity: -3,
        flags: flag::WRITE | flag::FAST,
        keys: &[KeySpec::at(1, access::RW | access::DELETE)],
        summary: "Removes members; the key goes with its last member.",
        run: Run::Data(srem),
        ..ROW
    },
    Command {
        name: "sscan",
        arity: -3,
        flags: flag::READONLY,
        keys: READ,
        since: "2.8.0",
        summary: "Walks through the members, a part with each call.",
        run: Run::Data(sscan),
        ..ROW
    },
    Command {
        name: "sunion",
        arity: -2,
        flags: flag::READONLY,
        keys: READ_ALL,
        summary: "Returns the members that any of the sets has.",
        run: Run::Data(sunion),
        ..ROW
    },
    Command {
        name: "sunionstore",
        arity: -3,
        flags: flag::WRITE | flag::DENYOOM,
        keys: STORE,
        summary: "Stores the members that any of the sets has.",
        run: Run::Data(sunionstore),
        ..ROW
    },
];

/// A set that a command changes member by member.
type Set<'k> = Changing<'k, Members>;

fn members(data: &mut Data, key: &[u8]) -> Result<Members, Fault> {
    Ok(data.collection(key)?.elements)
}

fn array(members: impl IntoIterator<Item = Bytes>) -> Reply {
    Reply::Array(members.into_iter().map(Reply::Bulk).collect())
}

fn set(members: impl IntoIterator<Item = Bytes>) -> Reply {
    Reply::Set(members.into_iter().map(Reply::Bulk).collect())
}

fn sadd(data: &mut Data, args: Args) -> Outcome {
    let mut set = Set::read(data, args[1])?;
    let mut added = 0;
    for member in &args[2..] {
        if set.get(data, member)?.is_none() {
            set.put(data, member, ());
            added += 1;
        }
    }
    set.write(data)?;
    Ok(Reply::Int(added))
}

fn srem(data: &mut Data, args: Args) -> Outcome {
    let mut set = Set::read(data, args[1])?;
    let removed = set.remove_all(data, &args[2..])?;
    set.write(data)?;
    Ok(Reply::Int(removed as i64))
}

fn smove(data: &mut Data, args: Args) -> Outcome {
    let [_, from, to, member] = *args else {
        return Err(SYNTAX.into());
    };
    let mut source = Set::read(data, from)?;
    // As in Redis, the other key is not looked at then.
    if source.is_empty() {
        return Ok(Reply::Int(0));
    }
    let mut target = Set::read(data, to)?;
    if from == to {
        return Ok(Reply::Int(source.get(data, member)?.is_some().into()));
    }
    if !source.remove(data, member)? {
        return Ok(Reply::Int(0));
    }
    source.write(data)?;
    if target.get(data, member)?.is_none() {
        target.put(data, member, ());
        target.write(data)?;
    }
    Ok(Reply::Int(1))
}

fn scard(data: &mut Data, args: Args) -> Outcome {
    let len = data.collection_len(args[1], Collection::Set)?;
    Ok(Reply::Int(len as i64))
}

fn sismember(data: &mut Data, args: Args) -> Outcome {
    let found = data.one::<Members>(args[1], args[2])?;
    Ok(Reply::Int(found.is_some().into()))
}

fn smismember(data: &mut Data, args: Args) -> Outcome {
    let found = data.several::<Members>(args[1], &args[2..])?.into_iter();
    let is_member = |found: Option<()>| Reply::Int(found.is_some().into());
    Ok(Reply::Array(found.map(is_member).collect()))
}

fn smembers(data: &mut Data, args: Args) -> Outcome {
    Ok(set(members(data, args[1])?.0))
}

fn spop(data: &mut Data, args: Args) -> Outcome {
    let count = match args[2..] {
        [] => None,
        [count] => {
            let count = parse_int(count).and_then(|count| usize::try_from(count).ok());
            Some(count.ok_or("ERR value is out of range, must be positive")?)
        }
        _ => return Err(SYNTAX.into()),
    };
    let mut members = Set::read(data, args[1])?;
    let popped = members.pick(data, |len| distinct(count.unwrap_or(1), len))?;
    for member in &popped {
        if !members.remove(data, member)? {
            return Err(Fault::Wait(Wait::Changed));
        }
    }
    members.write(data)?;
    Ok(match count {
        None => popped.into_iter().next().into(),
        Some(_) => set(popped),
    })
}

fn srandmember(data: &mut Data, args: Args) -> Outcome {
    let count = match args[2..] {
        [] => None,
        [count] => Some(RandomCount::parse(count)?),
        _ => return Err(SYNTAX.into()),
    };
    let pick = |len: usize| match count {
        None if len == 0 => Ok(Vec::new()),
        None => Ok(vec![rand::random_range(0..len)]),
        Some(count) => count.pick(len),
    };
    let picked: Vec<Bytes> = match data.lasting_split(args[1], Collection::Set)? {
        Some(tree) => {
            let places = pick(tree.len())?.into_iter();
            places
                .filter_map(|place| tree.nth(place))
                .map(|held| own(&held.name))
                .collect()
        }
        None => {
            let members = members(data, args[1])?.0;
            let places = pick(members.len())?.into_iter();
            places.filter_map(|place| members.get_index(place).cloned()).collect()
        }
    };
    Ok(match count {
        None => picked.into_iter().next().into(),
        Some(_) => array(picked),
    })
}

fn sscan(data: &mut Data, args: Args) -> Outcome {
    let cursor = Scan::cursor(args[2])?;
    if let Some(tree) = data.split(args[1], Collection::Set)? {
        let scan = Scan::new(cursor, &args[3..], false)?;
        return scan.reply_of_split(&tree, data.now(), |held, shown| {
            shown.push(Reply::Bulk(own(&held.name)));
            Ok(())
        });
    }
    let members = members(data, args[1])?.0;
    if members.is_empty() {
        return Ok(nothing_scanned());
    }
    let scan = Scan::new(cursor, &args[3..], false)?;
    scan.reply(members.iter().map(|member| &member[..]), |place, shown| {
        shown.extend(members.get_index(place).cloned().map(Reply::Bulk));
    })
}

/// The sets at these keys, all of which are looked at before any is used.
fn all(data: &mut Data, keys: &[&[u8]]) -> Result<Vec<Members>, Fault> {
    keys.iter().map(|key| members(data, key)).collect()
}

/// The members that all sets have, in the order of the smallest; at most so many.
fn intersection(mut sets: Vec<Members>, most: usize) -> Members {
    sets.sort_by_key(|set| set.0.len());
    let mut sets = sets.into_iter();
    let smallest = sets.next().unwrap_or_default();
    let others: Vec<Members> = sets.collect();
    let in_all = |member: &Bytes| others.iter().all(|other| other.0.contains(member));
    Members(smallest.0.into_iter().filter(in_all).take(most).collect())
}

fn union(sets: Vec<Members>) -> Members {
    Members(sets.into_iter().flat_map(|set| set.0).collect())
}

fn difference(sets: Vec<Members>) -> Members {
    let mut sets = sets.into_iter();
    let first = sets.next().unwrap_or_default();
    let others: Vec<Members> = sets.collect();
    let in_none = |member: &Bytes| others.iter().all(|other| !other.0.contains(member));
    Members(first.0.into_iter().filter(in_none).collect())
}

/// Stores a result under the first key, whatever that held before.
fn store(data: &mut Data, args: Args, combine: fn(Vec<Members>) -> Members) -> Outcome {
    let elements = combine(all(data, &args[2..])?);
    let len = elements.0.len();
    data.store_result(args[1], elements)?;
    Ok(Reply::Int(len as i64))
}

fn sinter(data: &mut Data, args: Args) -> Outcome {
    Ok(set(intersection(all(data, &args[1..])?, usize::MAX).0))
}

fn sinterstore(data: &mut Data, args: Args) -> Outcome {
    store(data, args, |sets| intersection(sets, usize::MAX))
}

fn sunion(data: &mut Data, args: Args) -> Outcome {
    Ok(set(union(all(data, &args[1..])?).0))
}

fn sunionstore(data: &mut Data, args: Args) -> Outcome {
    store(data, args, union)
}

fn sdiff(data: &mut Data, args: Args) -> Outcome {
    Ok(set(difference(all(data, &args[1..])?).0))
}

fn sdiffstore(data: &mut Data, args: Args) -> Outcome {
    store(data, args, difference)
}

fn sintercard(data: &mut Data, args: Args) -> Outcome {
    let count = parse_int(args[1]).filter(|count| *count > 0);
    let count = count.ok_or("ERR numkeys should be greater than 0")?;
    let keys = usize::try_from(count)
        .ok()
        .and_then(|count| args[2..].split_at_checked(count));
    let (keys, options) = keys.ok_or("ERR Number of keys can't be greater than number of args")?;
    let mut most = usize::MAX;
    for option in options.chunks(2) {
        match option {
            [word, limit] if is(word, "limit") => {
                let limit = parse_int(limit).and_then(|limit| usize::try_from(limit).ok());
                let limit = limit.ok_or("ERR LIMIT can't be negative")?;
                most = if limit == 0 { usize::MAX } else { limit };
            }
            _ => return Err(SYNTAX.into()),
        }
    }
    Ok(Reply::Int(intersection(all(data, keys)?, most).0.len() as i64))
}
