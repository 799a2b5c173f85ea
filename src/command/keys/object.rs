//! OBJECT: how Redis would keep a key's value.

use bytes::Bytes;

use super::expiry::signed;
use crate::command::args::parse_int;
use crate::command::key_specs::access;
use crate::command::{Args, Command, Compatibility, Data, Fault, KeySpec, Outcome, Reply, Run, flag, help_of};
use crate::model::{Collection, Entry, Fields, Members, Scores};

pub(super) static OBJECT: &[Command] = &[
    Command {
        name: "object|encoding",
        arity: 3,
        flags: flag::READONLY,
        keys: &[KeySpec::at(2, access::RO)],
        since: "2.2.3",
        summary: "Tells how Redis would keep the value in memory.",
        compatibility: Compatibility::Partial(
            "told from the value alone: a short string that APPEND or SETRANGE changed is raw in Redis, embstr or int here, and a collection that was large once is large for good in Redis, and a list is always a quicklist, as in Redis 7.0",
        ),
        run: Run::Data(object_encoding),
        ..super::ROW
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
        ..super::ROW
    },
    Command {
        name: "object|help",
        arity: 2,
        flags: flag::LOADING | flag::STALE,
        since: "6.2.0",
        summary: "Lists these subcommands.",
        run: Run::Data(object_help),
        ..super::ROW
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
        ..super::ROW
    },
    Command {
        name: "object|refcount",
        arity: 3,
        flags: flag::READONLY,
        keys: &[KeySpec::at(2, access::RO)],
        since: "2.2.3",
        summary: "Tells how many references Redis would hold to the value.",
        run: Run::Data(object_refcount),
        ..super::ROW
    },
];

/// The entry that an OBJECT subcommand is about.
fn object(data: &mut Data, args: Args) -> Result<Option<Entry>, Fault> {
    data.get(args[2])
}

fn object_encoding(data: &mut Data, args: Args) -> Outcome {
    match object(data, args)? {
        None => Ok(Reply::Null),
        Some(entry) => Ok(Reply::bulk(encoding_of(data, args[2], &entry)?)),
    }
}

/// How Redis would keep what was read at a key.
pub fn encoding_of(data: &mut Data, key: &[u8], entry: &Entry) -> Result<&'static str, Fault> {
    match entry.value.collection() {
        Some(of) => encoding_of_collection(data, key, entry, of),
        None => Ok(encoding(&entry.string()?)),
    }
}

fn encoding_of_collection(data: &mut Data, key: &[u8], entry: &Entry, of: Collection) -> Result<&'static str, Fault> {
    let config = data.config;
    let is_small = |lengths: &[usize]| {
        let (most, longest) = config.listpack_limits(of.name());
        lengths.len() <= most && lengths.iter().all(|length| *length <= longest)
    };
    Ok(match of {
        Collection::Hash => {
            let fields: Fields = data.elements(key, entry)?;
            let lengths = fields.0.iter().map(|(name, field)| name.len().max(field.value.len()));
            let some_expire = fields.0.values().any(|field| field.expire_at.is_some());
            match is_small(&lengths.collect::<Vec<_>>()) {
                true if some_expire => "listpackex",
                true => "listpack",
                false => "hashtable",
            }
        }
        Collection::Set => {
            let members: Members = data.elements(key, entry)?;
            let members = members.0;
            let are_integers = || members.iter().all(|member| parse_int(member).is_some());
            match is_small(&members.iter().map(Bytes::len).collect::<Vec<_>>()) {
                _ if members.len() <= data.config.intset_limit() && are_integers() => "intset",
                true => "listpack",
                false => "hashtable",
            }
        }
        Collection::SortedSet => {
            let members: Scores = data.elements(key, entry)?;
            if is_small(&members.0.keys().map(Bytes::len).collect::<Vec<_>>()) {
                "listpack"
            } else {
                "skiplist"
            }
        }
        // As in Redis 7.0: however short it is.
        Collection::List => "quicklist",
        Collection::Stream => "stream",
    })
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
    match object(data, args)? {
        None => Ok(Reply::Null),
        Some(entry) => Ok(Reply::Int(references(&entry)?)),
    }
}

/// How many references Redis would hold to a value.
pub fn references(entry: &Entry) -> Result<i64, Fault> {
    /// Redis shares integers in this range, and reports the highest count for them.
    const SHARED: std::ops::Range<i64> = 0..10_000;
    let number = match entry.value.collection() {
        Some(_) => None,
        None => parse_int(&entry.string()?),
    };
    let shared = number.is_some_and(|number| SHARED.contains(&number));
    Ok(if shared { i64::from(i32::MAX) } else { 1 })
}

/// How long ago a value was written.
pub fn idle_seconds(data: &Data, entry: &Entry) -> i64 {
    (signed(data.now()) - entry.meta.timestamp).max(0) / 1000
}

fn object_idletime(data: &mut Data, args: Args) -> Outcome {
    match object(data, args)? {
        None => Ok(Reply::Null),
        Some(_) if data.config.policy_is_lfu() => Err("ERR An LFU maxmemory policy is selected, idle time not tracked. Please note that when switching between policies at runtime LRU and LFU data will take some time to adjust.".into()),
        Some(entry) => Ok(Reply::Int(idle_seconds(data, &entry))),
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
}
