//! Strings: <https://redis.io/docs/latest/commands/?group=string>.

mod comparison;
mod increx;
mod lcs;
pub(super) mod long_double;
mod options;

use bytes::Bytes;

use super::args::{self, OVERFLOW, STRING_TOO_LONG, SYNTAX, int, is, wrong_arity};
use super::data::zero_padded;
use super::key_specs::access::{self, CHANGES, READS, SETS};
use super::{Args, Command, Compatibility, Data, Fault, KeySpec, MAX_REPLY_MEMORY, Outcome, Reads, Reply, Run, flag};
use crate::database::hot::{PREFETCHED, own};
use crate::resp::Weight;
use comparison::Comparison;
use long_double::LongDouble;
use options::{Expiry, SetCondition, SetOptions, Time, Unit};

const WRITE: u32 = flag::WRITE | flag::DENYOOM;
const FAST_WRITE: u32 = WRITE | flag::FAST;
const FAST_READ: u32 = flag::READONLY | flag::FAST;

/// What the rows have in common.
const ROW: Command = Command {
    categories: &["string"],
    group: "string",
    ..Command::DEFAULT
};

pub static COMMANDS: &[Command] = &[
    Command {
        name: "append",
        arity: 3,
        flags: FAST_WRITE,
        keys: &[KeySpec::at(1, access::RW | access::INSERT)],
        since: "2.0.0",
        complexity: "O(N), N being the length of the new string: it is written whole.",
        summary: "Adds bytes at the end of a string, which may be missing.",
        run: Run::Data(append),
        ..ROW
    },
    Command {
        name: "decr",
        arity: 2,
        flags: FAST_WRITE,
        keys: &[KeySpec::at(1, CHANGES)],
        summary: "Takes one from a counter; a missing one counts as 0.",
        run: Run::Data(decr),
        ..ROW
    },
    Command {
        name: "decrby",
        arity: 3,
        flags: FAST_WRITE,
        keys: &[KeySpec::at(1, CHANGES)],
        summary: "Takes an integer from a counter; a missing one counts as 0.",
        run: Run::Data(decrby),
        ..ROW
    },
    Command {
        name: "delex",
        arity: -2,
        flags: flag::WRITE | flag::FAST,
        keys: &[KeySpec::at(1, access::RW | access::DELETE | access::VARIABLE_FLAGS)],
        since: "8.4.0",
        complexity: "O(1); O(N) with IFDEQ and IFDNE, N being the length of the string.",
        summary: "Deletes a key if its string, or the digest of that, is or is not the given one.",
        access: Some(delex_access),
        run: Run::Data(delex),
        ..ROW
    },
    Command {
        name: "delifeq",
        arity: 3,
        flags: flag::WRITE,
        keys: &[KeySpec::at(1, access::RM | access::ACCESS | access::DELETE)],
        since: "9.0.0",
        summary: "Deletes a key if its string is the given one, as DELEX with IFEQ; of Valkey 9.",
        run: Run::Data(delifeq),
        ..ROW
    },
    Command {
        name: "digest",
        arity: 2,
        flags: FAST_READ,
        keys: &[KeySpec::at(1, READS)],
        since: "8.4.0",
        complexity: "O(N), N being the length of the string.",
        summary: "Returns the digest (64-bit XXH3) of the string at a key.",
        run: Run::Data(digest),
        ..ROW
    },
    Command {
        name: "get",
        arity: 2,
        flags: FAST_READ,
        keys: &[KeySpec::at(1, READS)],
        summary: "Returns the string at a key.",
        run: Run::Data(get),
        ..ROW
    },
    Command {
        name: "getdel",
        arity: 2,
        flags: flag::WRITE | flag::FAST,
        keys: &[KeySpec::at(1, access::RW | access::ACCESS | access::DELETE)],
        since: "6.2.0",
        summary: "Returns the string at a key and deletes the key.",
        run: Run::Data(getdel),
        ..ROW
    },
    Command {
        name: "getex",
        arity: -2,
        flags: flag::WRITE | flag::FAST,
        keys: &[KeySpec::at(1, CHANGES)],
        since: "6.2.0",
        summary: "Returns the string at a key and sets or removes the key's expiry.",
        run: Run::Data(getex),
        ..ROW
    },
    Command {
        name: "getrange",
        arity: 4,
        flags: flag::READONLY,
        keys: &[KeySpec::at(1, READS)],
        since: "2.4.0",
        complexity: "O(N), N being the length of the part.",
        summary: "Returns a part of a string, given by its first and last byte.",
        run: Run::Data(getrange),
        ..ROW
    },
    Command {
        name: "getset",
        arity: 3,
        flags: FAST_WRITE,
        keys: &[KeySpec::at(1, CHANGES)],
        summary: "Gives a key a string and returns the one it had; SET with GET does the same.",
        run: Run::Data(getset),
        ..ROW
    },
    Command {
        name: "incr",
        arity: 2,
        flags: FAST_WRITE,
        keys: &[KeySpec::at(1, CHANGES)],
        summary: "Adds one to a counter; a missing one counts as 0.",
        run: Run::Data(incr),
        ..ROW
    },
    Command {
        name: "incrby",
        arity: 3,
        flags: FAST_WRITE,
        keys: &[KeySpec::at(1, CHANGES)],
        summary: "Adds an integer to a counter; a missing one counts as 0.",
        run: Run::Data(incrby),
        ..ROW
    },
    Command {
        name: "incrbyfloat",
        arity: 3,
        flags: FAST_WRITE,
        keys: &[KeySpec::at(1, CHANGES)],
        since: "2.6.0",
        summary: "Adds a number, which may have a fraction, to the one at a key; a missing one counts as 0.",
        run: Run::Data(incrbyfloat),
        ..ROW
    },
    Command {
        name: "increx",
        arity: -2,
        flags: FAST_WRITE,
        keys: &[KeySpec::at(1, CHANGES)],
        since: "8.8.0",
        summary: "Adds a number to the one at a key within bounds, and sets or removes the key's expiry.",
        run: Run::Data(increx::increx),
        ..ROW
    },
    Command {
        name: "lcs",
        arity: -3,
        flags: flag::READONLY | flag::LONG,
        keys: &[KeySpec::range(1, 1, 1, READS)],
        since: "7.0.0",
        complexity: "O(N*M), N and M being the lengths of the two strings.",
        summary: "Finds the longest sequence of bytes that both strings have in the same order, gaps allowed.",
        compatibility: Compatibility::Partial(
            "strings whose lengths multiply to more than 2^30 are refused, as Redis does when it has too little memory",
        ),
        run: Run::Data(longest_common_subsequence),
        ..ROW
    },
    Command {
        name: "mget",
        arity: -2,
        flags: FAST_READ,
        keys: &[KeySpec::from(1, READS)],
        complexity: "O(N), N being the number of keys.",
        summary: "Returns the strings at several keys, all of the same moment.",
        run: Run::Data(mget),
        ..ROW
    },
    Command {
        name: "mset",
        arity: -3,
        flags: WRITE,
        keys: &[KeySpec::range(1, -1, 2, SETS)],
        since: "1.0.1",
        complexity: "O(N), N being the number of keys.",
        summary: "Gives several keys their strings, all at once.",
        reads: Reads::KeysUnless(|_| true),
        run: Run::Data(mset),
        ..ROW
    },
    Command {
        name: "msetex",
        arity: -4,
        flags: WRITE | flag::MOVABLEKEYS,
        keys: &[KeySpec::counted_pairs(1, SETS)],
        since: "8.4.0",
        complexity: "O(N), N being the number of keys.",
        summary: "Gives several keys their strings and one expiry, all at once, on a condition.",
        reads: Reads::KeysUnless(|args| msetex_options(args).is_ok_and(|options| !options.reads_the_key())),
        run: Run::Data(msetex),
        ..ROW
    },
    Command {
        name: "msetnx",
        arity: -3,
        flags: WRITE,
        keys: &[KeySpec::range(1, -1, 2, access::OW | access::INSERT)],
        since: "1.0.1",
        complexity: "O(N), N being the number of keys.",
        summary: "Gives several keys their strings, all at once, if none of the keys exists.",
        run: Run::Data(msetnx),
        ..ROW
    },
    Command {
        name: "psetex",
        arity: 4,
        flags: WRITE,
        keys: &[KeySpec::at(1, SETS)],
        since: "2.6.0",
        summary: "Gives a key a string that lives for so many milliseconds.",
        reads: Reads::KeysUnless(|_| true),
        run: Run::Data(psetex),
        ..ROW
    },
    Command {
        name: "set",
        arity: -3,
        flags: WRITE,
        keys: &[KeySpec::at(1, CHANGES | access::VARIABLE_FLAGS)],
        summary: "Gives a key a string, whatever it held before.",
        access: Some(set_access),
        reads: Reads::KeysUnless(|args| args.len() == 3),
        run: Run::Data(set),
        ..ROW
    },
    Command {
        name: "setex",
        arity: 4,
        flags: WRITE,
        keys: &[KeySpec::at(1, SETS)],
        since: "2.0.0",
        summary: "Gives a key a string that lives for so many seconds.",
        reads: Reads::KeysUnless(|_| true),
        run: Run::Data(setex),
        ..ROW
    },
    Command {
        name: "setnx",
        arity: 3,
        flags: FAST_WRITE,
        keys: &[KeySpec::at(1, access::OW | access::INSERT)],
        summary: "Gives a key a string if the key does not exist.",
        run: Run::Data(setnx),
        ..ROW
    },
    Command {
        name: "setrange",
        arity: 4,
        flags: WRITE,
        keys: &[KeySpec::at(1, access::RW | access::UPDATE)],
        since: "2.2.0",
        complexity: "O(N), N being the length of the new string: it is written whole.",
        summary: "Overwrites a part of a string from an offset on; a gap is filled with zero bytes.",
        run: Run::Data(setrange),
        ..ROW
    },
    Command {
        name: "strlen",
        arity: 2,
        flags: FAST_READ,
        keys: &[KeySpec::at(1, access::RO)],
        since: "2.2.0",
        summary: "Returns the length of a string in bytes.",
        run: Run::Data(strlen),
        ..ROW
    },
    Command {
        name: "substr",
        arity: 4,
        flags: flag::READONLY,
        keys: &[KeySpec::at(1, READS)],
        complexity: "O(N), N being the length of the part.",
        summary: "The old name of GETRANGE.",
        run: Run::Data(getrange),
        ..ROW
    },
];

fn get(data: &mut Data, args: Args) -> Outcome {
    Ok(data.get_string(args[1])?.into())
}

fn mget(data: &mut Data, args: Args) -> Outcome {
    let (mut values, mut weight) = (Vec::with_capacity(args.len() - 1), Weight::default());
    for (index, key) in args[1..].iter().enumerate() {
        if index % PREFETCHED == 0 {
            let next = args[1 + index..].iter().copied();
            data.transaction.service().prefetch(data.database, next);
        }
        // As in Redis, what is no string is no value here.
        let entry = data.get(key)?.filter(|entry| entry.value.collection().is_none());
        let value = Reply::from(entry.map(|entry| entry.string()).transpose()?);
        weight.add(&value);
        if weight.bytes() > MAX_REPLY_MEMORY {
            return Err(Fault::error(format!(
                "ERR the reply of MGET would take more than {MAX_REPLY_MEMORY} bytes of memory"
            )));
        }
        values.push(value);
    }
    Ok(Reply::Array(values))
}

fn strlen(data: &mut Data, args: Args) -> Outcome {
    let value = data.get_string(args[1])?;
    Ok(Reply::Int(value.map_or(0, |v| v.len() as i64)))
}

fn set(data: &mut Data, args: Args) -> Outcome {
    let options = SetOptions::of_set(&args[3..])?;
    let key = args[1];
    let given = options
        .expiry
        .time()
        .map(|time| time.absolute(data.now(), "set"))
        .transpose()?;
    // The key is read only if an option asks for it, because a read waits for writes of others that
    // are under way.
    let old = match options.reads_the_key() {
        true if options.get => data.read(key)?,
        true => data.get(key)?,
        false => None,
    };
    let refused = match (options.condition, &old) {
        (None, _) => false,
        (Some(SetCondition::Missing), old) => old.is_some(),
        (Some(SetCondition::Exists), old) => old.is_none(),
        (Some(SetCondition::Compares(comparison)), None) => !comparison.allows_missing(),
        (Some(SetCondition::Compares(comparison)), Some(old)) => !allows(data, comparison, &old.string()?)?,
    };
    let reply = match &old {
        Some(old) if options.get => Reply::Bulk(old.string()?),
        _ if options.get || refused => Reply::Null,
        _ => Reply::Ok,
    };
    if !refused {
        let kept = old
            .and_then(|old| old.meta.expire_at)
            .filter(|_| options.expiry == Expiry::Keep);
        set_until(data, key, own(args[2]), given.or(kept));
    }
    Ok(reply)
}

fn set_access(args: Args) -> u16 {
    let reads = |option: &&[u8]| is(option, "get") || Comparison::parse(option, b"").is_some();
    match args[3..].iter().any(reads) {
        true => CHANGES,
        false => SETS,
    }
}

/// Whether a key with this string may be changed. The string is gone through.
fn allows(data: &mut Data, comparison: Comparison, value: &[u8]) -> Result<bool, Fault> {
    data.transaction.works(value.len())?;
    comparison.allows(value)
}

fn setex(data: &mut Data, args: Args) -> Outcome {
    set_for(data, args, Unit::Seconds, "setex")
}

fn psetex(data: &mut Data, args: Args) -> Outcome {
    set_for(data, args, Unit::Milliseconds, "psetex")
}

fn set_for(data: &mut Data, args: Args, unit: Unit, command: &str) -> Outcome {
    let time = Time {
        unit,
        from_now: true,
        number: args[2],
    };
    let expire_at = time.absolute(data.now(), command)?;
    set_until(data, args[1], own(args[3]), Some(expire_at));
    Ok(Reply::Ok)
}

/// Sets a string, or deletes the key if the string is expired already.
fn set_until(data: &mut Data, key: &[u8], value: Bytes, expire_at: Option<u64>) {
    if expire_at.is_some_and(|at| at <= data.now()) {
        data.delete(key);
    } else {
        data.set(key, value, expire_at);
    }
}

fn setnx(data: &mut Data, args: Args) -> Outcome {
    if data.exists(args[1])? {
        return Ok(Reply::Int(0));
    }
    data.set(args[1], own(args[2]), None);
    Ok(Reply::Int(1))
}

fn mset(data: &mut Data, args: Args) -> Outcome {
    set_pairs(data, args, "mset")?;
    Ok(Reply::Ok)
}

fn msetnx(data: &mut Data, args: Args) -> Outcome {
    if args.len().is_multiple_of(2) {
        return Err(wrong_arity("msetnx"));
    }
    for key in args[1..].iter().step_by(2) {
        if data.exists(key)? {
            return Ok(Reply::Int(0));
        }
    }
    set_pairs(data, args, "msetnx")?;
    Ok(Reply::Int(1))
}

fn msetex(data: &mut Data, args: Args) -> Outcome {
    let (pairs, _) = args::counted_pairs(args)?;
    let options = msetex_options(args)?;
    let time = options.expiry.time();
    let given = time.map(|time| time.absolute(data.now(), "msetex")).transpose()?;
    if let Some(condition) = options.condition {
        for [key, _] in pairs {
            if data.exists(key)? == (condition == SetCondition::Missing) {
                return Ok(Reply::Int(0));
            }
        }
    }
    for [key, value] in pairs {
        let kept = match options.expiry {
            Expiry::Keep => data.get(key)?.and_then(|old| old.meta.expire_at),
            _ => None,
        };
        set_until(data, key, own(value), given.or(kept));
        data.transaction.check_size()?;
    }
    Ok(Reply::Int(1))
}

fn msetex_options<'a>(args: &[&'a [u8]]) -> Result<SetOptions<'a>, Fault> {
    let (_, options) = args::counted_pairs(args)?;
    SetOptions::of_msetex(options)
}

fn set_pairs(data: &mut Data, args: Args, command: &str) -> Result<(), Fault> {
    let (pairs, []) = args[1..].as_chunks() else {
        return Err(wrong_arity(command));
    };
    for [key, value] in pairs {
        data.set(key, own(value), None);
        data.transaction.check_size()?;
    }
    Ok(())
}

fn getset(data: &mut Data, args: Args) -> Outcome {
    let old = data.read_string(args[1])?;
    data.set(args[1], own(args[2]), None);
    Ok(old.into())
}

fn getdel(data: &mut Data, args: Args) -> Outcome {
    let old = data.read_string(args[1])?;
    if old.is_some() {
        data.delete(args[1]);
    }
    Ok(old.into())
}

fn delex(data: &mut Data, args: Args) -> Outcome {
    let key = args[1];
    let (word, argument) = match args[2..] {
        [] => {
            let is_there = data.exists(key)?;
            return Ok(deleted(data, key, is_there));
        }
        [word, argument] => (word, argument),
        _ => return Err(wrong_arity("delex")),
    };
    let Some(old) = data.get(key)? else {
        return Ok(Reply::Int(0));
    };
    if old.value.collection().is_some() {
        return Err("ERR Key should be of string type if conditions are specified".into());
    }
    let comparison = Comparison::parse(word, argument);
    let comparison = comparison.ok_or("ERR Invalid condition. Use IFEQ, IFNE, IFDEQ, or IFDNE")?;
    let is_allowed = allows(data, comparison, &old.string()?)?;
    Ok(deleted(data, key, is_allowed))
}

fn delex_access(args: Args) -> u16 {
    match args.len() {
        2 => access::RM | access::DELETE,
        _ => access::RW | access::ACCESS | access::DELETE,
    }
}

fn delifeq(data: &mut Data, args: Args) -> Outcome {
    let is_equal = data.get_string(args[1])?.is_some_and(|value| value == args[2]);
    Ok(deleted(data, args[1], is_equal))
}

/// Deletes a key that exists if this is said, and tells whether it was.
fn deleted(data: &mut Data, key: &[u8], is_wanted: bool) -> Reply {
    if is_wanted {
        data.delete(key);
    }
    Reply::Int(is_wanted.into())
}

fn digest(data: &mut Data, args: Args) -> Outcome {
    let value = data.get_string(args[1])?;
    data.transaction.works(value.as_ref().map_or(0, Bytes::len))?;
    let digest = value.map(|value| comparison::digest(&value).into());
    Ok(digest.into())
}

fn getex(data: &mut Data, args: Args) -> Outcome {
    let options = SetOptions::of_getex(&args[2..])?;
    let Some(old) = data.read(args[1])? else {
        return Ok(Reply::Null);
    };
    let value = old.string()?;
    match options.expiry {
        Expiry::Given(time) => {
            let expire_at = time.absolute(data.now(), "getex")?;
            set_until(data, args[1], value.clone(), Some(expire_at));
        }
        Expiry::Remove if old.meta.expire_at.is_some() => set_until(data, args[1], value.clone(), None),
        Expiry::Remove | Expiry::Keep | Expiry::Unsaid => {}
    }
    Ok(Reply::Bulk(value))
}

fn append(data: &mut Data, args: Args) -> Outcome {
    let (key, more) = (args[1], args[2]);
    let old = data.current_string_or_empty(key)?;
    let length = check_length(data, old.value.len() as u64, more)?;
    data.transaction.works(length)?;
    let mut value = Vec::with_capacity(length);
    value.extend_from_slice(&old.value);
    value.extend_from_slice(more);
    data.set(key, value.into(), old.expire_at);
    Ok(Reply::Int(length as i64))
}

fn setrange(data: &mut Data, args: Args) -> Outcome {
    let (key, part) = (args[1], args[3]);
    let offset = u64::try_from(int(args[2])?).map_err(|_| Fault::from("ERR offset is out of range"))?;
    let old = data.current_string_or_empty(key)?;
    if part.is_empty() {
        return Ok(Reply::Int(old.value.len() as i64));
    }
    let end = check_length(data, offset, part)?;
    data.transaction.works(old.value.len().max(end))?;
    let mut value = zero_padded(&old.value, end);
    value[end - part.len()..end].copy_from_slice(part);
    let length = value.len();
    data.set(key, value.into(), old.expire_at);
    Ok(Reply::Int(length as i64))
}

/// The end of `part` at `offset`, or an error if no string may be that long.
fn check_length(data: &Data, offset: u64, part: &[u8]) -> Result<usize, Fault> {
    let end = offset
        .checked_add(part.len() as u64)
        .and_then(|end| usize::try_from(end).ok());
    end.filter(|&end| end <= data.config.proto_max_bulk_len())
        .ok_or(STRING_TOO_LONG.into())
}

fn getrange(data: &mut Data, args: Args) -> Outcome {
    let (start, end) = (int(args[2])?, int(args[3])?);
    let value = data.get_string(args[1])?.unwrap_or_default();
    let backwards = start < 0 && end < 0 && start > end;
    let part = args::clip(start, end, value.len()).filter(|_| !backwards);
    Ok(Reply::Bulk(part.map_or(Bytes::new(), |part| value.slice(part))))
}

fn incr(data: &mut Data, args: Args) -> Outcome {
    add(data, args[1], 1)
}

fn decr(data: &mut Data, args: Args) -> Outcome {
    add(data, args[1], -1)
}

fn incrby(data: &mut Data, args: Args) -> Outcome {
    add(data, args[1], int(args[2])?)
}

fn decrby(data: &mut Data, args: Args) -> Outcome {
    let less = int(args[2])?;
    add(data, args[1], less.checked_neg().ok_or("ERR decrement would overflow")?)
}

fn add(data: &mut Data, key: &[u8], delta: i64) -> Outcome {
    let (old, expire_at) = match data.current_string(key)? {
        Some(current) => (int(&current.value)?, current.expire_at),
        None => (0, None),
    };
    let new = old.checked_add(delta).ok_or(OVERFLOW)?;
    let text = own(itoa::Buffer::new().format(new).as_bytes());
    data.set(key, text, expire_at);
    Ok(Reply::Int(new))
}

fn incrbyfloat(data: &mut Data, args: Args) -> Outcome {
    let key = args[1];
    let (old, expire_at) = match data.current_string(key)? {
        Some(current) => (LongDouble::parse(&current.value), current.expire_at),
        None => (Some(LongDouble::ZERO), None),
    };
    let old = old.ok_or(args::NOT_A_FLOAT)?;
    let delta = LongDouble::parse(args[2]).ok_or(args::NOT_A_FLOAT)?;
    let new = old.plus(delta).ok_or("ERR increment would produce NaN or Infinity")?;
    let text = Bytes::from(new.to_string());
    data.set(key, text.clone(), expire_at);
    Ok(Reply::Bulk(text))
}

fn longest_common_subsequence(data: &mut Data, args: Args) -> Outcome {
    let mut text = |key| match data.get(key)? {
        Some(entry) if entry.value.collection().is_some() => {
            Err("ERR The specified keys must contain string values".into())
        }
        Some(entry) => entry.string(),
        None => Ok(Bytes::new()),
    };
    let (a, b) = (text(args[1])?, text(args[2])?);
    let (mut length_only, mut places, mut with_length, mut least) = (false, false, false, 0);
    let mut rest = args[3..].iter();
    while let Some(word) = rest.next() {
        match word {
            word if is(word, "LEN") => length_only = true,
            word if is(word, "IDX") => places = true,
            word if is(word, "WITHMATCHLEN") => with_length = true,
            word if is(word, "MINMATCHLEN") => least = int(rest.next().ok_or(SYNTAX)?)?,
            _ => return Err(SYNTAX.into()),
        }
    }
    if length_only && places {
        return Err("ERR If you want both the length and indexes, please just use IDX.".into());
    }
    if !lcs::fits(&a, &b) {
        return Err("ERR Insufficient memory, failed allocating transient memory for LCS".into());
    }
    if length_only {
        return Ok(Reply::Int(lcs::length(&a, &b) as i64));
    }
    let common = lcs::find(&a, &b);
    if !places {
        return Ok(Reply::Bulk(common.text(&a).into()));
    }
    let range = |start: usize, length: usize| {
        Reply::Array(vec![Reply::Int(start as i64), Reply::Int((start + length) as i64 - 1)])
    };
    let matches = common.matches.iter().filter(|m| m.length as i64 >= least).map(|m| {
        let mut reply = vec![range(m.in_a, m.length), range(m.in_b, m.length)];
        reply.extend(with_length.then_some(Reply::Int(m.length as i64)));
        Reply::Array(reply)
    });
    Ok(Reply::Map(vec![
        (Reply::bulk("matches"), Reply::Array(matches.collect())),
        (Reply::bulk("len"), Reply::Int(common.length as i64)),
    ]))
}
