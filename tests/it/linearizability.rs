//! Whether what clients saw can have been, judged by porcupine: several clients on two nodes of a topic, a foreign producer, and
//! nodes that are killed meanwhile. A write whose end nobody knows stays open in the history.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::support::attempt::Ended;
use crate::support::foreign::Foreign;
use crate::support::history::{ABSENT, Actor, Operation, Recorder, assert_linearizable, judge};
use crate::support::kafka::{self, fresh_topic};
use crate::support::server::Highwater;
use crate::support::{Stopping, longer};

const CLIENTS_OF_A_NODE: u32 = 3;
/// Operations of one client in one round. Keys live for a round, so histories stay short enough to be judged.
const OPERATIONS: u32 = 25;
/// A round in which nobody answers ends some time.
const ROUND: Duration = Duration::from_secs(20);
const FOREIGN_SESSION: u32 = 999;

fn seed() -> u64 {
    let seed = rand::random();
    println!("seed {seed}");
    seed
}

/// One operation on one of the round's keys, as chance wants it. The pair is two keys that are always written together, and so one
/// register, whichever of them is read.
fn any_operation(actor: &mut Actor, random: &mut StdRng, round: u32, client: u32, n: u32) -> Ended {
    let unique = format!("{}", (client + 1) * 10_000 + n);
    if random.random_bool(0.4) {
        return any_operation_on_elements(actor, random, round, &unique);
    }
    match random.random_range(0..100) {
        0..15 => actor.get(&format!("register-{round}")),
        15..25 => actor.set(&format!("register-{round}"), &unique),
        25..30 => actor.getset(&format!("register-{round}"), &unique),
        30..45 => actor.incr(&format!("counter-{round}")),
        45..55 => actor.get(&format!("counter-{round}")),
        55..65 => actor.set_nx(&format!("lock-{round}"), &client.to_string()),
        65..70 => actor.delete_if(&format!("lock-{round}"), &client.to_string()),
        70..75 => {
            let lock = format!("lock-{round}");
            let line = format!("DELEX {lock} IFEQ {client}");
            actor.act(&lock, "delete-if", &client.to_string(), &line)
        }
        75..80 => actor.get(&format!("lock-{round}")),
        80..82 => actor.del(&format!("lock-{round}")),
        82..86 => actor.get(&format!("shared-{round}")),
        86..90 => actor.incr(&format!("shared-{round}")),
        90..92 => actor.set(&format!("shared-{round}"), &unique),
        92..95 => {
            let line = format!("MSET left-{round} {unique} right-{round} {unique}");
            actor.act(&format!("pair-{round}"), "set", &unique, &line)
        }
        95..97 => actor.act(&format!("pair-{round}"), "get", ABSENT, &format!("GET left-{round}")),
        97..98 => actor.act(&format!("pair-{round}"), "get", ABSENT, &format!("GET right-{round}")),
        _ => actor.act(
            &format!("pair-{round}"),
            "get",
            ABSENT,
            &format!("MGET left-{round} right-{round}"),
        ),
    }
}

/// Each field, and each member, is a register. When the last one goes, the collection goes with it: the next one is another.
fn any_operation_on_elements(actor: &mut Actor, random: &mut StdRng, round: u32, unique: &str) -> Ended {
    let (hash, scores) = (format!("hash-{round}"), format!("scores-{round}"));
    let [register, count, pair, score] =
        ["register", "count", "pair", "score"].map(|name| format!("{name}-of-{round}"));
    let (pair_of_both, both) = (format!("HMSET {hash} left {unique} right {unique}"), "left right");
    let mut act = |key: &str, kind, argument: &str, line: &str| actor.act(key, kind, argument, line);
    match random.random_range(0..100) {
        0..12 => act(&register, "get", ABSENT, &format!("HGET {hash} register")),
        12..24 => act(&register, "set", unique, &format!("HMSET {hash} register {unique}")),
        24..30 => act(&register, "del", ABSENT, &format!("HDEL {hash} register")),
        30..42 => act(&count, "incr", ABSENT, &format!("HINCRBY {hash} count 1")),
        42..52 => act(&count, "get", ABSENT, &format!("HGET {hash} count")),
        52..56 => act(&count, "del", ABSENT, &format!("HDEL {hash} count")),
        56..65 => act(&pair, "set", unique, &pair_of_both),
        65..75 => act(&pair, "get", ABSENT, &format!("HMGET {hash} {both}")),
        75..79 => act(&pair, "del", ABSENT, &format!("HDEL {hash} {both}")),
        79..89 => act(&score, "incr", ABSENT, &format!("ZINCRBY {scores} 1 score")),
        89..96 => act(&score, "get", ABSENT, &format!("ZSCORE {scores} score")),
        _ => act(&score, "del", ABSENT, &format!("ZREM {scores} score")),
    }
}

/// What a node's client does in a round.
fn play(recorder: &Recorder, port: u16, round: u32, client: u32, seed: u64) {
    let mut random = StdRng::seed_from_u64(seed ^ u64::from(round * 100 + client));
    let mut actor = Actor::new(recorder, port, client);
    let until = Instant::now() + ROUND;
    let mut n = 0;
    while n < OPERATIONS && Instant::now() < until {
        let ended = any_operation(&mut actor, &mut random, round, client, n);
        n += u32::from(ended != Ended::Nothing);
    }
}

/// A producer that knows nothing of Highwater writes the shared key of the round, until it is over.
fn play_foreign(recorder: &Recorder, foreign: &Foreign, round: u32, over: &AtomicBool) {
    let key = format!("shared-{round}");
    for n in 0..12 {
        let value = (n + 1) * 1_000_000;
        let value = value.to_string();
        recorder.record(FOREIGN_SESSION, &key, "set", &value, || {
            match n % 2 {
                0 => foreign.write(&key, Some(&value)),
                _ => foreign.write_in_transaction(&[(&key, Some(&value)), ("elsewhere", None)]),
            }
            Ended::Answered(b"+OK\r\n".to_vec())
        });
        if over.load(Ordering::Acquire) {
            return;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Plays a round on all nodes; in most rounds one of them is killed in the midst of it and started again: whether this was one.
fn play_round(recorder: &Recorder, nodes: &mut [Highwater], foreign: Option<&Foreign>, round: u32, seed: u64) -> bool {
    let mut random = StdRng::seed_from_u64(seed ^ u64::from(round) << 32);
    let ports: Vec<u16> = nodes.iter().map(|node| node.port).collect();
    let over = AtomicBool::new(false);
    let kills = random.random_bool(0.6);
    std::thread::scope(|scope| {
        let _over = Stopping(&over);
        if let Some(foreign) = foreign {
            scope.spawn(|| play_foreign(recorder, foreign, round, &over));
        }
        let mut clients = Vec::new();
        for (node, &port) in ports.iter().enumerate() {
            for n in 0..CLIENTS_OF_A_NODE {
                let client = node as u32 * CLIENTS_OF_A_NODE + n;
                clients.push(scope.spawn(move || play(recorder, port, round, client, seed)));
            }
        }
        if kills {
            let victim = random.random_range(0..nodes.len());
            std::thread::sleep(Duration::from_millis(random.random_range(1..200)));
            nodes[victim].kill9();
            nodes[victim].restart();
        }
        for client in clients {
            client.join().expect("a client");
        }
    });
    kills
}

fn play_for(time: Duration, nodes: &mut [Highwater], foreign: Option<&Foreign>, seed: u64) -> Vec<Operation> {
    let recorder = Recorder::new();
    let begun = Instant::now();
    let mut kills = 0;
    for round in 0.. {
        kills += u32::from(play_round(&recorder, nodes, foreign, round, seed));
        if begun.elapsed() > time {
            break;
        }
    }
    println!("{kills} times kill -9");
    recorder.operations()
}

fn node(topic: &str, consistency: &str) -> Highwater {
    Highwater::builder()
        .kafka(kafka::shared(), topic)
        .args(&["--read-consistency", consistency, "--max-packed-elements", "2"])
        .start()
}

#[test]
fn two_nodes_and_a_foreign_producer_are_linearizable_also_when_nodes_are_killed() {
    let operations = judged_on_kafka(&fresh_topic("judged"));
    let corrupted = with_one_wrong_answer(operations);
    let wrong = judge(&corrupted).into_values().filter(|verdict| verdict == "Illegal");
    assert_eq!(wrong.count(), 1, "a wrong answer is found");
}

#[test]
fn over_several_partitions_they_are_linearizable_too() {
    judged_on_kafka(&kafka::shared().compacted_topic("judged", 3));
}

fn judged_on_kafka(topic: &str) -> Vec<Operation> {
    let seed = seed();
    let mut nodes = [node(topic, "linearizable"), node(topic, "linearizable")];
    let foreign = Foreign::new(kafka::shared(), topic);
    let operations = play_for(Duration::from_secs(15) * longer(), &mut nodes, Some(&foreign), seed);
    let open = operations.iter().filter(|operation| operation.done.is_none()).count();
    println!("{open} of them open");
    assert_linearizable(&operations, &format!("seed {seed}"));
    operations
}

/// The same history, but a read of a counter saw an increment too many.
fn with_one_wrong_answer(mut operations: Vec<Operation>) -> Vec<Operation> {
    let highest = |operation: &&mut Operation| {
        let counter = operation.kind == "get" && operation.key.starts_with("counter") && operation.answer != ABSENT;
        counter.then(|| operation.answer.parse::<u64>().expect("a number"))
    };
    let read = operations.iter_mut().max_by_key(highest).expect("a counter was read");
    let answer: u64 = read.answer.parse().expect("a number");
    read.answer = (answer + 1_000).to_string();
    operations
}

#[test]
fn the_embedded_log_is_linearizable_also_when_its_node_is_killed() {
    let seed = seed();
    let mut nodes = [Highwater::builder().args(&["--max-packed-elements", "2"]).start()];
    let operations = play_for(Duration::from_secs(8) * longer(), &mut nodes, None, seed);
    assert_linearizable(&operations, &format!("seed {seed}"));
}

/// What shows that the judge finds what it looks for: this mode promises less.
#[test]
fn eventual_reads_on_two_nodes_are_not_linearizable() {
    let topic = fresh_topic("eventual");
    let nodes = [node(&topic, "eventual"), node(&topic, "eventual")];
    let recorder = Recorder::new();
    let mut writer = Actor::new(&recorder, nodes[0].port, 0);
    let mut reader = Actor::new(&recorder, nodes[1].port, 1);
    let deadline = Instant::now() + Duration::from_secs(20);
    for round in 0.. {
        let key = format!("register-{round}");
        for n in 0..10 {
            writer.set(&key, &n.to_string());
            reader.get(&key);
        }
        if round % 10 == 9
            && judge(&recorder.operations())
                .values()
                .any(|verdict| verdict == "Illegal")
        {
            println!("found after {round} rounds");
            return;
        }
        assert!(Instant::now() < deadline, "no stale read was found");
    }
}

/// Session mode: the order of the log is the order of a key's values; no session sees it go backwards, and none misses its own writes.
#[test]
fn no_session_misses_its_own_writes_or_goes_back_in_time() {
    let seed = seed();
    let topic = fresh_topic("sessions");
    let mut nodes = [node(&topic, "session"), node(&topic, "session")];
    let operations = play_for(Duration::from_secs(8) * longer(), &mut nodes, None, seed);
    let mut offsets: HashMap<(String, String), i64> = HashMap::new();
    for record in kafka::shared().records(&topic, "read_committed") {
        let text = |bytes: Option<Vec<u8>>| String::from_utf8_lossy(&bytes.expect("a value")).into_owned();
        if record.value.is_some() {
            offsets.insert((text(record.key), text(record.value)), record.offset);
        }
    }
    let mut seen: HashMap<(u32, String), i64> = HashMap::new();
    let mut judged = 0;
    // The keys that are never deleted, each with values that do not come twice.
    let lasts = |key: &str| key.starts_with("register-") && !key.contains("of") || key.starts_with("counter");
    let lasting = |o: &&Operation| o.done.is_some() && lasts(&o.key);
    for operation in operations.iter().filter(lasting) {
        let offset_of = |value: &str| match value {
            ABSENT => -1,
            value => offsets[&(operation.key.clone(), value.to_owned())],
        };
        let before = seen.entry((operation.session, operation.key.clone())).or_insert(-1);
        let (read, written) = match operation.kind {
            "get" => (Some(&operation.answer), None),
            "set" => (None, Some(&operation.argument)),
            "getset" => (Some(&operation.answer), Some(&operation.argument)),
            _ => (None, Some(&operation.answer)),
        };
        if let Some(value) = read {
            assert!(
                offset_of(value) >= *before,
                "seed {seed}: not below offset {before}: {operation:?}"
            );
            *before = offset_of(value);
        }
        if let Some(value) = written {
            assert!(
                offset_of(value) > *before,
                "seed {seed}: after offset {before}: {operation:?}"
            );
            *before = offset_of(value);
        }
        judged += 1;
    }
    println!("{judged} operations of {} sessions and keys", seen.len());
    assert!(judged > 100);
}
