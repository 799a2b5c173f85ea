//! kill -9 again and again under load from many clients: what was acknowledged is there, groups are whole, counters are exact.

use std::collections::BTreeSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::consistency::equal_digests;
use crate::support::attempt::{Attempts, Ended};
use crate::support::client::Client;
use crate::support::kafka::{self, fresh_topic};
use crate::support::longer;
use crate::support::resp::Reply;
use crate::support::server::Highwater;

const CLIENTS: usize = 8;
/// Keys, and then fields of one hash.
const COUNTERS: usize = 5;
const COUNTING_KEYS: usize = 3;
/// Collections of more elements have a record for each element.
const SPLIT: &[&str] = &["--max-packed-elements", "2"];
const ACCOUNTS: usize = 4;

/// Of numbers that were written one after the other: the last that was acknowledged, and the last that was sent.
#[derive(Default, Debug, Clone, Copy)]
struct Known {
    acknowledged: u64,
    sent: u64,
}

impl Known {
    fn next(&mut self) -> u64 {
        self.sent += 1;
        self.sent
    }

    fn note(&mut self, ended: &Ended) {
        if let Ended::Answered(_) = ended {
            self.acknowledged = self.sent;
        }
    }

    fn allows(&self, found: u64) -> bool {
        (self.acknowledged..=self.sent).contains(&found)
    }

    /// What is deleted with an even number reads as 0.
    fn settle_brief(&mut self, found: u64, context: &dyn Fn() -> String) {
        let mut states = (self.acknowledged..=self.sent).map(|n| if n % 2 == 1 { n } else { 0 });
        assert!(states.any(|state| state == found), "{}: {found}, {self:?}", context());
        // The last delete, if it is deleted.
        self.settle(if found == 0 { self.sent & !1 } else { found });
    }

    /// Its writer is dead, and this was found: it will not change by itself.
    fn settle(&mut self, found: u64) {
        *self = Known {
            acknowledged: found,
            sent: found,
        };
    }
}

/// What a client knows of the keys that it alone writes.
#[derive(Default, Debug)]
struct Ledger {
    plain: Known,
    /// Three keys that are written together by MSET.
    group: Known,
    /// Written in MULTI … EXEC, with a transfer between accounts.
    exec: Known,
    /// Written with an odd number, deleted with an even one.
    brief: Known,
    /// Three fields of a hash, all of which are written or removed together: likewise.
    fields: Known,
    /// A member of a sorted set that all clients write: likewise.
    member: Known,
}

/// A counter that all clients write: what was found after the last kill, the replies of increments since, and how many more may have
/// happened.
#[derive(Default)]
struct Counter {
    before: u64,
    replies: Mutex<BTreeSet<u64>>,
    open: AtomicU64,
}

impl Counter {
    fn note(&self, ended: &Ended) {
        match ended {
            Ended::Answered(reply) => {
                let number = Reply::parse(reply).integer().expect("a number") as u64;
                let first = self.replies.lock().expect("nobody panics").insert(number);
                assert!(first, "two increments were answered {number}");
            }
            Ended::Open => drop(self.open.fetch_add(1, Ordering::Relaxed)),
            Ended::Nothing => {}
        }
    }

    /// Every increment that was answered counts, those that were not may. Says what is wrong.
    fn settle(&mut self, found: u64) -> Result<(), String> {
        let replies = std::mem::take(self.replies.get_mut().expect("nobody panics"));
        let open = std::mem::take(self.open.get_mut());
        let least = self.before + replies.len() as u64;
        let in_range = |reply: &u64| (self.before + 1..=found).contains(reply);
        if !(least..=least + open).contains(&found) || !replies.iter().all(in_range) {
            let before = self.before;
            return Err(format!("{found}, {before} before, {open} open, answered {replies:?}"));
        }
        self.before = found;
        Ok(())
    }
}

struct Load {
    ledgers: Vec<Ledger>,
    counters: [Counter; COUNTERS],
}

impl Load {
    fn new() -> Load {
        Load {
            ledgers: (0..CLIENTS).map(|_| Ledger::default()).collect(),
            counters: Default::default(),
        }
    }

    /// All clients write until the node is killed under them.
    fn until_killed(&mut self, node: &mut Highwater, after: Duration, random: &mut StdRng) {
        let port = node.port;
        let counters = &self.counters;
        std::thread::scope(|scope| {
            for (number, ledger) in self.ledgers.iter_mut().enumerate() {
                let random = StdRng::from_rng(random);
                scope.spawn(move || write(Attempts::on(port), number, ledger, counters, random));
            }
            std::thread::sleep(after);
            node.kill9();
        });
    }

    /// What is found now is all that there is of what was sent so far.
    fn check(&mut self, client: &mut Client, context: &str) {
        for (number, ledger) in self.ledgers.iter_mut().enumerate() {
            let plain = numbers(client, &format!("MGET plain-{number}"))[0];
            assert!(
                ledger.plain.allows(plain),
                "{context}: client {number}: plain {plain}, {ledger:?}"
            );
            let group = numbers(client, &format!("MGET a-{number} b-{number} c-{number}"));
            let whole = group.iter().all(|found| *found == group[0]);
            assert!(
                whole && ledger.group.allows(group[0]),
                "{context}: client {number}: MSET {group:?}, {ledger:?}"
            );
            let exec = numbers(client, &format!("MGET exec-{number} twin-{number}"));
            assert!(
                exec[0] == exec[1] && ledger.exec.allows(exec[0]),
                "{context}: client {number}: EXEC {exec:?}, {ledger:?}"
            );
            let brief = numbers(client, &format!("MGET brief-{number}"));
            let fields = numbers(client, &format!("HMGET hash-{number} a b c"));
            let all = numbers(client, &format!("HVALS hash-{number}"));
            let whole = fields.iter().all(|found| *found == fields[0]);
            assert!(
                whole && all.len() == if fields[0] == 0 { 0 } else { 3 },
                "{context}: client {number}: HSET {fields:?} {all:?}, {ledger:?}"
            );
            let member = numbers(client, &format!("ZMSCORE scores member-{number}"));
            let context = || format!("{context}: client {number}: {brief:?} {fields:?} {member:?}");
            ledger.brief.settle_brief(brief[0], &context);
            ledger.fields.settle_brief(fields[0], &context);
            ledger.member.settle_brief(member[0], &context);
            ledger.plain.settle(plain);
            ledger.group.settle(group[0]);
            ledger.exec.settle(exec[0]);
        }
        for (number, counter) in self.counters.iter_mut().enumerate() {
            let found = match number < COUNTING_KEYS {
                true => numbers(client, &format!("MGET counter-{number}"))[0],
                false => numbers(client, &format!("HMGET counters {number}"))[0],
            };
            if let Err(problem) = counter.settle(found) {
                panic!("{context}: counter {number} is {problem}");
            }
        }
        let accounts: Vec<String> = (0..ACCOUNTS).map(|n| format!("account-{n}")).collect();
        let reply = client.tree(&format!("MGET {}", accounts.join(" ")));
        let sum: i64 = reply.items().iter().map(|item| item.integer().unwrap_or(0)).sum();
        assert_eq!(sum, 0, "{context}: a transfer was done by half: {reply:?}");
    }

    /// Writes that took effect.
    fn done(&self) -> u64 {
        let of_ledger = |l: &Ledger| {
            let all = [l.plain, l.group, l.exec, l.brief, l.fields, l.member];
            all.iter().map(|known| known.acknowledged).sum::<u64>()
        };
        let increments = self.counters.iter().map(|counter| counter.before);
        self.ledgers.iter().map(of_ledger).sum::<u64>() + increments.sum::<u64>()
    }
}

/// What MGET answers, 0 for a key that is not there.
fn numbers(client: &mut Client, line: &str) -> Vec<u64> {
    let reply = client.tree(line);
    assert!(!reply.is_error(), "{line}: {reply:?}");
    let number = |item: &Reply| item.integer().map_or(0, |number| number as u64);
    reply.items().iter().map(number).collect()
}

/// One client: writes until its connection breaks.
fn write(mut node: Attempts, number: usize, ledger: &mut Ledger, counters: &[Counter], mut random: StdRng) {
    loop {
        match random.random_range(0..9) {
            0 | 1 => {
                let value = ledger.plain.next();
                let ended = node.line(&format!("SET plain-{number} {value}"));
                ledger.plain.note(&ended);
            }
            2 => pipeline(&mut node, number, &mut ledger.plain),
            3 => {
                let value = ledger.group.next();
                let ended = node.line(&format!(
                    "MSET a-{number} {value} b-{number} {value} c-{number} {value}"
                ));
                ledger.group.note(&ended);
            }
            4 => {
                let ended = transfer(&mut node, number, ledger.exec.next(), &mut random);
                ledger.exec.note(&ended);
            }
            5 => {
                let value = ledger.brief.next();
                let ended = match value % 2 {
                    1 => node.line(&format!("SET brief-{number} {value}")),
                    _ => node.line(&format!("DEL brief-{number}")),
                };
                ledger.brief.note(&ended);
            }
            6 => {
                let value = ledger.fields.next();
                let ended = match value % 2 {
                    1 => node.line(&format!("HSET hash-{number} a {value} b {value} c {value}")),
                    _ => node.line(&format!("HDEL hash-{number} a b c")),
                };
                ledger.fields.note(&ended);
            }
            7 => {
                let value = ledger.member.next();
                let ended = match value % 2 {
                    1 => node.line(&format!("ZADD scores {value} member-{number}")),
                    _ => node.line(&format!("ZREM scores member-{number}")),
                };
                ledger.member.note(&ended);
            }
            _ => {
                let counter = random.random_range(0..COUNTERS);
                let line = match counter < COUNTING_KEYS {
                    true => format!("INCR counter-{counter}"),
                    false => format!("HINCRBY counters {counter} 1"),
                };
                counters[counter].note(&node.line(&line));
            }
        }
        if !node.is_connected() {
            return;
        }
    }
}

/// Several writes of one key at once.
fn pipeline(node: &mut Attempts, number: usize, plain: &mut Known) {
    let first = plain.sent + 1;
    plain.sent += 10;
    let lines: Vec<String> = (first..=plain.sent)
        .map(|value| format!("SET plain-{number} {value}"))
        .collect();
    let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
    for (value, ended) in (first..).zip(node.lines(&lines)) {
        if let Ended::Answered(_) = ended {
            plain.acknowledged = value;
        }
    }
}

/// Moves an amount between two accounts, and notes the number of the transfer twice.
fn transfer(node: &mut Attempts, number: usize, value: u64, random: &mut StdRng) -> Ended {
    let (from, to) = (random.random_range(0..ACCOUNTS), random.random_range(0..ACCOUNTS));
    let amount = random.random_range(1..100);
    let lines = [
        "MULTI",
        &format!("SET exec-{number} {value}"),
        &format!("DECRBY account-{from} {amount}"),
        &format!("INCRBY account-{to} {amount}"),
        &format!("SET twin-{number} {value}"),
        "EXEC",
    ];
    node.lines(&lines).pop().expect("as many as were sent")
}

/// Kills it once more while it starts, at any moment of that.
fn kill_at_its_start(node: &mut Highwater, random: &mut StdRng) {
    node.restart_without_waiting();
    std::thread::sleep(Duration::from_millis(random.random_range(0..300)));
    node.kill9();
}

#[test]
fn the_embedded_log_survives_kill_9_again_and_again() {
    survives(Highwater::embedded());
}

/// A crash of the process loses nothing that the system has; files begin anew and are compacted all the time.
#[test]
fn small_segments_and_a_late_fsync_survive_kill_9_too() {
    let args = ["--segment-bytes", "64kb", "--fsync", "everysec"];
    survives(Highwater::builder().args(&args).args(SPLIT).start());
}

fn survives(mut node: Highwater) {
    let seed: u64 = rand::random();
    println!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let mut load = Load::new();
    for kill in 0..50 * longer() {
        let after = Duration::from_millis(random.random_range(5..100));
        load.until_killed(&mut node, after, &mut random);
        kill_at_its_start(&mut node, &mut random);
        node.restart();
        load.check(&mut node.client(), &format!("seed {seed}, kill {kill}"));
    }
    println!("{} writes", load.done());
    // The store is never the only place of anything.
    node.kill9();
    std::fs::remove_dir_all(node.dir().join("store")).expect("the store can be removed");
    node.allow("rebuil");
    node.restart();
    load.check(&mut node.client(), &format!("seed {seed}, rebuilt"));
}

#[test]
fn a_node_on_kafka_survives_kill_9_again_and_again() {
    let seed: u64 = rand::random();
    println!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let topic = fresh_topic("kills");
    let mut node = Highwater::builder().kafka(kafka::shared(), &topic).args(SPLIT).start();
    let mut load = Load::new();
    for kill in 0..30 * longer() {
        let after = Duration::from_millis(random.random_range(20..400));
        load.until_killed(&mut node, after, &mut random);
        kill_at_its_start(&mut node, &mut random);
        node.restart();
        load.check(&mut node.client(), &format!("seed {seed}, kill {kill}"));
    }
    println!("{} writes", load.done());
    let other = Highwater::on_kafka(kafka::shared(), &topic);
    load.check(&mut other.client(), &format!("seed {seed}, on another node"));
    equal_digests(&mut node.client(), &mut other.client(), "0");
}
