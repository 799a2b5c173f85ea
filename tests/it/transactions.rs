//! Compare-and-set against everybody: several nodes and foreign producers on one Kafka topic, with faults.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::support::client::Client;
use crate::support::eventually;
use crate::support::kafka::{self, Kafka, fresh_topic};
use crate::support::server::Highwater;

const SOON: Duration = Duration::from_secs(20);

fn number(client: &mut Client, line: &str) -> Option<i64> {
    let reply = client.line(line);
    let text = String::from_utf8_lossy(&reply);
    text.strip_prefix(':')?.trim_end().parse().ok()
}

fn value(client: &mut Client, key: &str) -> String {
    let reply = client.line(&format!("GET {key}"));
    let text = String::from_utf8_lossy(&reply).into_owned();
    text.split("\r\n").nth(1).unwrap_or_default().to_owned()
}

/// A write of any other producer of the topic, by kcat.
fn foreign(kafka: &Kafka, topic: &str, key: &str, value: &str) {
    let line = format!("{key}:{value}\n");
    kafka.kcat(
        &["-P", "-t", topic, "-K:", "-X", "partitioner=murmur2_random"],
        line.as_bytes(),
    );
}

/// How the INCRs of one client ended.
#[derive(Default)]
struct Tally {
    ok: AtomicU64,
    not_written: AtomicU64,
    uncertain: AtomicU64,
}

impl Tally {
    /// Counts a reply; false at the end of the connection.
    fn note(&self, reply: &[u8]) {
        let counter = match reply {
            [b':', ..] => &self.ok,
            _ if reply.starts_with(b"-NOTWRITTEN") => &self.not_written,
            _ if reply.starts_with(b"-UNCERTAIN") => &self.uncertain,
            _ => panic!("{}", String::from_utf8_lossy(reply)),
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    fn get(&self) -> (u64, u64, u64) {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        (load(&self.ok), load(&self.not_written), load(&self.uncertain))
    }
}

#[test]
fn two_nodes_lose_no_increment() {
    let kafka = kafka::shared();
    let topic = fresh_topic("counters");
    let nodes = [Highwater::on_kafka(kafka, &topic), Highwater::on_kafka(kafka, &topic)];
    let tally = Tally::default();
    std::thread::scope(|scope| {
        for node in &nodes {
            for client in 0..3 {
                let tally = &tally;
                scope.spawn(move || {
                    let mut client_ = node.client();
                    client_.set_deadline(Duration::from_secs(30));
                    for n in 0..60 {
                        // One hot counter, and some that meet now and then.
                        let key = if n % 3 == 0 {
                            "hot".to_owned()
                        } else {
                            format!("c{}", (n + client) % 20)
                        };
                        tally.note(&client_.line(&format!("INCR {key}")));
                    }
                });
            }
        }
    });
    let (ok, not_written, uncertain) = tally.get();
    println!("{ok} OK, {not_written} not written, {uncertain} uncertain");
    assert_eq!(uncertain, 0);
    assert!(ok > 300, "of 360 only {ok} were done");
    for node in &nodes {
        let mut client = node.client();
        let mut sum = || {
            let mut all: Vec<String> = (0..20).map(|n| format!("c{n}")).collect();
            all.push("hot".into());
            all.iter()
                .map(|key| value(&mut client, key).parse::<u64>().unwrap_or(0))
                .sum::<u64>()
        };
        eventually(
            "every increment that was acknowledged counts, and no other",
            SOON,
            || sum() == ok,
        );
    }
}

#[test]
fn a_foreign_write_is_never_overwritten_by_what_did_not_see_it() {
    let kafka = kafka::shared();
    let topic = fresh_topic("foreign-cas");
    let node = Highwater::on_kafka(kafka, &topic);
    let done = AtomicBool::new(false);
    assert_eq!(number(&mut node.client(), "INCR counter"), Some(1));
    // Each foreign record sets the counter to a new multiple of a million; the increments between two of them count up from it. An
    // increment that did not see it would be a value below the record before it in the log.
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for n in 1..=15 {
                foreign(kafka, &topic, "counter", &format!("{}", n * 1_000_000));
                std::thread::sleep(Duration::from_millis(50));
            }
            done.store(true, Ordering::Release);
        });
        let mut client = node.client();
        while !done.load(Ordering::Acquire) {
            assert!(number(&mut client, "INCR counter").is_some());
        }
    });
    let records = kafka.records(&topic, "read_committed");
    let values: Vec<u64> = records
        .iter()
        .filter(|record| record.key.as_deref() == Some(b"counter"))
        .map(|record| {
            String::from_utf8_lossy(record.value.as_deref().expect("a value"))
                .parse()
                .expect("a number")
        })
        .collect();
    assert!(values.len() > 30);
    for pair in values.windows(2) {
        let foreign = pair[1] % 1_000_000 == 0;
        assert!(foreign || pair[1] == pair[0] + 1, "{} after {}", pair[1], pair[0]);
    }
}

#[test]
fn a_lock_has_one_holder_whichever_node_is_asked() {
    let kafka = kafka::shared();
    let topic = fresh_topic("locks");
    let nodes = [Highwater::on_kafka(kafka, &topic), Highwater::on_kafka(kafka, &topic)];
    let mut clients: Vec<Client> = nodes.iter().map(Highwater::client).collect();
    for round in 0..60 {
        let line = format!("SET lock{round} holder NX PX 60000");
        let replies: Vec<Vec<u8>> = std::thread::scope(|scope| {
            let asked: Vec<_> = clients
                .iter_mut()
                .map(|client| scope.spawn(|| client.line(&line)))
                .collect();
            asked.into_iter().map(|asked| asked.join().expect("no panic")).collect()
        });
        let got = replies.iter().filter(|reply| *reply == b"+OK\r\n").count();
        let refused = replies.iter().filter(|reply| *reply == b"$-1\r\n").count();
        assert_eq!((got, refused), (1, 1), "round {round}: {replies:?}");
    }
}

#[test]
fn exec_does_nothing_if_another_node_or_producer_changed_a_watched_key() {
    let kafka = kafka::shared();
    let topic = fresh_topic("watch");
    let nodes = [Highwater::on_kafka(kafka, &topic), Highwater::on_kafka(kafka, &topic)];
    let (mut one, mut two) = (nodes[0].client(), nodes[1].client());
    one.check("SET balance 100", "+OK");
    one.check("WATCH balance", "+OK");
    two.check("SET balance 50", "+OK");
    one.check("MULTI", "+OK");
    one.check("SET balance 90", "+QUEUED");
    // Acknowledged before, so it counts, whether this node has read it by now or not.
    assert_eq!(one.line("EXEC"), b"*-1\r\n");
    assert_eq!(value(&mut two, "balance"), "50");
    // A loop of compare and set on both nodes at once: no step is lost.
    std::thread::scope(|scope| {
        for node in &nodes {
            scope.spawn(move || {
                let mut client = node.client();
                let mut done = 0;
                while done < 25 {
                    client.check("WATCH balance", "+OK");
                    let seen: i64 = value(&mut client, "balance").parse().expect("a number");
                    client.check("MULTI", "+OK");
                    client.check(&format!("SET balance {}", seen + 1), "+QUEUED");
                    done += i32::from(client.line("EXEC") == b"*1\r\n+OK\r\n");
                }
            });
        }
    });
    eventually("50 steps on 50", SOON, || value(&mut one, "balance") == "100");
    eventually("on both nodes", SOON, || value(&mut two, "balance") == "100");
}

#[test]
fn several_keys_change_at_once_over_partitions_and_databases_also_after_kill_9() {
    let kafka = kafka::shared();
    let topic = kafka.compacted_topic("atomic", 4);
    let mut writer = Highwater::on_kafka(kafka, &topic);
    let reader = Highwater::on_kafka(kafka, &topic);
    let mut client = writer.client();
    client.check("SELECT 1", "+OK");
    client.check("SET there 0", "+OK");
    client.check("SELECT 0", "+OK");
    client.check("MSET a 0 b 0 c 0 d 0 e 0", "+OK");
    let mut seeing = reader.client();
    eventually("the reader has them", SOON, || {
        seeing
            .tree("MGET a b c d e")
            .items()
            .iter()
            .all(|item| item.bytes().is_some())
    });
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Acquire) {
                let seen = seeing.tree("MGET a b c d e");
                let all: Vec<_> = seen.items().iter().collect();
                assert!(
                    all.windows(2).all(|pair| pair[0] == pair[1]),
                    "half of a write was seen: {all:?}"
                );
            }
        });
        for life in 0..4 {
            let mut client = writer.client();
            let started = Instant::now();
            let until = Duration::from_millis(300 + 130 * life);
            let mut n = 0;
            while started.elapsed() < until {
                n += 1;
                let step = life * 1_000_000 + n;
                let lines = [
                    "MULTI".to_owned(),
                    format!("MSET a {step} b {step} c {step} d {step} e {step}"),
                    "SELECT 1".into(),
                    format!("SET there {step}"),
                    "SELECT 0".into(),
                    "EXEC".into(),
                ];
                let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
                // The last one is not waited for: the process is killed under it.
                if started.elapsed() + Duration::from_millis(20) > until {
                    lines
                        .iter()
                        .for_each(|line| client.write(format!("{line}\r\n").as_bytes()));
                    break;
                }
                client.pipeline(&lines);
            }
            writer.kill9();
            writer.restart();
            let mut client = writer.client();
            let all: Vec<String> = ["a", "b", "c", "d", "e"]
                .iter()
                .map(|key| value(&mut client, key))
                .collect();
            client.check("SELECT 1", "+OK");
            let there = value(&mut client, "there");
            assert!(all.iter().all(|value| *value == there), "{all:?} and {there}");
        }
        stop.store(true, Ordering::Release);
    });
}

#[test]
fn an_expired_key_gets_its_tombstone_in_the_topic() {
    let kafka = kafka::shared();
    let topic = fresh_topic("expired");
    let nodes = [Highwater::on_kafka(kafka, &topic), Highwater::on_kafka(kafka, &topic)];
    let mut client = nodes[0].client();
    for n in 0..20 {
        client.check(&format!("SET brief{n} x PX 200"), "+OK");
        client.check(&format!("SET renewed{n} x PX 200"), "+OK");
    }
    std::thread::sleep(Duration::from_millis(150));
    for n in 0..20 {
        client.check(&format!("SET renewed{n} y"), "+OK");
    }
    let newest = || {
        let mut newest: HashMap<Vec<u8>, Option<Vec<u8>>> = HashMap::new();
        for record in kafka.records(&topic, "read_committed") {
            newest.insert(record.key.expect("a key"), record.value);
        }
        newest
    };
    eventually("every expired key has a tombstone", SOON, || {
        let newest = newest();
        (0..20).all(|n| newest.get(format!("brief{n}").as_bytes()) == Some(&None))
    });
    let newest = newest();
    for n in 0..20 {
        assert_eq!(newest[format!("renewed{n}").as_bytes()].as_deref(), Some(&b"y"[..]));
    }
}

#[test]
fn a_node_that_stands_still_in_a_transaction_holds_the_others_up_for_a_bounded_time() {
    let kafka = kafka::shared();
    let topic = fresh_topic("stopped");
    let stopped = Highwater::builder()
        .kafka(kafka, &topic)
        .allow("a transactional producer")
        .start();
    let other = Highwater::on_kafka(kafka, &topic);
    let mut client = other.client();
    client.check("INCR counter", ":1");
    let acknowledged = AtomicU64::new(1);
    std::thread::scope(|scope| {
        let busy = scope.spawn(|| {
            let mut client = stopped.client();
            client.set_deadline(Duration::from_secs(60));
            let until = Instant::now() + Duration::from_secs(20);
            while Instant::now() < until {
                let reply = client.line("INCR counter");
                if reply.starts_with(b":") {
                    acknowledged.fetch_add(1, Ordering::Relaxed);
                }
                assert!(!reply.starts_with(b"-UNCERTAIN"), "{}", String::from_utf8_lossy(&reply));
            }
        });
        std::thread::sleep(Duration::from_millis(500));
        stopped.signal(libc::SIGSTOP);
        // Its transaction times out after the write timeout of 5 s; the broker of the tests looks every second.
        let since = Instant::now();
        while number(&mut client, "INCR counter").is_none() {
            assert!(since.elapsed() < Duration::from_secs(15), "held up for too long");
        }
        println!("held up for {:?}", since.elapsed());
        acknowledged.fetch_add(1, Ordering::Relaxed);
        stopped.signal(libc::SIGCONT);
        busy.join().expect("no panic");
    });
    let expected = acknowledged.load(Ordering::Relaxed).to_string();
    eventually("no increment is lost, none counts twice", SOON, || {
        value(&mut client, "counter") == expected
    });
}

#[test]
fn what_is_answered_while_the_broker_stands_still_is_true() {
    let kafka = Kafka::start();
    let topic = fresh_topic("frozen");
    let node = Highwater::builder()
        .kafka(&kafka, &topic)
        .allow("[thrd:")
        .allow("lost the connection")
        .allow("a transactional producer")
        .start();
    let tally = Tally::default();
    let plain = Tally::default();
    let until = Instant::now() + Duration::from_secs(32);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let mut client = node.client();
                client.set_deadline(Duration::from_secs(30));
                while Instant::now() < until {
                    let asked = Instant::now();
                    tally.note(&client.line("INCR counter"));
                    assert!(
                        asked.elapsed() < Duration::from_secs(10),
                        "answered after {:?}",
                        asked.elapsed()
                    );
                }
            });
        }
        scope.spawn(|| {
            let mut client = node.client();
            client.set_deadline(Duration::from_secs(30));
            let mut n = 0;
            while Instant::now() < until {
                n += 1;
                match client.line(&format!("SET plain{n} v")).as_slice() {
                    b"+OK\r\n" => plain.ok.fetch_add(1, Ordering::Relaxed),
                    error => {
                        plain.note(error);
                        0
                    }
                };
            }
        });
        // Long and short stops, each at another moment of a transaction.
        for stop in [7_000, 300, 900, 40, 120, 6_000] {
            std::thread::sleep(Duration::from_millis(900 + stop % 7));
            kafka.stop_signal();
            std::thread::sleep(Duration::from_millis(stop));
            kafka.cont_signal();
        }
    });
    let (ok, not_written, uncertain) = tally.get();
    println!(
        "INCR: {ok} OK, {not_written} not written, {uncertain} uncertain; SET: {:?}",
        plain.get()
    );
    let mut client = node.client();
    client.set_deadline(Duration::from_secs(30));
    eventually("it writes again", SOON, || client.line("SET again 1") == b"+OK\r\n");
    // Everything that was under way is decided by now, or soon.
    eventually("it counts again", SOON, || {
        number(&mut client, "INCR counter").is_some()
    });
    let counted: u64 = value(&mut client, "counter").parse().expect("a number");
    assert!(ok > 20, "only {ok} were done");
    assert!(
        (ok + 1..=ok + 1 + uncertain).contains(&counted),
        "{counted} counted, {ok} acknowledged, {uncertain} uncertain"
    );
    let records = kafka.records(&topic, "read_committed");
    let mut seen: HashMap<Vec<u8>, u32> = HashMap::new();
    for record in records
        .iter()
        .filter(|record| record.key.as_deref() == Some(b"counter"))
    {
        *seen.entry(record.value.clone().expect("a value")).or_default() += 1;
    }
    assert!(seen.values().all(|times| *times == 1), "a value was counted to twice");
}
