//! Random sequences of commands on few keys of mixed types, through redis-server and through
//! Highwater: every reply must be equal, but for the order of what has none.

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};

use super::{Oracle, brief};
use crate::support::resp::Reply;
use crate::support::server::Highwater;

const SEQUENCES: usize = 5_000;
const LENGTH: usize = 20;

/// Templates of commands. `K` becomes a key, `F` a field or member, `V` a value, `N` a number, `AT`
/// a Unix time in seconds, far away, and `PAT` one in milliseconds. For places, `P` becomes a
/// longitude and a latitude, `R` a radius and its unit, `B` a width, a height and their unit. For
/// HyperLogLogs, `E` becomes many elements and `S` a size.
pub type Templates = &'static [&'static str];

/// Of any type: so that keys change their types.
pub const GENERAL: Templates = &[
    "DEL K",
    "TYPE K",
    "EXISTS K K",
    "SET K V",
    "GET K",
    "RENAME K K",
    "COPY K K REPLACE",
    "EXPIRE K 1000",
    "PERSIST K",
    "APPEND K V",
    "MGET K K",
    "HSET K F V",
    "SADD K F",
];

pub const HASHES: Templates = &[
    "HSET K F V",
    "HSET K F V F V F V",
    "HSET K F N",
    "HSETNX K F V",
    "HMSET K F V F V",
    "HGET K F",
    "HMGET K F F F",
    "HGETALL K",
    "HKEYS K",
    "HVALS K",
    "HLEN K",
    "HEXISTS K F",
    "HSTRLEN K F",
    "HDEL K F",
    "HDEL K F F F",
    "HINCRBY K F N",
    "HINCRBYFLOAT K F N.5",
    "HRANDFIELD K 100",
    "HSCAN K 0 COUNT 1000",
    "HSCAN K 0 MATCH F COUNT 1000",
];

pub const HASH_EXPIRY: Templates = &[
    "HSET K F V F V",
    "HSET K F N",
    "HSETNX K F V",
    "HGETALL K",
    "HMGET K F F",
    "HLEN K",
    "HDEL K F F",
    "HINCRBY K F N",
    "HINCRBYFLOAT K F N.5",
    "HRANDFIELD K 100",
    "HSCAN K 0 COUNT 1000",
    "HEXPIREAT K AT FIELDS 1 F",
    "HEXPIREAT K AT FIELDS 2 F F",
    "HEXPIREAT K AT NX FIELDS 2 F F",
    "HPEXPIREAT K PAT FIELDS 3 F F F",
    "HPEXPIREAT K PAT XX FIELDS 2 F F",
    "HPEXPIREAT K PAT GT FIELDS 2 F F",
    "HPEXPIREAT K PAT LT FIELDS 2 F F",
    "HEXPIRE K 0 FIELDS 1 F",
    "HPEXPIRE K 0 XX FIELDS 2 F F",
    "HEXPIRETIME K FIELDS 3 F F F",
    "HPEXPIRETIME K FIELDS 3 F F F",
    "HPERSIST K FIELDS 2 F F",
    "HGETEX K FIELDS 2 F F",
    "HGETEX K EXAT AT FIELDS 2 F F",
    "HGETEX K PXAT PAT FIELDS 2 F F",
    "HGETEX K PERSIST FIELDS 2 F F",
    "HSETEX K FIELDS 1 F V",
    "HSETEX K EXAT AT FIELDS 2 F V F V",
    "HSETEX K FNX PXAT PAT FIELDS 2 F V F V",
    "HSETEX K FXX PXAT PAT FIELDS 2 F V F V",
    "HSETEX K FXX KEEPTTL FIELDS 2 F V F V",
    "HSETEX K KEEPTTL FIELDS 2 F V F V",
    "HGETDEL K FIELDS 1 F",
    "HGETDEL K FIELDS 3 F F F",
    "COPY K K REPLACE",
    "RENAME K K",
];

pub const SETS: Templates = &[
    "SADD K F",
    "SADD K F F F",
    "SADD K N N",
    "SREM K F",
    "SREM K F N F",
    "SMEMBERS K",
    "SCARD K",
    "SISMEMBER K F",
    "SMISMEMBER K F N F",
    "SMOVE K K F",
    "SPOP K 100",
    "SRANDMEMBER K 100",
    "SINTER K K",
    "SUNION K K K",
    "SDIFF K K",
    "SINTERSTORE K K K",
    "SUNIONSTORE K K K",
    "SDIFFSTORE K K K",
    "SINTERCARD 2 K K LIMIT 2",
    "SSCAN K 0 COUNT 1000",
];

pub const LISTS: Templates = &[
    "LPUSH K F",
    "RPUSH K F F F",
    "RPUSH K F F F",
    "LPUSHX K V",
    "RPUSHX K F F",
    "LPOP K",
    "RPOP K",
    "LPOP K N",
    "RPOP K N",
    "LLEN K",
    "LRANGE K N N",
    "LRANGE K 0 -1",
    "LINDEX K N",
    "LSET K N V",
    "LINSERT K BEFORE F V",
    "LINSERT K AFTER F F",
    "LREM K N F",
    "LTRIM K N N",
    "LTRIM K N -1",
    "LPOS K F",
    "LPOS K F RANK N",
    "LPOS K F COUNT N MAXLEN 4",
    "LPOS K F RANK -1 COUNT 0",
    "LMOVE K K LEFT RIGHT",
    "LMOVE K K RIGHT RIGHT",
    "RPOPLPUSH K K",
    "LMPOP 2 K K LEFT COUNT 2",
    "LMPOP 3 K K K RIGHT",
    "SADD K F",
];

pub const SORTED_SETS: Templates = &[
    "ZADD K N F",
    "ZADD K N F N F N.5 F",
    "ZADD K NX CH N F",
    "ZADD K XX GT N F",
    "ZADD K LT CH N F N F",
    "ZADD K INCR N F",
    "ZINCRBY K N.5 F",
    "ZREM K F F",
    "ZSCORE K F",
    "ZMSCORE K F F",
    "ZCARD K",
    "ZADD K GT CH N F N F",
    "ZADD K inf F -inf F",
    "ZREVRANGEBYSCORE K +inf (N LIMIT 0 N",
    "ZRANGEBYSCORE K (N N.5 WITHSCORES LIMIT 1 2",
    "ZLEXCOUNT K - +",
    "ZREMRANGEBYSCORE K N (N",
    "ZUNION 3 K K K WEIGHTS N N.5 1 AGGREGATE MAX WITHSCORES",
    "ZINTER 2 K K WEIGHTS N.5 N WITHSCORES",
    "ZRANGESTORE K K (N +inf BYSCORE",
    "ZRANK K F",
    "ZREVRANK K F",
    "ZCOUNT K N N",
    "ZCOUNT K (N +inf",
    "ZRANGE K N N WITHSCORES",
    "ZRANGE K N N REV",
    "ZRANGE K (N N BYSCORE LIMIT 0 2",
    "ZRANGE K - + BYLEX",
    "ZRANGEBYSCORE K -inf N WITHSCORES",
    "ZREVRANGEBYSCORE K N N",
    "ZREVRANGE K 0 -1 WITHSCORES",
    "ZREMRANGEBYRANK K N N",
    "ZREMRANGEBYSCORE K N N",
    "ZPOPMIN K",
    "ZPOPMAX K 2",
    "ZMPOP 2 K K MIN COUNT 2",
    "ZUNION 2 K K WITHSCORES",
    "ZINTER 2 K K WITHSCORES",
    "ZDIFF 2 K K WITHSCORES",
    "ZUNIONSTORE K 2 K K WEIGHTS N N",
    "ZINTERSTORE K 2 K K AGGREGATE MAX",
    "ZDIFFSTORE K 2 K K",
    "ZRANGESTORE K K 0 1",
    "ZINTERCARD 2 K K LIMIT 1",
    "ZSCAN K 0 COUNT 1000",
    "ZRANDMEMBER K 100",
    "SADD K F",
    "SUNION K K",
];

/// `I` becomes an id. XPENDING is here only as a summary: the rest of it says how long. XINFO GROUPS
/// is not: Redis 7.2 counts consumers that were given nothing.
const STREAMS: Templates = &[
    "XADD K I F V",
    "XADD K I F V F V",
    "XADD K 5-* F V",
    "XADD K 7-* F V",
    "XADD K NOMKSTREAM 6-* F V",
    "XADD K MAXLEN 3 9-* F V",
    "XADD K MINID I 9-* F V",
    "XLEN K",
    "XRANGE K - +",
    "XRANGE K I I",
    "XRANGE K (I + COUNT 2",
    "XREVRANGE K + -",
    "XREVRANGE K I (I COUNT 2",
    "XDEL K I",
    "XDEL K I I I",
    "XTRIM K MAXLEN 2",
    "XTRIM K MINID I",
    "XTRIM K MAXLEN ~ 1",
    "XTRIM K MAXLEN ~ 0 LIMIT 2",
    "XREAD STREAMS K I",
    "XREAD COUNT 2 STREAMS K K I 0",
    "XREAD STREAMS K $",
    "XSETID K I",
    "XSETID K 9-5 ENTRIESADDED 20 MAXDELETEDID I",
    "XINFO STREAM K",
    "XGROUP CREATE K F 0",
    "XGROUP CREATE K F $ MKSTREAM",
    "XGROUP CREATE K F I ENTRIESREAD 2",
    "XGROUP SETID K F I",
    "XGROUP DESTROY K F",
    "XGROUP DELCONSUMER K F c",
    "XREADGROUP GROUP F c STREAMS K >",
    "XREADGROUP GROUP F d COUNT 1 STREAMS K >",
    "XREADGROUP GROUP F d COUNT 2 NOACK STREAMS K >",
    "XREADGROUP GROUP F c STREAMS K 0",
    "XREADGROUP GROUP F c STREAMS K K > I",
    "XACK K F I I",
    "XPENDING K F",
    "XCLAIM K F d 0 I I",
    "XCLAIM K F e 0 I FORCE JUSTID",
    "XAUTOCLAIM K F e 0 I COUNT 2",
    "XADD K I F V",
    "XADD K 8-* F V",
    "COPY K K REPLACE",
];

/// Not what has no order: members of a set BY nosort, or BY equal texts.
const SORT: Templates = &[
    "RPUSH K N N.5 N",
    "RPUSH K F F",
    "LPUSH K N N",
    "LPOP K 2",
    "SADD K N N N",
    "SADD K F N",
    "ZADD K N F N N",
    "SET w1 N",
    "SET w-2 N.5",
    "SET wa N",
    "SET wb F",
    "DEL w1 wa wb w-2",
    "HSET h1 f N",
    "HSET hc f N.5",
    "HSET hb f V g N",
    "HDEL h1 f",
    "SORT K",
    "SORT K DESC LIMIT 1 N",
    "SORT K ALPHA LIMIT N 3",
    "SORT K ALPHA DESC",
    "SORT_RO K GET w* GET #",
    "SORT K BY w*",
    "SORT K BY w* DESC LIMIT N N",
    "SORT_RO K BY h*->f",
    "SORT K BY h*->g DESC GET # GET h*->f GET w*",
    "SORT K ALPHA GET h*->f LIMIT 0 3",
    "SORT K STORE K",
    "SORT K ALPHA GET w* GET # STORE K",
    "SORT K BY nosort LIMIT N N STORE K",
    "SORT K BY nosort DESC GET # STORE K",
    "LRANGE K 0 -1",
];

const PLACES: Templates = &[
    "GEOADD K P F",
    "GEOADD K P F P F P F",
    "GEOADD K P F P F P F P F",
    "GEOADD K NX CH P F P F",
    "GEOADD K XX CH P F P F",
    "GEOPOS K F F",
    "GEOHASH K F F",
    "GEODIST K F F",
    "GEODIST K F F mi",
    "GEOSEARCH K FROMLONLAT P BYRADIUS R",
    "GEOSEARCH K FROMLONLAT P BYRADIUS R ASC WITHDIST",
    "GEOSEARCH K FROMLONLAT P BYRADIUS R WITHCOORD WITHHASH WITHDIST",
    "GEOSEARCH K FROMLONLAT P BYRADIUS R COUNT 2",
    "GEOSEARCH K FROMLONLAT P BYBOX B",
    "GEOSEARCH K FROMLONLAT P BYBOX B DESC WITHDIST",
    "GEOSEARCH K FROMLONLAT P BYBOX B COUNT 3 ANY",
    "GEOSEARCH K FROMMEMBER F BYRADIUS R",
    "GEOSEARCH K FROMMEMBER F BYBOX B ASC COUNT 3",
    "GEOSEARCHSTORE K K FROMLONLAT P BYRADIUS R",
    "GEOSEARCHSTORE K K FROMMEMBER F BYBOX B STOREDIST",
    "GEOSEARCHSTORE K K FROMLONLAT P BYBOX B COUNT 2 DESC",
    "GEORADIUS K P R WITHDIST",
    "GEORADIUS K P R COUNT 2 ANY ASC",
    "GEORADIUS K P R STORE K",
    "GEORADIUS K P R STOREDIST K",
    "GEORADIUS_RO K P R DESC",
    "GEORADIUSBYMEMBER K F R WITHCOORD",
    "GEORADIUSBYMEMBER K F R STORE K",
    "GEORADIUSBYMEMBER_RO K F R WITHDIST",
    "ZRANGE K 0 -1 WITHSCORES",
    "ZADD K N F",
    "ZREM K F",
];

/// PFCOUNT of one key is not among them: Redis then keeps the count in the string.
const HYPERLOGLOGS: Templates = &[
    "PFADD K",
    "PFADD K F",
    "PFADD K F V N",
    "PFADD K E",
    "PFADD K E",
    "PFCOUNT K K",
    "PFCOUNT K K K",
    "PFMERGE K",
    "PFMERGE K K",
    "PFMERGE K K K",
    "PFDEBUG ENCODING K",
    "PFDEBUG DECODE K",
    "PFDEBUG TODENSE K",
    "GET K",
    "STRLEN K",
    "CONFIG SET hll-sparse-max-bytes S",
];

/// Commands of any type that do not break HyperLogLogs: Redis keeps a part of what PFADD did before
/// it found one broken.
const HARMLESS: Templates = &[
    "DEL K",
    "TYPE K",
    "SET K V",
    "GET K",
    "RENAME K K",
    "COPY K K REPLACE",
    "EXPIRE K 1000",
    "SADD K F",
];

/// Commands whose elements come in any order.
const UNORDERED: &[&str] = &[
    "HGETALL",
    "HKEYS",
    "HVALS",
    "HRANDFIELD",
    "HSCAN",
    "SMEMBERS",
    "SPOP",
    "SRANDMEMBER",
    "SINTER",
    "SUNION",
    "SDIFF",
    "SSCAN",
    "ZSCAN",
    "ZRANDMEMBER",
];

/// A longitude and a latitude: anywhere, near the others, or at an edge of the map.
fn place(random: &mut StdRng) -> String {
    let (longitude, latitude) = match random.random_range(0..4) {
        0 => (random.random_range(-180.0..180.0), random.random_range(-85.0..85.0)),
        1 => (
            f64::from(random.random_range(-2..3)) * 90.0,
            [-85.05112878, -66.5, 0.0, 66.5, 80.5, 85.05112878][random.random_range(0..6)],
        ),
        _ => (random.random_range(10.0..20.0), random.random_range(35.0..45.0)),
    };
    format!("{longitude} {latitude}")
}

/// From less than a metre to more than the circumference of the Earth, in most units.
fn length(random: &mut StdRng) -> f64 {
    match random.random_range(0..8) {
        0 => 0.0,
        _ => random.random_range(0.0..18.0_f64).exp2(),
    }
}

fn stream_id(random: &mut StdRng) -> String {
    match random.random_range(0..4) {
        0 => random.random_range(0..10).to_string(),
        _ => format!("{}-{}", random.random_range(0..10), random.random_range(0..4)),
    }
}

fn elements(count: usize, random: &mut StdRng) -> String {
    let elements = (0..count).map(|_| random.random_range(0..100_000).to_string());
    elements.collect::<Vec<_>>().join(" ")
}

/// What a template's keys and fields may be.
pub struct Names<'n> {
    pub keys: &'n [&'n str],
    pub fields: &'n [&'n str],
}

const FIELDS: &[&str] = &["a", "b", "c", "1", "2", "\"\\xff\"", "\"\""];

pub fn fill(template: &str, names: &Names<'_>, random: &mut StdRng) -> String {
    let word = |word: &str, random: &mut StdRng| match word {
        "K" => (*names.keys.choose(random).expect("a key")).to_owned(),
        "F" => (*names.fields.choose(random).expect("a field")).to_owned(),
        "V" => ["x", "10", "-3", "1.5", "\"\\x00\\xfe\"", "\"\"", "long-long-long-long"][random.random_range(0..7)]
            .to_owned(),
        "N" => random.random_range(-5..6).to_string(),
        "I" => stream_id(random),
        "(I" => format!("({}", stream_id(random)),
        "(N" => format!("({}", random.random_range(-5..6)),
        "N.5" => format!("{}.5", random.random_range(-5..6)),
        "AT" => ["1", "1900000000", "2000000000", "33177117420"][random.random_range(0..4)].to_owned(),
        "PAT" => ["1", "1900000000001", "2000000000000", "33177117420999"][random.random_range(0..4)].to_owned(),
        "P" => place(random),
        "R" => format!(
            "{} {}",
            length(random),
            ["m", "km", "mi", "ft"][random.random_range(0..4)]
        ),
        "B" => format!("{} {} km", length(random), length(random)),
        "E" => elements(random.random_range(0..100), random),
        "S" => ["0", "30", "100", "3000"][random.random_range(0..4)].to_owned(),
        other => other.to_owned(),
    };
    let words: Vec<String> = template.split(' ').map(|each| word(each, random)).collect();
    words.join(" ")
}

/// A scan's elements are one level below its reply.
fn without_order(reply: Reply) -> Reply {
    match reply {
        Reply::Aggregate { kind, items } => {
            let items = items.into_iter().map(Reply::unordered).collect();
            Reply::Aggregate { kind, items }.unordered()
        }
        other => other,
    }
}

/// True if both are the same reply to this command, but for the order of what has none.
pub fn are_equal(line: &str, expected: Reply, got: Reply) -> bool {
    let command = line.split(' ').next().unwrap_or_default();
    match UNORDERED.contains(&command) {
        true => without_order(expected) == without_order(got),
        false => expected == got,
    }
}

/// `args`: settings of the node.
fn against_redis(oracle: Oracle, templates: Templates, args: &[&str]) {
    beside_redis(oracle, templates, GENERAL, args);
}

fn beside_redis(oracle: Oracle, templates: Templates, general: Templates, args: &[&str]) {
    let seed: u64 = rand::random();
    println!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let redis = oracle.start(&[]);
    let node = Highwater::builder()
        .args(&["--fsync", "no", "--set-max-listpack-entries", "0"])
        .args(args)
        .start();
    let (mut redis, mut client) = (redis.client(), node.client());
    for sequence in 0..SEQUENCES {
        let keys = [0, 1, 2].map(|key| format!("k{sequence}-{key}"));
        let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
        let names = Names {
            keys: &keys,
            fields: FIELDS,
        };
        let lines: Vec<String> = (0..LENGTH)
            .map(|_| {
                let of = if random.random_bool(0.15) { general } else { templates };
                fill(of.choose(&mut random).expect("a template"), &names, &mut random)
            })
            .collect();
        let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
        let (expected, got) = (redis.pipeline(&lines), client.pipeline(&lines));
        for (at, (expected, got)) in expected.iter().zip(&got).enumerate() {
            assert!(
                are_equal(lines[at], Reply::parse(expected), Reply::parse(got)),
                "seed {seed}, sequence {sequence}:\n{}\n    redis      {}\n    highwater  {}",
                lines[..=at].join("\n"),
                brief(expected),
                brief(got)
            );
        }
    }
}

#[test]
fn hashes() {
    against_redis(Oracle::Redis7, HASHES, &[]);
}

/// Each hash of more than one field is split.
#[test]
fn split_hashes() {
    against_redis(Oracle::Redis7, HASHES, &["--max-packed-elements", "1"]);
}

#[test]
fn hash_expiry() {
    against_redis(Oracle::Redis8, HASH_EXPIRY, &[]);
}

/// As for [`split_hashes`].
#[test]
fn split_hash_expiry() {
    against_redis(Oracle::Redis8, HASH_EXPIRY, &["--max-packed-elements", "1"]);
}

#[test]
fn sets() {
    against_redis(Oracle::Redis7, SETS, &[]);
}

/// As for [`split_hashes`].
#[test]
fn split_sets() {
    against_redis(Oracle::Redis7, SETS, &["--max-packed-elements", "1"]);
}

#[test]
fn lists() {
    against_redis(Oracle::Redis7, LISTS, &[]);
}

/// As for [`split_hashes`].
#[test]
fn split_lists() {
    against_redis(Oracle::Redis7, LISTS, &["--max-packed-elements", "1"]);
}

#[test]
fn streams() {
    against_redis(Oracle::Redis7, STREAMS, &[]);
}

#[test]
fn sort() {
    against_redis(Oracle::Redis7, SORT, &[]);
}

#[test]
fn sorted_sets() {
    against_redis(Oracle::Redis7, SORTED_SETS, &[]);
}

/// As for [`split_hashes`].
#[test]
fn split_sorted_sets() {
    against_redis(Oracle::Redis7, SORTED_SETS, &["--max-packed-elements", "1"]);
}

/// As for [`split_hashes`].
#[test]
fn split_places() {
    against_redis(Oracle::Redis7, PLACES, &["--max-packed-elements", "1"]);
}

#[test]
fn places() {
    against_redis(Oracle::Redis7, PLACES, &[]);
}

#[test]
fn hyperloglogs() {
    beside_redis(Oracle::Redis7, HYPERLOGLOGS, HARMLESS, &[]);
}

/// From the first element to the dense form, at the size that is the default.
#[test]
fn hyperloglogs_that_grow() {
    let seed: u64 = rand::random();
    println!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let redis = Oracle::Redis7.start(&[]);
    let node = Highwater::builder().args(&["--fsync", "no"]).start();
    let (mut redis, mut client) = (redis.client(), node.client());
    for step in 0..80 {
        let elements = elements(50, &mut random);
        for line in [format!("PFADD k {elements}"), "GET k".into(), "PFCOUNT k k".into()] {
            let (expected, got) = (redis.line(&line), client.line(&line));
            assert!(expected == got, "seed {seed}, step {step}: {line}");
        }
    }
    assert_eq!(client.line("PFDEBUG ENCODING k"), b"+dense\r\n");
}
