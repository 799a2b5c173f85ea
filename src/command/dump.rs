//! DUMP and RESTORE: a value as bytes that another server, also Redis, can read.

use bytes::Bytes;

use super::args::{SYNTAX, int, is};
use super::data::Whole;
use super::key_specs::access::{READS, SETS};
use super::{Args, Command, Compatibility, Data, Fault, KeySpec, Outcome, Reply, Run, flag, streams};
use crate::model::{Collection, Elements, Entry};
use crate::rdb::{self, Limits, Object, Problem};

const ROW: Command = Command {
    categories: &["keyspace"],
    group: "generic",
    since: "2.6.0",
    complexity: "O(N), N being the length of the value.",
    ..Command::DEFAULT
};

const RESTORED: Compatibility = Compatibility::Partial(
    "IDLETIME and FREQ have no effect; no values of modules; a stream has at most 100,000 entries, \
     pending entries and groups together",
);

pub static COMMANDS: &[Command] = &[
    Command {
        name: "dump",
        arity: 2,
        flags: flag::READONLY,
        keys: &[KeySpec::at(1, READS)],
        summary: "Gives a key's value as bytes that RESTORE takes.",
        compatibility: Compatibility::Partial(
            "other bytes than those of Redis, which it reads all the same: not compressed, and one form for each type",
        ),
        run: Run::Data(dump),
        ..ROW
    },
    Command {
        name: "restore",
        arity: -4,
        flags: flag::WRITE | flag::DENYOOM,
        keys: &[KeySpec::at(1, SETS)],
        categories: &["keyspace", "dangerous"],
        summary: "Makes a key of what DUMP gave, also that of Redis 4 to 8 and Valkey 8 and 9.",
        compatibility: RESTORED,
        run: Run::Data(restore),
        ..ROW
    },
    Command {
        name: "restore-asking",
        arity: -4,
        flags: flag::WRITE | flag::DENYOOM | flag::ASKING,
        keys: &[KeySpec::at(1, SETS)],
        categories: &["keyspace", "dangerous"],
        group: "server",
        since: "3.0.0",
        summary: "RESTORE, as servers of a cluster send it to each other.",
        compatibility: RESTORED,
        run: Run::Data(restore),
        ..ROW
    },
];

/// A value may take so many times the memory that its bytes may have in a request.
const MEMORY: usize = 4;
/// And never more than so many bytes.
const MOST_MEMORY: usize = 1 << 30;

fn dump(data: &mut Data, args: Args) -> Outcome {
    let key = args[1];
    match data.get(key)? {
        Some(entry) => Ok(Reply::Bulk(dumped(data, key, &entry)?)),
        None => Ok(Reply::Null),
    }
}

/// Bytes of the value that was read at a key, as RDB files have it.
pub fn length(data: &mut Data, key: &[u8], entry: &Entry) -> Result<usize, Fault> {
    Ok(dumped(data, key, entry)?.len() - rdb::AROUND_VALUE)
}

fn dumped(data: &mut Data, key: &[u8], entry: &Entry) -> Result<Bytes, Fault> {
    let object = match entry.value.collection() {
        None => Object::String(entry.string()?),
        Some(Collection::List) => Object::List(data.elements(key, entry)?),
        Some(Collection::Set) => Object::Set(data.elements(key, entry)?),
        Some(Collection::SortedSet) => Object::SortedSet(data.elements(key, entry)?),
        Some(Collection::Hash) => Object::Hash(data.elements(key, entry)?),
        Some(Collection::Stream) => Object::Stream(streams::dumped::dumped(data, key, entry)?),
    };
    data.transaction.works(entry.value.bytes())?;
    Ok(rdb::dump(&object))
}

fn restore(data: &mut Data, args: Args) -> Outcome {
    let options = RestoreOptions::parse(&args[4..])?;
    let key = args[1];
    let exists = data.exists(key)?;
    if exists && !options.replace {
        return Err("BUSYKEY Target key name already exists.".into());
    }
    let ttl = u64::try_from(int(args[2])?).map_err(|_| Fault::from("ERR Invalid TTL value, must be >= 0"))?;
    let payload = rdb::verified(args[3]).ok_or("ERR DUMP payload version or checksum are wrong")?;
    data.transaction.works(rdb::most_bytes(payload.1).min(MOST_MEMORY))?;
    let string = data.config.proto_max_bulk_len();
    let memory = string.saturating_mul(MEMORY).min(MOST_MEMORY);
    let object = rdb::read(payload, Limits { string, memory }).map_err(refusal)?;
    let expire_at = match ttl {
        0 => None,
        ttl if options.absolute => Some(ttl),
        ttl => {
            let at = ttl.checked_add(data.now()).filter(|at| i64::try_from(*at).is_ok());
            Some(at.ok_or("ERR invalid expire time in 'restore' command")?)
        }
    };
    if expire_at.is_some_and(|at| at <= data.now()) {
        if exists {
            data.delete(key);
        }
        return Ok(Reply::Ok);
    }
    put(data, key, object, expire_at)?;
    Ok(Reply::Ok)
}

/// What Redis does not take has its error.
fn refusal(problem: Problem) -> Fault {
    match problem {
        Problem::Bad(_) | Problem::Empty | Problem::Read(_) => "ERR Bad data format".into(),
        Problem::Module | Problem::Unknown(_) | Problem::TooLarge | Problem::Newer(_) => {
            Fault::error(format!("ERR the payload holds {problem}"))
        }
    }
}

/// Gives a key a value. A hash whose fields have all expired deletes it.
fn put(data: &mut Data, key: &[u8], object: Object, expire_at: Option<u64>) -> Result<(), Fault> {
    match object {
        Object::String(value) => data.set(key, value, expire_at),
        Object::List(elements) => data.put_items(key, elements, expire_at, false)?,
        Object::Set(elements) => data.put_named(key, Whole { elements, expire_at }, false),
        Object::SortedSet(elements) => data.put_named(key, Whole { elements, expire_at }, false),
        Object::Hash(mut elements) => {
            elements.forget_expired(data.now());
            if !elements.0.is_empty() || data.exists(key)? {
                data.put_named(key, Whole { elements, expire_at }, false);
            }
        }
        Object::Stream(stream) => streams::dumped::restore(data, key, stream, expire_at)?,
    }
    Ok(())
}

#[derive(Default)]
struct RestoreOptions {
    replace: bool,
    absolute: bool,
}

impl RestoreOptions {
    /// IDLETIME and FREQ are checked and have no effect.
    fn parse(options: Args) -> Result<Self, Fault> {
        let mut parsed = RestoreOptions::default();
        let (mut idle, mut frequency) = (false, false);
        let mut options = options.iter();
        while let Some(option) = options.next() {
            let argument = options.as_slice().first();
            if is(option, "replace") {
                parsed.replace = true;
            } else if is(option, "absttl") {
                parsed.absolute = true;
            } else if let (true, false, Some(argument)) = (is(option, "idletime"), frequency, argument) {
                if int(argument)? < 0 {
                    return Err("ERR Invalid IDLETIME value, must be >= 0".into());
                }
                (idle, _) = (true, options.next());
            } else if let (true, false, Some(argument)) = (is(option, "freq"), idle, argument) {
                if !(0..=255).contains(&int(argument)?) {
                    return Err("ERR Invalid FREQ value, must be >= 0 and <= 255".into());
                }
                (frequency, _) = (true, options.next());
            } else {
                return Err(SYNTAX.into());
            }
        }
        Ok(parsed)
    }
}
