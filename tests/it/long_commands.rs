//! Commands that take long hold up nobody else, on a node with two threads.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rand::Rng;

use crate::support::Stopping;
use crate::support::client::Client;
use crate::support::kafka::{self, fresh_topic};
use crate::support::resp;
use crate::support::server::{Builder, Highwater};

/// The longest that anybody else may wait.
const MOST: Duration = Duration::from_secs(1);
const PATIENCE: Duration = Duration::from_secs(100);
/// Names of keys that others use: in all stripes of the node's key locks.
const OTHER_KEYS: u32 = 10_000;

/// Pipelined requests, each as redis-cli would take it.
struct Long {
    name: &'static str,
    requests: Vec<Vec<u8>>,
}

fn long(name: &'static str, lines: &[&str]) -> Long {
    let requests = lines.iter().map(|line| resp::command_line(line)).collect();
    Long { name, requests }
}

/// The longest wait for a reply, and for which command.
type Slowest = (Duration, &'static str);

/// A client with short commands, until it is over.
fn bystander(port: u16, over: &AtomicBool) -> Slowest {
    let mut client = Client::connect(port);
    client.set_deadline(PATIENCE);
    let mut slowest = (Duration::ZERO, "");
    let mut random = rand::rng();
    while !over.load(Ordering::Acquire) {
        let mut key = || format!("other:{}", random.random_range(0..OTHER_KEYS));
        for (name, line) in [
            ("SET", format!("SET {} v", key())),
            ("GET", format!("GET {}", key())),
            ("MGET", format!("MGET {} {}", key(), key())),
            ("MSET", format!("MSET {} v {} v", key(), key())),
            ("APPEND", format!("APPEND {} 1", key())),
            ("EXISTS", format!("EXISTS {}", key())),
            ("PING", "PING".to_owned()),
        ] {
            let asked = Instant::now();
            let reply = client.line(&line);
            assert!(!reply.starts_with(b"-"), "{line}: {}", resp::show(&reply));
            slowest = slowest.max((asked.elapsed(), name));
        }
    }
    slowest
}

/// The machine may be busy with other tests: one time in which nobody waits is enough.
fn holds_up_nobody(node: &Highwater, long: &Long) {
    const TIMES: usize = 5;
    let is_soon = || longest_wait_beside(node, long).0 < MOST;
    assert!((0..TIMES).any(|_| is_soon()), "others waited during {}", long.name);
}

/// Sends the requests at once, and has others served meanwhile.
fn longest_wait_beside(node: &Highwater, long: &Long) -> Slowest {
    let over = AtomicBool::new(false);
    let (took, slowest) = thread::scope(|scope| {
        let others: Vec<_> = (0..3).map(|_| scope.spawn(|| bystander(node.port, &over))).collect();
        let stopping = Stopping(&over);
        let mut client = node.client();
        client.set_deadline(PATIENCE);
        let began = Instant::now();
        client.write(&long.requests.concat());
        for _ in &long.requests {
            let reply = client.reply();
            assert!(!reply.starts_with(b"-"), "{}: {}", long.name, resp::show(&reply));
        }
        let took = began.elapsed();
        drop(stopping);
        let waits = others.into_iter().map(|other| other.join().expect("a bystander"));
        (took, waits.max().expect("bystanders"))
    });
    println!(
        "{}: {took:?}; others waited {:?} at most, for {}",
        long.name, slowest.0, slowest.1
    );
    slowest
}

/// `command to`, then the same key so many times.
fn named_again_and_again(command: &str, key: &str, times: usize) -> String {
    format!("{command}{}", format!(" {key}").repeat(times))
}

fn start(builder: Builder) -> Highwater {
    builder.args(&["--threads", "2"]).start()
}

#[test]
fn large_values_hold_up_nobody() {
    // Writes stand behind each other in the log: how long the disk takes for 100 MB is not what this is about.
    let node = start(Highwater::builder().args(&["--fsync", "no"]));
    let mut client = node.client();
    client.check("SETRANGE big 104857599 x", ":104857600");
    client.check("SETRANGE written 33554431 x", ":33554432");
    let bitop = named_again_and_again("BITOP OR to", "big", 200);
    let mget = named_again_and_again("MGET", "big", 4);
    let mut transaction = vec!["MULTI"];
    transaction.extend(["BITCOUNT big"; 15]);
    transaction.extend(["SETRANGE written 0 y", "BITOP NOT to written", "EXEC"]);
    for long in [
        long("BITOP", &[&bitop]),
        long("BITCOUNT", &["BITCOUNT big"; 50]),
        long("BITPOS", &["BITPOS big 1 1"; 50]),
        long("SETRANGE", &["SETRANGE written 1000 x"; 4]),
        long("APPEND", &["APPEND written x"; 4]),
        long("SETBIT", &["SETBIT written 7 1", "SETBIT written 7 0"]),
        long("MGET", &[&mget, &mget]),
        long("DUMP", &["DUMP big"; 5]),
        long("COPY", &["COPY written copied REPLACE"; 2]),
        long("MULTI", &transaction),
    ] {
        holds_up_nobody(&node, &long);
    }
}

/// What is not in memory is read from the store.
#[test]
fn large_values_in_the_store_hold_up_nobody() {
    let node = start(Highwater::builder().args(&["--maxmemory", "4mb"]));
    let mut client = node.client();
    client.set_deadline(PATIENCE);
    for n in 0..8 {
        let reply = client.line(&format!("SETRANGE big{n} 20971519 x"));
        assert_eq!(reply, b":20971520\r\n");
    }
    // Only once the store has them do they leave memory.
    client.line("DBSIZE");
    let lines = |command: &str| (0..8).map(|n| format!("{command} big{n}")).collect::<Vec<_>>();
    let names = (0..8).map(|n| format!(" big{n}")).collect::<String>();
    let (gets, counts) = (lines("GET"), lines("BITCOUNT"));
    for (name, lines) in [
        ("GET", gets),
        ("BITCOUNT", counts),
        ("MGET", vec![format!("MGET{names}")]),
        ("BITOP", vec![format!("BITOP OR to{names}")]),
    ] {
        let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
        holds_up_nobody(&node, &long(name, &lines));
    }
}

#[test]
fn many_keys_and_long_comparisons_hold_up_nobody() {
    let node = start(Highwater::builder());
    let mut client = node.client();
    client.set_deadline(PATIENCE);
    let pairs = |from: usize| (from..from + 20_000).map(|n| format!(" key:{n} v")).collect::<String>();
    for from in (0..200_000).step_by(20_000) {
        assert_eq!(client.line(&format!("MSET{}", pairs(from))), b"+OK\r\n");
    }
    let text = |seed: usize| {
        (0..32_000)
            .map(|n| char::from(b'a' + (n * seed % 23) as u8))
            .collect::<String>()
    };
    for (key, seed) in [("one", 7), ("other", 11)] {
        assert_eq!(client.line(&format!("SET {key} {}", text(seed))), b"+OK\r\n");
    }
    let names = (0..100_000).map(|n| format!(" key:{n}")).collect::<String>();
    assert_eq!(client.line(&format!("RPUSH names{names}")), b":100000\r\n");
    let (mset, mget) = (format!("MSET{}", pairs(0)), format!("MGET{names}"));
    for long in [
        long("LCS", &["LCS one other LEN"]),
        long("LCS in EXEC", &["MULTI", "LCS one other", "SET to v", "EXEC"]),
        long("KEYS", &["KEYS *"; 3]),
        long("SCAN", &["SCAN 0 COUNT 100000 MATCH *9*"; 3]),
        long("MGET", &[&mget, &mget]),
        long("MSET", &[&mset, &mset]),
        long("SORT", &["SORT names ALPHA DESC LIMIT 0 10"; 3]),
        long("SORT BY", &["SORT names BY *->none GET * LIMIT 0 10"; 3]),
        long("SORT STORE", &["SORT names BY * ALPHA GET # GET * STORE sorted"; 2]),
    ] {
        holds_up_nobody(&node, &long);
    }
}

/// There the values are as large as a record may be.
#[test]
fn large_values_hold_up_nobody_on_kafka() {
    let node = start(Highwater::builder().kafka(kafka::shared(), &fresh_topic("long")));
    let mut client = node.client();
    client.set_deadline(PATIENCE);
    client.check("SETRANGE big 15728639 x", ":15728640");
    let bitop = named_again_and_again("BITOP OR to", "big", 1_000);
    let mget = named_again_and_again("MGET", "big", 20);
    for long in [
        long("BITOP", &[&bitop]),
        long("BITCOUNT", &["BITCOUNT big"; 200]),
        long("SETRANGE", &["SETRANGE big 1000 x"; 4]),
        long("MGET", &[&mget]),
        long("COPY", &["COPY big copied REPLACE"; 2]),
        long("MULTI", &["MULTI", "BITCOUNT big", "BITOP NOT to big", "EXEC"]),
    ] {
        holds_up_nobody(&node, &long);
    }
}
