//! What the other tests stand on, tested against the real thing: a broken helper must not show
//! up as a broken server.

use std::time::{Duration, Instant};

use crate::support::client::Client;
use crate::support::server::Highwater;
use crate::support::{kafka, parts, process};

/// What `tests/run` calls first, so that the network is needed only here.
#[test]
fn prefetch_parts() {
    parts::prefetch();
    assert!(parts::redis_source().join("tests/test_helper.tcl").is_file());
    for mut program in [parts::redis_server(), parts::redis_cli(), parts::redis_benchmark()] {
        program.arg("--version");
        let output = process::run("the version", program, b"", Duration::from_secs(20));
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(text.contains("7.0."), "the reference is Redis 7.0, this is: {text}");
    }
}

#[test]
fn kafka_takes_and_gives_records_with_topics_of_any_settings() {
    let kafka = kafka::shared();
    let topic = kafka.quickly_compacted_topic("self-check", 2);
    assert_eq!(
        kafka.topic_config(&topic, "delete.retention.ms").as_deref(),
        Some("1000")
    );
    kafka.kcat(&["-P", "-t", &topic, "-p", "1", "-K:", "-Z", "-H", "h=1"], b"a:1\na:\n");

    let seen = kafka.records(&topic, "read_committed");
    assert_eq!(seen.len(), 2, "{seen:?}");
    assert_eq!(seen[0].value.as_deref(), Some(&b"1"[..]));
    assert_eq!(seen[1].value, None);
    assert_eq!(seen[1].key.as_deref(), Some(&b"a"[..]));
    assert_eq!(seen[1].partition, 1);
    assert_eq!(seen[1].headers, [("h".to_owned(), b"1".to_vec())]);

    kafka.add_partitions(&topic, 3);
    kafka.delete_topic(&topic);
    assert!(!kafka.topic_exists(&topic));
}

#[test]
fn a_private_kafka_can_be_frozen_killed_and_restarted_with_its_data() {
    let kafka = kafka::Kafka::start();
    let topic = kafka.compacted_topic("self-check", 1);
    kafka.kcat(&["-P", "-t", &topic, "-K:"], b"a:1\n");

    kafka.freeze();
    let client: rdkafka::consumer::BaseConsumer = kafka.client_config().create().expect("create a client");
    let asked = rdkafka::consumer::Consumer::fetch_metadata(&client, None, Duration::from_millis(300));
    assert!(asked.is_err(), "a frozen broker answered");
    kafka.thaw();

    let start = Instant::now();
    kafka.restart();
    eprintln!("restarted in {:?}", start.elapsed());
    kafka.kcat(&["-P", "-t", &topic, "-K:"], b"b:2\n");
    eprintln!("wrote after {:?}", start.elapsed());
    assert_eq!(kafka.records(&topic, "read_uncommitted").len(), 2);
}

#[test]
fn a_highwater_can_be_killed_stopped_and_restarted() {
    let mut highwater = Highwater::embedded();
    highwater.client().check("SET k v", "+OK");
    highwater.kill9();
    assert!(Client::try_connect(highwater.port).is_err(), "it still listens");

    highwater.restart();
    highwater.client().check("GET k", "$1\r\nv");
    assert_eq!(highwater.terminate().code(), Some(0), "{}", highwater.log());

    highwater.restart();
    highwater.client().check("GET k", "$1\r\nv");
}
