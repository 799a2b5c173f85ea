//! Which events of `notify-keyspace-events` a command makes, from the keys that it has written. The
//! names are Redis's (<https://redis.io/docs/latest/develop/pubsub/keyspace-notifications/>).

use super::Args;
use super::args::{self, is};
use crate::database::notices::Touched;
use crate::model::class;

const G: u32 = class::GENERIC;
const STRING: u32 = class::STRING;
const LIST: u32 = class::LIST;
const SET: u32 = class::SET;
const HASH: u32 = class::HASH;
const ZSET: u32 = class::SORTED_SET;
const STREAM: u32 = class::STREAM;

/// Takes events in their order.
pub type Emit<'e> = &'e mut dyn FnMut(u32, &'static str, &Touched);

/// How the events of a command come about.
enum Rule {
    /// One for each written key. A deleted key has `del`.
    Writes(u32, &'static str),
    /// As `Writes`. A key that is deleted because nothing is left of it has this event, and `del`.
    Takes(u32, &'static str),
    Of(fn(Args<'_>, &[Touched], Emit<'_>)),
}

use Rule::{Of, Takes, Writes};

#[rustfmt::skip]
const RULES: &[(&str, Rule)] = &[
    // Strings
    ("append", Writes(STRING, "append")),
    ("bitfield", Writes(STRING, "setbit")),
    ("bitop", Writes(STRING, "set")),
    ("decr", Writes(STRING, "incrby")),
    ("decrby", Writes(STRING, "incrby")),
    ("getex", Of(getex)),
    ("getset", Writes(STRING, "set")),
    ("incr", Writes(STRING, "incrby")),
    ("incrby", Writes(STRING, "incrby")),
    ("incrbyfloat", Writes(STRING, "incrbyfloat")),
    ("increx", Of(increx)),
    ("mset", Writes(STRING, "set")),
    ("msetex", Of(msetex)),
    ("msetnx", Writes(STRING, "set")),
    ("pfadd", Writes(STRING, "pfadd")),
    ("pfmerge", Writes(STRING, "pfadd")),
    ("psetex", Of(set_with_expiry)),
    ("set", Of(set)),
    ("setbit", Writes(STRING, "setbit")),
    ("setex", Of(set_with_expiry)),
    ("setnx", Writes(STRING, "set")),
    ("setrange", Writes(STRING, "setrange")),
    // Hashes
    ("hdel", Takes(HASH, "hdel")),
    ("hexpire", Takes(HASH, "hexpire")),
    ("hexpireat", Takes(HASH, "hexpire")),
    ("hgetdel", Takes(HASH, "hdel")),
    ("hgetex", Takes(HASH, "hexpire")),
    ("hincrby", Writes(HASH, "hincrby")),
    ("hincrbyfloat", Writes(HASH, "hincrbyfloat")),
    ("hmset", Writes(HASH, "hset")),
    ("hpersist", Writes(HASH, "hpersist")),
    ("hpexpire", Takes(HASH, "hexpire")),
    ("hpexpireat", Takes(HASH, "hexpire")),
    ("hset", Writes(HASH, "hset")),
    ("hsetex", Writes(HASH, "hset")),
    ("hsetnx", Writes(HASH, "hset")),
    // Lists
    ("blmove", Of(lmove)),
    ("blmpop", Of(lmpop)),
    ("blpop", Takes(LIST, "lpop")),
    ("brpop", Takes(LIST, "rpop")),
    ("brpoplpush", Of(rpoplpush)),
    ("linsert", Writes(LIST, "linsert")),
    ("lmove", Of(lmove)),
    ("lmpop", Of(lmpop)),
    ("lpop", Takes(LIST, "lpop")),
    ("lpush", Writes(LIST, "lpush")),
    ("lpushx", Writes(LIST, "lpush")),
    ("lrem", Takes(LIST, "lrem")),
    ("lset", Writes(LIST, "lset")),
    ("ltrim", Takes(LIST, "ltrim")),
    ("rpop", Takes(LIST, "rpop")),
    ("rpoplpush", Of(rpoplpush)),
    ("rpush", Writes(LIST, "rpush")),
    ("rpushx", Writes(LIST, "rpush")),
    ("sort", Writes(LIST, "sortstore")),
    // Sets
    ("sadd", Writes(SET, "sadd")),
    ("sdiffstore", Writes(SET, "sdiffstore")),
    ("sinterstore", Writes(SET, "sinterstore")),
    ("smove", Of(smove)),
    ("spop", Takes(SET, "spop")),
    ("srem", Takes(SET, "srem")),
    ("sunionstore", Writes(SET, "sunionstore")),
    // Sorted sets
    ("bzmpop", Of(zmpop)),
    ("bzpopmax", Takes(ZSET, "zpopmax")),
    ("bzpopmin", Takes(ZSET, "zpopmin")),
    ("geoadd", Writes(ZSET, "zadd")),
    ("georadius", Writes(ZSET, "georadiusstore")),
    ("georadiusbymember", Writes(ZSET, "georadiusstore")),
    ("geosearchstore", Writes(ZSET, "geosearchstore")),
    ("zadd", Of(zadd)),
    ("zdiffstore", Writes(ZSET, "zdiffstore")),
    ("zincrby", Writes(ZSET, "zincr")),
    ("zinterstore", Writes(ZSET, "zinterstore")),
    ("zmpop", Of(zmpop)),
    ("zpopmax", Takes(ZSET, "zpopmax")),
    ("zpopmin", Takes(ZSET, "zpopmin")),
    ("zrangestore", Writes(ZSET, "zrangestore")),
    ("zrem", Takes(ZSET, "zrem")),
    ("zremrangebylex", Takes(ZSET, "zremrangebylex")),
    ("zremrangebyrank", Takes(ZSET, "zremrangebyrank")),
    ("zremrangebyscore", Takes(ZSET, "zremrangebyscore")),
    ("zunionstore", Writes(ZSET, "zunionstore")),
    // Streams
    ("xadd", Writes(STREAM, "xadd")),
    ("xackdel", Writes(STREAM, "xdel")),
    ("xdel", Writes(STREAM, "xdel")),
    ("xdelex", Writes(STREAM, "xdel")),
    ("xgroup|create", Writes(STREAM, "xgroup-create")),
    ("xgroup|delconsumer", Writes(STREAM, "xgroup-delconsumer")),
    ("xgroup|destroy", Writes(STREAM, "xgroup-destroy")),
    ("xgroup|setid", Writes(STREAM, "xgroup-setid")),
    ("xsetid", Writes(STREAM, "xsetid")),
    ("xtrim", Writes(STREAM, "xtrim")),
    // Keys
    ("copy", Writes(G, "copy_to")),
    ("expire", Writes(G, "expire")),
    ("expireat", Writes(G, "expire")),
    ("move", Of(move_key)),
    ("persist", Writes(G, "persist")),
    ("pexpire", Writes(G, "expire")),
    ("pexpireat", Writes(G, "expire")),
    ("rename", Of(rename)),
    ("renamenx", Of(rename)),
    ("restore", Writes(G, "restore")),
    ("restore-asking", Writes(G, "restore")),
];

/// The events of a command, by its full name, that has written these keys.
pub fn of(command: &str, args: Args<'_>, touched: &[Touched], emit: Emit<'_>) {
    for key in touched.iter().filter(|key| key.is_new) {
        emit(class::NEW, "new", key);
    }
    match RULES.iter().find(|(name, _)| *name == command) {
        Some((_, Writes(class, name))) => touched.iter().for_each(|key| writes(*class, name, key, emit)),
        Some((_, Takes(class, name))) => touched.iter().for_each(|key| takes(*class, name, key, emit)),
        Some((_, Of(rule))) => rule(args, touched, emit),
        None => touched
            .iter()
            .filter(|key| !key.is_there)
            .for_each(|key| emit(G, "del", key)),
    }
}

fn writes(class: u32, name: &'static str, key: &Touched, emit: Emit<'_>) {
    match key.is_there {
        true => emit(class, name, key),
        false => emit(G, "del", key),
    }
}

fn takes(class: u32, name: &'static str, key: &Touched, emit: Emit<'_>) {
    emit(class, name, key);
    if !key.is_there {
        emit(G, "del", key);
    }
}

fn has(args: Args<'_>, words: &[&str]) -> bool {
    args.iter().any(|argument| words.iter().any(|word| is(argument, word)))
}

fn set(args: Args<'_>, touched: &[Touched], emit: Emit<'_>) {
    set_perhaps_with_expiry(args.get(3..).unwrap_or_default(), touched, emit);
}

fn msetex(args: Args<'_>, touched: &[Touched], emit: Emit<'_>) {
    let options = args::counted_pairs(args).map_or(&[][..], |(_, options)| options);
    set_perhaps_with_expiry(options, touched, emit);
}

fn set_perhaps_with_expiry(options: Args<'_>, touched: &[Touched], emit: Emit<'_>) {
    let mut words = options.iter();
    let mut expires = false;
    while let Some(word) = words.next() {
        let is_one_of = |names: &[&str]| names.iter().any(|name| is(word, name));
        expires |= is_one_of(&["ex", "px", "exat", "pxat"]);
        if is_one_of(&["ifeq", "ifne", "ifdeq", "ifdne"]) {
            // A value follows, which may look like an option.
            words.next();
        }
    }
    match expires {
        true => set_with_expiry(options, touched, emit),
        false => touched.iter().for_each(|key| writes(STRING, "set", key, emit)),
    }
}

fn set_with_expiry(_: Args<'_>, touched: &[Touched], emit: Emit<'_>) {
    for key in touched {
        writes(STRING, "set", key, emit);
        if key.is_there {
            emit(G, "expire", key);
        }
    }
}

fn getex(args: Args<'_>, touched: &[Touched], emit: Emit<'_>) {
    let name = if has(&args[2..], &["persist"]) {
        "persist"
    } else {
        "expire"
    };
    touched.iter().for_each(|key| writes(G, name, key, emit));
}

fn increx(args: Args<'_>, touched: &[Touched], emit: Emit<'_>) {
    let (is_float, persists) = (has(&args[2..], &["byfloat"]), has(&args[2..], &["persist"]));
    for key in touched {
        writes(STRING, if is_float { "incrbyfloat" } else { "incrby" }, key, emit);
        if key.is_there && key.has_new_expiry {
            emit(G, if persists { "persist" } else { "expire" }, key);
        }
    }
}

/// The key that this argument names.
fn at<'t>(place: usize, args: Args<'_>, touched: &'t [Touched]) -> Option<&'t Touched> {
    let named = args.get(place)?;
    touched.iter().find(|key| key.key == named)
}

fn smove(args: Args<'_>, touched: &[Touched], emit: Emit<'_>) {
    at(1, args, touched)
        .into_iter()
        .for_each(|key| takes(SET, "srem", key, emit));
    at(2, args, touched).into_iter().for_each(|key| emit(SET, "sadd", key));
}

fn lmove(args: Args<'_>, touched: &[Touched], emit: Emit<'_>) {
    let ends = |place: usize, left, right| match args.get(place).is_some_and(|end| is(end, "left")) {
        true => left,
        false => right,
    };
    moved(
        args,
        touched,
        (ends(3, "lpop", "rpop"), ends(4, "lpush", "rpush")),
        emit,
    );
}

fn rpoplpush(args: Args<'_>, touched: &[Touched], emit: Emit<'_>) {
    moved(args, touched, ("rpop", "lpush"), emit);
}

fn moved(args: Args<'_>, touched: &[Touched], (pop, push): (&'static str, &'static str), emit: Emit<'_>) {
    at(2, args, touched).into_iter().for_each(|key| emit(LIST, push, key));
    at(1, args, touched)
        .into_iter()
        .for_each(|key| takes(LIST, pop, key, emit));
}

/// The word after the number of keys, which the keys follow.
fn word_after_keys<'a>(args: Args<'a>) -> Option<&'a [u8]> {
    // A command that blocks has its timeout first.
    let first = if args[0].first().is_some_and(|b| b.eq_ignore_ascii_case(&b'b')) {
        2
    } else {
        1
    };
    let keys = super::args::parse_int(args.get(first)?)?;
    args.get(first.checked_add(1)?.checked_add(usize::try_from(keys).ok()?)?)
        .copied()
}

fn lmpop(args: Args<'_>, touched: &[Touched], emit: Emit<'_>) {
    let is_left = word_after_keys(args).is_some_and(|word| is(word, "left"));
    let name = if is_left { "lpop" } else { "rpop" };
    touched.iter().for_each(|key| takes(LIST, name, key, emit));
}

fn zmpop(args: Args<'_>, touched: &[Touched], emit: Emit<'_>) {
    let is_min = word_after_keys(args).is_some_and(|word| is(word, "min"));
    let name = if is_min { "zpopmin" } else { "zpopmax" };
    touched.iter().for_each(|key| takes(ZSET, name, key, emit));
}

fn zadd(args: Args<'_>, touched: &[Touched], emit: Emit<'_>) {
    let options = args[2..].iter().take_while(|word| {
        ["nx", "xx", "gt", "lt", "ch", "incr"]
            .iter()
            .any(|option| is(word, option))
    });
    let is_incr = options.into_iter().any(|word| is(word, "incr"));
    let name = if is_incr { "zincr" } else { "zadd" };
    touched.iter().for_each(|key| writes(ZSET, name, key, emit));
}

fn rename(args: Args<'_>, touched: &[Touched], emit: Emit<'_>) {
    at(1, args, touched)
        .into_iter()
        .for_each(|key| emit(G, "rename_from", key));
    at(2, args, touched)
        .into_iter()
        .for_each(|key| emit(G, "rename_to", key));
}

fn move_key(_: Args<'_>, touched: &[Touched], emit: Emit<'_>) {
    let from = touched.iter().filter(|key| !key.is_there);
    from.for_each(|key| emit(G, "move_from", key));
    let to = touched.iter().filter(|key| key.is_there);
    to.for_each(|key| emit(G, "move_to", key));
}

/// Whether a command has a rule of its own.
#[cfg(test)]
pub fn has_rule(command: &str) -> bool {
    RULES.iter().any(|(name, _)| *name == command)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn made(request: &str, written: &[(&str, bool)]) -> String {
        let args: Vec<&[u8]> = request.split(' ').map(str::as_bytes).collect();
        let touched = written.iter().map(|(key, is_there)| Touched {
            database: 0,
            key: Bytes::copy_from_slice(key.as_bytes()),
            is_there: *is_there,
            is_new: false,
            has_new_expiry: args.contains(&&b"enx"[..]),
        });
        let touched: Vec<Touched> = touched.collect();
        let mut events = Vec::new();
        of(
            &args[0].escape_ascii().to_string(),
            &args,
            &touched,
            &mut |_, name, key| {
                events.push(format!("{name} {}", key.key.escape_ascii()));
            },
        );
        events.join(", ")
    }

    #[test]
    fn events_follow_from_what_was_written() {
        for (request, written, events) in [
            ("set k v", &[("k", true)][..], "set k"),
            ("set k v ex 1", &[("k", true)], "set k, expire k"),
            ("set k ex", &[("k", true)], "set k"),
            ("set k v ifeq ex", &[("k", true)], "set k"),
            ("set k v ifne ifeq px 1", &[("k", true)], "set k, expire k"),
            ("msetex 1 ex v nx", &[("ex", true)], "set ex"),
            ("msetex 1 k ex exat 1", &[("k", true)], "set k, expire k"),
            ("delex k ifeq v", &[("k", false)], "del k"),
            ("increx k ex 1", &[("k", true)], "incrby k"),
            ("increx k ex 1 enx", &[("k", true)], "incrby k, expire k"),
            ("increx k byfloat 1", &[("k", true)], "incrbyfloat k"),
            ("increx k exat 1 enx", &[("k", false)], "del k"),
            ("getex k persist", &[("k", true)], "persist k"),
            ("del a b", &[("a", false), ("b", false)], "del a, del b"),
            ("lpop l", &[("l", false)], "lpop l, del l"),
            (
                "lmove a b left right",
                &[("a", false), ("b", true)],
                "rpush b, lpop a, del a",
            ),
            ("rpoplpush a a", &[("a", true)], "lpush a, rpop a"),
            ("lmpop 2 left b right", &[("b", true)], "rpop b"),
            ("bzmpop 0 1 z min", &[("z", false)], "zpopmin z, del z"),
            ("zadd z nx incr 1 m", &[("z", true)], "zincr z"),
            ("zadd z 1 incr", &[("z", true)], "zadd z"),
            ("smove a b m", &[("a", false), ("b", true)], "srem a, del a, sadd b"),
            ("rename a b", &[("b", true), ("a", false)], "rename_from a, rename_to b"),
            ("expire k -1", &[("k", false)], "del k"),
            ("sinterstore d a b", &[("d", false)], "del d"),
        ] {
            assert_eq!(made(request, written), events, "{request}");
        }
    }
}
