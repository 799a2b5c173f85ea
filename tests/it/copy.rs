//! `highwater copy`: what a log shows goes to another topic, and nothing else does.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};

use crate::hostile_producers::Hostile;
use crate::support::client::Client;
use crate::support::foreign::Foreign;
use crate::support::kafka::{self, Kafka, fresh_topic};
use crate::support::process::{self, Outcome};
use crate::support::server::{Highwater, binary};
use crate::support::wait_for;

const SOON: Duration = Duration::from_secs(60);

fn copy(args: &[&str]) -> Outcome {
    let mut command = Command::new(binary());
    command.arg("copy").args(args).env("NO_COLOR", "1");
    process::try_run(command, b"", SOON).expect("highwater can be started")
}

/// Copies between topics of one broker; `args` in addition.
fn copy_topic(kafka: &Kafka, from: &str, to: &str, args: &[&str]) -> Outcome {
    let named = [
        "--bootstrap-servers",
        &kafka.bootstrap,
        "--topic",
        from,
        "--to-topic",
        to,
    ];
    copy(&[&named, args].concat())
}

#[track_caller]
fn succeeded(outcome: &Outcome, keys: usize) {
    let text = outcome.text();
    assert!(outcome.success(), "{text}");
    let told = String::from_utf8_lossy(&outcome.stdout).into_owned();
    assert!(told.starts_with(&format!("copied {keys} keys to topic ")), "{text}");
    assert_eq!(told.lines().count(), 1, "{text}");
}

/// It must have refused, with this exit code and these words.
#[track_caller]
fn refused(outcome: &Outcome, code: i32, words: &[&str]) {
    let text = outcome.text();
    assert_eq!(outcome.status.and_then(|status| status.code()), Some(code), "{text}");
    let told = text.lines().find(|line| line.starts_with("highwater: "));
    let told = told.unwrap_or_else(|| panic!("no line says why: {text}"));
    for word in words {
        assert!(told.contains(word), "{word:?} is missing: {told}");
    }
}

/// All that a database shows: per key its value and when it expires.
fn shown(client: &mut Client, database: u16) -> BTreeMap<Vec<u8>, (Vec<u8>, Vec<u8>)> {
    client.check(&format!("SELECT {database}"), "+OK");
    let keys = client.tree("KEYS *");
    let mut all = BTreeMap::new();
    for key in keys.items() {
        let key = key.bytes().expect("a key");
        let expiry = client.send(&[b"PEXPIRETIME", key]);
        all.insert(key.to_vec(), (client.send(&[b"GET", key]), expiry));
    }
    client.check("SELECT 0", "+OK");
    all
}

/// Writes what a copy has to tell apart; `kept` keys stay in database 0 and one in database 3.
fn write_of_all_kinds(client: &mut Client, kept: usize) {
    for n in 0..100 {
        client.check(&format!("SET flushed{n} x"), "+OK");
    }
    client.check("SET k0 flushed", "+OK");
    client.check("FLUSHDB", "+OK");
    for n in 0..kept - 4 {
        client.check(&format!("SET k{n} old"), "+OK");
        client.check(&format!("SET k{n} v{n}"), "+OK");
        client.check(&format!("SET deleted{n} x"), "+OK");
    }
    for n in 0..kept - 4 {
        client.check(&format!("DEL deleted{n}"), ":1");
    }
    client.check("SET expired x PX 1", "+OK");
    client.check("SET expiring x EX 100000", "+OK");
    client.check("MSET \"\\x00\\xff key\" \"\\r\\n\\x00\" group 1 empty \"\"", "+OK");
    client.check("SELECT 3", "+OK");
    client.check("SET elsewhere 3", "+OK");
    client.check("SELECT 0", "+OK");
}

#[test]
fn a_hash_whose_fields_have_all_expired_is_not_copied() {
    let kafka = kafka::shared();
    let (old, new) = (kafka.compacted_topic("copy-fields", 1), fresh_topic("copy-fields-new"));
    let hostile = Hostile::new(kafka, &old);
    let hash: &[(&str, &[u8])] = &[("redis-type", b"hash")];
    // Of a millisecond after the epoch.
    hostile.send(0, b"wholly", Some(b"\x81\xa1a\x92\xa11\x01"), hash);
    hostile.send(0, b"partly", Some(b"\x82\xa1a\x92\xa11\x01\xa1b\xa12"), hash);
    hostile.flush();
    succeeded(&copy_topic(kafka, &old, &new, &[]), 1);
    let keys: Vec<_> = kafka
        .records(&new, "read_committed")
        .into_iter()
        .map(|record| record.key)
        .collect();
    assert!(keys.contains(&Some(b"partly".to_vec())), "{keys:?}");
    assert!(!keys.contains(&Some(b"wholly".to_vec())), "{keys:?}");
    Highwater::on_kafka(kafka, &new)
        .client()
        .check("HGETALL partly", "*2\r\n$1\r\nb\r\n$1\r\n2");
}

#[test]
fn a_topic_is_copied_to_one_with_other_partitions() {
    let kafka = kafka::shared();
    let (old, new) = (fresh_topic("copy-old"), fresh_topic("copy-new"));
    let source = Highwater::builder()
        .kafka(kafka, &old)
        .args(&["--partitions", "3"])
        .start();
    let mut before = source.client();
    write_of_all_kinds(&mut before, 300);
    wait_for("the key to expire", SOON, || {
        (before.line("EXISTS expired") == b":0\r\n").then_some(())
    });
    let outcome = copy_topic(kafka, &old, &new, &["--to-partitions", "5"]);
    succeeded(&outcome, 301);
    assert_eq!(kafka.topic_config(&new, "cleanup.policy").as_deref(), Some("compact"));
    let records = kafka.records(&new, "read_committed");
    assert_eq!(records.len(), 300, "a record of each key and nothing else");
    let used: std::collections::BTreeSet<i32> = records.iter().map(|record| record.partition).collect();
    assert_eq!(used, (0..5).collect(), "all five partitions are used");

    let target = Highwater::on_kafka(kafka, &new);
    let mut after = target.client();
    for database in [0, 3] {
        assert_eq!(
            shown(&mut before, database),
            shown(&mut after, database),
            "database {database}"
        );
    }
    after.check("DBSIZE", ":300");
    after.check("INCR group", ":2");
    // Into the same topic again only if one says so, and then what is there is as it was.
    refused(
        &copy_topic(kafka, &old, &new, &[]),
        1,
        &["already", &new, "--into-existing"],
    );
    succeeded(&copy_topic(kafka, &old, &new, &["--into-existing"]), 301);
    wait_for("the copy to be seen", SOON, || {
        (after.line("GET group") == b"$1\r\n1\r\n").then_some(())
    });
    assert_eq!(shown(&mut before, 0), shown(&mut after, 0));
}

/// The line that a node's message says to type.
fn told_line(message: &str) -> Vec<String> {
    let line = message
        .split("highwater copy ")
        .nth(1)
        .unwrap_or_else(|| panic!("no line to type: {message}"));
    let line = line.split(" (or").next().unwrap_or_default();
    line.split(' ').map(str::to_owned).collect()
}

#[test]
fn a_topic_that_got_partitions_is_copied_by_the_line_that_its_nodes_tell() {
    let kafka = kafka::shared();
    let topic = kafka.compacted_topic("copy-grown", 1);
    let mut node = Highwater::builder().kafka(kafka, &topic).allow("partition").start();
    let mut client = node.client();
    for n in 0..40 {
        client.check(&format!("SET k{n} {n}"), "+OK");
    }
    kafka.add_partitions(&topic, 3);
    let message = wait_for("writes to be refused", SOON, || {
        let reply = String::from_utf8_lossy(&client.line("SET k0 0")).into_owned();
        reply.starts_with("-NOTWRITTEN ").then_some(reply)
    });
    assert!(node.terminate().success());
    // Somebody who knows of the new partitions goes on.
    let foreign = Foreign::new(kafka, &topic);
    for n in 0..20 {
        foreign.write(&format!("k{n}"), (n >= 10).then_some("1000"));
    }
    foreign.write("k5", Some("1000"));
    let typed = told_line(message.trim_end());
    let typed: Vec<&str> = typed.iter().map(String::as_str).collect();
    let outcome = copy(&typed);
    succeeded(&outcome, 31);
    let new = typed.last().expect("the last word is the new topic");
    assert_eq!(*new, format!("{topic}-3"));
    // Not a word of values outside of their partition.
    let node = Highwater::on_kafka(kafka, new);
    let mut client = node.client();
    client.check("DBSIZE", ":31");
    for n in 0..40 {
        match n {
            5 | 10..20 => client.check(&format!("GET k{n}"), "$4\r\n1000"),
            0..10 => client.check(&format!("GET k{n}"), "$-1"),
            _ => client.check(&format!("INCRBY k{n} 100"), &format!(":{}", n + 100)),
        }
    }
    let partitions: std::collections::BTreeSet<i32> = kafka
        .records(new, "read_committed")
        .iter()
        .map(|record| record.partition)
        .collect();
    assert_eq!(partitions.len(), 3, "as many as the source has now");
}

/// The arguments for a copy of an embedded log.
fn from_directory<'a>(dir: &'a str, kafka: &'a Kafka, topic: &'a str) -> [&'a str; 6] {
    [
        "--dir",
        dir,
        "--to-bootstrap-servers",
        &kafka.bootstrap,
        "--to-topic",
        topic,
    ]
}

#[test]
fn an_embedded_log_is_copied_to_kafka() {
    let kafka = kafka::shared();
    let topic = fresh_topic("copy-embedded");
    let mut node = Highwater::embedded();
    let mut client = node.client();
    write_of_all_kinds(&mut client, 200);
    let before = [0, 3].map(|database| shown(&mut client, database));
    let dir = node.dir().display().to_string();
    let args = from_directory(&dir, kafka, &topic);
    refused(&copy(&args), 1, &["in use", &node.pid().to_string()]);
    assert!(!kafka.topic_exists(&topic));
    assert!(node.terminate().success());
    succeeded(&copy(&args), 201);
    let on_kafka = Highwater::on_kafka(kafka, &topic);
    let mut client = on_kafka.client();
    assert_eq!([0, 3].map(|database| shown(&mut client, database)), before);
    // The node can go on with its own log, too.
    node.restart();
    assert_eq!([0, 3].map(|database| shown(&mut node.client(), database)), before);
}

#[test]
fn collections_are_copied_and_the_new_topic_names_their_types() {
    const FEATURES: &[u8] = b"\0highwater:features";
    let kafka = kafka::shared();
    let (old, new) = (fresh_topic("copy-types"), fresh_topic("copy-types-new"));
    let source = Highwater::on_kafka(kafka, &old);
    let mut client = source.client();
    client.check("HSET h a 1 b 2", ":2");
    client.check("EXPIRE h 100000", ":1");
    client.check("SADD s x", ":1");
    client.check("ZADD z 1.5 m", ":1");
    client.check("SET text v", "+OK");
    succeeded(&copy_topic(kafka, &old, &new, &["--to-partitions", "2"]), 4);
    let records = kafka.records(&new, "read_committed");
    for partition in 0..2 {
        let of_partition: Vec<_> = records.iter().filter(|record| record.partition == partition).collect();
        let place = of_partition
            .iter()
            .position(|record| record.key.as_deref() == Some(FEATURES));
        let before = &of_partition[..place.expect("every partition names them")];
        assert!(
            before.iter().all(|record| record.headers.is_empty()),
            "only strings come before"
        );
    }
    let target = Highwater::on_kafka(kafka, &new);
    let mut client = target.client();
    client.check("HGETALL h", "*4\r\n$1\r\na\r\n$1\r\n1\r\n$1\r\nb\r\n$1\r\n2");
    assert!(client.tree("TTL h").integer().is_some_and(|seconds| seconds > 90_000));
    client.check("SMEMBERS s", "*1\r\n$1\r\nx");
    client.check("ZSCORE z m", "$3\r\n1.5");
    client.check("GET text", "$1\r\nv");
    client.check("HSET h c 3", ":1");
}

#[test]
fn a_copy_that_cannot_be_right_is_refused() {
    let kafka = kafka::shared();
    let (missing, topic) = (fresh_topic("copy-missing"), kafka.compacted_topic("copy-itself", 1));
    let refusal = copy_topic(kafka, &missing, &fresh_topic("copy-never"), &[]);
    refused(&refusal, 1, &["there is no topic", &missing]);
    assert!(!kafka.topic_exists(&missing));
    refused(
        &copy_topic(kafka, &topic, &topic, &[]),
        1,
        &["into itself", "--to-topic"],
    );
    refused(&copy_topic(kafka, &topic, "", &[]), 2, &["--to-topic"]);
    let here = ["--dir", "/nonexistent/data", "--to-topic", "x"];
    let servers = ["--to-bootstrap-servers", &kafka.bootstrap];
    refused(
        &copy(&[&here[..], &servers].concat()),
        1,
        &["/nonexistent/data", "no embedded log"],
    );
    assert!(!Path::new("/nonexistent").exists());
    let plain = fresh_topic("copy-plain");
    kafka.create_topic(&plain, 1, &[("cleanup.policy", "delete")]);
    refused(&copy_topic(kafka, &topic, &plain, &[]), 1, &["cleanup.policy=compact"]);
    // What a newer version has written would be missing.
    let (newer, never) = (kafka.compacted_topic("copy-newer", 1), fresh_topic("copy-never"));
    let hostile = Hostile::new(kafka, &newer);
    let features = &[("redis-control", &b"features"[..])];
    hostile.send(0, b"\0highwater:features", Some(b"hash teleport"), features);
    hostile.send(0, b"k", Some(b"v"), &[]);
    hostile.flush();
    refused(
        &copy_topic(kafka, &newer, &never, &[]),
        1,
        &[&newer, "does not know: teleport; copy it with"],
    );
    hostile.send(0, b"\0highwater:features", Some(b"hash"), features);
    hostile.flush();
    succeeded(&copy_topic(kafka, &newer, &never, &[]), 1);
}

#[test]
fn what_cannot_be_read_is_told_and_what_does_not_fit_is_refused() {
    let kafka = kafka::shared();
    let (old, new) = (kafka.compacted_topic("copy-odd", 1), fresh_topic("copy-odd-new"));
    let producer: BaseProducer = kafka.client_config().create().expect("create a producer");
    let send = |key: &str, value: &[u8], kind: &str| {
        let headers = OwnedHeaders::new().insert(Header {
            key: "redis-type",
            value: Some(kind),
        });
        let record = BaseRecord::to(&old).key(key).payload(value).headers(headers);
        producer.send(record).map_err(|(error, _)| error).expect("hand over");
        producer.flush(SOON).expect("acknowledged");
    };
    send("hash", b"x", "hash");
    send("string", b"x", "string");
    let outcome = copy_topic(kafka, &old, &new, &[]);
    succeeded(&outcome, 1);
    let text = outcome.text();
    assert!(
        text.contains("\"hash\"") && text.contains("1 keys cannot be read"),
        "{text}"
    );

    let small = fresh_topic("copy-small");
    kafka.create_topic(
        &small,
        1,
        &[("cleanup.policy", "compact"), ("max.message.bytes", "10000")],
    );
    send("large", &[b'x'; 20_000], "string");
    let outcome = copy_topic(kafka, &old, &small, &[]);
    refused(&outcome, 1, &["max.message.bytes", "\"large\"", "nothing was copied"]);
    assert!(kafka.records(&small, "read_committed").is_empty());
}

#[test]
fn a_broker_that_is_away_for_a_while_costs_a_copy_nothing() {
    const KEYS: usize = 200_000;
    let kafka = Kafka::start();
    let topic = fresh_topic("copy-away");
    let mut node = Highwater::builder().args(&["--fsync", "no"]).start();
    let mut client = node.client();
    for start in (0..KEYS).step_by(1000) {
        let lines: Vec<String> = (start..start + 1000).map(|n| format!("SET k{n} value{n}")).collect();
        let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
        assert!(client.pipeline(&lines).iter().all(|reply| reply == b"+OK\r\n"));
    }
    let dir = node.dir().display().to_string();
    assert!(node.terminate().success());
    let args = from_directory(&dir, &kafka, &topic);
    let outcome = std::thread::scope(|scope| {
        let copying = scope.spawn(|| copy(&args));
        let consumer: BaseConsumer = kafka.client_config().create().expect("create a consumer");
        wait_for("the first records", SOON, || {
            let marks = consumer.fetch_watermarks(&topic, 0, Duration::from_secs(1));
            marks.is_ok_and(|(_, end)| end > 0).then_some(())
        });
        assert!(!copying.is_finished(), "the broker was not needed any more");
        kafka.restart();
        copying.join().expect("does not panic")
    });
    succeeded(&outcome, KEYS);
    let node = Highwater::on_kafka(&kafka, &topic);
    let mut client = node.client();
    client.check("DBSIZE", &format!(":{KEYS}"));
    client.check("GET k199999", "$11\r\nvalue199999");
}
