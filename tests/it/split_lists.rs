//! Lists with a record for each item: what is in the topic, what two nodes that work on one list
//! make of it, and that the order is right after whatever happens to memory.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::collections::{header, shows};
use crate::consistency::equal_digests;
use crate::hostile_producers::Hostile;
use crate::split::{ELEMENT, SMALL, compacted, is_element, node};
use crate::support::client::Client;
use crate::support::eventually;
use crate::support::kafka::{self, fresh_topic};
use crate::support::resp::Reply;
use crate::support::server::Highwater;

const SOON: Duration = Duration::from_secs(60);

/// The texts of a flat list.
fn texts(client: &mut Client, line: &str) -> Vec<String> {
    let reply = client.tree(line);
    let text = |item: &Reply| String::from_utf8_lossy(item.bytes().expect("a text")).into_owned();
    reply.items().iter().map(text).collect()
}

fn all(client: &mut Client, key: &str) -> String {
    texts(client, &format!("LRANGE {key} 0 -1")).join(" ")
}

/// The sub-keys and items of the list `l`, as the topic has them.
fn items_in(records: &std::collections::BTreeMap<Vec<u8>, kafka::SeenRecord>) -> Vec<(Vec<u8>, Vec<u8>)> {
    let elements = records.iter().filter(|(key, _)| is_element(key));
    let items = elements.filter_map(|(key, record)| {
        let sub_key = key[ELEMENT.len() + 2 + 12..].to_vec();
        Some((sub_key, record.value.clone()?))
    });
    items.collect()
}

#[test]
fn a_large_list_has_a_record_for_each_item() {
    let kafka = kafka::shared();
    let topic = fresh_topic("split-list");
    let mut one = node(kafka, &topic);
    let other = node(kafka, &topic);
    let mut client = one.client();
    client.check("RPUSH l a b c d", ":4");
    assert!(compacted(kafka, &topic).keys().all(|key| !is_element(key)));
    client.check("RPUSH l e", ":5");
    let records = compacted(kafka, &topic);
    let head = &records[&b"l"[..]];
    assert_eq!(header(head, "redis-type"), Some(&b"list"[..]));
    assert_eq!(head.value.as_deref(), Some(&b""[..]));
    assert!(header(head, "redis-split").is_some());
    let items = items_in(&records);
    assert_eq!(items.len(), 5);
    assert_eq!(items[0], (b"\x80\0\0\0\0\0\0\0".to_vec(), b"\x01\0a".to_vec()));
    assert_eq!(items[4], (b"\x80\0\0\0\0\0\0\x04".to_vec(), b"\x01\0e".to_vec()));
    // From now on a change is one record for each item, and the head stays as it is.
    let before = kafka.records(&topic, "read_committed").len();
    client.check("RPUSH l f", ":6");
    client.check("LPUSH l z", ":7");
    client.check("LINSERT l BEFORE b x", ":8");
    client.check("LSET l 1 A", "+OK");
    client.check("LPOP l", "$1\r\nz");
    client.check("LREM l 0 c", ":1");
    client.check("LTRIM l 0 -2", "+OK");
    let records = kafka.records(&topic, "read_committed");
    let changed = records[before..].iter();
    let changed = changed.map(|record| is_element(record.key.as_deref().expect("a key")));
    assert_eq!(changed.collect::<Vec<_>>(), [true; 7]);
    assert_eq!(all(&mut client, "l"), "A x b d e");
    client.check("DBSIZE", ":1");
    shows(&mut other.client(), "LINDEX l 4", "$1\r\ne");
    shows(&mut other.client(), "LLEN l", ":5");
    equal_digests(&mut client, &mut other.client(), "0");
    let digest = client.line("HIGHWATER DIGEST");
    // With its own store, and with none.
    assert!(one.terminate().success());
    one.restart();
    let fresh = node(kafka, &topic);
    for node in [&one, &fresh] {
        let mut client = node.client();
        assert_eq!(all(&mut client, "l"), "A x b d e");
        client.check("LPOS l d", ":3");
        client.check("TYPE l", "+list");
        eventually("the nodes agree", SOON, || client.line("HIGHWATER DIGEST") == digest);
    }
    // A packed list of another producer replaces the whole.
    let hostile = Hostile::new(kafka, &topic);
    hostile.send(0, b"l", Some(b"\x91\xa1p"), &[("redis-type", b"list")]);
    hostile.flush();
    shows(&mut fresh.client(), "LRANGE l 0 -1", "*1\r\n$1\r\np");
}

#[test]
fn an_empty_list_is_none_and_takes_the_next_item() {
    let kafka = kafka::shared();
    let topic = fresh_topic("split-list-empty");
    let node = node(kafka, &topic);
    let mut client = node.client();
    client.check("RPUSH l a b c d e", ":5");
    let head = || compacted(kafka, &topic)[&b"l"[..]].headers.clone();
    let version = head();
    client.check("LPOP l 9", "*5\r\n$1\r\na\r\n$1\r\nb\r\n$1\r\nc\r\n$1\r\nd\r\n$1\r\ne");
    assert_eq!(head(), version, "the head stays");
    for (line, reply) in [
        ("EXISTS l", ":0"),
        ("TYPE l", "+none"),
        ("LLEN l", ":0"),
        ("TTL l", ":-2"),
        ("LPOP l", "$-1"),
        ("LPUSHX l x", ":0"),
        ("LSET l 0 x", "-ERR no such key"),
        ("RENAME l m", "-ERR no such key"),
        ("EXPIRE l 100", ":0"),
        ("COPY l m", ":0"),
        ("GET l", "$-1"),
        ("SETNX other x", ":1"),
    ] {
        client.check(line, reply);
    }
    client.check("RPUSH l f", ":1");
    assert_eq!(head(), version, "it is used again");
    client.check("EXPIRE l 1000", ":1");
    client.check("RPOP l", "$1\r\nf");
    assert_eq!(compacted(kafka, &topic)[&b"l"[..]].value, None, "it had an expiry");
    client.check("RPUSH l a b c d e", ":5");
    client.check("TTL l", ":-1");
    client.check("LTRIM l 1 0", "+OK");
    // Another type may come there.
    client.check("HSET l f v", ":1");
    client.check("TYPE l", "+hash");
    client.check("DEL l", ":1");
    client.check("RPUSH l a b c d e", ":5");
    client.check(
        "LMPOP 1 l RIGHT COUNT 5",
        "*2\r\n$1\r\nl\r\n*5\r\n$1\r\ne\r\n$1\r\nd\r\n$1\r\nc\r\n$1\r\nb\r\n$1\r\na",
    );
    eventually("the head is removed", SOON, || {
        compacted(kafka, &topic)[&b"l"[..]].value.is_none()
    });
    client.check_soon("DBSIZE", ":1");
}

fn conflicts(node: &Highwater) -> usize {
    let conflicts = node.client().info("writes_conflicted").expect("it is in INFO");
    conflicts.parse().expect("a number")
}

/// A producer on one node, a consumer on another; the queue is empty again and again.
#[test]
fn a_producer_and_a_consumer_of_a_queue_do_not_hinder_each_other() {
    const ITEMS: usize = 600;
    let kafka = kafka::shared();
    let topic = fresh_topic("split-list-queue");
    let nodes = [Highwater::on_kafka(kafka, &topic), Highwater::on_kafka(kafka, &topic)];
    let before: usize = nodes.iter().map(conflicts).sum();
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut client = nodes[0].client();
            client.set_deadline(SOON);
            for n in 0..ITEMS {
                let reply = client.tree(&format!("RPUSH q {n}"));
                assert!(reply.integer().is_some(), "{reply:?}");
            }
        });
        let mut client = nodes[1].client();
        client.set_deadline(SOON);
        for n in 0..ITEMS {
            // In their order, and each once.
            let text = n.to_string();
            client.check("BLPOP q 50", &format!("*2\r\n$1\r\nq\r\n${}\r\n{text}", text.len()));
        }
    });
    let conflicts = nodes.iter().map(conflicts).sum::<usize>() - before;
    println!("{conflicts} of {} writes conflicted", 2 * ITEMS);
    assert!(
        conflicts * 20 < 2 * ITEMS,
        "{conflicts} of {} writes conflicted",
        2 * ITEMS
    );
    shows(&mut nodes[0].client(), "EXISTS q", ":0");
    equal_digests(&mut nodes[0].client(), &mut nodes[1].client(), "0");
}

/// Each client puts in items of its own, anywhere, and takes some out.
#[test]
fn two_nodes_that_work_on_both_ends_of_a_list_lose_nothing() {
    const STEPS: usize = 60;
    let seed: u64 = rand::random();
    println!("seed {seed}");
    let kafka = kafka::shared();
    let topic = fresh_topic("split-list-ends");
    let nodes = [node(kafka, &topic), node(kafka, &topic)];
    nodes[0].client().check("RPUSH l p0 p1 p2 p3 p4", ":5");
    shows(&mut nodes[1].client(), "LLEN l", ":5");
    let put: Mutex<BTreeSet<String>> = Mutex::new((0..5).map(|n| format!("p{n}")).collect());
    let taken: Mutex<Vec<String>> = Mutex::default();
    let next = AtomicUsize::new(0);
    thread::scope(|scope| {
        for number in 0..4 {
            let (nodes, put, taken, next) = (&nodes, &put, &taken, &next);
            scope.spawn(move || {
                let mut random = StdRng::seed_from_u64(seed ^ number);
                let mut client = nodes[number as usize % 2].client();
                client.set_deadline(SOON);
                for _ in 0..STEPS {
                    let item = format!("i{}", next.fetch_add(1, Ordering::Relaxed));
                    let line = match random.random_range(0..10) {
                        0..2 => format!("RPUSH l {item}"),
                        2..4 => format!("LPUSH l {item}"),
                        4 => format!("LINSERT l AFTER p2 {item}"),
                        5..7 => "LPOP l".to_owned(),
                        7..9 => "RPOP l".to_owned(),
                        _ => "LMOVE l l LEFT RIGHT".to_owned(),
                    };
                    let reply = client.tree(&line);
                    if line.ends_with(&item) {
                        if reply.integer().expect("a length") > 0 {
                            assert!(put.lock().expect("no panic").insert(item));
                        }
                    } else if let (Some(item), true) = (reply.bytes(), line.contains("POP")) {
                        let item = String::from_utf8(item.to_vec()).expect("a text");
                        taken.lock().expect("no panic").push(item);
                    }
                }
            });
        }
    });
    equal_digests(&mut nodes[0].client(), &mut nodes[1].client(), "0");
    let mut ended = taken.into_inner().expect("no panic");
    ended.extend(texts(&mut nodes[0].client(), "LRANGE l 0 -1"));
    ended.sort();
    let put: Vec<String> = put.into_inner().expect("no panic").into_iter().collect();
    assert_eq!(ended, put, "seed {seed}: each item is taken once, or there");
}

#[test]
fn a_split_list_takes_part_in_transactions() {
    let node = Highwater::builder().args(SMALL).start();
    let (mut client, mut other) = (node.client(), node.client());
    client.check("RPUSH l a b c d e", ":5");
    client.check("WATCH l", "+OK");
    other.check("LSET l 2 C", "+OK");
    client.check("MULTI", "+OK");
    client.check("RPUSH l lost", "+QUEUED");
    client.check("EXEC", "*-1");
    client.check("MULTI", "+OK");
    for line in [
        "RPUSH l f g",
        "LRANGE l 0 1",
        "LPOP l",
        "LINSERT l AFTER C x",
        "LMOVE l l RIGHT LEFT",
        "LLEN l",
        "LRANGE l 0 -1",
        "RENAME l m",
        "SORT m ALPHA DESC STORE s",
        "LINDEX s 0",
        "LTRIM m 1 0",
        "EXISTS m",
    ] {
        client.check(line, "+QUEUED");
    }
    let expected = [
        ":7",
        "*2\r\n$1\r\na\r\n$1\r\nb",
        "$1\r\na",
        ":7",
        "$1\r\ng",
        ":7",
        "*7\r\n$1\r\ng\r\n$1\r\nb\r\n$1\r\nC\r\n$1\r\nx\r\n$1\r\nd\r\n$1\r\ne\r\n$1\r\nf",
        "+OK",
        ":7",
        "$1\r\nx",
        "+OK",
        ":0",
    ];
    client.check("EXEC", &format!("*{}\r\n{}", expected.len(), expected.join("\r\n")));
    client.check("COPY s t", ":1");
    assert_eq!(all(&mut client, "t"), "x g f e d b C");
    client.check("DBSIZE", ":2");
}

#[test]
fn items_of_other_producers_have_their_place_or_say_why_not() {
    let kafka = kafka::shared();
    let topic = fresh_topic("split-list-foreign");
    let node = node(kafka, &topic);
    let hostile = Hostile::new(kafka, &topic);
    let bytes = b"\x01\x23\x45\x67\x89\xab\x01\x23\x45\x67\x89\xab";
    let head: &[(&str, &[u8])] = &[("redis-type", b"list"), ("redis-split", b"0123456789ab0123456789ab")];
    let element: &[(&str, &[u8])] = &[("redis-type", b"element")];
    let send = |key: &[u8], place: &[u8], value: &[u8]| {
        let name = [ELEMENT, &[key.len() as u8], key, bytes, place].concat();
        hostile.send(0, &name, Some(value), element);
    };
    for key in ["good", "low", "codec", "expires"] {
        hostile.send(0, key.as_bytes(), Some(b""), head);
        send(key.as_bytes(), b"m", b"\x01\0second");
        send(key.as_bytes(), b"", b"\x01\0first");
        send(key.as_bytes(), b"m\0", b"\x01\0third");
    }
    send(b"codec", b"z", b"\x09\0x");
    send(b"expires", b"z", b"\x01\x01\0\0\x7f\xff\xff\xff\xff\xffx");
    hostile.send(0, b"behind", Some(b"right"), &[]);
    hostile.flush();
    let mut client = node.client();
    shows(&mut client, "GET behind", "$5\r\nright");
    assert_eq!(all(&mut client, "good"), "first second third");
    // There is no room between these two, nor before the first one.
    client.check("LINSERT good AFTER second x", ":4");
    assert_eq!(all(&mut client, "good"), "first second x third");
    client.check("LPUSH low y zero", ":5");
    client.check("RPUSH low last", ":6");
    assert_eq!(all(&mut client, "low"), "zero y first second third last");
    for key in ["codec", "expires"] {
        client.check(&format!("LINDEX {key} 1"), "$6\r\nsecond");
        client.check(&format!("LPOP {key}"), "$5\r\nfirst");
        for line in [
            "LRANGE KEY 0 -1",
            "RPOP KEY",
            "LPOS KEY none",
            "SORT KEY",
            "LREM KEY 0 none",
        ] {
            let line = line.replace("KEY", key);
            let reply = String::from_utf8_lossy(&client.line(&line)).into_owned();
            let is_clear = reply.starts_with("-ERR ") && reply.contains("cannot be read");
            assert!(is_clear, "{line}: {reply}");
        }
        client.check(&format!("LTRIM {key} 0 -2"), "+OK");
        assert_eq!(all(&mut client, key), "second third");
    }
}

/// Memory has room for a part of these lists only, and the node is killed now and then.
#[test]
fn lists_are_right_when_they_leave_memory_and_come_back() {
    const LISTS: usize = 8;
    let seed: u64 = rand::random();
    println!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let mut node = Highwater::builder()
        .args(SMALL)
        .args(&["--fsync", "no", "--maxmemory", "256kb"])
        .start();
    let mut model: Vec<VecDeque<String>> = vec![VecDeque::new(); LISTS];
    let mut client = node.client();
    client.set_deadline(SOON);
    for round in 0..4 {
        let mut lines = Vec::new();
        for n in 0..1_000 {
            let at = random.random_range(0..LISTS);
            let (list, item) = (&mut model[at], format!("i{round}-{n}"));
            match random.random_range(0..8) {
                0 => {
                    lines.push(format!("LPOP l{at}"));
                    list.pop_front();
                }
                1 => {
                    lines.push(format!("RPOP l{at}"));
                    list.pop_back();
                }
                2 if !list.is_empty() => {
                    let place = random.random_range(0..list.len());
                    lines.push(format!("LINSERT l{at} BEFORE {} {item}", list[place]));
                    list.insert(place, item);
                }
                3..5 => {
                    lines.push(format!("LPUSH l{at} {item}"));
                    list.push_front(item);
                }
                _ => {
                    lines.push(format!("RPUSH l{at} {item}"));
                    list.push_back(item);
                }
            }
        }
        client.pipeline(&lines.iter().map(String::as_str).collect::<Vec<_>>());
        for (at, list) in model.iter().enumerate() {
            let seen = texts(&mut client, &format!("LRANGE l{at} 0 -1"));
            assert!(seen.iter().eq(list.iter()), "seed {seed}, round {round}, list {at}");
            client.check(&format!("LLEN l{at}"), &format!(":{}", list.len()));
        }
        if round % 2 == 1 {
            node.kill9();
            node.restart();
            client = node.client();
            client.set_deadline(SOON);
        }
    }
    // A trim that leaves little writes what it leaves.
    let many: Vec<String> = (0..2_500).map(|n| n.to_string()).collect();
    client.check(&format!("RPUSH many {}", many.join(" ")), ":2500");
    client.check("LTRIM many 2000 2009", "+OK");
    assert_eq!(all(&mut client, "many"), many[2_000..2_010].join(" "));
    client.check("LRANGE many -1 -1", "*1\r\n$4\r\n2009");
}
