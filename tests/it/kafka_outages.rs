//! Kafka is away, at the start of a node or later: the node says so, and why, wherever it is asked.

use std::process::Command;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::support::client::Client;
use crate::support::kafka::{Kafka, fresh_topic};
use crate::support::process::{self, Outcome};
use crate::support::server::{Highwater, binary};
use crate::support::{eventually, temp, wait_for};

const SOON: Duration = Duration::from_secs(30);

fn reply(client: &mut Client, line: &str) -> String {
    String::from_utf8_lossy(&client.line(line)).trim_end().to_owned()
}

/// Waits for a reply that begins like this, and returns it.
#[track_caller]
fn soon(client: &mut Client, line: &str, begin: &str) -> String {
    wait_for(&format!("{line} to answer {begin}"), SOON, || {
        Some(reply(client, line)).filter(|reply| reply.starts_with(begin))
    })
}

#[track_caller]
fn info_soon(client: &mut Client, field: &str, value: &str) {
    wait_for(&format!("INFO to tell {field}:{value}"), SOON, || {
        (client.info(field).as_deref() == Some(value)).then_some(())
    });
}

fn connect(node: &Highwater) -> Client {
    wait_for("the port to be open", SOON, || Client::try_connect(node.port).ok())
}

fn ping(node: &Highwater) -> Outcome {
    let mut command = Command::new(binary());
    command.args(["--ping", "--port", &node.port.to_string()]);
    process::try_run(command, b"", SOON).expect("highwater can be started")
}

#[test]
fn a_start_without_kafka_answers_loading_with_the_cause_until_it_is_there() {
    let kafka = Kafka::start();
    let mut node = Highwater::builder()
        .kafka(&kafka, &fresh_topic("down"))
        .args(&["--startup-timeout", "2m"])
        // The connection's loss is told.
        .allow("WARN")
        .start();
    node.client().check("SET k v", "+OK");
    assert!(node.terminate().success());
    kafka.kill();
    node.restart_without_waiting();
    let mut client = connect(&node);
    // From the first moment, though the cause may be known only a moment later.
    assert!(reply(&mut client, "GET k").starts_with("-LOADING"));
    let cause = format!("cannot reach Kafka at {}", kafka.bootstrap);
    let told = wait_for("the cause", SOON, || {
        Some(reply(&mut client, "GET k")).filter(|told| told.contains("refused"))
    });
    assert!(told.starts_with("-LOADING") && told.contains(&cause), "{told}");
    assert_eq!(client.info("loading").as_deref(), Some("1"));
    assert!(client.info("log_outage").is_some_and(|told| told.contains(&cause)));
    let pinged = ping(&node);
    assert!(!pinged.success() && pinged.text().contains(&cause), "{}", pinged.text());
    kafka.restart();
    assert_eq!(soon(&mut client, "GET k", "$"), "$1\r\nv");
    assert_eq!(client.info("log_outage"), None);
    assert!(ping(&node).success());
}

#[test]
fn a_start_without_kafka_is_given_up_in_time_and_stops_when_asked() {
    let nobody = crate::support::ports::free();
    let node = || {
        let servers = format!("127.0.0.1:{nobody}");
        Highwater::builder().args(&["--bootstrap-servers", &servers, "--topic", "t"])
    };
    let (status, log) = node().args(&["--startup-timeout", "1s"]).refuse(SOON);
    assert!(
        !status.success() && log.contains("cannot open the log: cannot reach Kafka"),
        "{log}"
    );
    let mut waiting = node()
        .args(&["--serve-stale-at-start", "yes"])
        .allow("cannot serve what the local store has")
        .allow("Connection refused")
        .start_without_waiting();
    let mut client = connect(&waiting);
    eventually("the node to say that it cannot", SOON, || {
        waiting.log().contains("the local store has no position")
    });
    // The store was never filled: that it has no such key says nothing.
    assert!(soon(&mut client, "GET k", "-").starts_with("-LOADING"));
    assert!(soon(&mut client, "SET k v", "-").starts_with("-LOADING"));
    assert!(waiting.terminate().success());
}

#[test]
fn where_it_is_wanted_a_start_without_kafka_serves_what_the_store_has() {
    let kafka = Kafka::start();
    let topic = fresh_topic("stale");
    let mut node = Highwater::builder()
        .kafka(&kafka, &topic)
        .args(&["--partitions", "2", "--serve-stale-at-start", "yes"])
        // The connection's loss is told.
        .allow("WARN")
        .start();
    let mut client = node.client();
    for n in 0..20 {
        client.check(&format!("SET k{n} v{n}"), "+OK");
    }
    client.check("DEL k0", ":1");
    assert!(node.terminate().success());
    kafka.kill();
    node.restart();
    let mut client = node.client();
    client.check("GET k7", "$2\r\nv7");
    client.check("GET k0", "$-1");
    client.check("DBSIZE", ":19");
    assert_eq!(client.tree("KEYS *").items().len(), 19);
    assert_eq!(client.info("log_status").as_deref(), Some("stale"));
    assert_eq!(client.info("loading").as_deref(), Some("0"));
    for write in ["SET k7 new", "INCR counter", "DEL k7", "FLUSHALL"] {
        let refused = reply(&mut client, write);
        let told = format!("-NOTWRITTEN Kafka at {} has not been reached", kafka.bootstrap);
        assert!(refused.starts_with(&told), "{write}: {refused}");
    }
    client.check("GET k7", "$2\r\nv7");
    for mode in ["LINEARIZABLE", "MAXLAG 1000"] {
        client.check(&format!("HIGHWATER CONSISTENCY {mode}"), "+OK");
        let stale = reply(&mut client, "GET k7");
        assert!(stale.starts_with("-STALE "), "{mode}: {stale}");
    }
    client.check("HIGHWATER CONSISTENCY DEFAULT", "+OK");
    kafka.restart();
    info_soon(&mut client, "log_status", "serving");
    kafka.kcat(
        &["-P", "-t", &topic, "-K:", "-X", "partitioner=murmur2_random"],
        b"k7:newer\n",
    );
    soon(&mut client, "GET k7", "$5\r\nnewer");
    client.check("SET k7 newest", "+OK");
    client.check("INCR counter", ":1");
    client.check("DBSIZE", ":20");
}

#[test]
fn an_outage_is_told_by_info_and_every_line_of_it_is_logged_as_wanted() {
    let kafka = Kafka::start();
    let (topic, dir) = (fresh_topic("outage"), temp::dir("outage-log"));
    let file = dir.path().join("log.json");
    let node = Highwater::builder()
        .kafka(&kafka, &topic)
        .args(&["--log-format", "json", "--write-timeout", "2s", "--logfile"])
        .arg(&file.display().to_string())
        .start();
    let mut client = node.client();
    client.check_soon("SET k v", "+OK");
    soon(&mut client, "INCR counter", ":");
    info_soon(&mut client, "log_status", "serving");
    let before = SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock").as_secs();
    kafka.kill();
    info_soon(&mut client, "log_status", "outage");
    let since = client
        .info("log_outage_since")
        .and_then(|since| since.parse::<u64>().ok());
    assert!(
        since.is_some_and(|since| (before..before + 30).contains(&since)),
        "{since:?}"
    );
    let cause = client.info("log_outage").unwrap_or_default();
    assert!(cause.contains(&kafka.bootstrap), "{cause}");
    let place = client.info("kafka_db0_p0").unwrap_or_default();
    assert!(place.contains(",lag=-1,"), "{place}");
    let number = |name: &str| -> u64 {
        let found = place
            .split(',')
            .find_map(|part| part.strip_prefix(name)?.strip_prefix('='));
        found
            .and_then(|number| number.parse().ok())
            .unwrap_or_else(|| panic!("no {name} in {place}"))
    };
    assert!(number("position") <= number("end"), "{place}");
    client.check("GET k", "$1\r\nv");
    assert!(reply(&mut client, "SET k other").starts_with('-'));
    kafka.restart();
    info_soon(&mut client, "log_status", "serving");
    assert_eq!(client.info("log_outage"), None);
    soon(&mut client, "SET k other", "+OK");
    assert_eq!(node.log(), "", "nothing goes past the log file");
    let lines = std::fs::read_to_string(&file).expect("the log file");
    assert!(lines.contains("\"target\":\"librdkafka\""), "{lines}");
    assert!(!lines.contains("GroupCoordinator"), "no group is joined: {lines}");
    let other = lines
        .lines()
        .find(|line| !(line.starts_with('{') && line.ends_with('}')));
    assert_eq!(other, None, "a line is not JSON");
}

#[test]
fn what_a_start_without_kafka_blames_is_what_is_wrong() {
    let kafka = Kafka::start_with(&["advertised.listeners=PLAINTEXT://127.0.0.1:1"]);
    let start = |servers: &str| {
        let node = Highwater::builder().args(&[
            "--bootstrap-servers",
            servers,
            "--topic",
            "t",
            "--startup-timeout",
            "4s",
        ]);
        let (status, log) = node.refuse(SOON);
        assert!(!status.success(), "{log}");
        let told = log.lines().find(|line| line.starts_with("highwater: cannot"));
        told.unwrap_or_else(|| panic!("no line says why: {log}")).to_owned()
    };
    let told = start(&kafka.bootstrap);
    assert!(
        told.contains("check advertised.listeners") && told.contains("127.0.0.1:1/1"),
        "{told}"
    );
    assert!(!told.contains("check --bootstrap-servers"), "{told}");
    let told = start(&kafka.controller());
    assert!(told.contains("a broker's port, not a controller's"), "{told}");
}

#[test]
fn of_two_nodes_that_start_at_once_one_creates_the_topic() {
    let (kafka, topic) = (crate::support::kafka::shared(), fresh_topic("created-once"));
    let mut nodes: Vec<_> = (0..2)
        .map(|_| Highwater::builder().kafka(kafka, &topic).start_without_waiting())
        .collect();
    nodes.iter_mut().for_each(Highwater::wait_until_ready);
    let created: usize = nodes
        .iter()
        .map(|node| node.log().matches("created the topic").count())
        .sum();
    assert_eq!(created, 1);
}

#[test]
fn a_quota_that_holds_writes_up_is_named() {
    let kafka = Kafka::start();
    let node = Highwater::builder()
        .kafka(&kafka, &fresh_topic("quota"))
        .args(&["--write-timeout", "2s"])
        .allow("WARN")
        .start();
    let mut client = node.client();
    client.set_deadline(SOON);
    client.check_soon("SET k v", "+OK");
    let args = [
        "--bootstrap-server",
        &kafka.bootstrap,
        "--alter",
        "--add-config",
        "producer_byte_rate=1000",
    ];
    let whose = ["--entity-type", "clients", "--entity-default"];
    kafka.java("kafka.admin.ConfigCommand", &[&args[..], &whose].concat(), b"");
    let value = vec![b'x'; 50_000];
    wait_for("a write to be answered with the quota", SOON * 2, || {
        let reply = client.send(&[b"SET", b"k", &value]);
        let reply = String::from_utf8_lossy(&reply).into_owned();
        (reply.starts_with('-') && reply.contains("a quota of Kafka")).then_some(())
    });
    assert!(node.log().contains("a quota of Kafka"), "{}", node.log());
}

/// More than may wait for Kafka in all, but for a first one. Compressed, so that the broker's memory is enough.
#[test]
fn a_value_larger_than_the_queue_to_kafka_is_written_by_both_lanes() {
    let (kafka, topic) = (crate::support::kafka::shared(), fresh_topic("larger-than-the-queue"));
    let settings = [("cleanup.policy", "compact"), ("max.message.bytes", "200000000")];
    kafka.create_topic(&topic, 1, &settings);
    let node = Highwater::builder()
        .kafka(kafka, &topic)
        .args(&["--write-timeout", "30s", "-X", "compression.type=zstd"])
        .start();
    let mut client = node.client();
    client.set_deadline(SOON * 2);
    let value = vec![b'x'; 150_000_000];
    assert_eq!(client.send(&[b"SET", b"k", &value]), b"+OK\r\n");
    client.check("APPEND k y", ":150000001");
    client.check("STRLEN k", ":150000001");
}
