//! Facts that COMMAND tells of Redis 7.2's commands besides what stands in their rows: what they do with each key, and hints for
//! clients that talk to many nodes (<https://redis.io/docs/latest/develop/reference/key-specs/>,
//! <https://redis.io/docs/latest/develop/reference/command-tips/>).

use crate::command::args::is;
use crate::command::{Command, Keys, flag};

/// A range of keys among the arguments, and what the command does with them.
#[derive(Clone, Copy)]
pub struct KeySpec {
    pub flags: &'static str,
    /// Place of the first key.
    pub first: i32,
    /// Place of the last key: from the first one on, or, if negative, from the end.
    pub last: i32,
    pub step: i32,
}

const READS: &str = "RO access";
const LOOKS: &str = "RO";
const CHANGES: &str = "RW access update";
const SETS: &str = "OW update";

/// What a command does with its keys, where it is not plain reading; the keys are those of its row.
const KEY_FLAGS: &[(&str, &str)] = &[
    ("append", "RW insert"),
    ("bitfield", "RW access update variable_flags"),
    ("decr", CHANGES),
    ("decrby", CHANGES),
    ("del", "RM delete"),
    ("exists", LOOKS),
    ("expire", "RW update"),
    ("expireat", "RW update"),
    ("getdel", "RW access delete"),
    ("getex", CHANGES),
    ("getset", CHANGES),
    ("incr", CHANGES),
    ("incrby", CHANGES),
    ("incrbyfloat", CHANGES),
    ("memory|usage", LOOKS),
    ("move", CHANGES),
    ("mset", SETS),
    ("msetnx", "OW insert"),
    ("object|encoding", LOOKS),
    ("object|freq", LOOKS),
    ("object|idletime", LOOKS),
    ("object|refcount", LOOKS),
    ("persist", "RW update"),
    ("pexpire", "RW update"),
    ("pexpireat", "RW update"),
    ("psetex", SETS),
    ("restore", SETS),
    ("set", "RW access update variable_flags"),
    ("setbit", CHANGES),
    ("setex", SETS),
    ("setnx", "OW insert"),
    ("setrange", "RW update"),
    ("strlen", LOOKS),
    ("touch", LOOKS),
    ("type", LOOKS),
    ("unlink", "RM delete"),
    ("watch", LOOKS),
];

const fn one(flags: &'static str, at: i32) -> KeySpec {
    KeySpec {
        flags,
        first: at,
        last: 0,
        step: 1,
    }
}

/// Commands that do different things with different keys.
const SEVERAL: &[(&str, &[KeySpec])] = &[
    (
        "bitop",
        &[
            one(SETS, 2),
            KeySpec {
                flags: READS,
                first: 3,
                last: -1,
                step: 1,
            },
        ],
    ),
    ("copy", &[one(READS, 1), one(SETS, 2)]),
    ("rename", &[one("RW access delete", 1), one(SETS, 2)]),
    ("renamenx", &[one("RW access delete", 1), one("OW insert", 2)]),
];

const ANY_ORDER: &str = "nondeterministic_output_order";
const VARIES: &str = "nondeterministic_output";
const ALL_SHARDS: &str = "request_policy:all_shards";
const ALL_NODES: &str = "request_policy:all_nodes";
const MULTI_SHARD: &str = "request_policy:multi_shard";
const SUM: &str = "response_policy:agg_sum";
const LEAST: &str = "response_policy:agg_min";
const ALL_SUCCEED: &str = "response_policy:all_succeeded";
const SPECIAL: &str = "response_policy:special";

const TIPS: &[(&str, &[&str])] = &[
    ("client|info", &[VARIES]),
    ("client|list", &[VARIES]),
    ("command", &[ANY_ORDER]),
    ("command|docs", &[ANY_ORDER]),
    ("command|info", &[ANY_ORDER]),
    ("command|list", &[ANY_ORDER]),
    ("config|set", &[ALL_NODES, ALL_SUCCEED]),
    ("dbsize", &[ALL_SHARDS, SUM]),
    ("del", &[MULTI_SHARD, SUM]),
    ("dump", &[VARIES]),
    ("exists", &[MULTI_SHARD, SUM]),
    ("flushall", &[ALL_SHARDS, ALL_SUCCEED]),
    ("flushdb", &[ALL_SHARDS, ALL_SUCCEED]),
    ("function|flush", &[ALL_SHARDS, ALL_SUCCEED]),
    ("function|list", &[ANY_ORDER]),
    ("info", &[VARIES, ALL_SHARDS, SPECIAL]),
    ("keys", &[ALL_SHARDS, ANY_ORDER]),
    ("lastsave", &[VARIES]),
    ("latency|doctor", &[VARIES, ALL_NODES, SPECIAL]),
    ("latency|graph", &[VARIES, ALL_NODES, SPECIAL]),
    ("latency|histogram", &[VARIES, ALL_NODES, SPECIAL]),
    ("latency|history", &[VARIES, ALL_NODES, SPECIAL]),
    ("latency|latest", &[VARIES, ALL_NODES, SPECIAL]),
    ("latency|reset", &[ALL_NODES, ALL_SUCCEED]),
    ("memory|doctor", &[VARIES, ALL_SHARDS, SPECIAL]),
    ("mget", &[MULTI_SHARD]),
    ("mset", &[MULTI_SHARD, ALL_SUCCEED]),
    ("msetnx", &[MULTI_SHARD, LEAST]),
    ("object|encoding", &[VARIES]),
    ("object|freq", &[VARIES]),
    ("object|idletime", &[VARIES]),
    ("object|refcount", &[VARIES]),
    ("ping", &[ALL_SHARDS, ALL_SUCCEED]),
    ("pttl", &[VARIES]),
    ("randomkey", &[ALL_SHARDS, VARIES]),
    ("scan", &[VARIES, "request_policy:special"]),
    ("slowlog|get", &[ALL_NODES, VARIES]),
    ("slowlog|len", &[ALL_NODES, SUM, VARIES]),
    ("slowlog|reset", &[ALL_NODES, ALL_SUCCEED]),
    ("time", &[VARIES]),
    ("touch", &[MULTI_SHARD, SUM]),
    ("ttl", &[VARIES]),
    ("unlink", &[MULTI_SHARD, SUM]),
    ("wait", &[ALL_SHARDS, LEAST]),
    ("waitaof", &[ALL_SHARDS, LEAST]),
];

fn of<T: Copy>(table: &[(&str, T)], name: &str) -> Option<T> {
    table.iter().find(|(known, _)| *known == name).map(|(_, value)| *value)
}

pub fn tips(name: &str) -> &'static [&'static str] {
    of(TIPS, name).unwrap_or(&[])
}

/// Where a command's keys are and what it does with them.
pub fn key_specs(command: &Command) -> Vec<KeySpec> {
    if let Some(several) = of(SEVERAL, command.name) {
        return several.to_vec();
    }
    let Keys::Range { first, last, step } = command.keys else {
        return Vec::new();
    };
    let usual = if command.has(flag::WRITE) { CHANGES } else { READS };
    vec![KeySpec {
        flags: of(KEY_FLAGS, command.name).unwrap_or(usual),
        first,
        last: if last < 0 { last } else { last - first },
        step,
    }]
}

/// What a command does with its keys where its other arguments say so.
pub fn flags_for(name: &str, request: &[&[u8]]) -> Option<&'static str> {
    let says = |from: usize, word: &str| request.iter().skip(from).any(|argument| is(argument, word));
    match name {
        "set" => Some(if says(3, "get") { CHANGES } else { SETS }),
        "bitfield" => Some(if says(2, "set") || says(2, "incrby") {
            CHANGES
        } else {
            READS
        }),
        _ => None,
    }
}
