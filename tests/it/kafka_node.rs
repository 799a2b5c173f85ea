//! A node on real Apache Kafka, as its users and the topic's other users see it.

use std::time::{Duration, Instant};

use crate::support::eventually;
use crate::support::kafka::{self, Kafka, fresh_topic};
use crate::support::server::Highwater;

const SOON: Duration = Duration::from_secs(20);

fn kcat_writes(kafka: &Kafka, topic: &str, line: &str) {
    kafka.kcat(
        &["-P", "-t", topic, "-K:", "-Z", "-X", "partitioner=murmur2_random"],
        line.as_bytes(),
    );
}

#[test]
fn it_creates_a_compacted_topic_and_shares_it_with_kcat() {
    let kafka = kafka::shared();
    let topic = fresh_topic("shared");
    let node = Highwater::on_kafka(kafka, &topic);
    assert_eq!(kafka.topic_config(&topic, "cleanup.policy").as_deref(), Some("compact"));
    assert_eq!(
        kafka.topic_config(&topic, "max.message.bytes").as_deref(),
        Some("16777216")
    );

    let mut client = node.client();
    kcat_writes(kafka, &topic, "greeting:hello\n");
    eventually("kcat's record is read", SOON, || {
        client.line("GET greeting") == b"$5\r\nhello\r\n"
    });

    client.check("SET answer 42", "+OK");
    client.check("SET brief x PX 60000", "+OK");
    client.check("DEL greeting", ":1");
    let records = kafka.records(&topic, "read_committed");
    let of = |key: &str| {
        let mut found = records.iter().filter(|r| r.key.as_deref() == Some(key.as_bytes()));
        found
            .next_back()
            .unwrap_or_else(|| panic!("{key} is not in the topic"))
            .clone()
    };
    assert_eq!(of("answer").value.as_deref(), Some(&b"42"[..]));
    assert!(of("answer").headers.is_empty(), "a plain value is a plain record");
    assert_eq!(of("greeting").value, None, "DEL is a tombstone");
    let brief = of("brief");
    let (name, at) = &brief.headers[0];
    assert_eq!(name, "redis-expire-at");
    let at: u64 = String::from_utf8_lossy(at).parse().expect("milliseconds");
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .expect("a clock")
        .as_millis() as u64;
    assert!(
        (now + 30_000..now + 61_000).contains(&at),
        "absolute expiry {at}, now {now}"
    );

    // A plain record takes the expiry away with the value.
    kcat_writes(kafka, &topic, "brief:plain\n");
    eventually("kcat's value is read", SOON, || {
        client.line("GET brief") == b"$5\r\nplain\r\n"
    });
    client.check("PTTL brief", ":-1");

    // A tombstone of kcat's: -Z makes an empty value null.
    kcat_writes(kafka, &topic, "answer:\n");
    eventually("kcat's tombstone is read", SOON, || {
        client.line("GET answer") == b"$-1\r\n"
    });
}

#[test]
fn every_command_of_a_pipeline_has_its_reply() {
    let kafka = kafka::shared();
    let node = Highwater::on_kafka(kafka, &fresh_topic("replies"));
    let mut client = node.client();
    for _ in 0..20 {
        // Replies that are ready wait behind those that are not, also while some are computed again.
        let lines = [
            "SET a 1", "GET x", "INCR a", "SET a 5", "DEL x", "INCR a", "GET a", "PING",
        ];
        let replies = client.pipeline(&lines).concat();
        let expected = "+OK\r\n$-1\r\n:2\r\n+OK\r\n:0\r\n:6\r\n$1\r\n6\r\n+PONG\r\n";
        assert_eq!(String::from_utf8_lossy(&replies), expected);
    }
}

#[test]
fn a_second_node_shows_the_same_within_moments() {
    let kafka = kafka::shared();
    let topic = fresh_topic("two-nodes");
    let one = Highwater::on_kafka(kafka, &topic);
    let two = Highwater::on_kafka(kafka, &topic);
    let (mut a, mut b) = (one.client(), two.client());
    let mut slowest = Duration::ZERO;
    for n in 0..200 {
        a.check(&format!("SET k{n} {n}"), "+OK");
        let acknowledged = Instant::now();
        let expected = format!("${}\r\n{n}\r\n", n.to_string().len()).into_bytes();
        eventually("the other node has it", SOON, || {
            b.line(&format!("GET k{n}")) == expected
        });
        slowest = slowest.max(acknowledged.elapsed());
    }
    println!("slowest of 200 writes to be seen on the other node: {slowest:?}");
    b.check("DEL k7", ":1");
    eventually("the delete is seen", SOON, || a.line("EXISTS k7") == b":0\r\n");
    // Several keys of one command appear at once on the other node.
    for n in 0..100 {
        a.check(&format!("MSET left {n} right {n}"), "+OK");
        let seen = b.tree("MGET left right");
        let items = seen.items();
        assert_eq!(items[0], items[1], "half a MSET was seen");
    }
    // Another database is another topic, made at its first write and noticed by the other node.
    a.check("SELECT 3", "+OK");
    a.check("SET elsewhere 1", "+OK");
    assert!(kafka.topic_exists(&format!("{topic}.db3")));
    b.check("SELECT 3", "+OK");
    eventually("the other node follows the new topic", SOON, || {
        b.line("GET elsewhere") == b"$1\r\n1\r\n"
    });
}

#[test]
fn after_kill_9_everything_acknowledged_is_there_without_rereading() {
    let kafka = kafka::shared();
    let topic = fresh_topic("kill");
    let mut node = Highwater::on_kafka(kafka, &topic);
    let mut client = node.client();
    for n in 0..2_000 {
        client.check(&format!("SET k{n} v{n}"), "+OK");
    }
    // A checkpoint is written within seconds of the last write.
    eventually("a checkpoint", SOON, || {
        std::thread::sleep(Duration::from_millis(200));
        client
            .info("last_checkpoint_records")
            .is_some_and(|n| n.parse::<u64>().is_ok_and(|n| n >= 2_000))
    });
    client.check("SET late 1", "+OK");
    node.kill9();
    node.restart();
    let mut client = node.client();
    for n in (0..2_000).step_by(37) {
        client.check(&format!("GET k{n}"), &format!("${}\r\nv{n}", 1 + n.to_string().len()));
    }
    client.check("GET late", "$1\r\n1");
    client.check("DBSIZE", ":2001");
    let reread: u64 = client
        .info("records_applied")
        .expect("INFO has it")
        .parse()
        .expect("a number");
    assert!(reread < 1_000, "it read {reread} records again");
}

#[test]
fn a_node_whose_directory_is_gone_rebuilds_and_says_so() {
    let kafka = kafka::shared();
    let topic = fresh_topic("rebuild");
    let mut node = Highwater::on_kafka(kafka, &topic);
    let mut client = node.client();
    for n in 0..500 {
        client.check(&format!("SET k{n} v{n}"), "+OK");
    }
    client.check("DEL k0", ":1");
    assert!(node.terminate().success());
    let entries = std::fs::read_dir(node.dir()).expect("the data directory");
    for entry in entries.flatten() {
        let path = entry.path();
        let removed = if path.is_dir() {
            std::fs::remove_dir_all(&path)
        } else {
            std::fs::remove_file(&path)
        };
        removed.unwrap_or_else(|e| panic!("remove {}: {e}", path.display()));
    }
    node.restart();
    let mut client = node.client();
    client.check("DBSIZE", ":499");
    client.check("GET k0", "$-1");
    client.check("GET k499", "$4\r\nv499");
    assert!(node.log().contains("caught up with the log"), "{}", node.log());
}

#[test]
fn a_topic_that_is_not_compacted_is_refused_with_the_remedy() {
    let kafka = kafka::shared();
    let topic = fresh_topic("plain");
    kafka.create_topic(&topic, 1, &[("cleanup.policy", "delete")]);
    let (status, output) = Highwater::builder().kafka(kafka, &topic).refuse(SOON);
    assert!(!status.success());
    assert!(output.contains("cleanup.policy=compact"), "{output}");
}

#[test]
fn a_frozen_broker_makes_writes_fail_in_time_and_reads_go_on() {
    let kafka = Kafka::start();
    let topic = fresh_topic("frozen");
    let node = Highwater::builder()
        .kafka(&kafka, &topic)
        .args(&["--write-timeout", "2s"])
        // The connection's loss is told.
        .allow("WARN")
        .allow("ERROR")
        .start();
    let mut client = node.client();
    client.set_deadline(Duration::from_secs(30));
    client.check_soon("SET before 1", "+OK");
    kafka.freeze();
    let asked = Instant::now();
    let reply = String::from_utf8_lossy(&client.line("SET during 1")).into_owned();
    assert!(
        reply.starts_with("-UNCERTAIN ") || reply.starts_with("-NOTWRITTEN "),
        "{reply}"
    );
    assert!(
        asked.elapsed() < Duration::from_secs(8),
        "the error took {:?}",
        asked.elapsed()
    );
    client.check("GET before", "$1\r\n1");
    kafka.thaw();
    eventually("writes work again", SOON, || client.line("SET after 1") == b"+OK\r\n");
    client.check("GET after", "$1\r\n1");
}

#[test]
fn a_topic_made_anew_under_its_name_is_read_anew() {
    let kafka = kafka::shared();
    let topic = kafka.compacted_topic("anew", 1);
    let node = Highwater::builder().kafka(kafka, &topic).allow("WARN").start();
    let mut client = node.client();
    client.check("SET old 1", "+OK");
    client.check("FLUSHDB", "+OK");
    client.check("SET old 2", "+OK");
    kafka.delete_topic(&topic);
    kafka.create_topic(&topic, 1, &[("cleanup.policy", "compact")]);
    kcat_writes(kafka, &topic, "new:1\n");
    eventually("the new topic is served", SOON, || {
        client.line("GET new") == b"$1\r\n1\r\n"
    });
    client.check("GET old", "$-1");
    client.check("DBSIZE", ":1");
    client.check("SET newer 1", "+OK");
    client.check("DBSIZE", ":2");
}

#[test]
fn a_database_can_be_any_topic_read_only() {
    let kafka = kafka::shared();
    let (topic, prices) = (fresh_topic("mapping"), fresh_topic("prices"));
    kafka.create_topic(&prices, 3, &[("cleanup.policy", "delete")]);
    kcat_writes(kafka, &prices, "apple:3\npear:5\nplum:2\n");
    kafka.kcat(&["-P", "-t", &prices], b"a value without a key\n");
    let node = Highwater::builder()
        .kafka(kafka, &topic)
        .args(&["--database", &format!("3={prices},readonly")])
        .allow("keys vanish from it without a delete")
        .start();
    let mut client = node.client();
    client.check("SELECT 3", "+OK");
    client.check("MGET apple pear plum", "*3\r\n$1\r\n3\r\n$1\r\n5\r\n$1\r\n2");
    assert_eq!(client.info("records_skipped").as_deref(), Some("1"));
    let refused = String::from_utf8_lossy(&client.line("SET apple 4")).into_owned();
    assert!(
        refused.starts_with("-READONLY ") && refused.contains(&prices),
        "{refused}"
    );
    client.check("GET apple", "$1\r\n3");
}

#[test]
fn a_client_makes_no_topics_where_that_is_not_allowed() {
    let kafka = kafka::shared();
    let topic = fresh_topic("given");
    let node = Highwater::builder()
        .kafka(kafka, &topic)
        .args(&["--create-databases", "no"])
        .start();
    let mut client = node.client();
    client.check("SET key 0", "+OK");
    client.check("SELECT 1", "+OK");
    for write in ["SET key 1", "INCR key", "MSET a 1 b 2"] {
        let refused = String::from_utf8_lossy(&client.line(write)).into_owned();
        let reason = "-ERR database 1 has no topic, and create-databases is no";
        assert!(refused.starts_with(reason), "{write}: {refused}");
    }
    client.check("GET key", "$-1");
    // Its own topic, made by whoever may.
    kafka.create_topic(&format!("{topic}.db1"), 1, &[("cleanup.policy", "compact")]);
    eventually("the new topic is noticed", SOON, || {
        client.line("SET key 1") == b"+OK\r\n"
    });
    client.check("SELECT 2", "+OK");
    assert!(client.line("SET key 2").starts_with(b"-ERR database 2 has no topic"));
    client.check("CONFIG SET create-databases yes", "+OK");
    client.check("SET key 2", "+OK");
}

#[test]
fn a_value_that_the_topic_cannot_take_is_refused_before_it_is_sent() {
    let kafka = kafka::shared();
    let topic = fresh_topic("large");
    let node = Highwater::on_kafka(kafka, &topic);
    let mut client = node.client();
    for size in [1_000_000, 1_048_576, 16_000_000] {
        let value = vec![b'x'; size];
        assert_eq!(client.send(&[b"SET", b"big", &value]), b"+OK\r\n", "{size} bytes");
        client.check("STRLEN big", &format!(":{size}"));
    }
    let refused = client.send(&[b"SET", b"big", &vec![b'x'; 17 << 20]]);
    assert!(refused.starts_with(b"-ERR ") && String::from_utf8_lossy(&refused).contains("max.message.bytes"));
    client.check("STRLEN big", ":16000000");
}
