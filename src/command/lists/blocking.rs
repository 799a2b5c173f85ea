//! Commands that wait for the items of lists.

use super::ends::{End, ends_of, pop_first, shift, take_some};
use super::{MOVE, TAKE};
use crate::command::blocking::{Asked, Blocking, Look, keys_and_timeout, timeout};
use crate::command::collections::Pops;
use crate::command::{Args, Command, Data, Fault, KeySpec, Reply, Run, flag};
use crate::model::Collection;

/// What the rows have in common.
const ROW: Command = Command {
    flags: flag::WRITE | flag::BLOCKING,
    since: "2.0.0",
    ..super::ROW
};

const ENDS: &[KeySpec] = &[KeySpec::range(1, -2, 1, TAKE)];

pub static COMMANDS: &[Command] = &[
    Command {
        name: "blmove",
        arity: 6,
        flags: ROW.flags | flag::DENYOOM,
        keys: MOVE,
        since: "6.2.0",
        summary: "Moves an item from an end of a list to an end of another, waiting for one.",
        run: Run::Data(|data, args| BLMOVE.at_once(data, args)),
        blocks: Some(&BLMOVE),
        ..ROW
    },
    Command {
        name: "blmpop",
        arity: -5,
        flags: ROW.flags | flag::MOVABLEKEYS,
        keys: &[KeySpec::counted(2, TAKE)],
        since: "7.0.0",
        summary: "Takes items out of the first list that has some, waiting for them.",
        run: Run::Data(|data, args| BLMPOP.at_once(data, args)),
        blocks: Some(&BLMPOP),
        ..ROW
    },
    Command {
        name: "blpop",
        arity: -3,
        keys: ENDS,
        summary: "Takes out the first item of the first list that has some, waiting for one.",
        run: Run::Data(|data, args| BLPOP.at_once(data, args)),
        blocks: Some(&BLPOP),
        ..ROW
    },
    Command {
        name: "brpop",
        arity: -3,
        keys: ENDS,
        summary: "Takes out the last item of the first list that has some, waiting for one.",
        run: Run::Data(|data, args| BRPOP.at_once(data, args)),
        blocks: Some(&BRPOP),
        ..ROW
    },
    Command {
        name: "brpoplpush",
        arity: 4,
        flags: ROW.flags | flag::DENYOOM,
        keys: MOVE,
        since: "2.2.0",
        summary: "Moves the last item to the front of another list, waiting for one.",
        run: Run::Data(|data, args| BRPOPLPUSH.at_once(data, args)),
        blocks: Some(&BRPOPLPUSH),
        ..ROW
    },
];

static BLPOP: Blocking = Blocking {
    of: Collection::List,
    asks: keys_and_timeout,
    take: |data, args, look| pop(data, args, look, End::Left),
    nothing: Reply::NullArray,
};

static BRPOP: Blocking = Blocking {
    of: Collection::List,
    asks: keys_and_timeout,
    take: |data, args, look| pop(data, args, look, End::Right),
    nothing: Reply::NullArray,
};

static BLMPOP: Blocking = Blocking {
    of: Collection::List,
    asks: |args| {
        // Behind the timeout stands what LMPOP takes, and its errors come first.
        let keys = Pops::parse(&args[1..], End::of)?.keys;
        let timeout = timeout(args[1])?;
        let waits = true;
        Ok(Asked { keys, timeout, waits })
    },
    take: |data, args, look| pop_first(data, &Pops::parse(&args[1..], End::of)?, look),
    nothing: Reply::NullArray,
};

static BLMOVE: Blocking = Blocking {
    of: Collection::List,
    asks: |args| {
        ends_of(args)?;
        source_and_timeout(args)
    },
    take: |data, args, look| {
        let (from, to) = ends_of(args)?;
        shift(data, (args[1], from), (args[2], to), look)
    },
    nothing: Reply::Null,
};

static BRPOPLPUSH: Blocking = Blocking {
    of: Collection::List,
    asks: source_and_timeout,
    take: |data, args, look| shift(data, (args[1], End::Right), (args[2], End::Left), look),
    nothing: Reply::Null,
};

fn source_and_timeout<'a>(args: Args<'a>) -> Result<Asked<'a>, Fault> {
    Ok(Asked {
        keys: &args[1..2],
        timeout: timeout(args[args.len() - 1])?,
        waits: true,
    })
}

fn pop(data: &mut Data, args: Args, look: &Look, from: End) -> Result<Option<Reply>, Fault> {
    let keys = keys_and_timeout(args)?.keys;
    let taken = look.first(keys, |key| take_some(data, key, 1, from))?;
    Ok(taken.map(|(key, items)| {
        let item = items.into_iter().map(Reply::Bulk);
        Reply::Array([Reply::bulk(key)].into_iter().chain(item).collect())
    }))
}
