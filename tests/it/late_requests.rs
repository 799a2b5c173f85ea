//! Requests of the transaction lane that reach the coordinator long after their connection broke. librdkafka sends such a request
//! again, and the transaction ends well; the first request must not touch the next transaction of the same producer.

use std::thread;
use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer as _};

use crate::support::client::Client;
use crate::support::foreign::Foreign;
use crate::support::kafka::{Kafka, PASSED_KEY};
use crate::support::proxy::{ADD_PARTITIONS_TO_TXN, END_TXN, Lost, PRODUCE, Proxy};
use crate::support::server::Highwater;
use crate::support::wait_for;

const SOON: Duration = Duration::from_secs(25);
/// The lane has two producers, which take turns: of so many commands in a row each producer has one.
const BOTH: i64 = 2;

struct Scene {
    kafka: Kafka,
    proxy: Proxy,
    topic: String,
    node: Highwater,
    foreign: Foreign,
    around: ClientConfig,
}

impl Scene {
    fn new(partitions: i32, args: &[&str]) -> Scene {
        let (kafka, proxy) = Kafka::start_behind_proxy();
        let topic = kafka.compacted_topic("late", partitions);
        let node = Highwater::builder()
            .kafka(&kafka, &topic)
            .args(args)
            .allow("WARN")
            .start();
        let mut around = kafka.client_config();
        around.set("bootstrap.servers", &proxy.around);
        let foreign = Foreign::with(around.clone(), &topic);
        let mut client = node.client();
        for number in 1..=2 * BOTH {
            client.check("INCR counter", &format!(":{number}"));
        }
        Scene {
            kafka,
            proxy,
            topic,
            node,
            foreign,
            around,
        }
    }

    /// The next request of this kind comes late, though what it is for goes well.
    fn lose(&self, kind: u16, lost: Lost) {
        self.proxy.lose(&[kind], lost, 1);
    }

    fn client(&self) -> Client {
        let mut client = self.node.client();
        client.set_deadline(SOON);
        client
    }

    /// What the command is answered if `meanwhile` happens between its Produce requests: after so many.
    fn between(&self, command: &str, after: u64, meanwhile: impl FnOnce()) -> String {
        self.proxy.hold(PRODUCE, after);
        let mut client = self.client();
        thread::scope(|scope| {
            let asking = scope.spawn(move || ask(&mut client, command));
            wait_for("a Produce request", SOON, || (self.proxy.held() > 0).then_some(()));
            meanwhile();
            self.proxy.let_go();
            asking.join().expect("an answer")
        })
    }

    /// Another producer writes the counter just before the node's record. The late request comes after that record, and before the
    /// node hears that the broker has it.
    fn increment_while_late(&self, foreign: i64) -> String {
        let end = || self.end_of(0);
        self.proxy.hold(PRODUCE, 0);
        let mut client = self.client();
        thread::scope(|scope| {
            let asking = scope.spawn(move || ask(&mut client, "INCR counter"));
            wait_for("a Produce request", SOON, || (self.proxy.held() > 0).then_some(()));
            self.foreign.write("counter", Some(&foreign.to_string()));
            let before = end();
            self.proxy.to_client.hold(true);
            self.proxy.let_go();
            wait_for("the record", SOON, || (end() > before).then_some(()));
            self.proxy.deliver();
            self.proxy.to_client.hold(false);
            asking.join().expect("an answer")
        })
    }

    /// The high watermark, asked around the proxy.
    fn end_of(&self, partition: i32) -> i64 {
        let mut config = self.around.clone();
        config.set("isolation.level", "read_uncommitted");
        let consumer: BaseConsumer = config.create().expect("create a consumer");
        let ends = consumer.fetch_watermarks(&self.topic, partition, SOON);
        ends.expect("the ends of a partition").1
    }

    /// All values that the key ever had, for every reader of the topic.
    fn values(&self, key: &str) -> Vec<String> {
        let records = self.kafka.records(&self.topic, "read_committed");
        let of_key = records
            .into_iter()
            .filter(|record| record.key.as_deref() == Some(key.as_bytes()));
        of_key
            .map(|record| String::from_utf8_lossy(&record.value.expect("a value")).into_owned())
            .collect()
    }

    /// INCRs and MSETs of both producers, during each of which the late request comes.
    fn check_commands(&self, mut expected: Vec<String>) {
        for turn in 1..=BOTH {
            let foreign = turn * 1000;
            assert_eq!(self.increment_while_late(foreign), format!(":{}", foreign + 1));
            expected.extend([foreign.to_string(), (foreign + 1).to_string()]);
        }
        assert_eq!(self.values("counter"), expected);

        // These keys are in different partitions.
        for turn in 1..=BOTH {
            let command = format!("MSET a {turn} d {turn}");
            let reply = self.between(&command, 1, || drop(self.proxy.deliver()));
            assert_eq!(reply, "+OK", "{command}");
        }
        let written: Vec<String> = (1..=BOTH).map(|turn| turn.to_string()).collect();
        assert_eq!(self.values("a"), written);
        assert_eq!(self.values("d"), written);
        self.check_that_it_is_refused();
    }

    /// The broker knows that the late request is of an older epoch.
    fn check_that_it_is_refused(&self) {
        const INVALID_PRODUCER_EPOCH: i16 = 47;
        const PRODUCER_FENCED: i16 = 90;
        let answer = self.proxy.deliver();
        let error = i16::from_be_bytes([answer[answer.len() - 2], answer[answer.len() - 1]]);
        assert!([INVALID_PRODUCER_EPOCH, PRODUCER_FENCED].contains(&error), "{error}");
    }
}

fn ask(client: &mut Client, line: &str) -> String {
    String::from_utf8_lossy(&client.line(line)).trim_end().to_owned()
}

fn numbers(range: std::ops::RangeInclusive<i64>) -> Vec<String> {
    range.map(|number| number.to_string()).collect()
}

#[test]
fn a_commit_that_comes_late_does_not_end_a_later_transaction() {
    let scene = Scene::new(2, &[]);
    scene.lose(END_TXN, Lost::Late);
    scene.client().check("INCR counter", ":5");
    assert_eq!(scene.proxy.lost(), 1);
    scene.check_commands(numbers(1..=5));
}

#[test]
fn a_commit_that_comes_late_while_its_connection_stays_open_does_not_end_a_later_transaction() {
    let scene = Scene::new(2, &["-X", "socket.timeout.ms=1000"]);
    scene.lose(END_TXN, Lost::LateOnOpenConnection);
    scene.client().check("INCR counter", ":5");
    assert_eq!(scene.proxy.lost(), 1);
    scene.check_commands(numbers(1..=5));
}

#[test]
fn an_abort_that_comes_late_does_not_end_a_later_transaction() {
    let scene = Scene::new(2, &[]);
    scene.lose(END_TXN, Lost::Late);
    // Another producer's record comes first, so that the transaction is aborted, and the command computed again.
    let reply = scene.between("INCR counter", 0, || scene.foreign.write("counter", Some("50")));
    assert_eq!(reply, ":51");
    assert_eq!(scene.proxy.lost(), 1);
    scene.check_commands([numbers(1..=4), numbers(50..=51)].concat());
}

#[test]
fn partitions_that_are_added_late_do_not_touch_a_later_transaction() {
    let scene = Scene::new(2, &[]);
    scene.lose(ADD_PARTITIONS_TO_TXN, Lost::Late);
    scene.client().check("INCR counter", ":5");
    assert_eq!(scene.proxy.lost(), 1);
    scene.check_commands(numbers(1..=5));
}

/// Somebody else ends the node's transactions, with its own id and epoch: here that is a copy of its own request, of which it knows
/// nothing. What is then in the log is found out or said not to be known; it is never said not to be there.
#[test]
fn a_transaction_that_somebody_else_commits_is_never_said_not_to_be_written() {
    let scene = Scene::new(2, &[]);
    scene.lose(END_TXN, Lost::Copied);
    scene.client().check("INCR counter", ":5");
    let replies: Vec<String> = (1..=BOTH)
        .map(|turn| scene.between(&format!("MSET a {turn} d {turn}"), 1, || drop(scene.proxy.deliver())))
        .collect();
    // The node may find out that the foreign commit took the place of its own.
    let uncertain = |replies: &[String]| replies.iter().filter(|reply| reply.starts_with("-UNCERTAIN ")).count();
    let ok = replies.iter().filter(|reply| *reply == "+OK").count();
    assert!(
        uncertain(&replies) <= 1 && uncertain(&replies) + ok == replies.len(),
        "{replies:?}"
    );
    if replies.last().is_some_and(|reply| reply == "+OK") {
        let [a, d] = ["a", "d"].map(|key| scene.values(key).pop());
        assert_eq!(a, d, "both keys have the values of the last command");
    }

    scene.lose(END_TXN, Lost::Copied);
    wait_for("a counter that counts", SOON, || {
        ask(&mut scene.client(), "INCR other").starts_with(':').then_some(())
    });
    let replies: Vec<String> = (1..=BOTH).map(|turn| scene.increment_while_late(turn * 1000)).collect();
    let counted = replies.iter().filter(|reply| reply.starts_with(':')).count();
    assert!(
        uncertain(&replies) <= 1 && uncertain(&replies) + counted == replies.len(),
        "{replies:?}"
    );
    // What such a record replaced is lost, and the node says nothing else than what everybody reads.
    let last = scene.values("counter").pop().expect("a value");
    scene
        .client()
        .check("GET counter", &format!("${}\r\n{last}", last.len()));
}

/// The same, and the node's own abort is not answered: that somebody else has committed is found in
/// the log. An INCR that was taken for aborted would be computed again, and count twice.
#[test]
fn a_foreign_commit_is_found_though_the_abort_is_not_answered() {
    let scene = Scene::new(1, &["--write-timeout", "30s"]);
    scene.lose(END_TXN, Lost::Copied);
    scene.client().check("INCR counter", ":5");
    // Then it is the turn of the same producer.
    scene.client().check("INCR counter", ":6");
    scene.lose(END_TXN, Lost::LateOnOpenConnection);
    let reply = scene.increment_while_late(1000);
    assert!(reply.starts_with("-UNCERTAIN "), "{reply}");
    assert_eq!(scene.proxy.lost(), 1);
    let expected = [numbers(1..=6), vec!["1000".to_owned(), "7".to_owned()]].concat();
    assert_eq!(scene.values("counter"), expected);
    scene.client().check("INCR counter", ":8");
}

/// A tombstone behind aborted records tells other nodes at once that they were aborted. It is no
/// data.
#[test]
fn what_was_aborted_is_marked_for_other_nodes() {
    let scene = Scene::new(1, &[]);
    let other = Highwater::builder().kafka(&scene.kafka, &scene.topic).start();
    let reply = scene.between("INCR counter", 0, || scene.foreign.write("counter", Some("50")));
    assert_eq!(reply, ":51");
    let marks = || {
        let records = scene.kafka.records_with_marks(&scene.topic, "read_committed");
        let marks = records
            .into_iter()
            .filter(|record| record.key.as_deref() == Some(PASSED_KEY));
        marks.map(|mark| mark.value).collect::<Vec<_>>()
    };
    wait_for("the mark", SOON, || (!marks().is_empty()).then_some(()));
    assert_eq!(marks(), [None]);
    for node in [&scene.node, &other] {
        let mut client = node.client();
        client.check_soon("GET counter", "$2\r\n51");
        client.check("DBSIZE", ":1");
        assert_eq!(client.info("records_reserved").as_deref(), Some("0"));
        client.check("GET \"\\x00highwater:passed\"", "$-1");
    }
}

/// Records that the broker refuses cost their own command alone, also where Kafka blames those behind them.
#[test]
fn a_refused_record_costs_no_other_command_its_transaction() {
    let kafka = Kafka::start();
    let topic = kafka.compacted_topic("refused", 1);
    let node = Highwater::builder().kafka(&kafka, &topic).allow("WARN").start();
    node.client().check("INCR counter", ":1");
    // The node does not look at the topic's settings at once.
    kafka.set_topic_config(&topic, &[("cleanup.policy", "compact"), ("max.message.bytes", "20000")]);
    let large = format!("MSET large {} other v", "v".repeat(50_000));
    thread::scope(|scope| {
        let counting: Vec<_> = (0..4)
            .map(|_| {
                let mut client = node.client();
                scope.spawn(move || {
                    for _ in 0..50 {
                        let reply = ask(&mut client, "INCR counter");
                        assert!(reply.starts_with(':'), "{reply}");
                    }
                })
            })
            .collect();
        let mut client = node.client();
        while counting.iter().any(|thread| !thread.is_finished()) {
            let reply = ask(&mut client, &large);
            assert!(reply.starts_with("-NOTWRITTEN "), "{reply}");
        }
    });
    node.client().check("GET counter", "$3\r\n201");
}

/// Kafka forgets a transactional id that was not used for `transactional.id.expiration.ms` (a week by default).
#[test]
fn a_transactional_id_that_kafka_forgot_costs_no_command() {
    let kafka = Kafka::start_with(&[
        "transactional.id.expiration.ms=1000",
        "transaction.remove.expired.transaction.cleanup.interval.ms=200",
    ]);
    let topic = kafka.compacted_topic("forgotten", 1);
    let node = Highwater::builder().kafka(&kafka, &topic).allow("WARN").start();
    let mut client = node.client();
    let mut counter = 0;
    for _ in 0..2 {
        for _ in 0..2 * BOTH {
            counter += 1;
            client.check("INCR counter", &format!(":{counter}"));
        }
        wait_for("the ids to be forgotten", SOON, || {
            let known = kafka.java(
                "org.apache.kafka.tools.TransactionsCommand",
                &["--bootstrap-server", &kafka.bootstrap, "list"],
                b"",
            );
            (!String::from_utf8_lossy(&known.stdout).contains("highwater-")).then_some(())
        });
    }
    for _ in 0..2 * BOTH {
        counter += 1;
        client.check("INCR counter", &format!(":{counter}"));
    }
}
