//! What happens to a topic and its brokers beneath a node: records lost, removed or replaced, partitions added, transactional ids taken.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rdkafka::producer::{BaseProducer, Producer};

use crate::support::client::Client;
use crate::support::kafka::{self, Kafka, fresh_topic};
use crate::support::server::Highwater;
use crate::support::{Stopping, wait_for};

const SOON: Duration = Duration::from_secs(20);

fn kcat_writes(kafka: &Kafka, topic: &str, lines: &str) {
    let args = ["-P", "-t", topic, "-K:", "-Z", "-X", "partitioner=murmur2_random"];
    kafka.kcat(&args, lines.as_bytes());
}

fn reply(client: &mut Client, line: &str) -> String {
    String::from_utf8_lossy(&client.line(line)).trim_end().to_owned()
}

#[track_caller]
fn check_soon(client: &mut Client, line: &str, expected: &str) {
    let mut last = String::new();
    let end = Instant::now() + SOON;
    while Instant::now() < end {
        last = reply(client, line);
        if last == expected {
            return;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    panic!("{line} still answers {last:?}, not {expected:?}");
}

/// Waits until the store has all that was applied, and stops the node.
fn stop(node: &mut Highwater) {
    assert!(node.terminate().success());
}

/// From the first moment on that it answers data commands, it must not show a key that the log does not have.
fn restart_and_check_gone(node: &mut Highwater, key: &str) {
    node.restart_without_waiting();
    let end = Instant::now() + SOON;
    loop {
        assert!(Instant::now() < end, "the node does not serve: {}", node.log());
        if let Ok(mut client) = Client::try_connect(node.port) {
            let shown = reply(&mut client, &format!("GET {key}"));
            if shown == "$-1" {
                break;
            }
            assert!(shown.starts_with("-LOADING"), "{key} is shown: {shown}");
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    node.wait_until_ready();
}

#[test]
fn a_log_that_lost_its_end_is_read_anew_also_when_it_has_grown_again() {
    let kafka = Kafka::start();
    let topic = kafka.compacted_topic("cut", 1);
    let mut node = Highwater::builder().kafka(&kafka, &topic).allow("WARN").start();
    let mut client = node.client();
    for n in 0..20 {
        client.check(&format!("SET k{n} v"), "+OK");
    }
    stop(&mut node);
    kafka.kill();
    kafka.lose_records(&topic, 10);
    kafka.restart();
    restart_and_check_gone(&mut node, "k15");
    let mut client = node.client();
    client.check("DBSIZE", ":10");
    client.check("GET k9", "$1\r\nv");
    assert!(node.log().contains("rebuilding the local store"), "{}", node.log());
    // The same with a log that is longer than before when the node comes back.
    for n in 10..20 {
        client.check(&format!("SET k{n} v"), "+OK");
    }
    stop(&mut node);
    kafka.kill();
    kafka.lose_records(&topic, 10);
    kafka.restart();
    let others: String = (0..15).map(|n| format!("other{n}:v\n")).collect();
    kcat_writes(&kafka, &topic, &others);
    restart_and_check_gone(&mut node, "k15");
    let mut client = node.client();
    client.check("DBSIZE", ":25");
    client.check("GET other0", "$1\r\nv");
    assert_eq!(
        node.log().matches("rebuilding the local store").count(),
        2,
        "{}",
        node.log()
    );
    // Nothing was lost: nothing is read anew.
    client.check("INCR counter", ":1");
    stop(&mut node);
    kafka.restart();
    node.restart();
    node.client().check("DBSIZE", ":26");
    assert_eq!(
        node.log().matches("rebuilding the local store").count(),
        2,
        "{}",
        node.log()
    );
}

#[test]
fn records_that_were_removed_before_the_node_read_them_make_it_read_anew() {
    let kafka = kafka::shared();
    let topic = kafka.compacted_topic("removed", 1);
    let mut node = Highwater::builder()
        .kafka(kafka, &topic)
        .allow("WARN")
        .allow("cleanup.policy")
        .start();
    let mut client = node.client();
    client.check("MSET old 1 older 2", "+OK");
    // While it is down.
    stop(&mut node);
    kcat_writes(kafka, &topic, "missed:1\nkept:1\n");
    let end = kafka
        .records(&topic, "read_uncommitted")
        .last()
        .expect("records")
        .offset as u64;
    kafka.delete_records(&topic, end);
    restart_and_check_gone(&mut node, "old");
    let mut client = node.client();
    client.check("DBSIZE", ":1");
    client.check("GET kept", "$1\r\n1");
    assert_eq!(
        node.log().matches("rebuilding the local store").count(),
        1,
        "{}",
        node.log()
    );
    // While it runs, but does not get to it.
    node.freeze();
    // The fetch that it has under way ends after 100 ms (fetch.wait.max.ms): what comes later is not in it.
    std::thread::sleep(Duration::from_secs(1));
    kcat_writes(kafka, &topic, "missed:2\nnew:1\n");
    kafka.delete_records(&topic, end + 2);
    node.thaw();
    check_soon(&mut client, "GET new", "$1\r\n1");
    check_soon(&mut client, "GET kept", "$-1");
    client.check("SET kept 2", "+OK");
    client.check("DBSIZE", ":2");
    assert_eq!(
        node.log().matches("rebuilding the local store").count(),
        2,
        "{}",
        node.log()
    );
}

#[test]
fn records_that_are_deleted_beneath_nodes_are_gone_from_all_of_them() {
    let kafka = kafka::shared();
    let topic = kafka.compacted_topic("deleted", 1);
    let node = || {
        Highwater::builder()
            .kafka(kafka, &topic)
            .allow("WARN")
            .allow("cleanup.policy")
    };
    let (running, mut stopped) = (node().start(), node().start());
    let mut client = running.client();
    for n in 0..20 {
        client.check(&format!("SET k{n} v"), "+OK");
    }
    check_soon(&mut stopped.client(), "GET k19", "$1\r\nv");
    stop(&mut stopped);
    // Below what both have read, so that neither position is lost.
    kafka.delete_records(&topic, 10);
    check_soon(&mut client, "GET k9", "$-1");
    check_soon(&mut client, "GET k10", "$1\r\nv");
    restart_and_check_gone(&mut stopped, "k9");
    let mut other = stopped.client();
    let digest = reply(&mut client, "HIGHWATER DIGEST");
    assert_eq!(reply(&mut other, "HIGHWATER DIGEST"), digest);
    client.check("DBSIZE", ":10");
    other.check("DBSIZE", ":10");
    for node in [&running, &stopped] {
        assert_eq!(
            node.log().matches("rebuilding the local store").count(),
            1,
            "{}",
            node.log()
        );
        check_soon(&mut node.client(), "SET k9 new", "+OK");
    }
    // Known by now: nothing is read anew.
    stop(&mut stopped);
    stopped.restart();
    assert_eq!(
        stopped.log().matches("rebuilding the local store").count(),
        1,
        "{}",
        stopped.log()
    );
}

#[test]
fn a_topic_that_kafka_is_going_to_delete_from_takes_no_writes_until_it_is_compacted_again() {
    let kafka = kafka::shared();
    let topic = kafka.compacted_topic("policy", 1);
    let node = Highwater::builder()
        .kafka(kafka, &topic)
        .allow("cleanup.policy=")
        // A busy machine answers late.
        .allow("lost the connection to Kafka")
        .start();
    let mut client = node.client();
    client.check("SET k v", "+OK");
    for policy in ["delete", "compact,delete"] {
        kafka.set_topic_config(&topic, &[("cleanup.policy", policy)]);
        let refused = |client: &mut Client, line: &str| {
            let told = reply(client, line);
            told.starts_with("-NOTWRITTEN") && told.contains(&format!("cleanup.policy={policy}"))
        };
        wait_for("writes to be refused", SOON, || {
            refused(&mut client, "SET k v").then_some(())
        });
        assert!(refused(&mut client, "INCR counter"));
        client.check("GET k", "$1\r\nv");
        let told = client.info("kafka_db0_refuses_writes").unwrap_or_default();
        assert!(told.contains(policy), "{told}");
        kafka.set_topic_config(&topic, &[("cleanup.policy", "compact")]);
        check_soon(&mut client, "SET k v", "+OK");
        assert_eq!(client.info("kafka_db0_refuses_writes"), None);
    }
    assert_eq!(node.log().matches("writes are refused").count(), 2, "{}", node.log());
}

#[test]
fn a_topic_made_anew_while_the_node_was_down_is_read_anew() {
    let kafka = kafka::shared();
    let topic = kafka.compacted_topic("replaced", 1);
    let mut node = Highwater::builder()
        .kafka(kafka, &topic)
        .allow("it was filled from")
        .start();
    node.client().check("MSET old 1 other 2", "+OK");
    stop(&mut node);
    kafka.delete_topic(&topic);
    kafka.create_topic(&topic, 1, &[("cleanup.policy", "compact")]);
    // As long as the old one, so that the position would do.
    kcat_writes(kafka, &topic, "new:1\nnew:2\nnew:3\nnew:4\n");
    restart_and_check_gone(&mut node, "old");
    let mut client = node.client();
    client.check("GET new", "$1\r\n4");
    client.check("DBSIZE", ":1");
    client.check("INCR new", ":5");
    assert!(node.log().contains("it was filled from"), "{}", node.log());
}

/// Reads a key again and again until it is stopped, or that was forgotten.
fn always_shown(port: u16, key: &str, stop: &AtomicBool) {
    let mut client = Client::connect(port);
    client.set_deadline(SOON * 6);
    while !stop.load(Ordering::Relaxed) {
        let shown = reply(&mut client, &format!("GET {key}"));
        assert!(shown == "$1\r\nv" || shown.starts_with("-LOADING"), "{key}: {shown}");
    }
}

#[test]
fn a_node_that_stood_still_while_tombstones_vanished_shows_no_deleted_key() {
    let kafka = kafka::shared();
    let topic = kafka.quickly_compacted_topic("stood-still", 1);
    let node = Highwater::builder()
        .kafka(kafka, &topic)
        .allow("rebuilding the local store")
        .start();
    let mut client = node.client();
    client.check("MSET gone v kept v", "+OK");
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| always_shown(node.port, "kept", &stop));
        let stopping = Stopping(&stop);
        node.freeze();
        // The fetch that it has under way ends after 100 ms (fetch.wait.max.ms): what comes later is not in it.
        std::thread::sleep(Duration::from_secs(1));
        kcat_writes(kafka, &topic, "gone:\n");
        let is_there = || {
            let records = kafka.records(&topic, "read_committed");
            records.iter().any(|record| record.key.as_deref() == Some(b"gone"))
        };
        let end = Instant::now() + Duration::from_secs(90);
        while is_there() {
            assert!(Instant::now() < end, "the tombstone does not vanish");
            // Other records must come, since the newest segment is not compacted.
            kcat_writes(kafka, &topic, "filler:v\n");
            std::thread::sleep(Duration::from_millis(500));
        }
        kcat_writes(kafka, &topic, "new:v\n");
        node.thaw();
        check_soon(&mut client, "GET new", "$1\r\nv");
        client.check("GET gone", "$-1");
        drop(stopping);
        reader.join().expect("a reader");
    });
    client.check("DBSIZE", ":3");
    let rebuilds = node.log().matches("rebuilding the local store").count();
    assert_eq!(rebuilds, 1, "{}", node.log());
}

/// What it counted on to know its own records by (their sequence numbers) is gone from the broker, which refuses the next one.
#[test]
fn a_broker_that_lost_what_a_running_node_wrote_gets_a_new_producer() {
    let kafka = Kafka::start();
    let topic = kafka.compacted_topic("cut-while-running", 1);
    let node = Highwater::builder().kafka(&kafka, &topic).allow("WARN").start();
    let mut client = node.client();
    for n in 0..20 {
        client.check(&format!("SET k{n} v"), "+OK");
    }
    kafka.kill();
    kafka.lose_records(&topic, 10);
    kafka.restart();
    let mut not_written = Vec::new();
    let mut next = 0;
    let written = wait_for("a write to be acknowledged", SOON, || {
        next += 1;
        let reply = reply(&mut client, &format!("SET new-{next} v"));
        // While it reads the topic anew, too.
        let is_refused = reply.starts_with("-NOTWRITTEN") || reply.starts_with("-LOADING");
        assert!(
            is_refused || reply == "+OK" || reply.starts_with("-UNCERTAIN"),
            "{reply}"
        );
        if is_refused {
            not_written.push(format!("new-{next}"));
        }
        (reply == "+OK").then(|| format!("new-{next}"))
    });
    assert_ne!(written, "new-1", "the broker took the first one");
    // It is told once the new one has been given what waited.
    let told = "the Kafka producer cannot go on and is replaced";
    wait_for("the replacement to be told", SOON, || {
        let log = node.log();
        (log.contains(told) && log.contains("OutOfOrderSequenceNumber")).then_some(())
    });
    let keys = || -> HashSet<String> {
        let keys = kafka
            .records(&topic, "read_committed")
            .into_iter()
            .flat_map(|record| record.key);
        keys.map(|key| String::from_utf8(key).expect("text")).collect()
    };
    let there = keys();
    assert!(
        there.contains(&written) && not_written.iter().all(|key| !there.contains(key)),
        "{there:?}"
    );
    // What the broker has lost is shown no more, and both lanes write.
    check_soon(&mut client, "GET k15", "$-1");
    client.check("INCR counter", ":1");
    check_soon(&mut client, "DBSIZE", &format!(":{}", keys().len()));
}

#[test]
fn nothing_that_was_computed_on_a_deleted_topic_gets_into_its_successor() {
    let kafka = kafka::shared();
    let topic = kafka.compacted_topic("successor", 1);
    let node = Highwater::builder().kafka(kafka, &topic).allow("WARN").start();
    let mut client = node.client();
    for n in 1..=10 {
        client.check("INCR counter", &format!(":{n}"));
    }
    let replaced = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let replacing = scope.spawn(|| {
            kafka.delete_topic(&topic);
            kafka.create_topic(&topic, 1, &[("cleanup.policy", "compact")]);
            replaced.store(true, Ordering::Relaxed);
        });
        let end = Instant::now() + SOON * 3;
        let (mut last, mut anew) = (String::new(), false);
        while !(anew && last.starts_with(':') && replaced.load(Ordering::Relaxed)) {
            assert!(Instant::now() < end, "the new topic is not served: {last}");
            last = reply(&mut client, "INCR counter");
            anew |= last == ":1";
        }
        replacing.join().expect("the topic is replaced");
    });
    // Whatever was answered on the way: the new topic has what was computed on it, from its first record on.
    let records = kafka.records(&topic, "read_committed");
    let counted: Vec<_> = records.into_iter().flat_map(|record| record.value).collect();
    let expected: Vec<_> = (1..=counted.len()).map(|n| n.to_string().into_bytes()).collect();
    assert_eq!(counted, expected);
}

#[test]
fn partitions_that_are_added_make_a_node_read_only_until_it_is_restarted() {
    let kafka = kafka::shared();
    let topic = kafka.compacted_topic("grown", 1);
    let mut node = Highwater::builder().kafka(kafka, &topic).allow("partition").start();
    let mut client = node.client();
    for n in 0..20 {
        client.check(&format!("SET k{n} {n}"), "+OK");
    }
    kafka.add_partitions(&topic, 3);
    let refused = |client: &mut Client, line: &str, code: &str| {
        let reply = reply(client, line);
        let told = reply.starts_with(code) && reply.contains("3 partitions now, not 1");
        assert!(!reply.starts_with('-') || told, "{line}: {reply}");
        told
    };
    wait_for("writes to be refused", SOON, || {
        refused(&mut client, "SET k0 0", "-NOTWRITTEN").then_some(())
    });
    assert!(refused(&mut client, "INCR k1", "-NOTWRITTEN"));
    client.check("GET k1", "$1\r\n1");
    client.check("HIGHWATER CONSISTENCY LINEARIZABLE", "+OK");
    assert!(refused(&mut client, "GET k1", "-STALE"));
    client.check("HIGHWATER CONSISTENCY MAXLAG 500", "+OK");
    wait_for("reads that may be too old to be refused", SOON, || {
        reply(&mut client, "GET k1").starts_with("-STALE").then_some(())
    });
    assert!(node.log().contains("3 partitions now, not 1"), "{}", node.log());
    assert!(node.terminate().success());
    node.restart();
    let mut client = node.client();
    for n in 0..20 {
        client.check(&format!("INCRBY k{n} 100"), &format!(":{}", n + 100));
    }
    client.check("DBSIZE", ":20");
}

#[test]
fn a_transactional_id_that_somebody_else_takes_costs_no_update() {
    let kafka = kafka::shared();
    let topic = kafka.compacted_topic("fenced", 1);
    let node = Highwater::builder()
        .kafka(kafka, &topic)
        .allow("a transactional producer cannot go on")
        .allow("Failed to add partition")
        .start();
    let mut client = node.client();
    client.check("INCR counter", ":1");
    let id = std::fs::read_to_string(node.dir().join("node")).expect("the node's id");
    let (mut sum, mut refused) = (1, 0);
    for turn in 0..4 {
        let id = format!("highwater-{topic}-{}-{}", id.trim(), turn % 2);
        let thief: BaseProducer = kafka
            .client_config()
            .set("transactional.id", &id)
            .create()
            .expect("create a producer");
        thief.init_transactions(SOON).expect("take the id");
        for _ in 0..20 {
            let told = reply(&mut client, "INCR counter");
            match told.strip_prefix(':') {
                Some(number) => {
                    sum += 1;
                    assert_eq!(number.parse(), Ok(sum), "an update was lost, or made twice");
                }
                None => {
                    assert!(told.starts_with("-NOTWRITTEN "), "{told}");
                    refused += 1;
                }
            }
        }
    }
    println!("{sum} increments, {refused} refused");
    assert!(refused <= 4, "{refused} were refused");
    client.check("GET counter", &format!("${}\r\n{sum}", sum.to_string().len()));
    assert!(
        node.log().contains("a transactional producer cannot go on"),
        "no id was taken: {}",
        node.log()
    );
}

#[test]
fn a_record_that_the_broker_finds_too_large_is_refused_and_holds_up_nothing() {
    let kafka = Kafka::start_with(&["socket.request.max.bytes=2000000"]);
    let topic = fresh_topic("too-large");
    let node = Highwater::builder().kafka(&kafka, &topic).allow("WARN").start();
    let mut client = node.client();
    client.check("SET small 1", "+OK");
    // More than a request may have, which the node cannot know: the broker closes the connection.
    let large = vec![b'x'; 3_000_000];
    let asked = Instant::now();
    let refused = String::from_utf8_lossy(&client.send(&[b"SET", b"large", &large])).into_owned();
    println!("3 MB: after {:?} {refused}", asked.elapsed());
    assert!(
        refused.starts_with("-UNCERTAIN ") || refused.starts_with("-NOTWRITTEN "),
        "{refused}"
    );
    assert!(asked.elapsed() < Duration::from_secs(7), "{:?}", asked.elapsed());
    check_soon(&mut client, "SET small 2", "+OK");
    client.check("GET large", "$-1");
    // Less than the topic took when the node last looked.
    kafka.set_topic_config(
        &topic,
        &[("cleanup.policy", "compact"), ("max.message.bytes", "100000")],
    );
    let asked = Instant::now();
    for command in ["SET", "GETSET"] {
        let refused = client.send(&[command.as_bytes(), b"large", &large[..500_000]]);
        let refused = String::from_utf8_lossy(&refused).into_owned();
        println!("{command} of 0.5 MB: {refused}");
        assert!(
            refused.starts_with("-NOTWRITTEN ") || refused.starts_with("-ERR "),
            "{refused}"
        );
    }
    assert!(asked.elapsed() < Duration::from_secs(2), "{:?}", asked.elapsed());
    client.check("INCR small", ":3");
    client.check("GET large", "$-1");
}
