//! Keys of any type: <https://redis.io/docs/latest/commands/?group=generic>.

mod expiry;
mod moving;
pub(super) mod object;
pub(super) mod scan;

use super::key_specs::access::{self, CHANGES, READS, SETS};
use super::{Args, Command, Compatibility, Data, KeySpec, Outcome, Reads, Reply, Run, flag};

const READ: u32 = flag::READONLY | flag::FAST;
const WRITE: u32 = flag::WRITE | flag::FAST;

const ROW: Command = Command {
    categories: &["keyspace"],
    group: "generic",
    ..Command::DEFAULT
};

pub static COMMANDS: &[Command] = &[
    Command {
        name: "copy",
        arity: -3,
        flags: flag::WRITE | flag::DENYOOM,
        keys: &[KeySpec::at(1, READS), KeySpec::at(2, SETS)],
        since: "6.2.0",
        summary: "Copies what a key holds, and its expiry, to another key.",
        reads: Reads::OtherDatabases,
        run: Run::Data(moving::copy),
        ..ROW
    },
    Command {
        name: "del",
        arity: -2,
        flags: flag::WRITE,
        keys: &[KeySpec::from(1, access::RM | access::DELETE)],
        complexity: "O(N), N being the number of keys.",
        summary: "Deletes keys and tells how many there were.",
        run: Run::Data(del),
        ..ROW
    },
    Command {
        name: "exists",
        arity: -2,
        flags: READ,
        keys: &[KeySpec::from(1, access::RO)],
        complexity: "O(N), N being the number of keys.",
        summary: "Tells how many of the keys exist.",
        run: Run::Data(exists),
        ..ROW
    },
    Command {
        name: "expire",
        arity: -3,
        flags: WRITE,
        keys: &[KeySpec::at(1, access::RW | access::UPDATE)],
        summary: "Lets a key expire in so many seconds.",
        run: Run::Data(expiry::expire),
        ..ROW
    },
    Command {
        name: "expireat",
        arity: -3,
        flags: WRITE,
        keys: &[KeySpec::at(1, access::RW | access::UPDATE)],
        since: "1.2.0",
        summary: "Lets a key expire at a Unix time in seconds.",
        run: Run::Data(expiry::expireat),
        ..ROW
    },
    Command {
        name: "expiretime",
        arity: 2,
        flags: READ,
        keys: &[KeySpec::at(1, READS)],
        since: "7.0.0",
        summary: "Tells when a key expires, as a Unix time in seconds.",
        run: Run::Data(expiry::expiretime),
        ..ROW
    },
    Command {
        name: "keys",
        arity: 2,
        flags: flag::READONLY | flag::LONG,
        categories: &["keyspace", "dangerous"],
        complexity: "O(N), N being the number of keys in the database.",
        summary: "Lists all keys that match a pattern.",
        reads: Reads::Store,
        run: Run::Data(scan::keys),
        ..ROW
    },
    Command {
        name: "move",
        arity: 3,
        flags: WRITE,
        keys: &[KeySpec::at(1, CHANGES)],
        summary: "Moves a key to another database.",
        reads: Reads::OtherDatabases,
        run: Run::Data(moving::move_key),
        ..ROW
    },
    Command {
        name: "object",
        arity: -2,
        categories: &[],
        since: "2.2.3",
        complexity: "Depends on the subcommand.",
        summary: "Commands about how a key's value is kept.",
        run: Run::Container,
        subcommands: object::OBJECT,
        ..ROW
    },
    Command {
        name: "persist",
        arity: 2,
        flags: WRITE,
        keys: &[KeySpec::at(1, access::RW | access::UPDATE)],
        since: "2.2.0",
        summary: "Takes a key's expiry away.",
        run: Run::Data(expiry::persist),
        ..ROW
    },
    Command {
        name: "pexpire",
        arity: -3,
        flags: WRITE,
        keys: &[KeySpec::at(1, access::RW | access::UPDATE)],
        since: "2.6.0",
        summary: "Lets a key expire in so many milliseconds.",
        run: Run::Data(expiry::pexpire),
        ..ROW
    },
    Command {
        name: "pexpireat",
        arity: -3,
        flags: WRITE,
        keys: &[KeySpec::at(1, access::RW | access::UPDATE)],
        since: "2.6.0",
        summary: "Lets a key expire at a Unix time in milliseconds.",
        run: Run::Data(expiry::pexpireat),
        ..ROW
    },
    Command {
        name: "pexpiretime",
        arity: 2,
        flags: READ,
        keys: &[KeySpec::at(1, READS)],
        since: "7.0.0",
        summary: "Tells when a key expires, as a Unix time in milliseconds.",
        run: Run::Data(expiry::pexpiretime),
        ..ROW
    },
    Command {
        name: "pttl",
        arity: 2,
        flags: READ,
        keys: &[KeySpec::at(1, READS)],
        since: "2.6.0",
        summary: "Tells how many milliseconds a key has left.",
        run: Run::Data(expiry::pttl),
        ..ROW
    },
    Command {
        name: "randomkey",
        arity: 1,
        flags: flag::READONLY,
        summary: "Picks a key at random.",
        reads: Reads::Store,
        run: Run::Data(scan::randomkey),
        ..ROW
    },
    Command {
        name: "rename",
        arity: 3,
        flags: flag::WRITE,
        keys: &[
            KeySpec::at(1, access::RW | access::ACCESS | access::DELETE),
            KeySpec::at(2, SETS),
        ],
        summary: "Gives a key another name, in place of whatever had that name.",
        run: Run::Data(moving::rename),
        ..ROW
    },
    Command {
        name: "renamenx",
        arity: 3,
        flags: WRITE,
        keys: &[
            KeySpec::at(1, access::RW | access::ACCESS | access::DELETE),
            KeySpec::at(2, access::OW | access::INSERT),
        ],
        summary: "Gives a key another name unless that name is taken.",
        run: Run::Data(moving::renamenx),
        ..ROW
    },
    Command {
        name: "scan",
        arity: -2,
        flags: flag::READONLY,
        since: "2.8.0",
        complexity: "O(COUNT) for each call, O(N) for all keys.",
        summary: "Walks through all keys, a part with each call.",
        reads: Reads::Store,
        run: Run::Data(scan::scan),
        ..ROW
    },
    Command {
        name: "swapdb",
        arity: 3,
        flags: WRITE | flag::LONG | flag::ALL_KEYS,
        categories: &["keyspace", "dangerous"],
        group: "server",
        since: "4.0.0",
        complexity: "O(N), N being the number of keys in both databases.",
        summary: "Exchanges what two databases hold.",
        compatibility: Compatibility::Partial(
            "both databases are written anew, key by key: at most 50,000 keys and 64 MiB in both together",
        ),
        reads: Reads::Store,
        run: Run::Data(moving::swapdb),
        ..ROW
    },
    Command {
        name: "touch",
        arity: -2,
        flags: READ,
        keys: &[KeySpec::from(1, access::RO)],
        since: "3.2.1",
        complexity: "O(N), N being the number of keys.",
        summary: "Tells how many of the keys exist, and counts as an access to them.",
        compatibility: Compatibility::Partial("accesses are not recorded, so it is EXISTS"),
        run: Run::Data(exists),
        ..ROW
    },
    Command {
        name: "ttl",
        arity: 2,
        flags: READ,
        keys: &[KeySpec::at(1, READS)],
        summary: "Tells how many seconds a key has left.",
        run: Run::Data(expiry::ttl),
        ..ROW
    },
    Command {
        name: "type",
        arity: 2,
        flags: READ,
        keys: &[KeySpec::at(1, access::RO)],
        summary: "Tells what kind of value a key holds.",
        run: Run::Data(type_of),
        ..ROW
    },
    Command {
        name: "unlink",
        arity: -2,
        flags: WRITE,
        keys: &[KeySpec::from(1, access::RM | access::DELETE)],
        since: "4.0.0",
        complexity: "O(N), N being the number of keys.",
        summary: "As DEL.",
        run: Run::Data(del),
        ..ROW
    },
];

fn del(data: &mut Data, args: Args) -> Outcome {
    let mut deleted = 0;
    for key in &args[1..] {
        if data.transaction.seems_to_exist(data.database, key)? {
            data.delete(key);
            data.transaction.check_size()?;
            deleted += 1;
        }
    }
    Ok(Reply::Int(deleted))
}

fn exists(data: &mut Data, args: Args) -> Outcome {
    let mut there = 0;
    for key in &args[1..] {
        there += i64::from(data.exists(key)?);
    }
    Ok(Reply::Int(there))
}

fn type_of(data: &mut Data, args: Args) -> Outcome {
    Ok(Reply::simple(match data.get(args[1])? {
        Some(entry) => entry.type_name()?,
        None => "none",
    }))
}
