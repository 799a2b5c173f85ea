//! The Kafka log on a real broker.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender};
use std::time::{Duration, Instant};

use bytes::Bytes;
use highwater::log::kafka::{Config, KafkaLog, Mapped, Partitioner};
use highwater::log::{
    Appended, Batch, Completion, Follower, Log, LogError, LogRecord, Positions, ProduceError, Record, TopicPartition,
};
use highwater::model::{Payload, Value};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};

use crate::support::kafka::{self, Kafka};
use crate::support::{parts, ports, wait_for};

const DEADLINE: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(200);

fn config(kafka: &Kafka, topic: &str) -> Config {
    Config {
        bootstrap_servers: kafka.bootstrap.clone(),
        topic: topic.into(),
        ..Config::default()
    }
}

fn connect(kafka: &Kafka, topic: &str) -> KafkaLog {
    KafkaLog::connect(config(kafka, topic)).expect("connect")
}

fn refused(config: Config) -> String {
    match KafkaLog::connect(config) {
        Ok(_) => panic!("it connected"),
        Err(error) => error.to_string(),
    }
}

type Outcome = Result<Vec<Appended>, ProduceError>;

struct Told(Sender<Outcome>);

impl Completion for Told {
    fn complete(self: Arc<Self>, outcome: Result<&[Appended], ProduceError>) {
        // A test that has ended listens no more.
        let _ = self.0.send(outcome.map(<[Appended]>::to_vec));
    }
}

fn start(log: &dyn Log, records: Vec<Record>) -> Receiver<Outcome> {
    let (told, outcome) = mpsc::channel();
    log.produce(
        Batch {
            condition: None,
            records: records.into(),
            completion: Arc::new(Told(told)),
        },
        0,
    );
    outcome
}

fn produce(log: &dyn Log, records: Vec<Record>) -> Outcome {
    start(log, records)
        .recv_timeout(DEADLINE)
        .expect("the batch is answered")
}

fn set(log: &dyn Log, database: u16, key: &str, value: impl Into<Bytes>) -> Record {
    let payload = Payload::string(value.into(), None);
    record(log, database, key, payload)
}

fn record(log: &dyn Log, database: u16, key: &str, payload: Payload) -> Record {
    let key = Bytes::copy_from_slice(key.as_bytes());
    Record {
        to: TopicPartition {
            database,
            partition: log.partition(database, &key),
        },
        key,
        payload,
    }
}

fn at(database: u16, partition: u32) -> TopicPartition {
    TopicPartition { database, partition }
}

/// Reads until everything that is in the log now has been read.
fn read_all(log: &dyn Log, follower: &mut dyn Follower) -> Vec<LogRecord> {
    let ends = log.ends(DEADLINE).expect("ask for the ends");
    let mut all = Vec::new();
    wait_for("the follower to reach the end", DEADLINE, || {
        follower.poll(&mut all, POLL).expect("poll");
        let positions = follower.positions();
        ends.iter()
            .all(|(at, end)| positions.get(at).is_some_and(|next| next >= end))
            .then_some(())
    });
    all
}

fn read_error(follower: &mut dyn Follower) -> LogError {
    let mut all = Vec::new();
    wait_for("an error of the follower", DEADLINE, || {
        follower.poll(&mut all, POLL).err()
    })
}

fn text(record: &LogRecord) -> (String, Option<String>) {
    let words = |bytes: &Bytes| String::from_utf8_lossy(bytes).into_owned();
    match (&record.payload, record.payload.state().map(|state| &state.value)) {
        (_, Some(Value::String(value))) => (words(&record.key), Some(words(value))),
        (Payload::Key(None), _) => (words(&record.key), None),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_new_topic_is_created_compacted() {
    let kafka = kafka::shared();
    let topic = kafka::fresh_topic("created");
    let log = KafkaLog::connect(Config {
        partitions: 3,
        ..config(kafka, &topic)
    })
    .expect("connect");
    for (setting, value) in [
        ("cleanup.policy", "compact"),
        ("max.message.bytes", "16777216"),
        ("unclean.leader.election.enable", "false"),
    ] {
        assert_eq!(kafka.topic_config(&topic, setting).as_deref(), Some(value), "{setting}");
    }
    let identity = log.identity(0).expect("exists");
    assert_eq!(
        (identity.topic.as_str(), identity.partitions, identity.read_only),
        (topic.as_str(), 3, false)
    );
    let (cluster, id) = identity.id.split_once('/').expect("cluster and topic");
    assert_eq!((cluster.len(), id.len()), (22, 22), "{}", identity.id);
    assert_eq!(log.tombstone_retention(0), Some(Duration::from_secs(86400)));
    assert!(log.max_record_bytes(0) > 16_000_000);
    assert_eq!(log.identity(1), None);
    // Looking for the other databases must not have created them.
    assert!(!kafka.topic_exists(&format!("{topic}.db1")));
    assert_eq!(connect(kafka, &topic).identity(0), Some(identity));
}

#[test]
fn a_topic_that_is_not_compacted_is_refused_with_what_mends_it() {
    let kafka = kafka::shared();
    for policy in ["delete", "compact,delete"] {
        let topic = kafka::fresh_topic("deleting");
        kafka.create_topic(&topic, 1, &[("cleanup.policy", policy)]);
        let told = refused(config(kafka, &topic));
        assert!(
            told.contains(&format!("topic {topic} has cleanup.policy={policy}")),
            "{told}"
        );
        let command = format!(
            "kafka-configs.sh --bootstrap-server {} --alter --entity-type topics --entity-name {topic} \
             --add-config cleanup.policy=compact",
            kafka.bootstrap
        );
        assert!(told.contains(&command), "{told}");
        kafka.set_topic_config(&topic, &[("cleanup.policy", "compact")]);
        connect(kafka, &topic);
    }
}

#[test]
fn a_database_whose_topic_is_not_compacted_is_refused_alone() {
    let kafka = kafka::shared();
    let topic = kafka.compacted_topic("alone", 1);
    let second = format!("{topic}.db2");
    kafka.create_topic(&second, 1, &[("cleanup.policy", "delete")]);
    let log = connect(kafka, &topic);
    assert_eq!(log.identity(2), None);
    let told = log.create(2).expect_err("is refused").to_string();
    assert!(
        told.contains(&second) && told.contains("--add-config cleanup.policy=compact"),
        "{told}"
    );
    let outcome = produce(&log, vec![set(&log, 2, "k", "v")]);
    assert!(matches!(outcome, Err(ProduceError::NotWritten(_))), "{outcome:?}");
    kafka.set_topic_config(&second, &[("cleanup.policy", "compact")]);
    log.create(2).expect("was mended");
    produce(&log, vec![set(&log, 2, "k", "v")]).expect("written");
}

#[test]
fn many_threads_write_and_the_follower_sees_every_key_in_order() {
    const THREADS: usize = 4;
    const EACH: usize = 2500;
    const KEYS: usize = 50;
    let kafka = kafka::shared();
    let log = connect(kafka, &kafka.compacted_topic("many", 3));
    let mut follower = log.follow(&Positions::new()).expect("follow");
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let log = &log;
            scope.spawn(move || {
                let write = |n: usize| start(log, vec![set(log, 0, &format!("{thread}-{}", n % KEYS), n.to_string())]);
                let outcomes: Vec<_> = (0..EACH).map(write).collect();
                let mut last: HashMap<(u32, usize), u64> = HashMap::new();
                for (n, outcome) in outcomes.iter().enumerate() {
                    let appended = outcome.recv_timeout(DEADLINE).expect("answered").expect("written");
                    assert!(appended[0].timestamp > 0);
                    let before = last.insert((appended[0].at.partition, n % KEYS), appended[0].offset);
                    assert!(before.is_none_or(|before| before < appended[0].offset));
                }
            });
        }
    });
    let all = read_all(&log, follower.as_mut());
    assert_eq!(all.len(), THREADS * EACH);
    let mut newest: HashMap<Bytes, usize> = HashMap::new();
    for seen in &all {
        let n: usize = text(seen).1.expect("a value").parse().expect("a number");
        assert_eq!(seen.at.partition, log.partition(0, &seen.key));
        let before = newest.insert(seen.key.clone(), n);
        assert_eq!(before.map_or(n % KEYS, |before| before + KEYS), n, "{:?}", seen.key);
    }
    assert_eq!(newest.len(), THREADS * KEYS);
}

#[test]
fn every_payload_comes_back_as_it_was_written() {
    let kafka = kafka::shared();
    let topic = kafka.compacted_topic("payloads", 2);
    let log = connect(kafka, &topic);
    let binary = Bytes::from((0..=255).collect::<Vec<u8>>());
    let expiring = Payload::string(binary.clone(), Some(1_900_000_000_123));
    let control = String::from_utf8_lossy(highwater::log::record::FLUSH_KEY).into_owned();
    let records = vec![
        set(&log, 0, "plain", "v"),
        set(&log, 0, "empty", ""),
        set(&log, 0, "", "under the empty key"),
        record(&log, 0, "expiring", expiring),
        record(&log, 0, "gone", Payload::TOMBSTONE),
        record(&log, 0, &control, Payload::FLUSH),
    ];
    let appended = produce(&log, records.clone()).expect("written");
    let mut follower = log.follow(&Positions::new()).expect("follow");
    let all = read_all(&log, follower.as_mut());
    assert_eq!(all.len(), records.len());
    let group = all[0].group.expect("was one batch");
    for (record, appended) in records.iter().zip(&appended) {
        let seen = all.iter().find(|seen| seen.key == record.key).expect("is there");
        assert_eq!(
            (&seen.payload, seen.at, seen.offset),
            (&record.payload, appended.at, appended.offset)
        );
        assert_eq!(seen.timestamp, appended.timestamp);
        assert_eq!(
            seen.group.map(|group| (group.id, group.records)),
            Some((group.id, records.len() as u32))
        );
    }
    let raw = kafka.records(&topic, "read_committed");
    let raw = |key: &[u8]| {
        raw.iter()
            .find(|seen| seen.key.as_deref() == Some(key))
            .expect("is there")
            .clone()
    };
    assert_eq!(raw(b"gone").value, None);
    assert_eq!(raw(b"empty").value.as_deref(), Some(b"".as_slice()));
    assert_eq!(raw(b"").value.as_deref(), Some(b"under the empty key".as_slice()));
    assert!(
        raw(b"expiring")
            .headers
            .contains(&("redis-expire-at".into(), b"1900000000123".to_vec()))
    );
}

#[test]
fn records_of_other_producers_are_read() {
    let kafka = kafka::shared();
    let topic = kafka::fresh_topic("foreign");
    // A compacted topic takes no record without a key, so such a one has to be there before.
    kafka.create_topic(&topic, 1, &[("cleanup.policy", "delete")]);
    let produce = |args: &[&str], lines: &[u8]| {
        kafka.kcat(&[&["-P", "-t", &topic], args].concat(), lines);
    };
    produce(&[], b"without a key\n");
    kafka.set_topic_config(&topic, &[("cleanup.policy", "compact")]);
    let log = connect(kafka, &topic);
    produce(&["-K:"], b"a:1\nb:2\n");
    produce(&["-K:", "-Z"], b"a:\n");
    produce(&["-K:", "-H", "redis-type=hash"], b"h:x\n");
    produce(
        &["-K:", "-H", "redis-expire-at=1900000000123", "-H", "other=1"],
        b"e:x\n",
    );
    let mut follower = log.follow(&Positions::new()).expect("follow");
    let all = read_all(&log, follower.as_mut());
    assert_eq!(follower.skipped(), 1);
    let plain: Vec<_> = all[..3].iter().map(text).collect();
    assert_eq!(
        plain,
        [
            ("a".into(), Some("1".into())),
            ("b".into(), Some("2".into())),
            ("a".into(), None)
        ]
    );
    assert!(
        matches!(all[3].payload.state().map(|state| &state.value), Some(Value::Unreadable(reason)) if reason.contains("hash")),
        "{:?}",
        all[3]
    );
    let expected = Payload::string(Bytes::from_static(b"x"), Some(1_900_000_000_123));
    assert_eq!(all[4].payload, expected);
    assert_eq!(all.len(), 5);
}

#[test]
fn a_header_name_that_is_no_text_does_no_harm() {
    let kafka = kafka::shared();
    let topic = kafka.compacted_topic("header-name", 1);
    let mut kcat = parts::kcat();
    kcat.args(["-b", &kafka.bootstrap, "-P", "-t", &topic, "-K:", "-H"])
        .arg(OsStr::from_bytes(b"\xff\xfe=\xff"));
    crate::support::process::run("kcat", kcat, b"k:v\n", DEADLINE);
    let log = connect(kafka, &topic);
    let all = read_all(&log, log.follow(&Positions::new()).expect("follow").as_mut());
    assert_eq!(
        all.iter().map(text).collect::<Vec<_>>(),
        [("k".into(), Some("v".into()))]
    );
}

#[test]
fn the_home_of_a_key_is_where_other_producers_put_it() {
    let kafka = kafka::shared();
    let lines: String = (0..200).map(|n| format!("key-{n}-{}:v\n", "x".repeat(n % 9))).collect();
    for (partitioner, kcats) in [
        (Partitioner::Murmur2, "murmur2_random"),
        (Partitioner::Crc32, "consistent_random"),
    ] {
        let topic = kafka.compacted_topic("homes", 7);
        let partition = format!("partitioner={kcats}");
        kafka.kcat(&["-P", "-t", &topic, "-K:", "-X", &partition], lines.as_bytes());
        let log = KafkaLog::connect(Config {
            partitioner,
            ..config(kafka, &topic)
        })
        .expect("connect");
        let all = read_all(&log, log.follow(&Positions::new()).expect("follow").as_mut());
        assert_eq!(all.len(), 200);
        for seen in all {
            assert_eq!(log.partition(0, &seen.key), seen.at.partition, "{kcats} {:?}", seen.key);
        }
    }
}

#[test]
fn a_record_that_is_too_large_is_not_written() {
    let kafka = kafka::shared();
    let topic = kafka::fresh_topic("large");
    let limit = [("cleanup.policy", "compact"), ("max.message.bytes", "100000")];
    kafka.create_topic(&topic, 1, &limit);
    let log = connect(kafka, &topic);
    let fits = set(&log, 0, "k", vec![b'x'; log.max_record_bytes(0) - 161]);
    assert_eq!(fits.size(), log.max_record_bytes(0));
    produce(&log, vec![fits]).expect("fits");
    let over = produce(&log, vec![set(&log, 0, "k", vec![b'x'; log.max_record_bytes(0) - 160])]);
    assert!(
        matches!(&over, Err(ProduceError::NotWritten(why)) if why.contains("max.message.bytes")),
        "{over:?}"
    );
    // Many that fit, sent as fast as can be, make no batch that does not.
    let burst: Vec<_> = (0..200)
        .map(|n| start(&log, vec![set(&log, 0, &format!("{n}"), vec![b'x'; 5000])]))
        .collect();
    for outcome in burst {
        outcome.recv_timeout(DEADLINE).expect("answered").expect("written");
    }
    // What the broker alone knows.
    kafka.set_topic_config(&topic, &[("cleanup.policy", "compact"), ("max.message.bytes", "2000")]);
    let outcome = wait_for("the broker to refuse it", DEADLINE, || {
        produce(&log, vec![set(&log, 0, "k", vec![b'x'; 50_000])]).err()
    });
    assert!(matches!(outcome, ProduceError::NotWritten(_)), "{outcome:?}");
    produce(&log, vec![set(&log, 0, "k", "small")]).expect("the log goes on");
}

#[test]
fn large_records_go_through_on_a_topic_of_ours() {
    let kafka = kafka::shared();
    let log = connect(kafka, &kafka::fresh_topic("sixteen"));
    let value = vec![b'x'; log.max_record_bytes(0) - 161];
    produce(&log, vec![set(&log, 0, "k", value.clone())]).expect("written");
    let all = read_all(&log, log.follow(&Positions::new()).expect("follow").as_mut());
    assert_eq!(all[0].payload, Payload::string(value.into(), None));
}

#[test]
fn a_follower_goes_on_where_another_was() {
    let kafka = kafka::shared();
    let log = connect(kafka, &kafka.compacted_topic("resume", 2));
    let write = |from: usize| {
        for n in from..from + 20 {
            produce(&log, vec![set(&log, 0, &format!("k{n}"), n.to_string())]).expect("written");
        }
    };
    write(0);
    let mut first = log.follow(&Positions::new()).expect("follow");
    assert_eq!(read_all(&log, first.as_mut()).len(), 20);
    let positions = first.positions();
    assert_eq!(positions, log.ends(DEADLINE).expect("ends"));
    drop(first);
    write(20);
    let mut second = log.follow(&positions).expect("follow");
    let all = read_all(&log, second.as_mut());
    let mut numbers: Vec<usize> = all
        .iter()
        .map(|seen| text(seen).1.expect("a value").parse().expect("a number"))
        .collect();
    numbers.sort();
    assert_eq!(numbers, (20..40).collect::<Vec<_>>());
}

#[test]
fn a_position_that_the_log_does_not_have_is_lost() {
    let kafka = kafka::shared();
    let log = connect(kafka, &kafka.compacted_topic("bogus", 1));
    for n in 0..10 {
        produce(&log, vec![set(&log, 0, "k", n.to_string())]).expect("written");
    }
    let past = [(at(0, 0), 11)].into();
    let mut follower = log.follow(&past).expect("follow");
    let error = read_error(follower.as_mut());
    assert!(matches!(error, LogError::PositionLost(_)), "{error:?}");
    assert!(matches!(
        follower.poll(&mut Vec::new(), POLL),
        Err(LogError::PositionLost(_))
    ));
    let end = [(at(0, 0), 10)].into();
    let mut follower = log.follow(&end).expect("follow");
    assert!(read_all(&log, follower.as_mut()).is_empty());
}

#[test]
fn a_position_that_was_removed_is_lost_but_a_start_from_nothing_is_none() {
    let kafka = kafka::shared();
    let topic = kafka.compacted_topic("removed", 1);
    let log = connect(kafka, &topic);
    for n in 0..10 {
        produce(&log, vec![set(&log, 0, &format!("k{n}"), n.to_string())]).expect("written");
    }
    kafka.delete_records(&topic, 6);
    // One that has not heard that they are gone may lose its position once more.
    let log = connect(kafka, &topic);
    let mut follower = log.follow(&[(at(0, 0), 3)].into()).expect("follow");
    let error = read_error(follower.as_mut());
    assert!(matches!(error, LogError::PositionLost(_)), "{error:?}");
    for start in [Positions::new(), [(at(0, 0), 0)].into()] {
        let mut follower = log.follow(&start).expect("follow");
        assert_eq!(read_all(&log, follower.as_mut()).len(), 4);
        assert_eq!(follower.positions(), [(at(0, 0), 10)].into());
    }
}

#[test]
fn a_database_that_another_node_creates_is_noticed() {
    let kafka = kafka::shared();
    let topic = kafka.compacted_topic("noticed", 1);
    let (one, two) = (connect(kafka, &topic), connect(kafka, &topic));
    let mut follower = two.follow(&Positions::new()).expect("follow");
    produce(&one, vec![set(&one, 0, "k", "in 0")]).expect("written");
    assert_eq!(read_all(&two, follower.as_mut()).len(), 1);
    assert!(matches!(
        produce(&one, vec![set(&one, 3, "k", "v")]),
        Err(ProduceError::NotWritten(_))
    ));
    one.create(3).expect("create");
    one.create(3).expect("it is no error if it is there");
    assert_eq!(
        kafka.topic_config(&format!("{topic}.db3"), "cleanup.policy").as_deref(),
        Some("compact")
    );
    produce(&one, vec![set(&one, 3, "k", "in 3")]).expect("written");
    produce(&one, vec![set(&one, 0, "k", "again in 0")]).expect("written");
    let mut all = Vec::new();
    wait_for("the record of database 3", DEADLINE, || {
        follower.poll(&mut all, POLL).expect("poll");
        (all.len() >= 2).then_some(())
    });
    let mut seen: Vec<_> = all.iter().map(|seen| (seen.at.database, text(seen).1)).collect();
    seen.sort();
    assert_eq!(seen, [(0, Some("again in 0".into())), (3, Some("in 3".into()))]);
    assert_eq!(follower.positions(), two.ends(DEADLINE).expect("ends"));
}

#[test]
fn a_mapped_topic_can_be_read_only() {
    let kafka = kafka::shared();
    let prices = kafka::fresh_topic("prices");
    kafka.create_topic(&prices, 2, &[("cleanup.policy", "delete")]);
    kafka.kcat(&["-P", "-t", &prices, "-K:"], b"a:1\n");
    let mapped = |topic: &str, read_only| {
        [(
            3,
            Mapped {
                topic: topic.into(),
                read_only,
            },
        )]
        .into()
    };
    let main = kafka.compacted_topic("beside", 1);
    let log = KafkaLog::connect(Config {
        mapped: mapped(&prices, true),
        ..config(kafka, &main)
    })
    .expect("connect");
    assert!(log.identity(3).expect("exists").read_only);
    let outcome = produce(&log, vec![set(&log, 3, "k", "v")]);
    assert!(
        matches!(&outcome, Err(ProduceError::NotWritten(why)) if why.contains("read-only")),
        "{outcome:?}"
    );
    assert_eq!(
        read_all(&log, log.follow(&Positions::new()).expect("follow").as_mut()).len(),
        1
    );
    let told = refused(Config {
        mapped: mapped(&prices, false),
        ..config(kafka, &main)
    });
    assert!(told.contains("cleanup.policy=delete"), "{told}");
    let told = refused(Config {
        mapped: mapped("no-such-topic", true),
        ..config(kafka, &main)
    });
    assert!(told.contains("there is no topic no-such-topic"), "{told}");
}

#[test]
fn a_topic_that_changes_its_identity_ends_the_follower() {
    let kafka = kafka::shared();
    let topic = kafka.compacted_topic("changing", 1);
    let log = connect(kafka, &topic);
    let first = log.identity(0).expect("exists");
    let mut follower = log.follow(&Positions::new()).expect("follow");
    produce(&log, vec![set(&log, 0, "k", "v")]).expect("written");
    kafka.add_partitions(&topic, 3);
    let why = wait_for("the new partitions to be noticed", DEADLINE, || log.incomplete(0));
    assert!(why.contains("3 partitions now, not 1"), "{why}");
    let refused = produce(&log, vec![set(&log, 0, "k", "w")]);
    assert_eq!(refused, Err(ProduceError::NotWritten(why)));
    // What was there is still read.
    assert_eq!(log.identity(0), Some(first.clone()));
    assert_eq!(read_all(&log, follower.as_mut()).len(), 1);

    kafka.delete_topic(&topic);
    kafka.create_topic(&topic, 1, &[("cleanup.policy", "compact")]);
    let error = read_error(follower.as_mut());
    // It may learn first that its position is past the end of the new topic.
    assert!(
        matches!(error, LogError::IdentityChanged(_) | LogError::PositionLost(_)),
        "{error:?}"
    );
    wait_for("the new identity", DEADLINE, || {
        log.identity(0).filter(|now| now.id != first.id)
    });
    let mut follower = log.follow(&Positions::new()).expect("follow");
    wait_for("a write to the new topic", DEADLINE, || {
        produce(&log, vec![set(&log, 0, "k", "v")]).ok()
    });
    assert_eq!(read_all(&log, follower.as_mut()).len(), 1);
}

#[test]
fn ends_count_an_open_transaction_and_positions_pass_its_marks() {
    let kafka = kafka::shared();
    let topic = kafka.compacted_topic("transaction", 1);
    let log = connect(kafka, &topic);
    produce(&log, vec![set(&log, 0, "before", "1")]).expect("written");
    let foreign: BaseProducer = kafka
        .client_config()
        .set("transactional.id", &topic)
        .create()
        .expect("create a producer");
    foreign.init_transactions(DEADLINE).expect("init");
    let transaction = |end: &mut dyn FnMut()| {
        foreign.begin_transaction().expect("begin");
        foreign
            .send(BaseRecord::to(&topic).key("foreign").payload("x"))
            .map_err(|(error, _)| error)
            .expect("send");
        foreign.flush(DEADLINE).expect("flush");
        end();
    };
    let mut follower = log.follow(&Positions::new()).expect("follow");
    transaction(&mut || {
        let ends = log.ends(DEADLINE).expect("ends");
        assert_eq!(
            ends,
            [(at(0, 0), 2)].into(),
            "the high watermark, not the last stable offset"
        );
        let mut all = Vec::new();
        wait_for("the record before the transaction", DEADLINE, || {
            follower.poll(&mut all, POLL).expect("poll");
            (!all.is_empty()).then_some(())
        });
        assert_eq!(follower.positions(), [(at(0, 0), 1)].into());
        foreign.abort_transaction(DEADLINE).expect("abort");
    });
    // An aborted record and its mark are gaps.
    assert!(read_all(&log, follower.as_mut()).is_empty());
    transaction(&mut || foreign.commit_transaction(DEADLINE).expect("commit"));
    let mut all = Vec::new();
    wait_for("the mark of the commit", DEADLINE, || {
        follower.poll(&mut all, POLL).expect("poll");
        (follower.positions() == [(at(0, 0), 5)].into()).then_some(())
    });
    assert_eq!(
        all.iter().map(text).collect::<Vec<_>>(),
        [("foreign".into(), Some("x".into()))]
    );
}

#[test]
fn a_broker_that_is_not_there_is_told_within_the_startup_timeout() {
    let servers = format!("127.0.0.1:{}", ports::free());
    let began = Instant::now();
    let told = refused(Config {
        bootstrap_servers: servers.clone(),
        startup_timeout: Duration::from_secs(2),
        properties: vec![("sasl.password".into(), "hush".into())],
        ..Config::default()
    });
    assert!(
        told.starts_with(&format!("cannot reach Kafka at {servers}: ")),
        "{told}"
    );
    assert!(
        told.contains("onnect") && told.ends_with("check --bootstrap-servers and that the broker runs"),
        "{told}"
    );
    assert!(!told.contains("hush"));
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
}

#[test]
fn a_broker_that_does_not_let_us_in_is_told_apart() {
    let kafka = kafka::shared();
    let property = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    let began = Instant::now();
    let told = refused(Config {
        properties: vec![
            property("security.protocol", "SASL_PLAINTEXT"),
            property("sasl.mechanism", "PLAIN"),
            property("sasl.username", "somebody"),
            property("sasl.password", "hush"),
        ],
        ..config(kafka, "any")
    });
    assert!(told.contains("does not let us in") && told.contains("sasl.*"), "{told}");
    assert!(!told.contains("hush"), "{told}");
    assert!(
        began.elapsed() < Duration::from_secs(15),
        "it did not wait for the whole startup timeout"
    );
}

#[test]
fn a_closed_log_takes_nothing_in() {
    let kafka = kafka::shared();
    let log = connect(kafka, &kafka.compacted_topic("closed", 1));
    let outcome = start(&log, vec![set(&log, 0, "k", "v")]);
    log.close(DEADLINE);
    outcome.try_recv().expect("close waited for it").expect("written");
    let outcome = produce(&log, vec![set(&log, 0, "k", "v")]);
    assert!(
        matches!(&outcome, Err(ProduceError::NotWritten(why)) if why.contains("stopping")),
        "{outcome:?}"
    );
    log.close(DEADLINE);
}

/// One broker of its own: frozen, thawed, killed, started again; with auto-creation on, as is Kafka's default.
#[test]
#[expect(clippy::too_many_lines, reason = "it is still to be split")]
fn a_broker_that_freezes_or_dies_is_waited_for() {
    let kafka = Kafka::start_with(&["auto.create.topics.enable=true"]);
    let topic = kafka.compacted_topic("frozen", 1);
    let write_timeout = Duration::from_secs(3);
    let in_time = write_timeout + Duration::from_millis(300);
    let connect = || {
        let config = Config {
            write_timeout,
            ..config(&kafka, &topic)
        };
        KafkaLog::connect(config).expect("connect")
    };
    let (log, second) = (connect(), connect());
    let mut follower = log.follow(&Positions::new()).expect("follow");
    let mut seconds = second.follow(&Positions::new()).expect("follow");
    let mut history = History::default();
    // A producer that has written has a connection, so that its next record is sent at once.
    history.write(&log, "first").expect("written");
    history.write(&second, "by the second").expect("written");
    assert_eq!(read_all(&second, seconds.as_mut()).len(), 2);

    kafka.freeze();
    let began = Instant::now();
    let values: Vec<String> = (0..10).map(|n| format!("frozen {n}")).collect();
    let frozen: Vec<_> = values
        .iter()
        .map(|value| start(&log, vec![set(&log, 0, "k", value.clone())]))
        .collect();
    for (value, outcome) in values.iter().zip(frozen) {
        let outcome = outcome.recv_timeout(DEADLINE).expect("answered");
        let uncertain = matches!(outcome, Err(ProduceError::Uncertain(_)));
        assert!(
            outcome.is_err() && (uncertain || value != "frozen 0"),
            "the first was sent: {outcome:?}"
        );
        history.answers.push((value.clone(), outcome));
    }
    assert!(began.elapsed() <= in_time, "{:?}", began.elapsed());
    history.poll(follower.as_mut());
    let told = log.ends(Duration::from_secs(1)).expect_err("no answer").to_string();
    assert!(told.starts_with("cannot ask Kafka for the end of the log: "), "{told}");
    wait_for("the loss of the connection to be noticed", DEADLINE, || {
        (!log.connected()).then_some(())
    });
    let began = Instant::now();
    let given_up = start(&second, vec![set(&second, 0, "k", "given up")]);
    drop(seconds);
    second.close(Duration::from_secs(1));
    drop(second);
    let outcome = given_up.try_recv().expect("close answers everything");
    assert!(matches!(&outcome, Err(ProduceError::Uncertain(_))), "{outcome:?}");
    history.answers.push(("given up".into(), outcome));
    assert!(
        began.elapsed() < Duration::from_secs(8),
        "stopping took {:?}",
        began.elapsed()
    );
    kafka.thaw();
    history.goes_on(&log, follower.as_mut(), "after the frost");
    wait_for("the connection to be noticed", DEADLINE, || {
        log.connected().then_some(())
    });

    kafka.kill();
    let began = Instant::now();
    let outcome = history.write(&log, "dead");
    assert!(began.elapsed() <= in_time, "{:?}", began.elapsed());
    assert!(
        matches!(&outcome, Err(ProduceError::NotWritten(_))),
        "it was never sent: {outcome:?}"
    );
    history.poll(follower.as_mut());
    kafka.restart();
    history.goes_on(&log, follower.as_mut(), "after the crash");

    let topics = |args: &[&str]| {
        let servers = ["--bootstrap-server", &kafka.bootstrap];
        kafka
            .java("org.apache.kafka.tools.TopicCommand", &[&servers, args].concat(), b"")
            .stdout
    };
    topics(&["--delete", "--topic", &topic]);
    let outcome = produce(&log, vec![set(&log, 0, "k", "deleted")]);
    assert!(outcome.is_err(), "{outcome:?}");
    let error = read_error(follower.as_mut());
    assert!(matches!(error, LogError::IdentityChanged(_)), "{error:?}");
    let list = topics(&["--list"]);
    assert!(
        !String::from_utf8_lossy(&list).contains(&topic),
        "a client made the topic anew"
    );
}

/// What was written and what was read, in values that each are written once.
#[derive(Default)]
struct History {
    answers: Vec<(String, Outcome)>,
    seen: Vec<String>,
}

impl History {
    fn write(&mut self, log: &dyn Log, value: &str) -> Outcome {
        let outcome = produce(log, vec![set(log, 0, "k", value.to_owned())]);
        self.answers.push((value.to_owned(), outcome.clone()));
        outcome
    }

    /// The broker is away: there may be something left, and nothing is no error.
    fn poll(&mut self, follower: &mut dyn Follower) {
        let mut all = Vec::new();
        follower.poll(&mut all, POLL).expect("nothing is no error");
        self.seen.extend(all.iter().map(|seen| text(seen).1.expect("a value")));
    }

    /// A write succeeds again, and no answer so far was wrong: what was acknowledged is in the log, what was told to be
    /// not written is not, and nothing is there twice.
    fn goes_on(&mut self, log: &dyn Log, follower: &mut dyn Follower, value: &str) {
        let mut attempt = 0;
        wait_for("a write that succeeds", DEADLINE, || {
            attempt += 1;
            self.write(log, &format!("{value} {attempt}")).ok()
        });
        self.seen.extend(
            read_all(log, follower)
                .iter()
                .map(|seen| text(seen).1.expect("a value")),
        );
        for (value, answer) in &self.answers {
            let times = self.seen.iter().filter(|seen| *seen == value).count();
            let right = match answer {
                Ok(_) => times == 1,
                Err(ProduceError::Uncertain(_)) => times <= 1,
                Err(_) => times == 0,
            };
            assert!(right, "{value} is there {times} times, but was answered {answer:?}");
        }
    }
}
