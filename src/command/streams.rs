//! Streams: <https://redis.io/docs/latest/commands/?group=stream>.
//!
//! A stream has a record for each entry, each group, and each entry that a group has delivered and
//! that is not acknowledged ([`crate::model::StreamPart`]). Memory keeps them in the order of their
//! names ([`view`]). Consumers have no records: they are known from their pending entries, and from
//! what this node has seen of them.

mod claims;
mod deleting;
pub mod dumped;
mod entries;
mod groups;
mod ids;
mod info;
mod reading;
#[cfg(test)]
mod tests;
mod view;

use self::reading::{XREAD, XREADGROUP};
use super::key_specs::{Begin, Find, access};
use super::{Command, Compatibility, KeySpec, Run, flag, help_of};
use crate::model::StreamPart;

const READ: &[KeySpec] = &[KeySpec::at(1, access::READS)];
const UPDATE: &[KeySpec] = &[KeySpec::at(1, access::RW | access::UPDATE)];
const REMOVE: &[KeySpec] = &[KeySpec::at(1, access::RW | access::DELETE)];

/// The name of the element that the entry with this id is; `None` if it is no id.
pub fn entry_name(id: &[u8]) -> Option<Vec<u8>> {
    let id = ids::parse(id, 0)?;
    Some(StreamPart::Entry(id).sub_key())
}

/// The keys of XREAD and XREADGROUP: STREAMS is looked for from this argument on.
const fn behind_streams(from: usize) -> KeySpec {
    KeySpec {
        access: access::READS,
        begin: Begin::Keyword("STREAMS", from),
        find: Find::FirstHalf,
    }
}

const FAST_WRITE: u32 = flag::WRITE | flag::FAST;

const FINDS: &str = "O(log N) for each entry.";
const PAGES: &str = "O(log N) for each entry answered.";
const LOOKS: &str = "O(N), N being the number of pending entries of the group.";
const IN_MEMORY: &str =
    "consumers without pending entries are known only to the node that they asked, until it restarts";

/// What the rows have in common.
const ROW: Command = Command {
    categories: &["stream"],
    group: "stream",
    since: "5.0.0",
    ..Command::DEFAULT
};

pub static COMMANDS: &[Command] = &[
    Command {
        name: "xack",
        arity: -4,
        flags: FAST_WRITE,
        keys: UPDATE,
        complexity: FINDS,
        summary: "Confirms that entries were handled.",
        run: Run::Data(groups::xack),
        ..ROW
    },
    Command {
        name: "xackdel",
        arity: -6,
        flags: FAST_WRITE,
        keys: &[KeySpec::at(1, access::RW | access::UPDATE | access::DELETE)],
        since: "8.2.0",
        complexity: "O(log N) for each entry and group.",
        summary: "Confirms that entries were handled, and removes them.",
        run: Run::Data(deleting::xackdel),
        ..ROW
    },
    Command {
        name: "xadd",
        arity: -5,
        flags: FAST_WRITE | flag::DENYOOM,
        keys: UPDATE,
        complexity: "O(log N); with a trim O(log N) for each entry removed, up to 200.",
        summary: "Adds an entry.",
        compatibility: Compatibility::Partial("blocks of an approximate trim are counted from the first entry ever"),
        run: Run::Data(entries::xadd),
        ..ROW
    },
    Command {
        name: "xautoclaim",
        arity: -6,
        flags: FAST_WRITE,
        keys: REMOVE,
        since: "6.2.0",
        complexity: FINDS,
        summary: "Takes over entries that others left unconfirmed.",
        run: Run::Data(claims::xautoclaim),
        ..ROW
    },
    Command {
        name: "xclaim",
        arity: -6,
        flags: FAST_WRITE,
        keys: UPDATE,
        complexity: FINDS,
        summary: "Takes over entries of another consumer.",
        run: Run::Data(claims::xclaim),
        ..ROW
    },
    Command {
        name: "xdel",
        arity: -3,
        flags: FAST_WRITE,
        keys: REMOVE,
        complexity: FINDS,
        summary: "Removes entries.",
        run: Run::Data(entries::xdel),
        ..ROW
    },
    Command {
        name: "xdelex",
        arity: -5,
        flags: FAST_WRITE,
        keys: REMOVE,
        since: "8.2.0",
        complexity: "O(log N) for each entry and group.",
        summary: "Removes entries, also from what groups have delivered or only if all have.",
        run: Run::Data(deleting::xdelex),
        ..ROW
    },
    Command {
        name: "xgroup",
        arity: -2,
        complexity: "That of the subcommand.",
        summary: "Commands about groups of consumers.",
        run: Run::Container,
        subcommands: XGROUP,
        categories: &[],
        ..ROW
    },
    Command {
        name: "xinfo",
        arity: -2,
        complexity: "That of the subcommand.",
        summary: "Commands that describe streams.",
        run: Run::Container,
        subcommands: XINFO,
        categories: &[],
        ..ROW
    },
    Command {
        name: "xlen",
        arity: 2,
        flags: flag::READONLY | flag::FAST,
        keys: &[KeySpec::at(1, access::RO)],
        complexity: "O(log N)",
        summary: "Returns the number of entries.",
        run: Run::Data(entries::xlen),
        ..ROW
    },
    Command {
        name: "xpending",
        arity: -3,
        flags: flag::READONLY,
        keys: READ,
        complexity: LOOKS,
        summary: "Returns which entries are unconfirmed.",
        run: Run::Data(groups::xpending),
        ..ROW
    },
    Command {
        name: "xrange",
        arity: -4,
        flags: flag::READONLY,
        keys: READ,
        complexity: PAGES,
        summary: "Returns a range of entries.",
        run: Run::Data(entries::xrange),
        ..ROW
    },
    Command {
        name: "xread",
        arity: -4,
        flags: flag::READONLY | flag::BLOCKING | flag::MOVABLEKEYS,
        keys: &[behind_streams(1)],
        complexity: PAGES,
        summary: "Returns new entries of streams, and may wait for them.",
        run: Run::Data(|data, args| XREAD.at_once(data, args)),
        blocks: Some(&XREAD),
        ..ROW
    },
    Command {
        name: "xreadgroup",
        arity: -7,
        flags: flag::WRITE | flag::BLOCKING | flag::MOVABLEKEYS,
        keys: &[behind_streams(4)],
        complexity: "O(log N) for each entry; O(M) with M pending entries for entries that were delivered before.",
        summary: "Returns new entries to a consumer of a group, and may wait for them.",
        run: Run::Data(|data, args| XREADGROUP.at_once(data, args)),
        blocks: Some(&XREADGROUP),
        ..ROW
    },
    Command {
        name: "xrevrange",
        arity: -4,
        flags: flag::READONLY,
        keys: READ,
        complexity: PAGES,
        summary: "Returns a range of entries, the last one first.",
        run: Run::Data(entries::xrevrange),
        ..ROW
    },
    Command {
        name: "xsetid",
        arity: -3,
        flags: FAST_WRITE | flag::DENYOOM,
        keys: UPDATE,
        complexity: "O(log N)",
        summary: "Sets the last id of a stream.",
        run: Run::Data(entries::xsetid),
        ..ROW
    },
    Command {
        name: "xtrim",
        arity: -4,
        flags: flag::WRITE,
        keys: REMOVE,
        complexity: "O(log N) for each entry removed, up to 200.",
        summary: "Removes the oldest entries.",
        compatibility: Compatibility::Partial("blocks of an approximate trim are counted from the first entry ever"),
        run: Run::Data(entries::xtrim),
        ..ROW
    },
];

const XGROUP: &[Command] = &[
    Command {
        name: "xgroup|create",
        arity: -5,
        flags: flag::WRITE | flag::DENYOOM,
        keys: &[KeySpec::at(2, access::RW | access::INSERT)],
        complexity: "O(log N)",
        summary: "Creates a group.",
        run: Run::Data(groups::create),
        ..ROW
    },
    Command {
        name: "xgroup|createconsumer",
        arity: 5,
        flags: flag::WRITE | flag::DENYOOM,
        keys: &[KeySpec::at(2, access::RW | access::INSERT)],
        since: "6.2.0",
        complexity: LOOKS,
        summary: "Creates a consumer of a group.",
        compatibility: Compatibility::Partial(IN_MEMORY),
        run: Run::Data(groups::create_consumer),
        ..ROW
    },
    Command {
        name: "xgroup|delconsumer",
        arity: 5,
        flags: flag::WRITE,
        keys: &[KeySpec::at(2, access::RW | access::DELETE)],
        complexity: LOOKS,
        summary: "Removes a consumer and its pending entries.",
        run: Run::Data(groups::delete_consumer),
        ..ROW
    },
    Command {
        name: "xgroup|destroy",
        arity: 4,
        flags: flag::WRITE,
        keys: &[KeySpec::at(2, access::RW | access::DELETE)],
        complexity: LOOKS,
        summary: "Removes a group.",
        run: Run::Data(groups::destroy),
        ..ROW
    },
    Command {
        name: "xgroup|help",
        arity: 2,
        flags: flag::LOADING | flag::STALE,
        summary: "Lists the subcommands.",
        run: Run::Session(|_, _, _| Ok(help_of("xgroup", XGROUP))),
        ..ROW
    },
    Command {
        name: "xgroup|setid",
        arity: -5,
        flags: flag::WRITE,
        keys: &[KeySpec::at(2, access::RW | access::UPDATE)],
        complexity: "O(log N)",
        summary: "Sets the last id that a group was given.",
        run: Run::Data(groups::set_id),
        ..ROW
    },
];

const XINFO: &[Command] = &[
    Command {
        name: "xinfo|consumers",
        arity: 4,
        flags: flag::READONLY,
        keys: &[KeySpec::at(2, access::READS)],
        complexity: LOOKS,
        summary: "Describes a group's consumers.",
        compatibility: Compatibility::Partial(IN_MEMORY),
        run: Run::Data(info::of_consumers),
        ..ROW
    },
    Command {
        name: "xinfo|groups",
        arity: 3,
        flags: flag::READONLY,
        keys: &[KeySpec::at(2, access::READS)],
        complexity: "O(N), N being the number of pending entries of all groups.",
        summary: "Describes a stream's groups.",
        run: Run::Data(info::of_groups),
        ..ROW
    },
    Command {
        name: "xinfo|help",
        arity: 2,
        flags: flag::LOADING | flag::STALE,
        summary: "Lists the subcommands.",
        run: Run::Session(|_, _, _| Ok(help_of("xinfo", XINFO))),
        ..ROW
    },
    Command {
        name: "xinfo|stream",
        arity: -3,
        flags: flag::READONLY,
        keys: &[KeySpec::at(2, access::READS)],
        complexity: "O(log N); with FULL also O(M), M being the number of pending entries.",
        summary: "Describes a stream.",
        compatibility: Compatibility::Partial("there is no radix tree: its keys and nodes are estimates"),
        run: Run::Data(info::of_stream),
        ..ROW
    },
];
