//! Kafka's two lanes, plain records and transactions, as the topic shows them: the order of one connection's commands, and how many
//! of them are one transaction.

use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::support::Stopping;
use crate::support::client::Client;
use crate::support::foreign::Foreign;
use crate::support::kafka::{self, Kafka, fresh_topic};
use crate::support::server::Highwater;

const TIME: Duration = Duration::from_secs(3);
/// The same on a machine that is busy with other things.
const LONGEST: Duration = Duration::from_secs(60);
/// The foreign producer sets counters to multiples of this.
const LEAP: u64 = 1_000_000;

/// Keys and values that a command left in the topic.
type Left = Vec<(String, String)>;

/// Pipelines of writes of both lanes, until it is over. Returns what was acknowledged, in the order of the commands.
fn connection(mut client: Client, number: usize, over: &AtomicBool, done: &AtomicUsize) -> Vec<Left> {
    let mut acknowledged = Vec::new();
    for pipeline in 0.. {
        if over.load(Ordering::Acquire) {
            break;
        }
        let line = |n: usize| match n % 4 {
            0 => format!("INCR hot-{number}"),
            1 => format!("MSET left-{number}-{n} {n} right-{number}-{n} {n}"),
            _ => format!("SET plain-{number}-{n} {n}"),
        };
        done.store(pipeline, Ordering::Release);
        let first = pipeline * 40;
        let lines: Vec<String> = (first..first + 40).map(line).collect();
        let replies = client.pipeline(&lines.iter().map(String::as_str).collect::<Vec<_>>());
        for (n, reply) in (first..).zip(replies) {
            let reply = String::from_utf8_lossy(&reply).trim_end().to_owned();
            let left = |name: &str| (format!("{name}-{number}-{n}"), n.to_string());
            acknowledged.push(match (n % 4, reply.as_str()) {
                (0, reply) if reply.starts_with(':') => vec![(format!("hot-{number}"), reply[1..].to_owned())],
                (1, "+OK") => vec![left("left"), left("right")],
                (2 | 3, "+OK") => vec![left("plain")],
                (_, reply) if reply.starts_with("-NOTWRITTEN ") => continue,
                _ => panic!("{}: {reply}", line(n)),
            });
        }
    }
    acknowledged
}

fn check_order(kafka: &Kafka, partitions: i32) {
    let topic = kafka.compacted_topic("order", partitions);
    let node = Highwater::on_kafka(kafka, &topic);
    let foreign = Foreign::new(kafka, &topic);
    let (over, done) = (AtomicBool::new(false), [const { AtomicUsize::new(0) }; 2]);
    let all: Vec<Vec<Left>> = std::thread::scope(|scope| {
        let (node, over) = (&node, &over);
        let connection = |(number, done)| scope.spawn(move || connection(node.client(), number, over, done));
        let connections: Vec<_> = done.iter().enumerate().map(connection).collect();
        let stopping = Stopping(over);
        let begun = Instant::now();
        // Makes increments be computed again, again and again.
        for n in 1.. {
            foreign.write(&format!("hot-{}", n % 2), Some(&(n * LEAP).to_string()));
            std::thread::sleep(Duration::from_millis(n % 17));
            let enough = || done.iter().all(|done| done.load(Ordering::Acquire) > 10);
            if begun.elapsed() > LONGEST || (begun.elapsed() > TIME && enough()) {
                break;
            }
        }
        drop(stopping);
        connections
            .into_iter()
            .map(|one| one.join().expect("a connection"))
            .collect()
    });
    let text = |bytes: Option<Vec<u8>>| String::from_utf8(bytes.expect("a key and a value")).expect("text");
    let places: HashMap<(String, String), (i32, i64)> = kafka
        .records(&topic, "read_committed")
        .into_iter()
        .map(|record| {
            (
                (text(record.key), text(record.value)),
                (record.partition, record.offset),
            )
        })
        .collect();
    for (number, acknowledged) in all.iter().enumerate() {
        let mut last: HashMap<i32, (i64, &Left)> = HashMap::new();
        for left in acknowledged {
            let of_command: Vec<(i32, i64)> = left
                .iter()
                .map(|record| {
                    *places
                        .get(record)
                        .unwrap_or_else(|| panic!("{record:?} is not in the topic"))
                })
                .collect();
            for (partition, offset) in &of_command {
                if let Some((before, of)) = last.get(partition) {
                    assert!(before < offset, "{of:?} at {before} came before {left:?} at {offset}");
                }
            }
            for (partition, offset) in of_command {
                let (highest, _) = last.entry(partition).or_insert((offset, left));
                let highest = offset.max(*highest);
                last.insert(partition, (highest, left));
            }
        }
        let hot = acknowledged.iter().flatten().filter(|(key, _)| key.starts_with("hot"));
        let leaps: BTreeSet<u64> = hot
            .map(|(_, value)| value.parse::<u64>().expect("a number") / LEAP)
            .collect();
        println!(
            "{partitions} partitions, connection {number}: {} commands, {} conflicts at least",
            acknowledged.len(),
            leaps.len()
        );
        assert!(acknowledged.len() > 200 && leaps.len() > 1, "too little happened");
    }
}

#[test]
fn the_commands_of_a_connection_are_in_the_topic_in_their_order() {
    for partitions in [1, 3] {
        check_order(kafka::shared(), partitions);
    }
}

#[test]
fn thousands_of_increments_of_a_pipeline_are_a_few_transactions() {
    let kafka = kafka::shared();
    let topic = fresh_topic("commits");
    let node = Highwater::on_kafka(kafka, &topic);
    let mut client = node.client();
    let mut times = Vec::new();
    for n in 1..=300 {
        let asked = Instant::now();
        client.check("INCR alone", &format!(":{n}"));
        times.push(asked.elapsed());
    }
    times.sort();
    println!(
        "an INCR alone took {:?} (median), {:?} (slowest of 300)",
        times[150], times[299]
    );
    assert!(times[150] < Duration::from_millis(100), "a median of {:?}", times[150]);
    let lines = vec!["INCR together"; 5_000];
    for (n, reply) in (1..).zip(client.pipeline(&lines)) {
        assert_eq!(String::from_utf8_lossy(&reply), format!(":{n}\r\n"));
    }
    // The end of a transaction is a record that nobody is shown: a gap in the offsets.
    let commits = |key: &str| {
        let records = kafka.records(&topic, "read_uncommitted");
        let mut offsets = records
            .iter()
            .filter(|r| r.key.as_deref() == Some(key.as_bytes()))
            .map(|r| r.offset);
        let first = offsets.next().expect("it was written");
        let (last, count) = offsets.fold((first, 1), |(_, count), offset| (offset, count + 1));
        1 + last - first - (count - 1)
    };
    assert_eq!(commits("alone"), 300);
    println!("5,000 in a pipeline were {} transactions", commits("together"));
    assert!(commits("together") <= 25, "{}", commits("together"));
}
