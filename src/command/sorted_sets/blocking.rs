//! Commands that wait for the members of sorted sets.

use super::members::{From, pop_first, take};
use super::{TAKES, WRITES};
use crate::command::blocking::{Asked, Blocking, Look, keys_and_timeout, timeout};
use crate::command::collections::Pops;
use crate::command::{Args, Command, Data, Fault, KeySpec, Reply, Run, flag};
use crate::model::Collection;

/// What the rows have in common.
const ROW: Command = Command {
    flags: flag::WRITE | flag::BLOCKING,
    since: "5.0.0",
    complexity: WRITES,
    ..super::ROW
};

const ENDS: &[KeySpec] = &[KeySpec::range(1, -2, 1, TAKES)];

pub static COMMANDS: &[Command] = &[
    Command {
        name: "bzmpop",
        arity: -5,
        flags: ROW.flags | flag::MOVABLEKEYS,
        keys: &[KeySpec::counted(2, TAKES)],
        since: "7.0.0",
        summary: "Removes and returns members of the first set that has some, waiting for them.",
        run: Run::Data(|data, args| BZMPOP.at_once(data, args)),
        blocks: Some(&BZMPOP),
        ..ROW
    },
    Command {
        name: "bzpopmax",
        arity: -3,
        flags: ROW.flags | flag::FAST,
        keys: ENDS,
        summary: "Removes and returns the highest member of the first set that has some, waiting for one.",
        run: Run::Data(|data, args| BZPOPMAX.at_once(data, args)),
        blocks: Some(&BZPOPMAX),
        ..ROW
    },
    Command {
        name: "bzpopmin",
        arity: -3,
        flags: ROW.flags | flag::FAST,
        keys: ENDS,
        summary: "Removes and returns the lowest member of the first set that has some, waiting for one.",
        run: Run::Data(|data, args| BZPOPMIN.at_once(data, args)),
        blocks: Some(&BZPOPMIN),
        ..ROW
    },
];

static BZPOPMIN: Blocking = Blocking {
    of: Collection::SortedSet,
    asks: keys_and_timeout,
    take: |data, args, look| pop(data, args, look, From::Lowest),
    nothing: Reply::NullArray,
};

static BZPOPMAX: Blocking = Blocking {
    of: Collection::SortedSet,
    asks: keys_and_timeout,
    take: |data, args, look| pop(data, args, look, From::Highest),
    nothing: Reply::NullArray,
};

static BZMPOP: Blocking = Blocking {
    of: Collection::SortedSet,
    asks: |args| {
        // Behind the timeout stands what ZMPOP takes, and its errors come first.
        let keys = Pops::parse(&args[1..], From::of)?.keys;
        let timeout = timeout(args[1])?;
        let waits = true;
        Ok(Asked { keys, timeout, waits })
    },
    take: |data, args, look| pop_first(data, &Pops::parse(&args[1..], From::of)?, look),
    nothing: Reply::NullArray,
};

fn pop(data: &mut Data, args: Args, look: &Look, from: From) -> Result<Option<Reply>, Fault> {
    let keys = keys_and_timeout(args)?.keys;
    let taken = look.first(keys, |key| take(data, key, 1, from))?;
    Ok(taken.map(|(key, members)| {
        let member = members
            .into_iter()
            .flat_map(|(member, score)| [Reply::Bulk(member), Reply::Double(score)]);
        Reply::Array([Reply::bulk(key)].into_iter().chain(member).collect())
    }))
}
