//! Batches of other producers that are far larger once they are unpacked: everybody who reads the topic reads them.

use std::process::Command;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};

use crate::support::client::Client;
use crate::support::kafka::{self, Kafka, fresh_topic};
use crate::support::server::{Highwater, binary};
use crate::support::{eventually, process};

const SOON: Duration = Duration::from_secs(60);
const RECORDS: usize = 6_000;

/// Sends all records as one batch, compressed with zstd.
fn send_one_batch(kafka: &Kafka, topic: &str, records: &[(String, Vec<u8>)]) {
    let mut config = kafka.client_config();
    config
        .set("compression.type", "zstd")
        .set("message.max.bytes", "1000000000")
        .set("batch.size", "1000000000")
        .set("batch.num.messages", "1000000")
        .set("queue.buffering.max.kbytes", "2000000")
        // Nothing goes out before the flush below, or soon after it: now and then a flush does not
        // end the waiting.
        .set("linger.ms", "10000");
    let producer: BaseProducer = config.create().expect("create a producer");
    for (key, value) in records {
        let record = BaseRecord::to(topic).partition(0).key(key).payload(value);
        producer
            .send(record)
            .map_err(|(error, _)| error)
            .expect("hand over a record");
    }
    producer.flush(SOON).expect("all records are acknowledged");
}

/// JSON of this many bytes, of which a tenth is random: 60 MB become 5 to 6 MB.
fn json(random: &mut StdRng, bytes: usize) -> Vec<u8> {
    let mut text = Vec::from(b"{\"trace\":\"");
    while text.len() < bytes / 5 {
        text.push(b"0123456789abcdef"[random.random_range(0..16)]);
    }
    text.extend_from_slice(b"\",\"padding\":\"");
    text.resize(bytes - 2, b' ');
    text.extend_from_slice(b"\"}");
    text
}

fn large_batch() -> Vec<(String, Vec<u8>)> {
    let mut random = StdRng::seed_from_u64(1);
    let record = |n| (format!("k{n}"), json(&mut random, 10_000));
    (0..RECORDS).map(record).collect()
}

fn is_shown(client: &mut Client, key: &str, bytes: usize) -> bool {
    client.line(&format!("STRLEN {key}")) == format!(":{bytes}\r\n").into_bytes()
}

#[test]
fn batches_that_are_large_once_unpacked_are_read_by_every_consumer_of_the_log() {
    let kafka = kafka::shared();
    let topic = fresh_topic("zstd");
    let node = Highwater::on_kafka(kafka, &topic);
    let mut client = node.client();
    client.set_deadline(SOON);
    // The transaction lane reads the log's tail by itself from here on.
    client.check("INCR counter", ":1");
    let batch = large_batch();
    send_one_batch(kafka, &topic, &batch);
    let value = json(&mut StdRng::seed_from_u64(2), 64_000_000);
    send_one_batch(kafka, &topic, &[("large".to_owned(), value)]);
    eventually("what came last is shown", SOON, || {
        is_shown(&mut client, "large", 64_000_000)
    });
    let (key, value) = &batch[RECORDS - 1];
    let expected = [format!("${}\r\n", value.len()).as_bytes(), value, b"\r\n"].concat();
    assert!(
        client.send(&[b"GET", key.as_bytes()]) == expected,
        "{key} is another one"
    );
    client.check("INCR counter", ":2");
    let fresh = Highwater::on_kafka(kafka, &topic);
    let mut after = fresh.client();
    after.set_deadline(SOON);
    after.check("DBSIZE", &format!(":{}", RECORDS + 2));
    assert!(is_shown(&mut after, "large", 64_000_000));
    for node in [&node, &fresh] {
        println!("memory at most: {} MiB", node.peak_memory() >> 20);
    }
    // The new topic would not take it; the record is still there, and read.
    after.check("DEL large", ":1");
    let mut command = Command::new(binary());
    let to = fresh_topic("zstd-copy");
    command.args(["copy", "--bootstrap-servers", &kafka.bootstrap, "--topic", &topic]);
    command.args(["--to-topic", &to]);
    let outcome = process::try_run(command, b"", SOON).expect("highwater can be started");
    let copied = format!("copied {} keys", RECORDS + 1);
    assert!(outcome.text().contains(&copied), "{}", outcome.text());
}

/// 300 MB from a few hundred kilobytes: more than any sensible guess by the topic's limit.
#[test]
fn a_batch_beyond_the_limit_by_the_topics_settings_is_read_with_the_largest_one() {
    let kafka = kafka::shared();
    let topic = fresh_topic("zstd-huge");
    let node = Highwater::on_kafka(kafka, &topic);
    let mut client = node.client();
    client.set_deadline(SOON);
    client.check("INCR counter", ":1");
    let value = vec![b' '; 1_000_000];
    let batch: Vec<_> = (0..300).map(|n| (format!("k{}", n % 7), value.clone())).collect();
    send_one_batch(kafka, &topic, &batch);
    eventually("it is shown", SOON, || is_shown(&mut client, "k6", 1_000_000));
    client.check("INCR counter", ":2");
    client.check("DBSIZE", ":8");
    assert!(node.log().contains("reading it again with"), "{}", node.log());
    println!("memory at most: {} MiB", node.peak_memory() >> 20);
}

#[test]
fn a_node_whose_limit_is_too_small_ends_with_the_batch_and_the_setting_and_recovers_with_a_larger_one() {
    let kafka = kafka::shared();
    let topic = fresh_topic("zstd-limit");
    let mut node = Highwater::builder()
        .kafka(kafka, &topic)
        .args(&["-X", "receive.message.max.bytes=40000000"])
        .allow("the applier stopped")
        .allow("cannot follow the log")
        .start();
    node.client().check("SET before here", "+OK");
    send_one_batch(kafka, &topic, &large_batch());
    let status = node.wait_until_exit(SOON);
    assert!(!status.success(), "{status}");
    let log = node.log();
    let told = log.lines().find(|line| line.starts_with("highwater: cannot"));
    let told = told.unwrap_or_else(|| panic!("no line says why: {log}"));
    let place = format!("topic {topic} partition 0 offset 1");
    for word in [place.as_str(), "codec zstd", "receive.message.max.bytes=40000000"] {
        assert!(told.contains(word), "{word:?} is missing: {told}");
    }
    let mut node = Highwater::builder()
        .kafka(kafka, &topic)
        .dir(node.dir())
        .args(&["-X", "receive.message.max.bytes=200000000"])
        .start();
    node.wait_until_ready();
    let mut client = node.client();
    client.set_deadline(SOON);
    client.check("GET before", "$4\r\nhere");
    client.check("DBSIZE", &format!(":{}", RECORDS + 1));
}
