//! Hashes, sets, sorted sets and lists on Kafka: what is in the topic, what other nodes and other
//! producers make of it, and what nodes do that do not know all of it.

use std::thread;
use std::time::Duration;

use crate::hostile_producers::Hostile;
use crate::support::client::Client;
use crate::support::eventually;
use crate::support::kafka::{self, Kafka, SeenRecord, fresh_topic};
use crate::support::resp::Reply;
use crate::support::server::Highwater;

const SOON: Duration = Duration::from_secs(60);
const FEATURES: &[u8] = b"\0highwater:features";
/// Log lines that say that a topic is not served.
const NOT_SERVED: &str = "features of the format that this version does not know";

pub fn header<'r>(record: &'r SeenRecord, name: &str) -> Option<&'r [u8]> {
    let mut headers = record.headers.iter();
    headers.find(|(key, _)| key == name).map(|(_, value)| &value[..])
}

/// The newest record of a key.
fn newest(kafka: &Kafka, topic: &str, key: &[u8]) -> SeenRecord {
    let records = kafka.records(topic, "read_committed").into_iter();
    let mut of_key = records.filter(|record| record.key.as_deref() == Some(key));
    of_key.next_back().expect("the key has a record")
}

fn text(client: &mut Client, line: &str) -> String {
    String::from_utf8_lossy(&client.line(line)).into_owned()
}

pub fn shows(client: &mut Client, line: &str, reply: &str) {
    eventually(line, SOON, || client.line(line) == format!("{reply}\r\n").into_bytes());
}

#[test]
fn a_hash_is_one_record_and_every_node_shows_it() {
    let kafka = kafka::shared();
    let topic = fresh_topic("hash");
    let mut one = Highwater::on_kafka(kafka, &topic);
    let other = Highwater::on_kafka(kafka, &topic);
    let mut client = one.client();
    client.check("HSET h name value n 1", ":2");
    client.check("HINCRBY h n 4", ":5");
    client.check("HSET h bin \"\\xff\"", ":1");
    shows(&mut other.client(), "HGET h n", "$1\r\n5");
    client.check("HDEL h bin", ":1");
    client.check("PEXPIREAT h 33177117420000", ":1");
    let record = newest(kafka, &topic, b"h");
    assert_eq!(header(&record, "redis-type"), Some(&b"hash"[..]));
    assert_eq!(header(&record, "redis-expire-at"), Some(&b"33177117420000"[..]));
    assert_eq!(record.value.as_deref(), Some(&b"\x82\xa4name\xa5value\xa1n\xa15"[..]));
    let records = kafka.records(&topic, "read_committed");
    let keys: Vec<_> = records
        .iter()
        .map(|record| record.key.clone().unwrap_or_default())
        .collect();
    assert_eq!(keys[0], FEATURES, "it comes before what needs it");
    assert_eq!(keys.iter().filter(|key| *key == FEATURES).count(), 1);
    assert_eq!(header(&records[0], "redis-control"), Some(&b"features"[..]));
    assert_eq!(records[0].value.as_deref(), Some(&b"hash"[..]));
    shows(
        &mut other.client(),
        "HGETALL h",
        "*4\r\n$4\r\nname\r\n$5\r\nvalue\r\n$1\r\nn\r\n$1\r\n5",
    );
    let digest = client.line("HIGHWATER DIGEST");
    let mut others = other.client();
    eventually("the nodes agree", SOON, || others.line("HIGHWATER DIGEST") == digest);
    // With its own store, and with none.
    assert!(one.terminate().success());
    one.restart();
    let fresh = Highwater::on_kafka(kafka, &topic);
    for node in [&one, &fresh] {
        let mut client = node.client();
        client.check("HGET h name", "$5\r\nvalue");
        client.check("PEXPIRETIME h", ":33177117420000");
        eventually("the nodes agree", SOON, || client.line("HIGHWATER DIGEST") == digest);
    }
    fresh.client().check("HSET h other x", ":1");
    let records = kafka.records(&topic, "read_committed");
    assert_eq!(
        records
            .iter()
            .filter(|record| record.key.as_deref() == Some(FEATURES))
            .count(),
        1
    );
}

#[test]
fn two_nodes_that_change_one_hash_lose_nothing() {
    let kafka = kafka::shared();
    let topic = fresh_topic("hash-fight");
    count_in_one_hash(&[Highwater::on_kafka(kafka, &topic), Highwater::on_kafka(kafka, &topic)]);
}

/// Two nodes count in the hash `h` at the same time, in one field and in one of their own.
pub fn count_in_one_hash(nodes: &[Highwater; 2]) {
    const EACH: i64 = 100;
    thread::scope(|scope| {
        for (node, own) in nodes.iter().zip(["a", "b"]) {
            scope.spawn(move || {
                let mut client = node.client();
                client.set_deadline(SOON);
                for _ in 0..EACH {
                    for line in ["HINCRBY h both 1".to_owned(), format!("HINCRBY h {own} 1")] {
                        eventually(&line, SOON, || Reply::parse(&client.line(&line)).integer().is_some());
                    }
                }
            });
        }
    });
    for node in nodes {
        shows(
            &mut node.client(),
            "HMGET h both a b",
            "*3\r\n$3\r\n200\r\n$3\r\n100\r\n$3\r\n100",
        );
    }
}

#[test]
fn every_partition_names_what_a_topic_uses() {
    let kafka = kafka::shared();
    let topic = kafka.compacted_topic("features", 3);
    let node = Highwater::on_kafka(kafka, &topic);
    let mut client = node.client();
    for key in 0..20 {
        client.check(&format!("HSET h{key} f {key}"), ":1");
    }
    let records = kafka.records(&topic, "read_committed");
    for partition in 0..3 {
        let first = records
            .iter()
            .find(|record| record.partition == partition)
            .expect("a record");
        assert_eq!(first.key.as_deref(), Some(FEATURES));
    }
    // A flush removes neither these nor what is written behind it.
    client.check("FLUSHALL", "+OK");
    client.check("HSET h0 f new", ":1");
    let fresh = Highwater::on_kafka(kafka, &topic);
    fresh.client().check("HGETALL h0", "*2\r\n$1\r\nf\r\n$3\r\nnew");
    fresh.client().check("DBSIZE", ":1");
}

#[test]
fn what_other_producers_write_is_a_hash_or_an_error_of_its_own() {
    let kafka = kafka::shared();
    let topic = fresh_topic("foreign-hash");
    let node = Highwater::on_kafka(kafka, &topic);
    let mut client = node.client();
    client.check("HSET over a 1", ":1");
    client.check("SET string v", "+OK");
    let hostile = Hostile::new(kafka, &topic);
    let hash: &[(&str, &[u8])] = &[("redis-type", b"hash")];
    hostile.send(0, b"good", Some(b"\x82\xa1a\x01\xa1b\xc4\x01\xff"), hash);
    hostile.send(0, b"twice", Some(b"\x82\xa1a\xa11\xa1a\xa12"), hash);
    hostile.send(0, b"empty", Some(b"\x80"), hash);
    hostile.send(0, b"string", Some(b"\x81\xa1f\xa1v"), hash);
    hostile.send(0, b"over", Some(b"text"), &[]);
    hostile.send(0, b"cut", Some(b"\x82\xa1a\xa11"), hash);
    hostile.send(0, b"huge", Some(b"\xdf\xff\xff\xff\xff\xa1a\xa11"), hash);
    hostile.send(0, b"deep", Some(&[0x91; 100_000]), hash);
    hostile.send(
        0,
        b"nan",
        Some(b"\x81\xa1a\xcb\x7f\xf8\0\0\0\0\0\0"),
        &[("redis-type", b"zset")],
    );
    hostile.send(0, b"later", Some(b"x"), &[("redis-type", b"from-the-future")]);
    hostile.send(0, b"behind", Some(b"right"), &[]);
    hostile.flush();
    let fresh = Highwater::on_kafka(kafka, &topic);
    for node in [&node, &fresh] {
        let mut client = node.client();
        shows(&mut client, "GET behind", "$5\r\nright");
        let good = client.line("HGETALL good");
        assert_eq!(good, b"*4\r\n$1\r\na\r\n$1\r\n1\r\n$1\r\nb\r\n$1\r\n\xff\r\n");
        client.check("HGETALL twice", "*2\r\n$1\r\na\r\n$1\r\n2");
        client.check("EXISTS empty", ":0");
        client.check("HGET string f", "$1\r\nv");
        client.check("GET over", "$4\r\ntext");
        for key in ["cut", "huge", "deep", "nan", "later"] {
            let reply = text(&mut client, &format!("HGETALL {key}"));
            assert!(reply.starts_with("-ERR the record of this key"), "{key}: {reply}");
        }
    }
    client.check("HSET good c 3", ":1");
    client.check("HGET good a", "$1\r\n1");
    client.check("DEL cut huge deep nan later", ":5");
    client.check("HSET cut a 1", ":1");
}

#[test]
fn sets_and_sorted_sets_of_other_producers_are_combined() {
    let kafka = kafka::shared();
    let topic = fresh_topic("foreign-zset");
    let node = Highwater::on_kafka(kafka, &topic);
    let hostile = Hostile::new(kafka, &topic);
    hostile.send(0, b"set", Some(b"\x92\xa1a\xa1b"), &[("redis-type", b"set")]);
    // Out of order, with integers.
    let members = b"\x83\xa1b\x02\xa1a\x02\xa1c\xcb\xbf\xf8\0\0\0\0\0\0";
    hostile.send(0, b"zset", Some(members), &[("redis-type", b"zset")]);
    hostile.flush();
    let mut client = node.client();
    shows(
        &mut client,
        "ZRANGE zset 0 -1 WITHSCORES",
        "*6\r\n$1\r\nc\r\n$4\r\n-1.5\r\n$1\r\na\r\n$1\r\n2\r\n$1\r\nb\r\n$1\r\n2",
    );
    client.check(
        "ZUNION 2 zset set WEIGHTS 1 5 WITHSCORES",
        "*6\r\n$1\r\nc\r\n$4\r\n-1.5\r\n$1\r\na\r\n$1\r\n7\r\n$1\r\nb\r\n$1\r\n7",
    );
    client.check(
        "ZINTER 2 set zset AGGREGATE MIN WITHSCORES",
        "*4\r\n$1\r\na\r\n$1\r\n1\r\n$1\r\nb\r\n$1\r\n1",
    );
    client.check("ZINTERCARD 2 zset set", ":2");
    client.check("ZDIFF 2 zset set", "*1\r\n$1\r\nc");
    client.check("ZDIFFSTORE none 2 set zset", ":0");
    client.check("ZUNIONSTORE zset 2 zset set", ":3");
    let record = newest(kafka, &topic, b"zset");
    assert_eq!(header(&record, "redis-type"), Some(&b"zset"[..]));
    assert_eq!(
        record.value.as_deref(),
        Some(&b"\x83\xa1c\xcb\xbf\xf8\0\0\0\0\0\0\xa1a\xcb\x40\x08\0\0\0\0\0\0\xa1b\xcb\x40\x08\0\0\0\0\0\0"[..])
    );
    // Nothing has changed, so nothing is written.
    client.check("ZADD zset CH 3 a", ":0");
    client.check("ZDIFFSTORE none 2 set zset", ":0");
    client.check("ZREM zset none", ":0");
    assert_eq!(newest(kafka, &topic, b"zset").offset, record.offset);
    let keys = kafka.records(&topic, "read_committed").into_iter();
    assert!(keys.filter_map(|record| record.key).all(|key| key != b"none"));
}

#[test]
fn a_list_is_one_record_of_any_producer() {
    let kafka = kafka::shared();
    let topic = fresh_topic("list");
    let one = Highwater::on_kafka(kafka, &topic);
    let other = Highwater::on_kafka(kafka, &topic);
    let mut client = one.client();
    client.check("RPUSH l b \"\\xff\" b", ":3");
    client.check("LPUSH l a", ":4");
    let record = newest(kafka, &topic, b"l");
    assert_eq!(header(&record, "redis-type"), Some(&b"list"[..]));
    assert_eq!(record.value.as_deref(), Some(&b"\x94\xa1a\xa1b\xc4\x01\xff\xa1b"[..]));
    let features = kafka.records(&topic, "read_committed").remove(0);
    assert_eq!(
        (features.key.as_deref(), features.value.as_deref()),
        (Some(FEATURES), Some(&b"list"[..]))
    );
    // What changes nothing writes nothing.
    client.check("LTRIM l 0 -1", "+OK");
    client.check("LREM l 0 none", ":0");
    client.check("LINSERT l BEFORE none x", ":-1");
    assert_eq!(newest(kafka, &topic, b"l").offset, record.offset);
    let hostile = Hostile::new(kafka, &topic);
    let list: &[(&str, &[u8])] = &[("redis-type", b"list")];
    hostile.send(0, b"foreign", Some(b"\x93\xa1x\x05\xa1x"), list);
    hostile.send(0, b"empty", Some(b"\x90"), list);
    hostile.send(0, b"huge", Some(b"\xdd\xff\xff\xff\xff"), list);
    hostile.flush();
    let mut others = other.client();
    shows(
        &mut others,
        "LRANGE foreign 0 -1",
        "*3\r\n$1\r\nx\r\n$1\r\n5\r\n$1\r\nx",
    );
    shows(&mut others, "LLEN l", ":4");
    others.check("RPOPLPUSH l foreign", "$1\r\nb");
    // Written again, the integer is text.
    eventually("the record of the foreign list", SOON, || {
        newest(kafka, &topic, b"foreign").value.as_deref() == Some(&b"\x94\xa1b\xa1x\xa15\xa1x"[..])
    });
    others.check("EXISTS empty", ":0");
    let refused = |client: &mut Client| {
        let reply = text(client, "RPUSH huge x");
        reply.starts_with("-ERR the record of this key") && reply.contains("it ends too early")
    };
    eventually("the broken list is an error", SOON, || refused(&mut others));
    let digest = others.line("HIGHWATER DIGEST");
    eventually("the nodes agree", SOON, || client.line("HIGHWATER DIGEST") == digest);
    let fresh = Highwater::on_kafka(kafka, &topic);
    let mut client = fresh.client();
    client.check("LRANGE foreign 0 -1", "*4\r\n$1\r\nb\r\n$1\r\nx\r\n$1\r\n5\r\n$1\r\nx");
    eventually("the nodes agree", SOON, || client.line("HIGHWATER DIGEST") == digest);
}

#[test]
fn two_nodes_that_take_from_one_list_get_every_item_once() {
    const ITEMS: i64 = 200;
    let kafka = kafka::shared();
    let topic = fresh_topic("list-fight");
    let nodes = [Highwater::on_kafka(kafka, &topic), Highwater::on_kafka(kafka, &topic)];
    let items: Vec<String> = (0..ITEMS).map(|item| item.to_string()).collect();
    let all = format!("RPUSH l {}", items.join(" "));
    nodes[0].client().check(&all, &format!(":{ITEMS}"));
    shows(&mut nodes[1].client(), "LLEN l", &format!(":{ITEMS}"));
    let mut taken: Vec<i64> = thread::scope(|scope| {
        let take = |node: &Highwater| {
            let mut client = node.client();
            client.set_deadline(SOON);
            let mut taken: Vec<i64> = Vec::new();
            loop {
                let reply = Reply::parse(&client.line("LPOP l"));
                match reply.integer() {
                    Some(item) => taken.push(item),
                    None if matches!(reply, Reply::Null { .. }) => return taken,
                    // Too many conflicts: nothing was taken.
                    None => assert!(
                        reply.bytes().is_some_and(|text| text.starts_with(b"NOTWRITTEN")),
                        "{reply:?}"
                    ),
                }
            }
        };
        let threads: Vec<_> = nodes.iter().map(|node| scope.spawn(move || take(node))).collect();
        threads
            .into_iter()
            .flat_map(|thread| thread.join().expect("it takes"))
            .collect()
    });
    taken.sort_unstable();
    assert_eq!(taken, (0..ITEMS).collect::<Vec<_>>());
}

#[test]
fn a_topic_that_uses_what_a_node_does_not_know_is_not_served() {
    let kafka = kafka::shared();
    let topic = fresh_topic("from-the-future");
    let mut node = Highwater::builder().kafka(kafka, &topic).allow(NOT_SERVED).start();
    let mut client = node.client();
    client.check("SET k v", "+OK");
    client.check("SELECT 1", "+OK");
    client.check("SET k other", "+OK");
    let hostile = Hostile::new(kafka, &topic);
    hostile.send(0, FEATURES, Some(b"hash teleport"), &[("redis-control", b"features")]);
    hostile.flush();
    let refused = |client: &mut Client, line: &str| {
        let reply = text(client, line);
        reply.starts_with("-UNSUPPORTED database 0 ") && reply.contains("know: teleport; upgrade")
    };
    let mut zero = node.client();
    eventually("it notices while it runs", SOON, || refused(&mut zero, "GET k"));
    assert!(refused(&mut zero, "SET k new"));
    assert!(refused(&mut zero, "DBSIZE"));
    assert!(refused(&mut zero, "HSET h a b"));
    client.check("GET k", "$5\r\nother");
    client.check("SET k still", "+OK");
    assert!(node.terminate().success());
    node.restart();
    assert!(refused(&mut node.client(), "GET k"), "it knows after a restart");
    let fresh = Highwater::builder().kafka(kafka, &topic).allow(NOT_SERVED).start();
    assert!(refused(&mut fresh.client(), "GET k"), "it knows from the start");
    // What is known is no reason.
    hostile.send(0, FEATURES, Some(b"hash"), &[("redis-control", b"features")]);
    hostile.flush();
    shows(&mut fresh.client(), "GET k", "$1\r\nv");
}

#[test]
fn a_type_is_held_back_until_it_is_allowed_or_used() {
    let kafka = kafka::shared();
    let topic = fresh_topic("held-back");
    let careful = Highwater::builder()
        .kafka(kafka, &topic)
        .args(&["--max-features", "none"])
        .start();
    let mut client = careful.client();
    client.check("SET k v", "+OK");
    let reply = text(&mut client, "HSET h a 1");
    assert!(
        reply.starts_with("-ERR a hash is not written to database 0: max-features holds it back"),
        "{reply}"
    );
    client.check("EXISTS h", ":0");
    client.check("CONFIG SET max-features zset", "+OK");
    assert!(text(&mut client, "HSET h a 1").starts_with("-ERR a hash is not written"));
    let reply = text(&mut client, "CONFIG SET max-features hash,nosuch");
    assert!(reply.contains("this version knows no feature 'nosuch'"), "{reply}");
    let other = Highwater::on_kafka(kafka, &topic);
    other.client().check("HSET h a 1", ":1");
    shows(&mut client, "HGET h a", "$1\r\n1");
    client.check("HSET h a 2", ":0");
}
