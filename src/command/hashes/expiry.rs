//! Fields that expire: HEXPIRE and HTTL with their variants and HPERSIST (Redis 7.4), and HGETEX,
//! HSETEX and HGETDEL (Redis 8.0).
//!
//! A field's expiry is a part of its hash's record, or of its own.

use super::{Hash, ROW, lasting};
use crate::command::args::{int, is, parse_int, wrong_arity};
use crate::command::key_specs::access::{self, CHANGES, READS};
use crate::command::{Args, Command, Data, Fault, KeySpec, Outcome, Reply, Run, flag};
use crate::database::hot::own;
use crate::model::Field;

/// The latest time that Redis takes for a field, in milliseconds since the epoch.
const LATEST: i64 = (1 << 46) - 1;

const UPDATES: &[KeySpec] = &[KeySpec::at(1, access::RW | access::UPDATE)];

/// What the rows have in common that change the expiry of fields.
const CHANGE: Command = Command {
    flags: flag::WRITE | flag::FAST,
    keys: UPDATES,
    since: "7.4.0",
    complexity: "O(1) for each field; O(N) with N fields while the hash is one record.",
    ..ROW
};

/// What the rows have in common that tell the expiry of fields.
const TELL: Command = Command {
    arity: -5,
    flags: flag::READONLY | flag::FAST,
    keys: &[KeySpec::at(1, READS)],
    since: "7.4.0",
    complexity: "O(N), N being the number of fields of the hash.",
    ..ROW
};

pub static COMMANDS: &[Command] = &[
    Command {
        name: "hexpire",
        arity: -6,
        summary: "Lets fields expire in so many seconds.",
        run: Run::Data(hexpire),
        ..CHANGE
    },
    Command {
        name: "hexpireat",
        arity: -6,
        summary: "Lets fields expire at a Unix time in seconds.",
        run: Run::Data(hexpireat),
        ..CHANGE
    },
    Command {
        name: "hexpiretime",
        summary: "Tells when fields expire, as Unix times in seconds.",
        run: Run::Data(hexpiretime),
        ..TELL
    },
    Command {
        name: "hgetdel",
        arity: -5,
        keys: &[KeySpec::at(1, access::RW | access::ACCESS | access::DELETE)],
        since: "8.0.0",
        summary: "Returns the values of fields and removes the fields.",
        run: Run::Data(hgetdel),
        ..CHANGE
    },
    Command {
        name: "hgetex",
        arity: -5,
        keys: &[KeySpec::at(1, CHANGES)],
        since: "8.0.0",
        summary: "Returns the values of fields, and may change when they expire.",
        run: Run::Data(hgetex),
        ..CHANGE
    },
    Command {
        name: "hpersist",
        arity: -5,
        summary: "Takes the expiry of fields away.",
        run: Run::Data(hpersist),
        ..CHANGE
    },
    Command {
        name: "hpexpire",
        arity: -6,
        summary: "Lets fields expire in so many milliseconds.",
        run: Run::Data(hpexpire),
        ..CHANGE
    },
    Command {
        name: "hpexpireat",
        arity: -6,
        summary: "Lets fields expire at a Unix time in milliseconds.",
        run: Run::Data(hpexpireat),
        ..CHANGE
    },
    Command {
        name: "hpexpiretime",
        summary: "Tells when fields expire, as Unix times in milliseconds.",
        run: Run::Data(hpexpiretime),
        ..TELL
    },
    Command {
        name: "hpttl",
        summary: "Tells how many milliseconds fields have left.",
        run: Run::Data(hpttl),
        ..TELL
    },
    Command {
        name: "hsetex",
        arity: -6,
        flags: flag::WRITE | flag::DENYOOM | flag::FAST,
        since: "8.0.0",
        summary: "Sets fields, and when they expire.",
        run: Run::Data(hsetex),
        ..CHANGE
    },
    Command {
        name: "httl",
        summary: "Tells how many seconds fields have left.",
        run: Run::Data(httl),
        ..TELL
    },
];

const NOT_POSITIVE: &str = "ERR Number of fields must be a positive integer";
const ONE_CONDITION: &str = "ERR Only one of FXX or FNX arguments can be specified";
const ONE_EXPIRY: &str = "ERR Only one of EX, PX, EXAT, PXAT or KEEPTTL arguments can be specified";

/// How a time is given.
#[derive(Clone, Copy)]
struct Form {
    milliseconds: bool,
    from_now: bool,
}

const EX: Form = Form {
    milliseconds: false,
    from_now: true,
};
const PX: Form = Form {
    milliseconds: true,
    from_now: true,
};
const EXAT: Form = Form {
    milliseconds: false,
    from_now: false,
};
const PXAT: Form = Form {
    milliseconds: true,
    from_now: false,
};

impl Form {
    fn of_option(word: &[u8]) -> Option<Form> {
        let forms = [("ex", EX), ("px", PX), ("exat", EXAT), ("pxat", PXAT)];
        forms.into_iter().find(|(name, _)| is(word, name)).map(|(_, form)| form)
    }

    /// Milliseconds since the epoch. `command` is the name for the error.
    fn time(self, argument: &[u8], now: u64, command: &str) -> Result<u64, Fault> {
        let number = int(argument)?;
        if number < 0 {
            return Err("ERR invalid expire time, must be >= 0".into());
        }
        let milliseconds = match self.milliseconds {
            true => Some(number),
            false => number.checked_mul(1000),
        };
        let base = if self.from_now { now as i64 } else { 0 };
        milliseconds
            .and_then(|milliseconds| milliseconds.checked_add(base))
            .filter(|at| *at <= LATEST)
            .map(|at| at as u64)
            .ok_or_else(|| Fault::error(format!("ERR invalid expire time in '{command}' command")))
    }
}

/// NX, XX, GT and LT of the HEXPIRE family.
#[derive(Clone, Copy)]
enum Condition {
    Always,
    NoExpiry,
    SomeExpiry,
    Later,
    Earlier,
}

impl Condition {
    /// The condition, and the words after it.
    fn parse<'a>(words: &'a [&'a [u8]]) -> (Condition, &'a [&'a [u8]]) {
        let known = [
            ("nx", Condition::NoExpiry),
            ("xx", Condition::SomeExpiry),
            ("gt", Condition::Later),
            ("lt", Condition::Earlier),
        ];
        let found = words.split_first().and_then(|(word, rest)| {
            let found = known.into_iter().find(|(name, _)| is(word, name));
            found.map(|(_, condition)| (condition, rest))
        });
        found.unwrap_or((Condition::Always, words))
    }

    /// No expiry counts as later than any expiry.
    fn allows(self, current: Option<u64>, at: u64) -> bool {
        match self {
            Condition::Always => true,
            Condition::NoExpiry => current.is_none(),
            Condition::SomeExpiry => current.is_some(),
            Condition::Later => current.is_some_and(|current| at > current),
            Condition::Earlier => current.is_none_or(|current| at < current),
        }
    }
}

/// The names after FIELDS and their number. They must be all that is left of the request.
fn names<'a>(words: &'a [&'a [u8]], command: &str, no_number: &'static str) -> Result<&'a [&'a [u8]], Fault> {
    let [word, number, names @ ..] = words else {
        return Err(wrong_arity(command));
    };
    if !is(word, "fields") {
        return Err("ERR Mandatory argument FIELDS is missing or not at the right position".into());
    }
    let number = parse_int(number).filter(|number| *number > 0).ok_or(no_number)?;
    match usize::try_from(number) == Ok(names.len()) {
        true => Ok(names),
        false => Err("ERR The `numfields` parameter must match the number of arguments".into()),
    }
}

fn hexpire(data: &mut Data, args: Args) -> Outcome {
    set_expiry(data, args, "hexpire", EX)
}

fn hpexpire(data: &mut Data, args: Args) -> Outcome {
    set_expiry(data, args, "hpexpire", PX)
}

fn hexpireat(data: &mut Data, args: Args) -> Outcome {
    set_expiry(data, args, "hexpireat", EXAT)
}

fn hpexpireat(data: &mut Data, args: Args) -> Outcome {
    set_expiry(data, args, "hpexpireat", PXAT)
}

/// The HEXPIRE family. As in Redis, errors about the key come before those about the arguments.
fn set_expiry(data: &mut Data, args: Args, command: &str, form: Form) -> Outcome {
    const NO_FIELD: i64 = -2;
    const NOT_MET: i64 = 0;
    const SET: i64 = 1;
    const REMOVED: i64 = 2;
    let now = data.now();
    let mut hash = Hash::read(data, args[1])?;
    let at = form.time(args[2], now, command)?;
    let (condition, words) = Condition::parse(&args[3..]);
    let names = names(words, command, "ERR Parameter `numFields` should be greater than 0")?;
    let mut replies = Vec::with_capacity(names.len());
    for name in names {
        let reply = match hash.get(data, name)? {
            None => NO_FIELD,
            Some(field) if !condition.allows(field.expire_at, at) => NOT_MET,
            Some(_) if at <= now => {
                hash.remove(data, name)?;
                REMOVED
            }
            Some(field) => {
                let expire_at = Some(at);
                hash.put(data, name, Field { expire_at, ..field });
                SET
            }
        };
        replies.push(Reply::Int(reply));
    }
    hash.write(data)?;
    Ok(Reply::Array(replies))
}

fn httl(data: &mut Data, args: Args) -> Outcome {
    let now = data.now();
    tell_expiry(data, args, "httl", |at| (at - now).div_ceil(1000))
}

fn hpttl(data: &mut Data, args: Args) -> Outcome {
    let now = data.now();
    tell_expiry(data, args, "hpttl", |at| at - now)
}

fn hexpiretime(data: &mut Data, args: Args) -> Outcome {
    tell_expiry(data, args, "hexpiretime", |at| at.div_ceil(1000))
}

fn hpexpiretime(data: &mut Data, args: Args) -> Outcome {
    tell_expiry(data, args, "hpexpiretime", |at| at)
}

/// The HTTL family. `tell` gets a time that has not passed.
fn tell_expiry(data: &mut Data, args: Args, command: &str, tell: impl Fn(u64) -> u64) -> Outcome {
    let hash = Hash::read(data, args[1])?;
    let names = names(&args[2..], command, NOT_POSITIVE)?;
    let mut replies = Vec::with_capacity(names.len());
    for name in names {
        replies.push(Reply::Int(match hash.get(data, name)? {
            None => -2,
            Some(field) => field.expire_at.map_or(-1, |at| tell(at) as i64),
        }));
    }
    Ok(Reply::Array(replies))
}

fn hpersist(data: &mut Data, args: Args) -> Outcome {
    let mut hash = Hash::read(data, args[1])?;
    let names = names(&args[2..], "hpersist", NOT_POSITIVE)?;
    let mut replies = Vec::with_capacity(names.len());
    for name in names {
        replies.push(Reply::Int(match hash.get(data, name)? {
            None => -2,
            Some(Field { expire_at: None, .. }) => -1,
            Some(field) => {
                hash.put(data, name, lasting(field.value));
                1
            }
        }));
    }
    hash.write(data)?;
    Ok(Reply::Array(replies))
}

/// What becomes of a field whose value is replied.
enum Change {
    None,
    Remove,
    Persist,
    Expire(u64),
}

/// Replies the values of these fields, and changes those that are there.
fn values(data: &mut Data, mut hash: Hash, names: Args, change: Change) -> Outcome {
    let mut replies = Vec::with_capacity(names.len());
    for name in names {
        let Some(field) = hash.get(data, name)? else {
            replies.push(Reply::Null);
            continue;
        };
        let value = field.value.clone();
        match change {
            Change::None => {}
            Change::Remove => drop(hash.remove(data, name)?),
            Change::Persist if field.expire_at.is_none() => {}
            Change::Persist => hash.put(data, name, lasting(field.value)),
            Change::Expire(at) => {
                let expire_at = Some(at);
                hash.put(data, name, Field { expire_at, ..field });
            }
        }
        replies.push(Reply::Bulk(value));
    }
    hash.write(data)?;
    Ok(Reply::Array(replies))
}

fn hgetdel(data: &mut Data, args: Args) -> Outcome {
    let hash = Hash::read(data, args[1])?;
    let names = names(&args[2..], "hgetdel", NOT_POSITIVE)?;
    values(data, hash, names, Change::Remove)
}

fn hgetex(data: &mut Data, args: Args) -> Outcome {
    const COMMAND: &str = "hgetex";
    let now = data.now();
    let hash = Hash::read(data, args[1])?;
    if is(args[2], "persist") {
        let names = names(&args[3..], COMMAND, NOT_POSITIVE)?;
        return values(data, hash, names, Change::Persist);
    }
    let Some(form) = Form::of_option(args[2]) else {
        let names = names(&args[2..], COMMAND, NOT_POSITIVE)?;
        return values(data, hash, names, Change::None);
    };
    let at = form.time(args[3], now, COMMAND)?;
    let names = names(&args[4..], COMMAND, NOT_POSITIVE)?;
    let change = if at > now { Change::Expire(at) } else { Change::Remove };
    values(data, hash, names, change)
}

/// What HSETEX is asked for.
struct SetEx<'a> {
    /// FNX (false) or FXX (true): whether all fields must exist.
    must_exist: Option<bool>,
    expiry: Expiry,
    pairs: &'a [[&'a [u8]; 2]],
}

enum Expiry {
    None,
    /// KEEPTTL
    Keep,
    At(u64),
}

impl<'a> SetEx<'a> {
    fn parse(mut words: &'a [&'a [u8]], now: u64) -> Result<SetEx<'a>, Fault> {
        const COMMAND: &str = "hsetex";
        let too_few = || wrong_arity(COMMAND);
        let mut must_exist = None;
        let mut expiry = Expiry::None;
        loop {
            let (word, rest) = words.split_first().ok_or_else(too_few)?;
            words = rest;
            let form = Form::of_option(word);
            let keeps = is(word, "keepttl");
            if is(word, "fields") {
                let pairs = pairs(rest, COMMAND)?;
                return Ok(SetEx {
                    must_exist,
                    expiry,
                    pairs,
                });
            } else if is(word, "fnx") || is(word, "fxx") {
                if must_exist.replace(is(word, "fxx")).is_some() {
                    return Err(ONE_CONDITION.into());
                }
            } else if !keeps && form.is_none() {
                // As in Redis, the error shows the word up to a NUL.
                let told = word.split(|byte| *byte == 0).next().unwrap_or_default();
                return Err(Fault::error([b"ERR unknown argument: ", told].concat()));
            } else if !matches!(expiry, Expiry::None) {
                return Err(ONE_EXPIRY.into());
            } else if let Some(form) = form {
                let (time, rest) = rest.split_first().ok_or_else(too_few)?;
                words = rest;
                expiry = Expiry::At(form.time(time, now, COMMAND)?);
            } else {
                expiry = Expiry::Keep;
            }
        }
    }
}

/// The number of pairs and the pairs of field and value, which must be all that is left.
fn pairs<'a>(words: &'a [&'a [u8]], command: &str) -> Result<&'a [[&'a [u8]; 2]], Fault> {
    let (number, words) = words.split_first().ok_or_else(|| wrong_arity(command))?;
    if words.len() < 2 {
        return Err(wrong_arity(command));
    }
    let number = parse_int(number).and_then(|number| i32::try_from(number).ok());
    let number = number
        .filter(|number| *number > 0)
        .ok_or("ERR invalid number of fields")?;
    let (pairs, rest) = words.as_chunks();
    match rest.is_empty() && usize::try_from(number) == Ok(pairs.len()) {
        true => Ok(pairs),
        false => Err(wrong_arity(command)),
    }
}

fn hsetex(data: &mut Data, args: Args) -> Outcome {
    let now = data.now();
    let SetEx {
        must_exist,
        expiry,
        pairs,
    } = SetEx::parse(&args[2..], now)?;
    let mut hash = Hash::read(data, args[1])?;
    if let Some(must_exist) = must_exist {
        for [name, _] in pairs {
            if hash.get(data, name)?.is_some() != must_exist {
                return Ok(Reply::Int(0));
            }
        }
    }
    for [name, value] in pairs {
        let expire_at = match expiry {
            Expiry::None => None,
            Expiry::Keep => hash.get(data, name)?.and_then(|field| field.expire_at),
            Expiry::At(at) => Some(at),
        };
        if expire_at.is_some_and(|at| at <= now) {
            hash.remove(data, name)?;
        } else {
            let value = own(value);
            hash.put(data, name, Field { value, expire_at });
        }
    }
    hash.write(data)?;
    Ok(Reply::Int(1))
}
