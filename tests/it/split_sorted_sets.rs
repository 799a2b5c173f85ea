//! Sorted sets with a record for each member: what is in the topic, what two nodes that write one
//! set make of it, and that each order of it is right after whatever happens to memory.

use std::collections::BTreeMap;
use std::thread;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::collections::{header, shows};
use crate::hostile_producers::Hostile;
use crate::split::{ELEMENT, SMALL, compacted, is_element, node};
use crate::support::client::Client;
use crate::support::eventually;
use crate::support::kafka::{self, Kafka, fresh_topic};
use crate::support::resp::Reply;
use crate::support::server::Highwater;

const SOON: Duration = Duration::from_secs(60);

/// The texts of a flat list.
fn texts(client: &mut Client, line: &str) -> Vec<String> {
    let reply = Reply::parse(&client.line(line));
    let text = |item: &Reply| String::from_utf8_lossy(item.bytes().expect("a text")).into_owned();
    reply.items().iter().map(text).collect()
}

fn add_many(client: &mut Client, key: &str, members: std::ops::Range<u32>) {
    let lines: Vec<String> = members.map(|n| format!("ZADD {key} {} m{n}", n % 100)).collect();
    let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
    for reply in client.pipeline(&lines) {
        assert_eq!(Reply::parse(&reply).integer(), Some(1), "{}", reply.escape_ascii());
    }
}

fn nodes_agree(nodes: [&Highwater; 2]) {
    let [mut one, mut other] = nodes.map(Highwater::client);
    eventually("the nodes agree", SOON, || {
        one.line("HIGHWATER DIGEST") == other.line("HIGHWATER DIGEST")
    });
}

#[test]
fn a_large_sorted_set_has_a_record_for_each_member() {
    let kafka = kafka::shared();
    let topic = fresh_topic("split-zset");
    let mut one = node(kafka, &topic);
    let other = node(kafka, &topic);
    let mut client = one.client();
    client.check("ZADD z 1 a 2 b 3 c 4 d", ":4");
    assert!(compacted(kafka, &topic).keys().all(|key| !is_element(key)));
    client.check("ZADD z 1.5 e -0 f", ":2");
    let records = compacted(kafka, &topic);
    let head = &records[&b"z"[..]];
    assert_eq!(header(head, "redis-type"), Some(&b"zset"[..]));
    assert!(header(head, "redis-split").is_some());
    let elements: Vec<_> = records.iter().filter(|(key, _)| is_element(key)).collect();
    let values: Vec<_> = elements.iter().map(|(_, record)| record.value.as_deref()).collect();
    assert_eq!(values.len(), 6);
    assert!(values.contains(&Some(b"\x01\x00\x3f\xf8\0\0\0\0\0\0")), "1.5");
    assert!(values.contains(&Some(b"\x01\x00\0\0\0\0\0\0\0\0")), "minus zero");
    // From now on a change is one record for each member, and the head stays as it is.
    let before = kafka.records(&topic, "read_committed").len();
    client.check("ZADD z 9 a 2 b", ":0");
    client.check("ZINCRBY z 0.5 b", "$3\r\n2.5");
    client.check("ZREM z d none", ":1");
    client.check("ZPOPMIN z", "*2\r\n$1\r\nf\r\n$1\r\n0");
    client.check("ZREMRANGEBYRANK z 0 0", ":1");
    client.check("ZADD z 5 g 6 h", ":2");
    let records = kafka.records(&topic, "read_committed");
    let changed = records[before..].iter();
    let changed = changed.map(|record| is_element(record.key.as_deref().expect("a key")));
    assert_eq!(changed.collect::<Vec<_>>(), [true; 7]);
    client.check(
        "ZRANGE z 0 -1",
        "*5\r\n$1\r\nb\r\n$1\r\nc\r\n$1\r\ng\r\n$1\r\nh\r\n$1\r\na",
    );
    client.check("DBSIZE", ":1");
    shows(&mut other.client(), "ZRANK z a", ":4");
    nodes_agree([&one, &other]);
    let digest = client.line("HIGHWATER DIGEST");
    // With its own store, and with none.
    assert!(one.terminate().success());
    one.restart();
    let fresh = node(kafka, &topic);
    for node in [&one, &fresh] {
        let mut client = node.client();
        client.check("ZREVRANGEBYSCORE z +inf (5 LIMIT 0 2", "*2\r\n$1\r\na\r\n$1\r\nh");
        client.check("ZMSCORE z b none", "*2\r\n$3\r\n2.5\r\n$-1");
        client.check("TYPE z", "+zset");
        eventually("the nodes agree", SOON, || client.line("HIGHWATER DIGEST") == digest);
    }
    // The set goes with its last member, and its head with it.
    client = fresh.client();
    client.check("EXPIRE z 1000", ":1");
    client.check("ZREMRANGEBYSCORE z -inf +inf", ":5");
    client.check("EXISTS z", ":0");
    assert_eq!(compacted(kafka, &topic)[&b"z"[..]].value, None);
    client.check("ZADD z 1 again", ":1");
    client.check("TTL z", ":-1");
}

#[test]
fn large_results_are_split() {
    let kafka = kafka::shared();
    let topic = fresh_topic("split-zset-results");
    let node = node(kafka, &topic);
    let mut client = node.client();
    client.check("ZADD z 1 again", ":1");
    client.check("ZADD y 1 a 2 b 3 c", ":3");
    client.check("ZUNIONSTORE x 2 y z", ":4");
    client.check("ZADD z 7 p 8 q", ":2");
    client.check("ZUNIONSTORE x 2 y z", ":6");
    client.check("ZRANGESTORE w x 1 5", ":5");
    client.check(
        "GEOADD g 13.36 38.11 p 15.08 37.5 c 2.3 48.8 x 9.1 45.4 m -3.7 40.4 n",
        ":5",
    );
    client.check("GEOSEARCHSTORE f g FROMLONLAT 10 40 BYRADIUS 5000 km", ":5");
    let records = compacted(kafka, &topic);
    for (key, is_split) in [
        ("w", true),
        ("x", true),
        ("g", true),
        ("f", true),
        ("y", false),
        ("z", false),
    ] {
        let split = header(&records[key.as_bytes()], "redis-split");
        assert_eq!(split.is_some(), is_split, "{key}");
    }
}

#[test]
fn two_nodes_add_different_members_to_one_sorted_set_without_a_conflict() {
    const EACH: u32 = 300;
    let kafka = kafka::shared();
    let topic = fresh_topic("split-zset-members");
    let nodes = [node(kafka, &topic), node(kafka, &topic)];
    add_many(&mut nodes[0].client(), "z", 0..10);
    shows(&mut nodes[1].client(), "ZCARD z", ":10");
    let conflicts = |node: &Highwater| node.client().info("writes_conflicted");
    let before: Vec<_> = nodes.iter().map(conflicts).collect();
    thread::scope(|scope| {
        for (node, first) in nodes.iter().zip([1_000, 2_000]) {
            scope.spawn(move || {
                let mut client = node.client();
                client.set_deadline(SOON);
                for n in first..first + EACH {
                    client.check(&format!("ZADD z {} m{n}", n % 7), ":1");
                    // The order follows the writes of both nodes.
                    let rank = Reply::parse(&client.line(&format!("ZRANK z m{n}"))).integer();
                    assert!(rank.is_some_and(|rank| rank < 10 + 2 * i64::from(EACH)), "{rank:?}");
                }
            });
        }
    });
    for node in &nodes {
        shows(&mut node.client(), "ZCARD z", &format!(":{}", 10 + 2 * EACH));
    }
    assert_eq!(nodes.iter().map(conflicts).collect::<Vec<_>>(), before);
    nodes_agree([&nodes[0], &nodes[1]]);
    let range = nodes[0].client().line("ZRANGE z 0 -1 WITHSCORES");
    assert_eq!(nodes[1].client().line("ZRANGE z 0 -1 WITHSCORES"), range);
}

#[test]
fn two_nodes_that_pop_from_one_sorted_set_get_each_member_once() {
    const MEMBERS: u32 = 120;
    let kafka = kafka::shared();
    let topic = fresh_topic("split-zset-pops");
    let nodes = [node(kafka, &topic), node(kafka, &topic)];
    add_many(&mut nodes[0].client(), "z", 0..MEMBERS);
    shows(&mut nodes[1].client(), "ZCARD z", &format!(":{MEMBERS}"));
    let popped = thread::scope(|scope| {
        let pops = nodes.iter().zip(["ZPOPMIN z", "ZPOPMAX z"]).map(|(node, line)| {
            scope.spawn(move || {
                let mut client = node.client();
                client.set_deadline(SOON);
                let mut popped = Vec::new();
                while let [member, _] = &texts(&mut client, line)[..] {
                    popped.push(member.clone());
                }
                popped
            })
        });
        let pops: Vec<_> = pops.collect();
        let popped = pops.into_iter().flat_map(|pops| pops.join().expect("it ended"));
        popped.collect::<Vec<String>>()
    });
    let mut expected: Vec<String> = (0..MEMBERS).map(|n| format!("m{n}")).collect();
    let mut sorted = popped;
    sorted.sort();
    expected.sort();
    assert_eq!(sorted, expected);
    for node in &nodes {
        shows(&mut node.client(), "EXISTS z", ":0");
    }
}

#[test]
fn a_split_sorted_set_takes_part_in_transactions() {
    let node = Highwater::builder().args(SMALL).start();
    let (mut client, mut other) = (node.client(), node.client());
    add_many(&mut client, "z", 0..10);
    client.check("WATCH z", "+OK");
    other.check("ZINCRBY z 1 m3", "$1\r\n4");
    client.check("MULTI", "+OK");
    client.check("ZADD z 1 lost", "+QUEUED");
    client.check("EXEC", "*-1");
    client.check("ZSCORE z lost", "$-1");
    client.check("MULTI", "+OK");
    for line in [
        "ZADD z -5 first 20 last",
        "ZRANGE z 0 1",
        "ZREM z first m0",
        "ZRANGE z 0 0",
        "ZPOPMAX z",
        "ZRANK z m3",
        "ZCARD z",
        "ZADD z 0.5 m9",
        "ZREVRANGE z -2 -1 WITHSCORES",
        "RENAME z y",
        "ZRANGEBYSCORE y (7 +inf",
        "ZCOUNT y 0 3",
    ] {
        client.check(line, "+QUEUED");
    }
    let expected = [
        ":2",
        "*2\r\n$5\r\nfirst\r\n$2\r\nm0",
        ":2",
        "*1\r\n$2\r\nm1",
        "*2\r\n$4\r\nlast\r\n$2\r\n20",
        ":2",
        ":9",
        ":0",
        "*4\r\n$2\r\nm1\r\n$1\r\n1\r\n$2\r\nm9\r\n$3\r\n0.5",
        "+OK",
        "*1\r\n$2\r\nm8",
        ":3",
    ];
    client.check("EXEC", &format!("*{}\r\n{}", expected.len(), expected.join("\r\n")));
    client.check("COPY y z", ":1");
    client.check("ZADD z 100 m1", ":0");
    client.check("ZRANGE y 0 1", "*2\r\n$2\r\nm9\r\n$2\r\nm1");
    client.check("ZRANGE z -1 -1", "*1\r\n$2\r\nm1");
}

/// Members that another producer wrote, good ones and others.
fn send_members(kafka: &Kafka, topic: &str) {
    let hostile = Hostile::new(kafka, topic);
    let bytes = b"\x01\x23\x45\x67\x89\xab\x01\x23\x45\x67\x89\xab";
    let head: &[(&str, &[u8])] = &[("redis-type", b"zset"), ("redis-split", b"0123456789ab0123456789ab")];
    let element: &[(&str, &[u8])] = &[("redis-type", b"element")];
    let send = |key: &[u8], member: &[u8], value: &[u8]| {
        let name = [ELEMENT, &[key.len() as u8], key, bytes, member].concat();
        hostile.send(0, &name, Some(value), element);
    };
    for key in ["good", "short", "nan", "codec"] {
        hostile.send(0, key.as_bytes(), Some(b""), head);
        send(key.as_bytes(), b"one", b"\x01\x00\x3f\xf0\0\0\0\0\0\0");
        send(key.as_bytes(), b"half", b"\x01\x00\x3f\xe0\0\0\0\0\0\0");
    }
    send(b"good", b"zero", b"\x01\x00\x80\0\0\0\0\0\0\0");
    send(b"good", b"lowest", b"\x01\x00\xff\xf0\0\0\0\0\0\0");
    // Of these one has expired, and one expires in a far future.
    send(b"good", b"gone", b"\x01\x01\0\0\0\0\0\0\0\x01\x3f\xf0\0\0\0\0\0\0");
    send(
        b"good",
        b"stays",
        b"\x01\x01\0\0\x7f\xff\xff\xff\xff\xff\x40\0\0\0\0\0\0\0",
    );
    send(b"short", b"bad", b"\x01\x00abc");
    send(b"nan", b"bad", b"\x01\x00\x7f\xf8\0\0\0\0\0\0");
    send(b"codec", b"bad", b"\x09\x00\x3f\xf0\0\0\0\0\0\0");
    hostile.send(0, b"behind", Some(b"right"), &[]);
    hostile.flush();
}

#[test]
fn members_of_other_producers_have_their_place_or_say_why_not() {
    let kafka = kafka::shared();
    let topic = fresh_topic("split-zset-foreign");
    let node = node(kafka, &topic);
    send_members(kafka, &topic);
    let mut client = node.client();
    shows(&mut client, "GET behind", "$5\r\nright");
    let all = ["lowest", "-inf", "zero", "0", "half", "0.5", "one", "1", "stays", "2"];
    assert_eq!(texts(&mut client, "ZRANGE good 0 -1 WITHSCORES"), all);
    client.check("ZCARD good", ":5");
    client.check("ZRANK good gone", "$-1");
    client.check("ZRANK good stays", ":4");
    client.check("ZPOPMIN good", "*2\r\n$6\r\nlowest\r\n$4\r\n-inf");
    assert_eq!(texts(&mut client, "ZRANGE good 0 -1 WITHSCORES"), all[2..]);
    for key in ["short", "nan", "codec"] {
        client.check(&format!("ZSCORE {key} one"), "$1\r\n1");
        for line in [
            "ZSCORE KEY bad",
            "ZRANGE KEY 0 -1",
            "ZRANK KEY one",
            "ZPOPMIN KEY",
            "ZSCAN KEY 0",
            "ZADD KEY 1 bad",
        ] {
            let line = line.replace("KEY", key);
            let reply = String::from_utf8_lossy(&client.line(&line)).into_owned();
            assert!(
                reply.starts_with("-ERR ") && reply.contains("cannot be read"),
                "{line}: {reply}"
            );
        }
    }
    // It can be removed alone, or goes with its key.
    client.check("ZREM short none bad", ":1");
    client.check("ZRANGE short 0 -1", "*2\r\n$4\r\nhalf\r\n$3\r\none");
    client.check("DEL codec short nan", ":3");
    client.check("ZADD codec 1 a", ":1");
    client.check("ZRANGE codec 0 -1", "*1\r\n$1\r\na");
}

/// Memory has room for a part of these sets only, and the node is killed now and then.
#[test]
fn orders_are_right_when_sets_leave_memory_and_come_back() {
    const SETS: usize = 12;
    let seed: u64 = rand::random();
    println!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let mut node = Highwater::builder()
        .args(SMALL)
        .args(&["--fsync", "no", "--maxmemory", "1mb"])
        .start();
    let mut model: Vec<BTreeMap<String, i32>> = vec![BTreeMap::new(); SETS];
    let mut client = node.client();
    client.set_deadline(SOON);
    for round in 0..6 {
        let mut lines = Vec::new();
        for _ in 0..2_000 {
            let set = random.random_range(0..SETS);
            let member = format!("m{}", random.random_range(0..400));
            match random.random_range(0..5) {
                0 => {
                    lines.push(format!("ZREM z{set} {member}"));
                    model[set].remove(&member);
                }
                _ => {
                    let score = random.random_range(-50..50);
                    lines.push(format!("ZADD z{set} {score} {member}"));
                    model[set].insert(member, score);
                }
            }
        }
        client.pipeline(&lines.iter().map(String::as_str).collect::<Vec<_>>());
        for (set, members) in model.iter().enumerate() {
            let mut sorted: Vec<(i32, &String)> = members.iter().map(|(member, score)| (*score, member)).collect();
            sorted.sort();
            let expected: Vec<&String> = sorted.iter().map(|(_, member)| *member).collect();
            let seen = texts(&mut client, &format!("ZRANGE z{set} 0 -1"));
            assert!(
                seen.iter().eq(expected.iter().copied()),
                "seed {seed}, round {round}, set {set}"
            );
            let place = random.random_range(0..sorted.len());
            client.check(&format!("ZRANK z{set} {}", expected[place]), &format!(":{place}"));
            let below = sorted.iter().filter(|(score, _)| *score <= 7).count();
            client.check(&format!("ZCOUNT z{set} -inf 7"), &format!(":{below}"));
        }
        if round % 2 == 1 {
            node.kill9();
            node.restart();
            client = node.client();
            client.set_deadline(SOON);
        }
    }
}
