//! Hashes: <https://redis.io/docs/latest/commands/?group=hash>.

pub(super) mod expiry;

use bytes::Bytes;

use super::args::{self, OVERFLOW, SYNTAX, int, is, parse_int, wrong_arity};
use super::collections::{RandomCount, Scan, nothing_scanned};
use super::data::Whole;
use super::key_specs::access::{self, CHANGES, READS};
use super::strings::long_double::LongDouble;
use super::{Args, Command, Data, Fault, KeySpec, Outcome, Reply, Run, flag};
use crate::database::hot::own;
use crate::model::{Collection, Field, Fields};

const FAST_WRITE: u32 = flag::WRITE | flag::DENYOOM | flag::FAST;
const FAST_READ: u32 = flag::READONLY | flag::FAST;

/// What the rows have in common.
const ROW: Command = Command {
    categories: &["hash"],
    group: "hash",
    since: "2.0.0",
    ..Command::DEFAULT
};

const READ: &[KeySpec] = &[KeySpec::at(1, READS)];
const PUT: &[KeySpec] = &[KeySpec::at(1, access::RW | access::UPDATE)];

pub static COMMANDS: &[Command] = &[
    Command {
        name: "hdel",
        arity: -3,
        flags: flag::WRITE | flag::FAST,
        keys: &[KeySpec::at(1, access::RW | access::DELETE)],
        complexity: "O(N), N being the number of fields of the hash: it is written whole.",
        summary: "Removes fields; the key goes with its last field.",
        run: Run::Data(hdel),
        ..ROW
    },
    Command {
        name: "hexists",
        arity: 3,
        flags: FAST_READ,
        keys: &[KeySpec::at(1, access::RO)],
        summary: "Tells whether a hash has a field.",
        run: Run::Data(hexists),
        ..ROW
    },
    Command {
        name: "hget",
        arity: 3,
        flags: FAST_READ,
        keys: READ,
        summary: "Returns the value of a field.",
        run: Run::Data(hget),
        ..ROW
    },
    Command {
        name: "hgetall",
        arity: 2,
        flags: flag::READONLY,
        keys: READ,
        complexity: "O(N), N being the number of fields.",
        summary: "Returns all fields with their values.",
        run: Run::Data(hgetall),
        ..ROW
    },
    Command {
        name: "hincrby",
        arity: 4,
        flags: FAST_WRITE,
        keys: &[KeySpec::at(1, CHANGES)],
        complexity: "O(N), N being the number of fields of the hash: it is written whole.",
        summary: "Adds an integer to a field; a missing one counts as 0.",
        run: Run::Data(hincrby),
        ..ROW
    },
    Command {
        name: "hincrbyfloat",
        arity: 4,
        flags: FAST_WRITE,
        keys: &[KeySpec::at(1, CHANGES)],
        since: "2.6.0",
        complexity: "O(N), N being the number of fields of the hash: it is written whole.",
        summary: "Adds a number, which may have a fraction, to a field; a missing one counts as 0.",
        run: Run::Data(hincrbyfloat),
        ..ROW
    },
    Command {
        name: "hkeys",
        arity: 2,
        flags: flag::READONLY,
        keys: READ,
        complexity: "O(N), N being the number of fields.",
        summary: "Returns the names of all fields.",
        run: Run::Data(hkeys),
        ..ROW
    },
    Command {
        name: "hlen",
        arity: 2,
        flags: FAST_READ,
        keys: &[KeySpec::at(1, access::RO)],
        summary: "Returns the number of fields.",
        run: Run::Data(hlen),
        ..ROW
    },
    Command {
        name: "hmget",
        arity: -3,
        flags: FAST_READ,
        keys: READ,
        complexity: "O(N), N being the number of fields asked for.",
        summary: "Returns the values of several fields.",
        run: Run::Data(hmget),
        ..ROW
    },
    Command {
        name: "hmset",
        arity: -4,
        flags: FAST_WRITE,
        keys: PUT,
        complexity: "O(N), N being the number of fields of the hash: it is written whole.",
        summary: "Sets fields; HSET does the same.",
        run: Run::Data(hmset),
        ..ROW
    },
    Command {
        name: "hrandfield",
        arity: -2,
        flags: flag::READONLY,
        keys: READ,
        since: "6.2.0",
        complexity: "O(N), N being the number of fields.",
        summary: "Returns fields picked at random.",
        run: Run::Data(hrandfield),
        ..ROW
    },
    Command {
        name: "hscan",
        arity: -3,
        flags: flag::READONLY,
        keys: READ,
        since: "2.8.0",
        complexity: "O(N), N being the number of fields.",
        summary: "Walks through the fields, a part with each call.",
        run: Run::Data(hscan),
        ..ROW
    },
    Command {
        name: "hset",
        arity: -4,
        flags: FAST_WRITE,
        keys: PUT,
        complexity: "O(N), N being the number of fields of the hash: it is written whole.",
        summary: "Sets fields.",
        run: Run::Data(hset),
        ..ROW
    },
    Command {
        name: "hsetnx",
        arity: 4,
        flags: FAST_WRITE,
        keys: &[KeySpec::at(1, access::RW | access::INSERT)],
        complexity: "O(N), N being the number of fields of the hash: it is written whole.",
        summary: "Sets a field unless it exists.",
        run: Run::Data(hsetnx),
        ..ROW
    },
    Command {
        name: "hstrlen",
        arity: 3,
        flags: FAST_READ,
        keys: &[KeySpec::at(1, access::RO)],
        since: "3.2.0",
        summary: "Returns the length of a field's value in bytes.",
        run: Run::Data(hstrlen),
        ..ROW
    },
    Command {
        name: "hvals",
        arity: 2,
        flags: flag::READONLY,
        keys: READ,
        complexity: "O(N), N being the number of fields.",
        summary: "Returns the values of all fields.",
        run: Run::Data(hvals),
        ..ROW
    },
];

/// The error for a hash in memory or in the store that is not what was written.
fn damaged(problem: &str) -> Fault {
    Fault::error(format!("ERR the hash cannot be read: {problem}"))
}

/// One field's value, unless it has expired.
fn field(data: &mut Data, key: &[u8], name: &[u8]) -> Result<Option<Bytes>, Fault> {
    let now = data.now();
    let Some(packed) = data.packed(key, Collection::Hash)? else {
        return Ok(None);
    };
    data.transaction.works(packed.bytes().len())?;
    let field = packed.field(name).map_err(damaged)?;
    Ok(field.filter(|field| field.is_live(now)).map(|field| field.value))
}

fn hget(data: &mut Data, args: Args) -> Outcome {
    Ok(field(data, args[1], args[2])?.into())
}

fn hexists(data: &mut Data, args: Args) -> Outcome {
    Ok(Reply::Int(field(data, args[1], args[2])?.is_some().into()))
}

fn hstrlen(data: &mut Data, args: Args) -> Outcome {
    let value = field(data, args[1], args[2])?;
    Ok(Reply::Int(value.map_or(0, |value| value.len() as i64)))
}

fn hlen(data: &mut Data, args: Args) -> Outcome {
    let len = data.collection_len(args[1], Collection::Hash)?;
    Ok(Reply::Int(len as i64))
}

fn fields(data: &mut Data, key: &[u8]) -> Result<Fields, Fault> {
    Ok(data.collection(key)?.elements)
}

fn hmget(data: &mut Data, args: Args) -> Outcome {
    let fields = fields(data, args[1])?;
    let value = |name: &&[u8]| Reply::from(fields.0.get(*name).map(|field| field.value.clone()));
    Ok(Reply::Array(args[2..].iter().map(value).collect()))
}

fn hgetall(data: &mut Data, args: Args) -> Outcome {
    let fields = fields(data, args[1])?.0.into_iter();
    let pair = |(name, field): (Bytes, Field)| (Reply::Bulk(name), Reply::Bulk(field.value));
    Ok(Reply::Map(fields.map(pair).collect()))
}

fn hkeys(data: &mut Data, args: Args) -> Outcome {
    let names = fields(data, args[1])?.0.into_keys();
    Ok(Reply::Array(names.map(Reply::Bulk).collect()))
}

fn hvals(data: &mut Data, args: Args) -> Outcome {
    let fields = fields(data, args[1])?.0.into_values();
    Ok(Reply::Array(fields.map(|field| Reply::Bulk(field.value)).collect()))
}

/// Sets the fields, which then have no expiry of their own. Returns how many are new.
fn set_fields(data: &mut Data, args: Args, command: &str) -> Result<i64, Fault> {
    let (pairs, []) = args[2..].as_chunks() else {
        return Err(wrong_arity(command));
    };
    let mut hash: Whole<Fields> = data.collection(args[1])?;
    let before = hash.elements.0.len();
    for [name, value] in pairs {
        put(&mut hash.elements, name, own(value), None);
    }
    let new = hash.elements.0.len() - before;
    data.put_collection(args[1], hash);
    Ok(new as i64)
}

fn put(fields: &mut Fields, name: &[u8], value: Bytes, expire_at: Option<u64>) {
    let field = Field { value, expire_at };
    match fields.0.get_mut(name) {
        Some(known) => *known = field,
        None => drop(fields.0.insert(own(name), field)),
    }
}

fn hset(data: &mut Data, args: Args) -> Outcome {
    set_fields(data, args, "hset").map(Reply::Int)
}

fn hmset(data: &mut Data, args: Args) -> Outcome {
    set_fields(data, args, "hmset").map(|_| Reply::Ok)
}

fn hsetnx(data: &mut Data, args: Args) -> Outcome {
    let mut hash: Whole<Fields> = data.collection(args[1])?;
    if hash.elements.0.contains_key(args[2]) {
        return Ok(Reply::Int(0));
    }
    put(&mut hash.elements, args[2], own(args[3]), None);
    data.put_collection(args[1], hash);
    Ok(Reply::Int(1))
}

fn hdel(data: &mut Data, args: Args) -> Outcome {
    let mut hash: Whole<Fields> = data.collection(args[1])?;
    let before = hash.elements.0.len();
    // One pass for all of them: removing one by one would move what is behind it each time.
    match args[2..] {
        [name] => drop(hash.elements.0.shift_remove(name)),
        ref names => {
            let names: std::collections::HashSet<&[u8]> = names.iter().copied().collect();
            hash.elements.0.retain(|name, _| !names.contains(&name[..]));
        }
    }
    let removed = before - hash.elements.0.len();
    if removed > 0 {
        data.put_collection(args[1], hash);
    }
    Ok(Reply::Int(removed as i64))
}

fn hincrby(data: &mut Data, args: Args) -> Outcome {
    let delta = int(args[3])?;
    let mut hash: Whole<Fields> = data.collection(args[1])?;
    let (old, expire_at) = match hash.elements.0.get(args[2]) {
        Some(field) => (
            parse_int(&field.value).ok_or("ERR hash value is not an integer")?,
            field.expire_at,
        ),
        None => (0, None),
    };
    let new = old.checked_add(delta).ok_or(OVERFLOW)?;
    let text = own(itoa::Buffer::new().format(new).as_bytes());
    put(&mut hash.elements, args[2], text, expire_at);
    data.put_collection(args[1], hash);
    Ok(Reply::Int(new))
}

fn hincrbyfloat(data: &mut Data, args: Args) -> Outcome {
    let delta = LongDouble::parse(args[3]).ok_or(args::NOT_A_FLOAT)?;
    if !delta.is_finite() {
        return Err("ERR value is NaN or Infinity".into());
    }
    let mut hash: Whole<Fields> = data.collection(args[1])?;
    let (old, expire_at) = match hash.elements.0.get(args[2]) {
        Some(field) => (
            LongDouble::parse(&field.value).ok_or("ERR hash value is not a float")?,
            field.expire_at,
        ),
        None => (LongDouble::ZERO, None),
    };
    let new = old.plus(delta).ok_or("ERR increment would produce NaN or Infinity")?;
    let text = Bytes::from(new.to_string());
    put(&mut hash.elements, args[2], text.clone(), expire_at);
    data.put_collection(args[1], hash);
    Ok(Reply::Bulk(text))
}

fn hrandfield(data: &mut Data, args: Args) -> Outcome {
    let Some(count) = args.get(2) else {
        let fields = fields(data, args[1])?.0;
        let picked = (!fields.is_empty()).then(|| rand::random_range(0..fields.len()));
        let name = picked
            .and_then(|place| fields.get_index(place))
            .map(|(name, _)| name.clone());
        return Ok(name.into());
    };
    let count = RandomCount::parse(count)?;
    let with_values = match args[3..] {
        [] => false,
        [word] if is(word, "withvalues") => true,
        _ => return Err(SYNTAX.into()),
    };
    if with_values {
        count.check_for_pairs()?;
    }
    let fields = fields(data, args[1])?.0;
    let places = count.pick(fields.len())?;
    let picked = places.into_iter().filter_map(|place| fields.get_index(place));
    let name = |name: &Bytes| Reply::Bulk(name.clone());
    Ok(match with_values {
        true => Reply::Pairs(
            picked
                .map(|(of, field)| (name(of), Reply::Bulk(field.value.clone())))
                .collect(),
        ),
        false => Reply::Array(picked.map(|(of, _)| name(of)).collect()),
    })
}

fn hscan(data: &mut Data, args: Args) -> Outcome {
    let cursor = Scan::cursor(args[2])?;
    let fields = fields(data, args[1])?.0;
    if fields.is_empty() {
        return Ok(nothing_scanned());
    }
    let scan = Scan::new(cursor, &args[3..], true)?;
    let no_values = scan.no_values;
    scan.reply(fields.keys().map(|name| &name[..]), |place, shown| {
        if let Some((name, field)) = fields.get_index(place) {
            shown.push(Reply::Bulk(name.clone()));
            shown.extend((!no_values).then(|| Reply::Bulk(field.value.clone())));
        }
    })
}
