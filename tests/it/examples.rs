//! The examples of docs/topic-format.md: hashes that they write, and hashes of nodes that they
//! show.

use std::collections::BTreeMap;
use std::process::Command;
use std::time::Duration;

use crate::hostile_producers::Hostile;
use crate::support::client::Client;
use crate::support::kafka::{self, Kafka};
use crate::support::server::Highwater;
use crate::support::{eventually, parts, process};

const SOON: Duration = Duration::from_secs(60);
const RUN: Duration = Duration::from_secs(60);
const HOUR: i64 = 3_600_000;
/// A key belongs to the same partition for a node and for both examples.
const PARTITIONS: i32 = 3;

#[derive(Clone, Copy)]
enum Example {
    Python,
    Java,
}
use Example::{Java, Python};

impl Example {
    fn command(self, kafka: &Kafka, topic: &str, args: &[&str]) -> Command {
        let mut command = match self {
            Python => {
                let mut python = Command::new(parts::example_python());
                python.arg(parts::examples_dir().join("hashes.py"));
                python
            }
            Java => {
                let mut java = Command::new("java");
                java.args(["-XX:TieredStopAtLevel=1", "-cp", &parts::example_classes(), "Hashes"]);
                java
            }
        };
        command.args([&kafka.bootstrap, topic]).args(args);
        command
    }

    fn write(self, kafka: &Kafka, topic: &str, key: &str, seconds: &str) {
        let command = self.command(kafka, topic, &["write", key, seconds]);
        process::run("write a hash", command, b"", RUN);
    }

    /// Checks the fields that it prints.
    fn shows(self, kafka: &Kafka, topic: &str, key: &str, expected: &[&str]) {
        let command = self.command(kafka, topic, &["show", key]);
        let output = process::run("show a hash", command, b"", RUN);
        let printed = String::from_utf8(output.stdout).expect("it prints UTF-8");
        assert_eq!(printed.lines().collect::<Vec<_>>(), expected, "{key}");
    }

    /// Checks that it fails, and what it prints.
    fn refuses(self, kafka: &Kafka, topic: &str, key: &str, expected: &str) {
        let command = self.command(kafka, topic, &["show", key]);
        let outcome = process::try_run(command, b"", RUN).expect("start an example");
        assert_eq!(outcome.status.and_then(|status| status.code()), Some(1), "{key}");
        assert_eq!(String::from_utf8_lossy(&outcome.stderr).trim_end(), expected, "{key}");
    }
}

/// The fields of a hash, bytes that are no text with their escapes.
fn fields(client: &mut Client, key: &str) -> BTreeMap<String, String> {
    let reply = client.tree(&format!("HGETALL {key}"));
    let texts: Vec<String> = reply
        .items()
        .iter()
        .map(|item| item.bytes().expect("a text").escape_ascii().to_string())
        .collect();
    let (pairs, _) = texts.as_chunks::<2>();
    pairs.iter().cloned().map(|[field, value]| (field, value)).collect()
}

fn pairs(of: &[(&str, &str)]) -> BTreeMap<String, String> {
    let owned = |&(field, value): &(&str, &str)| (field.to_owned(), value.to_owned());
    of.iter().map(owned).collect()
}

fn node_shows(client: &mut Client, key: &str, expected: &[(&str, &str)]) {
    let expected = pairs(expected);
    eventually(&format!("{key} is {expected:?}"), SOON, || {
        fields(client, key) == expected
    });
}

#[test]
fn nodes_show_the_hashes_that_the_examples_write() {
    let kafka = kafka::shared();
    let topic = kafka.compacted_topic("examples-write", PARTITIONS);
    Python.write(kafka, &topic, "flushed", "3600");
    let hostile = Hostile::new(kafka, &topic);
    for partition in 0..PARTITIONS {
        let header: &[(&str, &[u8])] = &[("redis-control", b"flush")];
        hostile.send(partition, b"\0highwater:flush", Some(b""), header);
    }
    hostile.flush();
    Python.write(kafka, &topic, "python", "3600");
    Python.write(kafka, &topic, "python-expired", "-1");
    Java.write(kafka, &topic, "java", "3600");
    Java.write(kafka, &topic, "java-expired", "-1");
    // No node follows the topic yet: what was flushed or has expired is still there.
    Python.refuses(kafka, &topic, "flushed", "no such hash");
    Java.refuses(kafka, &topic, "flushed", "no such hash");
    Java.shows(
        kafka,
        &topic,
        "python-expired",
        &["name = Ada", "raw = \u{fffd}", "visits = 5"],
    );
    Python.shows(
        kafka,
        &topic,
        "java",
        &["name = Grace", r"raw = \xff", "token = xyz", "visits = 7"],
    );
    Python.shows(
        kafka,
        &topic,
        "java-expired",
        &["name = Grace", r"raw = \xff", "visits = 7"],
    );

    let node = Highwater::on_kafka(kafka, &topic);
    let mut client = node.client();
    let [python, java] = [("name", "Ada", "5", "abc"), ("name", "Grace", "7", "xyz")]
        .map(|(name, value, visits, token)| [(name, value), ("raw", r"\xff"), ("visits", visits), ("token", token)]);
    node_shows(&mut client, "python", &python);
    node_shows(&mut client, "java", &java);
    node_shows(&mut client, "python-expired", &python[..3]);
    node_shows(&mut client, "java-expired", &java[..3]);
    for key in ["python", "java"] {
        let reply = client.tree(&format!("HPTTL {key} FIELDS 2 name token"));
        let times: Vec<_> = reply.items().iter().map(|item| item.integer()).collect();
        assert_eq!(times[0], Some(-1), "{key}");
        assert!(
            times[1].is_some_and(|time| (1..=HOUR).contains(&time)),
            "{key}: {times:?}"
        );
    }
    client.check("DBSIZE", ":4");
    assert_eq!(client.info("records_misplaced").as_deref(), Some("0"));

    // Also while a node follows the topic. The newest record wins.
    client.check("HSET python visits 6 city London", ":1");
    Python.shows(
        kafka,
        &topic,
        "python",
        &[
            "city = London",
            "name = Ada",
            r"raw = \xff",
            "token = abc",
            "visits = 6",
        ],
    );
    Python.write(kafka, &topic, "python", "3600");
    node_shows(&mut client, "python", &python);
}

#[test]
fn the_examples_show_the_hashes_that_nodes_write() {
    let kafka = kafka::shared();
    let topic = kafka.compacted_topic("examples-show", PARTITIONS);
    let node = Highwater::on_kafka(kafka, &topic);
    let mut client = node.client();
    client.check("HSET h name Ada visits 5 brief x", ":3");
    client.check("HEXPIRE h 3600 FIELDS 1 visits", "*1\r\n:1");
    client.check("SET string v", "+OK");
    client.check("HSET deleted a 1", ":1");
    client.check("DEL deleted", ":1");
    client.check("HSET later a 1", ":1");
    client.check("EXPIRE later 3600", ":1");
    for example in [Python, Java] {
        example.shows(kafka, &topic, "h", &["brief = x", "name = Ada", "visits = 5"]);
        example.refuses(kafka, &topic, "string", "the key holds no hash");
        example.refuses(kafka, &topic, "deleted", "no such hash");
    }
    Python.shows(kafka, &topic, "later", &["a = 1"]);
    client.check("FLUSHALL", "+OK");
    client.check("HSET after a 1", ":1");
    for example in [Python, Java] {
        example.refuses(kafka, &topic, "h", "no such hash");
    }
    Java.shows(kafka, &topic, "after", &["a = 1"]);
}

#[test]
fn the_example_in_python_shows_split_hashes() {
    let kafka = kafka::shared();
    let topic = kafka.compacted_topic("examples-split", PARTITIONS);
    let node = Highwater::builder()
        .kafka(kafka, &topic)
        .args(&["--max-packed-elements", "4"])
        .start();
    let mut client = node.client();
    // The length of the second key has two bytes in the keys of its elements.
    let keys = ["h".to_owned(), "long".repeat(100)];
    for key in &keys {
        client.check(&format!("HSET {key} old 1 a 1 b 1 c 1 d 1"), ":5");
        client.check(&format!("DEL {key}"), ":1");
        client.check(&format!("HSET {key} a 1 b 2 c 3 d 4 e 5 f 6"), ":6");
        client.check(&format!("HDEL {key} b"), ":1");
        client.check(&format!("HSET {key} c \"\\xff\""), ":0");
        client.check(&format!("HEXPIRE {key} 3600 FIELDS 1 d"), "*1\r\n:1");
        client.check(&format!("HPEXPIRE {key} 1 FIELDS 1 e"), "*1\r\n:1");
        eventually("e expires", SOON, || fields(&mut client, key).len() == 4);
        Python.shows(kafka, &topic, key, &["a = 1", r"c = \xff", "d = 4", "f = 6"]);
    }
    Java.refuses(
        kafka,
        &topic,
        "h",
        "the hash is split: its elements are records of their own",
    );
    // A packed hash of another producer replaces it.
    Python.write(kafka, &topic, "h", "3600");
    node_shows(
        &mut client,
        "h",
        &[("name", "Ada"), ("raw", r"\xff"), ("visits", "5"), ("token", "abc")],
    );
    client.check("FLUSHALL", "+OK");
    Python.refuses(kafka, &topic, &keys[1], "no such hash");
}
