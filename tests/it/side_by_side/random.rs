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
/// a Unix time in seconds, far away, and `PAT` one in milliseconds.
type Templates = &'static [&'static str];

/// Of any type: so that keys change their types.
const GENERAL: Templates = &[
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

const HASHES: Templates = &[
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

const HASH_EXPIRY: Templates = &[
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

const SETS: Templates = &[
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

const SORTED_SETS: Templates = &[
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

fn fill(template: &str, sequence: usize, random: &mut StdRng) -> String {
    let word = |word: &str, random: &mut StdRng| match word {
        "K" => format!("k{sequence}-{}", random.random_range(0..3)),
        "F" => ["a", "b", "c", "1", "2", "\"\\xff\"", "\"\""][random.random_range(0..7)].to_owned(),
        "V" => ["x", "10", "-3", "1.5", "\"\\x00\\xfe\"", "\"\"", "long-long-long-long"][random.random_range(0..7)]
            .to_owned(),
        "N" => random.random_range(-5..6).to_string(),
        "(N" => format!("({}", random.random_range(-5..6)),
        "N.5" => format!("{}.5", random.random_range(-5..6)),
        "AT" => ["1", "1900000000", "2000000000", "33177117420"][random.random_range(0..4)].to_owned(),
        "PAT" => ["1", "1900000000001", "2000000000000", "33177117420999"][random.random_range(0..4)].to_owned(),
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

fn against_redis(oracle: Oracle, templates: Templates) {
    let seed: u64 = rand::random();
    println!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let redis = oracle.start(&[]);
    let node = Highwater::builder()
        .args(&["--fsync", "no", "--set-max-listpack-entries", "0"])
        .start();
    let (mut redis, mut client) = (redis.client(), node.client());
    for sequence in 0..SEQUENCES {
        let lines: Vec<String> = (0..LENGTH)
            .map(|_| {
                let of = if random.random_bool(0.15) { GENERAL } else { templates };
                fill(of.choose(&mut random).expect("a template"), sequence, &mut random)
            })
            .collect();
        let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
        let (expected, got) = (redis.pipeline(&lines), client.pipeline(&lines));
        for (at, (expected, got)) in expected.iter().zip(&got).enumerate() {
            let command = lines[at].split(' ').next().unwrap_or_default();
            let is_equal = match UNORDERED.contains(&command) {
                true => without_order(Reply::parse(expected)) == without_order(Reply::parse(got)),
                false => expected == got,
            };
            assert!(
                is_equal,
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
    against_redis(Oracle::Redis7, HASHES);
}

#[test]
fn hash_expiry() {
    against_redis(Oracle::Redis8, HASH_EXPIRY);
}

#[test]
fn sets() {
    against_redis(Oracle::Redis7, SETS);
}

#[test]
fn sorted_sets() {
    against_redis(Oracle::Redis7, SORTED_SETS);
}
