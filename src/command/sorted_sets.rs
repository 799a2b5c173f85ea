//! Sorted sets: <https://redis.io/docs/latest/commands/?group=sorted-set>.
//!
//! A small sorted set is one record: its members in their order, by score and then by name. A
//! command takes it apart, and a command that changes it sorts it and writes it whole. A large one
//! has a record for each member, and memory keeps it in its order ([`super::sorted`]).

pub mod blocking;
mod bounds;
mod members;
mod operations;
mod ranges;

use bytes::Bytes;

use super::key_specs::access::{self, CHANGES, READS, SETS};
use super::{Command, Compatibility, Data, KeySpec, Outcome, Reply, Run, flag};
use crate::model::Scores;

const FAST_WRITE: u32 = flag::WRITE | flag::DENYOOM | flag::FAST;
const FAST_READ: u32 = flag::READONLY | flag::FAST;
const READ_COUNTED: u32 = flag::READONLY | flag::MOVABLEKEYS;
const STORES: u32 = flag::WRITE | flag::DENYOOM | flag::MOVABLEKEYS;

const TAKES: u16 = access::RW | access::ACCESS | access::DELETE;

const READ: &[KeySpec] = &[KeySpec::at(1, READS)];
const PUT: &[KeySpec] = &[KeySpec::at(1, access::RW | access::UPDATE)];
const REMOVE: &[KeySpec] = &[KeySpec::at(1, access::RW | access::DELETE)];
const TAKE: &[KeySpec] = &[KeySpec::at(1, TAKES)];
const COUNTED: &[KeySpec] = &[KeySpec::counted(1, READS)];
const STORE_COUNTED: &[KeySpec] = &[KeySpec::at(1, SETS), KeySpec::counted(2, READS)];

const READS_ALL: &str = "O(N), N being the number of members.";
const READS_SOME: &str = "O(1) for each member; O(N) with N members while the set is one record.";
const FINDS: &str = "O(log N); O(N) with N members while the set is one record.";
const PAGES: &str = "O(log N) and O(1) for each member answered; O(N) with N members while the set is one record.";
const WRITES: &str = "O(log N) for each member; O(N) with N members while the set is one record.";
const COMBINES: &str = "O(N log N), N being the number of members of all sets.";

/// What the rows have in common.
const ROW: Command = Command {
    categories: &["sortedset"],
    group: "sorted-set",
    ..Command::DEFAULT
};

pub static COMMANDS: &[Command] = &[
    Command {
        name: "zadd",
        arity: -4,
        flags: FAST_WRITE,
        keys: PUT,
        since: "1.2.0",
        complexity: WRITES,
        summary: "Adds members or changes their scores.",
        compatibility: Compatibility::Partial("a score of -0 becomes 0 in large sets, too"),
        run: Run::Data(members::zadd),
        ..ROW
    },
    Command {
        name: "zcard",
        arity: 2,
        flags: FAST_READ,
        keys: &[KeySpec::at(1, access::RO)],
        since: "1.2.0",
        summary: "Returns the number of members.",
        run: Run::Data(members::zcard),
        ..ROW
    },
    Command {
        name: "zcount",
        arity: 4,
        flags: FAST_READ,
        keys: READ,
        since: "2.0.0",
        complexity: FINDS,
        summary: "Counts members by score.",
        run: Run::Data(ranges::zcount),
        ..ROW
    },
    Command {
        name: "zdiff",
        arity: -3,
        flags: READ_COUNTED,
        keys: COUNTED,
        since: "6.2.0",
        complexity: COMBINES,
        summary: "Returns the members of the first set that no other set has.",
        run: Run::Data(operations::zdiff),
        ..ROW
    },
    Command {
        name: "zdiffstore",
        arity: -4,
        flags: STORES,
        keys: STORE_COUNTED,
        since: "6.2.0",
        complexity: COMBINES,
        summary: "Stores the members of the first set that no other set has.",
        run: Run::Data(operations::zdiffstore),
        ..ROW
    },
    Command {
        name: "zincrby",
        arity: 4,
        flags: FAST_WRITE,
        keys: &[KeySpec::at(1, CHANGES)],
        since: "1.2.0",
        complexity: WRITES,
        summary: "Adds a number to the score of a member; a missing one counts as 0.",
        run: Run::Data(members::zincrby),
        ..ROW
    },
    Command {
        name: "zinter",
        arity: -3,
        flags: READ_COUNTED,
        keys: COUNTED,
        since: "6.2.0",
        complexity: COMBINES,
        summary: "Returns the members that all sets have.",
        run: Run::Data(operations::zinter),
        ..ROW
    },
    Command {
        name: "zintercard",
        arity: -3,
        flags: READ_COUNTED,
        keys: COUNTED,
        since: "7.0.0",
        complexity: COMBINES,
        summary: "Counts the members that all sets have.",
        run: Run::Data(operations::zintercard),
        ..ROW
    },
    Command {
        name: "zinterstore",
        arity: -4,
        flags: STORES,
        keys: STORE_COUNTED,
        since: "2.0.0",
        complexity: COMBINES,
        summary: "Stores the members that all sets have.",
        run: Run::Data(operations::zinterstore),
        ..ROW
    },
    Command {
        name: "zlexcount",
        arity: 4,
        flags: FAST_READ,
        keys: READ,
        since: "2.8.9",
        complexity: FINDS,
        summary: "Counts members by name.",
        run: Run::Data(ranges::zlexcount),
        ..ROW
    },
    Command {
        name: "zmpop",
        arity: -4,
        flags: flag::WRITE | flag::MOVABLEKEYS,
        keys: &[KeySpec::counted(1, TAKES)],
        since: "7.0.0",
        complexity: WRITES,
        summary: "Removes and returns members of the first set that has some.",
        run: Run::Data(members::zmpop),
        ..ROW
    },
    Command {
        name: "zmscore",
        arity: -3,
        flags: FAST_READ,
        keys: READ,
        since: "6.2.0",
        complexity: READS_SOME,
        summary: "Returns the scores of several members.",
        run: Run::Data(members::zmscore),
        ..ROW
    },
    Command {
        name: "zpopmax",
        arity: -2,
        flags: flag::WRITE | flag::FAST,
        keys: TAKE,
        since: "5.0.0",
        complexity: WRITES,
        summary: "Removes and returns the members with the highest scores.",
        run: Run::Data(members::zpopmax),
        ..ROW
    },
    Command {
        name: "zpopmin",
        arity: -2,
        flags: flag::WRITE | flag::FAST,
        keys: TAKE,
        since: "5.0.0",
        complexity: WRITES,
        summary: "Removes and returns the members with the lowest scores.",
        run: Run::Data(members::zpopmin),
        ..ROW
    },
    Command {
        name: "zrandmember",
        arity: -2,
        flags: flag::READONLY,
        keys: READ,
        since: "6.2.0",
        complexity: PAGES,
        summary: "Returns members picked at random.",
        run: Run::Data(members::zrandmember),
        ..ROW
    },
    Command {
        name: "zrange",
        arity: -4,
        flags: flag::READONLY,
        keys: READ,
        since: "1.2.0",
        complexity: PAGES,
        summary: "Returns a range of members: by rank, score or name.",
        run: Run::Data(ranges::zrange),
        ..ROW
    },
    Command {
        name: "zrangebylex",
        arity: -4,
        flags: flag::READONLY,
        keys: READ,
        since: "2.8.9",
        complexity: PAGES,
        summary: "Returns a range of members by name.",
        run: Run::Data(ranges::zrangebylex),
        ..ROW
    },
    Command {
        name: "zrangebyscore",
        arity: -4,
        flags: flag::READONLY,
        keys: READ,
        since: "1.0.5",
        complexity: PAGES,
        summary: "Returns a range of members by score.",
        run: Run::Data(ranges::zrangebyscore),
        ..ROW
    },
    Command {
        name: "zrangestore",
        arity: -5,
        flags: flag::WRITE | flag::DENYOOM,
        keys: &[KeySpec::at(1, SETS), KeySpec::at(2, READS)],
        since: "6.2.0",
        complexity: PAGES,
        summary: "Stores a range of members: by rank, score or name.",
        run: Run::Data(ranges::zrangestore),
        ..ROW
    },
    Command {
        name: "zrank",
        arity: -3,
        flags: FAST_READ,
        keys: READ,
        since: "2.0.0",
        complexity: FINDS,
        summary: "Returns the rank of a member, counted from the lowest score.",
        run: Run::Data(members::zrank),
        ..ROW
    },
    Command {
        name: "zrem",
        arity: -3,
        flags: flag::WRITE | flag::FAST,
        keys: REMOVE,
        since: "1.2.0",
        complexity: WRITES,
        summary: "Removes members; the key goes with its last member.",
        run: Run::Data(members::zrem),
        ..ROW
    },
    Command {
        name: "zremrangebylex",
        arity: 4,
        flags: flag::WRITE,
        keys: REMOVE,
        since: "2.8.9",
        complexity: WRITES,
        summary: "Removes a range of members by name.",
        run: Run::Data(ranges::zremrangebylex),
        ..ROW
    },
    Command {
        name: "zremrangebyrank",
        arity: 4,
        flags: flag::WRITE,
        keys: REMOVE,
        since: "2.0.0",
        complexity: WRITES,
        summary: "Removes a range of members by rank.",
        run: Run::Data(ranges::zremrangebyrank),
        ..ROW
    },
    Command {
        name: "zremrangebyscore",
        arity: 4,
        flags: flag::WRITE,
        keys: REMOVE,
        since: "1.2.0",
        complexity: WRITES,
        summary: "Removes a range of members by score.",
        run: Run::Data(ranges::zremrangebyscore),
        ..ROW
    },
    Command {
        name: "zrevrange",
        arity: -4,
        flags: flag::READONLY,
        keys: READ,
        since: "1.2.0",
        complexity: PAGES,
        summary: "Returns a range of members by rank, the highest score first.",
        run: Run::Data(ranges::zrevrange),
        ..ROW
    },
    Command {
        name: "zrevrangebylex",
        arity: -4,
        flags: flag::READONLY,
        keys: READ,
        since: "2.8.9",
        complexity: PAGES,
        summary: "Returns a range of members by name, the last name first.",
        run: Run::Data(ranges::zrevrangebylex),
        ..ROW
    },
    Command {
        name: "zrevrangebyscore",
        arity: -4,
        flags: flag::READONLY,
        keys: READ,
        since: "2.2.0",
        complexity: PAGES,
        summary: "Returns a range of members by score, the highest score first.",
        run: Run::Data(ranges::zrevrangebyscore),
        ..ROW
    },
    Command {
        name: "zrevrank",
        arity: -3,
        flags: FAST_READ,
        keys: READ,
        since: "2.0.0",
        complexity: FINDS,
        summary: "Returns the rank of a member, counted from the highest score.",
        run: Run::Data(members::zrevrank),
        ..ROW
    },
    Command {
        name: "zscan",
        arity: -3,
        flags: flag::READONLY,
        keys: READ,
        since: "2.8.0",
        complexity: READS_ALL,
        summary: "Walks through the members, a part with each call.",
        run: Run::Data(members::zscan),
        ..ROW
    },
    Command {
        name: "zscore",
        arity: 3,
        flags: FAST_READ,
        keys: READ,
        since: "1.2.0",
        summary: "Returns the score of a member.",
        run: Run::Data(members::zscore),
        ..ROW
    },
    Command {
        name: "zunion",
        arity: -3,
        flags: READ_COUNTED,
        keys: COUNTED,
        since: "6.2.0",
        complexity: COMBINES,
        summary: "Returns the members that any of the sets has.",
        run: Run::Data(operations::zunion),
        ..ROW
    },
    Command {
        name: "zunionstore",
        arity: -4,
        flags: STORES,
        keys: STORE_COUNTED,
        since: "2.0.0",
        complexity: COMBINES,
        summary: "Stores the members that any of the sets has.",
        run: Run::Data(operations::zunionstore),
        ..ROW
    },
];

/// Gives a key this sorted set, without an expiry. Without members the key is deleted. The reply is
/// their number.
fn store(data: &mut Data, key: &[u8], elements: Scores) -> Outcome {
    let count = elements.0.len();
    data.store_result(key, elements)?;
    Ok(Reply::Int(count as i64))
}

/// The reply of a command that may be asked for scores.
fn reply(members: impl Iterator<Item = (Bytes, f64)>, with_scores: bool) -> Reply {
    match with_scores {
        true => Reply::Pairs(
            members
                .map(|(member, score)| (Reply::Bulk(member), Reply::Double(score)))
                .collect(),
        ),
        false => Reply::Array(members.map(|(member, _)| Reply::Bulk(member)).collect()),
    }
}
