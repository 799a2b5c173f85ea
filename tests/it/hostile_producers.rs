//! What other producers can put into a topic, by mistake or on purpose: no crash, told, and every other key right.

use std::time::{Duration, Instant};

use highwater::log::kafka::Partitioner;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};

use crate::support::client::Client;
use crate::support::kafka::{self, Kafka, fresh_topic};
use crate::support::resp::Reply;
use crate::support::server::Highwater;
use crate::support::{eventually, longer};

const SOON: Duration = Duration::from_secs(60);
const CONTROL: &[u8] = b"\0highwater:flush";

/// A producer that is not Highwater.
pub struct Hostile<'k> {
    producer: BaseProducer,
    topic: &'k str,
}

impl Hostile<'_> {
    pub fn new<'k>(kafka: &Kafka, topic: &'k str) -> Hostile<'k> {
        let mut config = kafka.client_config();
        config.set("message.max.bytes", "16000000").set("linger.ms", "5");
        Hostile {
            producer: config.create().expect("create a producer"),
            topic,
        }
    }

    pub fn send(&self, partition: i32, key: &[u8], value: Option<&[u8]>, headers: &[(&str, &[u8])]) {
        let all = headers.iter().fold(OwnedHeaders::new(), |all, (key, value)| {
            all.insert(Header {
                key,
                value: Some(*value),
            })
        });
        let mut record = BaseRecord::to(self.topic).partition(partition).key(key).headers(all);
        record.payload = value;
        while let Err((error, back)) = self.producer.send(record) {
            let full = error.rdkafka_error_code() == Some(rdkafka::types::RDKafkaErrorCode::QueueFull);
            assert!(full, "{error}");
            self.producer.poll(Duration::from_millis(20));
            record = back;
        }
    }

    pub fn flush(&self) {
        self.producer.flush(SOON).expect("all records are acknowledged");
    }
}

fn is_shown(client: &mut Client, key: &str, value: &str) -> bool {
    client.line(&format!("GET {key}")) == format!("${}\r\n{value}\r\n", value.len()).into_bytes()
}

#[test]
fn headers_that_make_no_sense_cost_their_own_keys_alone() {
    let kafka = kafka::shared();
    let topic = fresh_topic("headers");
    let node = Highwater::builder()
        .kafka(kafka, &topic)
        .allow("group header that makes no sense")
        .allow("a record with a reserved key is never shown")
        .start();
    let mut client = node.client();
    client.check("SET typed old", "+OK");
    let hostile = Hostile::new(kafka, &topic);
    let long = vec![b'x'; 100_000];
    hostile.send(0, b"typed", Some(b"v"), &[("redis-type", b"hash")]);
    hostile.send(0, b"late", Some(b"v"), &[("redis-expire-at", b"soon")]);
    hostile.send(0, b"long", Some(b"v"), &[("redis-type", &long)]);
    hostile.send(0, b"bad-group", Some(b"v"), &[("redis-group", b"\xff\xfe")]);
    hostile.send(
        0,
        b"twice",
        Some(b"v"),
        &[("redis-type", b"hash"), ("redis-type", b"string")],
    );
    let many: Vec<(&str, &[u8])> = (0..3_000).map(|_| ("x", &b"y"[..])).collect();
    hostile.send(0, b"many", Some(b"v"), &many);
    hostile.send(0, CONTROL, Some(b"data"), &[]);
    hostile.send(0, CONTROL, Some(b""), &[("redis-control", b"explode")]);
    hostile.send(0, b"behind", Some(b"right"), &[]);
    hostile.flush();
    eventually("what is behind them is shown", SOON, || {
        is_shown(&mut client, "behind", "right")
    });
    for key in ["typed", "late", "long"] {
        let reply = client.line(&format!("GET {key}"));
        let text = String::from_utf8_lossy(&reply);
        assert!(
            text.starts_with("-ERR the record of this key") && text.len() < 400,
            "{key}: {text}"
        );
        // Whoever writes it anew mends it.
        client.check(&format!("SET {key} new"), "+OK");
        assert!(is_shown(&mut client, key, "new"));
    }
    for key in ["bad-group", "twice", "many"] {
        assert!(is_shown(&mut client, key, "v"), "{key}");
    }
    client.check("DBSIZE", ":7");
    assert_eq!(node.log().matches("group header that makes no sense").count(), 1);
}

/// Keys that begin with `\0highwater:` are the topic's own: nobody is shown them or writes them, and a
/// flush does not remove what a newer version keeps there.
#[test]
fn records_with_reserved_keys_are_never_shown_and_outlive_a_flush() {
    const LATER: &[u8] = b"\0highwater:later";
    let kafka = kafka::shared();
    let topic = fresh_topic("reserved");
    let node = Highwater::builder()
        .kafka(kafka, &topic)
        .allow("a record with a reserved key is never shown")
        .start();
    let mut client = node.client();
    let hostile = Hostile::new(kafka, &topic);
    hostile.send(0, LATER, Some(b"kept"), &[]);
    hostile.send(0, CONTROL, None, &[]);
    hostile.send(0, b"behind", Some(b"right"), &[]);
    hostile.flush();
    eventually("what is behind them is shown", SOON, || {
        is_shown(&mut client, "behind", "right")
    });
    assert_eq!(client.info("records_reserved").as_deref(), Some("2"));
    client.check("DBSIZE", ":1");
    client.check("GET \"\\x00highwater:later\"", "$-1");
    for write in [
        "SET KEY x",
        "RENAME behind KEY",
        "MSET a 1 KEY 2",
        "COPY behind KEY",
        "INCR KEY",
        "MULTI|SET KEY 1|EXEC",
    ] {
        let lines: Vec<String> = write
            .split('|')
            .map(|line| line.replace("KEY", "\"\\x00highwater:other\""))
            .collect();
        let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
        let replies = client.pipeline(&lines);
        let last = String::from_utf8_lossy(replies.last().expect("a reply")).into_owned();
        assert!(last.starts_with("-ERR this key is reserved"), "{write}: {last}");
    }
    client.check("FLUSHALL", "+OK");
    eventually("the old key has its tombstone", SOON, || {
        client.info("flush_tombstones").as_deref() == Some("1")
    });
    let records = kafka.records(&topic, "read_committed");
    let later = records.iter().filter(|record| record.key.as_deref() == Some(LATER));
    assert_eq!(later.count(), 1, "{records:?}");
}

#[test]
fn a_forged_group_that_never_completes_holds_others_up_for_moments_only() {
    let kafka = kafka::shared();
    let topic = fresh_topic("forged");
    let node = Highwater::builder()
        .kafka(kafka, &topic)
        .allow("a group of records is incomplete")
        .start();
    let mut client = node.client();
    client.check("SET before 1", "+OK");
    let hostile = Hostile::new(kafka, &topic);
    for n in 0..3 {
        let header = format!("{n:032x} 4000000000 {topic}/0:7,elsewhere/3:9");
        hostile.send(
            0,
            format!("forged{n}").as_bytes(),
            Some(b"v"),
            &[("redis-group", header.as_bytes())],
        );
        hostile.send(0, format!("behind{n}").as_bytes(), Some(b"v"), &[]);
        hostile.flush();
    }
    let since = Instant::now();
    // Own writes and reads go on meanwhile.
    client.check("SET own 1", "+OK");
    assert!(is_shown(&mut client, "own", "1"));
    eventually("what is behind is shown", SOON, || {
        is_shown(&mut client, "behind2", "v")
    });
    println!("held up for {:?}", since.elapsed());
    assert!(since.elapsed() < Duration::from_secs(10), "held up for too long");
    for n in 0..3 {
        assert!(is_shown(&mut client, &format!("forged{n}"), "v"));
    }
    client.check("INCR own", ":2");
}

#[test]
fn behind_a_forged_group_real_ones_are_seen_whole() {
    let kafka = kafka::shared();
    let topic = kafka.compacted_topic("among-forged", 4);
    let start = || {
        let node = Highwater::builder().kafka(kafka, &topic);
        node.allow("a group of records is incomplete").start()
    };
    let (writer, reader) = (start(), start());
    let hostile = Hostile::new(kafka, &topic);
    let keys: Vec<String> = (0..8).map(|n| format!("k{n}")).collect();
    let (mut client, mut seeing) = (writer.client(), reader.client());
    for round in 0..5 {
        let header = format!("{round:032x} 2 {topic}/1:1,{topic}/2:1");
        let names = (0..).map(|n| format!("forged{round}.{n}"));
        let mut at_home = names.filter(|name| Partitioner::Murmur2.partition(name.as_bytes(), 4) == 0);
        let forged = at_home.next().expect("there are more");
        hostile.send(0, forged.as_bytes(), Some(b"v"), &[("redis-group", header.as_bytes())]);
        hostile.flush();
        let since = Instant::now();
        let mut written = 0;
        let is_seen = |seeing: &mut Client, written: u32| {
            let seen = seeing.tree(&format!("MGET {}", keys.join(" ")));
            let values: Vec<_> = seen.items().iter().map(Reply::bytes).collect();
            assert!(
                values.windows(2).all(|pair| pair[0] == pair[1]),
                "half of a group: {seen:?}"
            );
            values[0] == Some(format!("{round}.{written}").as_bytes())
        };
        while !is_shown(&mut seeing, &forged, "v") {
            assert!(since.elapsed() < Duration::from_secs(10), "held up for too long");
            written += 1;
            let pairs: String = keys.iter().map(|key| format!(" {key} {round}.{written}")).collect();
            client.check(&format!("MSET{pairs}"), "+OK");
            is_seen(&mut seeing, written);
        }
        println!("held up for {:?}, with {written} groups behind", since.elapsed());
        eventually("the last group is seen", SOON, || is_seen(&mut seeing, written));
    }
}

#[test]
fn large_records_and_a_flood_of_tombstones_do_no_harm() {
    let kafka = kafka::shared();
    let topic = fresh_topic("flood");
    let node = Highwater::on_kafka(kafka, &topic);
    let mut client = node.client();
    // DBSIZE waits until the store has all of it.
    client.set_deadline(SOON);
    client.check("SET kept here", "+OK");
    let hostile = Hostile::new(kafka, &topic);
    let large = vec![b'z'; 10_000_000];
    hostile.send(0, b"large", Some(&large), &[]);
    let key = vec![b'k'; 1_000_000];
    hostile.send(0, &key, Some(b"long key"), &[]);
    // Millions with --soak.
    for n in 0..300_000 * longer() {
        hostile.send(0, format!("never there {n}").as_bytes(), None, &[]);
    }
    hostile.send(0, b"behind", Some(b"right"), &[]);
    hostile.flush();
    eventually("what is behind is shown", SOON, || {
        is_shown(&mut client, "behind", "right")
    });
    client.check("STRLEN large", ":10000000");
    client.check("DBSIZE", ":4");
    assert!(is_shown(&mut client, "kept", "here"));
    let rss: u64 = client
        .info("used_memory_rss")
        .and_then(|bytes| bytes.parse().ok())
        .expect("INFO tells");
    assert!(rss < 600 << 20, "{rss} bytes of memory");
}

#[test]
fn a_record_in_the_wrong_partition_is_shown_and_a_write_through_a_node_wins() {
    let kafka = kafka::shared();
    let topic = kafka.compacted_topic("misplaced", 4);
    let node = Highwater::builder().kafka(kafka, &topic);
    let node = node.allow("outside of the partition").start();
    let mut client = node.client();
    let hostile = Hostile::new(kafka, &topic);
    for partition in 0..4 {
        hostile.send(partition, format!("only in {partition}").as_bytes(), Some(b"v"), &[]);
    }
    hostile.flush();
    for partition in 0..4 {
        eventually("a misplaced record is shown", SOON, || {
            is_shown(&mut client, &format!("\"only in {partition}\""), "v")
        });
    }
    let misplaced = (0..4).filter(|partition| {
        let key = format!("only in {partition}");
        Partitioner::Murmur2.partition(key.as_bytes(), 4) != *partition
    });
    let misplaced = misplaced.count().to_string();
    assert_eq!(client.info("records_misplaced"), Some(misplaced));
    assert_eq!(node.log().matches("outside of the partition").count(), 1);
    assert!(
        node.log().contains("start all nodes with --partitioner crc32"),
        "{}",
        node.log()
    );
    let other = Highwater::builder()
        .kafka(kafka, &topic)
        .args(&["--partitioner", "crc32"]);
    let other = other.allow("outside of the partition").start();
    assert!(
        other.log().contains("start all nodes with --partitioner murmur2"),
        "{}",
        other.log()
    );
    drop(other);
    for partition in 0..4 {
        client.check(&format!("SET \"only in {partition}\" new"), "+OK");
        assert!(is_shown(&mut client, &format!("\"only in {partition}\""), "new"));
    }
}

#[test]
fn copies_are_known_after_a_start_with_more_or_fewer_databases() {
    let kafka = kafka::shared();
    let topic = kafka.compacted_topic("copies-databases", 2);
    let node = Highwater::builder().kafka(kafka, &topic).args(&["--databases", "2"]);
    let node = node.allow("outside of the partition");
    let mut node = node.allow("another number of databases").start();
    let hostile = Hostile::new(kafka, &topic);
    let copy = 1 - Partitioner::Murmur2.partition(b"k", 2) as i32;
    hostile.send(copy, b"k", Some(b"copy"), &[]);
    hostile.flush();
    eventually("the copy is shown", SOON, || is_shown(&mut node.client(), "k", "copy"));
    for databases in ["1", "4"] {
        assert!(node.terminate().success());
        node.restart_with(&["--databases", databases]);
        let mut client = node.client();
        assert!(is_shown(&mut client, "k", "copy"), "{databases} databases");
        // With the home's value gone, the copy would be shown again: it must go too.
        client.check("SET k own", "+OK");
        client.check("DEL k", ":1");
        client.check("GET k", "$-1");
        hostile.send(copy, b"k", Some(b"copy"), &[]);
        hostile.flush();
        eventually("the copy is shown", SOON, || is_shown(&mut client, "k", "copy"));
    }
}

/// What each of the partitions has of a key.
type Copies = [Option<String>; 4];

/// What every node has to show of it.
fn shown(home: usize, copies: &Copies) -> Option<&String> {
    copies[home].as_ref().or_else(|| copies.iter().flatten().next())
}

fn check_shown(client: &mut Client, model: &[(String, usize, Copies)], who: &str) {
    for (key, home, copies) in model {
        let expected =
            shown(*home, copies).map_or("$-1\r\n".into(), |value| format!("${}\r\n{value}\r\n", value.len()));
        let reply = client.line(&format!("GET {key}"));
        let reply = String::from_utf8_lossy(&reply);
        assert_eq!(reply, expected, "{who}: {key}, at home in {home}: {copies:?}");
    }
}

/// Producers that spread keys at random, writes through both nodes, kills: what is shown is a function of what each partition has.
#[test]
#[expect(clippy::too_many_lines, reason = "it is still to be split")]
fn copies_in_several_partitions_are_shown_alike_by_all_nodes() {
    let seed = rand::random();
    println!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let kafka = kafka::shared();
    let topic = kafka.compacted_topic("copies", 4);
    let hostile = Hostile::new(kafka, &topic);
    let start = || {
        let node = Highwater::builder()
            .kafka(kafka, &topic)
            .args(&["--read-consistency", "linearizable"]);
        node.allow("outside of the partition").start()
    };
    let mut nodes = [start(), start()];
    let mut model: Vec<(String, usize, Copies)> = (0..40)
        .map(|n| {
            let key = format!("k{n}");
            let home = Partitioner::Murmur2.partition(key.as_bytes(), 4) as usize;
            (key, home, Copies::default())
        })
        .collect();
    for round in 0..12 {
        for n in 0..80 {
            let (key, _, copies) = &mut model[random.random_range(0..40)];
            let partition = random.random_range(0..4);
            copies[partition] = random.random_bool(0.6).then(|| format!("{round}.{n}"));
            let value = copies[partition].as_ref().map(String::as_bytes);
            hostile.send(partition as i32, key.as_bytes(), value, &[]);
        }
        hostile.flush();
        let mut clients = [nodes[0].client(), nodes[1].client()];
        for client in &mut clients {
            check_shown(client, &model, &format!("round {round}, foreign writes"));
        }
        for n in 0..20 {
            let (key, home, copies) = &mut model[random.random_range(0..40)];
            let client = &mut clients[random.random_range(0..2)];
            let before = shown(*home, copies).cloned();
            *copies = Copies::default();
            match random.random_range(0..3) {
                0 => {
                    client.check(&format!("SET {key} own{round}.{n}"), "+OK");
                    copies[*home] = Some(format!("own{round}.{n}"));
                }
                1 => client.check(&format!("DEL {key}"), &format!(":{}", u8::from(before.is_some()))),
                _ => {
                    let value = before.unwrap_or_default() + "+";
                    client.check(&format!("APPEND {key} +"), &format!(":{}", value.len()));
                    copies[*home] = Some(value);
                }
            }
        }
        for client in &mut clients {
            check_shown(client, &model, &format!("round {round}, own writes"));
        }
        if round % 4 == 3 {
            nodes[round / 4 % 2].kill9();
            nodes[round / 4 % 2].restart();
        }
    }
    let anew = start();
    check_shown(&mut anew.client(), &model, "a node that read all of it");
    let digests: Vec<Vec<u8>> = [&nodes[0], &nodes[1], &anew]
        .map(|node| node.client().line("HIGHWATER DIGEST"))
        .into();
    assert!(digests.iter().all(|digest| *digest == digests[0]), "the digests differ");
    anew.client().check("FLUSHALL", "+OK");
    nodes[1].client().check("DBSIZE", ":0");
    // Each partition's record of a key is deleted for those who do not know of the flush.
    eventually("all copies have tombstones", SOON, || {
        crate::flushes::seen(kafka, &topic).is_empty()
    });
    nodes[1].restart();
    model.iter_mut().for_each(|(_, _, copies)| *copies = Copies::default());
    check_shown(&mut nodes[1].client(), &model, "after a flush");
}
