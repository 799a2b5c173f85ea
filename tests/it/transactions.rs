//! Compare-and-set against everybody: several nodes and foreign producers on one Kafka topic, with faults.

use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::kafka_network::check_keys;
use crate::support::client::Client;
use crate::support::kafka::{self, Kafka, fresh_topic};
use crate::support::resp::Reply;
use crate::support::server::Highwater;
use crate::support::{Stopping, eventually};

const SOON: Duration = Duration::from_secs(20);

/// Two nodes that wait for longer than usual until a write is through: for large groups on slow machines.
fn two_patient_nodes(kafka: &Kafka, topic: &str) -> [Highwater; 2] {
    [(), ()].map(|()| {
        let node = Highwater::builder().kafka(kafka, topic);
        node.args(&["--write-timeout", "60s"]).start()
    })
}

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

fn text_of(reply: &Reply) -> String {
    String::from_utf8_lossy(reply.bytes().unwrap_or_default()).into_owned()
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
    refusals: Mutex<HashMap<String, u64>>,
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
        if reply.starts_with(b"-") {
            let text = String::from_utf8_lossy(reply).trim_end().to_owned();
            *self.refusals.lock().expect("no panic").entry(text).or_default() += 1;
        }
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
            let _done = Stopping(&done);
            for n in 1..=15 {
                foreign(kafka, &topic, "counter", &format!("{}", n * 1_000_000));
                std::thread::sleep(Duration::from_millis(50));
            }
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
        let _stopping = Stopping(&stop);
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
    });
}

/// What lies where at one moment.
#[derive(Debug, PartialEq)]
struct Places {
    /// Database and name of the thing that RENAME and MOVE move.
    thing: (usize, usize),
    /// Database of what COPY copies; the copy is in the other one.
    original: usize,
}

/// Looks at both databases at once. There is one thing, one original, and its copy in the other database, with the same value.
fn places(client: &mut Client) -> Places {
    const LOOK: &str = "MGET thing1 thing2 original copy";
    let replies = client.pipeline(&["MULTI", LOOK, "SELECT 1", LOOK, "SELECT 0", "EXEC"]);
    let seen = Reply::parse(&replies[5]);
    let values = |database: usize| -> Vec<Option<&[u8]>> {
        let items = seen.items()[database * 2].items();
        items.iter().map(Reply::bytes).collect()
    };
    let both = [values(0), values(1)];
    let things = (0..4)
        .map(|n| (n / 2, n % 2))
        .filter(|(of, name)| both[*of][*name].is_some());
    let things: Vec<_> = things.collect();
    let original = usize::from(both[0][2].is_none());
    let is_whole = both[1 - original][2].is_none()
        && both[original][3].is_none()
        && both[original][2].is_some()
        && both[original][2] == both[1 - original][3];
    assert!(things.len() == 1 && is_whole, "half of a write was seen: {both:?}");
    Places {
        thing: things[0],
        original,
    }
}

#[test]
fn rename_move_copy_and_swapdb_are_seen_whole_by_another_node_also_after_kill_9() {
    let kafka = kafka::shared();
    let topic = kafka.compacted_topic("moving", 4);
    let mut writer = Highwater::on_kafka(kafka, &topic);
    let reader = Highwater::on_kafka(kafka, &topic);
    let mut client = writer.client();
    client.check("MSET thing1 1 original 0", "+OK");
    client.check("COPY original copy DB 1", ":1");
    let mut seeing = reader.client();
    eventually("the reader has them", SOON, || {
        let replies = seeing.pipeline(&["SELECT 1", "EXISTS copy", "SELECT 0", "EXISTS thing1 original"]);
        (replies[1].as_slice(), replies[3].as_slice()) == (b":1\r\n", b":2\r\n")
    });
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let looking = scope.spawn(|| {
            let (mut before, mut changes) = (places(&mut seeing), 0);
            while !stop.load(Ordering::Acquire) {
                let now = places(&mut seeing);
                changes += u32::from(now != before);
                before = now;
            }
            changes
        });
        let stopping = Stopping(&stop);
        for life in 0..4 {
            let mut client = writer.client();
            for n in 0.. {
                let Places {
                    thing: (database, name),
                    original,
                } = places(&mut client);
                let line = match n % 4 {
                    0 => format!("RENAME thing{} thing{}", name + 1, 2 - name),
                    1 => format!("MOVE thing{} {}", name + 1, 1 - database),
                    2 => format!("COPY original copy DB {} REPLACE", 1 - original),
                    _ => "SWAPDB 0 1".into(),
                };
                let within = if n % 4 == 2 { original } else { database };
                let (select, set) = (format!("SELECT {within}"), format!("SET original {life}.{n}"));
                let lines = match n % 4 {
                    2 => vec![&select, "MULTI", &set, &line, "EXEC", "SELECT 0"],
                    _ => vec![&select, line.as_str(), "SELECT 0"],
                };
                // The last one is not waited for: the process is killed under it. Each kind's turn comes.
                if n == 12 + life {
                    lines
                        .iter()
                        .for_each(|line| client.write(format!("{line}\r\n").as_bytes()));
                    break;
                }
                for reply in client.pipeline(&lines) {
                    assert!(!reply.starts_with(b"-"), "{line}: {}", String::from_utf8_lossy(&reply));
                }
            }
            writer.kill9();
            writer.restart();
            places(&mut writer.client());
        }
        drop(stopping);
        let changes = looking.join().expect("nothing was seen by half");
        assert!(changes > 4, "only {changes} changes were seen");
    });
}

/// The largest group that a command of a few bytes makes.
#[test]
fn swapdb_at_its_limit_is_seen_whole_by_another_node() {
    const KEYS: usize = 49_999;
    let kafka = kafka::shared();
    let topic = fresh_topic("swapped");
    let [writer, reader] = two_patient_nodes(kafka, &topic);
    let mut client = writer.client();
    client.set_deadline(Duration::from_secs(90));
    client.check("SELECT 1", "+OK");
    client.check("SET k0 there", "+OK");
    client.check("SELECT 0", "+OK");
    for first in (0..KEYS).step_by(1_000) {
        let pairs: String = (first..KEYS.min(first + 1_000)).map(|n| format!(" k{n} v")).collect();
        client.check(&format!("MSET{pairs}"), "+OK");
    }
    let last = format!("EXISTS k0 k1 k777 k25000 k{}", KEYS - 1);
    // How many of these keys each database has.
    let mut seeing = reader.client();
    let mut look = || {
        let replies = seeing.pipeline(&["MULTI", &last, "SELECT 1", &last, "SELECT 0", "EXEC"]);
        let seen = Reply::parse(&replies[5]);
        [0, 2].map(|n| seen.items()[n].integer().expect("a number"))
    };
    eventually("the reader has them", SOON, || look() == [5, 1]);
    std::thread::scope(|scope| {
        let swapping = scope.spawn(|| client.check("SWAPDB 0 1", "+OK"));
        let deadline = Instant::now() + Duration::from_secs(90);
        loop {
            match look() {
                [1, 5] => break,
                seen => assert_eq!(seen, [5, 1], "half of it was seen"),
            }
            assert!(Instant::now() < deadline, "it is not seen");
        }
        swapping.join().expect("it is swapped");
    });
    let mut client = reader.client();
    client.check("GET k0", "$5\r\nthere");
    eventually("they are counted", SOON, || number(&mut client, "DBSIZE") == Some(1));
    client.check("SELECT 1", "+OK");
    eventually("they are counted", SOON, || {
        number(&mut client, "DBSIZE") == Some(KEYS as i64)
    });
}

/// As much of a value as tells whose it is.
fn beginning(value: &[u8]) -> String {
    String::from_utf8_lossy(&value[..value.len().min(20)]).into_owned()
}

/// What MGET of these keys answers, which must be the same for all of them.
fn one_value(client: &mut Client, keys: &[String]) -> Option<Vec<u8>> {
    let seen = client.tree(&format!("MGET {}", keys.join(" ")));
    let values: Vec<_> = seen.items().iter().map(Reply::bytes).collect();
    assert!(
        values.windows(2).all(|pair| pair[0] == pair[1]),
        "half of a group was seen: {:?}",
        values.iter().map(|value| value.map(beginning)).collect::<Vec<_>>()
    );
    values[0].map(<[u8]>::to_vec)
}

/// Writes of several keys read nothing, and yet one comes after the other in all partitions.
fn are_in_one_order(topic: &str) {
    const KEYS: [&str; 4] = ["k0", "k1", "k2", "k3"];
    let kafka = kafka::shared();
    let nodes = [Highwater::on_kafka(kafka, topic), Highwater::on_kafka(kafka, topic)];
    let mut writers = nodes.each_ref().map(Highwater::client);
    let mut reader = nodes[0].client();
    reader.check("HIGHWATER CONSISTENCY LINEARIZABLE", "+OK");
    for round in 0..50 {
        // In two of three rounds one of them writes two keys one after the other.
        let singly = [Some(0), None, Some(1)][round % 3];
        let [first, second] = [[0, 3], [3, 0]][round % 2];
        std::thread::scope(|scope| {
            for (number, client) in writers.iter_mut().enumerate() {
                let value = format!("{number}-{round}");
                scope.spawn(move || {
                    if singly == Some(number) {
                        for key in [first, second].map(|key| KEYS[key]) {
                            client.check(&format!("SET {key} {value}"), "+OK");
                        }
                    } else {
                        let pairs = KEYS.map(|key| format!("{key} {value}"));
                        client.check(&format!("MSET {}", pairs.join(" ")), "+OK");
                    }
                });
            }
        });
        let seen = reader.tree(&format!("MGET {}", KEYS.join(" ")));
        let seen: Vec<String> = seen.items().iter().map(text_of).collect();
        let whole = &seen[1];
        let alone = singly.map(|number| format!("{number}-{round}"));
        let is_right = |key: usize| seen[key] == *whole || Some(&seen[key]) == alone.as_ref();
        let is_in_order = seen[first] == *whole || seen[second] != *whole;
        assert!(
            seen[2] == *whole && is_right(first) && is_right(second) && is_in_order,
            "round {round}: {seen:?}"
        );
    }
}

#[test]
fn what_two_nodes_write_to_several_keys_is_in_one_order() {
    are_in_one_order(&fresh_topic("one-order"));
}

#[test]
fn what_two_nodes_write_to_several_keys_is_in_one_order_over_partitions() {
    are_in_one_order(&kafka::shared().compacted_topic("one-order", 3));
}

/// In one partition too, where they take several of Kafka's batches, another node's come between.
#[test]
fn what_two_nodes_write_to_very_many_keys_is_in_one_order() {
    let (kafka, topic) = (kafka::shared(), fresh_topic("one-order"));
    // On a slow machine each comes between the other's batches for longer than the usual write timeout.
    let nodes = two_patient_nodes(kafka, &topic);
    let mut writers = nodes.each_ref().map(Highwater::client);
    for writer in &mut writers {
        writer.set_deadline(Duration::from_secs(90));
    }
    let mut reader = nodes[0].client();
    reader.check("HIGHWATER CONSISTENCY LINEARIZABLE", "+OK");
    let keys: Vec<String> = (0..200).map(|n| format!("k{n}")).collect();
    for round in 0..10 {
        std::thread::scope(|scope| {
            for (number, client) in writers.iter_mut().enumerate() {
                let value = format!("{number}-{round}:{}", "x".repeat(20_000));
                let pairs = keys.iter().map(|key| format!("{key} {value}"));
                let command = format!("MSET {}", pairs.collect::<Vec<_>>().join(" "));
                scope.spawn(move || client.check(&command, "+OK"));
            }
        });
        assert!(
            one_value(&mut reader, &keys).is_some(),
            "round {round}: nothing was written"
        );
    }
}

/// With several partitions and no pause, some group is always half read.
#[test]
fn groups_that_never_cease_are_seen_whole_by_another_node_which_keeps_up() {
    const WRITERS: usize = 8;
    let kafka = kafka::shared();
    let topic = kafka.compacted_topic("ceaseless", 4);
    // Each fails the test if it logs that a group is incomplete.
    let [writer, reader] = two_patient_nodes(kafka, &topic);
    let keys: Vec<Vec<String>> = (0..WRITERS)
        .map(|of| (0..8).map(|n| format!("k{of}.{n}")).collect())
        .collect();
    let stop = AtomicBool::new(false);
    let last: Vec<String> = std::thread::scope(|scope| {
        let write = |of: &Vec<String>| {
            let mut client = writer.client();
            client.set_deadline(Duration::from_secs(90));
            let mut step = 0;
            while !stop.load(Ordering::Acquire) {
                let lines: Vec<String> = (step..step + 50)
                    .map(|n| {
                        format!(
                            "MSET {}",
                            of.iter().map(|key| format!("{key} {n} ")).collect::<String>()
                        )
                    })
                    .collect();
                let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
                for reply in client.pipeline(&lines) {
                    assert_eq!(reply, b"+OK\r\n", "{}", String::from_utf8_lossy(&reply));
                }
                step += 50;
            }
            (step - 1).to_string()
        };
        let writing: Vec<_> = keys.iter().map(|of| scope.spawn(move || write(of))).collect();
        let stopping = Stopping(&stop);
        let (mut client, mut counting) = (reader.client(), reader.client());
        counting.set_deadline(Duration::from_secs(60));
        let started = Instant::now();
        let mut values = std::collections::HashSet::new();
        while started.elapsed() < Duration::from_secs(6) || values.len() < 20 {
            assert!(
                started.elapsed() < Duration::from_secs(60),
                "only {} were seen",
                values.len()
            );
            for of in &keys {
                values.extend(one_value(&mut client, of));
            }
            // What the writer is at may be a part of the first groups.
            let count = number(&mut counting, "DBSIZE").expect("the store follows");
            assert!((0..=8 * WRITERS as i64).contains(&count), "{count} keys");
        }
        drop(stopping);
        writing.into_iter().map(|w| w.join().expect("a writer")).collect()
    });
    let mut client = reader.client();
    for (of, last) in keys.iter().zip(&last) {
        eventually("the last group is seen", SOON, || {
            one_value(&mut client, of).as_deref() == Some(last.as_bytes())
        });
    }
    client.check("DBSIZE", &format!(":{}", 8 * WRITERS));
}

#[test]
fn a_large_group_that_comes_slowly_is_seen_whole() {
    const KEYS: usize = 16;
    let (kafka, proxy) = Kafka::start_behind_proxy();
    let topic = kafka.compacted_topic("slow", 4);
    let start = || {
        let node = Highwater::builder().kafka(&kafka, &topic);
        node.args(&["--write-timeout", "30s"]).start()
    };
    let (writer, reader) = (start(), start());
    let mut client = reader.client();
    // The broker's answers pass 64 KB at a time.
    proxy.to_client.delay(Duration::from_millis(20));
    let asked = Instant::now();
    std::thread::scope(|scope| {
        let write = || {
            let mut client = writer.client();
            client.set_deadline(Duration::from_secs(60));
            let value = vec![b'v'; 1_000_000];
            let names: Vec<String> = (0..KEYS).map(|n| format!("k{n}")).collect();
            let mut args: Vec<&[u8]> = vec![b"MSET"];
            names.iter().for_each(|name| args.extend([name.as_bytes(), &value]));
            assert_eq!(client.send(&args), b"+OK\r\n");
        };
        let writing = scope.spawn(write);
        let exist: String = (0..KEYS).map(|n| format!(" k{n}")).collect();
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            match number(&mut client, &format!("EXISTS{exist}")) {
                Some(0) => assert!(Instant::now() < deadline, "the group is not seen"),
                seen => break assert_eq!(seen, Some(KEYS as i64)),
            }
        }
        writing.join().expect("a writer");
    });
    println!("seen after {:?}", asked.elapsed());
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
    // Both nodes have looked, and more than once: a last key that expires is deleted after that.
    client.check("SET last x PX 2500", "+OK");
    let all = || kafka.records(&topic, "read_committed");
    eventually("the last one is deleted", SOON, || {
        let last = all().pop().expect("records");
        last.key.as_deref() == Some(b"last") && last.value.is_none()
    });
    let mut deletes: HashMap<Vec<u8>, u32> = HashMap::new();
    for record in all().into_iter().filter(|record| record.value.is_none()) {
        *deletes.entry(record.key.expect("a key")).or_default() += 1;
    }
    for n in 0..20 {
        assert_eq!(deletes[format!("brief{n}").as_bytes()], 1, "brief{n} was deleted twice");
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
    let (acknowledged, uncertain) = (AtomicU64::new(1), AtomicU64::new(0));
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
                // Only the one that was under way: when the node goes on, its write timeout is over, and it takes a second at most to find out.
                if reply.starts_with(b"-UNCERTAIN") {
                    let before = uncertain.fetch_add(1, Ordering::Relaxed);
                    assert_eq!(before, 0, "{}", String::from_utf8_lossy(&reply));
                }
            }
        });
        std::thread::sleep(Duration::from_millis(500));
        stopped.freeze();
        // Its transaction times out after the write timeout of 5 s; the broker of the tests looks every second.
        let since = Instant::now();
        while number(&mut client, "INCR counter").is_none() {
            assert!(since.elapsed() < Duration::from_secs(15), "held up for too long");
        }
        println!("held up for {:?}", since.elapsed());
        acknowledged.fetch_add(1, Ordering::Relaxed);
        stopped.thaw();
        busy.join().expect("no panic");
    });
    let least = acknowledged.load(Ordering::Relaxed);
    let expected = least..=least + uncertain.load(Ordering::Relaxed);
    eventually("no increment is lost, none counts twice", SOON, || {
        value(&mut client, "counter")
            .parse()
            .is_ok_and(|count| expected.contains(&count))
    });
}

#[test]
#[expect(clippy::too_many_lines, reason = "it is still to be split")]
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
    let (mut written, mut not_written, mut uncertain_sets) = (Vec::new(), Vec::new(), Vec::new());
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
                let key = format!("plain{n}");
                let reply = client.line(&format!("SET {key} v"));
                match String::from_utf8_lossy(&reply).split([' ', '\r']).next() {
                    Some("+OK") => written.push(key),
                    Some("-NOTWRITTEN") => not_written.push(key),
                    Some("-UNCERTAIN") => uncertain_sets.push(key),
                    other => panic!("SET {key}: {other:?}"),
                }
            }
        });
        // Long and short stops, each at another moment of a transaction.
        for stop in [7_000, 300, 900, 40, 120, 6_000] {
            std::thread::sleep(Duration::from_millis(900 + stop % 7));
            kafka.freeze();
            std::thread::sleep(Duration::from_millis(stop));
            kafka.thaw();
        }
    });
    let (ok, not_incremented, uncertain) = tally.get();
    println!(
        "INCR: {ok} OK, {not_incremented} not written, {uncertain} uncertain; SET: {} OK, {} not written, {} uncertain",
        written.len(),
        not_written.len(),
        uncertain_sets.len()
    );
    println!("refused: {:#?}", tally.refusals);
    let mut client = node.client();
    client.set_deadline(Duration::from_secs(30));
    eventually("it writes again", SOON, || client.line("SET again 1") == b"+OK\r\n");
    check_keys(&mut client, &written, &not_written);
    // Everything that was under way is decided by now, or soon.
    // A broker that stood still can take 30 s until it writes the mark at a transaction's end, and
    // what comes behind that transaction cannot be read before.
    eventually("it counts again", Duration::from_secs(60), || {
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
