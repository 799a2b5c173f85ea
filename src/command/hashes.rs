//! Hashes: <https://redis.io/docs/latest/commands/?group=hash>.

pub(super) mod expiry;

use bytes::Bytes;

use super::args::{self, OVERFLOW, SYNTAX, int, is, parse_int, wrong_arity};
use super::changing::Changing;
use super::collections::{RandomCount, Scan, nothing_scanned};
use super::key_specs::access::{self, CHANGES, READS};
use super::strings::long_double::LongDouble;
use super::{Args, Command, Data, Fault, KeySpec, Outcome, Reply, Run, flag};
use crate::database::Held;
use crate::database::hot::own;
use crate::database::transaction::element_of;
use crate::model::{Collection, Field, Fields, Tree};

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
        complexity: "O(1) for each field; O(N) with N fields while the hash is one record.",
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
        complexity: "O(1) for each field; O(N) with N fields while the hash is one record.",
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
        complexity: "O(1) for each field; O(N) with N fields while the hash is one record.",
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
        complexity: "O(1) for each field; O(N) with N fields while the hash is one record.",
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
        complexity: "O(1) for each field; O(N) with N fields while the hash is one record.",
        summary: "Sets fields.",
        run: Run::Data(hset),
        ..ROW
    },
    Command {
        name: "hsetnx",
        arity: 4,
        flags: FAST_WRITE,
        keys: &[KeySpec::at(1, access::RW | access::INSERT)],
        complexity: "O(1) for each field; O(N) with N fields while the hash is one record.",
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

/// A hash that a command changes field by field.
type Hash<'k> = Changing<'k, Fields>;

/// A field that does not expire by itself.
fn lasting(value: Bytes) -> Field {
    let expire_at = None;
    Field { value, expire_at }
}

/// One field's value, unless it has expired.
fn field(data: &mut Data, key: &[u8], name: &[u8]) -> Result<Option<Bytes>, Fault> {
    Ok(data.one::<Fields>(key, name)?.map(|field| field.value))
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
    let fields = data.several::<Fields>(args[1], &args[2..])?.into_iter();
    let value = |field: Option<Field>| Reply::from(field.map(|field| field.value));
    Ok(Reply::Array(fields.map(value).collect()))
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
    let mut hash = Hash::read(data, args[1])?;
    let mut new = 0;
    for [name, value] in pairs {
        new += i64::from(hash.get(data, name)?.is_none());
        hash.put(data, name, lasting(own(value)));
    }
    hash.write(data)?;
    Ok(new)
}

fn hset(data: &mut Data, args: Args) -> Outcome {
    set_fields(data, args, "hset").map(Reply::Int)
}

fn hmset(data: &mut Data, args: Args) -> Outcome {
    set_fields(data, args, "hmset").map(|_| Reply::Ok)
}

fn hsetnx(data: &mut Data, args: Args) -> Outcome {
    let mut hash = Hash::read(data, args[1])?;
    if hash.get(data, args[2])?.is_some() {
        return Ok(Reply::Int(0));
    }
    hash.put(data, args[2], lasting(own(args[3])));
    hash.write(data)?;
    Ok(Reply::Int(1))
}

fn hdel(data: &mut Data, args: Args) -> Outcome {
    let mut hash = Hash::read(data, args[1])?;
    let removed = hash.remove_all(data, &args[2..])?;
    hash.write(data)?;
    Ok(Reply::Int(removed as i64))
}

fn hincrby(data: &mut Data, args: Args) -> Outcome {
    let delta = int(args[3])?;
    let mut hash = Hash::read(data, args[1])?;
    let (old, expire_at) = match hash.get(data, args[2])? {
        Some(field) => (
            parse_int(&field.value).ok_or("ERR hash value is not an integer")?,
            field.expire_at,
        ),
        None => (0, None),
    };
    let new = old.checked_add(delta).ok_or(OVERFLOW)?;
    let text = own(itoa::Buffer::new().format(new).as_bytes());
    hash.put(data, args[2], Field { value: text, expire_at });
    hash.write(data)?;
    Ok(Reply::Int(new))
}

fn hincrbyfloat(data: &mut Data, args: Args) -> Outcome {
    let delta = LongDouble::parse(args[3]).ok_or(args::NOT_A_FLOAT)?;
    if !delta.is_finite() {
        return Err("ERR value is NaN or Infinity".into());
    }
    let mut hash = Hash::read(data, args[1])?;
    let (old, expire_at) = match hash.get(data, args[2])? {
        Some(field) => (
            LongDouble::parse(&field.value).ok_or("ERR hash value is not a float")?,
            field.expire_at,
        ),
        None => (LongDouble::ZERO, None),
    };
    let new = old.plus(delta).ok_or("ERR increment would produce NaN or Infinity")?;
    let text = Bytes::from(new.to_string());
    let value = text.clone();
    hash.put(data, args[2], Field { value, expire_at });
    hash.write(data)?;
    Ok(Reply::Bulk(text))
}

/// Fields of a split hash at these places.
fn fields_at(key: &[u8], tree: &Tree<Held>, places: &[usize]) -> Result<Vec<(Bytes, Bytes)>, Fault> {
    let held = places.iter().filter_map(|place| tree.nth(*place));
    held.map(|held| Ok((own(&held.name), element_of(key, held)?.payload())))
        .collect()
}

fn hrandfield(data: &mut Data, args: Args) -> Outcome {
    let Some(count) = args.get(2) else {
        if let Some(tree) = data.lasting_split(args[1], Collection::Hash)?
            && !tree.is_empty()
        {
            let picked = fields_at(args[1], &tree, &[rand::random_range(0..tree.len())])?;
            return Ok(picked.into_iter().next().map(|(name, _)| name).into());
        }
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
    if let Some(tree) = data.lasting_split(args[1], Collection::Hash)? {
        let picked = fields_at(args[1], &tree, &count.pick(tree.len())?)?.into_iter();
        return Ok(match with_values {
            true => Reply::Pairs(
                picked
                    .map(|(name, value)| (Reply::Bulk(name), Reply::Bulk(value)))
                    .collect(),
            ),
            false => Reply::Array(picked.map(|(name, _)| Reply::Bulk(name)).collect()),
        });
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
    if let Some(tree) = data.split(args[1], Collection::Hash)? {
        let scan = Scan::new(cursor, &args[3..], true)?;
        let no_values = scan.no_values;
        return scan.reply_of_split(&tree, data.now(), |held, shown| {
            let value = element_of(args[1], held)?.payload();
            shown.push(Reply::Bulk(own(&held.name)));
            shown.extend((!no_values).then(|| Reply::Bulk(value)));
            Ok(())
        });
    }
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
