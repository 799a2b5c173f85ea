//! Hashes and sets with a record for each element: what is in the topic, what two nodes that write
//! one collection make of it, and what is left of one that is no more.

use std::collections::BTreeMap;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::thread;
use std::time::Duration;

use crate::collections::{count_in_one_hash, header, shows};
use crate::hostile_producers::Hostile;
use crate::support::client::Client;
use crate::support::eventually;
use crate::support::kafka::{self, Kafka, SeenRecord, fresh_topic};
use crate::support::resp::Reply;
use crate::support::server::Highwater;

const SOON: Duration = Duration::from_secs(60);
pub const ELEMENT: &[u8] = b"\0highwater:e";
/// Collections of more than four elements are split.
pub const SMALL: &[&str] = &["--max-packed-elements", "4"];

pub fn node(kafka: &Kafka, topic: &str) -> Highwater {
    Highwater::builder().kafka(kafka, topic).args(SMALL).start()
}

/// What a topic's records say, key by key.
pub fn compacted(kafka: &Kafka, topic: &str) -> BTreeMap<Vec<u8>, SeenRecord> {
    let records = kafka.records(topic, "read_committed").into_iter();
    let by_key = records.map(|record| (record.key.clone().unwrap_or_default(), record));
    by_key.collect()
}

pub fn is_element(key: &[u8]) -> bool {
    key.starts_with(ELEMENT)
}

fn fields(client: &mut Client, key: &str) -> BTreeMap<String, String> {
    let reply = Reply::parse(&client.line(&format!("HGETALL {key}")));
    let text = |item: &Reply| String::from_utf8_lossy(item.bytes().expect("a text")).into_owned();
    let texts: Vec<String> = reply.items().iter().map(text).collect();
    let (pairs, _) = texts.as_chunks::<2>();
    pairs
        .iter()
        .map(|[field, value]| (field.clone(), value.clone()))
        .collect()
}

fn set_many(client: &mut Client, key: &str, fields: std::ops::Range<u32>, value: &str) {
    let lines: Vec<String> = fields
        .map(|field| format!("HSET {key} f{field} {value}{field}"))
        .collect();
    let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
    for reply in client.pipeline(&lines) {
        assert!(Reply::parse(&reply).integer().is_some(), "{}", reply.escape_ascii());
    }
}

#[test]
fn a_large_hash_has_a_record_for_each_field() {
    let kafka = kafka::shared();
    let topic = fresh_topic("split");
    let mut one = node(kafka, &topic);
    let other = node(kafka, &topic);
    let mut client = one.client();
    client.check("HSET h a 1 b 2 c 3 d 4", ":4");
    assert!(compacted(kafka, &topic).keys().all(|key| !is_element(key)));
    client.check("HSET h e 5", ":1");
    let records = compacted(kafka, &topic);
    let head = &records[&b"h"[..]];
    assert_eq!(header(head, "redis-type"), Some(&b"hash"[..]));
    assert_eq!(head.value.as_deref(), Some(&b""[..]));
    let version = header(head, "redis-split").expect("a version").to_vec();
    assert_eq!(version.len(), 24);
    let elements: Vec<_> = records.iter().filter(|(key, _)| is_element(key)).collect();
    assert_eq!(elements.len(), 5);
    let (key, first) = elements[0];
    let bytes: Vec<u8> = (0..12)
        .map(|at| u8::from_str_radix(std::str::from_utf8(&version[at * 2..][..2]).expect("hex"), 16).expect("hex"))
        .collect();
    assert_eq!(key[..], [ELEMENT, b"\x01h", &bytes, b"a"].concat());
    assert_eq!(header(first, "redis-type"), Some(&b"element"[..]));
    assert_eq!(first.value.as_deref(), Some(&b"\x01\x001"[..]));
    // From now on a change is one record, and the head stays as it is.
    let before = kafka.records(&topic, "read_committed").len();
    client.check("HSET h a new", ":0");
    client.check("HINCRBY h b 40", ":42");
    client.check("HDEL h c", ":1");
    let records = kafka.records(&topic, "read_committed");
    assert_eq!(records.len(), before + 3);
    assert!(
        records[before..]
            .iter()
            .all(|record| is_element(record.key.as_deref().expect("a key")))
    );
    assert_eq!(records[before + 2].value, None);
    client.check("HLEN h", ":4");
    client.check("DBSIZE", ":1");
    shows(
        &mut other.client(),
        "HMGET h a b c d e",
        "*5\r\n$3\r\nnew\r\n$2\r\n42\r\n$-1\r\n$1\r\n4\r\n$1\r\n5",
    );
    let digest = client.line("HIGHWATER DIGEST");
    let mut others = other.client();
    eventually("the nodes agree", SOON, || others.line("HIGHWATER DIGEST") == digest);
    others.check("DBSIZE", ":1");
    // With its own store, and with none.
    assert!(one.terminate().success());
    one.restart();
    let fresh = node(kafka, &topic);
    for node in [&one, &fresh] {
        let mut client = node.client();
        client.check("HGET h b", "$2\r\n42");
        client.check("HLEN h", ":4");
        client.check("TYPE h", "+hash");
        client.check("OBJECT ENCODING h", "$8\r\nlistpack");
        eventually("the nodes agree", SOON, || client.line("HIGHWATER DIGEST") == digest);
    }
    // The hash goes with its last field, and its head with it.
    fresh.client().check("EXPIRE h 1000", ":1");
    fresh.client().check("HDEL h a b d e", ":4");
    fresh.client().check("EXISTS h", ":0");
    fresh.client().check("DBSIZE", ":0");
    assert_eq!(compacted(kafka, &topic)[&b"h"[..]].value, None);
    fresh.client().check("HSET h again 1", ":1");
    fresh.client().check("TTL h", ":-1");
    shows(&mut one.client(), "HGETALL h", "*2\r\n$5\r\nagain\r\n$1\r\n1");
}

#[test]
fn two_nodes_write_different_fields_of_one_hash_without_a_conflict() {
    const EACH: u32 = 300;
    let kafka = kafka::shared();
    let topic = fresh_topic("split-fields");
    let nodes = [node(kafka, &topic), node(kafka, &topic)];
    let mut client = nodes[0].client();
    set_many(&mut client, "h", 0..10, "first");
    shows(&mut nodes[1].client(), "HLEN h", ":10");
    let conflicts = |node: &Highwater| node.client().info("writes_conflicted");
    let before: Vec<_> = nodes.iter().map(conflicts).collect();
    thread::scope(|scope| {
        for (node, first) in nodes.iter().zip([1_000, 2_000]) {
            scope.spawn(move || {
                let mut client = node.client();
                client.set_deadline(SOON);
                for field in first..first + EACH {
                    client.check(&format!("HSET h f{field} v{field}"), ":1");
                }
            });
        }
    });
    for node in &nodes {
        shows(&mut node.client(), "HLEN h", &format!(":{}", 10 + 2 * EACH));
    }
    assert_eq!(
        nodes.iter().map(conflicts).collect::<Vec<_>>(),
        before,
        "nobody hindered the other"
    );
    let digest = client.line("HIGHWATER DIGEST");
    let mut others = nodes[1].client();
    eventually("the nodes agree", SOON, || others.line("HIGHWATER DIGEST") == digest);
}

#[test]
fn two_nodes_that_count_in_one_split_hash_lose_nothing() {
    let kafka = kafka::shared();
    let topic = fresh_topic("split-fight");
    let nodes = [node(kafka, &topic), node(kafka, &topic)];
    set_many(&mut nodes[0].client(), "h", 0..10, "v");
    shows(&mut nodes[1].client(), "HLEN h", ":10");
    count_in_one_hash(&nodes);
}

/// Small hashes are one record, until the nodes that write one hinder each other.
#[test]
fn a_small_hash_that_two_nodes_fight_for_is_split() {
    /// Of each node, so that writes of both nodes meet often.
    const CLIENTS: usize = 4;
    let kafka = kafka::shared();
    let topic = fresh_topic("split-contended");
    let nodes = [0, 1].map(|_| Highwater::on_kafka(kafka, &topic));
    nodes[0].client().check("HSET h a 0 b 0 c 0", ":3");
    shows(&mut nodes[1].client(), "HLEN h", ":3");
    assert!(header(&compacted(kafka, &topic)[&b"h"[..]], "redis-split").is_none());
    let is_split = AtomicBool::new(false);
    let count = |client: usize| {
        let mut counting = nodes[client % 2].client();
        counting.set_deadline(SOON);
        let mut counted = 0;
        while !is_split.load(Relaxed) {
            counted += 1;
            counting.check(&format!("HINCRBY h f{client} 1"), &format!(":{counted}"));
        }
        counted
    };
    let counted: Vec<u32> = thread::scope(|scope| {
        let count = &count;
        let counting: Vec<_> = (0..2 * CLIENTS)
            .map(|client| scope.spawn(move || count(client)))
            .collect();
        let mut asking = nodes[0].client();
        eventually("the hash is split", SOON, || {
            // All that a head keeps are the 12 bytes of its version. The whole hash is larger.
            let place = asking.line("HIGHWATER WHERE h");
            String::from_utf8_lossy(&place).contains("\r\nsize\r\n:12\r\n")
        });
        is_split.store(true, Relaxed);
        counting
            .into_iter()
            .map(|counting| counting.join().expect("HINCRBY"))
            .collect()
    });
    assert!(header(&compacted(kafka, &topic)[&b"h"[..]], "redis-split").is_some());
    for node in &nodes {
        let mut client = node.client();
        for (field, count) in counted.iter().enumerate() {
            let count = count.to_string();
            shows(
                &mut client,
                &format!("HGET h f{field}"),
                &format!("${}\r\n{count}", count.len()),
            );
        }
        client.check("HLEN h", &format!(":{}", 3 + counted.len()));
    }
}

#[test]
fn where_tells_the_record_that_an_element_comes_from() {
    let node = Highwater::builder().args(SMALL).start();
    let mut client = node.client();
    client.check("HSET h a 1 b 2", ":2");
    client.check("SADD s a", ":1");
    client.check("SET string v", "+OK");
    let place = |client: &mut Client, line: &str| {
        let tree = client.tree(line);
        let pairs: Vec<_> = tree.items().to_vec();
        let (pairs, _) = pairs.as_chunks::<2>();
        let number = |name: &str| {
            let pair = pairs.iter().find(|[field, _]| field.bytes() == Some(name.as_bytes()));
            pair.and_then(|[_, value]| value.integer())
        };
        (number("offset"), number("expire-at"))
    };
    // A small collection is one record.
    let whole = place(&mut client, "HIGHWATER WHERE h");
    assert_eq!(place(&mut client, "HIGHWATER WHERE h a"), whole);
    for line in ["HIGHWATER WHERE h x", "HIGHWATER WHERE s x", "HIGHWATER WHERE x x"] {
        client.check(line, "$-1");
    }
    assert!(client.line("HIGHWATER WHERE string a").starts_with(b"-WRONGTYPE"));
    client.check("HIGHWATER WHERE h a b", "-ERR syntax error");
    client.check("HSET h c 3 d 4 e 5", ":3");
    let head = place(&mut client, "HIGHWATER WHERE h").0.expect("an offset");
    let a = place(&mut client, "HIGHWATER WHERE h a").0.expect("an offset");
    assert!(a > head, "{a} after {head}");
    client.check("HEXPIREAT h 1900000000 FIELDS 1 a", "*1\r\n:1");
    let (again, expiry) = place(&mut client, "HIGHWATER WHERE h a");
    assert!(again.expect("an offset") > a);
    assert_eq!(expiry, Some(1_900_000_000_000));
    assert_eq!(place(&mut client, "HIGHWATER WHERE h").0, Some(head));
    client.check("HDEL h a", ":1");
    client.check("HIGHWATER WHERE h a", "$-1");
}

/// Half of a split collection may be gone there, and no record says so.
#[test]
fn a_topic_that_deletes_shows_no_split_collections() {
    let kafka = kafka::shared();
    let (topic, other) = (fresh_topic("split-own"), fresh_topic("split-deletes"));
    kafka.create_topic(&other, 1, &[("cleanup.policy", "compact,delete")]);
    send_elements(kafka, &other);
    let node = Highwater::builder()
        .kafka(kafka, &topic)
        .args(&["--database", &format!("3={other},readonly")])
        .allow("keys vanish from it without a delete")
        .start();
    let mut client = node.client();
    client.check("SELECT 3", "+OK");
    shows(&mut client, "GET behind", "$5\r\nright");
    for line in [
        "HGET good a",
        "HGETALL good",
        "SMEMBERS set",
        "ZSCORE zset m",
        "TYPE good",
    ] {
        let reply = String::from_utf8_lossy(&client.line(line)).into_owned();
        assert!(reply.contains("cleanup.policy deletes"), "{line}: {reply}");
    }
}

fn members(reply: &[u8]) -> Vec<Vec<u8>> {
    let reply = Reply::parse(reply);
    let member = |item: &Reply| item.bytes().expect("a member").to_vec();
    reply.items().iter().map(member).collect()
}

#[test]
fn a_large_set_has_a_record_for_each_member() {
    let kafka = kafka::shared();
    let topic = fresh_topic("split-set");
    let mut one = node(kafka, &topic);
    let other = node(kafka, &topic);
    let mut client = one.client();
    client.check("SADD s a b c d e f", ":6");
    let records = compacted(kafka, &topic);
    assert_eq!(header(&records[&b"s"[..]], "redis-type"), Some(&b"set"[..]));
    let elements: Vec<_> = records.iter().filter(|(key, _)| is_element(key)).collect();
    assert_eq!(elements.len(), 6);
    assert!(
        elements
            .iter()
            .all(|(_, record)| record.value.as_deref() == Some(b"\x01\x00"))
    );
    let before = kafka.records(&topic, "read_committed").len();
    client.check("SADD s a g", ":1");
    client.check("SREM s b x", ":1");
    let popped = members(&client.line("SPOP s 2"));
    assert_eq!(popped.len(), 2);
    let records = kafka.records(&topic, "read_committed");
    assert_eq!(records.len(), before + 4);
    assert!(
        records[before..]
            .iter()
            .all(|record| is_element(record.key.as_deref().expect("a key")))
    );
    client.check("SCARD s", ":4");
    // A result that is large is split, a small one is not.
    client.check("SADD t a b c d e f", ":6");
    client.check(
        "SUNIONSTORE union s t",
        &format!(":{}", 6 + u32::from(!popped.contains(&b"g".to_vec()))),
    );
    client.check("SINTERSTORE few t empty", ":0");
    client.check("SADD few a", ":1");
    client.check("SMOVE t few f", ":1");
    let records = compacted(kafka, &topic);
    assert!(header(&records[&b"union"[..]], "redis-split").is_some());
    assert!(header(&records[&b"few"[..]], "redis-split").is_none());
    shows(&mut other.client(), "SMISMEMBER t e f", "*2\r\n:1\r\n:0");
    shows(&mut other.client(), "SCARD few", ":2");
    let digest = client.line("HIGHWATER DIGEST");
    let mut others = other.client();
    eventually("the nodes agree", SOON, || others.line("HIGHWATER DIGEST") == digest);
    assert!(one.terminate().success());
    one.restart();
    let fresh = node(kafka, &topic);
    for node in [&one, &fresh] {
        let mut client = node.client();
        client.check("SISMEMBER s b", ":0");
        client.check("SCARD s", ":4");
        client.check("TYPE s", "+set");
        eventually("the nodes agree", SOON, || client.line("HIGHWATER DIGEST") == digest);
    }
    // The set goes with its last member, and its head with it.
    assert_eq!(members(&fresh.client().line("SPOP s 100")).len(), 4);
    fresh.client().check("EXISTS s", ":0");
    assert_eq!(compacted(kafka, &topic)[&b"s"[..]].value, None);
}

/// One node adds members while the other takes members out: each comes out once.
#[test]
fn a_node_adds_to_a_split_set_and_another_takes_from_it() {
    const ADDED: usize = 400;
    let kafka = kafka::shared();
    let topic = fresh_topic("split-pop");
    let nodes = [node(kafka, &topic), node(kafka, &topic)];
    // These are never all taken out, so the set stays.
    let first: Vec<String> = (0..2 * ADDED).map(|number| format!("f{number}")).collect();
    nodes[0]
        .client()
        .check(&format!("SADD s {}", first.join(" ")), &format!(":{}", 2 * ADDED));
    shows(&mut nodes[1].client(), "SCARD s", &format!(":{}", 2 * ADDED));
    let conflicts = |node: &Highwater| node.client().info("writes_conflicted");
    let before = conflicts(&nodes[0]);
    let popped = thread::scope(|scope| {
        scope.spawn(|| {
            let mut client = nodes[0].client();
            client.set_deadline(SOON);
            for number in 0..ADDED {
                client.check(&format!("SADD s a{number}"), ":1");
            }
        });
        let popping = scope.spawn(|| {
            let mut client = nodes[1].client();
            client.set_deadline(SOON);
            (0..ADDED / 4)
                .flat_map(|_| members(&client.line("SPOP s 4")))
                .collect::<Vec<_>>()
        });
        popping.join().expect("SPOP")
    });
    assert_eq!(popped.len(), ADDED);
    shows(&mut nodes[0].client(), "SCARD s", &format!(":{}", 2 * ADDED));
    shows(&mut nodes[1].client(), "SCARD s", &format!(":{}", 2 * ADDED));
    assert_eq!(conflicts(&nodes[0]), before, "nobody hindered the one that adds");
    let left = members(&nodes[0].client().line("SMEMBERS s"));
    let all: std::collections::BTreeSet<_> = popped.into_iter().chain(left).collect();
    assert_eq!(all.len(), 3 * ADDED);
}

/// Two nodes remove different members. The set keeps some, so nobody rests on all of them.
#[test]
fn two_nodes_remove_different_members_without_a_conflict() {
    const EACH: u32 = 200;
    let kafka = kafka::shared();
    let topic = fresh_topic("split-remove");
    let nodes = [node(kafka, &topic), node(kafka, &topic)];
    let all: Vec<String> = (0..3 * EACH).map(|number| format!("m{number}")).collect();
    nodes[0]
        .client()
        .check(&format!("SADD s {}", all.join(" ")), &format!(":{}", 3 * EACH));
    shows(&mut nodes[1].client(), "SCARD s", &format!(":{}", 3 * EACH));
    let conflicts = |node: &Highwater| node.client().info("writes_conflicted");
    let before: Vec<_> = nodes.iter().map(conflicts).collect();
    thread::scope(|scope| {
        for (node, first) in nodes.iter().zip([0, EACH]) {
            scope.spawn(move || {
                let mut client = node.client();
                client.set_deadline(SOON);
                for number in first..first + EACH {
                    client.check(&format!("SREM s m{number}"), ":1");
                }
            });
        }
    });
    for node in &nodes {
        shows(&mut node.client(), "SCARD s", &format!(":{EACH}"));
    }
    assert_eq!(
        nodes.iter().map(conflicts).collect::<Vec<_>>(),
        before,
        "nobody hindered the other"
    );
}

/// What was read from the store one by one leaves memory again, and is no change for WATCH.
#[test]
fn elements_that_are_read_from_the_store_stay_within_memory() {
    const FIELDS: u32 = 4_000;
    let args = &["--maxmemory", "512kb", "--fsync", "no"];
    let mut node = Highwater::builder().args(args).start();
    set_many(&mut node.client(), "h", 0..FIELDS, &"v".repeat(200));
    assert!(node.terminate().success());
    node.restart();
    let mut client = node.client();
    client.check("WATCH h", "+OK");
    client.check("MULTI", "+OK");
    client.check("HEXISTS h f1", "+QUEUED");
    client.check("EXEC", "*1\r\n:1");
    let lines: Vec<String> = (0..FIELDS).map(|field| format!("HSTRLEN h f{field}")).collect();
    for _ in 0..2 {
        for part in lines.chunks(100) {
            let part: Vec<&str> = part.iter().map(String::as_str).collect();
            let lengths = client.pipeline(&part);
            assert!(lengths.iter().all(|length| length.starts_with(b":20")));
        }
    }
    let used: u64 = client.info("used_memory").expect("a number").parse().expect("a number");
    assert!(used < 1 << 20, "{used} bytes of memory");
}

#[test]
fn nothing_of_an_older_version_shows_and_orphans_get_tombstones() {
    let kafka = kafka::shared();
    let topic = fresh_topic("split-orphans");
    let one = node(kafka, &topic);
    let other = node(kafka, &topic);
    let mut client = one.client();
    for round in 0..5 {
        set_many(&mut client, "h", 0..20 + round, &format!("r{round}-"));
        let ends = ["DEL h", "SET h string", "RENAME h g", "FLUSHALL", "DEL h"];
        client.line(ends[round as usize]);
        client.line("DEL h");
    }
    set_many(&mut client, "h", 50..60, "last");
    let expected: BTreeMap<String, String> = (50..60).map(|n| (format!("f{n}"), format!("last{n}"))).collect();
    assert_eq!(fields(&mut client, "h"), expected);
    let mut others = other.client();
    shows(&mut others, "HLEN h", ":10");
    assert_eq!(fields(&mut others, "h"), expected);
    eventually("orphans get their tombstones", SOON, || {
        let records = compacted(kafka, &topic);
        let left = records
            .iter()
            .filter(|(key, record)| is_element(key) && record.value.is_some());
        left.count() == 10
    });
    let digest = client.line("HIGHWATER DIGEST");
    let fresh = node(kafka, &topic);
    let mut client = fresh.client();
    assert_eq!(fields(&mut client, "h"), expected);
    eventually("the nodes agree", SOON, || client.line("HIGHWATER DIGEST") == digest);
    client.check("DBSIZE", ":1");
}

#[test]
fn a_split_hash_takes_part_in_transactions() {
    let node = Highwater::builder().args(SMALL).start();
    let (mut client, mut other) = (node.client(), node.client());
    set_many(&mut client, "h", 0..10, "v");
    client.check("WATCH h", "+OK");
    other.check("HSET h f3 changed", ":0");
    client.check("MULTI", "+OK");
    client.check("HSET h f3 lost", "+QUEUED");
    client.check("EXEC", "*-1");
    client.check("HGET h f3", "$7\r\nchanged");
    client.check("WATCH h", "+OK");
    client.check("MULTI", "+OK");
    client.check("HSET h new 1", "+QUEUED");
    client.check("HLEN h", "+QUEUED");
    client.check("HDEL h f1 f2", "+QUEUED");
    client.check("HGET h f1", "+QUEUED");
    client.check("HLEN h", "+QUEUED");
    client.check("RENAME h g", "+QUEUED");
    client.check("HLEN g", "+QUEUED");
    client.check("HGET g new", "+QUEUED");
    client.check("EXEC", "*8\r\n:1\r\n:11\r\n:2\r\n$-1\r\n:9\r\n+OK\r\n:9\r\n$1\r\n1");
    client.check("EXISTS h", ":0");
    client.check("COPY g h", ":1");
    client.check("HSET h f3 other", ":0");
    client.check("HGET g f3", "$7\r\nchanged");
    client.check("MOVE g 1", ":1");
    client.check("SELECT 1", "+OK");
    client.check("HLEN g", ":9");
    client.check("SWAPDB 0 1", "+OK");
    client.check("HGET h f3", "$5\r\nother");
    let usage = Reply::parse(&client.line("MEMORY USAGE h")).integer();
    assert!(usage.is_some_and(|bytes| bytes > 9 * 50), "{usage:?}");
}

#[test]
fn a_command_that_would_write_too_many_fields_is_refused() {
    let node = Highwater::builder().args(SMALL).args(&["--fsync", "no"]).start();
    let mut client = node.client();
    client.set_deadline(SOON);
    let pairs = |fields: std::ops::Range<u32>| -> String { fields.map(|field| format!(" f{field} v")).collect() };
    // It can be one record.
    client.check(&format!("HSET h{}", pairs(0..100_001)), ":100001");
    client.check("HSET h f0 new", ":0");
    client.check("DEL h", ":1");
    client.check(&format!("HSET h{}", pairs(0..60_000)), ":60000");
    let reply = String::from_utf8_lossy(&client.line(&format!("HSET h{}", pairs(0..100_001)))).into_owned();
    assert!(
        reply.starts_with("-ERR a transaction can write at most 100000 elements"),
        "{reply}"
    );
    client.check("HSET h f0 new", ":0");
    client.check(&format!("HSET h{}", pairs(50_000..120_000)), ":60000");
    client.check("HLEN h", ":120000");
    let reply = String::from_utf8_lossy(&client.line("COPY h g")).into_owned();
    assert!(
        reply.starts_with("-ERR a transaction can write at most 100000 elements"),
        "{reply}"
    );
    client.check("EXISTS g", ":0");
}

#[test]
fn what_is_left_of_split_hashes_leaves_the_disk() {
    let mut node = Highwater::builder()
        .args(SMALL)
        .args(&["--fsync", "no", "--maxmemory", "1mb"])
        .start();
    let mut client = node.client();
    client.set_deadline(SOON);
    let value = "x".repeat(100);
    for round in 0..20 {
        set_many(&mut client, "h", 0..500, &format!("{round}{value}"));
        client.check("DEL h", ":1");
    }
    set_many(&mut client, "h", 0..50, "last");
    // Memory holds few of them: the rest comes from the store.
    for key in 0..200 {
        set_many(&mut client, &format!("k{key}"), 0..50, "v");
    }
    for key in 0..200 {
        client.check(&format!("HLEN k{key}"), ":50");
        client.check(&format!("HGET k{key} f7"), "$2\r\nv7");
        client.check(&format!("HSET k{key} f7 new"), ":0");
    }
    node.kill9();
    node.restart();
    let mut client = node.client();
    let expected: BTreeMap<String, String> = (0..50).map(|n| (format!("f{n}"), format!("last{n}"))).collect();
    assert_eq!(fields(&mut client, "h"), expected);
    client.check("HGET k9 f7", "$3\r\nnew");
    client.check("HLEN k9", ":50");
    client.check("DBSIZE", ":201");
}

/// What [`send_elements`] has sent, as clients see it.
fn check_elements(client: &mut Client) {
    shows(client, "GET behind", "$5\r\nright");
    let good = [("a", "first"), ("b", "x")].map(|(field, value)| (field.to_owned(), value.to_owned()));
    assert_eq!(fields(client, "good"), BTreeMap::from(good));
    client.check("HLEN good", ":2");
    client.check("HGET bad b", "$1\r\nv");
    for line in ["HGET bad a", "HGET bad c", "HGETALL bad"] {
        let reply = String::from_utf8_lossy(&client.line(line)).into_owned();
        assert!(
            reply.starts_with("-ERR an element of the collection at bad cannot be read"),
            "{line}: {reply}"
        );
    }
    // In a transaction too, a command that fails writes nothing.
    client.check("MULTI", "+OK");
    client.check("HSET bad b lost new lost a lost", "+QUEUED");
    client.check("SET beside 1", "+QUEUED");
    let reply = String::from_utf8_lossy(&client.line("EXEC")).into_owned();
    assert!(
        reply.starts_with("*2\r\n-ERR an element") && reply.ends_with("\r\n+OK\r\n"),
        "{reply}"
    );
    let script = b"redis.pcall('HSET', 'bad', 'b', 'lost', 'a', 'lost') return redis.call('SET', 'beside', 2)";
    assert_eq!(client.send(&[b"EVAL", script, b"2", b"bad", b"beside"]), b"+OK\r\n");
    client.check("HGET bad b", "$1\r\nv");
    client.check("HGET bad new", "$-1");
    client.check("EXISTS nohead empty", ":0");
    let reply = String::from_utf8_lossy(&client.line("HGET version a")).into_owned();
    assert!(reply.contains("redis-split"), "{reply}");
    client.check("SISMEMBER set m", ":1");
    client.check("ZSCORE zset m", "$3\r\n1.5");
}

/// Heads and elements as another producer may write them.
fn send_elements(kafka: &Kafka, topic: &str) {
    let hostile = Hostile::new(kafka, topic);
    let version = b"0123456789ab0123456789ab";
    let bytes = b"\x01\x23\x45\x67\x89\xab\x01\x23\x45\x67\x89\xab";
    let head: &[(&str, &[u8])] = &[("redis-type", b"hash"), ("redis-split", version)];
    let element: &[(&str, &[u8])] = &[("redis-type", b"element")];
    let name = |key: &[u8], field: &[u8]| [ELEMENT, &[key.len() as u8], key, bytes, field].concat();
    // An element may come before its head.
    hostile.send(0, &name(b"good", b"a"), Some(b"\x01\x00first"), element);
    hostile.send(0, b"good", Some(b""), head);
    hostile.send(
        0,
        &name(b"good", b"b"),
        Some(b"\x01\x01\x00\x00\x7f\xff\xff\xff\xff\xffx"),
        element,
    );
    hostile.send(
        0,
        &name(b"good", b"gone"),
        Some(b"\x01\x01\x00\x00\x00\x00\x00\x00\x00\x01x"),
        element,
    );
    hostile.send(0, b"bad", Some(b""), head);
    hostile.send(0, &name(b"bad", b"a"), Some(b"\x02\x00v"), element);
    hostile.send(0, &name(b"bad", b"b"), Some(b"\x01\x00v"), element);
    hostile.send(0, &name(b"bad", b"c"), Some(b"\x01\x00v"), &[]);
    hostile.send(0, &name(b"nohead", b"a"), Some(b"\x01\x00v"), element);
    hostile.send(0, b"empty", Some(b""), head);
    hostile.send(
        0,
        b"version",
        Some(b""),
        &[("redis-type", b"hash"), ("redis-split", b"xyz")],
    );
    hostile.send(
        0,
        b"set",
        Some(b""),
        &[("redis-type", b"set"), ("redis-split", version)],
    );
    hostile.send(0, &name(b"set", b"m"), Some(b"\x01\x00"), element);
    hostile.send(
        0,
        b"zset",
        Some(b""),
        &[("redis-type", b"zset"), ("redis-split", version)],
    );
    hostile.send(0, &name(b"zset", b"m"), Some(b"\x01\x00\x3f\xf8\0\0\0\0\0\0"), element);
    hostile.send(0, b"behind", Some(b"right"), &[]);
    hostile.flush();
}

#[test]
fn elements_of_other_producers_affect_their_own_collection() {
    let kafka = kafka::shared();
    let topic = fresh_topic("split-foreign");
    let node = node(kafka, &topic);
    let mut client = node.client();
    send_elements(kafka, &topic);
    let fresh = self::node(kafka, &topic);
    check_elements(&mut node.client());
    check_elements(&mut fresh.client());
    client.check("SADD set n", ":1");
    client.check("SMISMEMBER set m n", "*2\r\n:1\r\n:1");
    client.check("SCARD set", ":2");
    client.check("HSET empty a 1", ":1");
    client.check("HSET good a 2 c 3", ":1");
    client.check("DEL bad version", ":2");
    client.check("HSET bad a 1", ":1");
    client.check("HGETALL bad", "*2\r\n$1\r\na\r\n$1\r\n1");
    shows(&mut fresh.client(), "HGETALL bad", "*2\r\n$1\r\na\r\n$1\r\n1");
    // A reserved name is no key for clients.
    let reserved = client.line("SET \"\\x00highwater:e\\x01k0123456789abx\" v");
    assert!(
        reserved.starts_with(b"-ERR this key is reserved"),
        "{}",
        reserved.escape_ascii()
    );
    client.check(
        "GET \"\\x00highwater:e\\x04good\\x01\\x23\\x45\\x67\\x89\\xab\\x01\\x23\\x45\\x67\\x89\\xaba\"",
        "$-1",
    );
}
