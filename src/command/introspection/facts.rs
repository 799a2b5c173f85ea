//! Hints for clients that talk to many nodes
//! (<https://redis.io/docs/latest/develop/reference/command-tips/>). COMMAND reports them for the
//! commands of Redis 7.2 to 8.4, besides the facts in the commands' rows.

const ANY_ORDER: &str = "nondeterministic_output_order";
const VARIES: &str = "nondeterministic_output";
const ALL_SHARDS: &str = "request_policy:all_shards";
const ALL_NODES: &str = "request_policy:all_nodes";
const MULTI_SHARD: &str = "request_policy:multi_shard";
const SUM: &str = "response_policy:agg_sum";
const LEAST: &str = "response_policy:agg_min";
const ALL_SUCCEED: &str = "response_policy:all_succeeded";
const ALL_TRUE: &str = "response_policy:agg_logical_and";
const ONE_SUCCEEDED: &str = "response_policy:one_succeeded";
const SPECIAL: &str = "response_policy:special";

const TIPS: &[(&str, &[&str])] = &[
    ("client|info", &[VARIES]),
    ("client|list", &[VARIES]),
    ("cluster|bumpepoch", &[VARIES]),
    ("cluster|count-failure-reports", &[VARIES]),
    ("cluster|getkeysinslot", &[VARIES]),
    ("cluster|info", &[VARIES]),
    ("cluster|links", &[VARIES]),
    ("cluster|nodes", &[VARIES]),
    ("cluster|replicas", &[VARIES]),
    ("cluster|shards", &[VARIES]),
    ("cluster|slaves", &[VARIES]),
    ("cluster|slots", &[VARIES]),
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
    ("function|delete", &[ALL_SHARDS, ALL_SUCCEED]),
    ("function|flush", &[ALL_SHARDS, ALL_SUCCEED]),
    ("function|kill", &[ALL_SHARDS, ONE_SUCCEEDED]),
    ("function|list", &[ANY_ORDER]),
    ("function|load", &[ALL_SHARDS, ALL_SUCCEED]),
    ("function|restore", &[ALL_SHARDS, ALL_SUCCEED]),
    ("function|stats", &[VARIES, ALL_SHARDS, SPECIAL]),
    ("hgetall", &[ANY_ORDER]),
    ("hkeys", &[ANY_ORDER]),
    ("hpttl", &[VARIES]),
    ("hrandfield", &[VARIES]),
    ("hscan", &[VARIES]),
    ("httl", &[VARIES]),
    ("hvals", &[ANY_ORDER]),
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
    ("memory|malloc-stats", &[VARIES, ALL_SHARDS, SPECIAL]),
    ("memory|purge", &[ALL_SHARDS, ALL_SUCCEED]),
    ("memory|stats", &[VARIES, ALL_SHARDS, SPECIAL]),
    ("mget", &[MULTI_SHARD]),
    ("module|list", &[ANY_ORDER]),
    ("mset", &[MULTI_SHARD, ALL_SUCCEED]),
    ("msetex", &[MULTI_SHARD, ALL_SUCCEED]),
    ("msetnx", &[MULTI_SHARD, LEAST]),
    ("object|encoding", &[VARIES]),
    ("object|freq", &[VARIES]),
    ("object|idletime", &[VARIES]),
    ("object|refcount", &[VARIES]),
    ("ping", &[ALL_SHARDS, ALL_SUCCEED]),
    ("pttl", &[VARIES]),
    ("randomkey", &[ALL_SHARDS, VARIES]),
    ("scan", &[VARIES, "request_policy:special"]),
    ("script|exists", &[ALL_SHARDS, ALL_TRUE]),
    ("script|flush", &[ALL_NODES, ALL_SUCCEED]),
    ("script|kill", &[ALL_SHARDS, ONE_SUCCEEDED]),
    ("script|load", &[ALL_NODES, ALL_SUCCEED]),
    ("sdiff", &[ANY_ORDER]),
    ("sinter", &[ANY_ORDER]),
    ("slowlog|get", &[ALL_NODES, VARIES]),
    ("slowlog|len", &[ALL_NODES, SUM, VARIES]),
    ("slowlog|reset", &[ALL_NODES, ALL_SUCCEED]),
    ("smembers", &[ANY_ORDER]),
    ("spop", &[VARIES]),
    ("srandmember", &[VARIES]),
    ("sscan", &[VARIES]),
    ("sunion", &[ANY_ORDER]),
    ("time", &[VARIES]),
    ("touch", &[MULTI_SHARD, SUM]),
    ("ttl", &[VARIES]),
    ("unlink", &[MULTI_SHARD, SUM]),
    ("wait", &[ALL_SHARDS, LEAST]),
    ("waitaof", &[ALL_SHARDS, LEAST]),
    ("xadd", &[VARIES]),
    ("xautoclaim", &[VARIES]),
    ("xclaim", &[VARIES]),
    ("xinfo|consumers", &[VARIES]),
    ("xpending", &[VARIES]),
    ("xtrim", &[VARIES]),
    ("zrandmember", &[VARIES]),
    ("zscan", &[VARIES]),
];

fn of<T: Copy>(table: &[(&str, T)], name: &str) -> Option<T> {
    table.iter().find(|(known, _)| *known == name).map(|(_, value)| *value)
}

pub fn tips(name: &str) -> &'static [&'static str] {
    of(TIPS, name).unwrap_or(&[])
}
