//! FLUSHALL on real Apache Kafka, as a consumer sees it that knows nothing of Highwater's flush marker: each old key gets a tombstone.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rand::Rng;

use crate::consistency::equal_digests;
use crate::support::client::Client;
use crate::support::foreign::{Foreign, is_foreign};
use crate::support::kafka::{self, Kafka, SeenRecord};
use crate::support::server::Highwater;
use crate::support::{Stopping, wait_for};

const SOON: Duration = Duration::from_secs(120);
const MARKER: &[u8] = b"\0highwater:flush";

/// What a consumer has at the end of the topic, by partition and key: what only Highwater takes for deleted is among it.
pub fn seen(kafka: &Kafka, topic: &str) -> HashMap<(i32, Vec<u8>), SeenRecord> {
    let mut seen = HashMap::new();
    for record in kafka.records(topic, "read_committed") {
        let key = record.key.clone().expect("a key");
        seen.insert((record.partition, key), record);
    }
    seen.retain(|(_, key), record| key != MARKER && record.value.is_some());
    seen
}

fn fill(client: &mut Client, keys: u32) {
    for first in (0..keys).step_by(1_000) {
        let lines: Vec<String> = (first..keys.min(first + 1_000))
            .map(|n| format!("SET k{n} old"))
            .collect();
        let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
        assert!(client.pipeline(&lines).iter().all(|reply| reply == b"+OK\r\n"));
    }
}

/// Tombstones of each key, as consumers see them (or also those that nobody sees, of transactions that were aborted).
fn tombstones(kafka: &Kafka, topic: &str, isolation: &str) -> HashMap<String, u32> {
    let mut tombstones = HashMap::new();
    for record in kafka.records(topic, isolation) {
        if record.value.is_none() {
            let key = String::from_utf8(record.key.expect("a key")).expect("text");
            *tombstones.entry(key).or_default() += 1;
        }
    }
    tombstones
}

fn written_tombstones(client: &mut Client) -> u32 {
    let number = client.info("flush_tombstones").expect("INFO tells");
    number.parse().expect("a number")
}

fn each_old_key_gets_one_tombstone(partitions: i32) {
    const KEYS: u32 = 4_000;
    let kafka = kafka::shared();
    let topic = kafka.compacted_topic("flushed", partitions);
    let node = Highwater::on_kafka(kafka, &topic);
    let (mut client, mut watching) = (node.client(), node.client());
    fill(&mut client, KEYS);
    // Together: none of them is old for a moment.
    let again: Vec<String> = (0..KEYS).step_by(10).map(|n| format!("SET k{n} new")).collect();
    let mut lines = vec!["MULTI", "FLUSHALL"];
    lines.extend(again.iter().map(String::as_str));
    lines.push("EXEC");
    let flushed = Instant::now();
    assert!(
        client
            .pipeline(&lines)
            .last()
            .is_some_and(|reply| reply.starts_with(b"*401\r\n+OK"))
    );
    watching.check("WATCH k1 k2 k3", "+OK");
    // Right all the time, before and after.
    let check = |client: &mut Client| {
        client.check("DBSIZE", ":400");
        assert_eq!(client.tree("KEYS *").items().len(), 400);
        client.check("MGET k0 k1 k10", "*3\r\n$3\r\nnew\r\n$-1\r\n$3\r\nnew");
        assert!(client.text("RANDOMKEY").ends_with('0'));
        let keyspace = client.info("db0").expect("INFO tells");
        assert!(keyspace.starts_with("keys=400,"), "{keyspace}");
        client.line("HIGHWATER DIGEST")
    };
    let digest = check(&mut client);
    let keys = |digest: &[u8]| String::from_utf8_lossy(digest).matches("keys").count();
    assert_eq!(keys(&digest), partitions as usize);
    wait_for("a tombstone for each old key", SOON, || {
        (seen(kafka, &topic).len() == 400).then_some(())
    });
    println!("{:?} until {KEYS} keys are deleted for everybody", flushed.elapsed());
    assert!(
        seen(kafka, &topic)
            .values()
            .all(|record| record.value.as_deref() == Some(b"new"))
    );
    let tombstones = tombstones(kafka, &topic, "read_committed");
    assert_eq!(tombstones.len(), 3_600);
    assert!(tombstones.values().all(|number| *number == 1));
    assert_eq!(written_tombstones(&mut client), 3_600);
    check(&mut client);
    // What was not there is not there: no change to who watched it.
    watching.check("MULTI", "+OK");
    watching.check("SET done 1", "+QUEUED");
    watching.check("EXEC", "*1\r\n+OK");
}

#[test]
fn after_a_flush_each_old_key_gets_one_tombstone_and_what_was_written_anew_gets_none() {
    each_old_key_gets_one_tombstone(1);
}

#[test]
fn after_a_flush_each_old_key_gets_one_tombstone_in_each_of_several_partitions() {
    each_old_key_gets_one_tombstone(3);
}

#[test]
fn tombstones_behind_a_flush_go_on_when_their_node_is_killed_and_where_the_topic_is_read_anew() {
    const KEYS: u32 = 30_000;
    let kafka = kafka::shared();
    let topic = kafka.compacted_topic("flush-kill", 2);
    let mut node = Highwater::on_kafka(kafka, &topic);
    let mut client = node.client();
    fill(&mut client, KEYS);
    client.check("FLUSHALL", "+OK");
    let in_the_midst = |client: &mut Client| {
        let mut written = 0;
        wait_for("the first tombstones", SOON, || {
            written = written_tombstones(client);
            (written > 0).then_some(())
        });
        written
    };
    let first = in_the_midst(&mut client);
    node.kill9();
    node.restart();
    let second = in_the_midst(&mut node.client());
    node.kill9();
    let left = seen(kafka, &topic).len() as u32;
    println!("{first}, then {second} tombstones before it was killed, {left} keys are left");
    assert!(left > 0, "it was done before it could be killed");
    let anew = Highwater::on_kafka(kafka, &topic);
    anew.client().check("DBSIZE", ":0");
    wait_for("the rest", SOON, || seen(kafka, &topic).is_empty().then_some(()));
    let tombstones = tombstones(kafka, &topic, "read_committed");
    assert_eq!(tombstones.len() as u32, KEYS);
    assert!(tombstones.values().all(|number| *number == 1));
    assert_eq!(written_tombstones(&mut anew.client()), left);
}

#[test]
fn two_nodes_do_not_both_write_the_tombstones_behind_a_flush() {
    const KEYS: u32 = 10_000;
    let kafka = kafka::shared();
    let topic = kafka.compacted_topic("flush-two", 1);
    let nodes = [Highwater::on_kafka(kafka, &topic), Highwater::on_kafka(kafka, &topic)];
    let mut clients = [nodes[0].client(), nodes[1].client()];
    for _ in 0..2 {
        fill(&mut clients[0], KEYS);
        clients[1].check("FLUSHALL", "+OK");
        wait_for("all tombstones", SOON, || seen(kafka, &topic).is_empty().then_some(()));
    }
    let committed = tombstones(kafka, &topic, "read_committed");
    let all: u32 = tombstones(kafka, &topic, "read_uncommitted").values().sum();
    let by_node = clients.each_mut().map(written_tombstones);
    println!("for 2 x {KEYS} keys: by node {by_node:?}, with those that were aborted {all}");
    assert!(committed.len() as u32 == KEYS && committed.values().all(|number| *number <= 2));
    assert!(all < 2 * KEYS * 6 / 5, "{all} tombstones were sent");
    let [one, two] = &mut clients;
    equal_digests(one, two, "0");
}

#[test]
fn tombstones_behind_a_flush_never_cost_another_producers_value() {
    const KEYS: u32 = 3_000;
    let kafka = kafka::shared();
    let topic = kafka.compacted_topic("flush-foreign", 2);
    let node = Highwater::on_kafka(kafka, &topic);
    let mut client = node.client();
    let foreign = Foreign::new(kafka, &topic);
    fill(&mut client, KEYS);
    client.check("FLUSHALL", "+OK");
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut random = rand::rng();
            for n in 0.. {
                if over.load(Ordering::Acquire) {
                    return;
                }
                let mut key = || format!("k{}", random.random_range(0..KEYS));
                let (one, two, value) = (key(), key(), format!("foreign {n}"));
                match n % 4 {
                    0 => foreign.write_in_transaction(&[(&one, Some(&value)), (&two, Some(&value))]),
                    _ => foreign.write(&one, Some(&value)),
                }
            }
        });
        let _over = Stopping(&over);
        wait_for("everything old to be gone", SOON, || {
            let old = |record: &SeenRecord| record.value.as_deref() == Some(b"old");
            (!seen(kafka, &topic).values().any(old)).then_some(())
        });
    });
    let mut newest_foreign: HashMap<String, SeenRecord> = HashMap::new();
    let mut tombstones = 0;
    for record in kafka.records(&topic, "read_committed") {
        let key = String::from_utf8(record.key.clone().expect("a key")).expect("text");
        if is_foreign(&record) {
            newest_foreign.insert(key, record);
        } else if record.value.is_none() {
            tombstones += 1;
            let foreign = newest_foreign.get(&key);
            assert!(foreign.is_none(), "a tombstone for {key} came after {foreign:?}");
        }
    }
    println!(
        "{} keys were written by another producer, {tombstones} tombstones",
        newest_foreign.len()
    );
    assert!(newest_foreign.len() > 10, "too little happened");
    for (key, record) in &newest_foreign {
        let value = String::from_utf8_lossy(record.value.as_deref().expect("a value")).into_owned();
        let shown = format!("${}\r\n{value}\r\n", value.len());
        wait_for(&format!("{key} to be {value}"), SOON, || {
            (client.line(&format!("GET {key}")) == shown.as_bytes()).then_some(())
        });
    }
    client.check("DBSIZE", &format!(":{}", newest_foreign.len()));
}
