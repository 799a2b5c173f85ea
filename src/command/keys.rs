//! Keys of any type: <https://redis.io/docs/latest/commands/?group=generic>.

use std::collections::HashSet;

use bytes::Bytes;

use super::args::{SYNTAX, int, int32, is, parse_int};
use super::introspection::help_of;
use super::key_specs::access::{self, CHANGES, READS, SETS};
use super::pattern::KeyPattern;
use super::{Args, Command, Compatibility, Data, Fault, KeySpec, Outcome, Reads, Reply, Run, dump, flag};
use crate::database::Transaction;
use crate::database::hot::own;
use crate::database::transaction::SHORT_WORK;
use crate::model::{Entry, State};
use crate::store::key_hash;

const READ: u32 = flag::READONLY | flag::FAST;
const WRITE: u32 = flag::WRITE | flag::FAST;

/// Most keys that one call of SCAN looks at, whatever its COUNT says.
const MAX_SCAN: usize = 100_000;
/// Most bytes of names in one reply of SCAN. Above, the call ends early.
const MAX_SCAN_BYTES: usize = 64 << 20;
/// Most bytes of names in one reply of KEYS. Above, the command fails.
const MAX_KEYS_BYTES: usize = 1 << 30;
/// Keys that are requested from the store at once.
const CHUNK: usize = 1_000;
/// What it costs to look at a key in the store, in bytes of work of a transaction.
const KEY_WORK: usize = SHORT_WORK / CHUNK;
/// The most that SWAPDB copies, both databases together. Each key takes two records of one group.
const MAX_SWAP_KEYS: usize = 50_000;
const MAX_SWAP_BYTES: usize = 64 << 20;

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
        run: Run::Data(copy),
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
        name: "dump",
        arity: 2,
        flags: flag::READONLY,
        keys: &[KeySpec::at(1, READS)],
        since: "2.6.0",
        complexity: "O(N), N being the length of the value.",
        summary: "Gives a key's value as bytes that RESTORE takes.",
        compatibility: Compatibility::Partial("long values are not compressed; Redis reads them all the same"),
        run: Run::Data(dump::dump),
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
        run: Run::Data(expire),
        ..ROW
    },
    Command {
        name: "expireat",
        arity: -3,
        flags: WRITE,
        keys: &[KeySpec::at(1, access::RW | access::UPDATE)],
        since: "1.2.0",
        summary: "Lets a key expire at a Unix time in seconds.",
        run: Run::Data(expireat),
        ..ROW
    },
    Command {
        name: "expiretime",
        arity: 2,
        flags: READ,
        keys: &[KeySpec::at(1, READS)],
        since: "7.0.0",
        summary: "Tells when a key expires, as a Unix time in seconds.",
        run: Run::Data(expiretime),
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
        run: Run::Data(keys),
        ..ROW
    },
    Command {
        name: "move",
        arity: 3,
        flags: WRITE,
        keys: &[KeySpec::at(1, CHANGES)],
        summary: "Moves a key to another database.",
        reads: Reads::OtherDatabases,
        run: Run::Data(move_key),
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
        subcommands: OBJECT,
        ..ROW
    },
    Command {
        name: "persist",
        arity: 2,
        flags: WRITE,
        keys: &[KeySpec::at(1, access::RW | access::UPDATE)],
        since: "2.2.0",
        summary: "Takes a key's expiry away.",
        run: Run::Data(persist),
        ..ROW
    },
    Command {
        name: "pexpire",
        arity: -3,
        flags: WRITE,
        keys: &[KeySpec::at(1, access::RW | access::UPDATE)],
        since: "2.6.0",
        summary: "Lets a key expire in so many milliseconds.",
        run: Run::Data(pexpire),
        ..ROW
    },
    Command {
        name: "pexpireat",
        arity: -3,
        flags: WRITE,
        keys: &[KeySpec::at(1, access::RW | access::UPDATE)],
        since: "2.6.0",
        summary: "Lets a key expire at a Unix time in milliseconds.",
        run: Run::Data(pexpireat),
        ..ROW
    },
    Command {
        name: "pexpiretime",
        arity: 2,
        flags: READ,
        keys: &[KeySpec::at(1, READS)],
        since: "7.0.0",
        summary: "Tells when a key expires, as a Unix time in milliseconds.",
        run: Run::Data(pexpiretime),
        ..ROW
    },
    Command {
        name: "pttl",
        arity: 2,
        flags: READ,
        keys: &[KeySpec::at(1, READS)],
        since: "2.6.0",
        summary: "Tells how many milliseconds a key has left.",
        run: Run::Data(pttl),
        ..ROW
    },
    Command {
        name: "randomkey",
        arity: 1,
        flags: flag::READONLY,
        summary: "Picks a key at random.",
        reads: Reads::Store,
        run: Run::Data(randomkey),
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
        run: Run::Data(rename),
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
        run: Run::Data(renamenx),
        ..ROW
    },
    Command {
        name: "restore",
        arity: -4,
        flags: flag::WRITE | flag::DENYOOM,
        keys: &[KeySpec::at(1, SETS)],
        categories: &["keyspace", "dangerous"],
        since: "2.6.0",
        complexity: "O(N), N being the length of the value.",
        summary: "Makes a key of what DUMP gave.",
        compatibility: Compatibility::Partial("strings only; IDLETIME and FREQ have no effect"),
        run: Run::Data(dump::restore),
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
        run: Run::Data(scan),
        ..ROW
    },
    Command {
        name: "sort",
        arity: -2,
        flags: flag::WRITE | flag::DENYOOM | flag::MOVABLEKEYS,
        keys: &[KeySpec::at(1, CHANGES)],
        categories: &["set", "sortedset", "list", "dangerous"],
        complexity: "O(N+M*log(M)), N elements of which M are answered.",
        summary: "Sorts the elements of a list or a set, and may store the result.",
        compatibility: Compatibility::NotYet,
        ..ROW
    },
    Command {
        name: "sort_ro",
        arity: -2,
        flags: flag::READONLY | flag::MOVABLEKEYS,
        keys: &[KeySpec::at(1, READS)],
        categories: &["set", "sortedset", "list", "dangerous"],
        since: "7.0.0",
        complexity: "O(N+M*log(M)), N elements of which M are answered.",
        summary: "Sorts the elements of a list or a set.",
        compatibility: Compatibility::NotYet,
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
        run: Run::Data(swapdb),
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
        run: Run::Data(ttl),
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

static OBJECT: &[Command] = &[
    Command {
        name: "object|encoding",
        arity: 3,
        flags: flag::READONLY,
        keys: &[KeySpec::at(2, access::RO)],
        since: "2.2.3",
        summary: "Tells how Redis would keep the value in memory: int, embstr or raw.",
        compatibility: Compatibility::Partial(
            "told from the value alone: a short string that APPEND or SETRANGE changed is raw in Redis, embstr or int here",
        ),
        run: Run::Data(object_encoding),
        ..ROW
    },
    Command {
        name: "object|freq",
        arity: 3,
        flags: flag::READONLY,
        keys: &[KeySpec::at(2, access::RO)],
        since: "4.0.0",
        summary: "Would tell how often the key is used.",
        compatibility: Compatibility::Partial(
            "an error, of its own under an LFU policy: how often keys are used is not tracked",
        ),
        run: Run::Data(object_freq),
        ..ROW
    },
    Command {
        name: "object|help",
        arity: 2,
        flags: flag::LOADING | flag::STALE,
        since: "6.2.0",
        summary: "Lists these subcommands.",
        run: Run::Data(object_help),
        ..ROW
    },
    Command {
        name: "object|idletime",
        arity: 3,
        flags: flag::READONLY,
        keys: &[KeySpec::at(2, access::RO)],
        since: "2.2.3",
        summary: "Tells how many seconds ago the key was last used.",
        compatibility: Compatibility::Partial("only writes count, reads do not"),
        run: Run::Data(object_idletime),
        ..ROW
    },
    Command {
        name: "object|refcount",
        arity: 3,
        flags: flag::READONLY,
        keys: &[KeySpec::at(2, access::RO)],
        since: "2.2.3",
        summary: "Tells how many references Redis would hold to the value.",
        run: Run::Data(object_refcount),
        ..ROW
    },
];

// Presence.

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

// Expiry.

#[derive(Clone, Copy, PartialEq, Eq)]
enum Unit {
    Seconds,
    Milliseconds,
}

fn expire(data: &mut Data, args: Args) -> Outcome {
    let now = data.now();
    set_expiry(data, args, "expire", Unit::Seconds, now)
}

fn pexpire(data: &mut Data, args: Args) -> Outcome {
    let now = data.now();
    set_expiry(data, args, "pexpire", Unit::Milliseconds, now)
}

fn expireat(data: &mut Data, args: Args) -> Outcome {
    set_expiry(data, args, "expireat", Unit::Seconds, 0)
}

fn pexpireat(data: &mut Data, args: Args) -> Outcome {
    set_expiry(data, args, "pexpireat", Unit::Milliseconds, 0)
}

/// The EXPIRE family. The argument counts from the time `base`.
fn set_expiry(data: &mut Data, args: Args, name: &str, unit: Unit, base: u64) -> Outcome {
    let condition = Condition::parse(&args[3..])?;
    let when = expiry_time(int(args[2])?, unit, base)
        .ok_or_else(|| Fault::error(format!("ERR invalid expire time in '{name}' command")))?;
    let Some(entry) = data.get(args[1])? else {
        return Ok(Reply::Int(0));
    };
    if !condition.allows(entry.meta.expire_at, when) {
        return Ok(Reply::Int(0));
    }
    match u64::try_from(when).ok().filter(|at| *at > data.now()) {
        Some(at) => data.put(args[1], until(entry, Some(at))?),
        None => data.delete(args[1]),
    }
    Ok(Reply::Int(1))
}

/// The time of expiry, in milliseconds since the epoch. `None` if it is out of range.
fn expiry_time(argument: i64, unit: Unit, base: u64) -> Option<i64> {
    let milliseconds = match unit {
        Unit::Seconds => argument.checked_mul(1000)?,
        Unit::Milliseconds => argument,
    };
    milliseconds.checked_add(i64::try_from(base).ok()?)
}

/// NX, XX, GT and LT of the EXPIRE family.
#[derive(Default)]
struct Condition {
    no_expiry: bool,
    some_expiry: bool,
    later: bool,
    earlier: bool,
}

impl Condition {
    fn parse(options: Args) -> Result<Self, Fault> {
        let mut condition = Condition::default();
        for option in options {
            match () {
                _ if is(option, "nx") => condition.no_expiry = true,
                _ if is(option, "xx") => condition.some_expiry = true,
                _ if is(option, "gt") => condition.later = true,
                _ if is(option, "lt") => condition.earlier = true,
                _ => {
                    // As in Redis, the error shows the option up to a NUL.
                    let told = option.split(|byte| *byte == 0).next().unwrap_or_default();
                    return Err(Fault::error([b"ERR Unsupported option ", told].concat()));
                }
            }
        }
        if condition.no_expiry && (condition.some_expiry || condition.later || condition.earlier) {
            return Err("ERR NX and XX, GT or LT options at the same time are not compatible".into());
        }
        if condition.later && condition.earlier {
            return Err("ERR GT and LT options at the same time are not compatible".into());
        }
        Ok(condition)
    }

    /// No expiry counts as later than any expiry.
    fn allows(&self, current: Option<u64>, when: i64) -> bool {
        let current = current.map(signed);
        !(self.no_expiry && current.is_some()
            || self.some_expiry && current.is_none()
            || self.later && current.is_none_or(|at| when <= at)
            || self.earlier && current.is_some_and(|at| when >= at))
    }
}

/// A foreign producer may have written an expiry beyond the range of a reply.
fn signed(milliseconds: u64) -> i64 {
    i64::try_from(milliseconds).unwrap_or(i64::MAX)
}

/// The state with another expiry.
fn until(entry: Entry, expire_at: Option<u64>) -> Result<State, Fault> {
    let State { value, .. } = entry.state()?;
    Ok(State { value, expire_at })
}

fn persist(data: &mut Data, args: Args) -> Outcome {
    match data.get(args[1])? {
        Some(entry) if entry.meta.expire_at.is_some() => {
            data.put(args[1], until(entry, None)?);
            Ok(Reply::Int(1))
        }
        _ => Ok(Reply::Int(0)),
    }
}

fn ttl(data: &mut Data, args: Args) -> Outcome {
    let now = signed(data.now());
    tell_expiry(data, args, |at| rounded_seconds(at - now))
}

fn pttl(data: &mut Data, args: Args) -> Outcome {
    let now = signed(data.now());
    tell_expiry(data, args, |at| at - now)
}

fn expiretime(data: &mut Data, args: Args) -> Outcome {
    tell_expiry(data, args, rounded_seconds)
}

fn pexpiretime(data: &mut Data, args: Args) -> Outcome {
    tell_expiry(data, args, |at| at)
}

fn tell_expiry(data: &mut Data, args: Args, tell: impl Fn(i64) -> i64) -> Outcome {
    Ok(Reply::Int(match data.get(args[1])? {
        None => -2,
        Some(entry) => entry.meta.expire_at.map_or(-1, |at| tell(signed(at))),
    }))
}

fn rounded_seconds(milliseconds: i64) -> i64 {
    milliseconds.saturating_add(500) / 1000
}

// Other names, other databases.

fn rename(data: &mut Data, args: Args) -> Outcome {
    rename_key(data, args, true)?;
    Ok(Reply::Ok)
}

fn renamenx(data: &mut Data, args: Args) -> Outcome {
    Ok(Reply::Int(i64::from(rename_key(data, args, false)?)))
}

fn rename_key(data: &mut Data, args: Args, replace: bool) -> Result<bool, Fault> {
    let (from, to) = (args[1], args[2]);
    let entry = data.get(from)?.ok_or("ERR no such key")?;
    if from == to || (!replace && data.exists(to)?) {
        return Ok(false);
    }
    data.put(to, entry.state()?);
    data.delete(from);
    Ok(true)
}

const SAME_OBJECT: &str = "ERR source and destination objects are the same";
const NO_DATABASE: &str = "ERR DB index is out of range";

fn database_index(data: &Data, index: i32) -> Result<u16, Fault> {
    u16::try_from(index)
        .ok()
        .filter(|database| *database < data.transaction.service().database_count())
        .ok_or_else(|| NO_DATABASE.into())
}

fn copy(data: &mut Data, args: Args) -> Outcome {
    let (from, to) = (args[1], args[2]);
    let database = data.database;
    let (mut target, mut replace) = (database, false);
    let mut options = args[3..].iter();
    while let Some(option) = options.next() {
        if is(option, "replace") {
            replace = true;
        } else if let (true, Some(index)) = (is(option, "db"), options.as_slice().first()) {
            target = database_index(data, int32(index)?)?;
            options.next();
        } else {
            return Err(SYNTAX.into());
        }
    }
    if target == database && from == to {
        return Err(SAME_OBJECT.into());
    }
    let Some(entry) = data.read(from)? else {
        return Ok(Reply::Int(0));
    };
    if !replace && data.transaction.exists(target, to)? {
        return Ok(Reply::Int(0));
    }
    data.transaction.put(target, to, entry.state()?);
    Ok(Reply::Int(1))
}

fn move_key(data: &mut Data, args: Args) -> Outcome {
    let (database, key) = (data.database, args[1]);
    let target = database_index(data, int32(args[2])?)?;
    if target == database {
        return Err(SAME_OBJECT.into());
    }
    let Some(entry) = data.get(key)? else {
        return Ok(Reply::Int(0));
    };
    if data.transaction.exists(target, key)? {
        return Ok(Reply::Int(0));
    }
    data.transaction.put(target, key, entry.state()?);
    data.delete(key);
    Ok(Reply::Int(1))
}

fn swapdb(data: &mut Data, args: Args) -> Outcome {
    let first = int32(args[1]).map_err(|_| Fault::from("ERR invalid first DB index"))?;
    let second = int32(args[2]).map_err(|_| Fault::from("ERR invalid second DB index"))?;
    let (first, second) = (database_index(data, first)?, database_index(data, second)?);
    if first == second {
        return Ok(Reply::Ok);
    }
    let mut room = SwapRoom {
        keys: MAX_SWAP_KEYS,
        bytes: MAX_SWAP_BYTES,
    };
    let of_first = room.take(data.transaction, first)?;
    let of_second = room.take(data.transaction, second)?;
    let names: HashSet<Bytes> = of_first.iter().map(|(key, _)| key.clone()).collect();
    for (key, state) in of_first {
        data.transaction.delete(first, &key);
        data.transaction.put(second, &key, state);
    }
    for (key, state) in of_second {
        if !names.contains(&key) {
            data.transaction.delete(second, &key);
        }
        data.transaction.put(first, &key, state);
    }
    Ok(Reply::Ok)
}

/// What SWAPDB may still take into memory and write in one batch.
struct SwapRoom {
    keys: usize,
    bytes: usize,
}

impl SwapRoom {
    /// Takes all keys of a database, with their states.
    fn take(&mut self, transaction: &mut Transaction, database: u16) -> Result<Vec<(Bytes, State)>, Fault> {
        let mut all = Vec::new();
        let mut from = Some(0);
        while let Some(start) = from {
            let mut names = Vec::new();
            from = transaction.scan_keys(database, start, CHUNK, &mut |key| names.push(own(key)))?;
            for key in names {
                let Some(entry) = transaction.get(database, &key)? else {
                    continue;
                };
                let state = entry.state()?;
                let bytes = key.len() + state.value.bytes();
                match (self.keys.checked_sub(1), self.bytes.checked_sub(bytes)) {
                    (Some(keys), Some(bytes)) => (self.keys, self.bytes) = (keys, bytes),
                    _ => {
                        return Err(Fault::error(format!(
                            "ERR SWAPDB writes both databases anew and takes at most {MAX_SWAP_KEYS} keys and {MAX_SWAP_BYTES} bytes in both together; nothing was changed"
                        )));
                    }
                }
                all.push((key, state));
            }
        }
        Ok(all)
    }
}

// Walking through all keys.

fn keys(data: &mut Data, args: Args) -> Outcome {
    let database = data.database;
    let mut pattern = KeyPattern::new(args[1]);
    let (mut found, mut bytes) = (Vec::new(), 0);
    let mut from = Some(0);
    while let Some(start) = from {
        from = data.transaction.scan_keys(database, start, CHUNK, &mut |key| {
            if bytes <= MAX_KEYS_BYTES && pattern.matches(key) {
                bytes += key.len() + size_of::<Reply>();
                found.push(Reply::bulk(key));
            }
        })?;
        if bytes > MAX_KEYS_BYTES {
            return Err(Fault::error(format!(
                "ERR the reply of KEYS would have more than {MAX_KEYS_BYTES} bytes; use SCAN"
            )));
        }
        check(&pattern)?;
    }
    Ok(Reply::Array(found))
}

fn check(pattern: &KeyPattern) -> Result<(), Fault> {
    match pattern.is_exhausted() {
        true => Err("ERR it takes too long to compare this pattern with the keys there are".into()),
        false => Ok(()),
    }
}

/// SCAN's cursor is the upper 53 bits of the hash to continue from. Clients that read it as a
/// double then read it exactly.
const CURSOR_SHIFT: u32 = 64 - 53;

fn scan(data: &mut Data, args: Args) -> Outcome {
    let cursor = parse_cursor(args[1]).ok_or("ERR invalid cursor")?;
    let mut options = ScanOptions::parse(&args[2..])?;
    let database = data.database;
    data.transaction.works(options.work())?;
    let mut found = Vec::new();
    let (mut left, mut bytes, mut typed) = (options.count, 0, 0);
    let mut next = cursor
        .checked_shl(CURSOR_SHIFT)
        .filter(|hash| hash >> CURSOR_SHIFT == cursor);
    while let Some(from) = next {
        // All keys of one cursor are in one reply. If the cursor stayed the same, the scan would
        // never end.
        if (left == 0 || bytes > MAX_SCAN_BYTES) && from >> CURSOR_SHIFT > cursor {
            break;
        }
        let part = left.clamp(1, CHUNK);
        next = data.transaction.scan_keys(database, from, part, &mut |key| {
            if !options.pattern.matches(key) {
                return;
            }
            typed += u64::from(options.kind.is_some());
            if options.kind.is_none_or(|kind| is(kind, "string")) {
                bytes += key.len() + size_of::<Reply>();
                found.push(Reply::bulk(key));
            }
        })?;
        check(&options.pattern)?;
        left = left.saturating_sub(part);
    }
    // As in Redis, looking at a key's type counts as a read.
    data.transaction.lookups.hits += typed;
    let cursor = next.map_or(0, |hash| hash >> CURSOR_SHIFT);
    Ok(Reply::Array(vec![Reply::bulk(cursor.to_string()), Reply::Array(found)]))
}

struct ScanOptions<'a> {
    pattern: KeyPattern<'a>,
    count: usize,
    /// Only keys of this type. All keys are strings.
    kind: Option<&'a [u8]>,
}

impl<'a> ScanOptions<'a> {
    /// See [`Transaction::works`]. How long a pattern takes is known only afterwards.
    fn work(&self) -> usize {
        let of_pattern = if self.pattern.is_every() { 0 } else { SHORT_WORK };
        self.count * KEY_WORK + of_pattern
    }

    fn parse(options: &[&'a [u8]]) -> Result<Self, Fault> {
        let mut parsed = ScanOptions {
            pattern: KeyPattern::every(),
            count: 10,
            kind: None,
        };
        for option in options.chunks(2) {
            match option {
                [name, count] if is(name, "count") => {
                    let count = int(count)?;
                    if count < 1 {
                        return Err(SYNTAX.into());
                    }
                    parsed.count = usize::try_from(count).map_or(MAX_SCAN, |count| count.min(MAX_SCAN));
                }
                [name, pattern] if is(name, "match") => parsed.pattern = KeyPattern::of_part(pattern),
                [name, kind] if is(name, "type") => parsed.kind = Some(kind),
                _ => return Err(SYNTAX.into()),
            }
        }
        Ok(parsed)
    }
}

/// Reads a cursor as Redis does, with C's `strtoul`: a sign is allowed, and what follows a NUL is
/// ignored.
fn parse_cursor(argument: &[u8]) -> Option<u64> {
    let text = argument.split(|byte| *byte == 0).next().unwrap_or_default();
    let (negative, digits) = match text {
        [b'-', digits @ ..] => (true, digits),
        [b'+', digits @ ..] => (false, digits),
        digits => (false, digits),
    };
    if text.is_empty() {
        return Some(0);
    }
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let value: u64 = std::str::from_utf8(digits).ok()?.parse().ok()?;
    Some(if negative { value.wrapping_neg() } else { value })
}

/// RANDOMKEY picks one of so many live keys from a random place on. The first one alone would
/// favour keys after a gap.
const SAMPLE: usize = 16;
/// Keys that RANDOMKEY looks at before it gives up: so many expired ones in a row, or ten times as
/// many flushed ones, none of them deleted yet.
const MAX_RANDOM: usize = 100_000;

fn randomkey(data: &mut Data, _: Args) -> Outcome {
    let database = data.database;
    let start: u64 = rand::random();
    let mut sample: Vec<Bytes> = Vec::new();
    let mut looked_at = 0;
    // From the start to the end, then from the beginning to the start.
    for (begin, end) in [(start, None), (0, Some(start))] {
        let mut from = Some(begin);
        while let Some(hash) = from.filter(|hash| end.is_none_or(|end| *hash < end)) {
            if sample.len() >= SAMPLE || looked_at >= MAX_RANDOM {
                break;
            }
            let part = if looked_at < SAMPLE { SAMPLE } else { CHUNK };
            data.transaction.works(part * KEY_WORK)?;
            looked_at += part;
            from = data.transaction.scan_keys(database, hash, part, &mut |key| {
                if sample.len() < SAMPLE && end.is_none_or(|end| key_hash(key) < end) {
                    sample.push(own(key));
                }
            })?;
        }
    }
    if sample.is_empty() {
        return Ok(Reply::Null);
    }
    let picked = rand::random_range(0..sample.len());
    Ok(Reply::Bulk(sample.swap_remove(picked)))
}

// OBJECT.

/// The entry that an OBJECT subcommand is about.
fn object(data: &mut Data, args: Args) -> Result<Option<Entry>, Fault> {
    data.get(args[2])
}

fn object_encoding(data: &mut Data, args: Args) -> Outcome {
    match object(data, args)? {
        None => Ok(Reply::Null),
        Some(entry) => Ok(Reply::bulk(encoding(&entry.string()?))),
    }
}

fn encoding(value: &[u8]) -> &'static str {
    /// Longest string that Redis keeps in one piece with its header.
    const EMBEDDED: usize = 44;
    match value.len() {
        _ if parse_int(value).is_some() => "int",
        0..=EMBEDDED => "embstr",
        _ => "raw",
    }
}

fn object_refcount(data: &mut Data, args: Args) -> Outcome {
    /// Redis shares integers in this range, and reports the highest count for them.
    const SHARED: std::ops::Range<i64> = 0..10_000;
    match object(data, args)? {
        None => Ok(Reply::Null),
        Some(entry) => {
            let shared = parse_int(&entry.string()?).is_some_and(|number| SHARED.contains(&number));
            Ok(Reply::Int(if shared { i64::from(i32::MAX) } else { 1 }))
        }
    }
}

fn object_idletime(data: &mut Data, args: Args) -> Outcome {
    let now = signed(data.now());
    match object(data, args)? {
        None => Ok(Reply::Null),
        Some(_) if data.config.policy_is_lfu() => Err("ERR An LFU maxmemory policy is selected, idle time not tracked. Please note that when switching between policies at runtime LRU and LFU data will take some time to adjust.".into()),
        Some(entry) => Ok(Reply::Int((now - entry.meta.timestamp).max(0) / 1000)),
    }
}

fn object_freq(data: &mut Data, args: Args) -> Outcome {
    match object(data, args)? {
        None => Ok(Reply::Null),
        Some(_) if data.config.policy_is_lfu() => {
            Err("ERR access frequency not tracked: no key is ever evicted, whatever maxmemory-policy says".into())
        }
        Some(_) => Err("ERR An LFU maxmemory policy is not selected, access frequency not tracked. Please note that when switching between policies at runtime LRU and LFU data will take some time to adjust.".into()),
    }
}

fn object_help(_: &mut Data, _: Args) -> Outcome {
    Ok(help_of("object", OBJECT))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn encodings_follow_redis() {
        for (value, expected) in [
            ("", "embstr"),
            ("0", "int"),
            ("-5", "int"),
            ("012", "embstr"),
            ("+1", "embstr"),
            ("9223372036854775807", "int"),
            ("-9223372036854775808", "int"),
            ("9223372036854775808", "embstr"),
        ] {
            assert_eq!(encoding(value.as_bytes()), expected, "{value}");
        }
        assert_eq!(encoding(&[b'a'; 44]), "embstr");
        assert_eq!(encoding(&[b'a'; 45]), "raw");
    }

    #[test]
    fn expiry_times_that_cannot_be_told_are_refused() {
        let now = 1_700_000_000_000;
        assert_eq!(expiry_time(10, Unit::Seconds, now), Some(1_700_000_010_000));
        assert_eq!(expiry_time(-10, Unit::Milliseconds, 0), Some(-10));
        assert_eq!(
            expiry_time(i64::MAX / 1000, Unit::Seconds, 0),
            Some(i64::MAX / 1000 * 1000)
        );
        assert_eq!(expiry_time(i64::MAX / 1000 + 1, Unit::Seconds, 0), None);
        assert_eq!(expiry_time(i64::MIN, Unit::Seconds, now), None);
        assert_eq!(expiry_time(i64::MAX, Unit::Milliseconds, now), None);
        assert!(expiry_time(i64::MIN, Unit::Milliseconds, now).is_some());
    }

    #[test]
    fn conditions_compare_with_the_expiry_there_is() {
        let parse = |options: &[&'static str]| {
            let options: Vec<&[u8]> = options.iter().map(|o| o.as_bytes()).collect();
            Condition::parse(&options)
        };
        for (options, current, when, allowed) in [
            (&[][..], None, 5, true),
            (&["nx"], None, 5, true),
            (&["NX"], Some(9), 5, false),
            (&["xx"], None, 5, false),
            (&["xx"], Some(9), 5, true),
            (&["gt"], None, 5, false),
            (&["gt"], Some(5), 5, false),
            (&["gt"], Some(4), 5, true),
            (&["lt"], None, 5, true),
            (&["lt"], Some(5), 5, false),
            (&["lt"], Some(6), 5, true),
            (&["xx", "lt"], None, 5, false),
            (&["gt"], Some(u64::MAX), i64::MAX, false),
        ] {
            let condition = parse(options).unwrap_or_else(|_| panic!("{options:?}"));
            assert_eq!(condition.allows(current, when), allowed, "{options:?} {current:?}");
        }
        for refused in [&["nx", "xx"][..], &["nx", "gt"], &["lt", "nx"], &["gt", "lt"], &["no"]] {
            assert!(parse(refused).is_err(), "{refused:?}");
        }
    }

    #[test]
    fn cursors_are_read_as_redis_reads_them() {
        for (text, cursor) in [
            (&b"0"[..], Some(0)),
            (b"", Some(0)),
            (b"17", Some(17)),
            (b"+17", Some(17)),
            (b"-1", Some(u64::MAX)),
            (b"18446744073709551615", Some(u64::MAX)),
            (b"18446744073709551616", None),
            (b"7\0x", Some(7)),
            (b" 7", None),
            (b"7 ", None),
            (b"-", None),
            (b"x", None),
        ] {
            assert_eq!(parse_cursor(text), cursor, "{text:?}");
        }
    }
}
